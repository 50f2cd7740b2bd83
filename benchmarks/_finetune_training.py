"""Detectors of :mod:`benchmarks.finetune`, their baselines, and one fine-tuning."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import detection as torchvision_detection
from torchvision.models import mobilenet_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

from benchmarks._finetune_data import DATA_SETS, CachedDataset, open_split
from benchmarks._finetune_example import (
    Evaluator,
    TrainingOrder,
    learning_rate,
    models,
    seed_iteration,
    set_learning_rate,
    to_device,
    training_batches,
)
from benchmarks._finetune_pasting import make_pasting

VERSION = 3
"""Of the runs: increased when the same flags give other results, so that old and new runs are not mixed."""
BATCH = 4
FINE_TUNING_RATE = 0.002
_BASELINE_RATE = 0.02 / 16 * BATCH
SMALL = "fasterrcnn_mobilenet_v2_small"
"""The detector that all frameworks have."""
FRAMEWORKS = ("torchvision", "detectron2", "mmdet")


def fasterrcnn_mobilenet_v2_small(*, num_classes: int, min_size: int, max_size: int, **_: Any) -> nn.Module:
    """The example's detector with half the pyramid's channels, a quarter of the dense layers and smaller anchors.

    For images of about 128 px: there it takes a quarter of the time.
    """
    stages = {"3": "0", "6": "1", "13": "2", "18": "3"}
    backbone = BackboneWithFPN(
        mobilenet_v2(weights=None).features, stages, in_channels_list=[24, 32, 96, 1280], out_channels=64
    )
    sizes = ((16,), (32,), (64,), (128,), (256,))
    return torchvision_detection.FasterRCNN(
        backbone,
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        box_head=TwoMLPHead(64 * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, num_classes),
        rpn_pre_nms_top_n_train=200,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=100,
        box_batch_size_per_image=64,
    )


models.MODELS[SMALL] = models.ModelKind(
    fasterrcnn_mobilenet_v2_small, image_size=(128, 256), frozen=("0", "1", "2", "3")
)


@dataclass(frozen=True)
class Setup:
    """All that arms have in common.

    Attributes:
        data: folder of the real data.
        out: folder of this benchmark's output.
        data_set: name.
        folder: of the prepared data set.
        side: shorter side of its images, pixels.
        detector: name in the example's ``MODELS``.
        baseline_iterations: of the baseline.
        iterations: of fine-tuning.
        evaluations: of a fine-tuning, evenly spaced, the last at its end.
        candidates: of an oracle.
        framework: that trains, one of ``FRAMEWORKS``.
        device: that trains.
        backbone: file of weights; by default ImageNet's of MobileNetV2 in ``data``.
    """

    data: Path
    out: Path
    data_set: str
    folder: Path
    side: int
    detector: str
    baseline_iterations: int
    iterations: int
    evaluations: int = 4
    candidates: int = 4
    framework: str = FRAMEWORKS[0]
    device: str = "cpu"
    backbone: Path | None = None
    _opened: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def weights(self) -> Path:
        """Of the backbone, before the baseline."""
        return self.backbone or self.data / "weights" / "mobilenet_v2.pth"

    def split(self, name: str) -> CachedDataset:
        """The images of ``train`` or ``test``."""
        if name not in self._opened:
            self._opened[name] = open_split(self.folder, name, DATA_SETS[self.data_set].classes)
        found: CachedDataset = self._opened[name]
        return found

    def evaluate(self, detector: nn.Module) -> dict[str, Any]:
        """COCO's measures of boxes on the test images, in per cent."""
        if "evaluator" not in self._opened:
            self._opened["evaluator"] = Evaluator(self.split("test"))
        device = torch.device(self.device)
        measures: dict[str, Any] = self._opened["evaluator"].measure(detector, device, BATCH, 0)["box"]
        return measures

    def arguments(self) -> dict[str, Any]:
        """What identifies runs that may be compared."""
        own = {} if self.framework == FRAMEWORKS[0] else {"framework": self.framework}
        own |= {} if self.device == "cpu" else {"device": self.device}
        own |= {} if self.backbone is None else {"backbone": self.backbone.name}
        return own | {
            "version": VERSION,
            "data set": self.folder.name,
            "detector": self.detector,
            "baseline iterations": self.baseline_iterations,
            "iterations": self.iterations,
            "evaluations": self.evaluations,
            "candidates": self.candidates,
            "learning rate": FINE_TUNING_RATE,
            "batch": BATCH,
        }

    def build(self) -> nn.Module:
        """The detector with trained weights in its backbone."""
        detector = models.build(self.detector, self.split("train"), (self.side, 2 * self.side), self.weights)
        return detector.to(self.device)


