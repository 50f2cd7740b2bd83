"""How much harder could pastes be, if one knew beforehand what a fixed detector makes of each?

The detector of a run of :mod:`benchmarks.penn_fudan` (``--keep``) judges several candidates for each paste, which
differ in one thing only: where they are, how they are turned and stretched, their size, or the cut-out. What an
omniscient policy could choose from them is the ceiling of what a critic can reach by choosing in the same way::

    python -m benchmarks.ceiling --data PennFudanPed --baseline runs/train20-random-seed10 --json F
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks._trained import detector, people, photographs
from terse_aug import PARAMETERS, PasteConfig, Terse
from terse_aug.models import as_model
from terse_aug.policies import Policy, PolicyContext, Proposal

WHAT_DIFFERS: dict[str, tuple[str, ...]] = {
    "place": ("translate_x", "translate_y"),
    "turn and stretch": ("rotation", "shear", "scale_x", "scale_y"),
    "all but scale": tuple(name for name in PARAMETERS if name != "scale"),
    "scale": ("scale",),
    "cut-out": (),
}
_CHUNK = 4


class Given(Policy):
    """One paste with the transform and the offer that it was told, for each image.

    Args:
        offers: cut-outs to take from.
    """

    def __init__(self, foreground_candidates: int) -> None:
        super().__init__()
        self.foreground_candidates = foreground_candidates
        self.unit = torch.zeros(len(PARAMETERS))
        self.offer = 0

    def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`."""
        count = len(scene.image_of) // self.foreground_candidates
        unit = self.unit.expand(count, -1).clone()
        return Proposal(unit, torch.zeros(count), rows=torch.arange(count) * self.foreground_candidates + self.offer)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    own = photographs(args.data, args.part)
    judge = detector(args.baseline / "checkpoint.pt", own).eval()
    with tempfile.TemporaryDirectory() as folder:
        bank = people(args.data, own, Path(folder) / "people.bank")
        terse = Terse(
            bank,
            "random",
            paste=PasteConfig(objects=(1, 1), paste_probability=1.0, decoys=(0, 0)),
            classes=own.classes,
            model=judge,
        )
        rows = {what: _row(_hardness(terse, judge, own, what, args), args.temperature) for what in WHAT_DIFFERS}
    args.json.write_text(json.dumps({"baseline": str(args.baseline), "rows": rows}, indent=1) + "\n")
    _print(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with PNGImages and PedMasks")
    parser.add_argument("--part", default="train_20", help="of the split: photographs to paste on and cut from")
    parser.add_argument("--baseline", type=Path, required=True, help="folder of a run: its detector judges")
    parser.add_argument("--pastes", type=int, default=60)
    parser.add_argument("--candidates", type=int, default=8, help="for each paste")
    parser.add_argument("--temperature", type=float, default=0.5, help="of the choice, as critic_temperature")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    return parser


def _hardness(terse: Terse, judge: torch.nn.Module, own: Any, what: str, args: argparse.Namespace) -> Tensor:
    """Hardness float ``[pastes, candidates]``; pastes of which a candidate got no label are left out."""
    names, target = WHAT_DIFFERS[what], as_model(judge)
    differing = [PARAMETERS.index(name) for name in names]
    policy = Given(foreground_candidates=1 if names else args.candidates)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(args.pastes):
        image, annotated = own[number % len(own)]
        units = torch.rand(1, len(PARAMETERS), generator=generator).repeat(args.candidates, 1)
        units[:, differing] = torch.rand(args.candidates, len(PARAMETERS), generator=generator)[:, differing]
        composites = []
        for candidate, unit in enumerate(units):
            policy.unit, policy.offer = unit, candidate % policy.foreground_candidates
            composites.append(terse.compose([image], [annotated], policy, seed=number))
        labelled = [[paste.row for paste in one.pastes[0] if paste.row is not None] for one in composites]
        if not all(labelled):
            continue
        scores: list[Tensor] = []
        for start in range(0, args.candidates, _CHUNK):
            part = composites[start : start + _CHUNK]
            scores += target.object_scores([one.images[0] for one in part], [one.targets[0] for one in part])
        rows.append(torch.stack([1 - own_scores[row[0]] for own_scores, row in zip(scores, labelled, strict=True)]))
    return torch.stack(rows).float()


def _row(hardness: Tensor, temperature: float) -> dict[str, float]:
    """Shares missed: at random, chosen by the true odds as the critic does by the foretold, and always the hardest."""
    missed = (hardness > 0.5).float()
    odds = torch.logit(hardness.clamp(1e-3, 1 - 1e-3)) / temperature
    return {
        "pastes": len(hardness),
        "missed share, random": float(missed.mean()),
        "missed share, chosen by odds": float((torch.softmax(odds, 1) * missed).sum(1).mean()),
        "missed share, hardest": float(missed.amax(1).mean()),
        "variance between candidates": float(hardness.var(1).mean() / hardness.var()),
    }


def _print(rows: dict[str, dict[str, float]]) -> None:
    table = Table("differs", "pastes", "missed: random", "chosen by odds", "hardest", "variance between candidates")
    for what, row in rows.items():
        pastes, random, chosen, hardest, variance = row.values()
        shares = (f"{100 * share:.1f} %" for share in (random, chosen, hardest))
        table.add_row(what, f"{pastes:.0f}", *shares, f"{100 * variance:.0f} %")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
