"""Samplers that draw a class by its weight, then one of its foregrounds uniformly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from terse_aug.samplers.base import DrawRequest, ForegroundIndex, Sampler
from terse_aug.utils.distributed import sum_tensors_over_ranks


class ClassSampler(Sampler):
    """Base class: draws a class by :meth:`weights`, then one of its foregrounds uniformly, with replacement."""

    def weights(self) -> Tensor:
        """float64 ``[K]``, at least 0, for ``foregrounds.classes``; they need not sum to 1."""
        raise NotImplementedError

    def probabilities(self) -> dict[int, float]:
        """The probability of each class, by label; 0 for those that are not allowed."""
        weights = self._allowed_weights()
        probabilities: list[float] = (weights / weights.sum()).tolist()
        return dict(zip(self.foregrounds.classes, probabilities, strict=True))

    def possible_labels(self) -> list[int]:
        """See :meth:`Sampler.possible_labels`."""
        return [label for label, probability in self.probabilities().items() if probability > 0]

    def restrict(self, labels: Iterable[int] | None) -> None:
        """See :meth:`Sampler.restrict`.

        Raises:
            ValueError: no foreground has any of the labels, or all that have have weight 0.
        """
        before = self._allowed_labels
        super().restrict(labels)
        if not float(self._allowed_weights().sum()) > 0:
            allowed, self._allowed_labels = self._allowed_labels, before
            raise ValueError(f"only foregrounds of {allowed} are allowed, but their weight is 0")

    def draw(self, request: DrawRequest, generator: torch.Generator) -> list[int]:
        """See :meth:`Sampler.draw`."""
        draws = request.pastes * (request.foreground_candidates if request.mix_classes else 1)
        if not draws:
            return []
        classes = torch.multinomial(self._allowed_weights(), draws, replacement=True, generator=generator)
        first = self.foregrounds.draw_from_classes(classes, 1, generator)[:, 0]
        return self._with_candidates(first, request, generator)

    def _allowed_weights(self) -> Tensor:
        weights = self.weights()
        if self._allowed_labels is None:
            return weights
        return weights * torch.tensor([label in self._allowed_labels for label in self.foregrounds.classes])


class WeightedSampler(ClassSampler):
    """Draws classes by given weights.

    Args:
        weights: by class name or label (the detector's label where ``Terse`` maps classes); at least 0 and relative to
            one another. A class that is not named has weight 1, one with weight 0 is not pasted.

    Raises:
        ValueError: a weight below 0 or not finite. When bound to a bank: an unknown class, or all weights are 0.
    """

    def __init__(self, weights: Mapping[str, float] | Mapping[int, float]) -> None:
        super().__init__()
        for name, weight in weights.items():
            if not isinstance(weight, Real) or not 0 <= weight < math.inf:
                raise ValueError(f"weight of class {name!r}: expected a finite number of at least 0, got {weight!r}")
        self.given: dict[str | int, float] = {**weights}  # type: ignore[dict-item]  # either is one of both

    @property
    def identity(self) -> str:
        """See :attr:`Sampler.identity`."""
        names = (self.foregrounds.categories.get(label, str(label)) for label in self.foregrounds.classes)
        each = sorted(zip(names, self._weights.tolist(), strict=True))
        return f"{type(self).__name__} {each} of {self.foregrounds.partition_id}"

    def bind(self, foregrounds: ForegroundIndex, seed: int, backgrounds: int = 0) -> None:
        """See :meth:`Sampler.bind`."""
        super().bind(foregrounds, seed, backgrounds)
        labels = {name: label for label, name in foregrounds.categories.items()}
        weights = dict.fromkeys(foregrounds.classes, 1.0)
        for name, weight in self.given.items():
            label = name if isinstance(name, int) else labels.get(name, _as_label(name))
            if label not in weights:
                raise ValueError(
                    f"sampler: the bank has no foregrounds of class {name!r}; expected some of "
                    f"{sorted(labels) or sorted(weights)}"
                )
            weights[label] = float(weight)
        if not sum(weights.values()) > 0:
            raise ValueError("sampler: expected a weight above 0 for at least one class of the bank, got zeros")
        self._weights = torch.tensor(list(weights.values()), dtype=torch.float64)

    def weights(self) -> Tensor:
        """See :meth:`ClassSampler.weights`."""
        return self._weights


def _as_label(name: str) -> int | None:
    return int(name) if name.lstrip("-").isdigit() else None


class RaritySampler(ClassSampler):
    """Weights a foreground of a class with n foregrounds by ``n ** -power``.

    With power 0 classes are as frequent as in the bank, with 1 all equally frequent. One half is how images of rare
    classes are repeated for LVIS (Gupta, Dollár, Girshick 2019: repeat factors; there only for classes below a
    threshold).

    Args:
        power: at least 0.

    Raises:
        ValueError: a power below 0 or not finite.
    """

    def __init__(self, power: float = 0.5) -> None:
        super().__init__()
        if not 0 <= power < math.inf:
            raise ValueError(f"power: expected a finite number of at least 0, got {power}")
        self.power = power

    @property
    def identity(self) -> str:
        """See :attr:`Sampler.identity`."""
        return f"{type(self).__name__} {self.power} of {self.foregrounds.partition_id}"

    def weights(self) -> Tensor:
        """See :meth:`ClassSampler.weights`."""
        # Relative to the largest class: no overflow with any power.
        sizes = self.foregrounds.class_sizes.double()
        if self.power <= 1:
            return (sizes / sizes.max()) ** (1 - self.power)
        return (sizes.min() / sizes) ** (self.power - 1)


_PRIOR_PASTES = 10.0
"""Pastes of mean hardness that every class is given in advance."""
_DECAY = 0.99
"""Weight that the record of a class keeps at each of its pastes."""


class HardnessSampler(ClassSampler):
    """Draws classes more often whose pastes the detector finds hard at present.

    The weight of a class is the mean hardness of about its last hundred pastes, shrunk towards the mean of all classes
    by ten pastes of that; all are equal at first. Every class keeps at least the fraction ``floor`` of what it would
    have if all were equal. The means are the same on all ranks and saved.

    Args:
        floor: in [0, 1]; 1 makes all classes equally frequent.
        update_interval: iterations from one update of the weights to the next.

    Raises:
        ValueError: a floor outside [0, 1] or an interval below 1.
    """

    learns = True
    in_workers = False

    def __init__(self, floor: float = 0.25, update_interval: int = 4) -> None:
        super().__init__()
        if not 0 <= floor <= 1:
            raise ValueError(f"floor: expected a fraction in [0, 1], got {floor}")
        if update_interval < 1:
            raise ValueError(f"update_interval: expected at least 1, got {update_interval}")
        self.floor, self.update_interval = floor, update_interval

    def bind(self, foregrounds: ForegroundIndex, seed: int, backgrounds: int = 0) -> None:
        """See :meth:`Sampler.bind`."""
        super().bind(foregrounds, seed, backgrounds)
        # Rows: sum of the hardness, and number, of the pastes of each class.
        self._totals = torch.zeros(2, len(foregrounds.classes), dtype=torch.float64)
        self._recorded = torch.zeros_like(self._totals)

    def weights(self) -> Tensor:
        """See :meth:`ClassSampler.weights`."""
        sums, counts = self._totals
        if not float(sums.sum()) > 0:
            return torch.ones_like(sums)
        seen = counts > 0
        overall = (sums[seen] / counts[seen]).mean()
        means = (sums + _PRIOR_PASTES * overall) / (counts + _PRIOR_PASTES)
        weights: Tensor = (1 - self.floor) * means / means.sum() + self.floor / len(means)
        return weights

    def record(self, foregrounds: Sequence[int], hardness: Sequence[float]) -> None:
        """See :meth:`Sampler.record`."""
        values = torch.tensor([hardness, [1.0] * len(hardness)], dtype=torch.float64)
        self._recorded.index_add_(1, self.foregrounds.class_of[list(foregrounds)], values)

    def update(self, device: torch.device) -> None:
        """See :meth:`Sampler.update`."""
        recorded = self._recorded.to(device) if device.type == "cuda" else self._recorded
        sum_tensors_over_ranks([recorded])
        recorded = recorded.cpu()
        self._totals = self._totals * torch.exp(recorded[1] * math.log(_DECAY)) + recorded
        self._recorded = torch.zeros_like(self._totals)

    def state(self) -> dict[str, Tensor]:
        """See :meth:`Sampler.state`."""
        return {"totals": self._totals, "recorded": self._recorded}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`Sampler.load_state`."""
        if any(value.shape != self._totals.shape for value in state.values()):
            raise ValueError(f"the state is of a bank with other classes than the {len(self.foregrounds.classes)} here")
        self._totals, self._recorded = (state[name].double().clone() for name in ("totals", "recorded"))
