"""Train a small detector without pasting, with random pasting and with a learned policy, and write a report.

Real photographs and real handwritten digits, both from installed packages; nothing is downloaded.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from terse_demo.data import build_bank, save_coco, test_images, training_images
from terse_demo.processes import train_arms
from terse_demo.report import NAMES, render
from terse_demo.results import as_json, collect, write_atomically
from terse_demo.training import ARMS, Settings
from terse_demo.wording import headline


def main(argv: Sequence[str] | None = None) -> None:
    """Make the data, train the arms, write `results.json` and `report.html`."""
    args = _parser().parse_args(argv)
    console, started = Console(), time.perf_counter()
    settings = Settings(
        seed=args.seed,
        iterations=args.iterations,
        batch_size=args.batch_size,
        train_images=args.train_images,
        test_images=args.test_images,
        measurements=args.measurements,
    )
    train, test = training_images(settings.train_images), test_images(settings.test_images)
    save_coco(test, args.out / "data" / "test")
    annotations = save_coco(train, args.out / "data" / "train")
    built = build_bank(annotations, args.out / "data" / "train", args.out / "data" / "digits.bank")
    console.print(f"{len(train)} training images, {len(test)} test images, {sum(built.kept.values())} foregrounds")

    with _progress(console) as progress:
        tasks = {arm: progress.add_task(NAMES[arm], total=settings.iterations) for arm in ARMS}
        arms = train_arms(
            ARMS,
            settings,
            built.path,
            lambda arm, done: progress.update(tasks[arm], completed=done),
            parallel=not args.sequential,
        )

    results = collect(settings, train, test, built, arms, time.perf_counter() - started)
    write_atomically(args.out / "results.json", as_json(results))
    write_atomically(args.out / "report.html", render(results, arms))
    console.print(f"[bold]{headline(results)}[/bold] (one run, seed {settings.seed})")
    console.print(f"{args.out / 'report.html'} and results.json, {time.perf_counter() - started:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    default = Settings()
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the report, the results, the data")
    parser.add_argument("--seed", type=int, default=default.seed, help="of weights, order and pasting; not of the data")
    parser.add_argument("--iterations", type=_positive, default=default.iterations, help="of each arm")
    parser.add_argument("--batch-size", type=_positive, default=default.batch_size, help="images per iteration")
    parser.add_argument("--train-images", type=_positive, default=default.train_images, help="images to train on")
    parser.add_argument("--test-images", type=_positive, default=default.test_images, help="images to measure on")
    parser.add_argument("--measurements", type=_positive, default=default.measurements, help="moments on the curves")
    parser.add_argument("--sequential", action="store_true", help="one arm after the other, in this process")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


if __name__ == "__main__":
    main()
