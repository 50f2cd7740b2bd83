"""COCO-format sets and the Penn-Fudan pedestrians, in one convention.

Both give `(image, target)` as torchvision's detectors take them:

    image      float [3, H, W] in [0, 1]
    boxes      float [N, 4], XYXY in pixels of this image
    labels     int64 [N], 1..C: position in `classes` plus one; 0 is the background
    masks      bool [N, H, W], where the data has them
    keypoints  float [N, K, 3] (x, y, visibility), where the data has them
    area       float [N] px², iscrowd int64 [N] (always 0 here), image_id int

Crowd annotations are not targets, and boxes thinner than a pixel cannot be regressed: both are
dropped and counted in `dropped`. The ground truth of the evaluation keeps them, as COCO's protocol requires.
"""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from torch import Tensor
from torch.utils.data import Dataset

Target = dict[str, Any]
Sample = tuple[Tensor, Target]

MINIMUM_SIDE = 1.0  # px


def read_image(path: Path, annotated: tuple[int, int] | None = None) -> Tensor:
    """An image file as float `[3, H, W]` in [0, 1]; grey and palette images become RGB.

    Rotated as its EXIF tag requires, unless only the stored image has the annotated width and height: the annotations
    then refer to that one.
    """
    with Image.open(path) as image:
        rotated = ImageOps.exif_transpose(image)
        chosen = image if image.size == annotated != rotated.size else rotated
        pixels = np.array(chosen.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(255)


class DetectionDataset(Dataset[Sample]):
    """A set in COCO's format: annotations and a folder of images.

    Args:
        annotations: The JSON file (`images`, `annotations`, `categories`), or its content.
        images: The folder that its `file_name`s are relative to.
        classes: Class names of the training set, for a validation set that must share its labels. Without
            them the file's categories are taken in the order of their ids.
        keep_empty: Whether images without a usable box stay in (as pure background).
        limit: Use only the first so many images.

    Raises:
        ValueError: If the file is not COCO's detection format, or names classes that `classes` lacks.
    """

    def __init__(
        self,
        annotations: Path | dict[str, Any],
        images: Path,
        classes: list[str] | None = None,
        keep_empty: bool = False,
        limit: int | None = None,
    ):
        self.folder = images
        self.dropped: Counter[str] = Counter()
        self._source = annotations if isinstance(annotations, dict) else _read_coco(annotations)
        self._coco = as_coco(self._source)
        categories = sorted(self._source["categories"], key=lambda category: category["id"])
        self.classes: list[str] = classes or [category["name"] for category in categories]
        self._label_of = _labels(categories, self.classes)
        self.keypoint_names = _keypoint_names(categories)
        self._objects = self._usable_objects()
        self._images = [image for image in self._source["images"] if keep_empty or self._objects.get(image["id"])]
        self.dropped["images without a usable box"] = len(self._source["images"]) - len(self._images)
        self._images = self._images[:limit]
        self.names: list[str] = [image["file_name"] for image in self._images]
        self.has_masks = self._all_have_masks()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        record = self._images[index]
        image = read_image(self.folder / record["file_name"], (record["width"], record["height"]))
        height, width = image.shape[1:]
        if (height, width) != (record["height"], record["width"]):
            raise ValueError(
                f"{record['file_name']}: the annotations have {record['width']}x{record['height']} px, "
                f"the file has {width}x{height}; correct the JSON or the image"
            )
        objects = self._objects.get(record["id"], [])
        boxes = torch.tensor([_corners(o["bbox"], record) for o in objects]).reshape(-1, 4)
        target: Target = {
            "boxes": boxes,
            "labels": torch.tensor([self._label_of[o["category_id"]] for o in objects], dtype=torch.int64),
            "image_id": record["id"],
            "area": (boxes[:, 2:] - boxes[:, :2]).prod(1),
            "iscrowd": torch.zeros(len(boxes), dtype=torch.int64),
        }
        if self.has_masks:
            masks = [self._coco.annToMask(o) for o in objects]
            target["masks"] = torch.from_numpy(np.array(masks, bool).reshape(-1, height, width))
            target["area"] = target["masks"].flatten(1).sum(1).float()
        if count := len(self.keypoint_names):
            rows = [o.get("keypoints") or [0.0] * (3 * count) for o in objects]
            target["keypoints"] = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), count, 3)
        return image, target

    def ground_truth(self) -> dict[str, Any]:
        """All annotations of these images, crowds and slivers included; category ids are labels."""
        kept = {image["id"] for image in self._images}
        annotations = []
        for number, annotation in enumerate(self._source["annotations"], start=1):
            if annotation["image_id"] in kept:
                width, height = annotation["bbox"][2:]
                label = self._label_of[annotation["category_id"]]
                defaults = {"area": width * height, "iscrowd": 0}
                annotations.append(defaults | annotation | {"id": number, "category_id": label})
        categories = [{"id": label, "name": name} for label, name in enumerate(self.classes, start=1)]
        return {"images": self._images, "annotations": annotations, "categories": categories}

    def _usable_objects(self) -> dict[int, list[dict[str, Any]]]:
        images = {image["id"]: image for image in self._source["images"]}
        objects: dict[int, list[dict[str, Any]]] = {}
        for annotation in self._source["annotations"]:
            if annotation.get("iscrowd", 0):
                self.dropped["crowd annotations"] += 1
                continue
            left, top, right, bottom = _corners(annotation["bbox"], images[annotation["image_id"]])
            if right - left < MINIMUM_SIDE or bottom - top < MINIMUM_SIDE:
                self.dropped["boxes thinner than a pixel"] += 1
                continue
            objects.setdefault(annotation["image_id"], []).append(annotation)
        return objects

    def _all_have_masks(self) -> bool:
        # A detector trained on masks needs one for every box.
        objects = [o for group in self._objects.values() for o in group]
        without = sum(not o.get("segmentation") for o in objects)
        if without and without < len(objects):
            self.dropped["masks, because other objects have none"] = len(objects) - without
        return bool(objects) and not without


