"""AP on Penn-Fudan with few training images: none, random, hard-random, learned and critic, paired by seed.

Runs the trainers of examples/torchvision, examples/detectron2 or examples/mmdet, some at a time, and goes on where it
was stopped::

    python -m benchmarks.penn_fudan --data shared/data/penn_fudan --weights mobilenet_v2.pth --out runs/penn_fudan

With ``--boxes`` the cut-outs are made of the training images' boxes as if there were no masks; run it with
``--arms random`` and another ``--out``, and compare with a run without it.

Arms of the same seed share initial weights, order of images and mirroring; but for mmdet's ``copypaste``, which mirrors
by draws of its own and pads its images to one size.
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

from benchmarks._hosts import HOSTS, POLICIES, Host, Run
from terse_aug.bank import BOX_MASK_METHODS, BoxMasks

FIGURES = ("AP", "AP50", "AP75")
VERSION = 3
"""Of the runs: raised when the same flags give other figures, so that old and new runs are not mixed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the figures."""
    args = _parser().parse_args(argv)
    host = HOSTS[args.host](args)
    arms = args.arms or ("none", *POLICIES)
    if unknown := [arm for arm in arms if arm not in host.arms]:
        raise SystemExit(f"--arms: {args.host} has {', '.join(host.arms)}, not {', '.join(unknown)}")
    if args.boxes and args.host != "torchvision":
        raise SystemExit(f"--boxes: only with --host torchvision, not {args.host}")
    if args.amp and host.amp_needs_gpu and args.device == "cpu":
        raise SystemExit(f"--amp: {args.host} has mixed precision on a GPU only")
    runs = [Run(images, arm, seed) for seed in args.seeds for images in args.train for arm in arms]
    missing = [run for run in runs if not _done(run, args).exists()]
    for run in set(runs) - set(missing):
        _check_same(run, args)
    if not args.report and missing:
        args.out.mkdir(parents=True, exist_ok=True)
        host.prepare(args.train)
        with ThreadPoolExecutor(args.jobs) as pool:
            for run, done in zip(missing, pool.map(lambda run: _train(host, run, args), missing), strict=True):
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
    parser.add_argument("--host", choices=list(HOSTS), default="torchvision", help="default torchvision")
    parser.add_argument("--out", type=Path, required=True, help="folder for all runs and summary.json")
    parser.add_argument("--train", type=int, nargs="+", default=[20, 60], help="numbers of training images")
    parser.add_argument(
        "--arms", nargs="+", help=f"default: none {' '.join(POLICIES)}; mmdet has copypaste, its own, as well"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--amp", action="store_true", help="mixed precision, in all arms")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    parser.add_argument("--terse", nargs="+", default=[], metavar="NAME=VALUE", help="settings of TerseConfig")
    parser.add_argument(
        "--boxes", choices=BOX_MASK_METHODS, help="torchvision: cut objects out of their boxes; else by their masks"
    )
    parser.add_argument(
        "--min-quality",
        type=float,
        default=BoxMasks("grabcut").min_quality,
        help="GrabCut's masks below are left out; default %(default)s",
    )
    parser.add_argument("--keep", action="store_true", help="torchvision: keep every run's checkpoint, 85 MB each")
    parser.add_argument("--probe-images", type=int, default=64, help="torchvision: composites looked at in the end")
    parser.add_argument("--report", action="store_true", help="only read the runs that are there")
    return parser


def _done(run: Run, args: argparse.Namespace) -> Path:
    """The file with a finished run's figures."""
    path: Path = args.out / run.name / "done.json"
    return path


def _train(host: Host, run: Run, args: argparse.Namespace) -> bool:
    """Train, and write down what came of it."""
    seconds = host.train(run)
    if seconds is None:
        return False
    content = {"arguments": _arguments(run, args), "processor seconds": round(seconds, 1)}
    content |= host.figures(args.out / run.name)
    _done(run, args).write_text(json.dumps(content, indent=1) + "\n")
    return True


def _arguments(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """What makes a run; the settings of pasting where there is any."""
    weights = hashlib.sha256(args.weights.read_bytes()).hexdigest()[:16]
    common = {
        "version": VERSION,
        "host": args.host,
        "iterations": args.iterations,
        "amp": args.amp,
        "device": args.device,
    }
    pasting = {"policy": run.arm, "terse": list(args.terse)} if run.arm in POLICIES else {}
    boxes = {"boxes": args.boxes} if args.boxes and run.arm in POLICIES else {}
    if boxes and args.boxes == "grabcut":
        boxes |= {"min quality": args.min_quality}
    return common | {"weights": weights} | pasting | boxes


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
        row |= {name: _spread([result[name] for result in own.values()]) for name in FIGURES}
        row["AP minus random's"] = [
            round(own[seed]["AP"] - random[seed]["AP"], 1) for seed in sorted(own.keys() & random.keys())
        ]
        for kind in ("composites", "random composites"):
            probed = [result[kind] for result in own.values() if kind in result]
            if probed:
                row[f"{kind}: missed share"] = _spread([figures["missed share"] for figures in probed])
                row[f"{kind}: diversity"] = _spread([figures["diversity"] for figures in probed])
        row["processor seconds"] = _spread([result["processor seconds"] for result in own.values()])
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
        "processor seconds",
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
