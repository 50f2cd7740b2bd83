"""Several processes extract objects, and the bank is that of one."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from build_samples import IMAGES, build_many, left_beside, make_many, outcome
from PIL import Image

import terse_aug
from terse_aug.bank import BoxMasks, Foreground, build_from_coco, build_from_masks, build_from_products, build_from_rgba
from terse_aug.bank.build.chunks import ExtractionTask, Source
from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.build.workers import run_in_order
from terse_aug.bank.segmenters.box import box_alpha


def test_jobs_make_the_same_bank_of_coco(data_root: Path, tmp_path: Path) -> None:
    root = data_root / "coco_mini"
    content = json.loads((root / "annotations" / "instances_val2017.json").read_bytes())
    few = {image["id"] for image in content["images"][:10]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in few]
    for entry in content["annotations"][::7]:
        del entry["segmentation"]
    reports = {
        jobs: build_from_coco(
            content,
            root / "val2017",
            tmp_path / f"{jobs}.bank",
            boxes=BoxMasks("grabcut", min_quality=0.3, fallback="ellipse"),
            rejected_sheet=tmp_path / f"{jobs}.png",
            jobs=jobs,
        )
        for jobs in (1, 2)
    }
    assert reports[1].mask_sources["grabcut"] > 0
    assert outcome(reports[1]) == outcome(reports[2])
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()
    assert list(reports[1].rejected) == list(reports[2].rejected)


def test_jobs_make_the_same_bank_of_folders(data_root: Path, tmp_path: Path) -> None:
    penn = data_root / "penn_fudan"
    objects, products = tmp_path / "objects", tmp_path / "products"
    for number in range(20):
        rgba = np.random.default_rng(number).integers(0, 256, (30, 40, 4), dtype=np.uint8)
        photo = np.full((120, 120, 3), 240, np.uint8)
        photo[30:80, 30:90] = rgba[:1, :1, :3]
        for folder, pixels in ((objects, rgba), (products, photo)):
            (folder / f"{number % 3}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number % 3}" / f"{number:02d}.png")
    some = [path.name for path in sorted((penn / "PNGImages").iterdir())[:10]]
    for build, folders, image_list in (
        (build_from_masks, (penn / "PNGImages", penn / "PedMasks"), some),
        (build_from_rgba, (objects,), [*(f"{number:02d}" for number in range(10)), "none"]),
        (build_from_products, (products,), None),
    ):
        one, two = (
            build(*folders, tmp_path / f"{build.__name__}{jobs}.bank", image_list=image_list, jobs=jobs)
            for jobs in (1, 2)
        )
        assert outcome(one) == outcome(two)
        assert sum(one.kept.values()) > 8


@dataclass(frozen=True)
class Odd:
    """An extractor that interprets the names of its images as commands."""

    def files(self, unit: str) -> list[Path]:
        return []

    def objects(self, unit: str, log: BuildLog) -> Iterator[Foreground]:
        if unit == "fail":
            raise ZeroDivisionError("of the seventh image")
        if unit == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if unit == "wrong":
            yield Foreground(np.zeros((3, 3, 4), np.uint8), 1, "a", 0.1)
        if unit == "signals":
            unit = f"ignored={signal.getsignal(signal.SIGINT) == signal.SIG_IGN}"
        if unit == "threads":
            unit = ",".join([str(cv2.getNumThreads()), *map(os.environ.get, ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))])
        rgba = np.full((8, 8, 4), 255, np.uint8)
        yield Foreground(rgba, 1, f"{unit} {os.getpid()}", 0.1)


def run_odd(units: list[Any], jobs: int | None) -> list[str]:
    source = Source(units, Odd(), {})
    task = ExtractionTask(source.extractor, {}, {1: "cat"}, 0)
    done = list(run_in_order(task, source, source.chunks(), jobs, lambda own: None))
    return [bytes(record[16:].split(b"\xff")[0]).decode() for cut in done for record in cut.records]


@pytest.mark.usefixtures("ctrl_c")
def test_processes_give_results_in_order_with_one_thread_each_and_leave_ctrl_c_to_their_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")  # a variable that the user has set is kept
    units = [*(f"{number}" for number in range(70)), "signals", "threads"]
    extracted = [source.split() for source in run_odd(units, 2)]
    assert [name for name, _ in extracted] == [*units[:-2], "ignored=True", "1,1,3"]
    assert str(os.getpid()) not in {process for _, process in extracted}
    assert "OMP_NUM_THREADS" not in os.environ
    alone = [source.split() for source in run_odd(units[:-1], None)]
    assert {process for _, process in alone} == {str(os.getpid())}, "too little work for several processes"
    assert alone[-1][0] == "ignored=False"


def test_an_error_arrives_with_its_cause() -> None:
    with pytest.raises(ZeroDivisionError, match="seventh") as caught:
        run_odd([*"abcdefghijklmnopqrst", "fail"], 2)
    assert "in objects" in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="expected the tight crop"):
        run_odd([*"abcdefghijklmnopqrst", "wrong"], 2)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_killed_worker_raises_and_does_not_hang() -> None:
    began = time.monotonic()
    with pytest.raises(ChildProcessError, match=r"memory ran out.*--jobs"):
        run_odd([*"abcdefghijklmnopqrst", "die", *"uvwxyzabcdefghijkl"], 2)
    assert time.monotonic() - began < 60


def run_with_few_files(spare: int) -> None:
    """What a process does that may open a few files more, which is too few to start others, or all of them."""
    import resource

    units = [f"{number}" for number in range(40)]
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    with pytest.warns(UserWarning, match=r"processes cannot be started \(.*one process does the rest"):
        sources = run_odd(units, 2)
    assert sources == [f"{unit} {os.getpid()}" for unit in units]
    assert not multiprocessing.active_children()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")
@pytest.mark.parametrize("spare", [6, 12])
def test_one_process_does_all_where_no_others_can_be_started(spare: int) -> None:
    script = f"from {__name__} import run_with_few_files as run; run({spare})"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    run = subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()


def dying(image: np.ndarray, box: Any) -> np.ndarray:
    os.kill(os.getpid(), signal.SIGKILL)
    return image


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_nothing_is_left_of_a_build_whose_process_died_early(tmp_path: Path) -> None:
    make_many(tmp_path, 20)
    with pytest.raises(ChildProcessError):
        build_many(tmp_path, tmp_path / "a.bank", boxes=dying, jobs=2)
    assert not (tmp_path / "a.bank").exists()
    assert not left_beside(tmp_path / "a.bank")


def test_functions_are_sent_where_they_can_be(tmp_path: Path) -> None:
    make_many(tmp_path, 20)
    lock = threading.Lock()

    def locked(image: np.ndarray, box: Any) -> np.ndarray:
        with lock:
            return box_alpha(image.shape, box)

    def free(image: np.ndarray, box: Any) -> np.ndarray:
        return box_alpha(image.shape, box)

    with pytest.warns(UserWarning, match=r"makes the masks cannot be sent to other processes .*one process does"):
        alone = build_many(tmp_path, tmp_path / "a.bank", boxes=locked, jobs=2)
    assert alone.mask_sources["function locked"] > 10
    shared = build_many(tmp_path, tmp_path / "b.bank", boxes=free, jobs=2)
    assert shared.mask_sources["function free"] == alone.mask_sources["function locked"]


def test_a_function_that_others_cannot_import_is_called_in_one_process(tmp_path: Path) -> None:
    make_many(tmp_path, 20)
    plug_in = types.ModuleType("plug_in_of_no_file")
    exec("import numpy\ndef whole(image, box):\n    return numpy.ones(image.shape[:2], bool)\n", vars(plug_in))
    sys.modules[plug_in.__name__] = plug_in
    try:
        with pytest.warns(UserWarning, match=r"boxes cannot be loaded .*plug_in_of_no_file.*one process does"):
            two = build_many(tmp_path, tmp_path / "a.bank", boxes=plug_in.whole, jobs=2)
        assert outcome(two) == outcome(build_many(tmp_path, tmp_path / "b.bank", boxes=plug_in.whole))
    finally:
        del sys.modules[plug_in.__name__]
    assert sum(two.mask_sources.values()) > 10


class Lost:
    """Can be sent, but not loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("lost",)


