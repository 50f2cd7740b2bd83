"""What the detectors of Detectron2 and MMDetection in :mod:`benchmarks.finetune` have in common.

Shape letters: N images, C channels, H and W height and width.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from benchmarks._finetune_data import DATA_SETS
from benchmarks._finetune_example import freeze_batch_norm, seed_iteration
from benchmarks._finetune_pasting import (
    CLOSE_FRACTION,
    CLOSED,
    open_bank,
    paste_settings,
    policy_of,
    seed_of_pasting,
)
from benchmarks._finetune_training import Training
from terse_aug import PasteConfig

STAGES = (3, 6, 13, 18)
"""Layers of ``mobilenet_v2().features`` that the feature pyramid is built on."""
CHANNELS = (24, 32, 96, 1280)
"""Of these layers."""
STRIDES = (4, 8, 16, 32)
"""Of these layers, pixels."""
PYRAMID = 64
"""Channels of the feature pyramid."""
DENSE = 256
"""Width of the box head's dense layers."""
ANCHORS = (16, 32, 64, 128, 256)
"""Side of the anchors of each level of the pyramid, pixels."""
PROPOSALS, PROPOSALS_TEST = 200, 100
ROIS = 64
"""Proposals of an image that the box head is trained on."""
BETA = 1 / 9
"""Where torchvision's smooth L1 losses turn from a square to a line."""
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Of ImageNet's pixels: red, green, blue."""


class MobileNetStages(nn.Module):
    """torchvision's MobileNetV2 with frozen BatchNorm and frozen layers up to the first stage.

    Args:
        weights: of torchvision's classifier.
    """

    def __init__(self, weights: Path | str) -> None:
        super().__init__()
        state = torch.load(weights, map_location="cpu", weights_only=True)
        features = mobilenet_v2(weights=None).features
        freeze_batch_norm(features)
        name = "features."
        features.load_state_dict({key.removeprefix(name): own for key, own in state.items() if key.startswith(name)})
        for layer in features[: STAGES[0] + 1]:
            layer.requires_grad_(False)
        self.features = features.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps ``[N, C, H / stride, W / stride]`` of the stages, for normalized RGB images ``[N, 3, H, W]``."""
        found = []
        for number, layer in enumerate(self.features):
            images = layer(images)
            if number in STAGES:
                found.append(images)
        return found


@dataclass(frozen=True)
class ArmSettings:
    """What a user would write of an arm that pastes.

    Attributes:
        bank: path.
        policy: name.
        sampler: name.
        seed: of all draws.
        paste: what is pasted.
        backgrounds: folder of images that replace half of the others; empty for none.
        close_fraction: last fraction of the iterations in which nothing is pasted.
    """

    bank: str
    policy: str
    sampler: str
    seed: int
    paste: PasteConfig
    backgrounds: str
    close_fraction: float


def arm_settings(training: Training, folder: Path) -> ArmSettings | None:
    """The settings of a training's arm, ``None`` where nothing is pasted.

    Args:
        training: whose.
        folder: for links to backgrounds.
    """
    if training.arm == "none":
        return None
    setup, kind = training.setup, DATA_SETS[training.setup.data_set]
    policy, sampler = policy_of(training.arm)
    backgrounds = ""
    if training.settings == "unrelated":
        links = folder / "backgrounds"
        links.mkdir()
        for number, path in enumerate(kind.backgrounds(setup.data)):
            os.symlink(path.resolve(), links / f"{number:05d}{path.suffix}")
        backgrounds = str(links)
    return ArmSettings(
        bank=str(open_bank(training.settings, setup.folder, kind.classes).path),
        policy=policy,
        sampler=sampler,
        seed=seed_of_pasting(training.arm, training.seed),
        paste=paste_settings(training.settings, kind),
        backgrounds=backgrounds,
        close_fraction=CLOSE_FRACTION if training.arm.endswith(CLOSED) else 0.0,
    )


class SeededForward:
    """A forward pre-hook that seeds torch's generators, which detectors sample proposals with, in every iteration.

    Pasting, evaluation and the making of iterators then leave what a detector draws alone.

    Args:
        seed: of the training.

    Attributes:
        iteration: that is trained now, counted from 0.
    """

    def __init__(self, seed: int) -> None:
        self._seed, self.iteration = seed, 0

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        if module.training:
            seed_iteration(self._seed, self.iteration)


def pixels(image: Tensor) -> Tensor:
    """The stored pixels, uint8 ``[3, H, W]``, of an image in [0, 1]."""
    return (image * 255).round().to(torch.uint8)
