"""AP on Penn-Fudan with few training images, for no pasting and for each policy, paired by seed.

Runs the trainers of examples/torchvision, examples/detectron2 or examples/mmdet, some in parallel; finished runs are
not repeated::

    python -m benchmarks.penn_fudan --data shared/data/penn_fudan --weights mobilenet_v2.pth --out runs/penn_fudan

Options after ``--`` are passed to the trainer of every arm with pasting: ``-- --critic-temperature 0.1`` with
torchvision, ``-- TERSE.POLICY.CRITIC.TEMPERATURE 0.1`` with Detectron2.

Arms of the same seed share initial weights, order of images and flipping; except MMDetection's ``copypaste``, which
draws its own flips and pads its images to one size.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._frameworks import FRAMEWORKS, POLICIES, Framework, Run

COLUMNS = ("AP", "AP50", "AP75")
VERSION = 4
"""Of the runs: increased when the same flags give other results, so that old and new runs are not mixed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the results."""
    args = _parser().parse_args(argv)
    framework = FRAMEWORKS[args.framework](args)
    arms = args.arms or ("none", *POLICIES)
    if unknown := [arm for arm in arms if arm not in framework.arms]:
        raise SystemExit(f"--arms: {args.framework} has {', '.join(framework.arms)}, not {', '.join(unknown)}")
    if args.amp and framework.amp_needs_gpu and args.device == "cpu":
        raise SystemExit(f"--amp: {args.framework} has mixed precision on a GPU only")
    runs = [Run(images, arm, seed) for seed in args.seeds for images in args.train for arm in arms]
    missing = [run for run in runs if not _done(run, args).exists()]
    for run in set(runs) - set(missing):
        _check_same(run, args)
    if not args.report and missing:
        args.out.mkdir(parents=True, exist_ok=True)
        framework.prepare(args.train)
        with ThreadPoolExecutor(args.jobs) as pool:
            for run, done in zip(missing, pool.map(lambda run: _train(framework, run, args), missing), strict=True):
                if not done:
                    raise SystemExit(f"{run.name} failed; see {args.out / run.name}.log")
    results = {run: json.loads(_done(run, args).read_text()) for run in runs if _done(run, args).exists()}
    summary = [row for images in args.train for row in _summarise(images, arms, results)]
    text = json.dumps({"runs": {run.name: result for run, result in results.items()}, "summary": summary}, indent=1)
    (args.out / "summary.json").write_text(text + "\n")
    _print(summary)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with PNGImages and PedMasks")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of MobileNetV2")
    parser.add_argument("--framework", choices=list(FRAMEWORKS), default="torchvision", help="default torchvision")
    parser.add_argument("--out", type=Path, required=True, help="folder for all runs and summary.json")
    parser.add_argument("--train", type=int, nargs="+", default=[20, 60], help="numbers of training images")
    parser.add_argument("--arms", nargs="+", help=f"default: none {' '.join(POLICIES)}; with mmdet also copypaste")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--amp", action="store_true", help="mixed precision, in all arms")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("options", nargs="*", help="of the trainer, after --, for the arms with pasting")
    parser.add_argument("--probe-images", type=int, default=64, help="torchvision: composites probed at the end")
    parser.add_argument("--report", action="store_true", help="only summarise finished runs")
    return parser


def _done(run: Run, args: argparse.Namespace) -> Path:
    """The file with the results of a finished run."""
    path: Path = args.out / run.name / "done.json"
    return path


def _train(framework: Framework, run: Run, args: argparse.Namespace) -> bool:
    """Train, and write the results."""
    seconds = framework.train(run)
    if seconds is None:
        return False
    content = {"arguments": _arguments(run, args), "CPU seconds": round(seconds, 1)}
    content |= framework.results(args.out / run.name)
    _done(run, args).write_text(json.dumps(content, indent=1) + "\n")
    return True


def _arguments(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """The settings that identify a run."""
    weights = hashlib.sha256(args.weights.read_bytes()).hexdigest()[:16]
    common = {
        "version": VERSION,
        "framework": args.framework,
        "iterations": args.iterations,
        "amp": args.amp,
        "device": args.device,
    }
    pasting = {"policy": run.arm, "options": list(args.options)} if run.arm in POLICIES else {}
    return common | {"weights": weights} | pasting


def _check_same(run: Run, args: argparse.Namespace) -> None:
    """Refuse to mix a finished run with ones of other settings."""
    done, wanted = json.loads(_done(run, args).read_text())["arguments"], _arguments(run, args)
    if done != wanted:
        raise SystemExit(f"{run.name} was run with {done}, not {wanted}; choose another --out")


def _summarise(images: int, arms: Sequence[str], results: dict[Run, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per arm: mean and range over seeds, and the paired differences to random pasting."""
    rows = []
    for arm in arms:
        own = {run.seed: result for run, result in results.items() if (run.images, run.arm) == (images, arm)}
        random = {run.seed: result for run, result in results.items() if (run.images, run.arm) == (images, "random")}
        if not own:
            continue
        row: dict[str, Any] = {"images": images, "arm": arm, "seeds": sorted(own)}
        row |= {name: _spread([result[name] for result in own.values()]) for name in COLUMNS}
        row["AP minus random's"] = [
            round(own[seed]["AP"] - random[seed]["AP"], 1) for seed in sorted(own.keys() & random.keys())
        ]
        for kind in ("composites", "random composites"):
            probed = [result[kind] for result in own.values() if kind in result]
            if probed:
                row[f"{kind}: missed fraction"] = _spread([measures["missed fraction"] for measures in probed])
                row[f"{kind}: diversity"] = _spread([measures["diversity"] for measures in probed])
        row["CPU seconds"] = _spread([result["CPU seconds"] for result in own.values()])
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}


def _print(summary: Sequence[dict[str, Any]]) -> None:
    columns = [
        *COLUMNS,
        "composites: missed fraction",
        "random composites: missed fraction",
        "composites: diversity",
        "CPU seconds",
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
