"""What the quality of GrabCut's masks keeps and rejects where boxes are loose, on objects with true masks.

::

    python -m benchmarks.loose_boxes --data data --json loose_boxes.json

The data are those of the folders ``coco_mini``, ``penn_fudan`` (at a third of its size) and ``flowers`` (at half of
its size): objects of at least 8 px a side and 100 px in all. Boxes are the tight ones, enlarged about the object and
shifted by up to half of the room on a side. A mask is good if its IoU with the true one is at least 0.7. Beside the
rule of the bank stands that which compares the mask's tight box with the given one as it is: an IoU of at least 0.5,
and at least 0.3 if multiplied by the contrast.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks._timing import parser, show, write_json
from terse_aug.bank import BoxMasks, ExtractionRules, read_image
from terse_aug.bank.extract import Box, RejectedObject, box_iou, tight_box
from terse_aug.bank.inputs.images import read_index_mask
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.segmenters.box import grabcut_fit_and_contrast, grabcut_mask, grabcut_quality

ENLARGED = (1.0, 1.25, 1.5, 2.0)
"""Sides of the box over those of the object."""
GOOD, LEAST_IOU = 0.7, 0.5
RULES = ("quality", "IoU of the boxes")
_Objects = Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]]]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = _parser().parse_args(argv)
    used = slice(args.first, None, args.every)
    kinds = {
        "COCO-mini": (_coco(args.data / "coco_mini", used), 1.0),
        "Penn-Fudan": (_penn_fudan(args.data / "penn_fudan", used), 1 / 3),
        "flowers": (_flowers(args.data / "flowers", used), 0.5),
    }
    rows = [row | {"data": kind} for kind, (objects, scale) in kinds.items() for row in _measure(objects, scale)]
    tight = [row for row in rows if row["enlarged"] == 1]
    groups = {f"{kind}, tight": [row for row in tight if row["data"] == kind] for kind in kinds}
    groups |= {f"{kind}, loose": [row for row in rows if row["enlarged"] > 1 and row["data"] == kind] for kind in kinds}
    groups |= {
        f"all, enlarged to {factor:g}": [row for row in rows if row["enlarged"] == factor] for factor in ENLARGED
    }
    groups["all, loose, up to 64 px"] = [row for row in rows if row["enlarged"] > 1 and row["side"] <= 64]
    content = {name: _summary(own) for name, own in groups.items()}
    write_json(args.json, content | {"masks": rows})
    columns = ("", "masks", "good", *(f"{rule}: kept, good, IoU" for rule in RULES))
    show(None, columns, [[name, *_cells(own)] for name, own in content.items()], width=140)


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the three data sets")
    made.add_argument("--every", type=int, default=4, metavar="N", help="use each n-th image (default: %(default)s)")
    made.add_argument("--first", type=int, default=0, metavar="N", help="from this one on (default: %(default)s)")
    return made


def _coco(folder: Path, used: slice) -> _Objects:
    for part in ("train2017", "val2017"):
        content = json.loads((folder / "annotations" / f"instances_{part}.json").read_bytes())
        for image in content["images"][used]:
            pixels = read_image(folder / part / image["file_name"])
            for entry in content["annotations"]:
                if entry["image_id"] == image["id"] and not entry.get("iscrowd") and entry.get("segmentation"):
                    yield pixels, segmentation_to_mask(entry["segmentation"], *pixels.shape[:2]) > 0


def _penn_fudan(folder: Path, used: slice) -> _Objects:
    for path in sorted((folder / "PedMasks").iterdir())[used]:
        pixels, numbers = read_image(folder / "PNGImages" / path.name.replace("_mask", "")), read_index_mask(path)
        yield from ((pixels, numbers == number) for number in np.unique(numbers) if number)


def _flowers(folder: Path, used: slice) -> _Objects:
    for path in sorted((folder / "trimaps").iterdir())[used]:
        yield read_image(next((folder / "images").glob(f"{path.stem}.*"))), np.asarray(Image.open(path)) == 255


def _measure(objects: _Objects, scale: float) -> Iterator[dict[str, Any]]:
    rules, generator = ExtractionRules(), np.random.default_rng(0)
    for large, whole in objects:
        size = (round(large.shape[1] * scale), round(large.shape[0] * scale))
        pixels = np.asarray(cv2.resize(large, size, interpolation=cv2.INTER_AREA), np.uint8)
        truth = cv2.resize(whole.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.5
        tight = tight_box(truth.astype(np.uint8))
        if tight is None or min(tight[2:]) < rules.min_side or truth.sum() < rules.min_area:
            continue
        for factor in ENLARGED:
            box = _enlarged(tight, factor, truth.shape, generator)
            try:
                found = grabcut_mask(pixels, box)
            except RejectedObject:  # the box fills the image
                continue
            fit, contrast = grabcut_fit_and_contrast(pixels, found, box)
            agreement = box_iou(box, tight_box(found) or (0, 0, 0, 0))
            yield {
                "enlarged": factor,
                "side": max(tight[2:]),
                "IoU": float((truth & (found > 0)).sum() / (truth | (found > 0)).sum()),
                "fit": fit,
                "contrast": contrast,
                "agreement": agreement,
                "quality": grabcut_quality(pixels, found, box),
            }


def _enlarged(tight: Box, factor: float, shape: tuple[int, ...], generator: np.random.Generator) -> Box:
    room = (factor - 1) / 2 * np.array(tight[2:])
    left, top = tight[:2] - room * (1 + generator.uniform(-0.5, 0.5, 2))
    right, bottom = left + factor * tight[2], top + factor * tight[3]
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, shape[1]), min(bottom, shape[0])
    return float(left), float(top), float(right - left), float(bottom - top)


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    least = BoxMasks("grabcut").min_quality
    kept_by = {
        "quality": [row for row in rows if row["quality"] >= least],
        "IoU of the boxes": [
            row for row in rows if row["agreement"] >= LEAST_IOU and row["agreement"] * row["contrast"] >= least
        ],
    }
    return {"masks": len(rows), "good": _good(rows)} | {
        rule: {"kept": len(kept), "good": _good(kept), "IoU": float(np.mean([row["IoU"] for row in kept] or [0.0]))}
        for rule, kept in kept_by.items()
    }


def _good(rows: Sequence[dict[str, Any]]) -> int:
    return sum(row["IoU"] >= GOOD for row in rows)


def _cells(summary: dict[str, Any]) -> list[str]:
    return [
        str(summary["masks"]),
        str(summary["good"]),
        *(f"{summary[rule]['kept']}, {summary[rule]['good']}, {summary[rule]['IoU']:.2f}" for rule in RULES),
    ]


if __name__ == "__main__":
    main()
