"""Detectors of Hugging Face's transformers: DETR, RT-DETR, D-FINE and others that predict a set of boxes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.ops import box_convert

from terse_aug.models import (
    IOU_THRESHOLDS,
    Detections,
    DetectorAdapter,
    PredictionRecorder,
    Predictions,
    PredictionSource,
    levels_of,
)
from terse_aug_transformers.batch import Layout, as_batch, boxes_in_pixels

_LAYOUT = "terse_aug_layout"
"""Key of the layout beside the arguments of a forward, where it is known."""


class TransformersAdapter(DetectorAdapter):
    """A detector whose forward takes ``pixel_values`` and ``labels``, and gives ``loss``, ``logits``, ``pred_boxes``.

    Args:
        model: for example ``RTDetrForObjectDetection``; DistributedDataParallel and ``torch.compile`` are unwrapped.
        iou_thresholds: see :class:`terse_aug.models.DetectorAdapter`.

    Attributes:
        classes: names of the labels from 0 on, ``id2label`` of the model's config.

    Raises:
        ValueError: a model that takes text, or learns from other labels.
    """

    first_label = 0

    def __init__(self, model: nn.Module, iou_thresholds: Sequence[float] = IOU_THRESHOLDS) -> None:
        super().__init__(model, iou_thresholds)
        self.model = getattr(self.model, "_orig_mod", self.model)
        names = set(inspect.signature(type(self.model).forward).parameters)
        if not {"pixel_values", "labels"} <= names or "input_ids" in names:
            raise ValueError(
                f"{type(self.model).__name__}: expected a detector that takes pixel_values and labels with boxes and "
                f"class_labels, such as RTDetrForObjectDetection, and no text; it takes {', '.join(sorted(names))}"
            )
        self._takes_mask = "pixel_mask" in names
        self.label_limit = int(self.model.config.num_labels)
        self.classes = tuple(self.model.config.id2label[label] for label in range(self.label_limit))
        self._recorder: PredictionRecorder | None = None

    def losses(self, images: Sequence[Tensor], targets: Sequence[Any]) -> Tensor:
        """See :class:`terse_aug.models.BaseAdapter`."""
        loss: Tensor = self._output(images, targets).loss
        return loss.float()

    def detections(self, images: Sequence[Tensor], targets: Sequence[Any]) -> list[Detections]:
        """See :class:`terse_aug.models.DetectorAdapter`; every query is a detection of every class."""
        predictions = self._predictions(_kept(self._output(images)))
        height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
        logits = predictions.logits[0][:, 0].transpose(1, 2).float()
        scores = (
            logits.sigmoid() if predictions.activation == "sigmoid" else logits.softmax(-1)[..., : self.label_limit]
        )
        count, classes = scores.shape[1:]
        labels = scores.new_tensor(range(classes)).long().repeat(count)
        boxes = predictions.boxes * predictions.boxes.new_tensor([width, height] * 2)
        return [
            Detections(own.repeat_interleave(classes, 0), labels, found.flatten())
            for own, found in zip(boxes, scores, strict=True)
        ]

    def record_forward(self) -> PredictionRecorder:
        """See :class:`terse_aug.models.RecordsTrainingForward`: the queries of the last layer, without those for
        denoising, and of several groups the first."""
        source = PredictionSource(
            self.model, _annotated_boxes, {"output": (self.model, _kept)}, self._recorded, _context
        )
        self._recorder = PredictionRecorder(source, self.iou_thresholds)
        return self._recorder

    def begin_record(self, keywords: Mapping[str, Any], layout: Layout) -> None:
        """Begin the record of a forward that runs already, and has called the hook that makes its composites.

        Args:
            keywords: arguments of the forward, with the composites.
            layout: of the batch; to read it again would wait for the device.
        """
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.begin(self.model, (), {**keywords, _LAYOUT: layout})

    def _output(self, images: Sequence[Tensor], targets: Sequence[Any] | None = None) -> Any:
        batch = as_batch(images, targets or [_nothing(image) for image in images], mask=self._takes_mask)
        if targets is None:
            del batch["labels"]
        return self.model(**batch, return_dict=True)

    def _recorded(self, kept: Mapping[str, Any]) -> Predictions:
        return self._predictions(kept["output"], kept["relative"])

    def _predictions(self, kept: Mapping[str, Any], sizes: Any = None) -> Predictions:
        first, logits = kept["first"], kept["logits"]
        # Of groups of queries, which are matched each on its own, prediction uses the first.
        groups = int(getattr(self.model.config, "group_detr", 1) or 1)
        last = first + self.model.config.num_queries if groups > 1 else None
        activation: Any = "softmax" if logits.shape[-1] == (self.label_limit or 0) + 1 else "sigmoid"
        boxes = box_convert(kept["boxes"][:, first:last].float(), "cxcywh", "xyxy")
        return Predictions(boxes, levels_of(logits[:, first:last]), activation, sizes=sizes)


def _kept(output: Any) -> dict[str, Any]:
    """Logits and boxes of all queries, and the first one that is not for denoising."""
    if not hasattr(output, "logits") or not hasattr(output, "pred_boxes"):
        raise ValueError(f"expected an output with logits and pred_boxes, got {type(output).__name__}")
    denoising = getattr(output, "denoising_meta_values", None)
    first = int(denoising["dn_num_split"][0]) if denoising else 0
    return {"logits": output.logits, "boxes": output.pred_boxes, "first": first}


def _annotated_boxes(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> list[Tensor]:
    return boxes_in_pixels(keywords["labels"], _layout(inputs, keywords))


def _context(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {"relative": _layout(inputs, keywords).relative}


def _layout(inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Layout:
    known: Layout | None = keywords.get(_LAYOUT)
    return known or Layout.of({**dict(zip(("pixel_values", "pixel_mask"), inputs, strict=False)), **keywords})


def _nothing(image: Tensor) -> dict[str, Tensor]:
    return {"boxes": image.new_zeros(0, 4), "labels": image.new_zeros(0).long()}
