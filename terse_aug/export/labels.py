"""Targets as entries of a COCO JSON and as lines of YOLO's text files. Shape letters: H and W the image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from terse_aug.export.polygons import mask_to_polygon
from terse_aug.structures.annotations import Target

NO_MASKS = "format yolo-seg: expected labels with masks, got boxes only; write format yolo instead"
_DIGITS = 3
"""Of coordinates in pixels."""


def coco_annotations(target: Target, sources: Mapping[int, str]) -> list[dict[str, Any]]:
    """Annotations without ids; masks as compressed RLE, which is exact.

    Args:
        target: with ``boxes``, ``labels`` and ``area``, optionally ``masks`` and ``keypoints``; on the CPU.
        sources: of the rows that were pasted, where their foregrounds are from.
    """
    entries: list[dict[str, Any]] = []
    rows = zip(target["boxes"].tolist(), target["labels"].tolist(), target["area"].tolist(), strict=True)
    for row, ((left, top, right, bottom), label, area) in enumerate(rows):
        box = [round(value, _DIGITS) for value in (left, top, right - left, bottom - top)]
        entry: dict[str, Any] = {"category_id": label, "bbox": box, "area": round(area, _DIGITS), "iscrowd": 0}
        if "masks" in target:
            entry["segmentation"] = _run_lengths(target["masks"][row].numpy())
        if "keypoints" in target:
            points = target["keypoints"][row]
            entry["keypoints"] = [round(value, _DIGITS) for value in points.flatten().tolist()]
            entry["num_keypoints"] = int((points[:, 2] > 0).sum())
        if row in sources:
            entry["pasted_from"] = sources[row]
        entries.append(entry)
    return entries


def _run_lengths(mask: Any) -> dict[str, Any] | list[Any]:
    """Of a mask ``[H, W]``; nothing for an empty one, as data sets write a missing mask."""
    if not mask.any():
        return []
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, rle["size"])), "counts": rle["counts"].decode("ascii")}


def class_numbers(classes: Iterable[int]) -> dict[int, int]:
    """YOLO's class number of each label: 0, 1, ... in the order of the labels."""
    return {label: number for number, label in enumerate(sorted(classes))}


def yolo_lines(target: Target, size: tuple[int, int], numbers: Mapping[int, int], polygons: bool) -> list[str]:
    """A line for each object: class number, and a box (center, width, height) or a polygon, as fractions of the image.

    An object whose mask is empty has the corners of its box as polygon.

    Args:
        target: on the CPU.
        size: H and W.
        numbers: class number of each label.
        polygons: whether to write polygons.

    Raises:
        ValueError: polygons of a target without masks.
    """
    if polygons and "masks" not in target:
        raise ValueError(NO_MASKS)
    sides = np.array([size[1], size[0]])
    lines = []
    for row, (label, box) in enumerate(zip(target["labels"].tolist(), target["boxes"].double().numpy(), strict=True)):
        low, high = box[:2], box[2:]
        values = np.stack([(low + high) / 2, high - low])
        if polygons:
            corners = np.stack([low, [high[0], low[1]], high, [low[0], high[1]]])
            outline = mask_to_polygon(target["masks"][row].numpy())
            values = corners if outline is None else outline
        fractions = (values / sides).clip(0, 1).flatten().tolist()
        lines.append(" ".join([str(numbers[label]), *(f"{value:.6f}" for value in fractions)]))
    return lines
