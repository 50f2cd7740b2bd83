"""Write Penn-Fudan's split as COCO JSON files for MMDetection.

``python penn_fudan_to_coco.py PennFudanPed --out data``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

SPLIT = Path(__file__).resolve().parents[2] / "benchmarks" / "penn_fudan_split.json"


def main() -> None:
    """Write ``train_20.json``, ``train_60.json`` and ``test.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="with PNGImages and PedMasks")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for part, names in json.loads(SPLIT.read_text()).items():
        (args.out / f"{part}.json").write_text(json.dumps(_content(args.folder, names)))


def _content(folder: Path, names: list[str]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        ids = cv2.imread(str(folder / "PedMasks" / f"{name}_mask.png"), cv2.IMREAD_UNCHANGED)
        if ids is None:
            raise FileNotFoundError(f"{folder} is not Penn-Fudan: it has no PedMasks/{name}_mask.png")
        images.append({"id": number, "file_name": f"{name}.png", "height": ids.shape[0], "width": ids.shape[1]})
        for person in range(1, int(ids.max()) + 1):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append(annotation | _shape(ids == person))
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


def _shape(mask: np.ndarray) -> dict[str, Any]:
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    segmentation = {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}
    return {"bbox": [float(value) for value in box], "area": float(mask.sum()), "segmentation": segmentation}


if __name__ == "__main__":
    main()
