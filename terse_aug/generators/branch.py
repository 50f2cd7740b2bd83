"""The segmentation branch after BigDatasetGAN (Li et al., CVPR 2022): masks from the features of a generator.

Shape letters: B samples, C channels, H and W of the image, h and w of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Variant = Literal["supplement", "release"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_CONSTANT = 1e-3
"""Deviation of a channel that counts as constant, over the mean deviation of its feature."""


class FeatureSize(NamedTuple):
    """Channels, height and width of a feature."""

    channels: int
    height: int
    width: int

    @property
    def area(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


def feature_sizes(features: Sequence[Tensor]) -> list[FeatureSize]:
    """Of features ``[B, C, h, w]``."""
    return [FeatureSize(*feature.shape[1:]) for feature in features]


@dataclass(frozen=True)
class BranchShape:
    """What a branch is made of.

    Attributes:
        variant: ``supplement``: each feature reduced by a 1x1 convolution, 3x3 mixes, three 1x1 with LayerNorm.
            ``release``: each group reduced at once to ``width``, half and a quarter of it, class-conditional mixes.
        width: channels that features are reduced to; 128 after the paper.
        groups: number of groups of features, by size; 3 after the paper.
    """

    variant: str = "supplement"
    width: int = 128
    groups: int = 3

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant: expected {' or '.join(VARIANTS)}, got {self.variant!r}")
        if self.width < 4 or self.groups < 1:
            raise ValueError(f"expected width of at least 4 and groups of at least 1, got {self.width}, {self.groups}")


def feature_groups(sizes: Sequence[FeatureSize], groups: int) -> list[list[int]]:
    """Numbers of the features in each group, from the smallest: the distinct sizes are shared out evenly in order.

    The seven sizes of BigGAN-512, 8 to 512 px, so give the paper's groups: 8 to 32, 64 and 128, 256 and 512.
    """
    distinct = sorted({size.area for size in sizes})
    parts = np.array_split(np.arange(len(distinct)), min(groups, len(distinct)))
    areas = [{distinct[at] for at in part} for part in parts]
    return [[number for number, size in enumerate(sizes) if size.area in own] for own in areas]


def feature_moments(samples: Iterable[Sequence[Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation of the channels of each feature over the pixels of all samples, float64 ``[C]``.

    Args:
        samples: features of one sample after the other, each ``[1, C, h, w]``.
    """
    each = [[torch.var_mean(own.double(), (0, 2, 3), correction=0) for own in features] for features in samples]
    moments = []
    for own in zip(*each, strict=True):
        variances, means = (torch.stack(values) for values in zip(*own, strict=True))
        moments.append((means.mean(0), (variances + (means - means.mean(0)).square()).mean(0).sqrt()))
    return moments


