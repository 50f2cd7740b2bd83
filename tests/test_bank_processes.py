"""Many processes and threads read a bank at once, and read the same."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from bank_samples import assert_equal, make_foreground, write_bank

from terse_aug.bank import Foreground, ForegroundBank

# Python 3.12 and later warn of every fork beside threads; these tests check that it works.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

COUNT = 60


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[ForegroundBank]:
    write_bank(tmp_path / "shared.bank", COUNT)
    with ForegroundBank.open(tmp_path / "shared.bank") as opened:
        yield opened


def digest(bank: ForegroundBank, order: list[int] | range = range(COUNT)) -> str:
    """Hash of foregrounds and index arrays, read in ``order``."""
    parts = {index: bank[index].rgba.tobytes() + bank[index].source.encode() for index in order}
    joined = b"".join(parts[index] for index in sorted(parts))
    return hashlib.sha256(joined + bank.labels.tobytes() + bank.sizes.tobytes()).hexdigest()


def read_in_child(bank: ForegroundBank, seed: int, answers: multiprocessing.Queue) -> None:
    order = np.random.default_rng(seed).permutation(COUNT).tolist()
    for _ in range(3):
        answers.put(digest(bank, order))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_read_what_one_reads(bank: ForegroundBank, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    expected = digest(bank)
    children = [
        context.Process(target=read_in_child, args=(bank, seed, answers))
        for seed in range(4 if method == "fork" else 2)
    ]
    for child in children:
        child.start()
    received = [answers.get(timeout=120) for _ in range(3 * len(children))]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert set(received) == {expected}
    assert digest(bank) == expected  # the children's ends leave the parent's mapping alone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_drops_and_opens_again(bank: ForegroundBank) -> None:
    path, expected = bank.path, digest(bank)
    holder = [ForegroundBank.open(path)]
    bank.close()
    child = os.fork()
    if child == 0:
        holder.clear()  # the last user of the mapping that this child inherited
        os._exit(0 if digest(ForegroundBank.open(path)) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert digest(holder[0]) == expected


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forks_while_threads_read(bank: ForegroundBank) -> None:
    expected = digest(bank)
    with ThreadPoolExecutor(3) as threads:
        reading = [threads.submit(digest, bank) for _ in range(60)]
        for _ in range(10):
            child = os.fork()
            if child == 0:
                signal.alarm(60)  # a lock that the child inherits would hold it for ever
                os._exit(0 if digest(bank) == expected else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert {future.result() for future in reading} == {expected}


def first(batch: list[Foreground]) -> Foreground:
    return batch[0]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(bank: ForegroundBank, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {method}")
    from torch.utils.data import DataLoader  # not at the top: spawned readers would import it for nothing

    workers = 2 if method == "fork" else 1  # a spawned one imports torch
    loader = DataLoader(
        bank,  # type: ignore[arg-type]  # has a length and items, and is no Dataset
        num_workers=workers,
        collate_fn=first,
        multiprocessing_context=method,
    )
    for index, foreground in enumerate(loader):
        assert_equal(foreground, make_foreground(index))
