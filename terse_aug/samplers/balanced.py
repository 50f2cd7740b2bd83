"""Every cut-out on as many backgrounds as any other, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from terse_aug.samplers.balanced_stream import BalancedStream
from terse_aug.samplers.base import BackgroundDraw, DrawRequest, ForegroundIndex, Sampler
from terse_aug.samplers.bipartite_graph import random_bipartite
from terse_aug.samplers.uniform import UniformSampler
from terse_aug.utils.distributed import rank_count
from terse_aug.utils.random import derived_seed, generator_for

_DEGREE = 6
"""Cut-outs on a background of the pool, in a round, where neither degree is given."""


class BalancedSampler(Sampler):
    """Balanced pairing, after Jin and Rinard (Learning From Context-Agnostic Synthetic Data, 2020): a random biregular
    bipartite graph between objects and backgrounds.

    On the images of the batch, of which nobody knows how many there are, cut-outs are dealt in passes: each comes once
    in every pass, so that the numbers of times that two were pasted never differ by more than one, and none is twice
    on an image that has no more pastes than there are cut-outs (:class:`BalancedStream` has the ranks' part).

    Of a pool of backgrounds the graph itself is drawn, afresh in every round: each background gets
    ``background_degree`` different cut-outs and each cut-out is on ``object_degree`` different backgrounds. Where the
    edges do not divide, the degrees of the other side differ by at most one, within a round and over all rounds. A
    background is visited until it has had its cut-outs: with fewer left than an image wants, the image gets as many as
    are left. The graph of a round is the same for all ranks, each of which has its own share of the backgrounds.

    Where all ranks of a distributed run take their state from one of them, some cut-outs of the round or pass that was
    begun come once more, or not at all.

    Args:
        background_degree: cut-outs on a background of the pool in a round; ``None``: as ``object_degree`` has it, or
            else 6, or as many as there are cut-outs.
        object_degree: backgrounds of the pool that a cut-out is on in a round; ``None``: as the other has it.

    Raises:
        ValueError: a degree below 1. When it meets the bank and the pool: degrees that no graph has, or fewer
            backgrounds than processes.
    """

    in_workers = False
    allows_candidates = False

    def __init__(self, background_degree: int | None = None, object_degree: int | None = None) -> None:
        super().__init__()
        for name, degree in (("background_degree", background_degree), ("object_degree", object_degree)):
            if degree is not None and degree < 1:
                raise ValueError(f"{name}: expected at least 1, got {degree}")
        self._degrees = (background_degree, object_degree)

    def bind(self, cutouts: ForegroundIndex, seed: int, backgrounds: int = 0) -> None:
        """See :meth:`Sampler.bind`."""
        super().bind(cutouts, seed, backgrounds)
        if backgrounds:
            _check_ranks(rank_count(), backgrounds)
        self._deal(derived_seed(seed, "pairing"))

    def draw(self, demand: DrawRequest, generator: torch.Generator) -> list[int]:
        """See :meth:`Sampler.draw`; the generator is not needed."""
        only, labels = self._only, self.cutouts.labels
        return [
            position
            for count in demand.counts
            for position in self._stream.take(
                count, demand.rank, demand.ranks, lambda number: only is None or int(labels[number]) in only
            )
        ]

    def draw_backgrounds(self, demand: DrawRequest, generator: torch.Generator) -> list[BackgroundDraw]:
        """See :meth:`Sampler.draw_backgrounds`.

        Raises:
            ValueError: only some classes are allowed, or there are more ranks than backgrounds.
        """
        if self._only is not None:
            raise ValueError(
                f"paste_only: only {self._only} may be pasted, but sampler='biregular' pairs all cut-outs with the pool"
            )
        return [self._rounds.draw_backgrounds(count, demand.rank, demand.ranks) for count in demand.counts]

    def snapshot(self) -> UniformSampler:
        """See :meth:`Sampler.snapshot`; by itself every draw is uniform."""
        other = UniformSampler()
        other.bind(self.cutouts, self.seed, self.backgrounds)
        return other

    def state(self) -> dict[str, Tensor]:
        """See :meth:`Sampler.state`."""
        own = {"seed": torch.tensor(self._own_seed), "stream": self._stream.state()}
        return own | (self._rounds.state() if self.backgrounds else {})

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`Sampler.load_state`."""
        self._deal(int(state["seed"]))  # a run that is resumed may have been given another
        self._stream.restore(state["stream"])
        if self.backgrounds:
            self._rounds.load_state(state)

    def _deal(self, own_seed: int) -> None:
        """Begin anew."""
        self._own_seed = own_seed
        self._stream = BalancedStream(len(self.cutouts), own_seed, "cutouts")
        if self.backgrounds:
            self._rounds = _Rounds(len(self.cutouts), self.backgrounds, self._edges(), own_seed)

    def _edges(self) -> int:
        """Edges of the graph of a round."""
        background_degree, object_degree = self._degrees
        cutouts = len(self.cutouts)
        if object_degree is not None:
            edges = cutouts * object_degree
            if background_degree is not None and edges != self.backgrounds * background_degree:
                raise ValueError(
                    f"expected {cutouts} cut-outs x object_degree {object_degree} = {self.backgrounds} backgrounds x "
                    f"background_degree {background_degree}; leave one of them out"
                )
            if object_degree > self.backgrounds:
                raise ValueError(f"object_degree: expected at most {self.backgrounds} backgrounds, got {object_degree}")
            return edges
        if background_degree is not None and background_degree > cutouts:
            raise ValueError(f"background_degree: expected at most {cutouts} cut-outs, got {background_degree}")
        return self.backgrounds * (background_degree or min(_DEGREE, cutouts))


class _Rounds:
    """A fresh graph in every round, and how far a rank is with its share of it.

    Memory is proportional to the numbers of cut-outs, backgrounds and edges.
    """

    def __init__(self, cutouts: int, backgrounds: int, edges: int, seed: int) -> None:
        self._seed, self._edges, self._backgrounds = seed, edges, backgrounds
        # Who has one edge more than others, in turn.
        self._more = (
            (cutouts, BalancedStream(cutouts, seed, "more objects")),
            (backgrounds, BalancedStream(backgrounds, seed, "more backgrounds")),
        )
        self._round, self._place, self._ranks = 0, 0, 1
        self._used: list[int] = []
        self._before = self._more_state()
        self._graph: list[list[int]] | None = None
        self._share: tuple[tuple[int, int, int], list[int]] | None = None

    def draw_backgrounds(self, wanted: int, rank: int, ranks: int) -> BackgroundDraw:
        """The next background of this rank, with at most as many cut-outs as are wanted."""
        _check_ranks(ranks, self._backgrounds)  # there may be more than when the pool was met
        if ranks != self._ranks and (self._used or self._place):
            self._begin_next()
        self._ranks = ranks
        while True:
            graph = self._of_this_round()
            own = self._own(rank)
            # A state may be another rank's, whose share is longer or shorter by one.
            self._used = (self._used + [0] * len(own))[: len(own)]
            self._place %= len(own)
            for _ in range(len(own)):
                place = self._place
                self._place = (place + 1) % len(own)
                objects, used = graph[own[place]], self._used[place]
                if used < len(objects):
                    taken = objects[used : used + wanted]
                    self._used[place] += len(taken)
                    return BackgroundDraw(own[place], taken)
            self._begin_next()

    def state(self) -> dict[str, Tensor]:
        """The round, the place in this rank's share, ranks; edges that were used of it; and who had more before."""
        return {
            "round": torch.tensor([self._round, self._place, self._ranks]),
            "used": torch.tensor(self._used, dtype=torch.int32),
            "more_objects": self._before[0].clone(),
            "more_backgrounds": self._before[1].clone(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what :meth:`state` gave."""
        used: list[int] = state["used"].tolist()
        number, place, ranks = state["round"].tolist()
        if used and len(used) not in (self._backgrounds // ranks, -(-self._backgrounds // ranks)):
            raise ValueError(f"the state is of another pool than one of {self._backgrounds} backgrounds")
        self._before = (state["more_objects"].clone(), state["more_backgrounds"].clone())
        self._restore()
        self._round, self._place, self._ranks, self._used = number, place, ranks, used
        self._graph = None

    def _begin_next(self) -> None:
        self._of_this_round()  # who has more is drawn there
        self._before = self._more_state()
        self._round, self._place, self._used, self._graph = self._round + 1, 0, [], None

    def _of_this_round(self) -> list[list[int]]:
        if self._graph is None:
            objects, backgrounds = (self._divided(count, stream) for count, stream in self._more)
            self._graph = random_bipartite(objects, backgrounds, generator_for(self._seed, "graph", self._round))
        return self._graph

    def _divided(self, count: int, stream: BalancedStream) -> list[int]:
        """Degrees of one side."""
        least, rest = divmod(self._edges, count)
        degrees = [least] * count
        for number in stream.take(rest):
            degrees[number] += 1
        return degrees

    def _own(self, rank: int) -> list[int]:
        """This rank's backgrounds, in the order of their visits."""
        key = (self._round, rank, self._ranks)
        if self._share is None or self._share[0] != key:
            order = torch.randperm(self._backgrounds, generator=generator_for(self._seed, "visits", self._round))
            self._share = (key, order[rank :: self._ranks].tolist())
        return self._share[1]

    def _more_state(self) -> Sequence[Tensor]:
        return tuple(stream.state() for _, stream in self._more)

    def _restore(self) -> None:
        for (_, stream), state in zip(self._more, self._before, strict=True):
            stream.restore(state)


def _check_ranks(ranks: int, backgrounds: int) -> None:
    """Refuse a pool of which a rank would have no share."""
    if ranks > backgrounds:
        raise ValueError(
            f"sampler='biregular': expected at least {ranks} backgrounds, one for each process, got {backgrounds}; add "
            "some, use fewer processes, or choose another sampler"
        )