class SegmentationBranch(nn.Module):
    """Predicts a mask from the features of a frozen generator.

    Features are standardized by mean and deviation of the annotated samples (:meth:`standardize`), which the paper does
    not do: their scales differ between generators, and the learning rate should not have to.

    Args:
        sizes: of the features, in their order.
        classes: number of the generator's classes.
        shape: see :class:`BranchShape`.
    """

    def __init__(self, sizes: Sequence[FeatureSize], classes: int, shape: BranchShape) -> None:
        super().__init__()
        self.groups = feature_groups(sizes, shape.groups)
        self.areas = [max(sizes[number].area for number in group) for group in self.groups]
        for number, size in enumerate(sizes):
            self.register_buffer(f"mean{number}", torch.zeros(1, size.channels, 1, 1))
            self.register_buffer(f"deviation{number}", torch.ones(1, size.channels, 1, 1))
        channels = [[sizes[number].channels for number in group] for group in self.groups]
        levels = _SupplementLevels if shape.variant == "supplement" else _ReleaseLevels
        self.levels = levels(channels, classes, shape.width)

    def standardize(self, moments: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Set mean and deviation of the channels of each feature, see :func:`feature_moments`.

        A channel that is constant in the samples has nothing to learn from, and is left out: elsewhere its values would
        be multiplied by an arbitrary number.
        """
        for number, (mean, deviation) in enumerate(moments):
            constant = deviation <= _CONSTANT * deviation.mean()
            scale = torch.where(constant, torch.inf, deviation)
            self.get_buffer(f"mean{number}").copy_(mean[None, :, None, None])
            self.get_buffer(f"deviation{number}").copy_(scale[None, :, None, None])

    def forward(self, features: Sequence[Tensor], labels: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits ``[B, H, W]`` at ``size``, of features ``[B, C, h, w]`` and class numbers int64 ``[B]``."""
        scaled = [
            (feature - self.get_buffer(f"mean{number}")) / self.get_buffer(f"deviation{number}")
            for number, feature in enumerate(features)
        ]
        grouped = [[scaled[number] for number in group] for group in self.groups]
        logits = _resized(self.levels(grouped, labels, self.areas), size)
        return logits[:, 0]


class _SupplementLevels(nn.Module):
    """The groups from the smallest, then three 1x1 convolutions with LayerNorm over the channels of each pixel."""

    def __init__(self, channels: Sequence[Sequence[int]], classes: int, width: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_SupplementLevel(group, width, at > 0) for at, group in enumerate(channels))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.heads = nn.ModuleList(nn.Conv2d(width, own, 1) for own in (width, width, 1))

    def forward(self, grouped: Sequence[Sequence[Tensor]], labels: Tensor, areas: Sequence[tuple[int, int]]) -> Tensor:
        mixed: Tensor | None = None
        for features, level, area in zip(grouped, self.levels, areas, strict=True):
            mixed = level(features, mixed, area)
        for head, norm in zip(self.heads, self.norms, strict=False):
            mixed = functional.relu(norm(head(mixed).movedim(1, -1)).movedim(-1, 1))
        logits: Tensor = self.heads[-1](mixed)
        return logits


class _SupplementLevel(nn.Module):
    """Each feature of a group reduced by a 1x1 convolution; they and the level before mixed by a 3x3 convolution."""

    def __init__(self, channels: Sequence[int], width: int, has_level_before: bool) -> None:
        super().__init__()
        self.reductions = nn.ModuleList(nn.Conv2d(own, width, 1) for own in channels)
        self.mix = nn.Conv2d((len(channels) + has_level_before) * width, width, 3, padding=1)

    def forward(self, features: Sequence[Tensor], before: Tensor | None, area: tuple[int, int]) -> Tensor:
        # Both are linear and commute; resized first, the many channels of a feature would be held at the larger size.
        parts = [_resized(reduce(feature), area) for reduce, feature in zip(self.reductions, features, strict=True)]
        return functional.relu(self.mix(_with_level_before(parts, before)))


class _ReleaseLevels(nn.Module):
    """Every group reduced by one 1x1 convolution without bias, mixed by a residual block with the class's norms."""

    def __init__(self, channels: Sequence[Sequence[int]], classes: int, width: int) -> None:
        super().__init__()
        widths = [max(width >> level, 4) for level in range(len(channels))]
        before = [0, *widths[:-1]]
        self.reductions = nn.ModuleList(
            nn.Conv2d(sum(group), own, 1, bias=False) for group, own in zip(channels, widths, strict=True)
        )
        self.mixes = nn.ModuleList(
            _ConditionalBlock(own + earlier, own, classes) for own, earlier in zip(widths, before, strict=True)
        )
        self.head = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, grouped: Sequence[Sequence[Tensor]], labels: Tensor, areas: Sequence[tuple[int, int]]) -> Tensor:
        mixed: Tensor | None = None
        for features, reduction, mix, area in zip(grouped, self.reductions, self.mixes, areas, strict=True):
            # The convolution of all, part by part: resized first, all their channels would be held at the larger size.
            weights = torch.split(reduction.get_parameter("weight"), [feature.shape[1] for feature in features], 1)
            parts = [
                _resized(functional.conv2d(feature, own), area) for feature, own in zip(features, weights, strict=True)
            ]
            mixed = mix(_with_level_before([sum(parts[1:], start=parts[0])], mixed), labels)
        logits: Tensor = self.head(mixed)
        return logits


class _ConditionalBlock(nn.Module):
    """Residual block of two 3x3 convolutions, each after a batch norm with gain and bias of the class, and ReLU."""

    def __init__(self, inputs: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for width in (inputs, outputs))
        self.gains = nn.ModuleList(nn.Embedding(classes, width) for width in (inputs, outputs))
        self.biases = nn.ModuleList(nn.Embedding(classes, width) for width in (inputs, outputs))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, outputs, 3, padding=1) for width in (inputs, outputs))
        self.shortcut = nn.Conv2d(inputs, outputs, 1)
        for embedding, start in [(own, 1.0) for own in self.gains] + [(own, 0.0) for own in self.biases]:
            nn.init.constant_(embedding.weight, start)  # type: ignore[arg-type]  # of a ModuleList's entry

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        outputs = inputs
        for norm, gain, bias, convolution in zip(self.norms, self.gains, self.biases, self.convolutions, strict=True):
            conditioned = norm(outputs) * gain(labels)[..., None, None] + bias(labels)[..., None, None]
            outputs = convolution(functional.relu(conditioned))
        shortcut: Tensor = self.shortcut(inputs)
        return shortcut + outputs


def _with_level_before(parts: list[Tensor], before: Tensor | None) -> Tensor:
    if before is not None:
        parts = [*parts, _resized(before, parts[0].shape[2:])]
    return torch.cat(parts, 1)


def _resized(tensor: Tensor, size: Sequence[int]) -> Tensor:
    if tensor.shape[2:] == tuple(size):
        return tensor
    return functional.interpolate(tensor, tuple(size), mode="bilinear", align_corners=False)
