"""AP on Penn-Fudan with few training images: none, random, hard-random and learned pasting, paired by seed.

Runs the trainers of examples/torchvision, some at a time, and goes on where it was stopped::

    python -m benchmarks.penn_fudan --data shared/data/penn_fudan --weights mobilenet_v2.pth --out runs/penn_fudan

Arms of the same seed share initial weights, order of images and mirroring.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
ARMS = ("none", "random", "hard-random", "learned", "critic")
FIGURES = ("AP", "AP50", "AP75")


@dataclass(frozen=True)
class Run:
    """One training: how many images, which arm, which seed."""

    images: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"train{self.images}-{self.arm}-seed{self.seed}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the figures."""
    args = _parser().parse_args(argv)
    runs = [Run(images, arm, seed) for seed in args.seeds for images in args.train for arm in args.arms]
    missing = [run for run in runs if not (args.out / run.name / "done.json").exists()]
    for run in set(runs) - set(missing):
        _check_same(run, args)
    if not args.report:
        args.out.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(args.jobs) as pool:
            for run, code in zip(missing, pool.map(lambda run: _train(run, args), missing), strict=True):
                if code:
                    raise SystemExit(f"{run.name} failed with exit code {code}; see {args.out / run.name}.log")
    results = {run: _read(args.out / run.name) for run in runs if (args.out / run.name / "done.json").exists()}
    summary = [row for images in args.train for row in _summarise(images, args.arms, results)]
    text = json.dumps({"runs": {run.name: result for run, result in results.items()}, "summary": summary}, indent=1)
    (args.out / "summary.json").write_text(text + "\n")
    _print(summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with PNGImages and PedMasks")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of MobileNetV2")
    parser.add_argument("--out", type=Path, required=True, help="folder for all runs and summary.json")
    parser.add_argument("--train", type=int, nargs="+", default=[20, 60], help="numbers of training images")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--amp", action="store_true", help="mixed precision, in all arms")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--terse", nargs="+", default=[], metavar="NAME=VALUE", help="settings of TerseConfig")
    parser.add_argument("--keep", action="store_true", help="keep every run's checkpoint, 85 MB each")
    parser.add_argument("--report", action="store_true", help="only read the runs that are there")
    return parser


def _train(run: Run, args: argparse.Namespace) -> int:
    """Run one training as a process of its own; its output goes to a log beside its folder."""
    folder = args.out / run.name
    script = "train.py" if run.arm == "none" else "train_with_terse.py"
    command = [sys.executable, str(ROOT / "examples" / "torchvision" / script)]
    command += ["--penn-fudan", str(args.data), "--weights", str(args.weights)]
    command += ["--split", str(ROOT / "benchmarks" / "penn_fudan_split.json"), "--train-part", f"train_{run.images}"]
    command += ["--iterations", str(args.iterations), "--seed", str(run.seed), "--threads", "1"]
    command += ["--out", str(folder), "--device", args.device, *(["--amp"] if args.amp else [])]
    if run.arm != "none":
        command += ["--policy", run.arm, *(["--terse", *args.terse] if args.terse else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with open(f"{folder}.log", "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode
    if code == 0:
        os.replace(folder / "results.json", folder / "done.json")
        if not args.keep:
            (folder / "checkpoint.pt").unlink(missing_ok=True)
    return code


def _check_same(run: Run, args: argparse.Namespace) -> None:
    """Refuse to mix a finished run with ones of other settings."""
    done = json.loads((args.out / run.name / "done.json").read_text())["arguments"]
    wanted = {"iterations": args.iterations, "amp": args.amp} | (
        {"terse": list(args.terse)} if run.arm != "none" else {}
    )
    for name, value in wanted.items():
        if done[name] != value:
            raise SystemExit(f"{run.name} was run with {name} {done[name]}, not {value}; choose another --out")


def _read(folder: Path) -> dict[str, Any]:
    """The figures of a finished run."""
    results = json.loads((folder / "done.json").read_text())
    last = results["evaluations"][-1]
    figures = {name: last["box"][name] for name in FIGURES}
    for kind in ("composites", "random composites"):
        if kind in last:
            figures[kind] = last[kind]
    return figures | {"seconds": results["seconds"]["training"], "arguments": results["arguments"]}


def _summarise(images: int, arms: Sequence[str], results: dict[Run, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per arm: mean and range over seeds, and the paired differences to random pasting."""
    rows = []
    for arm in arms:
        own = {run.seed: result for run, result in results.items() if (run.images, run.arm) == (images, arm)}
        random = {run.seed: result for run, result in results.items() if (run.images, run.arm) == (images, "random")}
        if not own:
            continue
        row: dict[str, Any] = {"images": images, "arm": arm, "seeds": sorted(own)}
        row |= {name: _spread([result[name] for result in own.values()]) for name in FIGURES}
        row["AP minus random's"] = [
            round(own[seed]["AP"] - random[seed]["AP"], 2) for seed in sorted(own.keys() & random.keys())
        ]
        for kind in ("composites", "random composites"):
            probed = [result[kind] for result in own.values() if kind in result]
            if probed:
                row[f"{kind}: missed share"] = _spread([figures["missed share"] for figures in probed])
                row[f"{kind}: diversity"] = _spread([figures["diversity"] for figures in probed])
        row["seconds"] = _spread([result["seconds"] for result in own.values()])
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}


def _print(summary: Sequence[dict[str, Any]]) -> None:
    columns = [
        *FIGURES,
        "composites: missed share",
        "random composites: missed share",
        "composites: diversity",
        "seconds",
    ]
    table = Table("images", "arm", "seeds", *columns, "AP minus random's")
    for row in summary:
        cells = [_cell(row.get(column)) for column in columns]
        differences = " ".join(f"{value:+.1f}" for value in row["AP minus random's"])
        table.add_row(str(row["images"]), row["arm"], str(len(row["seeds"])), *cells, differences)
    Console(width=180).print(table)


def _cell(spread: dict[str, float] | None) -> str:
    if spread is None:
        return "-"
    digits = 2 if spread["high"] < 2 else 1
    return f"{spread['mean']:.{digits}f} ({spread['low']:.{digits}f}..{spread['high']:.{digits}f})"


if __name__ == "__main__":
    main()
