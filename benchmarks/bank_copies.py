"""How many changed copies of cut-outs the report of a bank finds, and how many different ones it takes for alike.

``python -m benchmarks.bank_copies penn.bank coco.bank --json F``

Every cut-out is changed in each of several ways and looked for among all others of its bank.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks._timing import show, write_json
from terse_aug.bank import ForegroundBank
from terse_aug.bank.analysis.near_duplicates import appearance_of, find_near_duplicates

Picture = NDArray[np.uint8]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("banks", type=Path, nargs="+")
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args(arguments)
    found = {path.stem: _found(path) for path in options.banks}
    rows = [(change, *(f"{100 * shares[change]:.1f}" for shares in found.values())) for change in ("others", *_CHANGES)]
    show("found, per cent", ("", *found), rows)
    write_json(options.json, found)


def _found(path: Path) -> dict[str, float]:
    """Shares of the copies that are in a group with their originals; of ``others``, of originals in a group at all."""
    with ForegroundBank.open(path) as bank:
        pictures = [foreground.rgba for foreground in bank]
    count = len(pictures)
    alone = _groups(pictures)
    shares = {"cut-outs": float(count), "others": sum(map(len, alone)) / count}
    for name, change in _CHANGES.items():
        groups = _groups([*pictures, *map(change, pictures)])
        together = {(place, number) for number, group in enumerate(groups) for place in group.tolist()}
        group_of = dict(together)
        shares[name] = sum(group_of.get(n, -1) == group_of.get(count + n, -2) for n in range(count)) / count
    return shares


def _groups(pictures: Sequence[Picture]) -> list[NDArray[np.int64]]:
    looks = [appearance_of(picture) for picture in pictures]
    return find_near_duplicates(
        np.array([look.bits for look in looks]), np.stack([look.thumbnail for look in looks])
    ).groups


def _recompressed(picture: Picture) -> Picture:
    _, file = cv2.imencode(".jpg", picture[:, :, :3], [cv2.IMWRITE_JPEG_QUALITY, 50])
    return np.dstack([cv2.imdecode(file, cv2.IMREAD_COLOR), picture[:, :, 3]])


def _scaled(factor: float) -> Callable[[Picture], Picture]:
    def change(picture: Picture) -> Picture:
        size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
        return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)

    return change


def _eroded(picture: Picture) -> Picture:
    alpha = cv2.copyMakeBorder(picture[:, :, 3], 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    alpha = cv2.erode(alpha, np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(alpha))
    eroded = np.dstack([picture[:, :, :3], alpha])[top : top + height, left : left + width]
    return np.ascontiguousarray(eroded) if width else picture


_CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "JPEG, quality 50": _recompressed,
    "2 times its size": _scaled(2),
    "0.7 times its size": _scaled(0.7),
    "0.5 times its size": _scaled(0.5),
    "one pixel less all around": _eroded,
}


if __name__ == "__main__":
    main()
