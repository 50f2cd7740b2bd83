"""The sampler interface: which foregrounds are pasted, and on which backgrounds of a pool.

Shape letters: M pastes, K classes, n foregrounds.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


@dataclass(frozen=True)
class DrawRequest:
    """What the images of a batch need.

    Attributes:
        counts: pastes on each image that gets any.
        foreground_candidates: foregrounds drawn for each paste, among which the policy chooses.
        mix_classes: the candidates of one paste may be of different classes.
        rank: of this process.
        ranks: number of processes.
    """

    counts: Sequence[int]
    foreground_candidates: int = 1
    mix_classes: bool = False
    rank: int = 0
    ranks: int = 1

    @property
    def pastes(self) -> int:
        """M, the pastes of all images."""
        return sum(self.counts)


@dataclass(frozen=True)
class BackgroundDraw:
    """A background of the pool and what is pasted on it.

    Attributes:
        background: its position in the pool.
        foregrounds: positions in the bank, as :meth:`Sampler.draw` returns them.
    """

    background: int
    foregrounds: list[int]


class ForegroundIndex:
    """The classes of a bank's foregrounds.

    Args:
        labels: int ``[n]``, n at least 1.
        categories: name of each label.
    """

    def __init__(self, labels: NDArray[np.int64], categories: Mapping[int, str] | None = None) -> None:
        self.labels = labels
        self.categories = dict(categories or {})

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def classes(self) -> list[int]:
        """The K labels in the bank, ascending."""
        labels: list[int] = np.unique(self.labels).tolist()
        return labels

    @cached_property
    def partition_id(self) -> str:
        """Equal for banks whose foregrounds are grouped into the same classes, whatever the labels of these."""
        _, first, group = np.unique(self.labels, return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))[group.reshape(-1)]
        return hashlib.blake2b(order.astype("<i4").tobytes(), digest_size=6).hexdigest()

    @cached_property
    def class_sizes(self) -> Tensor:
        """int64 ``[K]``, the number of foregrounds of each class."""
        starts = self._by_class[1]
        return starts[1:] - starts[:-1]

    @cached_property
    def class_of(self) -> Tensor:
        """int64 ``[n]``, the position in ``classes`` of each foreground's class."""
        return torch.from_numpy(np.searchsorted(np.asarray(self.classes), self.labels))

    def draw_from_classes(self, classes: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Draw foregrounds uniformly from given classes, with replacement.

        Args:
            classes: int64 ``[M]``, positions in ``classes``.
            draws: foregrounds drawn from each.
            generator: the only source of randomness.

        Returns:
            int64 ``[M, draws]``.
        """
        order, starts = self._by_class
        sizes = self.class_sizes[classes]
        within = (torch.rand(len(classes), draws, generator=generator, dtype=torch.float64) * sizes[:, None]).long()
        return order[starts[classes][:, None] + within.minimum(sizes[:, None] - 1)]

    @cached_property
    def _by_class(self) -> tuple[Tensor, Tensor]:
        """Positions sorted by class ``[n]``, and where each class begins among them ``[K + 1]``."""
        classes = self.class_of.numpy()
        starts = np.concatenate([[0], np.cumsum(np.bincount(classes))])
        return torch.from_numpy(np.argsort(classes, kind="stable")), torch.from_numpy(starts)


class Sampler(nn.Module):
    """Base class of samplers; a sampler without a state has to define :meth:`draw` only.

    A sampler belongs to one :class:`terse_aug.Terse`, which binds it to its bank and saves its state.
    """

    learns = False
    """It needs :meth:`record` and :meth:`update`."""
    update_interval = 4
    """Iterations between two updates, if it learns."""
    in_workers = True
    """Its draws are independent, so that they can be made in a data loader's workers."""
    allows_candidates = True
    """Several foregrounds may be drawn for a paste."""

    foregrounds: ForegroundIndex
    seed: int
    backgrounds: int

    def __init__(self) -> None:
        super().__init__()
        self._allowed_labels: list[int] | None = None

    @property
    def identity(self) -> str:
        """Equal for samplers that draw from the same distribution."""
        return type(self).__name__

    def bind(self, foregrounds: ForegroundIndex, seed: int, backgrounds: int = 0) -> None:
        """Set what is drawn from; called once.

        Args:
            foregrounds: of the bank.
            seed: of all draws that do not take a generator.
            backgrounds: size of the background pool, 0 without one.

        Raises:
            ValueError: the sampler is bound already, or does not fit the bank or the pool.
        """
        if "foregrounds" in self.__dict__:
            raise ValueError(f"{type(self).__name__}: expected one of its own for each Terse, got one that is in use")
        self.foregrounds, self.seed, self.backgrounds = foregrounds, seed, backgrounds

    @property
    def allowed_labels(self) -> list[int] | None:
        """The labels given to :meth:`restrict`; ``None`` for all."""
        return self._allowed_labels

    def possible_labels(self) -> list[int] | None:
        """Labels that may be drawn at present; ``None`` for all."""
        return self._allowed_labels

    def restrict(self, labels: Iterable[int] | None) -> None:
        """Draw foregrounds of some classes only, or of all (``None``).

        Raises:
            ValueError: no foreground has any of the labels.
        """
        allowed = None if labels is None else sorted(set(labels))
        if allowed is not None and not set(allowed) & set(self.foregrounds.classes):
            raise ValueError(f"no foreground in the bank has any of the labels {allowed}")
        self._allowed_labels = allowed

    def draw(self, request: DrawRequest, generator: torch.Generator) -> list[int]:
        """Draw ``request.pastes * request.foreground_candidates`` positions; the candidates of a paste are adjacent.

        The first candidate is drawn from the sampler's distribution, the others from its class: whichever the policy
        chooses, class frequencies are those of a single candidate. With ``mix_classes`` all are drawn like the first.
        """
        raise NotImplementedError

    def draw_backgrounds(self, request: DrawRequest, generator: torch.Generator) -> list[BackgroundDraw]:
        """Draw a background of the pool for each of ``request.counts``, and what is pasted on it.

        By default backgrounds are drawn uniformly, and foregrounds by :meth:`draw`.
        """
        backgrounds = torch.randint(self.backgrounds, (len(request.counts),), generator=generator).tolist()
        drawn = iter(self.draw(request, generator))
        each = [[next(drawn) for _ in range(count * request.foreground_candidates)] for count in request.counts]
        return [BackgroundDraw(background, own) for background, own in zip(backgrounds, each, strict=True)]

    def snapshot(self) -> Sampler:
        """A sampler of the same distribution over all classes, whose draws leave this one unchanged; for previews."""
        other = copy.copy(self)
        other.restrict(None)
        return other

    def record(self, foregrounds: Sequence[int], hardness: Sequence[float]) -> None:
        """Record the foreground, as :meth:`draw` returned it, and the hardness, in [0, 1], of pastes; for samplers that
        learn."""
        raise NotImplementedError

    def update(self, device: torch.device) -> None:
        """Learn from what was recorded since the last call; every rank has to call it. For samplers that learn.

        Args:
            device: for communication between ranks.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """State besides parameters and buffers, by name; none by default."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state` returned.

        Raises:
            ValueError: the state is of another bank or pool.
        """

    def _with_candidates(self, first: Tensor, request: DrawRequest, generator: torch.Generator) -> list[int]:
        """Add candidates of the same class to the first one of each paste, int64 ``[M]``."""
        if request.foreground_candidates > 1 and not request.mix_classes:
            classes = self.foregrounds.class_of[first]
            others = self.foregrounds.draw_from_classes(classes, request.foreground_candidates - 1, generator)
            first = torch.cat([first[:, None], others], 1).flatten()
        positions: list[int] = first.tolist()
        return positions

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: value.clone() for name, value in self.state().items()})

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Not strict: torch does not know the names of state().
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, False, missing_keys, unexpected_keys, error_msgs
        )
        names = list(self.state())
        missing = [prefix + name for name in names if prefix + name not in state_dict]
        missing_keys.extend(missing)
        expected = {name.partition(".")[0] for name in self.state_dict()}
        own = (name.removeprefix(prefix) for name in state_dict if name.startswith(prefix))
        unexpected_keys.extend(prefix + name for name in own if strict and name.partition(".")[0] not in expected)
        if names and not missing:
            try:
                self.load_state({name: state_dict[prefix + name].cpu() for name in names})
            except ValueError as error:
                error_msgs.append(f"{prefix}: {error}")
