"""Draws an image with boxes, masks, keypoints, class names and ids.

Shape letters: N objects, k keypoints, H and W the image, H' and W' the drawn image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import clip_boxes_to_image
from torchvision.utils import draw_bounding_boxes, draw_keypoints, draw_segmentation_masks

from terse_aug.structures.annotations import Target, check_samples
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.viz.images import ORANGE, SKY_BLUE, Color, RGBImage, resize_within
from terse_aug.viz.text import font_of, printable

ORIGINAL_COLOR: Color = SKY_BLUE
"""Of objects of the original image."""
PASTED_COLOR: Color = ORANGE
"""Of pasted objects."""

_SMALLEST, _LARGEST = 640, 1024
_INK: Color = (0, 0, 0)
_MASK_OPACITY = 0.12
_CROWD = 8
_LABELED, _VISIBLE = 1, 2
_Rectangle = tuple[int, int, int, int]


def draw_sample(
    image: Tensor, target: Target, classes: Mapping[int, str], pasted_rows: Collection[int] = ()
) -> RGBImage:
    """Draw a sample and its annotation.

    Boxes are lines just inside their edges, masks are tinted and outlined, visible keypoints are dots and hidden ones
    (flag 1) dots with a dark center. Each object has its class name and, where the target has ``ids``, its id. A box
    without area, not finite, or outside the image is skipped.

    Args:
        image: ``[3, H, W]``, RGB, uint8 or float in [0, 1], on any device; values beyond are clipped.
        target: ``boxes`` float ``[N, 4]`` XYXY in pixels, ``labels`` int ``[N]``, optionally ``masks``, ``keypoints``
            and ``ids``, as :class:`terse_aug.Terse` takes and returns them.
        classes: name of each label; others are drawn as numbers.
        pasted_rows: rows of the target that were pasted; they are drawn in :data:`PASTED_COLOR`, the others in
            :data:`ORIGINAL_COLOR`.

    Returns:
        uint8 ``[H', W', 3]``, RGB, scaled so that its longer side is within 640 to 1024 px.

    Raises:
        ValueError: image or target does not keep to the contract, or a pasted row is not in the target.
    """
    check_samples([image], [target])
    if beyond := sorted(row for row in pasted_rows if not 0 <= row < len(target["boxes"])):
        raise ValueError(f"expected pasted rows below {len(target['boxes'])}, got {beyond}")
    color = PixelFormat().decode(image.detach()).float().cpu()
    levels = torch.nan_to_num(color).clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = torch.from_numpy(resize_within(levels.permute(1, 2, 0).contiguous().numpy(), _SMALLEST, _LARGEST))
    height, width = pixels.shape[:2]
    scale = torch.tensor([width / image.shape[2], height / image.shape[1]])
    boxes, rows = _drawable(target["boxes"].detach().float().cpu() * scale.repeat(2), height, width)
    if not rows:
        return pixels.numpy()
    own = {
        name: target[name].detach().cpu()[rows] for name in ("labels", "ids", "masks", "keypoints") if name in target
    }
    pasted = torch.tensor([row in pasted_rows for row in rows])
    colors = [PASTED_COLOR if flag else ORIGINAL_COLOR for flag in pasted.tolist()]
    line = max(2, round(max(height, width) / 320))
    canvas = pixels.permute(2, 0, 1)
    if "masks" in own:
        canvas = _draw_masks(canvas, own["masks"], pasted, max(1, line // 2))
    canvas = _draw_boxes(canvas, boxes, colors, line)
    if "keypoints" in own:
        points = own["keypoints"] * torch.cat([scale, torch.ones(1)])
        canvas = _draw_keypoints(canvas, points, pasted, round(1.5 * line))
    names = [classes.get(label, str(label)) for label in own["labels"].tolist()]
    if "ids" in own:
        names = [f"{name} {identity}" for name, identity in zip(names, own["ids"].tolist(), strict=True)]
    labels = list(zip(boxes.tolist(), map(printable, names), colors, strict=True))
    # The pasted objects are what is to be judged: their labels are placed first and lie on top.
    labels.sort(key=lambda label: label[2] != PASTED_COLOR)
    return _with_labels(canvas.permute(1, 2, 0).numpy(), labels)


def _drawable(boxes: Tensor, height: int, width: int) -> tuple[Tensor, list[int]]:
    """Boxes clipped to the image, in whole px and at least one px wide and high; and their rows."""
    clipped = clip_boxes_to_image(boxes, (height, width))
    keep = boxes.isfinite().all(1) & (clipped[:, 2:] > clipped[:, :2]).all(1)
    whole = clipped[keep].round().long()
    whole[:, :2] = torch.minimum(whole[:, :2], torch.tensor([width - 1, height - 1]))
    whole[:, 2:] = torch.maximum(whole[:, 2:], whole[:, :2] + 1)
    return whole, keep.nonzero()[:, 0].tolist()


def _draw_masks(canvas: Tensor, masks: Tensor, pasted: Tensor, thickness: int) -> Tensor:
    large = F.interpolate(masks[:, None].to(torch.uint8), canvas.shape[1:], mode="nearest-exact")[:, 0]
    kernel = np.ones((2 * thickness + 1,) * 2, np.uint8)
    inner = torch.from_numpy(np.stack([cv2.erode(mask, kernel) for mask in large.numpy()]))
    for opacity, areas in ((_MASK_OPACITY, large.bool()), (1.0, (large - inner).bool())):
        # torchvision paints black where masks overlap: one mask for each color, and these do not.
        front = areas[pasted].any(0)
        by_color = torch.stack([areas[~pasted].any(0) & ~front, front])
        canvas = draw_segmentation_masks(canvas, by_color, opacity, [ORIGINAL_COLOR, PASTED_COLOR])
    return canvas


def _draw_boxes(canvas: Tensor, boxes: Tensor, colors: list[Color], line: int) -> Tensor:
    inclusive = boxes - torch.tensor([0, 0, 1, 1])
    # A dark rim on both sides keeps the line visible on a background of its own color.
    rim = inclusive + torch.tensor([-1, -1, 1, 1])
    canvas = draw_bounding_boxes(canvas, rim, colors=_INK, width=line + 2)
    drawn: Tensor = draw_bounding_boxes(canvas, inclusive, colors=colors, width=line)
    return drawn


def _draw_keypoints(canvas: Tensor, keypoints: Tensor, pasted: Tensor, radius: int) -> Tensor:
    finite = keypoints.isfinite().all(2)
    points, flags = keypoints[..., :2].nan_to_num(), keypoints[..., 2] * finite
    canvas = draw_keypoints(canvas, points, colors=_INK, radius=radius + 1, visibility=flags >= _LABELED)
    for color, rows in ((ORIGINAL_COLOR, ~pasted), (PASTED_COLOR, pasted)):
        canvas = draw_keypoints(canvas, points[rows], colors=color, radius=radius, visibility=flags[rows] >= _LABELED)
    hidden = (flags >= _LABELED) & (flags < _VISIBLE)
    drawn: Tensor = draw_keypoints(canvas, points, colors=_INK, radius=radius // 2, visibility=hidden)
    return drawn


def _with_labels(pixels: RGBImage, labels: Sequence[tuple[_Rectangle, str, Color]]) -> RGBImage:
    """Write a text at each box, the first one on top; torchvision's font cannot be scaled without a font file."""
    image = Image.fromarray(pixels)
    drawing = ImageDraw.Draw(image)
    size = max(12, round(max(image.size) / (55 if len(labels) > _CROWD else 45)))
    font, padding, height = font_of(size), max(2, size // 6), round(1.3 * size)
    placed: list[_Rectangle] = []
    for box, text, _ in labels:
        width = round(drawing.textlength(text, font)) + 2 * padding
        placed.append(_label_place(box, (width, height), image.size, placed))
    for (left, top, right, bottom), (_, text, color) in reversed(list(zip(placed, labels, strict=True))):
        drawing.rectangle((left, top, right - 1, bottom - 1), fill=color)
        drawing.text((left + padding, (top + bottom) / 2), text, _INK, font, anchor="lm")
    return np.array(image)


def _label_place(
    box: _Rectangle, size: tuple[int, int], image_size: tuple[int, int], taken: Sequence[_Rectangle]
) -> _Rectangle:
    """Where a label covers the least of those placed before: above the box, inside it, or below it."""
    left, top, right, bottom = box
    (width, height), (image_width, image_height) = size, image_size
    rows = [y for y in (top - height, top, bottom, bottom - height) if 0 <= y <= image_height - height] or [0]
    places = []
    for y in rows:
        for x in (left, right - width):
            x = max(min(x, image_width - width), 0)
            places.append((x, y, x + width, y + height))
    return min(places, key=lambda place: sum(_overlap(place, other) for other in taken))


def _overlap(first: _Rectangle, second: _Rectangle) -> int:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)
