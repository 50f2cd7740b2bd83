"""Ten training images, one of each digit, and random backgrounds: how accurate is a classifier on real digits?

After Jin and Rinard, Learning From Context-Agnostic Synthetic Data (2020): a classifier is trained on composites only,
made from a single image of each class, and tested on MNIST's test digits::

    python examples/ten_images/run.py --mnist mnist/ --out runs/ten_images --seeds 0 1 2 3 4

Finished runs, a JSON file each in ``--out``, are not repeated. Needs matplotlib, whose font draws the digits.
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
from dataclasses import asdict, dataclass
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
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "affnist"))
from affnist.composites import empty_canvases
from affnist.data import CANVAS, read_mnist
from affnist.models import SmallNet, accuracy, averaged

from terse_aug import BackgroundPool, Foreground, ForegroundBank, PasteConfig, Robustness, Terse, TransformRanges
from terse_aug.bank import BankWriter
from terse_aug.models import ClassifierAdapter, class_of

ROBUSTNESS = Robustness(epsilon_object=8 / 255, epsilon_background=8 / 255, steps=4, ramp=450)
"""Epsilon is a quarter and the steps are half of the paper's for MNIST, which costs accuracy here. Epsilon grows: an
untrained classifier learns nothing under a large one."""


@dataclass(frozen=True)
class Arm:
    """What the digits are composed with.

    Attributes:
        backgrounds: whether they are pasted on random backgrounds; otherwise on black.
        occludees: whether every second digit partly covers another one.
        robustness: robustness training, or none.
    """

    backgrounds: bool = True
    occludees: bool = False
    robustness: Robustness | None = None


ARMS = {
    "on black": Arm(backgrounds=False),
    "random backgrounds": Arm(),
    "occludees": Arm(occludees=True),
    "robust": Arm(robustness=ROBUSTNESS),
    "all": Arm(occludees=True, robustness=ROBUSTNESS),
}
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
_SIDE = 96  # of the image that a glyph is drawn on

Job = tuple[argparse.Namespace, str, int]


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the results."""
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
        "--digits",
        choices=["font", "sample"],
        default="font",
        help="font: DejaVu Sans; sample: a training digit of each class, other ones for each seed",
    )
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs, one thread each")
    return parser.parse_args(argv)


def _path(args: argparse.Namespace, arm: str, seed: int) -> Path:
    path: Path = args.out / f"{args.digits}-{arm.replace(' ', '-')}-seed{seed}.json"
    return path


def _settings(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    return {"iterations": args.iterations, "arm": asdict(ARMS[arm])}


def _run(job: Job) -> None:
    """One training in a separate process; its results are written to its file."""
    args, arm, seed = job
    torch.set_num_threads(1)
    test = read_mnist(args.mnist, "t10k")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.bank"
        bank = font_bank(path) if args.digits == "font" else _sample_bank(args.mnist, seed, path)
        results = train(bank, ARMS[arm], args.iterations, seed, (test.padded(), test.labels))
    run = {"arm": arm, "seed": seed, "digits": args.digits, "settings": _settings(args, arm)} | results
    path = _path(args, arm, seed)
    path.with_suffix(".part").write_text(json.dumps(run, indent=1) + "\n")
    os.replace(path.with_suffix(".part"), path)


def train(bank: ForegroundBank, arm: Arm, iterations: int, seed: int, test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Train a small classifier on composites and evaluate its averaged weights.

    The test images are float ``[N, 1, CANVAS, CANVAS]`` in [0, 1], with their labels.

    Returns:
        Accuracy in per cent, and CPU seconds.
    """
    torch.manual_seed(seed)
    started = time.process_time()
    model = SmallNet().train()
    average = averaged(model)
    optimizer = torch.optim.Adam(model.parameters(), 0.001)
    terse = make_terse(bank, arm, model, seed)
    for _ in range(iterations):
        images, targets = terse(*empty_canvases(CANVAS, BATCH))
        loss = F.cross_entropy(model(images), class_of(targets), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        terse.step(loss)
        average.update_parameters(model)
    return {"accuracy": accuracy(average, *test), "CPU seconds": time.process_time() - started}


def make_terse(bank: ForegroundBank, arm: Arm, model: nn.Module, seed: int) -> Terse:
    """The pasting of an arm: one digit on each black canvas."""
    paste = PasteConfig(
        objects=(1, 1),
        paste_probability=1.0,
        flip_probability=0.0,
        decoys=(0, 0),
        occluded_object_probability=0.5 if arm.occludees else 0.0,
        edge_blur_sigma=0.5,
        ranges=RANGES,
    )
    # Digits and backgrounds are paired by random biregular graphs.
    backgrounds = BackgroundPool(random_backgrounds(BACKGROUNDS, seed), probability=1.0) if arm.backgrounds else None
    return Terse(
        bank,
        model=ClassifierAdapter(model, 10),
        seed=seed,
        paste=paste,
        sampler="balanced" if arm.backgrounds else "uniform",
        backgrounds=backgrounds,
        robustness=arm.robustness,
    )


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
    digits = read_mnist(mnist, "train")
    generator = torch.Generator().manual_seed(seed)
    with BankWriter(path, {label: str(label) for label in range(10)}) as writer:
        for label in range(10):
            rows = (digits.labels == label).nonzero()[:, 0]
            row = int(rows[torch.randint(len(rows), (1,), generator=generator)])
            writer.add(Foreground(_white(digits.images[row].numpy()), label, f"mnist#{row}", _DIGIT_PX / CANVAS))
    return ForegroundBank.open(path)


def _white(ink: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White RGBA whose alpha is the ink, cropped to it."""
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    alpha = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rgba = np.full((*alpha.shape, 4), 255, np.uint8)
    rgba[..., 3] = alpha
    return rgba


def _print(results: Sequence[dict[str, Any]]) -> None:
    table = Table("arm", "seeds", "accuracy", "lowest", "highest", "CPU seconds")
    for arm in dict.fromkeys(run["arm"] for run in results):
        own = [run for run in results if run["arm"] == arm]
        accuracies = [run["accuracy"] for run in own]
        seconds = statistics.mean(run["CPU seconds"] for run in own)
        cells = (f"{value:.1f}" for value in (statistics.mean(accuracies), min(accuracies), max(accuracies)))
        table.add_row(arm, str(len(own)), *cells, f"{seconds:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
