"""What an oracle judges composites by: measures of the detector, or of the composite alone; higher is chosen.

Shape letters: N composites, P parameters of the last layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from terse_aug.models.base import IOU_THRESHOLDS, best_scores
from terse_aug.models.isolated_forward import isolated_forward
from terse_aug.utils.random import isolated_global_rng

Target = dict[str, Any]
_EMA_DECAY = 0.99
_REAL_IMAGES, _RENEWED_EVERY = 8, 4


@dataclass(frozen=True)
class Composite:
    """A candidate.

    Attributes:
        image: float ``[3, H, W]``.
        target: its corrected annotations.
        rows: of the target, which were pasted.
        before: the annotations of its background.
    """

    image: Tensor
    target: Target
    rows: list[int]
    before: Target


class TrainingForward:
    """The losses of a Faster R-CNN on single images, and their gradients in the last layers of its heads.

    Args:
        detector: a torchvision Faster R-CNN.
    """

    def __init__(self, detector: nn.Module) -> None:
        self.detector: Any = detector
        predictor, head = self.detector.roi_heads.box_predictor, self.detector.rpn.head
        layers = (predictor.cls_score, predictor.bbox_pred, head.cls_logits, head.bbox_pred)
        self._last = [parameter for layer in layers for parameter in layer.parameters()]

    def __call__(
        self, images: Sequence[Tensor], targets: Sequence[Target], gradients: bool = False
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses and gradients of each image by itself, all with the same draw of proposals.

        Images of one size share the forward of the backbone. Only the last layers are differentiated, so that a
        gradient costs two matrix products for each.

        Returns:
            The losses by name ``[N]``, and the gradients ``[N, P]`` of their sum, or ``[N, 0]``.
        """
        losses: list[dict[str, Tensor]] = [{} for _ in images]
        found = [torch.zeros(0) for _ in images]
        with isolated_forward(self.detector, training=True):
            for parameter in self._last:
                parameter.requires_grad_(gradients)
            for group in _of_one_size(images):
                boxes = [{name: targets[number][name] for name in ("boxes", "labels")} for number in group]
                batch, boxes = self.detector.transform([images[number] for number in group], boxes)
                features = self.detector.backbone(batch.tensors)
                for place, number in enumerate(group):
                    image = ImageList(batch.tensors[place : place + 1], batch.image_sizes[place : place + 1])
                    own = {name: level[place : place + 1] for name, level in features.items()}
                    with isolated_global_rng(0), torch.set_grad_enabled(gradients):
                        losses[number] = self._losses(image, own, boxes[place : place + 1])
                        if gradients:
                            whole = torch.stack(list(losses[number].values())).sum()
                            parts = torch.autograd.grad(whole, self._last)
                            found[number] = torch.cat([part.flatten() for part in parts])
        return {name: torch.stack([own[name].detach() for own in losses]) for name in losses[0]}, torch.stack(found)

    def _losses(self, image: ImageList, features: dict[str, Tensor], boxes: list[Target]) -> dict[str, Tensor]:
        proposals, losses = self.detector.rpn(image, features, boxes)
        _, more = self.detector.roi_heads(features, proposals, image.image_sizes, boxes)
        return losses | more


