"""The results of a run as one JSON document, with versions and machine."""

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import terse_aug
from terse_aug.bank import BuildReport
from terse_demo.data import CLASSES, SIZE, TEST_PLACING, TRAIN_PLACING, LabelledImage
from terse_demo.digits import TEST_PHOTOGRAPHS, TRAIN_PHOTOGRAPHS
from terse_demo.training import LEARNING_RATE, RANGES, WEIGHT_DECAY, ArmResult, Measurement, Settings

Results = dict[str, Any]

_PACKAGES = ("torch", "torchvision", "numpy", "opencv-python", "scikit-image", "scikit-learn", "pycocotools")


def collect(
    settings: Settings,
    train: Sequence[LabelledImage],
    test: Sequence[LabelledImage],
    built: BuildReport,
    arms: Mapping[str, ArmResult],
    seconds: float,
) -> Results:
    """All results of a run. What depends on the machine's speed is under ``seconds`` and nowhere else."""
    return {
        "settings": dataclasses.asdict(settings)
        | {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "ranges": dataclasses.asdict(RANGES)},
        "data": {
            "classes": list(CLASSES),
            "side": SIZE,
            "train": _part(train, TRAIN_PHOTOGRAPHS, TRAIN_PLACING),
            "test": _part(test, TEST_PHOTOGRAPHS, TEST_PLACING),
            "foregrounds": built.kept,
        },
        "arms": {name: _arm_results(arm) for name, arm in arms.items()},
        "versions": {"terse-aug": terse_aug.__version__, "python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "machine": {"cores": _cores(), "processor": _processor(), "system": platform.platform()},
        "seconds": {"run": seconds, "arms": {name: arm.seconds for name, arm in arms.items()}},
    }


def final(results: Results, arm: str, name: str = "AP") -> float:
    """A figure of average precision of an arm at the end, per cent."""
    return float(results["arms"][arm]["measurements"][-1]["average_precision"][name])


def diversity(results: Results, arm: str) -> float:
    """Mean std ratio of the transform parameters at the end: 1 as diverse as random, 0 collapsed."""
    std_ratios = results["arms"][arm]["measurements"][-1]["std_ratio"]
    return sum(std_ratios.values()) / len(std_ratios)


def cost(results: Results, arm: str) -> float:
    """CPU seconds per iteration."""
    return float(results["seconds"]["arms"][arm]["cpu_per_iteration"])


def write_atomically(path: Path, text: str) -> None:
    """Replace a file only when its new content is complete on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def as_json(results: Results) -> str:
    """The document; numbers that are not finite are an error, not NaN, which JSON lacks."""
    return json.dumps(results, indent=2, allow_nan=False) + "\n"


def _part(images: Sequence[LabelledImage], photographs: Sequence[str], placing: Any) -> dict[str, Any]:
    return {
        "images": len(images),
        "objects": sum(len(image.labels) for image in images),
        "photographs": list(photographs),
        "placing": dataclasses.asdict(placing),
    }


def _arm_results(arm: ArmResult) -> dict[str, Any]:
    measurements: list[Measurement] = arm.measurements
    return {"measurements": [dataclasses.asdict(one) for one in measurements], "metrics": arm.metrics}


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """Name of the processor, if the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
