"""Milliseconds per image of copy-paste with corrected labels, one CPU thread: terse-aug beside other libraries.

``python -m benchmarks.composite --json F [--rounds 60] [--memory 10000]``

``ms_per_image`` is the median CPU time of a call; ``wall_ms_per_image`` is the median by the clock.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._appearances import APPEARANCES
from benchmarks._copy_paste_peers import Arm, mmdet_arm, numpy_arm, segpaste_arm, terse_arm
from benchmarks._drawn_images import DrawnImage, draw_image
from benchmarks._timing import (
    Summary,
    interleaved,
    own_megabytes,
    parser,
    run_in_one_thread,
    show,
    surroundings,
    write_json,
)
from terse_aug.transforms import BLENDS

CASES = ((512, 3), (1024, 5))
"""(side of the image in pixels, objects pasted; as many objects are in the image before)."""

_LOOKS: dict[str, dict[str, Any]] = {name: own for name, own in APPEARANCES.items() if name != "blends"}
_LOOKS |= {name: {"blends": (name,)} for name in BLENDS if name != "gaussian"}
ARMS = ("terse", "terse_boxes", "numpy", "mmdet", "segpaste", *(f"terse_{name}" for name in _LOOKS))
"""``terse_boxes`` corrects boxes only, all others masks, too; the last ones change what pastes look like."""
_IMAGES = 6  # of each kind, in turn, so that not everything stays in the CPU cache
_SETTLED_FRACTION = 0.2  # of the images of a memory run, after which memory should no longer grow


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the arguments of the command line."""
    options = _options(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        # First, because memory that the arms have given back to the allocator would hide a leak.
        memory = _memory(*CASES[0], options.memory, Path(folder)) if options.memory else None
        for side, count in options.cases:
            rows.append(_row(side, count, options, Path(folder)))
    content = {"rows": rows} | ({"memory": memory} if memory else {}) | surroundings()
    write_json(options.json, content)


def _row(side: int, count: int, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time all arms at one size; print the table."""
    arms = _arms(*_images(side, count), folder)
    for name, arm in arms.items():
        _check(name, arm, count)
    timed = {name: (arm.prepare, arm.paste) for name, arm in arms.items()}
    times = interleaved(timed, options.rounds, options.warmup)
    summaries = {name: Summary.of(arm.cpu) for name, arm in times.items()}
    walls = {name: Summary.of(arm.wall) for name, arm in times.items()}
    ratios = {name: round(summary.median / summaries["terse"].median, 3) for name, summary in summaries.items()}
    show(
        f"{side}x{side}, {count} objects pasted on {count}, {options.rounds} rounds",
        ("", "ms per image", "quartiles", "fastest", "by the clock", "times terse"),
        [
            (
                name,
                f"{s.median:.2f}",
                f"{s.low:.2f} to {s.high:.2f}",
                f"{s.fastest:.2f}",
                f"{walls[name].median:.2f}",
                f"{ratios[name]:.2f}",
            )
            for name, s in summaries.items()
        ],
    )
    return {
        "size": side,
        "objects": count,
        "own_objects": count,
        "ms_per_image": {name: round(summaries[name].median, 4) if name in summaries else None for name in ARMS},
        "spread": {name: summary.spread() for name, summary in summaries.items()},
        "wall_ms_per_image": {name: round(summary.median, 4) for name, summary in walls.items()},
        "times_terse": ratios,
    }


def _images(side: int, count: int) -> tuple[list[DrawnImage], list[DrawnImage]]:
    generator = np.random.default_rng(side)
    backgrounds = [draw_image(side, count, generator) for _ in range(_IMAGES)]
    return backgrounds, [draw_image(side, count, generator) for _ in range(_IMAGES)]


def _arms(backgrounds: list[DrawnImage], sources: list[DrawnImage], folder: Path) -> dict[str, Arm]:
    """The arms whose library is installed; the others are printed, and null in the JSON."""
    makers: dict[str, Callable[[], Arm]] = {
        "terse": lambda: terse_arm(backgrounds, sources, folder),
        "terse_boxes": lambda: terse_arm(backgrounds, sources, folder, masks=False),
        "numpy": lambda: numpy_arm(backgrounds, sources),
        "mmdet": lambda: mmdet_arm(backgrounds, sources),
        "segpaste": lambda: segpaste_arm(backgrounds, sources),
    }
    makers |= {
        f"terse_{name}": lambda own=own: terse_arm(backgrounds, sources, folder, **own)  # type: ignore[misc]  # its default
        for name, own in _LOOKS.items()
    }
    arms = {}
    for name, make in makers.items():
        try:
            arms[name] = make()
        except ImportError as error:
            print(f"{name}: not measured, it cannot be imported ({error})")
    return arms


def _check(name: str, arm: Arm, count: int) -> None:
    """Check that an arm does the whole job."""
    for number in range(_IMAGES):
        image, boxes, masks = arm.result(arm.paste(arm.prepare(number)))
        if not (boxes == masks and count <= boxes <= 2 * count and np.isfinite(image).all()):
            raise RuntimeError(
                f"{name}: expected {count} to {2 * count} labelled objects, got {boxes} and {masks} masks"
            )


def _memory(side: int, count: int, images: int, folder: Path) -> dict[str, Any]:
    """Memory of this process while ``Terse`` makes ``images`` composites."""
    backgrounds, sources = _images(side, count)
    arm = terse_arm(backgrounds, sources, _fresh(folder))
    settled = max(int(images * _SETTLED_FRACTION), 1)
    megabytes: dict[str, float] = {}
    for number in range(1, images + 1):
        arm.paste(arm.prepare(number))
        if number in (settled, images):
            megabytes[str(number)] = round(own_megabytes(), 2)
    growth = round(megabytes[str(images)] - megabytes[str(settled)], 2)
    show(
        f"memory, terse, {side}x{side}, {count} objects",
        ("images", "MB"),
        [(after, f"{value:.1f}") for after, value in megabytes.items()] + [("growth", f"{growth:+.1f}")],
    )
    return {"size": side, "objects": count, "mb_after_images": megabytes, "growth_mb": growth}


def _fresh(folder: Path) -> Path:
    fresh = folder / "memory"
    fresh.mkdir()
    return fresh


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--rounds", type=int, default=60, help="timed calls of each arm")
    made.add_argument("--warmup", type=int, default=5, help="calls of each arm before that")
    made.add_argument("--memory", type=int, default=0, metavar="N", help="also measure memory over N images")
    made.add_argument("--cases", type=_case, nargs="+", default=CASES, metavar="SIDE:OBJECTS", help="sizes")
    return made.parse_args(arguments)


def _case(text: str) -> tuple[int, int]:
    side, count = text.split(":")
    return int(side), int(count)


if __name__ == "__main__":
    run_in_one_thread()
    assert torch.get_num_threads() == 1
    main()
