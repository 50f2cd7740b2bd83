"""A bank of very many cut-outs: how long it takes to write and to open, what memory it needs, how fast it is read.

Reads at random by several processes at once, beside reads of the same records straight from LMDB, which is the
store's own limit::

    python -m benchmarks.bank_scale --json F [--cutouts 1000000] [--readers 8] [--seconds 10]
"""

from __future__ import annotations

import argparse
import json
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

from terse_aug import ForegroundBank
from terse_aug.bank import BankWriter, Foreground
from terse_aug.bank.storage.record import record_key

_CLASSES = 80
_DISTINCT = 64
"""Different pictures that the cut-outs are made of; each record is a copy of its own."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    args = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "large.bank"
        result: dict[str, Any] = {"cut-outs": args.cutouts, "side": args.side, "readers": args.readers}
        started = time.perf_counter()
        write(path, args.cutouts, args.side)
        result["write seconds"] = time.perf_counter() - started
        result["gigabytes"] = path.stat().st_size / 1e9
        result |= _in_processes(1, opening, path)[0]
        for name, read in (("bank", read_bank), ("lmdb", read_lmdb)):
            found = _in_processes(args.readers, read, path, args.seconds)
            result[f"{name}: reads per second"] = sum(own["reads"] for own in found) / args.seconds
            result[f"{name}: own memory of a reader, MB"] = max(own["megabytes"] for own in found)
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    for name, value in result.items():
        print(f"{name:<40}{value:>14,.3f}" if isinstance(value, float) else f"{name:<40}{value:>14,}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--cutouts", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=24, help="of a cut-out, pixels (default: %(default)s)")
    parser.add_argument("--readers", type=int, default=8, help="processes (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="of reading (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the bank is made (default: the system's for such files)")
    return parser


def write(path: Path, count: int, side: int) -> None:
    """A bank of ``count`` opaque noisy cut-outs of ``side`` pixels."""
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (_DISTINCT, side, side, 4), dtype=np.uint8)
    pictures[..., 3] = 255
    with BankWriter(path, {label: f"class {label}" for label in range(_CLASSES)}) as writer:
        for number in range(count):
            picture = pictures[number % _DISTINCT]
            writer.add(Foreground(picture, number % _CLASSES, f"image {number // 10}/{number % 10}", 0.2))


def opening(path: Path) -> dict[str, Any]:
    """Seconds and memory of opening the bank and reading one cut-out, in a process that has done neither."""
    before, started = _own_megabytes(), time.perf_counter()
    with ForegroundBank.open(path) as bank:
        opened = time.perf_counter()
        bank[len(bank) // 2]
        read = time.perf_counter()
        return {
            "open seconds": opened - started,
            "first read seconds": read - opened,
            "memory of opening, MB": _own_megabytes() - before,
        }


def read_bank(path: Path, seconds: float) -> dict[str, Any]:
    """Cut-outs at random through the bank, for some time."""
    with ForegroundBank.open(path) as bank:
        count, before = len(bank), _own_megabytes()
        reads = _for_some_time(seconds, lambda number: bank[number], count)
        return {"reads": reads, "megabytes": _own_megabytes() - before}


def read_lmdb(path: Path, seconds: float) -> dict[str, Any]:
    """The same records, copied, without a bank."""
    with ForegroundBank.open(path) as bank:
        count = len(bank)
    del bank
    environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)
    with environment.begin() as transaction:
        before = _own_megabytes()
        reads = _for_some_time(seconds, lambda number: transaction.get(record_key(number)), count)
        return {"reads": reads, "megabytes": _own_megabytes() - before}


def _for_some_time(seconds: float, read: Callable[[int], object], count: int) -> int:
    draw, reads, end = random.Random(os.getpid()), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(100):
            read(int(draw.random() * count))
        reads += 100
    return reads


def _own_megabytes() -> float:
    """Memory of this process alone: pages of the file that it has mapped are the system's, and shared."""
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _in_processes(count: int, work: Callable[..., dict[str, Any]], *arguments: Any) -> list[dict[str, Any]]:
    """What each of ``count`` fresh processes found, all beginning together."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, _meet_at, (context.Barrier(count),)) as pool:
        return [own.result() for own in [pool.submit(_together, work, arguments) for _ in range(count)]]


_barrier: Barrier


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _together(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    _barrier.wait()
    return work(*arguments)


if __name__ == "__main__":
    main()
