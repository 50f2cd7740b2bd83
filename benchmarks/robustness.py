"""What perturbations do to a detector's loss, and what training on them does for the detector.

``python -m benchmarks.robustness --json F [--iterations 400] [--seed 0]``

The demo's detector (Faster R-CNN on five convolutions, handwriting on photographs; nothing is downloaded) is trained
with random pasting and ``robust`` none, universal and pgd; then it is measured on test images as they are and after
eight gradient steps.
On the one that was trained without, perturbations of the same radii are compared: random signs, the perturbation of
another image (what would be carried over from batch to batch), the universal pattern learned with frozen weights on the
training images, gradient steps.
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
from torch import Tensor, nn

from benchmarks._timing import show, surroundings, write_json
from terse_aug import ForegroundBank, PasteConfig, Robustness, Terse
from terse_aug.models import TorchvisionAdapter
from terse_aug.training.perturbation import PerturbationBall, foreground_map
from terse_aug.utils.random import generator_for

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples" / "demo"))
from terse_demo import data, training  # noqa: E402  # the demo's own modules
from terse_demo.detector import build_detector  # noqa: E402
from terse_demo.measurement import Evaluator  # noqa: E402

_ARMS = ("none", "universal", "pgd")
_ATTACK: dict[str, Any] = {"robust": "pgd", "robust_steps": 8}


class _Attacked:
    """Test images, and what becomes of them."""

    def __init__(self, bank: ForegroundBank, images: int) -> None:
        whole = data.test_images(images)
        self._bank, self._evaluator = bank, Evaluator(whole)
        samples = [image.tensors() for image in whole]
        self.images, self.targets = [image for image, _ in samples], [target for _, target in samples]

    def perturbed(self, terse: Terse) -> list[Tensor]:
        """By what ``terse`` does to images that nothing is pasted on."""
        assert terse.robustness is not None
        composites = terse.compose(self.images, self.targets)
        made = terse.robustness.perturbed(composites, [True] * len(self.images), 0, 0)
        return [image.detach() for image in made.images]

    def bare(self, target: TorchvisionAdapter, **settings: Any) -> Terse:
        """A ``Terse`` that pastes nothing."""
        chosen: dict[str, Any] = {"objects": (0, 0), "decoys": (0, 0), "classes": data.CLASSES} | settings
        return Terse(self._bank, "random", **chosen, model=target)

    def figures(self, target: TorchvisionAdapter, images: Sequence[Tensor]) -> dict[str, float]:
        """Mean loss and average precision."""
        self._evaluator._images = list(images)
        loss = float(target.image_losses(images, self.targets).mean())
        return {"loss": loss, "AP": self._evaluator.measure(target.model)["AP"]}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, print, write."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    settings = training.Settings(seed=args.seed, iterations=args.iterations)
    trained, perturbations = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        annotations = data.save_coco(data.training_images(settings.train_images), path / "train")
        data.build_bank(annotations, path / "train", path / "digits.bank")
        bank = ForegroundBank.open(path / "digits.bank")
        tests = _Attacked(bank, args.images)
        for arm in _ARMS:
            detector, seconds = _train(arm, settings, bank)
            target = TorchvisionAdapter(detector)
            attacked = tests.perturbed(tests.bare(target, **_ATTACK))
            clean, worst = tests.figures(target, tests.images), tests.figures(target, attacked)
            trained[arm] = {"clean": clean, "attacked": worst, "processor seconds per iteration": seconds}
            if arm == "none":
                perturbations = _perturbations(target, tests, settings)
                rows = [(name, f"{own['loss']:.3f}", f"{own['AP']:.1f}") for name, own in perturbations.items()]
                show("trained without, by perturbation of the test images", ("", "loss", "AP"), rows)
    _report(trained, perturbations, args)


def _train(robust: str, settings: training.Settings, bank: ForegroundBank) -> tuple[nn.Module, float]:
    """A detector trained as the demo does, and processor seconds of an iteration."""
    samples = [image.tensors() for image in data.training_images(settings.train_images)]
    detector = build_detector(len(data.CLASSES), data.SIZE, settings.seed).train()
    optimizer = torch.optim.AdamW(detector.parameters(), training.LEARNING_RATE, weight_decay=training.WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: training.rate_factor(done, settings.iterations)
    )
    terse = Terse(
        bank,
        "random",
        paste=PasteConfig(ranges=training.RANGES, flip_probability=0.0),
        robustness=Robustness(XXX_robust=robust),
        seed=settings.seed,
        classes=data.CLASSES,
        model=detector,
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


def _perturbations(target: TorchvisionAdapter, tests: _Attacked, settings: training.Settings) -> dict[str, Any]:
    """Loss and average precision by perturbation."""
    images: dict[str, list[Tensor]] = {"nothing": tests.images}
    plain = tests.bare(target)
    composites = plain.compose(tests.images, tests.targets)
    rooms = []
    for image, annotation in zip(composites.images, tests.targets, strict=True):
        where = foreground_map(image, annotation, [], [])
        radius = torch.where(where, plain.config.robust_radius_objects, plain.config.robust_radius_background)
        rooms.append(PerturbationBall.around(image, radius, plain.pixels))
    generator = generator_for(0, "signs")
    signs = [(torch.rand(room.centre.shape, generator=generator) - 0.5).sign() for room in rooms]
    images["random signs"] = [room.moved(room.centre, own) for room, own in zip(rooms, signs, strict=True)]
    for steps in (1, 3, 8):
        images[f"pgd, {steps}"] = tests.perturbed(tests.bare(target, robust="pgd", robust_steps=steps))
    shifts = [(new - room.centre).sign() for new, room in zip(images["pgd, 1"], rooms, strict=True)]
    images["of another image"] = [
        room.moved(room.centre, own) for room, own in zip(rooms, shifts[1:] + shifts[:1], strict=True)
    ]
    universal = tests.bare(target, robust="universal")
    samples = [image.tensors() for image in data.training_images(settings.train_images)]
    for turn, (batch, targets) in enumerate(training.batches(samples, settings)):
        if turn == 60:
            break
        loss = target.image_losses(*universal(batch, targets), differentiable=True).mean()
        loss.backward()
        universal.step(loss)
    target.model.zero_grad()
    images["universal, 60 iterations"] = tests.perturbed(universal)
    return {name: tests.figures(target, own) for name, own in images.items()}


def _report(trained: dict[str, Any], perturbations: dict[str, Any], args: argparse.Namespace) -> None:
    columns = ("robust", "loss", "AP", "loss, attacked", "AP, attacked", "processor ms per iteration")
    lines = [
        (
            arm,
            *(f"{own[kind][name]:.{2 - (name == 'AP')}f}" for kind in ("clean", "attacked") for name in ("loss", "AP")),
            f"{1e3 * own['processor seconds per iteration']:.0f}",
        )
        for arm, own in trained.items()
    ]
    show(f"{args.iterations} iterations, seed {args.seed}", columns, lines)
    options = {"iterations": args.iterations, "seed": args.seed, "images": args.images}
    write_json(args.json, {"trained": trained, "perturbations": perturbations} | options | surroundings())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=400, help="of each training (default 400)")
    parser.add_argument("--images", type=int, default=60, help="to test on (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="F", help="write the figures there")
    return parser


if __name__ == "__main__":
    main()
