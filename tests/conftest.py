"""Fixtures that several test modules share."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from coloured_samples import coloured
from factories import make_bank

from terse_aug import ForegroundBank
from terse_aug.bank import BankWriter
from terse_aug.batch_composer import BatchComposer


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real data sets, which are not part of the project."""
    folder = os.environ.get("TERSE_AUG_DATA")
    if not folder:
        pytest.skip("set TERSE_AUG_DATA to the folder of the real data sets (coco_mini, penn_fudan)")
    return Path(folder)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts this process, even if the shell that runs the tests in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_bank(tmp_path_factory: pytest.TempPathFactory) -> ForegroundBank:
    """Six small foregrounds of the classes ``cat`` (1) and ``dog`` (2)."""
    return make_bank(tmp_path_factory.mktemp("bank"))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors here are too small for several threads to pay."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def _collect_what_frameworks_leave(request: pytest.FixtureRequest) -> Iterator[None]:
    """A framework's trainer that never trained leaves its log open, which warns whenever it is collected."""
    yield
    if any(framework in request.module.__name__ for framework in ("detectron2", "mmdet")):
        gc.collect()


def pytest_collection_finish() -> None:
    """Imported modules stay to the end, so the garbage collector need not search them again and again."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--write-table FILE``: where the test of MMDetection's models writes its results."""
    parser.addoption("--write-table", metavar="FILE", help="write the table of MMDetection's models there")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How often each foreground of any bank was read in this process."""
    counts: Counter[int] = Counter()
    read = ForegroundBank.__getitem__

    def counted(bank: ForegroundBank, index: Any) -> Any:
        counts[int(index)] += 1
        return read(bank, index)

    monkeypatch.setattr(ForegroundBank, "__getitem__", counted)
    return counts


@pytest.fixture
def coloured_bank(tmp_path: Path) -> ForegroundBank:
    """Six foregrounds of three classes, each in a color of its own."""
    return make_bank(tmp_path, [coloured(number, label=(1, 2, 7)[number % 3]) for number in range(6)])


@pytest.fixture
def distractors(tmp_path: Path) -> ForegroundBank:
    """Two foregrounds in two more colors."""
    with BankWriter(tmp_path / "distractors.bank", {1: "teapot", 2: "chair"}) as out:
        out.add(coloured(6, 1))
        out.add(coloured(7, 2, relative_size=0.5))
    return ForegroundBank.open(tmp_path / "distractors.bank")


@pytest.fixture
def composing_threads(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the threads of the training process that compose."""
    names: set[str] = set()
    prepare = BatchComposer.prepare

    def recorded(self: BatchComposer, *arguments: Any) -> Any:
        names.add(threading.current_thread().name)
        return prepare(self, *arguments)

    monkeypatch.setattr(BatchComposer, "prepare", recorded)
    return names
