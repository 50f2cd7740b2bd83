"""Object scores from all boxes that a detector predicts in its training forward, before non-maximum suppression.

Of the boxes that overlap an object by a threshold, the best score of the object's class counts, since another box
hardly ever suppresses it; an object's score is the mean over thresholds.
Shape letters: B images, N objects of an image, Q boxes, K classes, S positions of a level, A boxes of a position.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from terse_aug.models.forward_hooks import Arguments, ForwardHooks
from terse_aug.models.padding import PaddedObjects, mean_best_scores, overlaps, scale_factors
from terse_aug.structures.annotations import Target
from terse_aug.utils.transfer import to_device

_PAIRS_ON_CPU, _PAIRS = 2**22, 2**26
"""Pairs of an object and a box that are compared at once: a few megabytes or gigabytes of memory."""
_TOLERANCE = 1e-3
_TOLERANCE_RESIZED = 0.02
"""Fraction of the longer side by which boxes may differ if the model resizes its batches."""

Sizes = Sequence[tuple[float, float]]
"""(height, width) of each image."""


@dataclass(frozen=True)
class Predictions:
    """What a detector predicts for a batch in one forward.

    Attributes:
        boxes: float ``[B, Q, 4]`` XYXY in the units of ``sizes``.
        logits: of each level ``[B, A, K, S]``; the boxes are in the order level, position, box of the position.
        activation: which makes probabilities of the logits; ``"none"`` if they are probabilities.
        quality: float ``[B, Q]`` in [0, 1], a factor of the probabilities such as FCOS's centerness.
        exponent: of the product of both.
        sizes: of each image in units of the boxes; by default those of the composites, in pixels.
        clip: whether the model clips boxes to the image.
    """

    boxes: Tensor
    logits: Sequence[Tensor]
    activation: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    quality: Tensor | None = None
    exponent: float = 1.0
    sizes: Sizes | None = None
    clip: bool = True

    def scores(self, images: slice, labels: Tensor) -> Tensor:
        """The scores ``[b, N, Q]`` of all boxes for the labels ``[b, N]`` of some images."""
        columns = []
        for level in self.logits:
            own = level[images]
            count, per_position, classes, positions = own.shape
            index = labels.clamp(0, classes - 1)[:, None, :, None].expand(count, per_position, -1, positions)
            logits = own.gather(2, index).float()
            if self.activation == "sigmoid":
                logits = logits.sigmoid()
            elif self.activation == "softmax":
                logits = (logits - own.float().logsumexp(2, keepdim=True)).exp()
            logits = torch.where(((labels >= 0) & (labels < classes))[:, None, :, None], logits, 0.0)
            columns.append(logits.permute(0, 2, 3, 1).flatten(2))
        scores = torch.cat(columns, 2)
        if self.quality is not None:
            scores = scores * self.quality[images, None].float()
        return scores if self.exponent == 1 else scores**self.exponent


def levels_of(logits: Tensor) -> list[Tensor]:
    """Logits ``[B, Q, K]`` in the form of :attr:`Predictions.logits`, as one level."""
    return [logits.transpose(1, 2)[:, None]]


def conv_levels(outputs: Sequence[Tensor], channels: int) -> list[Tensor]:
    """Outputs of convolutions ``[B, A * channels, H, W]``, one for each level, as ``[B, A, channels, H * W]``."""
    return [output.reshape(len(output), -1, channels, output.shape[-2] * output.shape[-1]) for output in outputs]


def flat_levels(outputs: Sequence[Tensor], channels: int) -> Tensor:
    """Outputs of convolutions, as for :func:`conv_levels`, as ``[B, Q, channels]`` in the order of the boxes."""
    levels = [level.permute(0, 3, 1, 2).flatten(1, 2) for level in conv_levels(outputs, channels)]
    return torch.cat(levels, 1)


def best_predictions(
    predictions: Predictions,
    images: Sequence[Tensor],
    targets: Sequence[Target],
    iou_thresholds: Sequence[float],
    rows: Sequence[Sequence[int]] | None = None,
) -> list[Tensor]:
    """The score of each object, see :func:`mean_best_scores`, float ``[N]``.

    Nothing is read from the device, and the number of operations does not depend on the number of objects.

    Args:
        predictions: for the images.
        images: composites, of which the sizes are used.
        targets: annotated ``boxes`` and ``labels``.
        iou_thresholds: see :class:`DetectorAdapter`.
        rows: of each image the objects whose scores are needed, all by default; others are NaN.
    """
    objects = PaddedObjects.of(targets, rows)
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    if 0 in (objects.index.numel(), predictions.boxes.shape[1]):
        return objects.split(torch.zeros_like(objects.index, dtype=torch.float32))
    best = _best(predictions, objects, predictions.sizes or sizes, sizes, iou_thresholds)
    return objects.split(best.to(objects.boxes))


def matching_boxes(
    boxes: Sequence[Tensor], images: Sequence[Tensor], targets: Sequence[Target], sizes: Sizes | None = None
) -> bool:
    """Whether the boxes that a model was trained on are those of the composites.

    Args:
        boxes: for each image ``[n, 4]``.
        images: composites.
        targets: theirs.
        sizes: of the images in the model, if they may differ from the composites'.
    """
    if [own.shape for own in boxes] != [target["boxes"].shape for target in targets]:
        return False
    differences = []
    for number, (own, image, target) in enumerate(zip(boxes, images, targets, strict=True)):
        expected, size = target["boxes"], (image.shape[-2], image.shape[-1])
        resized = sizes is not None and tuple(sizes[number]) != size
        if len(own) == 0 or (own is expected and not resized):
            continue
        tolerance = _TOLERANCE + (expected.detach().abs() * 1e-5)
        own = own.detach().to(expected)
        if sizes is not None and resized:
            own = own * scale_factors([size], [sizes[number]])[0].to(expected)
            tolerance = torch.full_like(own, _TOLERANCE_RESIZED * max(size))
        differences.append((own - expected.detach()).abs() - tolerance)
    # One synchronization with the device, and none if the model got the very tensors.
    return not differences or bool((torch.cat(differences) <= 0).all())


@dataclass(frozen=True)
class PredictionSource:
    """Where in a detector its predictions are.

    Attributes:
        model: the detector.
        annotated_boxes: from its arguments to the annotated boxes, float ``[n, 4]`` XYXY for each image.
        outputs: by name a module, and what to keep of the output of its first call in a forward.
        inputs: likewise of its arguments.
        decode: from what was kept, detached, to the predictions.
        context: from the model's arguments to more for ``decode``. Under ``annotation_sizes`` it has the sizes of the
            images in whose pixels the annotated boxes are, if these may differ from the composites'.
    """

    model: nn.Module
    annotated_boxes: Callable[[Arguments, Mapping[str, Any]], Sequence[Tensor]]
    outputs: Mapping[str, tuple[nn.Module, Callable[[Any], Any]]]
    decode: Callable[[Mapping[str, Any]], Predictions]
    context: Callable[[Arguments, Mapping[str, Any]], Mapping[str, Any]] = lambda inputs, keywords: {}
    inputs: Mapping[str, tuple[nn.Module, Callable[[Arguments], Any]]] = field(default_factory=dict)


@dataclass
class _Record:
    boxes: Sequence[Tensor]
    kept: dict[str, Any] = field(default_factory=dict)


class PredictionRecorder(ForwardHooks[_Record]):
    """Records the object scores of a detector that predicts a set of boxes; a :class:`terse_aug.models.Recorder`.

    Args:
        source: of the predictions.
        iou_thresholds: see :class:`DetectorAdapter`.
    """

    complete = True
    """See :class:`terse_aug.models.Recorder`."""

    def __init__(self, source: PredictionSource, iou_thresholds: Sequence[float]) -> None:
        super().__init__(source.model)
        self._source, self._iou_thresholds = source, iou_thresholds
        for name, (module, kept) in source.outputs.items():
            self.on_output(module, _keeper(name, kept))
        for name, (module, kept) in source.inputs.items():
            self.on_input(module, _keeper(name, kept))

    def start_record(self, inputs: Arguments, keywords: Mapping[str, Any]) -> _Record:
        """With the annotated boxes."""
        return _Record(self._source.annotated_boxes(inputs, keywords), dict(self._source.context(inputs, keywords)))

    @torch.no_grad()
    def scores(
        self, images: Sequence[Tensor], targets: Sequence[Target], rows: Sequence[Sequence[int]] | None = None
    ) -> list[Tensor] | None:
        """See :class:`terse_aug.models.Recorder`."""
        for record in self.records:
            complete = {*self._source.outputs, *self._source.inputs} <= record.kept.keys()
            if complete and matching_boxes(record.boxes, images, targets, record.kept.get("annotation_sizes")):
                return best_predictions(self._source.decode(record.kept), images, targets, self._iou_thresholds, rows)
        return None


def _keeper(name: str, kept: Callable[[Any], Any]) -> Callable[[_Record, Any], None]:
    def keep(record: _Record, output: Any) -> None:
        if name not in record.kept:
            record.kept[name] = detached(kept(output))

    return keep


def detached(output: Any) -> Any:
    """Nested lists, tuples (also named ones, as plain tuples) and dictionaries with all tensors detached."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, Mapping):
        return {name: detached(part) for name, part in output.items()}
    if isinstance(output, list | tuple):
        parts = [detached(part) for part in output]
        return parts if isinstance(output, list) else tuple(parts)
    return output


def _best(
    predictions: Predictions, objects: PaddedObjects, sizes: Sizes, shown: Sizes, iou_thresholds: Sequence[float]
) -> Tensor:
    """The scores ``[B, N]``; the overlap does not depend on the pixels in which it is measured."""
    boxes, device = predictions.boxes.float(), predictions.boxes.device
    if predictions.clip:
        limits = torch.tensor([[width, height] for height, width in sizes], dtype=torch.float32).repeat(1, 2)
        boxes = torch.minimum(boxes.clamp(min=0), to_device([limits[:, None]], device)[0])
    own = objects.boxes.to(device) * to_device([scale_factors(sizes, shown)], device)[0]
    labels = objects.labels.to(device)
    pairs = _PAIRS_ON_CPU if device.type == "cpu" else _PAIRS
    step = max(1, pairs // (labels.shape[1] * boxes.shape[1]))
    best = []
    for first in range(0, len(boxes), step):
        chunk = slice(first, first + step)
        overlap = overlaps(own[chunk], boxes[chunk])
        best.append(mean_best_scores(overlap, predictions.scores(chunk, labels[chunk]), iou_thresholds))
    return torch.cat(best)
