"""Images per second that a bank is built from, in one process and in several, beside pycocotools' own decoding.

::

    python -m benchmarks.bank_build --coco coco_mini/annotations/instances_train2017.json=coco_mini/train2017 \\
        --json F [--repeat 10] [--rounds 5] [--jobs 1 2] [--grabcut-images 40]

Arms, in random order in each round: *decode* reads every image with OpenCV and decodes the mask of every annotation
that is not a crowd (``COCO.annToMask``) in this process; *jobs N* builds a bank of the same annotations in N processes;
*grabcut, jobs N* does so from boxes alone, of fewer images. All processes have one thread. Images are listed
``--repeat`` times, so that the start of the processes, which is measured separately, does not dominate. A ratio is of
two arms of one round; on a busy machine two processes also get more of it than one. CPU time is that of all processes
of an arm.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import cv2
import loky
import numpy as np
from pycocotools.coco import COCO

from benchmarks._timing import coco_pair, interleaved, parser, run_in_one_thread, show, surroundings, write_json
from terse_aug.bank import build_from_coco

DECODE = "decode"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = _parser().parse_args(argv)
    run_in_one_thread()
    annotations, images = options.coco
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        content = json.loads(annotations.read_bytes())
        whole, hidden = Path(folder) / "whole.json", Path(folder) / "hidden.json"
        counts = {path: _write(path, data) for path, data in _data(content, options, whole, hidden).items()}
        found: dict[str, int] = {}
        arms = {DECODE: (counts[whole], lambda _: found.update({DECODE: _decode(whole, images)}))}
        kinds = {"": (whole, None)} | ({"grabcut, ": (hidden, "grabcut")} if hidden in counts else {})
        for kind, (source, boxes) in kinds.items():
            for jobs in options.jobs:
                name = f"{kind}jobs {jobs}"
                bank = Path(folder) / f"{name}.bank"
                arms[name] = (counts[source], _building(found, name, source, images, bank, jobs=jobs, boxes=boxes))
        timed = {name: (lambda turn: turn, work) for name, (_, work) in arms.items()}
        times = interleaved(timed, options.rounds, announce=True)
        megabytes = {bank.stem: round(bank.stat().st_size / 1e6, 3) for bank in sorted(Path(folder).glob("*.bank"))}
    rates = {name: [count / own for own in times[name].wall] for name, (count, _) in arms.items()}
    per_cpu = {name: [count / own for own in times[name].cpu] for name, (count, _) in arms.items()}
    content = {
        "images": {name: count for name, (count, _) in arms.items()},
        "objects": found,
        "bank_mb": megabytes,
        "images_per_second": {name: _spread(values) for name, values in rates.items()},
        "images_per_cpu_second": {name: _spread(values) for name, values in per_cpu.items()},
        "ratios": {f"{one} / {other}": _ratio(rates, one, other) for one, other in _pairs(options.jobs, rates)},
        "cpu_ratios": {f"{one} / {other}": _ratio(per_cpu, one, other) for one, other in _pairs(options.jobs, rates)},
        "start_of_a_process_seconds": _spread([_start() for _ in range(options.rounds)]),
    }
    for key in ("images_per_second", "images_per_cpu_second", "ratios", "cpu_ratios"):
        rows = [(name, *map(_text, own.values())) for name, own in content[key].items()]
        show(key.replace("_", " "), ("", "median", "least", "most"), rows)
    print(f"a process starts in {content['start_of_a_process_seconds']['median']:.2f} s")
    write_json(options.json, content | surroundings())


def _parser() -> argparse.ArgumentParser:
    made = parser(__doc__, json_required=True)
    made.add_argument("--coco", type=coco_pair, required=True, metavar="JSON=DIR", help="annotations and images")
    made.add_argument("--repeat", type=int, default=10, help="times that each image is listed")
    made.add_argument("--rounds", type=int, default=5, help="of all arms")
    made.add_argument("--jobs", type=int, nargs="+", default=[1, 2], help="processes")
    made.add_argument("--grabcut-images", type=int, default=40, help="0 for no GrabCut")
    made.add_argument("--folder", type=Path, help="where banks are made; none: the system's for such files")
    return made


def _data(content: Any, options: argparse.Namespace, whole: Path, hidden: Path) -> dict[Path, dict[str, Any]]:
    """What the arms read, by its place."""
    data = {whole: _repeated(content, options.repeat)}
    if options.grabcut_images:
        few = content["images"][: options.grabcut_images]
        known = {image["id"] for image in few}
        boxes = [
            {key: value for key, value in entry.items() if key != "segmentation"}
            for entry in content["annotations"]
            if entry["image_id"] in known
        ]
        data[hidden] = content | {"images": few, "annotations": boxes}
    return data


def _repeated(content: dict[str, Any], times: int) -> dict[str, Any]:
    """The same images and annotations listed again, under other ids."""
    images, annotations = [], []
    for turn in range(times):
        number = {image["id"]: f"{turn} {image['id']}" for image in content["images"]}
        images += [image | {"id": number[image["id"]]} for image in content["images"]]
        annotations += [
            entry | {"id": len(annotations) + own, "image_id": number[entry["image_id"]]}
            for own, entry in enumerate(content["annotations"], 1)
        ]
    return content | {"images": images, "annotations": annotations}


def _write(path: Path, content: dict[str, Any]) -> int:
    """Save it; returns how many images have an object that is no crowd."""
    path.write_text(json.dumps(content))
    return len({entry["image_id"] for entry in content["annotations"] if not entry.get("iscrowd")})


def _decode(annotations: Path, images: Path) -> int:
    """Read and decode all; returns the number of objects."""
    with redirect_stdout(None):
        coco = COCO(str(annotations))
    objects = 0
    for number, image in coco.imgs.items():
        entries = [entry for entry in coco.imgToAnns[number] if not entry.get("iscrowd")]
        if entries:
            pixels = cv2.imread(str(images / image["file_name"]))
            assert pixels is not None
            objects += sum(coco.annToMask(entry).shape == pixels.shape[:2] for entry in entries)
    return objects


def _building(
    found: dict[str, int], name: str, annotations: Path, images: Path, bank: Path, **options: Any
) -> Callable[[int], None]:
    def build(turn: int) -> None:
        found[name] = sum(build_from_coco(annotations, images, bank, overwrite=True, **options).kept.values())

    return build


def _pairs(jobs: Sequence[int], rates: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The arms that are compared."""
    first, *more = jobs
    pairs = [(f"jobs {own}", DECODE) for own in jobs]
    for kind in ("", "grabcut, "):
        pairs += [(f"{kind}jobs {own}", f"{kind}jobs {first}") for own in more]
    return [pair for pair in pairs if pair[0] in rates]


def _ratio(rates: Mapping[str, Sequence[float]], one: str, other: str) -> dict[str, float]:
    return _spread([own / theirs for own, theirs in zip(rates[one], rates[other], strict=True)])


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "least": min(values), "most": max(values)}


def _text(value: float) -> str:
    return f"{value:.2f}"


def _start() -> float:
    started = time.perf_counter()
    with loky.ProcessPoolExecutor(1) as executor:
        executor.submit(os.getpid).result()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