def penn_fudan(root: Path, names: list[str]) -> DetectionDataset:
    """The Penn-Fudan pedestrians, from `PNGImages`, and `PedMasks` whose pixel values number the people.

    Args:
        root: The folder that holds both.
        names: The images to use, as file names without extension (`FudanPed00001`); their ids count from 1.

    Raises:
        FileNotFoundError: If the folder, or one of the named images, is not there.
    """
    if missing := sorted(set(names) - set(penn_fudan_names(root))):
        raise FileNotFoundError(f"{root}: no image and mask for {missing[:5]} ({len(missing)} in all)")
    images, annotations = [], []
    for number, name in enumerate(names, start=1):
        numbered = np.array(Image.open(root / "PedMasks" / f"{name}_mask.png"))
        height, width = numbered.shape
        images.append({"id": number, "file_name": f"{name}.png", "height": height, "width": width})
        for person in np.unique(numbered[numbered > 0]):
            mask = encode_mask(numbered == person)
            box, area = run_lengths.toBbox(mask).tolist(), float(run_lengths.area(mask))
            own = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append(own | {"bbox": box, "area": area, "segmentation": mask})
    categories = [{"id": 1, "name": "person"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    dataset = DetectionDataset(content, root / "PNGImages", keep_empty=True)
    dataset.names = list(names)
    return dataset


def penn_fudan_names(root: Path) -> list[str]:
    """The names of all images below `root` that have a mask, sorted."""
    images = {path.stem for path in (root / "PNGImages").glob("*.png")}
    masks = {path.stem.removesuffix("_mask") for path in (root / "PedMasks").glob("*_mask.png")}
    if not images & masks:
        raise FileNotFoundError(f"{root}: expected PNGImages/*.png and PedMasks/*_mask.png, found none")
    return sorted(images & masks)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A mask `[H, W]` as COCO's compressed run lengths."""
    return run_lengths.encode(np.asfortranarray(mask, np.uint8))


def as_coco(content: dict[str, Any]) -> COCO:
    """pycocotools' index of annotations or detections; there may be none."""
    coco = COCO()
    coco.dataset = {"info": {}} | content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _corners(box: list[float], image: dict[str, Any]) -> list[float]:
    left, top, width, height = box
    right, bottom = min(left + width, image["width"]), min(top + height, image["height"])
    return [float(max(left, 0)), float(max(top, 0)), float(right), float(bottom)]


def _read_coco(path: Path) -> dict[str, Any]:
    """The content of a file, checked."""
    source = json.loads(path.read_text())
    if not isinstance(source, dict) or not {"images", "annotations", "categories"} <= source.keys():
        raise ValueError(f"{path}: expected COCO detection JSON with images, annotations and categories")
    if not all(isinstance(image["id"], int) for image in source["images"]):
        raise ValueError(f"{path}: expected whole numbers as image ids")
    known = {image["id"] for image in source["images"]}
    strays = sum(annotation["image_id"] not in known for annotation in source["annotations"])
    if strays:
        raise ValueError(f"{path}: {strays} annotations belong to images that the file does not list")
    return source


def _labels(categories: list[dict[str, Any]], classes: list[str]) -> dict[int, int]:
    names = [category["name"] for category in categories]
    if len(set(names)) < len(names):
        raise ValueError("two categories share a name; names are the labels' identity here")
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(f"classes {unknown[:5]} are not among the training set's {classes[:10]}")
    return {category["id"]: classes.index(category["name"]) + 1 for category in categories}


def _keypoint_names(categories: list[dict[str, Any]]) -> list[str]:
    lists = [list(category["keypoints"]) for category in categories if category.get("keypoints")]
    if any(names != lists[0] for names in lists):
        raise ValueError("the categories name different keypoints; one list for all is supported")
    return lists[0] if lists else []
