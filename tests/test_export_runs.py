"""``terse-aug compose``: interrupted runs, several processes, folders and arguments that are refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from export_samples import NAMES, Data, coco_of, files_of
from factories import every_image, make_bank, make_foreground
from PIL import Image

from terse_aug import ForegroundBank, PasteConfig, Terse
from terse_aug.bank.inputs.images import read_image
from terse_aug.cli import main
from terse_aug.cli.output import progress_bar
from terse_aug.export import ExportSettings, write_composites
from terse_aug.export.samples import ComposeNumbered
from terse_aug.preview import learn_boxes, open_coco

COPIES, FILES = 9, 50
"""Composites of each of five images, beside the originals."""
MORE = ("--copies", "9", "--originals", "copy")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Data) -> dict[str, bytes]:
    """What a run without interruption writes."""
    return files_of(data.compose("whole", *MORE))


@pytest.fixture
def at_progress(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Has a function called once as many files are done, from within the next command."""

    def register(wanted: int, act: Callable[[], None]) -> None:
        @contextmanager
        def acting() -> Any:
            with progress_bar() as show:

                def report(what: str, done: int, total: int) -> None:
                    show(what, done, total)
                    if done == wanted:
                        act()

                yield report

        monkeypatch.setattr("terse_aug.cli.compose.progress_bar", acting)

    return register


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def partial_files(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.suffix == ".partial"]


