"""Does the gradient that reaches the policy through the image point where the detector's loss really grows?

For single pastes on Penn-Fudan photographs, dLoss/d(parameter) from one backward beside the central difference of the
loss when the paste is really moved, labels and all::

    python -m benchmarks.gradient_quality --data shared/data/penn_fudan --checkpoint runs/random/checkpoint.pt --json F

The checkpoint is one of examples/torchvision's trainers (fasterrcnn_mobilenet_v2_fpn). The detector's own sampling of
proposals is the same in all passes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from benchmarks._trained import detector, people, photographs
from terse_aug import PARAMETERS, ForegroundBank, PasteConfig, Terse
from terse_aug.bank import Foreground
from terse_aug.compositing.compose import compose
from terse_aug.compositing.plan import PastePlan, plan_pastes
from terse_aug.data.foreground_cache import ForegroundCache
from terse_aug.samplers import ForegroundIndex, UniformSampler
from terse_aug.utils.random import generator_for, isolated_global_rng

STEPS = (0.02, 0.1)
"""Half widths of the central differences, in the unit cube."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(1)
    own = photographs(args.data, "train_60")
    model = detector(args.checkpoint, own).train()
    with tempfile.TemporaryDirectory() as folder:
        rows = _measure(model, own, people(args.data, own, Path(folder) / "people.bank"), args)
    figures = _figures(np.array(rows))
    args.json.write_text(json.dumps({"pastes": len(rows) // len(PARAMETERS), "figures": figures}, indent=1) + "\n")
    _print(figures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with PNGImages and PedMasks")
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a detector trained by the example")
    parser.add_argument("--count", type=int, default=100, help="pastes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    return parser


def _measure(model: nn.Module, own: Any, bank: ForegroundBank, args: argparse.Namespace) -> list[list[float]]:
    """Rows of (parameter, gradient, difference for each step)."""
    terse = Terse(
        bank,
        "random",
        paste=PasteConfig(objects=(1, 1), paste_probability=1.0, decoys=(0, 0)),
        seed=args.seed,
        classes=own.classes,
    )
    rows: list[list[float]] = []
    for number in track(range(args.count), "pastes"):
        image, target = own[number % len(own)]
        generator = generator_for(args.seed, "gradient quality", number)
        sampler, shelf = UniformSampler(), ForegroundCache(terse.bank)
        sampler.bind(ForegroundIndex(terse.bank.labels), 0)
        offered = plan_pastes(shelf, [True], terse.config, generator, sampler, terse.policy)
        # Away from the borders of the cube, so that both ends of every difference lie in it.
        unit = torch.rand(1, len(PARAMETERS), generator=generator) * 0.8 + 0.1
        rows += _paste_rows(model, terse, offered.taken(shelf), [image], [target], unit)
    return rows


def _paste_rows(
    model: nn.Module,
    terse: Terse,
    layout: PastePlan[Foreground],
    images: list[Tensor],
    targets: list[Any],
    unit: Tensor,
) -> list[list[float]]:
    surface = terse.pasting.surface(images)

    def loss(point: Tensor) -> Tensor:
        composites = compose(images, targets, layout, point, surface)
        with isolated_global_rng(0):
            losses = model(composites.images, [_fields(target) for target in composites.targets])
        return torch.stack(list(losses.values())).sum()

    point = unit.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(point), point)
    rows = []
    with torch.no_grad():
        for column in range(len(PARAMETERS)):
            differences = []
            for step in STEPS:
                shift = torch.zeros_like(unit)
                shift[0, column] = step
                differences.append(float(loss(unit + shift) - loss(unit - shift)) / (2 * step))
            rows.append([column, float(gradient[0, column]), *differences])
    return rows


def _fields(target: dict[str, Any]) -> dict[str, Any]:
    return {name: target[name] for name in ("boxes", "labels")}


def _figures(rows: np.ndarray) -> list[dict[str, Any]]:
    """Correlation and agreement in sign of gradient and difference, by parameter."""
    figures = []
    for column, name in enumerate(PARAMETERS):
        own = rows[rows[:, 0] == column]
        entry: dict[str, Any] = {"parameter": name, "gradient deviation": float(own[:, 1].std())}
        for position, step in enumerate(STEPS, start=2):
            entry[f"difference {step}"] = {
                "deviation": float(own[:, position].std()),
                "correlation": float(np.corrcoef(own[:, 1], own[:, position])[0, 1]),
                "same sign": float(np.mean(np.sign(own[:, 1]) == np.sign(own[:, position]))),
            }
        figures.append(entry)
    return figures


def _print(figures: Sequence[dict[str, Any]]) -> None:
    table = Table("parameter", "std of gradient", *(f"{what} at {step}" for step in STEPS for what in _COLUMNS))
    for entry in figures:
        cells = [f"{entry[f'difference {step}'][what]:.2f}" for step in STEPS for what in _COLUMNS]
        table.add_row(entry["parameter"], f"{entry['gradient deviation']:.2f}", *cells)
    Console(width=140).print(table)


_COLUMNS = ("deviation", "correlation", "same sign")


if __name__ == "__main__":
    main()
