"""Tiny banks, batches and detectors for the tests of ``Terse``. Everything is a function of its seed.

The images are small, and so are the detectors: real torchvision models with narrow parts, trained for real.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.ops import MultiScaleRoIAlign

from terse_aug import ForegroundBank, PasteConfig, Terse
from terse_aug.bank import BankWriter, Foreground
from terse_aug.config import POLICY_SETTINGS
from terse_aug.policies import AdversarialPolicy

KEYPOINTS = ("nose", "left_eye", "right_eye")
EIGHT_BIT = 2 / 255 if int(cv2.__version__.split(".")[0]) >= 5 else 0.1
"""How far composites without a gradient may be from those with one; OpenCV 4 warps to 1/32 pixel only."""


def every_image(**settings: Any) -> PasteConfig:
    """Objects on every image and no decoys: only where things are pasted is random."""
    return PasteConfig(**({"paste_probability": 1.0, "decoys": (0, 0)} | settings))


def policy_with(name: str, **settings: Any) -> Any:
    """Settings of a policy by its name; those that it does not have are left out."""
    kind = POLICY_SETTINGS[name]
    return kind(**{own.name: settings[own.name] for own in dataclasses.fields(kind) if own.name in settings})


def make_terse(
    bank: ForegroundBank,
    policy: str = "adversarial",
    seed: int = 0,
    paste: PasteConfig | None = None,
    model: Any = None,
    **settings: Any,
) -> Terse:
    """``Terse`` that pastes on every image and updates its policy in every iteration, unless settings differ."""
    chosen = policy_with(policy, **{"update_interval": 1, **settings})
    return Terse(bank, chosen, paste=paste or every_image(), model=model, seed=seed)


def make_foreground(
    seed: int = 0, label: int = 1, side: int = 20, relative_size: float = 0.35, **changes: Any
) -> Foreground:
    """A textured ellipse with hard alpha, ``side`` pixels wide and three quarters as high."""
    generator = np.random.default_rng(seed)
    height = side * 3 // 4
    rows, columns = np.mgrid[:height, :side]
    inside = ((rows + 0.5) / height * 2 - 1) ** 2 + ((columns + 0.5) / side * 2 - 1) ** 2 <= 1
    rgba = generator.integers(0, 256, size=(height, side, 4), dtype=np.uint8)
    rgba[..., 3] = 255 * inside
    values: dict[str, Any] = {
        "rgba": rgba,
        "label": label,
        "source": f"{seed}.jpg#{seed}",
        "relative_size": relative_size,
    }
    return Foreground(**(values | changes))


def white_disc(side: int = 12, relative_size: float = 0.25) -> Foreground:
    """A white disc: brightness shows where it is, and its rim crosses pixels at every offset."""
    offset = np.arange(side) + 0.5 - side / 2
    rgba = np.full((side, side, 4), 255, np.uint8)
    rgba[..., 3] *= np.hypot(*np.meshgrid(offset, offset)) <= side / 2
    return Foreground(rgba, 1, "white", relative_size)


def make_bank(folder: Path, foregrounds: list[Foreground] | None = None, **writer: Any) -> ForegroundBank:
    """A bank of the given foregrounds; by default six of the classes ``cat`` (1) and ``dog`` (2)."""
    path = folder / f"{len(list(folder.iterdir()))}.bank"
    chosen = foregrounds or [make_foreground(seed, label=1 + seed % 2) for seed in range(6)]
    with BankWriter(path, {1: "cat", 2: "dog", 7: "zebra"}, **writer) as out:
        for foreground in chosen:
            out.add(foreground)
    return ForegroundBank.open(path)


def keypoint_foregrounds(count: int = 4) -> list[Foreground]:
    """Foregrounds with three keypoints each."""
    points = np.array([[10, 5, 2], [6, 8, 2], [14, 8, 2]], np.float32)
    return [make_foreground(seed, label=1, keypoints=points) for seed in range(count)]


def make_batch(
    seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((64, 80), (72, 64)), objects: int = 1, **fields: bool
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise images ``[3, H, W]`` with boxes; ``masks=True`` and ``keypoints=True`` add those fields."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for height, width in sizes:
        images.append(torch.rand(3, height, width, generator=generator) * 0.5)
        corner = torch.rand(objects, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        side = 12 + torch.rand(objects, 2, generator=generator) * 12
        boxes = torch.cat([corner, torch.minimum(corner + side, torch.tensor([width, height]))], 1).round()
        target = {"boxes": boxes, "labels": torch.randint(1, 3, (objects,), generator=generator)}
        if fields.get("masks"):
            target["masks"] = torch.zeros(objects, height, width, dtype=torch.uint8)
            for mask, (left, top, right, bottom) in zip(target["masks"], boxes.int().tolist(), strict=True):
                mask[top:bottom, left:right] = 1
        if fields.get("keypoints"):
            spread = torch.tensor([0.5, 0.25, 0.75])
            across = boxes[:, :1] + spread * (boxes[:, 2:3] - boxes[:, :1])
            down = boxes[:, 1:2] + spread * (boxes[:, 3:] - boxes[:, 1:2])
            target["keypoints"] = torch.stack([across, down, torch.full_like(across, 2)], -1)
        targets.append(target)
    return images, targets


class TinyBackbone(nn.Sequential):
    """Two strided convolutions with BatchNorm, and the attribute that torchvision needs."""

    out_channels: int | list[int]

    def __init__(self, out_channels: int = 16) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, out_channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )
        self.out_channels = out_channels


DETECTORS = ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos", "ssd", "ssdlite")
_SIZE = {"min_size": 64, "max_size": 96}


def make_detector(name: str, seed: int = 0, classes: int = 3) -> nn.Module:
    """One of torchvision's detectors with random weights; the global random state is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: nn.Module = _BUILDERS[name](classes)
    return model.train()


def counts_of(terse: Terse, *names: str) -> list[int]:
    """Some of the metrics of a run."""
    return [int(terse.metrics()[name]) for name in names]


def unrecorded(detector: Any) -> Any:
    """Make a detector one of a subclass, whose predictions may differ, so that its training forward is not recorded."""
    part = getattr(detector, "roi_heads", detector)
    kind = type(part)
    part.__class__ = type("Other", (kind,), {"postprocess_detections": lambda *own: kind.postprocess_detections(*own)})
    return detector


def _faster(classes: int) -> nn.Module:
    return detection.FasterRCNN(**_two_stage_arguments(classes))


def _mask(classes: int) -> nn.Module:
    return detection.MaskRCNN(
        **_two_stage_arguments(classes),
        mask_roi_pool=MultiScaleRoIAlign(["0"], 7, 1),
        mask_head=detection.mask_rcnn.MaskRCNNHeads(16, (8,), 1),
        mask_predictor=detection.mask_rcnn.MaskRCNNPredictor(8, 8, classes),
    )


def _keypoint(classes: int) -> nn.Module:
    return detection.KeypointRCNN(
        **_two_stage_arguments(classes),
        keypoint_roi_pool=MultiScaleRoIAlign(["0"], 7, 1),
        keypoint_head=detection.keypoint_rcnn.KeypointRCNNHeads(16, (8,)),
        keypoint_predictor=detection.keypoint_rcnn.KeypointRCNNPredictor(8, len(KEYPOINTS)),
    )


