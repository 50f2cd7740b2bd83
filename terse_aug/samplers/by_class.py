"""Classes by weight: a class is drawn, then one of its cut-outs uniformly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from terse_aug.samplers.base import DrawRequest, ForegroundIndex, Sampler
from terse_aug.utils.distributed import sum_tensors_over_ranks


class ClassSampler(Sampler):
    """Base of those that draw a class by :meth:`weights`, and then one of its cut-outs uniformly, with replacement."""

    def weights(self) -> Tensor:
        """float64 ``[K]``, at least 0, for ``cutouts.classes``; they need not add up to 1."""
        raise NotImplementedError

    def probabilities(self) -> dict[int, float]:
        """The chance of each class, by label, of those that are allowed."""
        weights = self._allowed_weights()
        chances: list[float] = (weights / weights.sum()).tolist()
        return dict(zip(self.cutouts.classes, chances, strict=True))

    def possible_labels(self) -> list[int]:
        """See :meth:`Sampler.possible_labels`."""
        weights = self._allowed_weights().tolist()
        return [label for label, weight in zip(self.cutouts.classes, weights, strict=True) if weight > 0]

    def restrict(self, labels: Iterable[int] | None) -> None:
        """See :meth:`Sampler.restrict`; a class with weight 0 cannot be allowed alone."""
        before = self._only
        super().restrict(labels)
        if not float(self._allowed_weights().sum()) > 0:
            allowed, self._only = self._only, before
            raise ValueError(f"only cut-outs of {allowed} are allowed, but their weight is 0")

    def draw(self, demand: DrawRequest, generator: torch.Generator) -> list[int]:
        """See :meth:`Sampler.draw`."""
        wanted = demand.pastes * (demand.foreground_candidates if demand.mix_classes else 1)
        if not wanted:
            return []
        places = torch.multinomial(self._allowed_weights(), wanted, replacement=True, generator=generator)
        first = self.cutouts.of_classes(places, 1, generator)[:, 0]
        if demand.mix_classes:
            positions: list[int] = first.tolist()
            return positions
        return self._to_rows(first, demand, generator)

    def _allowed_weights(self) -> Tensor:
        weights = self.weights()
        if self._only is None:
            return weights
        return weights * torch.tensor([label in self._only for label in self.cutouts.classes])


class WeightedSampler(ClassSampler):
    """Classes by weights that are given.

    Args:
        weights: by name of the class, or by label, which is the detector's where ``Terse`` translates the bank; at
            least 0, and relative to one another. A class that is not named has 1, one with 0 is not pasted.

    Raises:
        ValueError: a weight below 0 or not finite. When it meets the bank: a class that is not there, or nothing but
            zeros.
    """

    def __init__(self, weights: Mapping[str, float] | Mapping[int, float]) -> None:
        super().__init__()
        self.given: dict[str | int, float] = {**weights}  # type: ignore[dict-item]  # either is one of both
        for name, weight in self.given.items():
            if not (isinstance(weight, Real) and 0 <= weight < math.inf):
                raise ValueError(f"weight of class {name!r}: expected a finite number of at least 0, got {weight!r}")

    @property
    def identity(self) -> str:
        """See :attr:`Sampler.identity`; by names, which ``Terse`` does not translate."""
        names = (self.cutouts.categories.get(label, str(label)) for label in self.cutouts.classes)
        each = sorted(zip(names, self._weights.tolist(), strict=True))
        return f"{type(self).__name__} {each} of {self.cutouts.grouping}"

    def bind(self, cutouts: ForegroundIndex, seed: int, backgrounds: int = 0) -> None:
        """See :meth:`Sampler.bind`."""
        super().bind(cutouts, seed, backgrounds)
        place = {label: number for number, label in enumerate(cutouts.classes)}
        named = {name: label for label, name in cutouts.categories.items()}
        weights = torch.ones(len(place), dtype=torch.float64)
        for name, weight in self.given.items():
            label = name if isinstance(name, int) else named.get(name, _as_label(name))
            if label not in place:
                raise ValueError(
                    f"sampler: the bank has no cut-outs of class {name!r}; expected some of "
                    f"{sorted(named) or sorted(place)}"
                )
            weights[place[label]] = float(weight)
        if not float(weights.sum()) > 0:
            raise ValueError("sampler: expected a weight above 0 for at least one class of the bank, got zeros")
        self._weights = weights

    def weights(self) -> Tensor:
        """See :meth:`ClassSampler.weights`."""
        return self._weights


def _as_label(name: str) -> int | None:
    return int(name) if name.lstrip("-").isdigit() else None


class RaritySampler(ClassSampler):
    """A cut-out of a class that has n of them weighs ``n ** -power``.

    With 0 classes are as frequent as in the bank, with 1 all equally frequent. One half is how images of rare classes
    are repeated for LVIS (Gupta, Dollár, Girshick 2019: repeat factors; there only for classes below a threshold).

    Args:
        power: at least 0.

    Raises:
        ValueError: a power below 0 or not finite.
    """

    def __init__(self, power: float = 0.5) -> None:
        super().__init__()
        if not 0 <= power < math.inf:
            raise ValueError(f"rarity_power: expected a finite number of at least 0, got {power}")
        self.power = power

    @property
    def identity(self) -> str:
        """See :attr:`Sampler.identity`."""
        return f"{type(self).__name__} {self.power} of {self.cutouts.grouping}"

    def weights(self) -> Tensor:
        """See :meth:`ClassSampler.weights`."""
        # Relative to the largest class: no overflow with any power.
        sizes = self.cutouts.sizes.double()
        return (
            (sizes / sizes.max()) ** (1 - self.power) if self.power <= 1 else (sizes.min() / sizes) ** (self.power - 1)
        )


class HardnessSampler(ClassSampler):
    """Classes by how hard the detector finds their pastes at present.

    The weight of a class is its mean hardness (one minus the detector's probability) over about its last hundred
    pastes, drawn towards the mean of all classes as if ten pastes had had that; all are equal before anything is known.
    Every class keeps at least the share ``floor`` of what it would have if all were equal.

    The means are the same on all ranks and a part of the state.

    Args:
        floor: in [0, 1]; 1 makes all classes equally frequent.

    Raises:
        ValueError: a floor outside [0, 1].
    """

    learns = True
    in_workers = False

    def __init__(self, floor: float = 0.25) -> None:
        super().__init__()
        if not 0 <= floor <= 1:
            raise ValueError(f"floor: expected a share in [0, 1], got {floor}")
        self.floor = floor

    def bind(self, cutouts: ForegroundIndex, seed: int, backgrounds: int = 0) -> None:
        """See :meth:`Sampler.bind`."""
        super().bind(cutouts, seed, backgrounds)
        # Rows: sum of the hardness, and number, of the pastes of each class.
        self._known = torch.zeros(2, len(cutouts.classes), dtype=torch.float64)
        self._heard = torch.zeros_like(self._known)

    def weights(self) -> Tensor:
        """See :meth:`ClassSampler.weights`."""
        sums, counts = self._known
        if not float(sums.sum()) > 0:
            return torch.ones_like(sums)
        seen = counts > 0
        overall = (sums[seen] / counts[seen]).mean()
        means = (sums + _PRIOR_PASTES * overall) / (counts + _PRIOR_PASTES)
        weights: Tensor = (1 - self.floor) * means / means.sum() + self.floor / len(means)
        return weights

    def record(self, labels: Sequence[int], hardness: Sequence[float]) -> None:
        """See :meth:`Sampler.record`."""
        place = {label: number for number, label in enumerate(self.cutouts.classes)}
        for label, value in zip(labels, hardness, strict=True):
            self._heard[:, place[label]] += torch.tensor([value, 1.0], dtype=torch.float64)

    def update(self, device: torch.device) -> None:
        """See :meth:`Sampler.update`."""
        heard = self._heard.to(device) if device.type == "cuda" else self._heard
        sum_tensors_over_ranks([heard])
        heard = heard.cpu()
        kept = torch.exp(heard[1] * math.log(_DECAY))
        self._known = self._known * kept + heard
        self._heard = torch.zeros_like(self._known)

    def state(self) -> dict[str, Tensor]:
        """See :meth:`Sampler.state`."""
        return {"known": self._known, "heard": self._heard}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`Sampler.load_state`."""
        if any(value.shape != self._known.shape for value in state.values()):
            raise ValueError(f"the state is of a bank with other classes than the {len(self.cutouts.classes)} here")
        self._known, self._heard = (state[name].double().clone() for name in ("known", "heard"))


_PRIOR_PASTES = 10.0
_DECAY = 0.99
"""Of what is known of a class, at each of its pastes."""
