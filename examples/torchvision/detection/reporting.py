"""Output of a run: progress on the terminal, TensorBoard, and `results.json`."""

import argparse
import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from detection.checkpoint import Checkpoint
from detection.datasets import Target
from detection.evaluation import Measures, describe

# Flags that may differ in a resumed run without a warning.
INCIDENTAL = {"out", "resume", "device", "workers", "threads", "eval_every", "checkpoint_every", "log_every"}


class Report:
    """Records one run and writes it into a folder; a context manager around the training loop."""

    def __init__(self, folder: Path, args: argparse.Namespace, data: dict[str, Any]):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.args, self.data = folder, args, data
        self.history: list[dict[str, Any]] = []
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        self.done = 0
        self._tensorboard: Any = None
        self._console = Console()
        self._progress = Progress(
            TextColumn("iteration"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=args.iterations)
        self._mark = time.perf_counter()

    def __enter__(self) -> "Report":
        # Events that an interrupted run wrote after the checkpoint are hidden.
        self._tensorboard = _open_tensorboard(self.folder, hide_from=self.done + 1 if self.done else None)
        self._progress.start()
        self._mark = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        if self._tensorboard:
            self._tensorboard.close()

    def step(
        self,
        iteration: int,
        losses: dict[str, Tensor],
        images: list[Tensor],
        targets: list[Target],
        rate: float,
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Record a finished iteration (counted from 0); every `--log-every` iterations, log its losses.

        Raises:
            FloatingPointError: If a loss is not finite.
        """
        self.done = iteration + 1
        self.seconds["training"] += self._lap()
        self._progress.update(self._task, completed=self.done)
        if self.done % self.args.log_every == 0 or self.done == self.args.iterations:
            self._log_losses({name: float(loss.detach()) for name, loss in losses.items()})
            self.scalars({"learning rate": rate})
            self.scalars({f"terse_aug/{name}": value for name, value in (metrics or {}).items()})
        if self.args.image_every and self.done % self.args.image_every == 0:
            self.images("training batch", images, targets)

    def scalars(self, values: dict[str, float]) -> None:
        """Write scalars to TensorBoard, at the current iteration."""
        if self._tensorboard:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, self.done)

    def histogram(self, tag: str, fractions: list[float], count: int) -> None:
        """Write fractions of a count, in equal bins over [0, 1], to TensorBoard, at the current iteration."""
        if self._tensorboard and count:
            edges = torch.linspace(0, 1, len(fractions) + 1)
            numbers = (torch.tensor(fractions) * count).round().long()
            middles = ((edges[1:] + edges[:-1]) / 2).repeat_interleave(numbers)
            self._tensorboard.add_histogram(tag, middles, self.done, bins=edges.numpy())

    def images(self, tag: str, images: list[Tensor], targets: list[Target]) -> None:
        """Write images with their boxes, masks and class names to TensorBoard, at the current iteration."""
        if self._tensorboard:
            for position, (image, target) in enumerate(zip(images, targets, strict=True)):
                drawn = draw(image, target, self.data["classes"])
                self._tensorboard.add_image(f"{tag}/{position}", drawn, self.done)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Count the time spent inside as evaluation, not as training."""
        self.seconds["training"] += self._lap()
        yield
        self.seconds["evaluation"] += self._lap()

    def add_evaluation(self, measures: Measures) -> None:
        """Record the results of an evaluation after the current iteration, and write `results.json`."""
        self.history.append({"iteration": self.done} | measures)
        self.print(f"after {self.done} iterations: {describe(measures)}")
        for kind, values in measures.items():
            known = {name: value for name, value in values.items() if isinstance(value, float)}
            self.scalars({f"{kind}/{name}": value for name, value in known.items()})
            for name, value in values.items():
                if isinstance(value, list):
                    self.histogram(f"{kind}/{name}", value, values["objects"])
        self.write()

    def print(self, line: str) -> None:
        """Print a line without disturbing the progress bar."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def notes(self) -> dict[str, Any]:
        """What a checkpoint keeps so that the report of a resumed run is complete."""
        return {
            "arguments": _plain(vars(self.args)),
            "classes": list(self.data["classes"]),
            "history": self.history,
            "seconds": dict(self.seconds),
        }

    def resume(self, saved: Checkpoint) -> int:
        """Restore the record from a checkpoint, and return its iteration; flags that differ are printed.

        Raises:
            ValueError: If the checkpoint was trained for other classes.
        """
        notes = saved.notes
        if notes["classes"] != self.data["classes"]:
            raise ValueError(f"the checkpoint is for {notes['classes']}, the data has {self.data['classes']}")
        before, now = notes["arguments"], _plain(vars(self.args))
        for name in sorted((before.keys() | now.keys()) - INCIDENTAL):
            if before.get(name) != now.get(name):
                self.print(f"resumed with another --{name.replace('_', '-')}: {before.get(name)}, now {now.get(name)}")
        self.history, self.seconds = notes["history"], dict(notes["seconds"])
        self.done = saved.iteration
        self._progress.update(self._task, completed=self.done)
        return self.done

    def write(self) -> None:
        """Write `results.json`; an interrupted write leaves the previous file intact."""
        results = {
            "arguments": _plain(vars(self.args)),
            "data": self.data,
            "iterations": self.done,
            "evaluations": self.history,
            "seconds": self.seconds | {"per_iteration": self.seconds["training"] / max(1, self.done)},
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "torchvision", "numpy", "pycocotools")},
        }
        partial = self.folder / "results.json.partial"
        partial.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(partial, self.folder / "results.json")

    def _log_losses(self, losses: dict[str, float]) -> None:
        total = sum(losses.values())
        if not math.isfinite(total):
            raise FloatingPointError(f"iteration {self.done}: the loss is not finite ({losses}); try a lower --lr")
        per_iteration = self.seconds["training"] / self.done
        text = f"loss {total:.3f}, {per_iteration:.2f} s/iteration"
        self._progress.update(self._task, description=text)
        if self._progress.disable:
            self.print(f"iteration {self.done}/{self.args.iterations}: {text}")
        self.scalars({f"loss/{name}": value for name, value in losses.items()})
        self.scalars({"loss/total": total, "seconds per iteration": per_iteration})

    def _lap(self) -> float:
        now = time.perf_counter()
        passed, self._mark = now - self._mark, now
        return passed


def draw(image: Tensor, target: Target, classes: list[str]) -> Tensor:
    """An image `[3, H, W]` as uint8 with its target drawn in."""
    canvas = (image.detach().float().cpu().clamp(0, 1) * 255).to(torch.uint8)
    if not len(target["boxes"]):
        return canvas
    if "masks" in target:
        canvas = draw_segmentation_masks(canvas, target["masks"].cpu().bool(), alpha=0.3)
    names = [classes[label - 1] for label in target["labels"].tolist()]
    return draw_bounding_boxes(canvas, target["boxes"].detach().cpu(), labels=names, width=2)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    # JSON has no tuples and no paths.
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in values.items()}


def _open_tensorboard(folder: Path, hide_from: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("tensorboard is not installed, so no curves are written: pip install 'terse-aug[examples]'")
        return None
    return SummaryWriter(str(folder), purge_step=hide_from)
