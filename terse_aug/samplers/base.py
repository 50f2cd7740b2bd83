"""The interface of a sampler: which cut-outs are pasted, and on which backgrounds of a pool. Imports torch and numpy.

A new one is one file with a subclass of :class:`Sampler`; hand an instance to ``Terse(sampler=...)``.
Shape letters: M pastes, K classes, n cut-outs.
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
    """What the images of a batch want.

    Attributes:
        counts: pastes on each image that gets some.
        offers: cut-outs that are offered for each paste.
        mix_classes: whether those of one paste may be of different classes.
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
        """M, on all images together."""
        return sum(self.counts)


@dataclass(frozen=True)
class BackgroundDraw:
    """A background of the pool that a batch gets, and what is pasted on it.

    Attributes:
        background: its place in the pool.
        cutouts: positions of cut-outs, as :meth:`Sampler.draw` gives them.
    """

    background: int
    cutouts: list[int]


class ForegroundIndex:
    """The classes of a bank's cut-outs.

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
        """The labels that there are, ascending."""
        every: list[int] = np.unique(self.labels).tolist()
        return every

    @cached_property
    def grouping(self) -> str:
        """Equal where the same cut-outs are of one class, whatever the labels are."""
        _, first, group = np.unique(self.labels, return_index=True, return_inverse=True)
        places = np.argsort(np.argsort(first))[group.reshape(-1)]
        return hashlib.blake2b(places.astype("<i4").tobytes(), digest_size=6).hexdigest()

    @cached_property
    def sizes(self) -> Tensor:
        """int64 ``[K]``, how many cut-outs each class has."""
        starts = self._by_class[1]
        return starts[1:] - starts[:-1]

    @cached_property
    def group(self) -> Tensor:
        """int64 ``[n]``, the place in ``classes`` of each cut-out's class."""
        return torch.from_numpy(np.searchsorted(np.asarray(self.classes), self.labels))

    def of_classes(self, places: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Cut-outs drawn uniformly from classes, with replacement.

        Args:
            places: int64 ``[M]``, places in ``classes``.
            draws: from each.
            generator: the only source of randomness.

        Returns:
            int64 ``[M, draws]``.
        """
        order, starts = self._by_class
        sizes = self.sizes[places]
        within = (torch.rand(len(places), draws, generator=generator, dtype=torch.float64) * sizes[:, None]).long()
        return order[starts[places][:, None] + within.minimum(sizes[:, None] - 1)]

    @cached_property
    def _by_class(self) -> tuple[Tensor, Tensor]:
        """Positions sorted by class, and where each class begins among them (and the end)."""
        order = torch.from_numpy(np.argsort(self.group.numpy(), kind="stable"))
        starts = np.concatenate([[0], np.cumsum(np.bincount(self.group.numpy()))])
        return order, torch.from_numpy(starts)


class Sampler(nn.Module):
    """Base class; :meth:`draw` is all that a sampler without a memory has to write.

    A sampler belongs to one :class:`terse_aug.Terse`, which binds it to its bank and keeps its state: what
    :meth:`state` gives and :meth:`load_state` takes.
    """

    learns = False
    """Whether it wants to be told how hard the pastes of each class were."""
    update_interval = 4
    """Iterations between two updates, if it learns."""
    in_workers = True
    """Whether its draws are independent, so that they can be made in a data loader's workers."""
    allows_candidates = True
    """Whether several cut-outs may be offered for a paste."""

    cutouts: ForegroundIndex
    seed: int
    backgrounds: int

    def __init__(self) -> None:
        super().__init__()
        self._only: list[int] | None = None

    @property
    def identity(self) -> str:
        """Equal for samplers whose draws have the same distribution."""
        return type(self).__name__

    def bind(self, cutouts: ForegroundIndex, seed: int, backgrounds: int = 0) -> None:
        """Draw from these cut-outs from now on; called once.

        Args:
            cutouts: of the bank.
            seed: of all that is drawn without a generator.
            backgrounds: size of the pool of backgrounds, 0 where there is none.

        Raises:
            ValueError: it is bound already, or does not fit the bank or the pool.
        """
        if "cutouts" in self.__dict__:
            raise ValueError(f"{type(self).__name__}: expected one of its own for each Terse, got one that is in use")
        self.cutouts, self.seed, self.backgrounds = cutouts, seed, backgrounds

    @property
    def allowed_labels(self) -> list[int] | None:
        """What :meth:`restrict` has said; ``None`` for all."""
        return self._only

    def possible_labels(self) -> list[int] | None:
        """Labels of the classes that may be pasted at present; ``None`` for all."""
        return self._only

    def restrict(self, labels: Iterable[int] | None) -> None:
        """Allow cut-outs of some classes, or of all.

        Raises:
            ValueError: no cut-out has any of them.
        """
        wanted = None if labels is None else sorted(set(labels))
        if wanted is not None and not set(wanted) & set(self.cutouts.classes):
            raise ValueError(f"no cut-out in the bank has any of the labels {wanted}")
        self._only = wanted

    def draw(self, demand: DrawRequest, generator: torch.Generator) -> list[int]:
        """Positions of ``demand.pastes * demand.foreground_candidates`` cut-outs; each ``foreground_candidates`` in a row are offered together.

        The first of a row is drawn as the sampler has it, the others from its class: whichever of a row is taken,
        classes are as frequent as with one offer. With ``mix_classes`` all of them are drawn alike.
        """
        raise NotImplementedError

    def draw_backgrounds(self, demand: DrawRequest, generator: torch.Generator) -> list[BackgroundDraw]:
        """Backgrounds of the pool, one for each of ``demand.counts``, and what is pasted on them.

        Here backgrounds are drawn uniformly, and cut-outs as for any image.
        """
        backgrounds = torch.randint(self.backgrounds, (len(demand.counts),), generator=generator).tolist()
        cutouts = iter(self.draw(demand, generator))
        each = [[next(cutouts) for _ in range(count * demand.foreground_candidates)] for count in demand.counts]
        return [BackgroundDraw(background, own) for background, own in zip(backgrounds, each, strict=True)]

    def snapshot(self) -> Sampler:
        """One that draws from the same distribution, of all classes, without a trace in this one: for looking at.

        Here a copy; a sampler that remembers what it has drawn gives another.
        """
        other = copy.copy(self)
        other.restrict(None)
        return other

    def record(self, labels: Sequence[int], hardness: Sequence[float]) -> None:
        """Be told how hard pastes of these classes were, in [0, 1], where it ``learns``."""
        raise NotImplementedError

    def update(self, device: torch.device) -> None:
        """Learn from what was heard since the last call, where it ``learns``; every rank has to call it."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """Its state, by name; none by default."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take a state of :meth:`state`, of the same names.

        Raises:
            ValueError: it is of another bank or pool.
        """

    def _to_rows(self, first: Tensor, demand: DrawRequest, generator: torch.Generator) -> list[int]:
        """Rows of offers that begin with these cut-outs, int64 ``[M]``, the others of the same class."""
        if demand.foreground_candidates > 1:
            others = self.cutouts.of_classes(self.cutouts.group[first], demand.foreground_candidates - 1, generator)
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
        # Not strict: it does not know what is remembered here.
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, False, missing_keys, unexpected_keys, error_msgs
        )
        names = list(self.state())
        absent = [prefix + name for name in names if prefix + name not in state_dict]
        missing_keys.extend(absent)
        known = {name.partition(".")[0] for name in self.state_dict()}
        own = (name.removeprefix(prefix) for name in state_dict if name.startswith(prefix))
        unexpected_keys.extend(prefix + name for name in own if strict and name.partition(".")[0] not in known)
        if names and not absent:
            try:
                self.load_state({name: state_dict[prefix + name].cpu() for name in names})
            except ValueError as error:
                error_msgs.append(f"{prefix}: {error}")
