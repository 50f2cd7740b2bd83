"""By how much do perturbations of composites raise the loss of a trained detector, within the same radii?

Random signs, the universal pattern of ``robust="universal"`` after some iterations, the gradient's sign at the image
before (what would be carried over from batch to batch), and the gradient steps of ``robust="pgd"``::

    python -m benchmarks.robustness --data PennFudanPed --checkpoint runs/train20-none-seed0/checkpoint.pt --json F

The detector (fasterrcnn_mobilenet_v2_fpn, of examples/torchvision's trainers) stays as it is. The pattern is learned on
the photographs it was trained on, the losses are those of composites of others, with the same sampling of proposals.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from benchmarks._timing import show, surroundings, write_json
from benchmarks._trained import detector, people, photographs
from terse_aug import Composites, ForegroundBank, Terse
from terse_aug._perturbation import Room, foreground_map
from terse_aug._random import generator_for
from terse_aug.targets import TorchvisionDetector

_STEPS = (1, 3, 8)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    learned_on = photographs(args.data, "train_20")
    target = TorchvisionDetector(detector(args.checkpoint, learned_on))
    with tempfile.TemporaryDirectory() as folder:
        bank = people(args.data, learned_on, Path(folder) / "people.bank")
        losses = _losses(target, bank, learned_on, photographs(args.data, "test"), args)
    _report(losses, args)


def _losses(
    target: TorchvisionDetector, bank: ForegroundBank, learned_on: Any, others: Any, args: argparse.Namespace
) -> dict[str, list[float]]:
    """By arm the loss of each composite."""
    settings: dict[str, Any] = {
        "classes": learned_on.classes,
        "target": target,
        "robust_radius_objects": args.objects / 255,
        "robust_radius_background": args.background / 255,
    }
    universal = Terse(bank, "random", robust="universal", **settings)
    for number in track(range(args.iterations), "pattern"):
        samples = [learned_on[(4 * number + place) % len(learned_on)] for place in range(4)]
        images, targets = universal(*map(list, zip(*samples, strict=True)))
        # The detector's gradient without its parameters' and its statistics'.
        loss = target.image_losses(images, targets, differentiable=True).sum()
        torch.autograd.backward(loss)
        universal.step(loss)
    gradient_steps = {
        f"pgd, {steps}": Terse(bank, "random", robust="pgd", robust_steps=steps, **settings) for steps in _STEPS
    }
    losses: dict[str, list[float]] = {}
    carried = torch.zeros(3, 1, 1)
    for number in track(range(args.images), "composites"):
        image, annotation = others[number % len(others)]
        composites = universal.compose([image], [annotation], "random", seed=number)
        room = _room(universal, composites)
        signs = torch.rand(room.centre.shape, generator=generator_for(0, "signs", number)) - 0.5
        size = room.centre.shape[-2:]
        arms = {
            "none": room.centre,
            "random signs": room.moved(room.centre, signs.sign()),
            "of the image before": room.moved(room.centre, F.interpolate(carried[None], size)[0].sign()),
        }
        for name, terse in {"universal": universal, **gradient_steps}.items():
            assert terse.robustness is not None
            arms[name] = terse.robustness.perturbed(composites, [True], 0, number).images[0].detach()
        for name, perturbed in arms.items():
            losses.setdefault(name, []).append(float(target.image_losses([perturbed], composites.targets)))
        carried = arms["pgd, 1"] - room.centre
    return losses


def _room(terse: Terse, composites: Composites) -> Room:
    (image,), (target,), (pastes,), (shown,) = (
        composites.images,
        composites.targets,
        composites.pastes,
        composites.shown,
    )
    where = foreground_map(image, target, pastes, shown)
    radius: Tensor = torch.where(where, terse.config.robust_radius_objects, terse.config.robust_radius_background)
    return Room.around(image, radius, terse.pixels)


def _report(losses: Mapping[str, Sequence[float]], args: argparse.Namespace) -> None:
    none = torch.tensor(losses["none"])
    rows, figures = [], {}
    for name, values in losses.items():
        own = torch.tensor(values)
        rise = own - none
        error = float(rise.std() / len(rise) ** 0.5)
        figures[name] = {"loss": float(own.mean()), "rise": float(rise.mean()), "standard_error": error}
        rows.append(
            (name, f"{own.mean():.3f}", f"{rise.mean():+.3f} ± {error:.3f}", f"{(rise > 0).float().mean():.0%}")
        )
    title = f"{args.images} composites, radius {args.objects:g}/255 on objects, {args.background:g}/255 elsewhere"
    show(title, ("", "loss", "rise", "raised"), rows)
    settings = {name: value for name, value in vars(args).items() if isinstance(value, int | float)}
    write_json(args.json, {"figures": figures, "settings": settings} | surroundings())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with PNGImages and PedMasks")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a detector trained by the example")
    parser.add_argument("--images", type=int, default=20, help="composites (default 20)")
    parser.add_argument("--iterations", type=int, default=60, help="of four images to learn the pattern (default 60)")
    parser.add_argument("--objects", type=float, default=4, help="radius on objects, levels of 255 (default 4)")
    parser.add_argument("--background", type=float, default=8, help="radius elsewhere, levels of 255 (default 8)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="F", help="write the figures there")
    return parser


if __name__ == "__main__":
    main()
