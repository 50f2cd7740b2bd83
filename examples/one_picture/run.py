"""Ten pictures of digits, one of each, and random backgrounds: how well are real digits told apart?

After Jin and Rinard, Learning From Context-Agnostic Synthetic Data (2020): a classifier is trained on composites only,
made of a single picture for each class, and tested on MNIST's test digits::

    python examples/one_picture/run.py --mnist mnist/ --out runs/one_picture --seeds 0 1 2 3 4

Goes on where it was stopped: every finished run is a JSON file in ``--out``. Needs matplotlib, whose font draws the
digits.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from terse_aug import BackgroundPool, PasteConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "affnist"))
from affnist.data import CANVAS, read_mnist
from affnist.looking import empty_canvases
from affnist.models import SmallNet, accuracy, averaged

from terse_aug import Foreground, ForegroundBank, Terse, TransformRanges
from terse_aug.bank import BankWriter
from terse_aug.models import ClassifierAdapter, class_of

CONTEXT: dict[str, Any] = {"background_probability": 1.0, "sampler": "balanced"}
SUPERIMPOSED: dict[str, Any] = {"superimpose_probability": 0.5}
ROBUST: dict[str, Any] = {
    "robust": "pgd",
    "robust_steps": 4,
    "robust_radius_objects": 8 / 255,
    "robust_radius_background": 8 / 255,
    "robust_ramp": 450,
}
ARMS: dict[str, dict[str, Any]] = {
    "on black": {},
    "random context": CONTEXT,
    "occludees": CONTEXT | SUPERIMPOSED,
    "robust": CONTEXT | ROBUST,
    "all": CONTEXT | SUPERIMPOSED | ROBUST,
}
"""Settings of :class:`Terse` by arm; radius and steps are a quarter and half of the paper's for MNIST, which costs
accuracy here. The radius grows: a classifier that hardly knows anything learns nothing under a large one."""
RANGES = TransformRanges(
    rotation=(-20.0, 20.0),
    shear=(-0.2, 0.2),
    scale=(0.8, 1.2),
    scale_x=(0.7, 1.3),
    scale_y=(0.85, 1.15),
    translate_x=(0.35, 0.65),
    translate_y=(0.35, 0.65),
)
BACKGROUNDS = 500
BATCH = 64
_DIGIT_PX = 20  # the larger side of MNIST's digits
_SIDE = 96  # of the picture that a glyph is drawn on

Job = tuple[argparse.Namespace, str, int]


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the figures."""
    args = _arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [(arm, seed) for seed in args.seeds for arm in args.arms]
    missing = [(args, *run) for run in runs if not _path(args, *run).exists()]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for _ in track(pool.map(_run, missing), "runs", total=len(missing)):
            pass
    results = [json.loads(_path(args, *run).read_text()) for run in runs]
    if stale := [run for run in results if run["settings"] != _settings(args, run["arm"])]:
        raise SystemExit(f"{args.out} has runs with other settings ({stale[0]['settings']}); choose another --out")
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    _print(results)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder with MNIST's four idx files, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and table")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument(
        "--pictures",
        choices=["font", "sample"],
        default="font",
        help="font: DejaVu Sans; sample: a training digit of each class, others for each seed",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    return parser.parse_args(argv)


def _path(args: argparse.Namespace, arm: str, seed: int) -> Path:
    path: Path = args.out / f"{args.pictures}-{arm.replace(' ', '-')}-seed{seed}.json"
    return path


