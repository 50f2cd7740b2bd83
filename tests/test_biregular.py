"""Balanced pairing: cut-outs in passes, and random biregular graphs between cut-outs and a pool of backgrounds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from factories import EVERY_IMAGE, all_equal, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from terse_aug import BackgroundPool, ForegroundBank, Terse
from terse_aug.policies import Critic
from terse_aug.samplers import BackgroundDraw, BalancedSampler, BalancedStream, DrawRequest, ForegroundIndex
from terse_aug.samplers.bipartite_graph import random_bipartite
from terse_aug.utils.random import generator_for

ANY = torch.Generator()
"""What balanced samplers draw does not depend on it."""


def bound(cutouts: int, backgrounds: int = 0, labels: Any = None, seed: int = 0, **degrees: Any) -> BalancedSampler:
    sampler = BalancedSampler(**degrees)
    sampler.bind(ForegroundIndex(np.zeros(cutouts, np.int64) if labels is None else labels), seed, backgrounds)
    return sampler


# --- passes ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 8), min_size=1, max_size=40), st.integers(0, 5))
def test_degrees_never_differ_by_more_than_one_and_no_object_is_twice_on_an_image(
    cutouts: int, counts: list[int], seed: int
) -> None:
    sampler = bound(cutouts, seed=seed)
    degrees = np.zeros(cutouts, int)
    for count in counts:
        drawn = sampler.draw(DrawRequest([count]), ANY)
        assert len(drawn) == count
        if count <= cutouts:
            assert len(set(drawn)) == count
        for position in drawn:
            degrees[position] += 1
        assert degrees.max() - degrees.min() <= 1


def test_a_pass_is_in_random_order() -> None:
    orders = Counter(tuple(bound(3, seed=seed).draw(DrawRequest([3]), ANY)) for seed in range(1200))
    assert set(orders) == set(itertools.permutations(range(3)))
    assert max(orders.values()) < 1.3 * min(orders.values())
    stream = BalancedStream(4, 0)
    passes = [tuple(stream.take(4)) for _ in range(30)]
    assert len(set(passes)) > 12


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_keep_step_share_each_pass_and_none_repeats_within_one(ranks: int) -> None:
    cutouts = 12
    samplers = [bound(cutouts) for _ in range(ranks)]
    drawn = [
        [sampler.draw(DrawRequest([4, 2], rank=own, ranks=ranks), ANY) for own, sampler in enumerate(samplers)]
        for _ in range(8)
    ]
    each = [list(itertools.chain(*(step[own] for step in drawn))) for own in range(ranks)]
    part = cutouts // ranks
    for start in range(0, 48, part):
        together = [position for own in each for position in own[start : start + part]]
        assert sorted(together) == list(range(cutouts))
    for own in each:
        for start in range(0, 48, cutouts):
            assert sorted(own[start : start + cutouts]) == list(range(cutouts))
    # In another order on each: what comes after what differs.
    pairs = [set(itertools.pairwise(own)) for own in each]
    assert len(pairs[0] & pairs[1]) < 0.5 * len(pairs[0])


@pytest.mark.parametrize("at", [1, 3, 7])
def test_a_stream_goes_on_where_it_was_saved(at: int) -> None:
    counts = [5, 2, 4, 4, 3, 5, 1, 5, 5, 2]
    whole, begun, resumed = bound(6), bound(6), bound(6, seed=99)
    expected = [whole.draw(DrawRequest([count]), ANY) for count in counts]
    for count in counts[:at]:
        begun.draw(DrawRequest([count]), ANY)
    resumed.load_state_dict(begun.state_dict())
    assert [resumed.draw(DrawRequest([count]), ANY) for count in counts[at:]] == expected[at:]


def test_with_another_number_of_ranks_a_pass_begins_anew() -> None:
    sampler = bound(6)
    sampler.draw(DrawRequest([4]), ANY)
    parts = [sampler.draw(DrawRequest([3], rank=0, ranks=2), ANY), sampler.draw(DrawRequest([3], rank=0, ranks=2), ANY)]
    assert sorted(itertools.chain(*parts)) == list(range(6))


def test_of_some_classes_only_their_cut_outs_come_in_turn() -> None:
    sampler = bound(9, labels=np.array([1, 2, 3] * 3))
    sampler.restrict([1, 3])
    degrees = Counter(itertools.chain(*(sampler.draw(DrawRequest([2]), ANY) for _ in range(9))))
    assert degrees == dict.fromkeys((0, 2, 3, 5, 6, 8), 3)


# --- graphs ---------------------------------------------------------------------------------------------------------


def biregular_graphs(side: int, degree: int) -> list[frozenset[tuple[int, int]]]:
    """All of them, by trying."""
    rows = list(itertools.combinations(range(side), degree))
    return [
        frozenset((row, column) for row, chosen in enumerate(choice) for column in chosen)
        for choice in itertools.product(rows, repeat=side)
        if all(count == degree for count in Counter(itertools.chain(*choice)).values())
    ]


def chi_square_quantile(freedom: int, deviations: float) -> float:
    """Of the distribution, by Wilson and Hilferty, so many standard deviations out."""
    return float(freedom * (1 - 2 / (9 * freedom) + deviations * math.sqrt(2 / (9 * freedom))) ** 3)


@pytest.mark.parametrize(("side", "degree", "count"), [(4, 2, 90), (4, 1, 24), (3, 2, 6)])
def test_all_biregular_graphs_are_equally_likely(side: int, degree: int, count: int) -> None:
    graphs = biregular_graphs(side, degree)
    assert len(graphs) == count
    generator, draws = generator_for(7), 60 * count
    seen: Counter[frozenset[tuple[int, int]]] = Counter()
    for _ in range(draws):
        rows = random_bipartite([degree] * side, [degree] * side, generator)
        seen[frozenset((row, column) for row, own in enumerate(rows) for column in own)] += 1
    assert set(seen) <= set(graphs)
    expected = draws / count
    statistic = sum((seen[graph] - expected) ** 2 / expected for graph in graphs)
    # Within what 999 of 1000 uniform samples would show, on both sides.
    assert chi_square_quantile(count - 1, -3.1) < statistic < chi_square_quantile(count - 1, 3.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_graphs_have_their_degrees_and_no_double_edge(objects: int, backgrounds: int, data: st.DataObject) -> None:
    """Up to complete graphs."""
    edges = data.draw(st.integers(1, objects * backgrounds))
    degrees = [[edges // n + (place < edges % n) for place in range(n)] for n in (objects, backgrounds)]
    rows = random_bipartite(degrees[0], degrees[1], generator_for(edges), switches=data.draw(st.integers(0, 3)))
    assert [len(row) for row in rows] == degrees[1]
    assert all(len(set(row)) == len(row) for row in rows)
    counts = Counter(itertools.chain(*rows))
    assert [counts[number] for number in range(objects)] == degrees[0]


@pytest.mark.parametrize(("objects", "backgrounds", "edges"), [(5, 5, 23), (4, 6, 23), (6, 4, 24), (3, 40, 119)])
def test_dense_graphs_are_right_too(objects: int, backgrounds: int, edges: int) -> None:
    """In which no switch may mend what a random matching leaves."""
    degrees = [[edges // n + (place < edges % n) for place in range(n)] for n in (objects, backgrounds)]
    for seed in range(40):
        rows = random_bipartite(degrees[0], degrees[1], generator_for(seed))
        assert [len(set(row)) for row in rows] == degrees[1]
        assert sorted(Counter(itertools.chain(*rows)).items()) == list(enumerate(degrees[0]))


# --- a pool ---------------------------------------------------------------------------------------------------------


def visits_of(sampler: BalancedSampler, counts: list[int], **ranks: int) -> list[BackgroundDraw]:
    return [sampler.draw_backgrounds(DrawRequest([count], **ranks), ANY)[0] for count in counts]


def edges_until(sampler: BalancedSampler, total: int, counts: list[int], **ranks: int) -> list[tuple[int, int]]:
    """Edges (background, cut-out) of visits until there are so many, which has to be without a rest."""
    edges: list[tuple[int, int]] = []
    wanted = itertools.cycle(counts)
    while len(edges) < total:
        (visit,) = visits_of(sampler, [next(wanted)], **ranks)
        assert visit.cutouts
        edges += [(visit.background, position) for position in visit.cutouts]
    assert len(edges) == total
    return edges


@pytest.mark.parametrize(
    ("cutouts", "backgrounds", "degrees"),
    [
        (6, 4, {"background_degree": 3}),
        (6, 4, {"object_degree": 2}),
        (6, 4, {"background_degree": 3, "object_degree": 2}),
        (7, 5, {"background_degree": 3}),  # 15 edges on 7 cut-outs
        (7, 5, {"object_degree": 2}),  # 14 on 5 backgrounds
        (5, 40, {}),
        (40, 5, {"background_degree": 2}),  # fewer edges than cut-outs
        (3, 3, {"background_degree": 3}),
    ],
)
def test_each_round_is_a_biregular_graph(cutouts: int, backgrounds: int, degrees: dict[str, int]) -> None:
    sampler = bound(cutouts, backgrounds, **degrees)
    total = cutouts * degrees["object_degree"] if "object_degree" in degrees else 0
    total = total or backgrounds * degrees.get("background_degree", min(6, cutouts))
    whole: Counter[tuple[str, int]] = Counter()
    graphs = set()
    for _ in range(6):
        edges = edges_until(sampler, total, [2, 1, 3])
        assert len(set(edges)) == total
        graphs.add(frozenset(edges))
        for side, (name, size) in enumerate((("background", backgrounds), ("cut-out", cutouts))):
            within = Counter(edge[side] for edge in edges)
            assert max(within[n] for n in range(size)) - min(within[n] for n in range(size)) <= 1
            whole.update({(name, number): count for number, count in within.items()})
            totals = [whole[name, number] for number in range(size)]
            assert max(totals) - min(totals) <= 1
    assert len(graphs) > 1 or total == cutouts * backgrounds


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_graph_of_a_round_and_no_background(ranks: int) -> None:
    samplers = [bound(9, 6, background_degree=3) for _ in range(ranks)]
    for _ in range(3):
        each = [
            edges_until(sampler, 18 // ranks, [2, 2, 1], rank=own, ranks=ranks) for own, sampler in enumerate(samplers)
        ]
        for one, other in itertools.combinations(each, 2):
            assert not {edge[0] for edge in one} & {edge[0] for edge in other}
        together = list(itertools.chain(*each))
        assert len(set(together)) == 18
        assert set(Counter(edge[1] for edge in together).values()) == {2}
    with pytest.raises(ValueError, match="expected at least 7 backgrounds, one for each process"):
        visits_of(bound(9, 6), [1], rank=0, ranks=7)


@pytest.mark.parametrize("at", [3, 11, 14, 26])
def test_a_round_goes_on_where_it_was_saved(at: int) -> None:
    counts = [1, 2, 3, 2] * 10
    whole, begun, resumed = bound(7, 5), bound(7, 5), bound(7, 5, seed=99)
    expected = visits_of(whole, counts)
    visits_of(begun, counts[:at])
    resumed.load_state_dict(begun.state_dict())
    assert visits_of(resumed, counts[at:]) == expected[at:]


@pytest.mark.parametrize(("backgrounds", "ranks"), [(3, 2), (5, 2), (7, 3)])
def test_all_ranks_go_on_from_the_state_of_any(backgrounds: int, ranks: int) -> None:
    for saver, at in itertools.product(range(ranks), range(1, 9)):
        begun = bound(4, backgrounds)
        visits_of(begun, [2] * at, rank=saver, ranks=ranks)
        for rank in range(ranks):
            resumed = bound(4, backgrounds)
            resumed.load_state_dict(begun.state_dict())
            background_draws = visits_of(resumed, [2] * 30, rank=rank, ranks=ranks)
            assert all(0 <= visit.background < backgrounds and visit.cutouts for visit in background_draws)


def test_a_state_of_another_bank_or_pool_is_refused() -> None:
    small, large = bound(5, 4, background_degree=2), bound(9, 8, background_degree=2)
    for each in (small, large):
        each.draw(DrawRequest([5]), ANY)
        visits_of(each, [1])
    with pytest.raises(RuntimeError, match="the state is of another pool than one of 4 backgrounds"):
        bound(9, 4, background_degree=2).load_state_dict(large.state_dict())
    large.draw(DrawRequest([4]), ANY)
    for state in (large.state_dict(), {name: value for name, value in small.state_dict().items() if name != "stream"}):
        with pytest.raises(RuntimeError, match=r"the state is of a place|does not fit|Missing key"):
            bound(5, 8, background_degree=2).load_state_dict(state)


def test_of_some_classes_only_there_is_no_graph() -> None:
    sampler = bound(6, 4, labels=np.array([1, 2] * 3))
    sampler.restrict([1])
    with pytest.raises(ValueError, match=r"paste_only: only \[1\] may be pasted, but sampler='biregular' pairs all"):
        visits_of(sampler, [1])


# --- in Terse -------------------------------------------------------------------------------------------------------


def biregular(bank: ForegroundBank, policy: str = "random", seed: int = 3, **more: Any) -> Terse:
    pool = [torch.rand(3, 40, 40 + number, generator=generator_for(number)) for number in range(5)]
    own = {"objects": (1, 2), "background_probability": 0.5, **EVERY_IMAGE} | more
    return Terse(bank, policy, backgrounds=BackgroundPool(pool), **own, seed=seed, sampler="biregular")  # type: ignore[arg-type]  # settings of several types


@pytest.mark.parametrize("seed", [3, 4])
def test_a_run_resumed_in_the_middle_of_a_round_is_the_run_that_was_not_stopped(
    tiny_bank: ForegroundBank, seed: int
) -> None:
    whole, begun = biregular(tiny_bank), biregular(tiny_bank)
    expected = [whole(*make_batch(step)) for step in range(8)]
    for step in range(3):
        begun(*make_batch(step))
    resumed = biregular(tiny_bank, seed=seed)
    resumed.seed = begun.seed  # as the hosts' adapters do it
    resumed.load_state_dict(begun.state_dict())
    for step in range(3, 8):
        images, targets = resumed(*make_batch(step))
        assert all_equal(list(images), list(expected[step][0]))
        assert all(map(torch.equal, (t["boxes"] for t in targets), (t["boxes"] for t in expected[step][1])))
    state = resumed.state_dict()
    assert all(torch.equal(value.nan_to_num(), state[name].nan_to_num()) for name, value in whole.state_dict().items())


def test_every_cut_out_is_pasted_equally_often(tiny_bank: ForegroundBank) -> None:
    terse = biregular(tiny_bank, background_probability=0.3)
    pasted: Counter[int] = Counter()
    for step in range(30):
        terse(*make_batch(step, objects=0))
        pasted.update(paste.index for pastes in terse.pastes for paste in pastes)
    assert terse.metrics()["dropped/paste_too_small"] == 0
    assert terse.metrics()["backgrounds"] > 5
    # One from the passes, one from the round that is under way, and two rounds' shares.
    assert max(pasted.values()) - min(pasted.values()) <= 6
    assert sum(pasted.values()) > 60


def test_a_critic_that_chooses_among_cut_outs_would_break_the_balance(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(
        ValueError, match="BalancedSampler with critic_cutouts 3: the policy would choose among cut-outs"
    ):
        Terse(tiny_bank, Critic(foreground_candidates=3), sampler="biregular")


def test_a_preview_moves_no_balance(tiny_bank: ForegroundBank) -> None:
    terse, other = biregular(tiny_bank), biregular(tiny_bank)
    composites = terse.compose(*make_batch(0), seed=1)
    assert any(composites.pastes)
    assert all_equal(list(terse(*make_batch())[0]), list(other(*make_batch())[0]))
