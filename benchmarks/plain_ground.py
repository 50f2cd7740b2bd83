"""How well objects are found on plain grounds: product-like photographs made of cut-outs with true masks.

::

    python -m benchmarks.plain_ground --banks objects.bank people.bank --json F

Each cut-out stands in the middle of a picture of 480 px, at 300 px, before white, grey, green and black grounds: plain,
with a gradient of 40 levels across, and that with noise of 4 levels, all saved as JPEG of quality 80. A picture that is
left out counts as IoU 0 in the mean of all; the share that was found is told beside.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from terse_aug import ForegroundBank
from terse_aug.bank import PlainBackground
from terse_aug.bank.extract import RejectedObject

SIDE, OBJECT = 480, 300
GROUNDS = {"white": (248, 248, 248), "grey": (128, 128, 128), "green": (0, 177, 64), "black": (8, 8, 8)}
KINDS = ("plain", "gradient", "noise")
LEAST_SIDE = 120
"""Of a cut-out, px: smaller ones are too blurred when enlarged."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = _parser().parse_args(argv)
    ways = {"flood": PlainBackground(), "and GrabCut": PlainBackground(refine=True)}
    results: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    objects = 0
    for path in args.banks:
        with ForegroundBank.open(path) as bank:
            large = np.flatnonzero(bank.sizes.min(1) >= LEAST_SIDE)
            for index in large[:: max(1, len(large) // args.objects)][: args.objects].tolist():
                objects += 1
                for ground in GROUNDS:
                    for kind in KINDS:
                        picture, mask = photograph(bank[index].rgba, GROUNDS[ground], kind, index)
                        for way, how in ways.items():
                            started = time.perf_counter()
                            results[ground, kind, way].append(_iou(how, picture, mask))
                            seconds[way].append(time.perf_counter() - started)
    rows = [_row(ground, kind, way, values) for (ground, kind, way), values in results.items()]
    rows += [_row("all", "", way, [v for key, own in results.items() if key[2] == way for v in own]) for way in ways]
    milliseconds = {way: 1000 * float(np.median(own)) for way, own in seconds.items()}
    content = {"objects": objects, "rows": rows, "milliseconds": milliseconds}
    args.json.write_text(json.dumps(content, indent=1) + "\n")
    table = Table("ground", "kind", "way", "found", "IoU of those found", "10th percentile", "IoU of all")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:.2f}" for value in row.values()))
    Console(width=140).print(table)
    print(f"{objects} objects; milliseconds a picture: {milliseconds}")


def photograph(
    rgba: NDArray[np.uint8], color: tuple[int, int, int], kind: str, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture of a cut-out before a ground, and its mask."""
    generator = np.random.default_rng(seed)
    scale = OBJECT / max(rgba.shape[:2])
    size = (max(1, round(rgba.shape[1] * scale)), max(1, round(rgba.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    pixels = np.asarray(cv2.resize(rgba, size, interpolation=method)).astype(np.float64)
    left, top = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    picture = np.broadcast_to(np.array(color, np.float64), (SIDE, SIDE, 3)).copy()
    if kind != "plain":
        angle = generator.uniform(0, 2 * np.pi)
        rows, columns = np.mgrid[-0.5 : 0.5 : SIDE * 1j, -0.5 : 0.5 : SIDE * 1j]
        course = 40 * (np.cos(angle) * columns + np.sin(angle) * rows)
        picture += (course - (course.max() if np.mean(color) > 200 else course.min() if np.mean(color) < 50 else 0))[
            ..., None
        ]
    window = np.s_[top : top + size[1], left : left + size[0]]
    alpha = pixels[..., 3:] / 255
    picture[window] = alpha * pixels[..., :3] + (1 - alpha) * picture[window]
    if kind == "noise":
        picture += generator.normal(0, 4, picture.shape)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[window] = alpha[..., 0] > 0.5
    _, encoded = cv2.imencode(".jpg", picture.clip(0, 255).astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1]), mask


def _iou(how: PlainBackground, picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    """-1 where the picture is left out."""
    try:
        (alpha,) = how.alphas(picture)
    except RejectedObject:
        return -1.0
    found = alpha > 127
    return float((found & mask).sum() / (found | mask).sum())


def _row(ground: str, kind: str, way: str, values: Sequence[float]) -> dict[str, Any]:
    found = [value for value in values if value >= 0]
    return {
        "ground": ground,
        "kind": kind,
        "way": way,
        "found": len(found) / len(values),
        "IoU of those found": float(np.mean(found)) if found else 0.0,
        "10th percentile": float(np.percentile(found, 10)) if found else 0.0,
        "IoU of all": float(np.mean([max(value, 0) for value in values])),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--banks", type=Path, nargs="+", required=True, help="whose cut-outs are photographed")
    parser.add_argument("--objects", type=int, default=60, help="of each bank")
    parser.add_argument("--json", type=Path, required=True)
    return parser


if __name__ == "__main__":
    main()