def _two_stage_arguments(classes: int) -> dict[str, Any]:
    return {
        "backbone": TinyBackbone(),
        "rpn_anchor_generator": AnchorGenerator(((16, 32),), ((0.75,),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 4, 1),
        "box_head": detection.faster_rcnn.TwoMLPHead(16 * 16, 32),
        "box_predictor": detection.faster_rcnn.FastRCNNPredictor(32, classes),
        "rpn_pre_nms_top_n_train": 50,
        "rpn_post_nms_top_n_train": 20,
        "rpn_pre_nms_top_n_test": 50,
        "rpn_post_nms_top_n_test": 20,
        "box_batch_size_per_image": 16,
        "rpn_batch_size_per_image": 32,
        **_SIZE,
    }


def _retina(classes: int) -> nn.Module:
    anchors = AnchorGenerator(((16, 24, 32),), ((0.75,),))
    return detection.RetinaNet(TinyBackbone(32), classes, anchor_generator=anchors, **_SIZE)


def _fcos(classes: int) -> nn.Module:
    anchors = AnchorGenerator(((8,),), ((1.0,),))
    return detection.FCOS(TinyBackbone(32), classes, anchor_generator=anchors, **_SIZE)


def _ssd(classes: int) -> nn.Module:
    head = detection.ssd.SSDHead([16], _SSD_BOXES.num_anchors_per_location(), classes)
    return _single_shot(head, classes)


def _ssdlite(classes: int) -> nn.Module:
    anchors = _SSD_BOXES.num_anchors_per_location()
    return _single_shot(detection.ssdlite.SSDLiteHead([16], anchors, classes, nn.BatchNorm2d), classes)


_SSD_BOXES = DefaultBoxGenerator([[0.5]], scales=[0.3, 0.5], steps=[8])


def _single_shot(head: nn.Module, classes: int) -> nn.Module:
    """As ``ssd300_vgg16`` and ``ssdlite320_mobilenet_v3_large`` build it, with a small backbone."""
    backbone = TinyBackbone()
    backbone.out_channels = [16]
    return detection.ssd.SSD(backbone, _SSD_BOXES, (64, 64), classes, head=head)


_BUILDERS = {
    "fasterrcnn": _faster,
    "maskrcnn": _mask,
    "keypointrcnn": _keypoint,
    "retinanet": _retina,
    "fcos": _fcos,
    "ssd": _ssd,
    "ssdlite": _ssdlite,
}


class RampLoss(nn.Module):
    """A toy detector: its loss is the brightness of the right side of each image, weighted by a ramp over x.

    The gain is a parameter, so that there is something for the detector's own optimizer to learn.
    """

    def __init__(self, strength: float = 100.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.strength = strength

    def image_losses(self, images: list[Tensor]) -> Tensor:
        losses = []
        for image in images:
            ramp = torch.linspace(0, 1, image.shape[-1], dtype=image.dtype, device=image.device)
            losses.append((image * ramp).mean() * self.strength)
        return self.gain * torch.stack(losses)

    def forward(self, images: list[Tensor] | Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        del targets
        return {"loss_ramp": self.image_losses(list(images)).mean()}


def backward(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backward of the sum of a detector's losses, which it returns."""
    torch.stack(list(losses.values())).sum().backward()
    return losses


def train_step(terse: Terse, detector: nn.Module, seed: int = 0, **batch: Any) -> dict[str, Tensor]:
    """One iteration of the loop in the manual, without the detector's optimizer; returns its losses."""
    losses = backward(detector(*terse(*make_batch(seed, **batch))))
    detector.zero_grad()
    terse.step(losses)
    return losses


def disturb_synthesizer(terse: Terse) -> None:
    """Change the synthesizer, so that its composites differ from random ones."""
    assert isinstance(terse.policy, AdversarialPolicy)
    nn.init.constant_(terse.policy.synthesizer.regressor.bias, 1.0)


def observe_hardness(terse: Terse, targets: list[dict[str, Tensor]], value: float) -> None:
    """Supply the same hardness for all objects of the last batch."""
    terse.observe([torch.full((len(target["boxes"]),), value) for target in targets])


def parameters_of(module: nn.Module) -> list[Tensor]:
    """Copies of a module's parameters."""
    return [parameter.detach().clone() for parameter in module.parameters()]


def all_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal to the bit."""
    return len(first) == len(second) and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def bank_of(folder: Path, *names: str) -> str:
    """Path of a bank of three foregrounds of each of these classes."""
    with BankWriter(folder / f"{names[0]}.bank", dict(enumerate(names, 1))) as out:
        for seed in range(3 * len(names)):
            out.add(make_foreground(seed, label=1 + seed % len(names)))
    return str(folder / f"{names[0]}.bank")


def tiny_bank(folder: Path, keypoints: bool = False, count: int = 8) -> ForegroundBank:
    """A bank of cats (1) and dogs (2); the data set has them in the other order."""
    points = np.array([[10, 5, 2], [6, 8, 2], [14, 8, 2]], np.float32)
    names = KEYPOINTS if keypoints else ()
    with BankWriter(folder / "tiny.bank", {1: "cat", 2: "dog"}, keypoint_names=names) as out:
        for seed in range(count):
            out.add(make_foreground(seed, label=1 + seed % 2, keypoints=points if keypoints else None))
    return ForegroundBank.open(folder / "tiny.bank")


def ellipse(generator: np.random.Generator, height: int, width: int) -> tuple[Any, Any, Any]:
    """Centre and radii ``[2]`` of an ellipse in an image, and its outline ``[24, 2]``."""
    radii = generator.uniform(10, 20, 2)
    centre = generator.uniform(22, [width - 22, height - 22])
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    return centre, radii, centre + radii * np.stack([np.cos(angle), np.sin(angle)], 1)


def weights_of(model: nn.Module) -> list[Tensor]:
    """Copies of a model's parameters and buffers."""
    return [value.detach().clone() for value in model.state_dict().values()]
