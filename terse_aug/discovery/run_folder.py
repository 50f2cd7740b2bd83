"""The folder of a training: checkpoint, metrics, layers as training goes on, and the cutter."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from terse_aug.discovery.generator import Layers
from terse_aug.discovery.weights_file import load_weights_file, save_weights_file
from terse_aug.utils.files import write_whole
from terse_aug.utils.packages import optional_module
from terse_aug.utils.warnings import TerseWarning

_KIND, _VERSION = "terse-aug cutter checkpoint", 1
CHECKPOINT, METRICS, CUTTER, SUMMARY = "checkpoint.pt", "metrics.jsonl", "cutter.pt", "run.json"
SHOWN = 10
"""Columns of a picture of layers."""
_LAYERS = re.compile(r"layers-(\d{7,})\.png")


class RunFolder:
    """Writes what a training leaves behind, and reads it for resuming and reports.

    Args:
        path: of the folder.

    Raises:
        ValueError: the parent does not exist, or ``path`` is a file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise ValueError(f"there is no folder {self.path.parent} for a run in {self.path}")
        if self.path.is_file():
            raise ValueError(f"{self.path}: expected a folder for a run, found a file")
        self._writer: Any = None
        self._unlogged = False

    def load_checkpoint(self, run: Mapping[str, Any]) -> dict[str, Any] | None:
        """State of the last checkpoint, whose later metrics are removed; ``None`` in a new or empty folder.

        A folder with a checkpoint is that of a run, and its files are replaced. The folder is made if there is none.

        Args:
            run: plain values that have to be those of the checkpoint: settings, seed, images.

        Raises:
            ValueError: the checkpoint is damaged, or of another run; the message names the difference. Or there is
                none, and the folder holds other files.
        """
        self.path.mkdir(exist_ok=True)
        path = self.path / CHECKPOINT
        if not path.exists():
            if others := [own.name for own in self.path.iterdir() if not own.name.startswith(".")]:
                raise ValueError(
                    f"{self.path} holds other files, such as {min(others)}, and no {CHECKPOINT}; "
                    "give a new or empty folder"
                )
            return None
        content = load_weights_file(path, _KIND, _VERSION)
        changed = [name for name, value in run.items() if content["run"].get(name) != value]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{path}: a checkpoint of another run: {name} was {content['run'].get(name)!r}, not {run[name]!r}; "
                "resume with the same settings, or give a new folder"
            )
        state: dict[str, Any] = content["state"]
        kept = [line for line in self.metrics() if line["step"] <= state["done"]]
        write_whole(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        return state

    def save_checkpoint(self, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Write a checkpoint, whole or not at all."""
        save_weights_file(self.path / CHECKPOINT, _KIND, _VERSION, {"run": dict(run), "state": dict(state)})

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a line of metrics, here and to TensorBoard's log; where that cannot be written, it is warned about."""
        with open(self.path / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self._log(step, "add_scalar", name, value, step)

    def add_layers(self, step: int, layers: Layers) -> None:
        """Write a picture of generated layers: composites, foregrounds, masks, backgrounds, one row for each."""
        rows = (layers.composite, layers.foreground * layers.mask - (1 - layers.mask), layers.mask * 2 - 1)
        sheet = np.concatenate([_row(own) for own in (*rows, layers.background)])
        file = io.BytesIO()
        Image.fromarray(sheet).save(file, "PNG")
        write_whole(self.path / f"layers-{step:07d}.png", file.getvalue())
        self._log(step, "add_image", "layers", sheet, step, dataformats="HWC")

    def layer_files(self) -> list[tuple[int, Path]]:
        """Number of the step and file of the pictures of layers, ascending."""
        found = [(_LAYERS.fullmatch(path.name), path) for path in self.path.glob("layers-*.png")]
        return sorted((int(name[1]), path) for name, path in found if name)

    def metrics(self) -> list[dict[str, float]]:
        """All lines of metrics that are whole."""
        path, lines = self.path / METRICS, []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:  # the last line of a run that was killed
                break
        return lines

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write what the report shows besides metrics."""
        write_whole(self.path / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())

    def summary(self) -> dict[str, Any]:
        """What :meth:`write_summary` wrote.

        Raises:
            ValueError: there is none.
        """
        try:
            content: dict[str, Any] = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path}: expected the folder of a run of learn cutter, with {SUMMARY}") from error
        return content

    def close(self) -> None:
        """Close TensorBoard's log."""
        if self._writer is not None:
            with suppress(Exception):  # of a log that is already damaged
                self._writer.close()
            self._writer = None

    def _log(self, step: int, method: str, *values: Any, **options: Any) -> None:
        """Write to TensorBoard's log; what goes wrong there is warned about once, and the training goes on."""
        if self._unlogged:
            return
        try:
            if self._writer is None:
                tensorboard = optional_module("torch.utils.tensorboard", "learn")
                # What an interrupted run logged after its checkpoint is hidden.
                self._writer = tensorboard.SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            getattr(self._writer, method)(*values, **options)
        except Exception as error:
            self._unlogged = True
            warnings.warn(f"nothing more is logged to TensorBoard: {error}", TerseWarning, stacklevel=2)


def _row(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    pixels = ((images[:SHOWN].cpu() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1)
    return np.concatenate(list(pixels.expand(-1, -1, -1, 3).numpy()), axis=1)
