"""Fine-tuning a converged detector with composites: each arm against random pasting, paired and repeated.

A baseline is trained to convergence without pasting, for each baseline seed, and kept in the output folder. Every arm
then fine-tunes it for some hundred iterations with the same order of images and flips. Runs are paired by (baseline,
fine-tuning seed); all arms of a pair are run before the next pair. A finished run is a JSON file and is not repeated,
so that the command can be stopped and started again, and pairs or arms can be added::

    python -m benchmarks.finetune --data shared/data --data-set mnist-coco --settings right wide \\
        --arms none random critic loss agree --baselines 0 1 --seeds 0 1 2 --out runs/mnist-coco

Arms: ``none``, ``copy-paste`` (mmdet's), ``random``, ``random-again`` (another seed of pasting: the noise of a pair),
any policy of the library (``matched.rarity`` with a sampler; ``random-closed`` pastes nothing in the last quarter), and
oracles, which compose ``--candidates`` random composites of each image and train on the one that a measure likes most:
``loss``, ``class-loss``, ``box-loss``, ``ap-pasted``, ``ap-all``, ``agree``, ``agree-cosine``, ``learnable``,
``least-overlap``, ``plausible``, see :mod:`benchmarks._finetune_measures`; ``agree+loss`` adds ranks (``agree-hard``).
The candidates differ in ``--choose``, or by arm: ``agree@backgrounds``.

Settings: ``right`` fit the data set; ``wide`` has scale 0.1 to 3 and rotation of 45 degrees each way; in ``unrelated``
half of the images are replaced by photographs that have nothing to do with the data set; in ``bad-masks`` a fifth of
the foregrounds is badly cut and, of several classes, a fifth mislabelled; in ``long-tail`` classes of the bank have
ever fewer foregrounds. ``photometric`` and ``blends`` are as ``right``, with what :mod:`benchmarks._appearances` has of
that name switched on. The arms ``none`` and ``copy-paste`` have no settings and are in the table of each.

``--framework detectron2`` and ``mmdet`` do the same through the adapters: that framework's own detector, as close to
torchvision's as its parts allow, its training loop and data loading, and the hook with the settings a user would write.
Arms there: ``none``, ``random``, ``random-again``, and any policy of the library. Each framework has its own ``--out``.

On a GPU, with weights of the backbone at hand::

    python -m benchmarks.finetune --data shared/data --data-set penn-fudan --device cuda --side 480 \\
        --detector fasterrcnn_resnet50_fpn --weights resnet50.pth --arms none copy-paste random matched --out runs/gpu

``--report`` only writes ``summary.json`` and ``summary.md`` of what is finished.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import _finetune_report as report
from benchmarks._finetune_data import DATA_SETS, prepare
from benchmarks._finetune_oracles import CHOICES
from benchmarks._finetune_pasting import SETTINGS, WITHOUT_SETTINGS, full_name, policy_of
from benchmarks._finetune_training import FRAMEWORKS, SMALL, Setup, baseline, check_same, fine_tune, write_json

_SEEDS = 1000
"""More than there are fine-tuning seeds of a baseline."""
_OF_RUN = ("settings", "arm", "baseline", "seed")
"""What tells the runs of a setup apart."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write and print the results."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    try:
        arms = [full_name(arm, args.choose) for arm in args.arms]
        if args.framework != FRAMEWORKS[0]:
            for arm in arms:
                policy_of(arm)
    except ValueError as error:
        raise SystemExit(f"--arms: {error}") from error
    setup = _setup(args)
    _finished(setup)
    if not args.report:
        for seed in args.seeds:
            for number in args.baselines:
                _run_pair(setup, args.settings, arms, number, seed)
    _report(setup)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--data-set", choices=list(DATA_SETS), required=True)
    parser.add_argument("--framework", choices=FRAMEWORKS, default=FRAMEWORKS[0], help="default: torchvision")
    parser.add_argument("--out", type=Path, required=True, help="folder for baselines, runs and summaries")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["right"], help="default: right")
    parser.add_argument("--arms", nargs="+", default=["none", "random", "critic"], help="default: none random critic")
    parser.add_argument("--choose", choices=CHOICES, default="transforms", help="in what candidates differ")
    parser.add_argument("--candidates", type=int, default=4, help="composites that an oracle judges for an image")
    parser.add_argument("--baselines", type=int, nargs="+", default=[0, 1], help="their seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of fine-tuning")
    parser.add_argument("--detector", help="name of the example's models; default: the data set's")
    parser.add_argument("--iterations", type=int, help="of fine-tuning; default: the data set's")
    parser.add_argument("--baseline-iterations", type=int, help="likewise")
    parser.add_argument("--evaluations", type=int, default=4, help="of a fine-tuning, evenly spaced")
    parser.add_argument("--side", type=int, help="shorter side of images, pixels; default: the data set's")
    parser.add_argument("--images", type=int, nargs=2, metavar=("TRAIN", "TEST"), help="default: the data set's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="such as cuda; default: cpu")
    parser.add_argument("--weights", type=Path, help="of the backbone; default: those of MobileNetV2 in --data")
    parser.add_argument("--report", action="store_true", help="only summarise finished runs")
    return parser


def _setup(args: argparse.Namespace) -> Setup:
    kind = DATA_SETS[args.data_set]
    images = tuple(args.images) if args.images else kind.images
    side = args.side or kind.side
    own = args.framework == FRAMEWORKS[0]
    detector = args.detector or (kind.detector if own else SMALL)
    if not own and detector != SMALL:
        raise SystemExit(f"--detector: {args.framework} has {SMALL} alone, got {detector}")
    if not own and (args.device != "cpu" or args.weights):
        raise SystemExit(f"--device and --weights: {args.framework} has the CPU and the default weights alone")
    args.out.mkdir(parents=True, exist_ok=True)
    return Setup(
        data=args.data,
        out=args.out,
        data_set=args.data_set,
        folder=prepare(args.data_set, args.data, args.out, images, side),
        side=side,
        detector=detector,
        baseline_iterations=args.baseline_iterations or kind.iterations[0],
        iterations=args.iterations or kind.iterations[1],
        evaluations=args.evaluations,
        candidates=args.candidates,
        framework=args.framework,
        device=args.device,
        backbone=args.weights,
    )


def _run_pair(setup: Setup, settings: Sequence[str], arms: Sequence[str], number: int, seed: int) -> None:
    """All arms of a baseline and a seed that are not finished."""
    weights = baseline(setup, number)
    for own in settings:
        for arm in arms:
            path = _done(setup, own, arm, number, seed)
            if path.exists():
                continue
            # Pairs of different baselines are independent, too: each has its own order of images and pastes.
            found = fine_tune(setup, weights, own, arm, seed + _SEEDS * number)
            identity = dict(zip(_OF_RUN, ("" if arm in WITHOUT_SETTINGS else own, arm, number, seed), strict=True))
            write_json(path, {"arguments": setup.arguments() | identity} | found)
            print(f"{path.stem} {own}: AP {found['AP']:.1f}, {found['CPU seconds']:.0f} s", flush=True)


def _done(setup: Setup, settings: str, arm: str, number: int, seed: int) -> Path:
    """The file of a run."""
    folder = setup.out / "runs" / ("none" if arm in WITHOUT_SETTINGS else settings)
    return folder / f"{arm}-baseline{number}-seed{seed}.json"


def _finished(setup: Setup) -> dict[tuple[str, str], dict[tuple[int, int], Any]]:
    """The results of all finished runs in the folder, by settings and arm, and by pair.

    Raises:
        SystemExit: a run was made with other settings.
    """
    runs: dict[tuple[str, str], dict[tuple[int, int], Any]] = {}
    for path in sorted((setup.out / "runs").glob("*/*.json"), key=lambda own: own.stat().st_mtime):
        own = json.loads(path.read_text())["arguments"]
        found = check_same(path, {key: own[key] for key in _OF_RUN} | setup.arguments())
        runs.setdefault((own["settings"], own["arm"]), {})[own["baseline"], own["seed"]] = found
    return runs


def _report(setup: Setup) -> None:
    """Write and print the summary of all finished runs in the folder."""
    runs = _finished(setup)
    curves = {}
    for path in sorted((setup.out / "baselines").glob("*.json")):
        found = json.loads(path.read_text())
        curves[found["arguments"]["seed"]] = found
    rows, noise = report.summarise(runs, curves), report.noise(runs)
    written = {"arguments": setup.arguments(), "noise": noise, "summary": rows}
    write_json(setup.out / "summary.json", written)
    texts = [
        f"Baseline {seed}: AP " + ", ".join(f"{point['AP']:.1f} ({point['iteration']})" for point in own["curve"])
        for seed, own in curves.items()
    ]
    text = report.markdown(setup.data_set, rows, noise, "; ".join(texts) + " (iterations).")
    (setup.out / "summary.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
