"""Counters of what a device does, and where in terse_aug it comes from."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import terse_aug

ELSEWHERE = "elsewhere"
PACKAGE = str(Path(terse_aug.__file__).parent / "_")[:-1]


@dataclass
class Counts:
    """What happened inside :func:`counted`."""

    launches: int = 0
    synchronisations: int = 0
    copies: int = 0
    blocking_copies: int = 0
    reads: int = 0
    by_op: Counter[str] = field(default_factory=Counter)
    """Launches by name of the operator."""
    origins: dict[str, Counter[str]] = field(default_factory=dict)
    """By kind (``"synchronisations"``), how many came from which line of terse_aug and operator."""

    def __str__(self) -> str:
        lines = [f"{self.launches} launches, {self.synchronisations} synchronisations, {self.copies} copies"]
        for kind, origins in self.origins.items():
            lines.extend(f"  {kind} {number} {origin}" for origin, number in origins.most_common(8))
        return "\n".join(lines)

    def of_package(self, kind: str) -> int:
        """How many of a kind were called for by terse_aug: not by a model or autograd, but by hooks in them, too."""
        origins = self.origins.get(kind, Counter())
        return sum(number for origin, number in origins.items() if not origin.startswith(ELSEWHERE))


_active: list[Counts] = []


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count all that simulated tensors do inside the block; blocks may be nested."""
    counts = Counts()
    _active.append(counts)
    try:
        yield counts
    finally:
        _active[:] = [own for own in _active if own is not counts]


def count(kind: str, name: str, number: int = 1) -> None:
    """Add to all counters in use."""
    if not number or not _active:
        return
    origin = f"{_origin()} {name}"
    for counts in _active:
        setattr(counts, kind, getattr(counts, kind) + number)
        counts.origins.setdefault(kind, Counter())[origin] += number
        if kind == "launches":
            counts.by_op[name] += number


def _origin() -> str:
    """The innermost line of terse_aug; there is none in autograd's thread."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            return f"{frame.f_code.co_filename[len(PACKAGE) :]}:{frame.f_lineno}"
        frame = frame.f_back
    return ELSEWHERE
