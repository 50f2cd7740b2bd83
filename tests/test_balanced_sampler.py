"""Balanced pairing: foregrounds in passes, and random biregular graphs of foregrounds and a pool of backgrounds."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from factories import all_equal, every_image, make_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from terse_aug import BackgroundPool, ForegroundBank, Terse
from terse_aug.policies import Critic
from terse_aug.samplers import BackgroundDraw, BalancedSampler, BalancedStream, DrawRequest, ForegroundIndex
from terse_aug.samplers.bipartite_graph import random_bipartite
from terse_aug.utils.random import generator_for

UNUSED = torch.Generator()
"""Balanced draws do not depend on the generator."""


def bound(foregrounds: int, backgrounds: int = 0, labels: Any = None, seed: int = 0, **degrees: Any) -> BalancedSampler:
    sampler = BalancedSampler(**degrees)
    sampler.bind(ForegroundIndex(np.zeros(foregrounds, np.int64) if labels is None else labels), seed, backgrounds)
    return sampler


def draw(sampler: BalancedSampler, *counts: int, **ranks: int) -> list[int]:
    return sampler.draw(DrawRequest(counts, **ranks), UNUSED)


def chain(lists: Any) -> list[Any]:
    return list(itertools.chain(*lists))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.lists(st.integers(1, 8), min_size=1, max_size=40), st.integers(0, 5))
def test_counts_differ_by_at_most_one_and_no_foreground_is_twice_on_an_image(
    foregrounds: int, counts: list[int], seed: int
) -> None:
    sampler = bound(foregrounds, seed=seed)
    pasted = np.zeros(foregrounds, int)
    for count in counts:
        drawn = draw(sampler, count)
        assert len(drawn) == count
        assert len(set(drawn)) == count or count > foregrounds
        for position in drawn:
            pasted[position] += 1
        assert pasted.max() - pasted.min() <= 1


def test_a_pass_is_in_random_order() -> None:
    orders = Counter(tuple(draw(bound(3, seed=seed), 3)) for seed in range(1200))
    assert set(orders) == set(itertools.permutations(range(3)))
    assert max(orders.values()) < 1.3 * min(orders.values())
    stream = BalancedStream(4, 0)
    assert len({tuple(stream.draw(4)) for _ in range(30)}) > 12


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_that_keep_step_share_each_pass_and_none_repeats_within_one(ranks: int) -> None:
    samplers = [bound(12) for _ in range(ranks)]
    each = [chain(draw(own, 4, 2, rank=rank, ranks=ranks) for _ in range(8)) for rank, own in enumerate(samplers)]
    for start in range(0, 48, 12 // ranks):
        assert sorted(chain(own[start : start + 12 // ranks] for own in each)) == list(range(12))
    for own, start in itertools.product(each, range(0, 48, 12)):
        assert sorted(own[start : start + 12]) == list(range(12))
    # Each rank has another order.
    pairs = [set(itertools.pairwise(own)) for own in each]
    assert len(pairs[0] & pairs[1]) < 0.5 * len(pairs[0])


def test_another_number_of_ranks_starts_a_new_pass() -> None:
    sampler = bound(6)
    draw(sampler, 4)
    assert sorted(draw(sampler, 3, rank=0, ranks=2) + draw(sampler, 3, rank=0, ranks=2)) == list(range(6))


def test_a_restricted_sampler_is_balanced_over_what_is_allowed() -> None:
    sampler = bound(9, labels=np.array([1, 2, 3] * 3))
    sampler.restrict([1, 3])
    assert Counter(chain(draw(sampler, 2) for _ in range(9))) == dict.fromkeys((0, 2, 3, 5, 6, 8), 3)


def biregular_graphs(side: int, degree: int) -> list[frozenset[tuple[int, int]]]:
    """All of them, by enumeration."""
    rows = list(itertools.combinations(range(side), degree))
    return [
        frozenset((row, column) for row, chosen in enumerate(choice) for column in chosen)
        for choice in itertools.product(rows, repeat=side)
        if all(count == degree for count in Counter(chain(choice)).values())
    ]


def chi_square_quantile(freedom: int, deviations: float) -> float:
    """So many standard deviations out (Wilson and Hilferty)."""
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


def check_graph(objects: int, backgrounds: int, edges: int, seed: int, switches: int) -> None:
    degrees = [[edges // n + (place < edges % n) for place in range(n)] for n in (objects, backgrounds)]
    rows = random_bipartite(degrees[0], degrees[1], generator_for(seed), switches=switches)
    assert [len(row) for row in rows] == [len(set(row)) for row in rows] == degrees[1]
    counts = Counter(chain(rows))
    assert [counts[number] for number in range(objects)] == degrees[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_graphs_have_their_degrees_and_no_double_edge(objects: int, backgrounds: int, data: st.DataObject) -> None:
    edges = data.draw(st.integers(1, objects * backgrounds))
    check_graph(objects, backgrounds, edges, edges, data.draw(st.integers(0, 3)))


@pytest.mark.parametrize(("objects", "backgrounds", "edges"), [(5, 5, 23), (4, 6, 23), (6, 4, 24), (3, 40, 119)])
def test_dense_graphs_which_switches_may_not_repair(objects: int, backgrounds: int, edges: int) -> None:
    for seed in range(40):
        check_graph(objects, backgrounds, edges, seed, 3)


def visits_of(sampler: BalancedSampler, counts: list[int], **ranks: int) -> list[BackgroundDraw]:
    return [sampler.draw_backgrounds(DrawRequest([count], **ranks), UNUSED)[0] for count in counts]


def edges_of_round(sampler: BalancedSampler, total: int, counts: list[int], **ranks: int) -> list[tuple[int, int]]:
    """Pairs (background, foreground) of the visits of a round, which ends after exactly ``total``."""
    edges: list[tuple[int, int]] = []
    wanted = itertools.cycle(counts)
    while len(edges) < total:
        (visit,) = visits_of(sampler, [next(wanted)], **ranks)
        assert visit.foregrounds
        edges += [(visit.background, position) for position in visit.foregrounds]
    assert len(edges) == total
    return edges


@pytest.mark.parametrize(
    ("foregrounds", "backgrounds", "degrees"),
    [
        (6, 4, {"background_degree": 3}),
        (6, 4, {"object_degree": 2}),
        (6, 4, {"background_degree": 3, "object_degree": 2}),
        (7, 5, {"background_degree": 3}),  # 15 edges on 7 foregrounds
        (7, 5, {"object_degree": 2}),  # 14 on 5 backgrounds
        (5, 40, {}),
        (40, 5, {"background_degree": 2}),  # fewer edges than foregrounds
        (3, 3, {"background_degree": 3}),
    ],
)
def test_each_round_is_a_biregular_graph(foregrounds: int, backgrounds: int, degrees: dict[str, int]) -> None:
    sampler = bound(foregrounds, backgrounds, **degrees)
    total = foregrounds * degrees["object_degree"] if "object_degree" in degrees else 0
    total = total or backgrounds * degrees.get("background_degree", min(6, foregrounds))
    totals: dict[str, np.ndarray] = {"background": np.zeros(backgrounds), "foreground": np.zeros(foregrounds)}
    graphs = set()
    for _ in range(6):
        edges = edges_of_round(sampler, total, [2, 1, 3])
        assert len(set(edges)) == total
        graphs.add(frozenset(edges))
        for side, whole in enumerate(totals.values()):
            counts = np.bincount([edge[side] for edge in edges], minlength=len(whole))
            whole += counts
            assert np.ptp(counts) <= 1
            assert np.ptp(whole) <= 1
    assert len(graphs) > 1 or total == foregrounds * backgrounds


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_graph_of_a_round_and_no_background(ranks: int) -> None:
    samplers = [bound(9, 6, background_degree=3) for _ in range(ranks)]
    for _ in range(3):
        each = [
            edges_of_round(sampler, 18 // ranks, [2, 2, 1], rank=own, ranks=ranks)
            for own, sampler in enumerate(samplers)
        ]
        for one, other in itertools.combinations(each, 2):
            assert not {edge[0] for edge in one} & {edge[0] for edge in other}
        assert len(set(chain(each))) == 18
        assert set(Counter(edge[1] for edge in chain(each)).values()) == {2}
    with pytest.raises(ValueError, match="expected at least 7 backgrounds, one for each process"):
        visits_of(bound(9, 6), [1], rank=0, ranks=7)


@pytest.mark.parametrize("at", [1, 3, 7, 11, 14, 26])
def test_draws_continue_from_a_saved_state_whatever_the_seed(at: int) -> None:
    counts = [1, 2, 3, 2, 5] * 8
    whole, begun, resumed = bound(7, 5), bound(7, 5), bound(7, 5, seed=99)
    expected = visits_of(whole, counts), [draw(whole, count) for count in counts]
    visits_of(begun, counts[:at])
    for count in counts[:at]:
        draw(begun, count)
    resumed.load_state_dict(begun.state_dict())
    assert visits_of(resumed, counts[at:]) == expected[0][at:]
    assert [draw(resumed, count) for count in counts[at:]] == expected[1][at:]


@pytest.mark.parametrize(("backgrounds", "ranks"), [(3, 2), (5, 2), (7, 3)])
def test_all_ranks_continue_from_the_state_of_any(backgrounds: int, ranks: int) -> None:
    for saver, at in itertools.product(range(ranks), range(1, 9)):
        begun = bound(4, backgrounds)
        visits_of(begun, [2] * at, rank=saver, ranks=ranks)
        for rank in range(ranks):
            resumed = bound(4, backgrounds)
            resumed.load_state_dict(begun.state_dict())
            visits = visits_of(resumed, [2] * 15, rank=rank, ranks=ranks)
            assert all(0 <= visit.background < backgrounds and visit.foregrounds for visit in visits)


def test_a_state_of_another_bank_or_pool_is_refused() -> None:
    small, large = bound(5, 4, background_degree=2), bound(9, 8, background_degree=2)
    for each in (small, large):
        draw(each, 5)
        visits_of(each, [1])
    with pytest.raises(RuntimeError, match="the state is of another pool than one of 4 backgrounds"):
        bound(9, 4, background_degree=2).load_state_dict(large.state_dict())
    draw(large, 4)
    for state in (large.state_dict(), {name: value for name, value in small.state_dict().items() if name != "stream"}):
        with pytest.raises(RuntimeError, match=r"the state is of position|does not fit|Missing key"):
            bound(5, 8, background_degree=2).load_state_dict(state)


def test_a_restricted_sampler_has_no_graph() -> None:
    sampler = bound(6, 4, labels=np.array([1, 2] * 3))
    sampler.restrict([1])
    with pytest.raises(ValueError, match=r"only \[1\] may be pasted, but sampler='balanced' pairs all"):
        visits_of(sampler, [1])


def balanced(bank: ForegroundBank, seed: int = 3, probability: float = 0.5) -> Terse:
    pool = [torch.rand(3, 40, 40 + number, generator=generator_for(number)) for number in range(5)]
    backgrounds, paste = BackgroundPool(pool, probability), every_image(objects=(1, 2))
    return Terse(bank, "random", seed=seed, paste=paste, sampler="balanced", backgrounds=backgrounds)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_run_resumed_within_a_round_equals_the_uninterrupted_one(tiny_bank: ForegroundBank, seed: int) -> None:
    whole, begun = balanced(tiny_bank), balanced(tiny_bank)
    expected = [whole(*make_batch(step)) for step in range(8)]
    for step in range(3):
        begun(*make_batch(step))
    resumed = balanced(tiny_bank, seed=seed)
    resumed.seed = begun.seed  # as the integrations do
    resumed.load_state_dict(begun.state_dict())
    for step in range(3, 8):
        images, targets = resumed(*make_batch(step))
        assert all_equal(list(images), list(expected[step][0]))
        assert all_equal([target["boxes"] for target in targets], [target["boxes"] for target in expected[step][1]])
    state = resumed.state_dict()
    assert all(torch.equal(value.nan_to_num(), state[name].nan_to_num()) for name, value in whole.state_dict().items())


def test_every_foreground_is_pasted_equally_often(tiny_bank: ForegroundBank) -> None:
    terse = balanced(tiny_bank, probability=0.3)
    pasted: Counter[int] = Counter()
    for step in range(30):
        terse(*make_batch(step, objects=0))
        pasted.update(paste.index for pastes in terse.pastes for paste in pastes)
    assert terse.metrics()["dropped/paste_too_small"] == 0
    assert terse.metrics()["backgrounds"] > 5
    # One from the passes, and at most what a round has on two images.
    assert max(pasted.values()) - min(pasted.values()) <= 6
    assert sum(pasted.values()) > 60


def test_a_policy_that_chooses_among_foregrounds_is_refused(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match="BalancedSampler with foreground_candidates 3: the policy would choose"):
        Terse(tiny_bank, Critic(foreground_candidates=3), sampler="balanced")


def test_a_preview_does_not_change_the_balance(tiny_bank: ForegroundBank) -> None:
    terse, other = balanced(tiny_bank), balanced(tiny_bank)
    assert any(terse.compose(*make_batch(0), seed=1).pastes)
    assert all_equal(list(terse(*make_batch())[0]), list(other(*make_batch())[0]))
