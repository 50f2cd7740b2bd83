"""Registers Penn-Fudan, from the folder that the environment variable PENN_FUDAN names.

``penn_fudan_train_20``, ``penn_fudan_train_60`` and ``penn_fudan_test``, in the repository's split. A data set of
your own in COCO's format does not need this file: use ``--coco NAME JSON IMAGES`` or ``register_coco_instances``.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools import mask as coco_mask

SPLIT = Path(__file__).resolve().parents[3] / "benchmarks" / "penn_fudan_split.json"


def register_penn_fudan(folder: Path) -> None:
    """Register the parts of the split; images are read when a part is first used."""
    for part, names in json.loads(SPLIT.read_text()).items():
        name = f"penn_fudan_{part}"
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, partial(_records, folder, names))
            MetadataCatalog.get(name).set(thing_classes=["person"], evaluator_type="coco")


def _records(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    return [_record(folder, name, number) for number, name in enumerate(names)]


def _record(folder: Path, name: str, number: int) -> dict[str, Any]:
    """One photograph in Detectron2's format; pixels of its mask file hold the number of their person."""
    ids = cv2.imread(str(folder / "PedMasks" / f"{name}_mask.png"), cv2.IMREAD_UNCHANGED)
    if ids is None:
        raise FileNotFoundError(f"{folder} is not Penn-Fudan: it has no PedMasks/{name}_mask.png")
    people = [_annotation(ids == person) for person in range(1, int(ids.max()) + 1)]
    return {
        "file_name": str(folder / "PNGImages" / f"{name}.png"),
        "image_id": number,
        "height": ids.shape[0],
        "width": ids.shape[1],
        "annotations": people,
    }


def _annotation(mask: np.ndarray) -> dict[str, Any]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return {
        "bbox": [float(edge) for edge in box],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": 0,
        "segmentation": coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)),
    }


if "PENN_FUDAN" in os.environ:
    register_penn_fudan(Path(os.environ["PENN_FUDAN"]))
