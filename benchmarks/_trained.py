"""Detectors and policies that examples/torchvision trained on Penn-Fudan, for benchmarks that look at them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from torch import nn

from terse_aug import ForegroundBank
from terse_aug.bank import build_from_masks

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "torchvision"))
from detection import checkpoint, datasets, models, pasting  # noqa: E402  # the trainer's own modules


def photographs(data: Path, part: str) -> Any:
    """The Penn-Fudan photographs of a part of the split, as the trainer reads them."""
    split = json.loads((ROOT / "benchmarks" / "penn_fudan_split.json").read_text())
    return datasets.PennFudan(data, split[part])


def people(data: Path, own: Any, path: Path) -> ForegroundBank:
    """A bank of the people on photographs, made at ``path``."""
    build_from_masks(data / "PNGImages", data / "PedMasks", path, category=own.classes[0], image_list=own.names)
    return ForegroundBank.open(path)


def detector(path: Path, own: Any) -> nn.Module:
    """The detector of a checkpoint (fasterrcnn_mobilenet_v2_fpn)."""
    model: nn.Module = models.build("fasterrcnn_mobilenet_v2_fpn", own, None, None)
    restore(path, "detector", model)
    return model


def policy_settings(run: Path) -> tuple[str, dict[str, Any]]:
    """Policy and settings of ``Terse`` that a finished run was made with."""
    arguments = json.loads((run / "done.json").read_text())["arguments"]
    return arguments["policy"], pasting.settings(argparse.Namespace(terse=arguments["terse"]))


def restore(path: Path, name: str, module: nn.Module) -> None:
    """Load one part of a checkpoint."""
    checkpoint.load(path).restore({name: module}, required=(name,))