@pytest.mark.filterwarnings("ignore:(annotations|this build) cannot be")
@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (threading.Lock(), "cannot be sent .*lock.*this process extracts.*leave out"),
        (Lost(), "cannot be loaded .*lost.*this process extracts.*leave out"),
    ],
)
def test_annotations_hold_what_others_cannot_have(tmp_path: Path, thing: Any, message: str) -> None:
    content = json.loads(make_many(tmp_path, 30).read_text())
    content["annotations"][20]["handle"] = thing
    arguments: tuple[Any, ...] = (content, tmp_path / "images")
    with pytest.warns(UserWarning, match=message):
        two = build_from_coco(*arguments, tmp_path / "a.bank", boxes="ellipse", jobs=2)
    with pytest.warns(UserWarning, match="this build cannot be resumed beyond this point"):
        one = build_from_coco(*arguments, tmp_path / "b.bank", boxes="ellipse", jobs=1)
    assert outcome(two) == outcome(one)
    with pytest.warns(UserWarning, match=message):
        sources = run_odd([*map(str, range(8)), thing, *map(str, range(9, 40))], 2)
    own = [str(os.getpid()) in source for source in sources]
    assert own == [False] * 8 + [True] * 8 + [False] * 24, "one chunk is extracted here, the others are not"


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "2", True])
def test_wrong_jobs_are_refused(tmp_path: Path, jobs: Any) -> None:
    make_many(tmp_path, 2)
    with pytest.raises(ValueError, match="expected jobs of at least 1 process"):
        build_many(tmp_path, tmp_path / "a.bank", jobs=jobs)


def test_progress_grows_to_the_end(tmp_path: Path) -> None:
    make_many(tmp_path)
    seen: list[tuple[int, int]] = []
    for jobs in (1, 2, None):
        seen.clear()
        build_many(tmp_path, tmp_path / f"{jobs}.bank", jobs=jobs, progress=lambda *done: seen.append(done))
        assert [total for _, total in seen] == [IMAGES] * len(seen)
        assert [done for done, _ in seen] == sorted({done for done, _ in seen})
        assert seen[-1] == (IMAGES, IMAGES)


def test_a_type_checker_knows_the_public_names_and_no_others(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    names = [*terse_aug.__all__, *terse_aug._PARTS, "nothing"]
    script.write_text("import terse_aug\n" + "".join(f"print(terse_aug.{name})\n" for name in names))
    package = Path(terse_aug.__file__)
    # Other modules are left out, as reading torch's takes half a minute.
    flags = ["--follow-imports=skip", "--ignore-missing-imports", "--config-file=", f"--cache-dir={tmp_path / 'cache'}"]
    command = [sys.executable, "-m", "mypy", *flags, str(package), str(script)]
    messages = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    assert [line for line in messages if ": error:" in line and "nothing" not in line] == []
    assert sum("nothing" in line for line in messages) == 1
