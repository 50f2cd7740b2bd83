"""Images per second of one core that `terse-aug compose` writes, beside training's own composing.

``python -m benchmarks.compose --data penn_fudan --json F [--images 60] [--rounds 5]``

Penn-Fudan with masks, policy ``random`` with its defaults, a bank of the same images, arms in random order in each
round, one thread. *composing*: composites of images in memory (``Terse.composer``). *training*: the images are read,
too, as in a data loader's worker. The other arms write them to disk, by format of labels and images. ``per core`` is
by CPU time; ``per second`` is by the clock. A ratio is of two arms of one round, by CPU time.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._timing import interleaved, parser, run_in_one_thread, show, surroundings, write_json
from terse_aug import ForegroundBank, Terse
from terse_aug.bank import build_from_masks
from terse_aug.export import ExportSettings, write_composites
from terse_aug.preview import LabelledImages, Sample, open_masks

COMPOSING, TRAINING = "composing", "training"
WRITTEN = (("coco", "jpg"), ("coco", "png"), ("yolo", "jpg"), ("yolo-seg", "jpg"))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = _parser().parse_args(argv)
    run_in_one_thread()
    images, masks = options.data / "PNGImages", options.data / "PedMasks"
    with tempfile.TemporaryDirectory() as folder:
        bank, data = Path(folder) / "x.bank", open_masks(images, masks)
        data.names = data.names[: options.images]
        build_from_masks(images, masks, bank, category="person", image_list=data.names)
        terse = Terse(ForegroundBank.open(bank), classes={"person": 1})
        arms = _arms(terse, data, Path(folder) / "out")
        times = interleaved({name: (lambda turn: turn, work) for name, work in arms.items()}, options.rounds, 1)
    count = len(data.names)
    per_core = {name: [count / own for own in times[name].cpu] for name in arms}
    per_second = {name: [count / own for own in times[name].wall] for name in arms}
    ratios = {name: np.divide(own, per_core[TRAINING]).tolist() for name, own in per_core.items()}
    content = {
        "images": count,
        "per core": {name: _spread(own) for name, own in per_core.items()},
        "per second": {name: _spread(own) for name, own in per_second.items()},
        "ratio to training": {name: _spread(own) for name, own in ratios.items()},
    }
    for title in ("per core", "per second", "ratio to training"):
        rows = [(name, *(f"{value:.3g}" for value in own.values())) for name, own in content[title].items()]
        show(title, ("", "median", "least", "most"), rows)
    write_json(options.json, content | surroundings())


def _arms(terse: Terse, data: LabelledImages, out: Path) -> dict[str, Callable[[int], Any]]:
    composer, indices = terse.composer(), range(len(data.names))
    in_memory = [data.read(index) for index in indices]

    def compose(samples: Sequence[Sample], turn: int) -> None:
        for index in indices:
            sample = samples[index] if samples else data.read(index)
            composer((sample.image * 255).round().to(torch.uint8), sample.target, turn * len(indices) + index)

    def writing(labels: str, pixels: str) -> Callable[[int], None]:
        def write(turn: int) -> None:
            shutil.rmtree(out, ignore_errors=True)
            export = ExportSettings(format=labels, image_format=pixels)
            report = write_composites(terse, data, out, export, jobs=1)
            assert report.images == len(indices)

        return write

    arms: dict[str, Callable[[int], Any]] = {
        COMPOSING: lambda turn: compose(in_memory, turn),
        TRAINING: lambda turn: compose((), turn),
    }
    return arms | {f"{labels}, {pixels}": writing(labels, pixels) for labels, pixels in WRITTEN}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(float(np.median(values)), 3),
        "least": round(min(values), 3),
        "most": round(max(values), 3),
    }


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__)
    made.add_argument("--data", type=Path, required=True, metavar="DIR", help="Penn-Fudan: PNGImages, PedMasks")
    made.add_argument("--images", type=int, default=60, help="of the data set, written by each arm")
    made.add_argument("--rounds", type=int, default=5, help="of all arms, after one that is not timed")
    return made


if __name__ == "__main__":
    main()
