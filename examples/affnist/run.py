"""MNIST to AffNIST: does a policy that learns teach a classifier more than random transforms do?

::

    python examples/affnist/run.py --mnist mnist/ --out runs/live --mode live --seeds 0 1 2 3 4
    python examples/affnist/run.py --mnist mnist/ --out runs/lockstep --mode lockstep --seeds 0 1 2 3 4

Goes on where it was stopped: every finished run is a JSON file in ``--out``; one in lock-step goes on in its middle.
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
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parent))
from affnist import data, report
from affnist.arms import CLASSES, FIXED, LIVE, LOCKSTEP, Arm
from affnist.live import Schedule, train_live
from affnist.lockstep import LockStepSchedule, train_in_lock_step
from affnist.models import NETWORKS

Job = tuple[argparse.Namespace, str, int]
ARMS = {"live": LIVE, "lockstep": LOCKSTEP}
VALIDATION = 5000
"""The last so many of MNIST's training digits are left out of training, as in the paper."""
VERSION = 4
"""Of the runs: raised when the same flags give other figures, so that old and new runs are not mixed."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then print the table, draw the figure and write ``results.json``."""
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
        print(f"{arm}, seed {seed}: {run['readings'][-1]['accuracy']:.2f} %", flush=True)
    results = [json.loads(_path(args, *run).read_text()) for run in runs]
    content = {"test set": data.describe(data.AffineRanges(), args.test_seed), "runs": results} | _settings(args)
    (args.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    report.draw(results, args.out / "accuracy.png")
    report.print_table(results)


def _finished(jobs: list[Job], count: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Do jobs, some at a time, and give arm, seed and figures of each."""
    if count == 1:
        for job in track(jobs, "runs"):
            yield job[1], job[2], _run(job)
        return
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        for job, run in zip(jobs, track(pool.map(_run, jobs), "runs", total=len(jobs)), strict=True):
            yield job[1], job[2], run


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, required=True, help="folder with MNIST's four idx files, plain or .gz")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, table and figure")
    parser.add_argument("--mode", choices=list(ARMS), default="live")
    parser.add_argument("--arms", nargs="+", choices=sorted({*LIVE, *LOCKSTEP}), help="default: all of the mode")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--network", choices=list(NETWORKS), default="small")
    live, lockstep = Schedule(), LockStepSchedule()
    parser.add_argument(
        "--iterations", type=int, help=f"live: in all ({live.iterations}); lockstep: in a round ({lockstep.iterations})"
    )
    parser.add_argument("--readings", type=int, default=live.readings, help="live: iterations between measurements")
    parser.add_argument("--learning-rate", type=float, default=live.learning_rate, help="live: of the classifier")
    parser.add_argument(
        "--decay", action="store_true", help="live: the learning rate falls to 0 along half a cosine; else constant"
    )
    parser.add_argument("--rounds", type=int, default=lockstep.rounds, help="lockstep: hunts and trainings")
    parser.add_argument("--wanted", type=int, default=lockstep.wanted, help="lockstep: synthetic images of a round")
    parser.add_argument(
        "--warm-up", type=int, default=lockstep.warm_up, help="lockstep: iterations before the first hunt"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument(
        "--measure",
        choices=["test", "validation"],
        default="test",
        help="accuracy on the test digits, or on the training digits that are left out, which settings are chosen by",
    )
    parser.add_argument("--test-seed", type=int, default=0, help="of the transforms of what is measured on")
    parser.add_argument(
        "--settings",
        type=_settings_of_terse,
        default={},
        help="JSON, of Terse, over those of the arms: '{\"critic_goal\": 0.5}'; not " + ", ".join(FIXED),
    )
    args = parser.parse_args(argv)
    if args.mode != "live" and (args.decay or args.learning_rate != live.learning_rate):
        parser.error("--decay and --learning-rate are of --mode live")
    args.arms = args.arms or list(ARMS[args.mode])
    if unknown := [arm for arm in args.arms if arm not in ARMS[args.mode]]:
        parser.error(f"--arms: {args.mode} has {', '.join(ARMS[args.mode])}, not {', '.join(unknown)}")
    iterations = (live if args.mode == "live" else lockstep).iterations if args.iterations is None else args.iterations
    if min(iterations, args.readings) < 1:
        parser.error("--iterations, --readings: expected at least 1")
    if args.mode == "live" and iterations % args.readings:
        parser.error(f"--iterations: expected a multiple of --readings {args.readings}, got {iterations}")
    if args.wanted < 1 or args.wanted % CLASSES:
        parser.error(f"--wanted: expected a multiple of {CLASSES}, as many of each class, got {args.wanted}")
    return args


def _settings_of_terse(text: str) -> dict[str, Any]:
    settings = json.loads(text)
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text}")
    if fixed := sorted(settings.keys() & set(FIXED)):
        raise argparse.ArgumentTypeError(f"{', '.join(fixed)}: the same in all runs, a digit on each canvas")
    return settings


def _schedule(args: argparse.Namespace) -> Schedule | LockStepSchedule:
    chosen = {} if args.iterations is None else {"iterations": args.iterations}
    if args.mode == "live":
        rate = {"learning_rate": args.learning_rate, "decay": args.decay}
        return Schedule(readings=args.readings, **rate, **chosen)
    return LockStepSchedule(rounds=args.rounds, wanted=args.wanted, warm_up=args.warm_up, **chosen)


def _path(args: argparse.Namespace, arm: str, seed: int) -> Path:
    path: Path = args.out / f"{args.mode}-{args.network}-{arm}-seed{seed}.json"
    return path


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """What all runs of a folder have in common."""
    return {
        "version": VERSION,
        "schedule": asdict(_schedule(args)),
        "mnist": str(args.mnist.resolve()),
        "measured on": args.measure,
        "test seed": args.test_seed,
    }


def _arm(args: argparse.Namespace, name: str) -> Arm:
    arm = ARMS[args.mode][name]
    return arm if arm.policy is None else replace(arm, settings=arm.settings | args.settings)


def _arm_settings(args: argparse.Namespace, arm: str) -> dict[str, Any]:
    """The same with what makes the arm, as it is read back from JSON."""
    chosen: dict[str, Any] = json.loads(json.dumps(asdict(_arm(args, arm))))
    return _settings(args) | {"arm": chosen}


def _bank_path(args: argparse.Namespace) -> Path:
    """Named by the digits' folder too: runs with digits of another may lie beside."""
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
    """One run in a process of its own; its figures are also written to its file."""
    args, arm, seed = job
    torch.set_num_threads(1)
    ranges = data.AffineRanges()
    known = data.read_mnist(args.mnist, "train")
    digits, left_out = known.part(slice(0, -VALIDATION)), known.part(slice(-VALIDATION, None))
    unseen = left_out if args.measure == "validation" else data.read_mnist(args.mnist, "t10k")
    test = data.affnist(unseen, ranges, args.test_seed)
    bank = data.ForegroundBank.open(_bank_path(args))
    schedule, path = _schedule(args), _path(args, arm, seed)
    chosen = _arm(args, arm)
    if isinstance(schedule, Schedule):
        run = train_live(chosen, args.network, digits, bank, test, ranges, schedule, seed)
    else:
        folder = _begun(args, arm, path)
        run = train_in_lock_step(chosen, args.network, digits, bank, test, ranges, schedule, seed, folder)
    run = {"arm": arm, "seed": seed, "network": args.network, "settings": _arm_settings(args, arm)} | run
    path.with_suffix(".part").write_text(json.dumps(run, indent=1) + "\n")
    os.replace(path.with_suffix(".part"), path)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    return run


def _begun(args: argparse.Namespace, arm: str, path: Path) -> Path:
    """The folder of a run in lock-step, which may have been stopped before; not one of other settings."""
    folder = path.with_suffix("")
    folder.mkdir(exist_ok=True)
    noted = folder / "settings.json"
    wanted = _arm_settings(args, arm)
    if not noted.exists():
        noted.write_text(json.dumps(wanted))
    if json.loads(noted.read_text()) != wanted:
        raise SystemExit(f"{folder} was begun with {noted.read_text()}, not {wanted}; choose another --out")
    return folder


if __name__ == "__main__":
    main()
