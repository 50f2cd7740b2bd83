"""How long the report of a large bank takes, how large it is, and how much memory is needed.

``python -m benchmarks.bank_report --json F [--foregrounds 100000] [--classes 80]``

The bank is made in a temporary folder: irregular ellipses with a texture, their larger side spread like COCO's
(median some 80 pixels, one third from 35 to 180), classes of very different frequency. One in a hundred is a copy of
another, to the pixel, and one in a hundred a copy at 0.7 times its size; how many of both are found is reported, too.
One thread. Memory is that of the process without the mapped pages of the bank.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks._drawn_images import make_foreground
from benchmarks._timing import own_megabytes, parser, run_in_one_thread, show, surroundings, write_json
from terse_aug.bank import BankWriter, Foreground, ForegroundBank
from terse_aug.bank.analysis import BankStatistics, bank_statistics, render_report

_SIDES = (8.0, 500.0)
_MEDIAN_SIDE, _SPREAD = 80.0, 0.8
_IMAGE_SIDE = 550.0
_RECENT = 500  # among which the originals of copies are drawn
_COPY, _SMALLER = 0.01, 0.7
_PRINT_EVERY = 10_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the arguments of the command line."""
    options = _options(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.bank"
        copies = _make_bank(path, options.foregrounds, options.classes)
        meter = _Meter()
        with ForegroundBank.open(path) as bank:
            statistics = bank_statistics(bank, progress=meter.update)
        meter.update("page", 0, 1)
        page = render_report(statistics).encode()
        meter.update("end", 0, 1)
        bank_bytes = path.stat().st_size
    content = {
        "foregrounds": options.foregrounds,
        "classes": len(statistics.classes),
        "bank_mb": round(bank_bytes / 1e6, 1),
        "seconds": round(sum(meter.seconds.values()), 2),
        "cpu_seconds": round(sum(meter.cpu.values()), 2),
        "seconds_of": {what: round(spent, 2) for what, spent in meter.seconds.items()},
        "cpu_seconds_of": {what: round(spent, 2) for what, spent in meter.cpu.items()},
        "report_mb": round(len(page) / 1e6, 2),
        "memory_mb": {"before": round(meter.before, 1), "peak": round(meter.peak, 1)},
        "comparisons": statistics.near_duplicates.comparisons,
        "certain_distance": statistics.near_duplicates.complete_distance,
        "copies": {name: _found(statistics, pairs) for name, pairs in copies.items()},
        "in_groups": sum(len(group) for group in statistics.near_duplicates.groups),
        "others_in_groups": _others(statistics, [pair for pairs in copies.values() for pair in pairs]),
    }
    rows = [(name, str(value)) for name, value in content.items()]
    show(f"report of {options.foregrounds} foregrounds", ("", "measured"), rows)
    write_json(options.json, content | surroundings())


class _Meter:
    """Wall and CPU seconds of each stage, and peak memory."""

    def __init__(self) -> None:
        self.before = self.peak = own_megabytes()
        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._stage, self._since, self._cpu_since = "", time.perf_counter(), time.process_time()

    def update(self, what: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.peak = max(self.peak, own_megabytes())
        if not self._stage:
            self._stage = what
        if what != self._stage:
            print(f"{self._stage}: {now - self._since:.1f} s", flush=True)
            self.seconds[self._stage] = now - self._since
            self.cpu[self._stage] = time.process_time() - self._cpu_since
            self._stage, self._since, self._cpu_since = what, now, time.process_time()
        elif done and done % _PRINT_EVERY == 0:
            print(f"{what}: {done} of {total}, {now - self._since:.1f} s", flush=True)


def _make_bank(path: Path, count: int, classes: int) -> dict[str, list[tuple[int, int]]]:
    """Write the bank; pairs of originals and copies, by kind."""
    generator = np.random.default_rng(0)
    weights = 1 / np.arange(1, classes + 1)
    recent: list[tuple[int, NDArray[np.uint8], int]] = []
    copies: dict[str, list[tuple[int, int]]] = {"same": [], "smaller": []}
    with BankWriter(path, {label: f"class {label}" for label in range(1, classes + 1)}) as writer:
        for position in range(count):
            label = 1 + int(generator.choice(classes, p=weights / weights.sum()))
            number = generator.random()
            if recent and number < 2 * _COPY:
                kind = "same" if number < _COPY else "smaller"
                original, rgba, label = recent[int(generator.integers(len(recent)))]
                copies[kind].append((original, position))
                rgba = rgba if kind == "same" else _smaller(rgba)
            else:
                side = np.clip(_MEDIAN_SIDE * np.exp(generator.normal(0, _SPREAD)), *_SIDES)
                rgba = make_foreground(side / 2, generator)
                recent = [*recent[-_RECENT:], (position, rgba, label)]
            relative_size = max(rgba.shape[:2]) / _IMAGE_SIDE
            center = (
                tuple(generator.uniform(relative_size / 2, 1 - relative_size / 2, 2).clip(0, 1).tolist())
                if relative_size < 1
                else None
            )
            writer.add(Foreground(rgba, label, f"drawn#{position}", relative_size, None, center))
            if position and position % _PRINT_EVERY == 0:
                print(f"made {position} of {count}", flush=True)
    return copies


def _smaller(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = (max(round(side * _SMALLER), 1) for side in rgba.shape[:2])
    small = cv2.resize(rgba, (width, height), interpolation=cv2.INTER_AREA)
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(small[:, :, 3]))
    return np.ascontiguousarray(small[top : top + height, left : left + width])


def _found(statistics: BankStatistics, pairs: Sequence[tuple[int, int]]) -> dict[str, int]:
    group_of = {
        position: number
        for number, group in enumerate(statistics.near_duplicates.groups)
        for position in group.tolist()
    }
    found = sum(group_of.get(one, -1) == group_of.get(other, -2) for one, other in pairs)
    return {"made": len(pairs), "found": found}


def _others(statistics: BankStatistics, pairs: Sequence[tuple[int, int]]) -> int:
    """Members of groups that are neither copies nor have one."""
    known = {position for pair in pairs for position in pair}
    return sum(position not in known for group in statistics.near_duplicates.groups for position in group.tolist())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--foregrounds", type=int, default=100_000, help="in the bank")
    made.add_argument("--classes", type=int, default=80, help="of them")
    return made.parse_args(arguments)


if __name__ == "__main__":
    run_in_one_thread()
    main()