def test_an_interrupted_run_is_resumed_to_the_bit(
    data: Data, whole: dict[str, bytes], at_progress: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out, stop = data.folder / "stopped", 23
    at_progress(stop, raising(KeyboardInterrupt()))
    assert main(data.arguments(out, *MORE)) == 130
    assert f"interrupted; {stop} of {FILES} images are written and kept" in capsys.readouterr().err
    assert not partial_files(out)
    assert not (out / "annotations.json").exists()
    images = {path: path.stat().st_ino for path in (out / "images").rglob("*.*")}
    assert len(images) == stop
    at_progress(0, lambda: None)
    assert main(data.arguments(out, *MORE)) == 0
    assert f"resumed: {stop} of {FILES} were written before" in capsys.readouterr().out
    assert {path: path.stat().st_ino for path in images} == images, "written again"
    assert files_of(out) == whole
    assert main(data.arguments(out, *MORE)) == 0
    assert "finished before" in capsys.readouterr().out
    assert files_of(out) == whole


def test_what_a_kill_leaves_is_made_good(data: Data, whole: dict[str, bytes], at_progress: Any) -> None:
    out = data.folder / "killed"
    at_progress(10, raising(KeyboardInterrupt()))
    assert main(data.arguments(out, *MORE)) == 130
    state = out / ".terse-aug"
    records = sorted(state.glob("*.json"))
    (state / "1-a.jpg.partial").write_bytes(b"half a file")
    records[1].write_bytes(records[1].read_bytes()[:40])
    (out / "images" / json.loads(records[2].read_bytes())["image"]["file_name"]).write_bytes(b"half a file")
    (out / "images" / json.loads(records[3].read_bytes())["image"]["file_name"]).unlink()
    records[4].unlink()
    at_progress(0, lambda: None)
    assert main(data.arguments(out, *MORE)) == 0
    assert files_of(out) == whole


def test_a_full_disk_leaves_no_half_file(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    resource = pytest.importorskip("resource")
    whole, out = files_of(data.compose("roomy")), data.folder / "full"
    largest = max(len(content) for name, content in whole.items() if name.endswith("jpg"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limits[1]))
    try:
        assert main(data.arguments(out)) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f".jpg'; 4 of {len(NAMES)} images are written and kept" in capsys.readouterr().err
    assert not partial_files(out)
    written = {name: content for name, content in files_of(out).items() if name.endswith("jpg")}
    assert len(written) == 4
    assert written.items() < whole.items()
    assert main(data.arguments(out)) == 0
    assert files_of(out) == whole


def test_several_processes_write_the_same(data: Data) -> None:
    make_bank(data.folder / "banks", [make_foreground(7, label=7)]).close()
    (clutter,) = (data.folder / "banks").iterdir()
    pool = data.folder / "pool"
    pool.mkdir()
    Image.new("RGB", (99, 77), "teal").save(pool / "teal.png")
    more = ["--backgrounds", str(pool), "--distractor-bank", str(clutter), "--format", "yolo-seg", "--copies", "2"]
    one = files_of(data.compose("one", *more))
    assert files_of(data.compose("two", *more, "--jobs", "2")) == one
    assert len(one) == 2 * 2 * len(NAMES) + 2


@pytest.mark.parametrize("policy", ["random", "matched"])
def test_policies_compose_the_same_in_another_process(data: Data, policy: str) -> None:
    samples = open_coco(data.json, data.images)
    bank = ForegroundBank.open(data.bank).select(categories=[1, 2])
    terse = Terse(bank, policy, classes={"cat": 9, "dog": 4}, paste=every_image(objects=(2, 3)))
    learn_boxes(terse, [sample for _ in range(5) for sample in samples.choose(4, 0)])
    compose = ComposeNumbered(terse)
    copied = cloudpickle.loads(cloudpickle.dumps(compose))
    sample = samples.read(0)
    image = (sample.image * 255).byte()
    first, other, again = (
        [own(image, sample.target, number) for number in range(8)] for own in (compose, copied, compose)
    )
    for found in (*zip(first, other, strict=True), *zip(first, again, strict=True)):
        assert torch.equal(found[0].image, found[1].image)
        assert torch.equal(found[0].target["boxes"], found[1].target["boxes"])
    assert any(found.sources for found in first)
    assert not all(torch.equal(found.image, first[0].image) for found in first)


def test_matched_has_learned_from_the_images_before(tmp_path: Path) -> None:
    data = Data(tmp_path / "own")
    for kind, name in (("images", "id"), ("annotations", "image_id")):
        again = [own | {name: own[name] + turn} for turn in (10, 20) for own in data.content[kind]]
        data.content[kind] += [own | {"id": number} for number, own in enumerate(again, 10)] if name != "id" else again
    data.json.write_text(json.dumps(data.content))
    out = data.compose("out", "--policy", "matched", "--image-format", "png")
    written = [read_image(out / "images" / image["file_name"]) for image in coco_of(out)["images"]]
    bank = ForegroundBank.open(data.bank).select(categories=[1, 2])
    paste = PasteConfig(paste_probability=1, objects=(2, 4))
    terse = Terse(bank, "matched", seed=3, classes={"cat": 9, "dog": 4}, paste=paste)

    def equal() -> list[bool]:
        samples = open_coco(data.json, data.images)
        found = []
        for number, pixels in enumerate(written):
            sample = samples.read(number)
            composed = ComposeNumbered(terse)((sample.image * 255).byte(), sample.target, number)
            found.append(np.array_equal(pixels, composed.image.permute(1, 2, 0)))
        return found

    assert not all(equal())
    learn_boxes(terse, open_coco(data.json, data.images).choose(512, 3))
    assert all(equal())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "voc"], "format: expected one of coco, yolo, yolo-seg"),
        (["--copies", "0"], "copies: expected at least 1, or 0 with originals"),
        (["--originals", "move"], "originals: expected one of none, copy, link"),
        (["--image-format", "gif"], "image_format: expected"),
        (["--jpg-quality", "0"], "jpg_quality: expected"),
        (["--jobs", "0"], "expected jobs of at least 1"),
        (["--val", "."], "format coco has none"),
        (["--val", "missing", "--format", "yolo"], "expected a folder of validation images"),
        (["--sampler", "balanced"], "use uniform, rarity or weights"),
        (["--policy", "critic"], "give its --state"),
        (["--policy", "best-of-n"], "needs a detector"),
        (["--classes", "zebra"], "has no zebra"),
        (["--out", "missing/out"], "there is no folder missing"),
        (["--out", "photographs/out"], "outside of that of the images"),
        (["--out", "labels.json"], "expected a new folder, found a file"),
        (["--out", "."], "expected a new or empty folder"),
    ],
)
def test_wrong_arguments_are_one_line_and_nothing_is_written(
    data: Data,
    more: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(data.folder)
    before = files_of(data.folder)
    assert main(data.arguments(tmp_path / "new", *more)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message in printed
    assert files_of(data.folder) == before
    assert not (tmp_path / "new").exists()


def test_only_the_same_run_goes_on_in_a_folder(
    at_progress: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, out = Data(tmp_path / "own"), tmp_path / "out"
    out.mkdir()
    codes = []
    at_progress(3, lambda: codes.append(main(data.arguments(out))))
    assert main(data.arguments(out)) == 0
    assert codes == [2]
    assert "another process writes to it" in capsys.readouterr().err
    written = files_of(out)
    assert main(data.arguments(out, "--seed", "4", "--scale", "1", "1")) == 2
    assert "differs in paste.ranges.scale (there [0.5, 1.5], here [1.0, 1.0]), seed (there 3, here 4)" in (
        capsys.readouterr().err
    )
    data.content["annotations"][0]["bbox"][0] += 1
    data.json.write_text(json.dumps(data.content))
    assert main(data.arguments(out)) == 2
    assert "another run, which differs in images and labels" in capsys.readouterr().err
    assert files_of(out) == written


def test_images_that_cannot_be_read_are_counted(tmp_path: Path, at_progress: Any) -> None:
    data = Data(tmp_path / "own")
    (data.images / "c.png").write_bytes(b"no image")
    data.content["annotations"][0] |= {"bbox": [1, 2]}
    data.content["annotations"][1] |= {"iscrowd": 1}
    data.json.write_text(json.dumps(data.content))
    whole = data.compose("whole", *MORE)
    at_progress(12, raising(KeyboardInterrupt()))
    assert main(data.arguments(tmp_path / "stopped", *MORE)) == 130
    at_progress(0, lambda: None)
    assert main(data.arguments(tmp_path / "stopped", *MORE)) == 0
    assert files_of(tmp_path / "stopped") == files_of(whole)
    report = json.loads((whole / "compose.json").read_bytes())["report"]
    assert report["rejected"] == {
        "crowd region, not one object (iscrowd)": [1, ["annotation 1"]],
        "object: box is not x, y, width, height": [1, ["a.png#0"]],
        "image file cannot be read": [1, ["c.png"]],
    }
    assert report["images"] == FILES - COPIES - 1
    for name in NAMES:
        (data.images / name).write_bytes(b"no image")
    assert main(data.arguments(tmp_path / "none")) == 2
    assert not (tmp_path / "none").exists()


def test_an_error_at_the_start_leaves_an_empty_folder_empty(data: Data, tmp_path: Path) -> None:
    samples = open_coco(data.json, data.images)
    terse = Terse(ForegroundBank.open(data.bank).select(categories=[1, 2]), classes={"cat": 9, "dog": 4})

    def full(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_composites(terse, samples, tmp_path, ExportSettings(), progress=full)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other names")
def test_names_that_lead_out_of_the_folder_stay_in_it(tmp_path: Path) -> None:
    data = Data(tmp_path / "own")
    outside = data.folder / "elsewhere" / "outside.png"
    outside.parent.mkdir()
    (data.images / "a.png").rename(outside)
    data.content["images"][0] |= {"file_name": "../elsewhere/outside.png"}
    data.json.write_text(json.dumps(data.content))
    before = set(tmp_path.rglob("*"))
    out = data.compose("out")
    assert all(path == out or path.is_relative_to(out) for path in set(tmp_path.rglob("*")) - before)
    assert (out / "images" / "elsewhere" / "outside_composite1.jpg").is_file()