def _of_one_size(images: Sequence[Tensor]) -> list[list[int]]:
    """Numbers of the images, grouped by size."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(number)
    return list(groups.values())


class Judge:
    """What measures of composites share: the detector, its running mean, real images, and forwards made already.

    Args:
        detector: a torchvision Faster R-CNN under training.
        real: a data set of real training images.
        seed: of the choice of real images.
    """

    def __init__(self, detector: nn.Module, real: Any, seed: int) -> None:
        self.detector, self._real = detector, real
        self._generator = torch.Generator().manual_seed(seed)
        self._forward: TrainingForward | None = None
        self._mean: TrainingForward | None = None
        self._reference: Tensor | None = None
        self._age = 0
        self._density: Density | None = None
        self._made: tuple[dict[str, Tensor], Tensor] | None = None
        self._in_batch: set[int] = set()
        self.extra_forwards = 0

    def start(self, targets: Sequence[Target]) -> None:
        """A batch of real images with these targets begins."""
        self._in_batch = {int(target["image_id"]) for target in targets if "image_id" in target}

    def step(self) -> None:
        """The detector has been trained on the batch."""
        self._age += 1
        if self._mean is not None:
            pairs = zip(self._mean.detector.parameters(), self.detector.parameters(), strict=True)
            with torch.no_grad():
                for mean, own in pairs:
                    mean.lerp_(own, 1 - _EMA_DECAY)

    def judge(self, measures: Sequence[str], composites: Sequence[Composite]) -> list[Tensor]:
        """Scores ``[N]`` by each measure; minus infinity where a composite cannot be judged."""
        self._made = None
        # Gradients first: their forward gives the losses, too.
        order = sorted(measures, key=lambda name: not name.startswith("agree"))
        found = {name: MEASURES[name](self, composites).nan_to_num(nan=-torch.inf) for name in order}
        return [found[name] for name in measures]

    def losses(self, composites: Sequence[Composite], gradients: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """See :class:`TrainingForward`; made once for all measures of a batch."""
        if self._made is None or (gradients and not self._made[1].numel()):
            self.extra_forwards += len(composites)
            images, targets = [own.image for own in composites], [own.target for own in composites]
            self._made = self._training_forward(images, targets, gradients)
        return self._made

    def mean_losses(self, composites: Sequence[Composite]) -> dict[str, Tensor]:
        """Losses of the running mean of the detector."""
        if self._mean is None:
            self._mean = TrainingForward(copy.deepcopy(self.detector))
        self.extra_forwards += len(composites)
        return self._mean([own.image for own in composites], [own.target for own in composites])[0]

    def detections(self, composites: Sequence[Composite]) -> list[Target]:
        """Detections of the detector."""
        self.extra_forwards += len(composites)
        images = [own.image for own in composites]
        found: list[Target] = [{} for _ in images]
        with isolated_forward(self.detector, training=False):
            for group in _of_one_size(images):
                outputs = self.detector([images[number] for number in group])
                for number, output in zip(group, outputs, strict=True):
                    found[number] = output
        return found

    def reference(self) -> Tensor:
        """The normalised gradient ``[P]`` of some real images, outside the batch when they are drawn, now and then."""
        if self._reference is None or self._age >= _RENEWED_EVERY:
            samples = []
            for index in torch.randperm(len(self._real), generator=self._generator).tolist():
                image, target = self._real[index]
                if int(target["image_id"]) not in self._in_batch:
                    samples.append((image, target))
                if len(samples) == _REAL_IMAGES:
                    break
            images, targets = zip(*samples, strict=True)
            self.extra_forwards += len(samples)
            gradient = self._training_forward(images, targets, True)[1].sum(0)
            self._reference, self._age = gradient / gradient.norm().clamp(min=1e-12), 0
        return self._reference

    def _training_forward(
        self, images: Sequence[Tensor], targets: Sequence[Target], gradients: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        if self._forward is None:
            self._forward = TrainingForward(self.detector)
        return self._forward(images, targets, gradients)

    def density(self) -> Density:
        """Of size and place of the real objects."""
        if self._density is None:
            samples = [self._real[index] for index in range(len(self._real))]
            self._density = Density(torch.cat([_size_and_place(target["boxes"], image) for image, target in samples]))
        return self._density


class Density:
    """A Gaussian kernel density with Scott's bandwidth.

    Args:
        points: float ``[n, d]``.
    """

    def __init__(self, points: Tensor) -> None:
        self._bandwidth = points.std(0).clamp(min=1e-3) * len(points) ** (-1 / (points.shape[1] + 4))
        self._points = points / self._bandwidth

    def log(self, points: Tensor) -> Tensor:
        """Log density ``[m]`` of points ``[m, d]``, up to a constant."""
        squared = torch.cdist(points / self._bandwidth, self._points, compute_mode="donot_use_mm_for_euclid_dist") ** 2
        return torch.logsumexp(-squared / 2, 1) - math.log(len(self._points))

    def of(self, points: Tensor) -> Density:
        """The density of other points, with the same bandwidth."""
        other = copy.copy(self)
        other._points = points / self._bandwidth
        return other


def _size_and_place(boxes: Tensor, image: Tensor) -> Tensor:
    """Logarithm of the height, and foot point, of boxes in units of the image ``[n, 3]``."""
    height, width = image.shape[-2:]
    tall = ((boxes[:, 3] - boxes[:, 1]) / height).clamp(min=1e-3)
    return torch.stack([tall.log(), (boxes[:, 0] + boxes[:, 2]) / 2 / width, boxes[:, 3] / height], 1)


def loss(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """The whole loss."""
    return torch.stack(list(judge.losses(composites)[0].values())).sum(0)


def class_loss(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """Losses of classification: of the RoI head and of the proposals."""
    found = judge.losses(composites)[0]
    return found["loss_classifier"] + found["loss_objectness"]


def box_loss(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """Losses of localisation, likewise."""
    found = judge.losses(composites)[0]
    return found["loss_box_reg"] + found["loss_rpn_box_reg"]


def ap_pasted(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """AP lost on the pasted objects; NaN where none is left."""
    return _ap_lost(judge, composites, [own.rows for own in composites])


def ap_all(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """AP lost on all objects of the image."""
    return _ap_lost(judge, composites, [list(range(len(own.target["boxes"]))) for own in composites])


def _ap_lost(judge: Judge, composites: Sequence[Composite], rows: Sequence[list[int]]) -> Tensor:
    found = judge.detections(composites)
    values = []
    for own, output, chosen in zip(composites, found, rows, strict=True):
        scores = best_scores(output["boxes"], output["labels"], output["scores"], own.target, IOU_THRESHOLDS)
        values.append((1 - scores[chosen]).mean())
    return torch.stack(values)


def agree(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """Gradient in the last layers times the normalised one of real images: how much a step helps those."""
    return judge.losses(composites, gradients=True)[1] @ judge.reference()


def agree_cosine(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """The same for gradients of one length: the cosine."""
    gradients = judge.losses(composites, gradients=True)[1]
    return gradients @ judge.reference() / gradients.norm(dim=1).clamp(min=1e-12)


def learnable(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """Hard for the detector and easy for its running mean: difference of their losses."""
    return loss(judge, composites) - torch.stack(list(judge.mean_losses(composites).values())).sum(0)


def least_overlap(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """Minus the part that pasted boxes share with others, relative to the smaller box, by paste."""
    values = []
    for own in composites:
        boxes, pasted = own.target["boxes"], own.target["boxes"][own.rows]
        others = torch.cat([own.before["boxes"], pasted])
        low = torch.maximum(pasted[:, None, :2], others[None, :, :2])
        high = torch.minimum(pasted[:, None, 2:], others[None, :, 2:])
        shared = (high - low).clamp(min=0).prod(2)
        smaller = torch.minimum(_areas(pasted)[:, None], _areas(others)[None]).clamp(min=1)
        own_pairs = len(pasted)  # each box with itself
        values.append(((own_pairs - (shared / smaller).sum()) / own_pairs) if own_pairs else boxes.new_tensor(math.nan))
    return torch.stack(values)


def plausible(judge: Judge, composites: Sequence[Composite]) -> Tensor:
    """Mean log density of size and place of the pasted objects among those of real objects."""
    density = judge.density()
    return torch.stack(
        [density.log(_size_and_place(own.target["boxes"][own.rows], own.image)).mean() for own in composites]
    )


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


Measure = Callable[[Judge, Sequence[Composite]], Tensor]
MEASURES: dict[str, Measure] = {
    "loss": loss,
    "class-loss": class_loss,
    "box-loss": box_loss,
    "ap-pasted": ap_pasted,
    "ap-all": ap_all,
    "agree": agree,
    "agree-cosine": agree_cosine,
    "learnable": learnable,
    "least-overlap": least_overlap,
    "plausible": plausible,
}
"""By name. Scores ``[N]``; NaN where a composite cannot be judged, which is chosen only if all are."""