@dataclass(frozen=True)
class Training:
    """One training of a detector.

    Attributes:
        setup: what it has in common with others.
        seed: of the order of images, flips, and all that is drawn.
        iterations: how many.
        peak: learning rate after the warm-up; from there it falls to 0, a cosine.
        warmup: iterations until then.
        evaluations: on the way, evenly spaced, the last at the end.
        weights: of the detector that it starts from; by default ImageNet's in the backbone.
        settings: of pasting.
        arm: what pastes.
        label: AP on the way is printed after it; by default it is not printed.
    """

    setup: Setup
    seed: int
    iterations: int
    peak: float
    warmup: int
    evaluations: int
    weights: Path | None = None
    settings: str = ""
    arm: str = "none"
    label: str = ""

    def rate(self, iteration: int) -> float:
        """Learning rate of an iteration, counted from 0."""
        return learning_rate(iteration, self.iterations, self.peak, self.warmup, "cosine")


class Progress:
    """AP of a detector on the way, and the CPU time of its training.

    Args:
        training: of the detector.
        detector: takes and returns what torchvision's detectors do.
    """

    def __init__(self, training: Training, detector: nn.Module) -> None:
        self._training, self._detector = training, detector
        count = training.evaluations
        self._due = {round(training.iterations * (step + 1) / count) for step in range(count)}
        self._curve: list[dict[str, Any]] = []
        self._seconds, self._started = 0.0, time.process_time()

    def begin(self) -> None:
        """Training begins now."""
        self._started = time.process_time()

    def step(self, iteration: int) -> None:
        """An iteration, counted from 0, is done: evaluate if it is time."""
        if iteration + 1 not in self._due:
            return
        self._seconds += time.process_time() - self._started
        self._curve.append({"iteration": iteration + 1} | self._training.setup.evaluate(self._detector))
        if self._training.label:
            print(f"{self._training.label}, iteration {iteration + 1}: AP {self._curve[-1]['AP']:.1f}", flush=True)
        self._started = time.process_time()

    def result(self, extra_forwards: int) -> dict[str, Any]:
        """The last measures, those on the way, and the cost of training."""
        costs = {"extra forwards": extra_forwards, "CPU seconds": round(self._seconds, 1)}
        return self._curve[-1] | {"curve": self._curve} | costs


def baseline(setup: Setup, seed: int) -> Path:
    """The weights of a baseline, trained without pasting if they are not there; its AP is in the JSON beside them."""
    path = setup.out / "baselines" / f"baseline{seed}.pt"
    wanted = {key: value for key, value in setup.arguments().items() if key in _OF_BASELINE} | {"seed": seed}
    report = path.with_suffix(".json")
    if path.exists():
        check_same(report, wanted)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    iterations = setup.baseline_iterations
    warmup = min(200, iterations // 8)
    found, state = _run(Training(setup, seed, iterations, _BASELINE_RATE, warmup, 6, label=path.stem))
    part = path.with_suffix(".part")
    torch.save(state, part)
    write_json(report, {"arguments": wanted, **found})
    os.replace(part, path)
    return path


_OF_BASELINE = ("version", "framework", "device", "backbone", "data set", "detector", "baseline iterations", "batch")


def fine_tune(setup: Setup, weights: Path, settings: str, arm: str, seed: int) -> dict[str, Any]:
    """Fine-tune a baseline by an arm; the results."""
    length = setup.iterations, FINE_TUNING_RATE, 0, setup.evaluations
    return _run(Training(setup, seed, *length, weights=weights, settings=settings, arm=arm))[0]


def _run(training: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of a training, and the detector's state."""
    framework = training.setup.framework
    train = _train if framework == FRAMEWORKS[0] else import_module(f"benchmarks._finetune_{framework}").train
    found: tuple[dict[str, Any], dict[str, Any]] = train(training)
    return found


def _train(training: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train torchvision's detector; the order of images and flips depends on the seed alone."""
    setup, seed, iterations = training.setup, training.seed, training.iterations
    torch.manual_seed(seed)
    detector, dataset = setup.build(), setup.split("train")
    if training.weights is not None:
        detector.load_state_dict(torch.load(training.weights, map_location=setup.device, weights_only=True))
    place = (setup.data_set, setup.folder, setup.data)
    lengths = setup.candidates, iterations
    pasting = make_pasting(training.arm, training.settings, *place, detector, dataset, seed, *lengths)
    optimizer = torch.optim.SGD(
        [own for own in detector.parameters() if own.requires_grad], training.rate(0), momentum=0.9, weight_decay=1e-4
    )
    order = TrainingOrder(len(dataset), BATCH, seed, 0, iterations, flip=DATA_SETS[setup.data_set].flip)
    progress = Progress(training, detector.train())
    progress.begin()
    for iteration, (images, targets) in enumerate(training_batches(dataset, order, 0, pin_memory=False)):
        seed_iteration(seed, iteration)
        set_learning_rate(optimizer, training.rate(iteration))
        images, targets = pasting(*to_device(images, targets, torch.device(setup.device)))
        losses = detector(images, targets)
        sum(losses.values()).backward()
        optimizer.step()
        pasting.step(losses)
        optimizer.zero_grad()
        progress.step(iteration)
    return progress.result(pasting.extra_forwards), detector.state_dict()


def check_same(path: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The content of a finished run's file.

    Raises:
        SystemExit: it was run with other settings.
    """
    found: dict[str, Any] = json.loads(path.read_text())
    if found["arguments"] != wanted:
        raise SystemExit(f"{path} was run with {found['arguments']}, not {wanted}; choose another --out")
    return found


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, path)
