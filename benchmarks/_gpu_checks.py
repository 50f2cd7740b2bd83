"""The benchmark on a GPU: tests, equality with the CPU, mixed precision; and the data that its parts share."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_resnet50_fpn,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from benchmarks._drawn_images import draw_image, make_foreground
from benchmarks._training_steps import step_bank
from terse_aug import ForegroundBank, PasteConfig, Terse
from terse_aug.bank import BankWriter, Foreground
from terse_aug.policies import Adversarial, Critic, Paper, Random

if TYPE_CHECKING:
    from benchmarks.gpu import Progress

ROOT = Path(__file__).resolve().parent.parent
NEEDS_CUDA = "needs a CUDA device"
"""Reason with which tests are skipped without one; their names have "cuda" in them."""

Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


# Data.


@contextmanager
def drawn_bank(keypoints: bool = False) -> Iterator[ForegroundBank]:
    """Drawn foregrounds of two classes, with three keypoints each where wanted."""
    with tempfile.TemporaryDirectory() as folder:
        if not keypoints:
            yield step_bank(Path(folder))
            return
        generator, names = np.random.default_rng(1), ("nose", "left_eye", "right_eye")
        with BankWriter(Path(folder) / "points.bank", {1: "first", 2: "second"}, keypoint_names=names) as writer:
            for number in range(8):
                rgba = make_foreground(60, generator)
                height, width = rgba.shape[:2]
                points = np.array([[0.5, 0.5, 2], [0.4, 0.6, 2], [0.6, 0.6, 2]], np.float32) * (width, height, 1)
                writer.add(Foreground(rgba, 1 + number % 2, f"drawn#{number}", 0.3, keypoints=points.astype("f4")))
        yield ForegroundBank.open(Path(folder) / "points.bank")


def make_batch(side: int, size: int, fields: Sequence[str] = (), objects: int = 3, seed: int = 0) -> Batch:
    """8-bit images on the CPU and their targets: boxes, labels, and of masks and keypoints those in ``fields``."""
    generator = np.random.default_rng(seed)
    images, targets = [], []
    for _ in range(size):
        drawn = draw_image(side, objects, generator)
        images.append(torch.from_numpy(drawn.image).permute(2, 0, 1).contiguous())
        target = {"boxes": torch.from_numpy(drawn.boxes), "labels": torch.from_numpy(drawn.labels)}
        if "masks" in fields:
            target["masks"] = torch.from_numpy(drawn.masks)
        if "keypoints" in fields:
            corner, far = target["boxes"].split(2, 1)
            at = [corner + (far - corner) * fraction for fraction in (0.3, 0.5, 0.7)]
            target["keypoints"] = torch.cat([torch.stack(at, 1), torch.full((objects, 3, 1), 2.0)], 2)
        targets.append(target)
    return images, targets


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on a device; the host does not wait for uploads from pinned memory."""
    images, targets = batch
    upload = device.type != "cpu"  # a download that is not waited for is read too early
    return (
        [image.to(device, non_blocking=upload) for image in images],
        [{name: value.to(device, non_blocking=upload) for name, value in target.items()} for target in targets],
    )


def as_float(images: Sequence[Tensor]) -> list[Tensor]:
    """Images as the detectors take them."""
    return [image.float() / 255 if image.dtype == torch.uint8 else image for image in images]


def make_detector(name: str, side: int, device: torch.device) -> nn.Module:
    """A Faster R-CNN of torchvision with random weights; ``tiny`` has a backbone of one layer."""
    torch.manual_seed(0)
    sizes = {"min_size": side, "max_size": side}
    if name == "tiny":
        backbone = nn.Sequential(nn.Conv2d(3, 16, 7, stride=16, padding=3), nn.ReLU())
        backbone.out_channels = 16  # type: ignore[assignment]  # torchvision reads it
        pool = MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=1)
        anchors = AnchorGenerator(((16, 32),), ((1.0,),))
        head = {"box_head": TwoMLPHead(16 * 9, 32), "box_predictor": FastRCNNPredictor(32, 3)}
        return FasterRCNN(backbone, rpn_anchor_generator=anchors, box_roi_pool=pool, **head, **sizes).to(device).train()
    makers = {"mobilenet": fasterrcnn_mobilenet_v3_large_320_fpn, "resnet50": fasterrcnn_resnet50_fpn}
    made = makers[name](weights=None, weights_backbone=None, num_classes=3, **sizes)
    return made.to(device).train()


