"""Sampler ``balanced``: every foreground on as many backgrounds as any other, and the reverse."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from terse_aug.samplers.balanced_stream import BalancedStream
from terse_aug.samplers.base import BackgroundDraw, DrawRequest, ForegroundIndex, Sampler
from terse_aug.samplers.bipartite_graph import random_bipartite
from terse_aug.samplers.uniform import UniformSampler
from terse_aug.utils.distributed import rank_count
from terse_aug.utils.random import derived_seed, generator_for

_DEFAULT_DEGREE = 6


class BalancedSampler(Sampler):
    """Balanced pairing after Jin and Rinard (Learning From Context-Agnostic Synthetic Data, 2020): a random biregular
    bipartite graph between foregrounds and backgrounds.

    On the images of the batch foregrounds are drawn in passes, each once in every pass: the counts of two foregrounds
    differ by at most one, and none is twice on an image that has no more pastes than there are foregrounds
    (:class:`BalancedStream` explains several ranks).

    For a pool of backgrounds a new graph is drawn in every round: each background gets ``background_degree`` different
    foregrounds and each foreground is on ``object_degree`` different backgrounds. Where the edges do not divide, the
    degrees of the other side differ by at most one, within a round and over all rounds. A background is visited until
    all its foregrounds have been pasted; the last visit may paste fewer than requested. All ranks have the same graph
    and visit different backgrounds.

    If all ranks of a distributed run load the state of one of them, some foregrounds of the current round or pass come
    once more or not at all.

    Args:
        background_degree: foregrounds on a background of the pool in a round; by default it follows from
            ``object_degree``, or is 6 or the number of foregrounds if that is lower.
        object_degree: backgrounds of the pool that a foreground is on in a round; by default it follows from
            ``background_degree``.

    Raises:
        ValueError: a degree below 1. When bound to bank and pool: degrees that no graph has, or fewer backgrounds than
            processes.
    """

    in_workers = False
    allows_candidates = False

    def __init__(self, background_degree: int | None = None, object_degree: int | None = None) -> None:
        super().__init__()
        for name, degree in (("background_degree", background_degree), ("object_degree", object_degree)):
            if degree is not None and degree < 1:
                raise ValueError(f"{name}: expected at least 1, got {degree}")
        self._background_degree, self._object_degree = background_degree, object_degree

    def bind(self, foregrounds: ForegroundIndex, seed: int, backgrounds: int = 0) -> None:
        """See :meth:`Sampler.bind`."""
        super().bind(foregrounds, seed, backgrounds)
        if backgrounds:
            _check_ranks(rank_count(), backgrounds)
        self._start(derived_seed(seed, "pairing"))

    def draw(self, request: DrawRequest, generator: torch.Generator) -> list[int]:
        """See :meth:`Sampler.draw`; the generator is not used."""
        allowed, labels = self._allowed_labels, self.foregrounds.labels
        return [
            position
            for count in request.counts
            for position in self._stream.draw(
                count, request.rank, request.ranks, lambda number: allowed is None or int(labels[number]) in allowed
            )
        ]

    def draw_backgrounds(self, request: DrawRequest, generator: torch.Generator) -> list[BackgroundDraw]:
        """See :meth:`Sampler.draw_backgrounds`.

        Raises:
            ValueError: the sampler is restricted to some classes, or there are more ranks than backgrounds.
        """
        if self._allowed_labels is not None:
            raise ValueError(
                f"restrict_labels: only {self._allowed_labels} may be pasted, but sampler='balanced' pairs all "
                "foregrounds with the pool"
            )
        return [self._rounds.draw(count, request.rank, request.ranks) for count in request.counts]

    def snapshot(self) -> UniformSampler:
        """See :meth:`Sampler.snapshot`; a single draw is uniform."""
        other = UniformSampler()
        other.bind(self.foregrounds, self.seed, self.backgrounds)
        return other

    def state(self) -> dict[str, Tensor]:
        """See :meth:`Sampler.state`."""
        own = {"seed": torch.tensor(self._stream_seed), "stream": self._stream.state()}
        return own | (self._rounds.state() if self.backgrounds else {})

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """See :meth:`Sampler.load_state`."""
        self._start(int(state["seed"]))  # the resumed run may have been given another seed
        self._stream.load_state(state["stream"])
        if self.backgrounds:
            self._rounds.load_state(state)

    def _start(self, seed: int) -> None:
        self._stream_seed = seed
        self._stream = BalancedStream(len(self.foregrounds), seed, "foregrounds")
        if self.backgrounds:
            self._rounds = _Rounds(len(self.foregrounds), self.backgrounds, self._edge_count(), seed)

    def _edge_count(self) -> int:
        """Edges of the graph of a round."""
        foregrounds = len(self.foregrounds)
        if self._object_degree is not None:
            edges = foregrounds * self._object_degree
            if self._background_degree is not None and edges != self.backgrounds * self._background_degree:
                raise ValueError(
                    f"expected {foregrounds} foregrounds x object_degree {self._object_degree} = {self.backgrounds} "
                    f"backgrounds x background_degree {self._background_degree}; leave one of them out"
                )
            if self._object_degree > self.backgrounds:
                raise ValueError(
                    f"object_degree: expected at most {self.backgrounds} backgrounds, got {self._object_degree}"
                )
            return edges
        if self._background_degree is not None and self._background_degree > foregrounds:
            raise ValueError(
                f"background_degree: expected at most {foregrounds} foregrounds, got {self._background_degree}"
            )
        return self.backgrounds * (self._background_degree or min(_DEFAULT_DEGREE, foregrounds))


class _Rounds:
    """A new graph in every round, and a rank's progress through its backgrounds.

    Memory is proportional to the numbers of foregrounds, backgrounds and edges.
    """

    def __init__(self, foregrounds: int, backgrounds: int, edges: int, seed: int) -> None:
        self._seed, self._edges, self._foregrounds, self._backgrounds = seed, edges, foregrounds, backgrounds
        # These have one edge more than others, in turn.
        self._extra_foregrounds = BalancedStream(foregrounds, seed, "more objects")
        self._extra_backgrounds = BalancedStream(backgrounds, seed, "more backgrounds")
        self._round, self._position, self._ranks = 0, 0, 1
        self._used: list[int] = []
        self._round_start = self._extra_state()
        self._graph: list[list[int]] | None = None
        self._visits: tuple[tuple[int, int, int], list[int]] | None = None

    def draw(self, count: int, rank: int, ranks: int) -> BackgroundDraw:
        """The next background of this rank, with at most as many foregrounds as requested."""
        _check_ranks(ranks, self._backgrounds)  # there may be more than in bind()
        if ranks != self._ranks and (self._used or self._position):
            self._start_next()
        self._ranks = ranks
        while True:
            graph = self._current_graph()
            visits = self._visit_order(rank)
            # A loaded state may be another rank's, which has one background more or less.
            self._used = (self._used + [0] * len(visits))[: len(visits)]
            self._position %= len(visits)
            for _ in range(len(visits)):
                position = self._position
                self._position = (position + 1) % len(visits)
                background, used = visits[position], self._used[position]
                if foregrounds := graph[background][used : used + count]:
                    self._used[position] += len(foregrounds)
                    return BackgroundDraw(background, foregrounds)
            self._start_next()

    def state(self) -> dict[str, Tensor]:
        """Round, position and ranks; used edges of each visited background; the extra edges before this round."""
        return {
            "round": torch.tensor([self._round, self._position, self._ranks]),
            "used": torch.tensor(self._used, dtype=torch.int32),
            "extra_foregrounds": self._round_start[0].clone(),
            "extra_backgrounds": self._round_start[1].clone(),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what :meth:`state` returned."""
        used: list[int] = state["used"].tolist()
        number, position, ranks = state["round"].tolist()
        if used and len(used) not in (self._backgrounds // ranks, -(-self._backgrounds // ranks)):
            raise ValueError(f"the state is of another pool than one of {self._backgrounds} backgrounds")
        self._extra_foregrounds.load_state(state["extra_foregrounds"])
        self._extra_backgrounds.load_state(state["extra_backgrounds"])
        self._round_start = self._extra_state()
        self._round, self._position, self._ranks, self._used = number, position, ranks, used
        self._graph = None

    def _start_next(self) -> None:
        self._current_graph()  # advances the extra edges
        self._round_start = self._extra_state()
        self._round, self._position, self._used, self._graph = self._round + 1, 0, [], None

    def _current_graph(self) -> list[list[int]]:
        if self._graph is None:
            foregrounds = self._degrees(self._foregrounds, self._extra_foregrounds)
            backgrounds = self._degrees(self._backgrounds, self._extra_backgrounds)
            self._graph = random_bipartite(foregrounds, backgrounds, generator_for(self._seed, "graph", self._round))
        return self._graph

    def _degrees(self, count: int, extra: BalancedStream) -> list[int]:
        """Degrees of one side."""
        least, rest = divmod(self._edges, count)
        degrees = [least] * count
        for number in extra.draw(rest):
            degrees[number] += 1
        return degrees

    def _visit_order(self, rank: int) -> list[int]:
        """This rank's backgrounds of the round, in the order of their visits."""
        key = (self._round, rank, self._ranks)
        if self._visits is None or self._visits[0] != key:
            order = torch.randperm(self._backgrounds, generator=generator_for(self._seed, "visits", self._round))
            self._visits = (key, order[rank :: self._ranks].tolist())
        return self._visits[1]

    def _extra_state(self) -> tuple[Tensor, Tensor]:
        return self._extra_foregrounds.state(), self._extra_backgrounds.state()


def _check_ranks(ranks: int, backgrounds: int) -> None:
    if ranks > backgrounds:
        raise ValueError(
            f"sampler='balanced': expected at least {ranks} backgrounds, one for each process, got {backgrounds}; add "
            "some, use fewer processes, or choose another sampler"
        )
