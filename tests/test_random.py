"""Randomness is a function of the keys, and the global state is left alone."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terse_aug.utils.random import derived_seed, generator_for, isolated_global_rng

keys = st.lists(st.integers() | st.text("aä12 \0", max_size=5), min_size=1, max_size=4).map(tuple)


def test_a_derived_seed_is_the_same_on_every_machine_and_in_every_process() -> None:
    assert derived_seed(0, 1, 2, 3) == 5735612403627336365
    assert derived_seed(7, 0, "paste", 12) == 8434150003671558578
    assert derived_seed(np.int64(3), np.uint8(1), "a") == derived_seed(3, 1, "a")


@settings(deadline=None, max_examples=40)
@given(first=keys, second=keys)
def test_other_keys_give_another_seed_in_range(first: tuple[int | str, ...], second: tuple[int | str, ...]) -> None:
    assert 0 <= derived_seed(*first) < 2**63
    assert (derived_seed(*first) == derived_seed(*second)) == (first == second)
    for one, other in combinations([(1, 2), (2, 1), ("1", 2), (12,), (1,)], 2):
        assert derived_seed(*one) != derived_seed(*other)


def test_a_generator_draws_the_same_from_the_same_keys_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    first, second, other = (torch.rand(5, generator=generator_for(key, "a")) for key in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fails", [False, True])
def test_isolated_code_draws_from_its_seed_and_the_global_state_is_restored(fails: bool) -> None:
    before = torch.get_rng_state()
    drawn = []
    for seed in (5, 5, 6):
        try:
            with isolated_global_rng(seed):
                drawn.append(torch.rand(4))
                if fails:
                    raise RuntimeError
        except RuntimeError:
            assert fails
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("devices", [None, [torch.device("cuda", 0)]])
def test_isolated_code_restores_the_state_of_cuda(devices: list[torch.device] | None) -> None:
    torch.rand(3, device="cuda")
    before = torch.cuda.get_rng_state()
    with isolated_global_rng(5, devices):
        pass
    assert torch.equal(torch.cuda.get_rng_state(), before)
