"""What robustness training does to a small detector: its AP on clean and on attacked images, and its cost.

``python -m benchmarks.robustness [--iterations 400] [--images 60] [--json F]``

The detector and the data of the demo, trained with and without robustness training from the same weights on the same
batches. The attack is eight steps of projected gradient descent against the trained detector.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks._timing import parser, show, surroundings, write_json
from terse_aug import ForegroundBank, PasteConfig, Robustness, Terse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "demo"))
from terse_demo import data, training  # noqa: E402  # the demo's own modules
from terse_demo.detector import build_detector  # noqa: E402
from terse_demo.measurement import Evaluator  # noqa: E402

ARMS = {"none": None, "pgd": Robustness()}
ATTACK = Robustness(steps=8)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, print, write."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    settings = training.Settings(seed=args.seed, iterations=args.iterations)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        annotations = data.save_coco(data.training_images(settings.train_images), path / "train")
        data.build_bank(annotations, path / "train", path / "digits.bank")
        bank = ForegroundBank.open(path / "digits.bank")
        evaluator = Evaluator(data.test_images(args.images))
        rows = {}
        for arm, robustness in ARMS.items():
            detector, seconds = _train(robustness, settings, bank)
            rows[arm] = {
                "AP": evaluator.measure(detector)["AP"],
                "AP, attacked": _attacked(evaluator, detector, bank).measure(detector)["AP"],
                "CPU ms per iteration": 1e3 * seconds,
            }
    title = f"{args.iterations} iterations, seed {args.seed}"
    columns = ("robustness training", *rows["none"])
    show(title, columns, [(arm, *(f"{value:.1f}" for value in row.values())) for arm, row in rows.items()])
    options = {"iterations": args.iterations, "seed": args.seed, "images": args.images}
    write_json(args.json, {"rows": rows} | options | surroundings())


def _train(robustness: Robustness | None, settings: training.Settings, bank: ForegroundBank) -> tuple[nn.Module, float]:
    """A detector trained as in the demo, and CPU seconds per iteration."""
    samples = [image.tensors() for image in data.training_images(settings.train_images)]
    detector = build_detector(len(data.CLASSES), data.SIZE, settings.seed).train()
    optimizer = torch.optim.AdamW(detector.parameters(), training.LEARNING_RATE, weight_decay=training.WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: training.rate_factor(done, settings.iterations)
    )
    terse = Terse(
        bank,
        model=detector,
        classes=data.CLASSES,
        seed=settings.seed,
        paste=PasteConfig(ranges=training.RANGES, flip_probability=0.0),
        robustness=robustness,
    )
    started = time.process_time()
    for iteration, (images, targets) in enumerate(training.batches(samples, settings), 1):
        torch.manual_seed(settings.seed * 1_000_003 + iteration)
        losses = detector(*terse(images, targets))
        sum(losses.values()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        terse.step(losses)
    return detector, (time.process_time() - started) / settings.iterations


def _attacked(evaluator: Evaluator, detector: nn.Module, bank: ForegroundBank) -> Evaluator:
    """The same test images, perturbed against a detector; nothing is pasted on them."""
    nothing = PasteConfig(objects=(0, 0), decoys=(0, 0))
    attack = Terse(bank, model=detector, classes=data.CLASSES, paste=nothing, robustness=ATTACK)
    images: list[Any] = []
    for image, target in zip(evaluator.images, evaluator.targets, strict=True):
        images += [one.detach() for one in attack([image], [target])[0]]
    return evaluator.with_images(images)


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--iterations", type=int, default=400, help="of each training")
    made.add_argument("--images", type=int, default=60, help="to test on")
    made.add_argument("--seed", type=int, default=0, help="of weights, batches and pastes")
    made.add_argument("--threads", type=int, default=1, help="torch's threads")
    return made


if __name__ == "__main__":
    main()