def _settings(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    return {"iterations": args.iterations, "terse": ARMS[arm]}


def _run(job: Job) -> None:
    """One training in a process of its own; its figures are written to its file."""
    args, arm, seed = job
    torch.set_num_threads(1)
    test = read_mnist(args.mnist, "t10k")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.bank"
        bank = font_bank(path) if args.pictures == "font" else _sample_bank(args.mnist, seed, path)
        figures = train(bank, ARMS[arm], args.iterations, seed, (test.padded(), test.labels))
    run = {"arm": arm, "seed": seed, "pictures": args.pictures, "settings": _settings(args, arm)} | figures
    path = _path(args, arm, seed)
    path.with_suffix(".part").write_text(json.dumps(run, indent=1) + "\n")
    os.replace(path.with_suffix(".part"), path)


def train(
    bank: ForegroundBank, settings: dict[str, Any], iterations: int, seed: int, test: tuple[Tensor, Tensor]
) -> dict[str, Any]:
    """Train a small classifier on composites and measure its averaged weights.

    Args:
        bank: one picture for each class 0 to 9.
        settings: of :class:`Terse`.
        iterations: of 64 composites.
        seed: of weights, backgrounds and composites.
        test: images float ``[N, 1, CANVAS, CANVAS]`` in [0, 1], and labels.

    Returns:
        Accuracy in per cent, and seconds of processor time.
    """
    torch.manual_seed(seed)
    started = time.process_time()
    model = SmallNet().train()
    average = averaged(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    pool = random_backgrounds(BACKGROUNDS, seed) if settings.get("background_probability") else None
    terse = Terse(
        bank,
        "random",
        paste=PasteConfig(
            objects=(1, 1),
            paste_probability=1.0,
            decoys=(0, 0),
            flip_probability=0.0,
            edge_blur_sigma=0.5,
            ranges=RANGES,
        ),
        backgrounds=BackgroundPool(pool),
        **settings,
        seed=seed,
        model=ClassifierAdapter(model, 10),
    )
    for _ in range(iterations):
        images, targets = terse(*empty_canvases(CANVAS, BATCH))
        loss = F.cross_entropy(model(images), class_of(targets), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        terse.step(loss)
        average.update_parameters(model)
    return {"accuracy": accuracy(average, *test), "processor seconds": time.process_time() - started}


def random_backgrounds(count: int, seed: int) -> list[Tensor]:
    """Grey noise uint8 ``[3, CANVAS, CANVAS]``, smooth at a random scale and of random brightness and contrast."""
    generator = np.random.default_rng(seed)
    backgrounds = []
    for _ in range(count):
        cells = int(2 ** generator.uniform(0, np.log2(CANVAS)))
        noise = generator.random((cells, cells), dtype=np.float32)
        low, high = np.sort(generator.random(2))
        smooth = cv2.resize(noise, (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC).clip(0, 1)
        grey = ((low + (high - low) * smooth) * 255).round().astype(np.uint8)
        backgrounds.append(torch.from_numpy(np.repeat(grey[None], 3, axis=0)))
    return backgrounds


def font_bank(path: Path) -> ForegroundBank:
    """White digits of DejaVu Sans, which comes with matplotlib."""
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), _SIDE // 2)
    with BankWriter(path, {label: str(label) for label in range(10)}) as writer:
        for label in range(10):
            canvas = Image.new("L", (_SIDE, _SIDE))
            ImageDraw.Draw(canvas).text((_SIDE // 4, _SIDE // 8), str(label), fill=255, font=font)
            writer.add(Foreground(_white(np.asarray(canvas)), label, f"DejaVu Sans {label}", _DIGIT_PX / CANVAS))
    return ForegroundBank.open(path)


def _sample_bank(mnist: Path, seed: int, path: Path) -> ForegroundBank:
    """One training digit of each class, drawn by the seed."""
    known = read_mnist(mnist, "train")
    generator = torch.Generator().manual_seed(seed)
    with BankWriter(path, {label: str(label) for label in range(10)}) as writer:
        for label in range(10):
            rows = (known.labels == label).nonzero()[:, 0]
            row = int(rows[torch.randint(len(rows), (1,), generator=generator)])
            writer.add(Foreground(_white(known.images[row].numpy()), label, f"mnist#{row}", _DIGIT_PX / CANVAS))
    return ForegroundBank.open(path)


def _white(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White RGBA whose alpha is the ink, cropped to it."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    alpha = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rgba = np.full((*alpha.shape, 4), 255, np.uint8)
    rgba[..., 3] = alpha
    return rgba


def _print(results: Sequence[dict[str, Any]]) -> None:
    table = Table("arm", "seeds", "accuracy", "lowest", "highest", "processor seconds")
    for arm in dict.fromkeys(run["arm"] for run in results):
        own = [run for run in results if run["arm"] == arm]
        right = [run["accuracy"] for run in own]
        seconds = statistics.mean(run["processor seconds"] for run in own)
        figures = (f"{figure:.1f}" for figure in (statistics.mean(right), min(right), max(right)))
        table.add_row(arm, str(len(own)), *figures, f"{seconds:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
