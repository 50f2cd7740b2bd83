"""MNIST to AffNIST: does a learned policy train a better classifier than random transforms?

::

    python examples/affnist/run.py --mnist mnist/ --out runs/live --mode live --seeds 0 1 2 3 4
    python examples/affnist/run.py --mnist mnist/ --out runs/lockstep --mode lockstep --seeds 0 1 2 3 4

Resumes where it was interrupted: every finished run is a JSON file in ``--out``; lock-step runs resume after a round.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parent))
from affnist import data, report
from affnist.arms import CLASSES, LIVE, LOCKSTEP, Arm
from affnist.live import Schedule, train_live
from affnist.lockstep import LockStepSchedule, train_in_lock_step
from affnist.models import NETWORKS

Job = tuple[argparse.Namespace, str, int]
ARMS = {"live": LIVE, "lockstep": LOCKSTEP}
VALIDATION = 5000
"""This many of MNIST's training digits, the last ones, are held out, as in the paper."""
VERSION = 5
"""Of the runs: increased when the same flags give other results, so that old and new runs are not mixed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table, draw the chart and write ``results.json``."""
    args = _arguments(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    runs = [(arm, seed) for seed in args.seeds for arm in args.arms]
    missing = [run for run in runs if not _path(args, *run).exists()]
    for run in set(runs) - set(missing):
        _check_same(args, *run)
    if missing:
        digits = data.read_mnist(args.mnist, "train")
        data.digit_bank(digits.part(slice(0, -VALIDATION)), _bank_path(args)).close()
    for arm, seed, run in _finished([(args, arm, seed) for arm, seed in missing], args.jobs):
        print(f"{arm}, seed {seed}: {run['evaluations'][-1]['accuracy']:.2f} %", flush=True)
    results = [json.loads(_path(args, *run).read_text()) for run in runs]
    content = {"test set": data.describe(data.AffineRanges(), args.test_seed), "runs": results} | _settings(args)
    (args.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    report.draw(results, args.out / "accuracy.png")
    report.print_table(results)


def _finished(jobs: list[Job], count: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Run jobs, some in parallel; yields arm, seed and results of each."""
    if count == 1:
        for job in track(jobs, "runs"):
            yield job[1], job[2], _run(job)
        return
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        for job, run in zip(jobs, track(pool.map(_run, jobs), "runs", total=len(jobs)), strict=True):
            yield job[1], job[2], run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder with MNIST's four idx files, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, table and chart")
    parser.add_argument("--mode", choices=list(ARMS), default="live")
    parser.add_argument("--arms", nargs="+", choices=sorted({*LIVE, *LOCKSTEP}), help="default: all of the mode")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--network", choices=list(NETWORKS), default="small")
    live, lockstep = Schedule(), LockStepSchedule()
    parser.add_argument(
        "--iterations", type=int, help=f"live: in all ({live.iterations}); lockstep: in a round ({lockstep.iterations})"
    )
    parser.add_argument("--evaluate-every", type=int, default=live.evaluate_every, help="live: in iterations")
    parser.add_argument("--learning-rate", type=float, default=live.learning_rate, help="live: of the classifier")
    parser.add_argument(
        "--decay", action="store_true", help="live: the learning rate falls to 0 along half a cosine; else constant"
    )
    parser.add_argument("--rounds", type=int, default=lockstep.rounds, help="lockstep: of mining and training")
    parser.add_argument("--wanted", type=int, default=lockstep.wanted, help="lockstep: synthetic images of a round")
    parser.add_argument(
        "--warm-up", type=int, default=lockstep.warm_up, help="lockstep: iterations before the first mining"
    )
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs, one thread each")
    parser.add_argument(
        "--measure",
        choices=["test", "validation"],
        default="test",
        help="evaluate on the test digits, or on the held-out training digits, to choose settings",
    )
    parser.add_argument("--test-seed", type=int, default=0, help="of the transforms of the evaluation images")
    parser.add_argument(
        "--settings",
        type=_policy_settings,
        default={},
        help="JSON, settings of the policies over those of the arms: '{\"target_hardness\": 0.5}'",
    )
    return parser


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser, live, lockstep = _parser(), Schedule(), LockStepSchedule()
    args = parser.parse_args(argv)
    if args.mode != "live" and (args.decay or args.learning_rate != live.learning_rate):
        parser.error("--decay and --learning-rate are flags of --mode live")
    args.arms = args.arms or list(ARMS[args.mode])
    if unknown := [arm for arm in args.arms if arm not in ARMS[args.mode]]:
        parser.error(f"--arms: {args.mode} has {', '.join(ARMS[args.mode])}, not {', '.join(unknown)}")
    for name in args.settings:
        if not any(hasattr(ARMS[args.mode][arm].policy, name) for arm in args.arms):
            parser.error(f"--settings: none of the policies has {name!r}")
    iterations = (live if args.mode == "live" else lockstep).iterations if args.iterations is None else args.iterations
    if min(iterations, args.evaluate_every) < 1:
        parser.error("--iterations, --evaluate-every: expected at least 1")
    if args.mode == "live" and iterations % args.evaluate_every:
        parser.error(f"--iterations: expected a multiple of --evaluate-every {args.evaluate_every}, got {iterations}")
    if args.wanted < 1 or args.wanted % CLASSES:
        parser.error(f"--wanted: expected a multiple of {CLASSES}, the same number of each class, got {args.wanted}")
    return args


def _policy_settings(text: str) -> dict[str, Any]:
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text}")
    return settings


def _schedule(args: argparse.Namespace) -> Schedule | LockStepSchedule:
    chosen = {} if args.iterations is None else {"iterations": args.iterations}
    if args.mode == "live":
        rate = {"learning_rate": args.learning_rate, "decay": args.decay}
        return Schedule(evaluate_every=args.evaluate_every, **rate, **chosen)
    return LockStepSchedule(rounds=args.rounds, wanted=args.wanted, warm_up=args.warm_up, **chosen)


def _path(args: argparse.Namespace, arm: str, seed: int) -> Path:
    path: Path = args.out / f"{args.mode}-{args.network}-{arm}-seed{seed}.json"
    return path


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that all runs of a folder share."""
    return {
        "version": VERSION,
        "schedule": asdict(_schedule(args)),
        "mnist": str(args.mnist.resolve()),
        "measured on": args.measure,
        "test seed": args.test_seed,
    }


def _arm(args: argparse.Namespace, name: str) -> Arm:
    arm = ARMS[args.mode][name]
    return arm.with_settings(args.settings)


def _arm_settings(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    """These and the settings of the arm, as they are read back from JSON."""
    chosen: dict[str, Any] = json.loads(json.dumps(asdict(_arm(args, arm))))
    return _settings(args) | {"arm": chosen}


def _bank_path(args: argparse.Namespace) -> Path:
    """Its name contains a hash of the digits' folder, as other digits need another bank."""
    folder = hashlib.sha256(str(args.mnist.resolve()).encode()).hexdigest()[:8]
    path: Path = args.out / f"digits-{VERSION}-{folder}.bank"
    return path


def _check_same(args: argparse.Namespace, arm: str, seed: int) -> None:
    """Refuse to mix a finished run with ones of other settings."""
    path = _path(args, arm, seed)
    done = json.loads(path.read_text())["settings"]
    if done != (wanted := _arm_settings(args, arm)):
        raise SystemExit(f"{path.name} was made with {done}, not {wanted}; choose another --out")


def _run(job: Job) -> dict[str, Any]:
    """One run in a separate process; its results are also written to its file."""
    args, arm, seed = job
    torch.set_num_threads(1)
    ranges = data.AffineRanges()
    whole = data.read_mnist(args.mnist, "train")
    digits, held_out = whole.part(slice(0, -VALIDATION)), whole.part(slice(-VALIDATION, None))
    unseen = held_out if args.measure == "validation" else data.read_mnist(args.mnist, "t10k")
    test = data.affnist(unseen, ranges, args.test_seed)
    bank = data.ForegroundBank.open(_bank_path(args))
    schedule, path = _schedule(args), _path(args, arm, seed)
    chosen = _arm(args, arm)
    if isinstance(schedule, Schedule):
        run = train_live(chosen, args.network, digits, bank, test, ranges, schedule, seed)
    else:
        folder = _started(args, arm, path)
        run = train_in_lock_step(chosen, args.network, digits, bank, test, ranges, schedule, seed, folder)
    run = {"arm": arm, "seed": seed, "network": args.network, "settings": _arm_settings(args, arm)} | run
    path.with_suffix(".part").write_text(json.dumps(run, indent=1) + "\n")
    os.replace(path.with_suffix(".part"), path)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    return run


def _started(args: argparse.Namespace, arm: str, path: Path) -> Path:
    """The folder of a lock-step run, which may have been interrupted; refused if its settings differ."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    saved_settings = folder / "settings.json"
    wanted = _arm_settings(args, arm)
    if not saved_settings.exists():
        saved_settings.write_text(json.dumps(wanted))
    if json.loads(saved_settings.read_text()) != wanted:
        raise SystemExit(f"{folder} was started with {saved_settings.read_text()}, not {wanted}; choose another --out")
    return folder


if __name__ == "__main__":
    main()
