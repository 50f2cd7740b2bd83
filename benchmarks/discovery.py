"""Cutters that are learned without masks, measured on held-out images with known foregrounds, beside baselines.

::

    python -m benchmarks.discovery --data DATA --task digits --out RUNS --seeds 0 1 2 --json digits.json

``digits``: MNIST digits cut from one photograph over another, at 32 px. ``flowers``: photographs of flowers at 64 px;
those with a trimap are held out. Each run has a folder in ``--out``, and resumes if it was stopped; a run
that is complete is only measured. With ``--settings NAME=VALUE`` the settings of the task's preset are changed;
``--without-mi`` adds runs with gamma_mi = 0. A Markdown table is printed, and written beside the JSON file.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import _discovery_baselines as baselines
from benchmarks._discovery_data import MeasuredImages, digits, flowers
from benchmarks._timing import parser, run_in_one_thread, surroundings, write_json
from terse_aug.cli.output import progress_bar
from terse_aug.discovery import PRESETS, Cutter, DiscoverySettings
from terse_aug.discovery.agreement import Agreement, MaskedImage, agreement
from terse_aug.discovery.learn import Intervals, learn_cutter
from terse_aug.discovery.run_folder import RunFolder

_PRESETS = {"digits": "cpu-32", "flowers": "cpu-64"}
_TRAIN, _TEST = 6000, 500


def main(argv: Sequence[str] | None = None) -> None:
    """Learn, measure, print, write."""
    args = _parser().parse_args(argv)
    run_in_one_thread()
    data = flowers(args.data) if args.task == "flowers" else digits(args.data, args.train, args.test)
    settings = dataclasses.replace(PRESETS[_PRESETS[args.task]], **dict(args.settings))
    args.out.mkdir(parents=True, exist_ok=True)
    rows = baseline_rows(data, settings.size)
    runs = []
    for without_mi in (False, True) if args.without_mi else (False,):
        own = dataclasses.replace(settings, gamma_mi=0.0) if without_mi else settings
        for seed in args.seeds:
            name = f"{args.task}-seed{seed}" + ("-without-mi" if without_mi else "")
            runs.append({"run": name, "seed": seed, "without_mi": without_mi, **_run(args.out / name, data, own, seed)})
    content = {
        "task": args.task,
        "settings": settings.plain(),
        "train": len(data.train),
        "test": len(data.test),
        "baselines": rows,
        "runs": runs,
        **surroundings(),
    }
    text = table(content)
    print(text)
    write_json(args.json, content)
    if args.json:
        Path(args.json).with_suffix(".md").write_text(text + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--data", type=Path, required=True, help="folder with mnist, coco_mini and flowers")
    made.add_argument("--task", choices=tuple(_PRESETS), required=True, help="what is cut out")
    made.add_argument("--out", type=Path, required=True, help="folder of the runs")
    made.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run for each")
    made.add_argument("--settings", type=_setting, nargs="*", default=[], metavar="NAME=VALUE", help="changed settings")
    made.add_argument("--without-mi", action="store_true", help="also with gamma_mi = 0")
    made.add_argument("--train", type=int, default=_TRAIN, help="digits: images to learn from")
    made.add_argument("--test", type=int, default=_TEST, help="digits: held-out images")
    return made


def _setting(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    names = {own.name for own in dataclasses.fields(DiscoverySettings)}
    if name not in names:
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, with NAME one of {', '.join(sorted(names))}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise argparse.ArgumentTypeError(f"{text}: expected a number, or (LOW, HIGH)") from error


def _run(folder: Path, data: MeasuredImages, settings: DiscoverySettings, seed: int) -> dict[str, Any]:
    start = time.perf_counter()
    with progress_bar() as show:
        cutter = learn_cutter(data.train, settings, out=folder, seed=seed, progress=show, intervals=Intervals())
    seconds = time.perf_counter() - start
    summary = RunFolder(folder).summary()
    return {
        "seconds_of_this_call": round(seconds, 1),
        "iou": measured(data, settings.size, cutter).plain(),
        "collapsed": list(cutter.collapsed),
        "health": summary["health"],
        "fingerprint": cutter.fingerprint,
    }


def measured(data: MeasuredImages, size: int, cutter: Cutter) -> Agreement:
    """Agreement of a cutter with the true masks at the size of training."""
    return agreement(cutter.cut, at_size(data, size))


def baseline_rows(data: MeasuredImages, size: int) -> dict[str, Any]:
    """Agreement of each baseline at the size of training."""
    images = at_size(data, size)
    ways: Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.bool_]]] = {
        "everything": baselines.everything,
        "best centered disk": baselines.best_disk([mask for _, mask, _ in images], [left for *_, left in images]),
        "Otsu": baselines.otsu,
        "GrabCut seeded in the center": baselines.grabcut_center,
        "border color": baselines.border_color,
    }
    return {name: agreement(way, images).plain() for name, way in ways.items()}


def at_size(data: MeasuredImages, size: int) -> list[MaskedImage]:
    """The held-out images and masks, resized."""
    return [
        (cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), _resized(mask, size), _resized(ignored, size))
        for image, mask, ignored in zip(data.test, data.masks, data.ignored, strict=True)
    ]


def _resized(mask: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    return cv2.resize(mask.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA) >= 0.5


def table(content: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["| | IoU pooled | IoU per image | health |", "|---|---|---|---|"]
    for name, row in content["baselines"].items():
        lines.append(f"| {name} | {row['pooled']:.3f} | {row['per_image']:.3f} | |")
    for run in content["runs"]:
        health = ", ".join(run["collapsed"]) or "healthy"
        lines.append(f"| {run['run']} | {run['iou']['pooled']:.3f} | {run['iou']['per_image']:.3f} | {health} |")
    for without_mi, name in ((False, "mean of the seeds"), (True, "mean of the seeds, gamma_mi = 0")):
        own = [run["iou"] for run in content["runs"] if run["without_mi"] == without_mi]
        if len(own) > 1:
            pooled, per_image = (np.array([iou[key] for iou in own]) for key in ("pooled", "per_image"))
            lines.append(
                f"| {name} | {pooled.mean():.3f} ± {pooled.std(ddof=1):.3f} | "
                f"{per_image.mean():.3f} ± {per_image.std(ddof=1):.3f} | |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
