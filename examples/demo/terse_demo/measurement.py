"""What the demo measures: AP on the test images, and which pasted objects the detector misses."""

import contextlib
import copy
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.ops import box_iou

from terse_aug import Composites, Terse
from terse_aug.models import TorchvisionAdapter
from terse_demo.data import LabelledImage, as_coco

Sample = tuple[Tensor, dict[str, Tensor]]
"""Image and target in torchvision's convention."""

MISSED_BELOW = 0.5
"""An object counts as missed where the detector's probability of it is below this, as in `terse_aug.probe`."""

_BATCH = 16
_LEAST_OVERLAP = 0.5
_NOTHING_FOUND = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}


@dataclass(frozen=True)
class ScoredObject:
    """An object of an image, or a false alarm, with the detector's score.

    Attributes:
        label: its class.
        box: XYXY, px.
        score: the detector's probability of it, in [0, 1].
        pasted: whether it was pasted, or was in the image before.
        annotated: whether there is such an object; otherwise it is a false alarm.
    """

    label: int
    box: tuple[float, float, float, float]
    score: float
    pasted: bool = False
    annotated: bool = True

    @property
    def outcome(self) -> str:
        """``detected``, ``missed``, or ``false`` alarm."""
        if not self.annotated:
            return "false"
        return "missed" if self.score < MISSED_BELOW else "detected"


@dataclass(frozen=True)
class ScoredImage:
    """An image, uint8 ``[H, W, 3]``, and its objects."""

    pixels: NDArray[np.uint8]
    objects: list[ScoredObject]

    @property
    def pasted_scores(self) -> list[float]:
        """The detector's probabilities of the pasted objects."""
        return [one.score for one in self.objects if one.pasted]


class Evaluator:
    """COCO average precision on a set of images, per cent."""

    def __init__(self, images: Sequence[LabelledImage]) -> None:
        samples = [image.tensors() for image in images]
        self.images, self.targets = [image for image, _ in samples], [target for _, target in samples]
        self._truth = _coco(as_coco(images))

    def with_images(self, images: Sequence[Tensor]) -> "Evaluator":
        """An evaluator with the same annotations and other pixels."""
        other = copy.copy(self)
        other.images = list(images)
        return other

    def measure(self, detector: nn.Module) -> dict[str, float]:
        """``AP`` (IoU 0.5 to 0.95), ``AP50`` and ``AP75`` of a detector; its mode is restored."""
        found = [
            {"image_id": number, "category_id": label, "score": score, "bbox": [x, y, right - x, bottom - y]}
            for number, prediction in enumerate(_predictions(detector, self.images))
            for (x, y, right, bottom), label, score in zip(
                prediction["boxes"].tolist(), prediction["labels"].tolist(), prediction["scores"].tolist(), strict=True
            )
        ]
        if not found:
            return dict(_NOTHING_FOUND)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(self._truth, self._truth.loadRes(found), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return {name: 100 * float(value) for name, value in zip(_NOTHING_FOUND, evaluation.stats, strict=False)}

    def score_examples(self, detector: nn.Module, count: int) -> list[ScoredImage]:
        """The first images with the scores of their objects and the false alarms."""
        images, targets = self.images[:count], self.targets[:count]
        scored = score_objects(detector, images, targets)
        for image, target, prediction in zip(scored, targets, _predictions(detector, images), strict=True):
            image.objects.extend(_false_alarms(target, prediction))
        return scored


def score_objects(
    detector: nn.Module, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]], pasted: Sequence[set] = ()
) -> list[ScoredImage]:
    """Images with the detector's score of every annotated object.

    Args:
        detector: its mode is restored.
        images: float ``[3, H, W]`` in [0, 1].
        targets: their annotations.
        pasted: for each image, the rows of its target that were pasted.
    """
    scores = TorchvisionAdapter(detector, (_LEAST_OVERLAP,)).object_scores(images, targets)
    pasted = pasted or [set() for _ in images]
    scored = []
    for image, target, probabilities, rows in zip(images, targets, scores, pasted, strict=True):
        columns = (target["labels"].tolist(), target["boxes"].tolist(), probabilities.tolist())
        objects = [
            ScoredObject(label, tuple(box), score, row in rows)
            for row, (label, box, score) in enumerate(zip(*columns, strict=True))
        ]
        pixels = (image.detach() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        scored.append(ScoredImage(pixels, objects))
    return scored


def score_composites(
    terse: Terse, detector: nn.Module, samples: Sequence[Sample], policy: str | None, seed: int
) -> list[ScoredImage]:
    """Composites of the samples by a policy (``None`` for the one in use), with the detector's scores.

    The same seed pastes the same objects on the same images; only their transforms differ between policies.
    """
    images, targets = [image for image, _ in samples], [target for _, target in samples]
    composites = terse.compose(images, targets, policy=policy, seed=seed)
    return score_objects(detector, composites.images, composites.targets, _pasted_rows(composites))


def hardest_pairs(
    ones: Sequence[ScoredImage], others: Sequence[ScoredImage], count: int
) -> list[tuple[ScoredImage, ScoredImage]]:
    """Composites of the same images by two policies, sorted by hardness, the hardest first.

    Hardness is the mean over both policies, so that the choice favours neither.
    """
    pairs = [pair for pair in zip(ones, others, strict=True) if all(image.pasted_scores for image in pair)]
    return sorted(pairs, key=lambda pair: float(np.mean([np.mean(image.pasted_scores) for image in pair])))[:count]


@dataclass
class Stopwatch:
    """Time spent inside ``with stopwatch:``; ``cpu`` counts this process only, whatever else the machine does."""

    cpu: float = 0.0
    wall: float = 0.0
    _started: tuple[float, float] = field(default=(0.0, 0.0), repr=False)

    def __enter__(self) -> "Stopwatch":
        self._started = (time.process_time(), time.perf_counter())
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time() - self._started[0]
        self.wall += time.perf_counter() - self._started[1]


def _predictions(detector: nn.Module, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    was_training = detector.training
    detector.eval()
    with torch.inference_mode():
        found = [
            prediction
            for start in range(0, len(images), _BATCH)
            for prediction in detector(list(images[start : start + _BATCH]))
        ]
    detector.train(was_training)
    return found


def _false_alarms(target: dict[str, Tensor], prediction: dict[str, Tensor]) -> list[ScoredObject]:
    """Confident detections that belong to no object of their class."""
    agree = target["labels"][:, None] == prediction["labels"][None]
    near = box_iou(target["boxes"], prediction["boxes"]) >= _LEAST_OVERLAP
    wrong = ~(agree & near).any(0) & (prediction["scores"] >= MISSED_BELOW)
    columns = (prediction[name][wrong].tolist() for name in ("labels", "boxes", "scores"))
    return [ScoredObject(label, tuple(box), score, annotated=False) for label, box, score in zip(*columns, strict=True)]


def _pasted_rows(composites: Composites) -> list[set]:
    return [{paste.row for paste in pastes if paste.row is not None} for pastes in composites.pastes]


def _coco(content: dict) -> COCO:
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth
