"""How many of a trained policy's pastes does a fixed detector miss, beside random ones, and how spread out are they?

The policy comes from a run of :mod:`benchmarks.penn_fudan` with ``--keep``; the detector from another, for example one
trained without pasting, so that it is the same for all policies::

    python -m benchmarks.hardness --data PennFudanPed --part train_20 --baseline runs/train20-none-seed0 \\
        --runs runs/train20-critic-seed0 runs/train20-learned-seed0 --json F

The same cut-outs on the same photographs, placed by each policy and at random. ``--terse`` has a policy choose
otherwise than it did in its training: ``critic_temperature=0.1``, say.
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
from torch import nn

from benchmarks._trained import detector, pasting, people, photographs, policy_settings, restore
from terse_aug import ForegroundBank, Terse, probe


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    own = photographs(args.data, args.part)
    baseline = detector(args.baseline / "checkpoint.pt", own).eval()
    with tempfile.TemporaryDirectory() as folder:
        bank = people(args.data, own, Path(folder) / "people.bank")
        rows = [_row(run, baseline, own, bank, args) for run in args.runs]
    args.json.write_text(json.dumps({"baseline": str(args.baseline), "rows": rows}, indent=1) + "\n")
    _print(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with PNGImages and PedMasks")
    parser.add_argument("--part", default="train_20", help="of the split: photographs to paste on and cut from")
    parser.add_argument("--baseline", type=Path, required=True, help="folder of a run: its detector judges")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="folders of runs: their policies paste")
    parser.add_argument(
        "--terse",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings over those that the policy was trained with",
    )
    parser.add_argument("--images", type=int, default=400, help="composites of each policy")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    return parser


def _row(run: Path, baseline: nn.Module, own: Any, bank: ForegroundBank, args: argparse.Namespace) -> dict[str, Any]:
    """Figures of one policy and of random pasting with its settings."""
    name, settings = policy_settings(run)
    settings |= pasting.settings(args)
    terse = Terse(bank, name, **settings, classes=own.classes, model=baseline)
    restore(run / "checkpoint.pt", "terse", terse)
    samples = [own[number % len(own)] for number in range(args.images)]
    batches = [tuple(zip(*samples[start : start + 4], strict=True)) for start in range(0, args.images, 4)]
    row: dict[str, Any] = {"run": run.name, "policy": name, "settings": args.terse}
    for kind, policy in (("own", None), ("random", "random")):
        found = probe(terse, baseline, batches, policy)
        row[kind] = {
            "objects": len(found.scores),
            "missed share": found.missed_fraction,
            "hardness": float(1 - found.scores.mean()),
            "spread": found.std_ratios,
        }
    return row


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table("run", "missed", "missed, random", "ratio", "hardness", "random", "spread: scale", "x", "y")
    for row in rows:
        own, random = row["own"], row["random"]
        spread = own["spread"]
        table.add_row(
            row["run"],
            f"{100 * own['missed share']:.1f} %",
            f"{100 * random['missed share']:.1f} %",
            f"{own['missed share'] / max(random['missed share'], 1e-9):.2f}",
            f"{own['hardness']:.3f}",
            f"{random['hardness']:.3f}",
            *(f"{spread[name]:.2f}" for name in ("scale", "translate_x", "translate_y")),
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
