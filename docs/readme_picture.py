"""Makes docs/images/composites.jpg, the picture of the README, from photographs that scikit-image ships.

The objects have boxes only; their foregrounds are cut out by GrabCut. Run it from the root of the repository::

    python docs/readme_picture.py
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from skimage import data
from torch import Tensor

from terse_aug import ForegroundBank, PasteConfig, Terse, TransformRanges
from terse_aug.bank import BoxMasks, ExtractionRules, build_from_coco

CLASSES = ("person", "cup", "rocket", "cat")
BOXES = {
    "astronaut": [("person", (18, 8, 345, 504)), ("rocket", (352, 2, 104, 285))],
    "coffee": [("cup", (72, 12, 412, 376))],
    "rocket": [("rocket", (300, 124, 44, 284))],
    "chelsea": [("cat", (28, 2, 342, 296))],
    "camera": [("person", (2, 62, 336, 448))],
}
"""Class and box (x, y, width, height) in pixels of every annotated object, by photograph."""

FOREGROUNDS = ("astronaut", "coffee", "rocket", "chelsea")
BACKGROUNDS = ("coffee", "rocket", "chelsea", "camera")
SEED = 2
HEIGHT = 260
GAP = 6
PASTED = (255, 140, 0)
ORIGINAL = (40, 150, 255)


def main() -> None:
    """Build the bank, paste with policy `random`, draw the labels, write the picture."""
    with TemporaryDirectory() as folder:
        bank = build_bank(Path(folder))
        terse = Terse(
            bank,
            policy="random",
            classes=CLASSES,
            seed=SEED,
            paste=PasteConfig(
                objects=(1, 3),
                paste_probability=1.0,
                decoys=(0, 0),
                ranges=TransformRanges(scale=(0.3, 0.6), rotation=(-15, 15), keep_inside=1.0),
            ),
        )
        images, targets = samples()
        composites, labels = terse(images, targets)
    before = [drawn(image, target) for image, target in zip(images, targets, strict=True)]
    after = [drawn(image, target) for image, target in zip(composites, labels, strict=True)]
    out = Path(__file__).parent / "images" / "composites.jpg"
    sheet([before, after]).save(out, quality=80, optimize=True)
    print(f"{out}: {out.stat().st_size / 1000:.0f} kB")


def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image, uint8 ``[H, W, 3]``, RGB."""
    return np.array(Image.fromarray(getattr(data, name)()).convert("RGB"))


def build_bank(folder: Path) -> ForegroundBank:
    """A bank of the annotated objects, cut out by GrabCut."""
    images, annotations = [], []
    for name in FOREGROUNDS:
        pixels = photograph(name)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        height, width = pixels.shape[:2]
        images.append({"id": len(images) + 1, "file_name": f"{name}.png", "width": width, "height": height})
        for category, box in BOXES[name]:
            label = CLASSES.index(category) + 1
            annotations.append(
                {"id": len(annotations) + 1, "image_id": len(images), "category_id": label, "bbox": list(box)}
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    boxes = BoxMasks("grabcut", min_quality=0.0)
    build_from_coco(coco, folder, folder / "objects.bank", boxes=boxes, rules=ExtractionRules(min_area=50), jobs=1)
    return ForegroundBank.open(folder / "objects.bank")


def samples() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The photographs to paste on, with the labels that they have."""
    images, targets = [], []
    for name in BACKGROUNDS:
        images.append(torch.from_numpy(photograph(name)).permute(2, 0, 1) / 255)
        objects = BOXES[name]
        boxes = torch.tensor([box for _, box in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([CLASSES.index(category) + 1 for category, _ in objects])
        targets.append({"boxes": boxes, "labels": labels, "ids": torch.arange(1, len(objects) + 1)})
    return images, targets


def drawn(image: Tensor, target: dict[str, Tensor]) -> Image.Image:
    """An image with boxes and class names, scaled to one height; pasted objects have negative ids."""
    picture = Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    ratio = HEIGHT / picture.height
    picture = picture.resize((round(picture.width * ratio), HEIGHT), Image.Resampling.LANCZOS)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(15)
    for box, label, identity in zip(target["boxes"], target["labels"], target["ids"], strict=True):
        color = PASTED if identity < 0 else ORIGINAL
        left, top, right, bottom = (float(side) * ratio for side in box)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=color, width=2)
        name = CLASSES[int(label) - 1]
        top = top - 19 if top >= 19 else top
        draw.rectangle((left, top, left + draw.textlength(name, font=font) + 8, top + 19), fill=color)
        draw.text((left + 4, top + 1), name, fill=(255, 255, 255), font=font)
    return picture


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of pictures of one height, side by side."""
    width = max(sum(picture.width for picture in row) + GAP * (len(row) - 1) for row in rows)
    page = Image.new("RGB", (width, HEIGHT * len(rows) + GAP * (len(rows) - 1)), (255, 255, 255))
    for number, row in enumerate(rows):
        left = 0
        for picture in row:
            page.paste(picture, (left, number * (HEIGHT + GAP)))
            left += picture.width + GAP
    return page


if __name__ == "__main__":
    main()
