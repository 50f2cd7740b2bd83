"""A data set of many small images, with something odd in most, and builds of it that are stopped halfway."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from bank_samples import CATEGORIES
from PIL import Image

from terse_aug.bank import BuildReport, ForegroundBank, build_from_coco

IMAGES = 56


def make_many(folder: Path, count: int = IMAGES) -> Path:
    """Images with a polygon each, boxes, crowds, broken polygons and damaged files among them; the JSON."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(count):
        name = f"{number:03d}.png"
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "images" / name)
        if number % 11 == 5:
            (folder / "images" / name).write_bytes(b"no image")
        spelled = name.upper() if number % 5 == 0 else name
        images.append({"id": number, "file_name": spelled, "height": 48, "width": 64})
        left = 2 + number % 9
        outline = [left, 4, left + 30, 4, left + 30, 40, left, 40]
        shared = {"image_id": number, "category_id": (1, 3)[number % 2], "iscrowd": 0}
        polygon: list[Any] = [[5, 5]] if number % 7 == 3 else [list(map(str, outline)) if number % 6 == 1 else outline]
        box: dict[str, Any] = {"bbox": [left, 4, 30, 36]}
        annotations.append(shared | box | {"id": 3 * number, "segmentation": polygon})
        annotations.append(shared | {"id": 3 * number + 1, "bbox": [40, 10, 20, 30]})
        if number % 4 == 2:
            runs = {"size": [48, 64], "counts": [10, 3062]}
            annotations.append(shared | box | {"id": 3 * number + 2, "segmentation": runs, "iscrowd": 1})
    categories = [{"id": label, "name": name} for label, name in CATEGORIES.items()]
    path = folder / "many.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def build_many(folder: Path, out: Path, **changes: Any) -> BuildReport:
    """Build a bank from it."""
    settings: dict[str, Any] = {"boxes": "ellipse", "jobs": 1} | changes
    return build_from_coco(folder / "many.json", folder / "images", out, **settings)


def outcome(report: BuildReport) -> dict[str, Any]:
    """The report of a build without what differs between equal builds, and the content of its bank."""
    own = {"path", "seconds", "resumed", "bytes", "rejected_sheet"}
    with ForegroundBank.open(report.path) as bank:
        info = {key: value for key, value in bank.info().items() if key not in ("path", "bytes")}
        pixels = [(one.source, one.label, one.relative_size, one.center, one.rgba.tobytes()) for one in bank]
    return {key: value for key, value in vars(report).items() if key not in own} | info | {"pixels": pixels}


_STOPPED = """if True:
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs us may have it ignored
    sys.path.insert(0, {tests!r})
    from pathlib import Path
    from build_samples import build_many
    def progress(done, total):
        if done >= {stop}:
            print("there", flush=True)
            time.sleep(600)
    build_many(Path({folder!r}), Path({out!r}), progress=progress, **{changes!r})
"""


@contextmanager
def stopping_build(folder: Path, out: Path, stop: int, **changes: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that builds it and waits for its end once ``stop`` images are done."""
    values = {"tests": str(Path(__file__).parent), "folder": str(folder), "out": str(out), "stop": stop}
    script = _STOPPED.format(**values, changes=changes)
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", script], text=True, start_new_session=True, **pipes) as build:
        try:
            assert build.stdout is not None
            assert build.stdout.readline() == "there\n"
            yield build
        finally:
            build.kill()  # whatever the test found out, it must not go on


def keys_of(path: Path) -> set[bytes]:
    """All that is in a file."""
    with lmdb.open(str(path), subdir=False, lock=False, readonly=True) as opened, opened.begin() as transaction:
        return {bytes(key) for key, _ in transaction.cursor()}


def left_beside(out: Path) -> list[Path]:
    """The hidden files of builds of a bank."""
    return sorted(out.parent.glob(f".{out.name}.*.building"))