# The suite's own tests.


def cuda_tests(progress: Progress) -> None:
    """Run the tests that are skipped without CUDA."""
    for name in ("pytest", "hypothesis"):
        importlib.import_module(name)
    files = [str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if NEEDS_CUDA in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "--tb=short", "-W", "default", "-p", "no:cacheprovider"]
    own = [str(ROOT), str(ROOT / "integrations"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(own), "COLUMNS": "300"}
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            [*command, "-k", "cuda", *files], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
        )
        try:
            code: int | None = process.wait(progress.left())
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = None if progress.time_is_up() else process.wait()
        out.seek(0)
        text = out.read()
    counts, rows = outcomes_of_tests(text)
    progress.table("Counts", [counts])
    progress.table("Tests that did not pass", rows)
    if code not in (None, 0, 1) or (code is not None and not sum(counts.values())):
        raise RuntimeError(f"pytest ended with {code}:\n{text[-3000:]}")
    if counts["failed"] or counts["error"]:
        raise AssertionError(f"{counts['failed']} tests failed, {counts['error']} had errors:\n{text[-6000:]}")


def outcomes_of_tests(text: str) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Counts by outcome from what ``pytest -v -rs`` has printed, and the tests that did not pass, with reasons."""
    found = re.findall(r"^(\S+\.py::.+?) (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE)
    counts = Counter(outcome.lower() for _, outcome in found)
    rows = [{"test": name, "outcome": outcome.lower()} for name, outcome in found if outcome in ("FAILED", "ERROR")]
    for count, line in re.findall(r"^SKIPPED \[(\d+)\] (.+)$", text, re.MULTILINE):
        rows.append({"test": line, "outcome": f"{count} skipped"})
    return {name: counts[name] for name in ("passed", "failed", "error", "skipped")}, rows


# Composites and labels on the CPU and on the device.


def equality(progress: Progress) -> None:
    """The same batches through Terse on the CPU and on the device; the second one is after an update."""
    rows: list[dict[str, Any]] = []
    side, size = (96, 2) if progress.small else (480, 4)
    kinds: tuple[tuple[str, ...], ...] = ((), ("masks",), ("masks", "keypoints"))
    cases = list(itertools.product(kinds, (Random(), Critic(), Adversarial(), Paper()), (True, False)))
    with drawn_bank() as bank, drawn_bank(keypoints=True) as with_keypoints:
        for fields, policy, eight_bit in cases[:: 5 if progress.small else 1]:
            if progress.time_is_up():
                return
            batches = [make_batch(side, size, fields, seed=seed) for seed in range(2)]
            own = with_keypoints if "keypoints" in fields else bank
            common = {"policy": type(policy).__name__.lower(), "fields": " ".join(("boxes", *fields))}
            common["images"] = "uint8" if eight_bit else "float"
            rows += [common | row for row in _differences(own, policy, batches, eight_bit, progress.device)]
            progress.table("Largest differences between CPU and device", rows)


def _differences(
    bank: ForegroundBank, policy: Any, batches: Sequence[Batch], eight_bit: bool, device: torch.device
) -> list[dict[str, Any]]:
    paste, rows = PasteConfig(objects=(2, 4), paste_probability=1.0), []
    runs = [(Terse(bank, policy, paste=paste).to(own), own) for own in (torch.device("cpu"), device)]
    for number, (images, targets) in enumerate(batches):
        results = []
        for terse, own in runs:
            batch = moved((images if eight_bit else as_float(images), targets), own)
            composites, corrected = terse(*batch)
            pastes = sum(map(len, terse.pastes))
            if terse.policy.learns and terse.policy.learns_from == "hardness":
                terse.observe([torch.linspace(0.2, 0.8, len(one["labels"]), device=own) for one in corrected])
            loss = torch.stack([image.float().mean() for image in composites]).sum()
            if loss.requires_grad:
                loss.backward()
            terse.step({"loss": loss.detach()})
            found = moved(([image.detach() for image in composites], corrected), torch.device("cpu"))
            results.append((*found, pastes, terse.metrics()["updates"]))
        one, other = results
        row = {"batch": number + 1, "updates": other[3], "pastes": other[2]}
        rows.append(row | largest_differences(one[:2], other[:2]))
    return rows


def largest_differences(one: Batch, other: Batch) -> dict[str, float]:
    """Between two batches: levels of the images, pixels of boxes and keypoints, pixels of one mask, objects."""
    found: Counter[str] = Counter({"levels": 0, "objects": 0, "boxes, px": 0})
    levels = [255.0 if image.is_floating_point() else 1.0 for image in one[0]]
    for scale, image, copy in zip(levels, one[0], other[0], strict=True):
        found["levels"] = max(found["levels"], float((image.double() - copy.double()).abs().max()) * scale)
    for target, twin in zip(one[1], other[1], strict=True):
        if target.keys() != twin.keys() or not torch.equal(target["labels"], twin["labels"]):
            found["objects"] += max(abs(len(target["labels"]) - len(twin["labels"])), 1)
            continue
        for name, key in (("boxes", "boxes, px"), ("keypoints", "keypoints, px")):
            if name in target:
                apart = (target[name].double() - twin[name].double()).abs().flatten()
                found[key] = max(found[key], float(apart.max()) if len(apart) else 0.0)
        if "masks" in target:
            pixels = (target["masks"].bool() != twin["masks"].bool()).flatten(1).sum(1).tolist()
            found["mask, px"] = max(found["mask, px"], *pixels, 0)
    return dict(found)


# Mixed precision.


def amp(progress: Progress) -> None:
    """A few training steps of a Faster R-CNN under autocast: losses stay finite, and updates are made."""
    rows: list[dict[str, Any]] = []
    side, size, name = (64, 1, "tiny") if progress.small else (640, 4, "resnet50")
    batches = [moved(make_batch(side, size, seed=seed), progress.device) for seed in range(2)]
    policies = (Random(), Critic(update_interval=2), Adversarial(update_interval=2))
    cases = list(itertools.product((torch.float16, torch.bfloat16), policies))
    with drawn_bank() as bank:
        for dtype, policy in cases[:: 2 if progress.small else 1]:
            if progress.time_is_up():
                return
            detector = make_detector(name, side, progress.device)
            terse = Terse(bank, policy, model=detector).to(progress.device)
            row = _mixed_precision(terse, detector, batches * (1 if progress.small else 8), dtype)
            rows.append({"autocast": str(dtype), "policy": type(policy).__name__.lower()} | row)
            progress.table("Training under autocast", rows)


def _mixed_precision(terse: Terse, detector: nn.Module, batches: Sequence[Batch], dtype: torch.dtype) -> dict[str, Any]:
    kind = batches[0][0][0].device.type
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler(kind, enabled=dtype == torch.float16)
    losses_of, skipped = [], 0
    for images, targets in batches:
        with torch.autocast(kind, dtype=dtype):
            composites, corrected = terse(images, targets)
            losses = detector(as_float(composites), corrected)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        terse.step(losses, loss_scale=scale)
        skipped += scaler.get_scale() < scale
        losses_of.append(float(total.detach()))
    metrics = terse.metrics()
    return {
        "steps": len(batches),
        "all losses finite": bool(np.isfinite(losses_of).all()),
        "last loss": losses_of[-1],
        "skipped by GradScaler": skipped,
        "updates": metrics["updates"],
        "updates skipped": metrics["skipped_updates"],
        "parameters finite": all(bool(own.isfinite().all()) for own in (*terse.parameters(), *detector.parameters())),
    }
