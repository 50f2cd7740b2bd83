"""Agreement of masks made from boxes with the true ones: GrabCut, ellipses, whole boxes, a cutter; masks are hidden.

::

    python -m benchmarks.box_masks --coco coco_mini/annotations/instances_train2017.json=coco_mini/train2017 \\
        coco_mini/annotations/instances_val2017.json=coco_mini/val2017 --json F --cutter cutter.pt

Objects of at least 8 pixels a side and 100 pixels in all that are not crowds: the default rules of a bank. For
Penn-Fudan make the JSON files by ``examples/mmdet/penn_fudan_to_coco.py``. ``--banks DIR`` writes a bank by each
method, from the boxes alone, for ``benchmarks.penn_fudan ... -- --bank DIR/cutter.bank``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._timing import coco_pair, parser, show, write_json
from terse_aug.bank import BoxMasks, ExtractionRules, build_from_coco, read_image
from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.segmenters.box import box_alpha, ellipse_alpha, grabcut_mask, grabcut_quality
from terse_aug.discovery import Cutter

BOX_MASK_METHODS = ("grabcut", "ellipse", "box", "cutter")
THRESHOLDS = (0.0, 0.35, 0.5, 0.7)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = _parser().parse_args(argv)
    cutter = None if args.cutter is None else BoxMasks(Cutter.load(args.cutter), accept_unhealthy=True)
    rows = [row for pair in args.coco for row in _objects(*pair, cutter)]
    if not rows:
        raise SystemExit("no object with a mask was found")
    by_class: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_class[row["class"]].append(row)
    summary = [
        _summary(f"quality from {least:g}", [row for row in rows if row["quality"] >= least]) for least in THRESHOLDS
    ]
    if cutter is not None:
        summary.append(_summary("cutter found some", [row for row in rows if row["cutter found"]]))
    often = sorted(by_class.items(), key=lambda item: -len(item[1]))[: args.classes]
    classes = [_summary(name, own) for name, own in often]
    known = [(row["quality"], row["grabcut"]) for row in rows if row["quality"] >= 0]
    correlation = float(np.corrcoef(np.array(known).T)[0, 1])
    seconds = [row["seconds"] for row in rows]
    content = {
        "all": _summary("all", rows),
        "by quality": summary,
        "by class": classes,
        "correlation of quality and IoU": correlation,
        "milliseconds of GrabCut, median": 1000 * float(np.median(seconds)),
        "cutter": {} if cutter is None else cutter.record,
    }
    if args.banks is not None:
        content["banks"] = _write_banks(args.coco, args.banks, cutter)
    write_json(args.json, content)
    _print([content["all"], *summary, *classes])
    print(f"correlation of quality and IoU {correlation:.2f}; GrabCut {1000 * np.median(seconds):.0f} ms an object")


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__, json_required=True)
    made.add_argument("--coco", type=coco_pair, nargs="+", required=True, metavar="JSON=DIR", help="data")
    made.add_argument("--classes", type=int, default=10, help="most frequent classes that get a row")
    made.add_argument("--cutter", type=Path, metavar="FILE", help="of terse-aug learn cutter, also if collapsed")
    made.add_argument("--banks", type=Path, metavar="DIR", help="write a bank by each method there, from one data set")
    return made


def _write_banks(pairs: Sequence[tuple[Path, Path]], folder: Path, cutter: BoxMasks | None) -> dict[str, int]:
    """Foregrounds of each bank."""
    if len(pairs) != 1:
        raise SystemExit("--banks: give one data set")
    (annotations, images), counts = pairs[0], {}
    content = json.loads(annotations.read_bytes())
    for entry in content["annotations"]:
        entry.pop("segmentation", None)
    folder.mkdir(parents=True, exist_ok=True)
    for method in BOX_MASK_METHODS[: -1 if cutter is None else None]:
        boxes = cutter if method == "cutter" else method
        try:
            report = build_from_coco(content, images, folder / f"{method}.bank", boxes=boxes, overwrite=True)
            counts[method] = sum(report.kept.values())
        except ValueError as error:  # nothing was kept
            print(error)
            counts[method] = 0
    return counts


def _objects(annotations: Path, images: Path, cutter: BoxMasks | None) -> Iterator[dict[str, Any]]:
    content, rules = json.loads(annotations.read_bytes()), ExtractionRules()
    files = {image["id"]: images / image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    known: dict[int, NDArray[np.uint8]] = {}
    for entry in sorted(content["annotations"], key=lambda entry: entry["image_id"]):
        if entry.get("iscrowd") or not entry.get("segmentation") or min(entry["bbox"][2:]) < rules.min_side:
            continue
        if entry["image_id"] not in known:
            known = {entry["image_id"]: read_image(files[entry["image_id"]])}
        pixels = known[entry["image_id"]]
        truth = segmentation_to_mask(entry["segmentation"], *pixels.shape[:2]) > 0
        if truth.sum() < rules.min_area:
            continue
        box = tuple(entry["bbox"])
        started = time.perf_counter()
        try:
            found = grabcut_mask(pixels, box)
            quality = grabcut_quality(pixels, found, box)
        except RejectedObject:
            found, quality = np.zeros(truth.shape, np.uint8), -1.0
        yield {
            "class": names[entry["category_id"]],
            "quality": quality,
            "seconds": time.perf_counter() - started,
            "grabcut": _iou(found > 0, truth),
            "ellipse": _iou(ellipse_alpha(pixels.shape, box) > 127, truth),
            "box": _iou(box_alpha(pixels.shape, box) > 127, truth),
            **({} if cutter is None else _by_cutter(cutter, pixels, box, truth)),
        }


def _by_cutter(
    cutter: BoxMasks, pixels: NDArray[np.uint8], box: Any, truth: NDArray[np.bool_]
) -> dict[str, float | bool]:
    try:
        return {"cutter": _iou(cutter.alpha(pixels, box)[0] > 127, truth), "cutter found": True}
    except RejectedObject:
        return {"cutter": 0.0, "cutter found": False}


def _iou(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


def _summary(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"name": name, "objects": len(rows)}
    for method in BOX_MASK_METHODS:
        values = [row[method] for row in rows if method in row]
        summary[method] = (
            {"mean": float(np.mean(values)), "10th percentile": float(np.percentile(values, 10))} if values else None
        )
    return summary


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = []
    for row in rows:
        cells = [
            f"{row[method]['mean']:.2f} ({row[method]['10th percentile']:.2f})" if row[method] else ""
            for method in BOX_MASK_METHODS
        ]
        table.append([row["name"], str(row["objects"]), *cells])
    columns = ("", "objects", *(f"{method}: IoU (10th percentile)" for method in BOX_MASK_METHODS))
    show(None, columns, table, width=140)


if __name__ == "__main__":
    main()
