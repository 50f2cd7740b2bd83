"""A bank of a million foregrounds: how long it takes to write and to open, what memory it needs, how fast it is read.

Reads at random by several processes at once, beside reads of the same records straight from LMDB, which is the
store's own limit::

    python -m benchmarks.bank_scale --json F [--foregrounds 1000000] [--readers 8] [--seconds 10]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from benchmarks._timing import own_megabytes, parser, write_json
from terse_aug import ForegroundBank
from terse_aug.bank import BankWriter, Foreground
from terse_aug.bank.storage.record import record_key

_CLASSES = 80
_DISTINCT = 64
"""Number of different images; each record holds a copy of one."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "large.bank"
        result: dict[str, Any] = {"foregrounds": args.foregrounds, "side": args.side, "readers": args.readers}
        started = time.perf_counter()
        write(path, args.foregrounds, args.side)
        result["write seconds"] = time.perf_counter() - started
        result["gigabytes"] = path.stat().st_size / 1e9
        result |= _in_processes(1, opening, path)[0]
        for name, read in (("bank", read_bank), ("lmdb", read_lmdb)):
            found = _in_processes(args.readers, read, path, args.seconds)
            result[f"{name}: reads per second"] = sum(own["reads"] for own in found) / args.seconds
            result[f"{name}: own memory of a reader, MB"] = max(own["megabytes"] for own in found)
    write_json(args.json, result)
    for name, value in result.items():
        print(f"{name:<40}{value:>14,.3f}" if isinstance(value, float) else f"{name:<40}{value:>14,}")


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__, json_required=True)
    made.add_argument("--foregrounds", type=int, default=1_000_000, help="in the bank")
    made.add_argument("--side", type=int, default=24, help="of a foreground, pixels")
    made.add_argument("--readers", type=int, default=8, help="processes")
    made.add_argument("--seconds", type=float, default=10, help="of reading")
    made.add_argument("--folder", type=Path, help="where the bank is made; none: the system's for such files")
    return made


def write(path: Path, count: int, side: int) -> None:
    """A bank of ``count`` opaque noisy foregrounds of ``side`` pixels."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (_DISTINCT, side, side, 4), dtype=np.uint8)
    images[..., 3] = 255
    with BankWriter(path, {label: f"class {label}" for label in range(_CLASSES)}) as writer:
        for number in range(count):
            image = images[number % _DISTINCT]
            writer.add(Foreground(image, number % _CLASSES, f"image {number // 10}/{number % 10}", 0.2))


def opening(path: Path) -> dict[str, Any]:
    """Seconds and memory of opening the bank and reading one foreground, in a fresh process."""
    before, started = own_megabytes(), time.perf_counter()
    with ForegroundBank.open(path) as bank:
        opened = time.perf_counter()
        bank[len(bank) // 2]
        read = time.perf_counter()
        return {
            "open seconds": opened - started,
            "first read seconds": read - opened,
            "memory of opening, MB": own_megabytes() - before,
        }


def read_bank(path: Path, seconds: float) -> dict[str, Any]:
    """Random reads through the bank."""
    with ForegroundBank.open(path) as bank:
        count, before = len(bank), own_megabytes()
        reads = _reads_within(seconds, lambda number: bank[number], count)
        return {"reads": reads, "megabytes": own_megabytes() - before}


def read_lmdb(path: Path, seconds: float) -> dict[str, Any]:
    """Random reads of the same records straight from LMDB."""
    with ForegroundBank.open(path) as bank:
        count = len(bank)
    del bank
    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    with environment.begin() as transaction:
        before = own_megabytes()
        reads = _reads_within(seconds, lambda number: transaction.get(record_key(number)), count)
        return {"reads": reads, "megabytes": own_megabytes() - before}


def _reads_within(seconds: float, read: Callable[[int], object], count: int) -> int:
    draw, reads, end = random.Random(os.getpid()), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(100):
            read(int(draw.random() * count))
        reads += 100
    return reads


def _in_processes(count: int, work: Callable[..., dict[str, Any]], *arguments: Any) -> list[dict[str, Any]]:
    """Results of ``count`` fresh processes that start the work at the same time."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _set_barrier, (context.Barrier(count),)) as pool:
        return [own.result() for own in [pool.submit(_when_all_are_ready, work, arguments) for _ in range(count)]]


_barrier: Barrier


def _set_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _when_all_are_ready(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    _barrier.wait()
    return work(*arguments)


if __name__ == "__main__":
    main()
