"""COCO average precision of a detector on a data set, for boxes and, where it gives them, masks."""

import contextlib
import io
from typing import Any

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from detection.datasets import DetectionDataset, as_coco, encode_mask
from detection.loading import evaluation_batches

Prediction = dict[str, Tensor]
Measures = dict[str, Any]

SUMMARY = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")


class Evaluator:
    """The ground truth of a data set, and COCO's measures of predictions and detectors against it."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset
        self._truth = as_coco(dataset.ground_truth())

    def measure(
        self, detector: nn.Module, device: torch.device, batch_size: int, workers: int, amp: bool = False
    ) -> Measures:
        """Run the detector over the data set and return `score`'s results; its mode is restored."""
        predictions: dict[int, Prediction] = {}
        was_training = detector.training
        detector.eval()
        with torch.inference_mode(), torch.autocast(device.type, autocast_dtype(device), enabled=amp):
            for images, targets in evaluation_batches(self.dataset, batch_size, workers):
                outputs = detector([image.to(device) for image in images])
                for output, target in zip(outputs, targets, strict=True):
                    predictions[target["image_id"]] = compact(output)
        detector.train(was_training)
        return self.score(predictions)

    def score(self, predictions: dict[int, Prediction]) -> Measures:
        """COCO's results for predictions by image id: `{"box": {...}, "mask": {...}}`.

        Each holds `SUMMARY` in per cent and `per_class`; a measure without ground truth (such as no small
        objects) is None. `mask` is there only if predictions and ground truth have masks.
        """
        measures = {"box": self._measure_kind("bbox", predictions)}
        if self.dataset.has_masks and any("masks" in prediction for prediction in predictions.values()):
            measures["mask"] = self._measure_kind("segm", predictions)
        return measures

    def _measure_kind(self, kind: str, predictions: dict[int, Prediction]) -> Measures:
        found = as_coco(self._truth.dataset | {"annotations": _annotations(predictions)})
        evaluation = COCOeval(self._truth, found, kind)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        measures: Measures = dict(zip(SUMMARY, map(_per_cent, evaluation.stats), strict=False))
        measures["per_class"] = {
            name: _class_precision(evaluation, position) for position, name in enumerate(self.dataset.classes)
        }
        return measures


def compact(output: Prediction) -> Prediction:
    """A detector's output on the CPU, its soft masks `[N, 1, H, W]` thresholded at 0.5 to bool `[N, H, W]`."""
    prediction = {key: output[key].float().cpu() for key in ("boxes", "scores")}
    prediction["labels"] = output["labels"].cpu()
    if "masks" in output:
        prediction["masks"] = (output["masks"][:, 0] > 0.5).cpu()
    return prediction


def autocast_dtype(device: torch.device) -> torch.dtype:
    """The reduced precision that suits a device: float16 (with a scaled loss) on CUDA, else bfloat16."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


def describe(measures: Measures) -> str:
    """One line of text: `box AP 38.2 (AP50 75.0, AP75 33.1)`."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.1f}"

    def words(kind: str, values: Measures) -> str:
        if "AP" in values:
            return f"{kind} AP {number(values['AP'])} (AP50 {number(values['AP50'])}, AP75 {number(values['AP75'])})"
        return f"{kind}: " + " ".join(
            f"{name} {value:.2f}" for name, value in values.items() if isinstance(value, float)
        )

    return ", ".join(words(kind, values) for kind, values in measures.items())


def _annotations(predictions: dict[int, Prediction]) -> list[dict[str, Any]]:
    annotations = []
    for image_id, prediction in predictions.items():
        for row, box in enumerate(prediction["boxes"].tolist()):
            left, top, right, bottom = box
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(prediction["labels"][row]),
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "score": float(prediction["scores"][row]),
                "iscrowd": 0,
            }
            if "masks" in prediction:
                annotation["segmentation"] = encode_mask(prediction["masks"][row].numpy())
            annotations.append(annotation)
    return annotations


def _class_precision(evaluation: COCOeval, position: int) -> float | None:
    # precision: [IoU thresholds, recalls, classes, areas (0: all), detections per image (-1: the most)]
    precision = evaluation.eval["precision"][:, :, position, 0, -1]
    known = precision[precision > -1]
    return _per_cent(np.mean(known)) if known.size else None


def _per_cent(value: float) -> float | None:
    return None if value < 0 else round(100 * float(value), 3)
