"""An interrupted build is resumed, and the bank is that of a build that was not interrupted."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import struct
import sys
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_samples import write_bank
from build_samples import IMAGES, build_many, keys_of, left_beside, make_many, outcome, stopping_build

import terse_aug
from terse_aug.bank import ExtractionRules, ForegroundBank
from terse_aug.bank.build.chunks import ExtractedChunk, identity_of
from terse_aug.bank.build.partial_build import PartialBuild
from terse_aug.bank.build.report import BuildLog, RejectedSample
from terse_aug.bank.inputs.masks import MaskInFile
from terse_aug.bank.segmenters.box import box_alpha
from terse_aug.bank.storage.index import IndexColumns
from terse_aug.bank.storage.temporary_file import partial_path
from terse_aug.cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL, and nothing is resumed there")

STOP = 44
SAFE = 40
"""Images that are kept when 44 are done, in chunks of eight. Where other processes extract them, 48 are."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    make_many(folder)
    return folder


@pytest.fixture(scope="module")
def whole(many: Path) -> dict[str, Any]:
    """The outcome of a build without interruption."""
    return outcome(build_many(many, many / "whole.bank"))


@pytest.fixture(scope="module")
def killed(many: Path) -> Path:
    """What a build that was killed leaves to be resumed."""
    with stopping_build(many, many / "killed.bank", STOP) as build:
        build.send_signal(signal.SIGKILL)
    assert not (many / "killed.bank").exists()
    return partial_path(many / "killed.bank")


def leave(killed: Path, out: Path) -> Path:
    """A copy of it beside another bank."""
    return Path(shutil.copy(killed, partial_path(out)))


def interrupt(build: Callable[[], Any], chunks: int, match: str | None = None) -> None:
    """Run a build, interrupted after some chunks."""
    append, appended = PartialBuild.append, []

    def append_some(partial: PartialBuild, chunk: Any) -> None:
        if len(appended) == chunks:
            raise KeyboardInterrupt
        appended.append(chunk)
        append(partial, chunk)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartialBuild, "append", append_some)
        with pytest.raises(KeyboardInterrupt, match=match):
            build()


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_build_is_resumed(many: Path, whole: dict[str, Any], killed: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "a.bank"
    leave(killed, out)
    seen: list[tuple[int, int]] = []
    sheets = tmp_path / "resumed.png", tmp_path / "whole.png"
    report = build_many(many, out, jobs=jobs, progress=lambda *done: seen.append(done), rejected_sheet=sheets[0])
    assert report.resumed == SAFE
    assert f"resumed an unfinished build: {SAFE} of {IMAGES} images" in report.summary()
    assert (seen[0], seen[-1]) == ((SAFE, IMAGES), (IMAGES, IMAGES))
    assert outcome(report) == whole
    assert len(whole["rejected"]) == 3
    assert len(whole["repaired"]) > 1
    assert not left_beside(out)
    build_many(many, tmp_path / "b.bank", rejected_sheet=sheets[1])
    assert keys_of(out) == keys_of(tmp_path / "b.bank")
    assert sheets[0].read_bytes() == sheets[1].read_bytes()


def test_workers_die_with_the_build_that_started_them(many: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not list a process's children")
    out = tmp_path / "a.bank"
    with stopping_build(many, out, STOP, jobs=2) as build:
        children = Path(f"/proc/{build.pid}/task/{build.pid}/children").read_text().split()
        build.send_signal(signal.SIGKILL)
    assert len(children) >= 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{child}/cmdline").exists() for child in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [child for child in children if Path(f"/proc/{child}/cmdline").exists()]
    report = build_many(many, out)
    assert report.resumed == 48
    assert outcome(report) == whole
    assert not left_beside(out)


@pytest.mark.parametrize(
    ("changes", "resumed"),
    [
        ({"rules": ExtractionRules(min_area=50)}, 0),
        ({"boxes": "box"}, 0),
        ({"categories": ["person"]}, 0),
        ({"overwrite": True}, SAFE),
        ({"boxes": lambda image, box: np.ones(image.shape[:2], bool)}, 0),
    ],
)
def test_only_the_same_build_is_resumed(
    many: Path, killed: Path, tmp_path: Path, changes: dict[str, Any], resumed: int
) -> None:
    out = tmp_path / "a.bank"
    left = leave(killed, out)
    is_warned = not resumed and not callable(changes.get("boxes"))
    warning = pytest.warns(UserWarning, match="from the start: an unfinished build") if is_warned else nullcontext()
    with warning, pytest.MonkeyPatch.context() as patch:
        patch.setattr("terse_aug.bank.build.pipeline.run_in_order", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_many(many, out, **changes)
    assert left.read_bytes() == killed.read_bytes(), "until its first chunk is done, another build changes nothing"
    with pytest.warns(UserWarning, match="from the start") if is_warned else nullcontext():
        report = build_many(many, out, **changes)
    assert report.resumed == resumed
    assert outcome(report) == outcome(build_many(many, tmp_path / "b.bank", **changes))
    assert not left_beside(out)


def interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt
    yield


def test_images_that_changed_are_extracted_again_from_there_on(tmp_path: Path) -> None:
    make_many(tmp_path)
    out = tmp_path / "a.bank"
    interrupt(lambda: build_many(tmp_path, out), 5)
    touched, *gone = (tmp_path / "images" / f"{number:03d}.png" for number in (19, *range(24, 56)))
    status = touched.stat()
    os.utime(touched, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for path in gone:
        path.write_bytes(b"no image")
    before = partial_path(out).stat().st_size
    interrupt(lambda: build_many(tmp_path, out), 1, "24 of 56 images")
    assert partial_path(out).stat().st_size < before, "what is out of date is removed"
    report = build_many(tmp_path, out)
    assert report.resumed == 24
    assert outcome(report) == outcome(build_many(tmp_path, tmp_path / "b.bank"))


def test_damage_costs_time_at_most(many: Path, whole: dict[str, Any], killed: Path, tmp_path: Path) -> None:
    generator, sound = np.random.default_rng(0), killed.read_bytes()
    header = json.dumps({"version": terse_aug.__version__}).encode()  # of another layout
    other = struct.pack("<4sII", b"TAPB", len(header), zlib.crc32(header)) + header
    damages = [b"", other, b"some text\n" * 99, sound[: len(sound) // 2], sound[:100_000] + bytes(len(sound) - 100_000)]
    for place in (3, 50, *generator.integers(len(sound), size=2).tolist()):
        damages.append(sound[:place] + bytes([sound[place] ^ 1 << generator.integers(8)]) + sound[place + 1 :])
    for number, damaged in enumerate(damages):
        out = tmp_path / f"{number}.bank"
        leave(killed, out).write_bytes(damaged)
        report = build_many(many, out)
        assert report.resumed < SAFE
        assert outcome(report) == whole
        assert not left_beside(out)


@pytest.mark.parametrize(("error", "match"), [(KeyboardInterrupt, f"{IMAGES} of {IMAGES}"), (OSError, "no font")])
def test_errors_in_drawing_and_publishing_do_not_cost_the_work(
    many: Path, tmp_path: Path, error: type[BaseException], match: str
) -> None:
    def fail(*_: object) -> None:
        raise error("no font" if error is OSError else "")

    out, sheet = tmp_path / "a.bank", tmp_path / "rejected.png"
    for target in ("terse_aug.bank.build.pipeline.write_sheets", "terse_aug.bank.storage.writer.Store.publish"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(target, fail)
            with pytest.raises(error, match=match):
                build_many(many, out, rejected_sheet=sheet, overwrite=True)
        assert not out.exists()
        assert left_beside(out) == [partial_path(out)]
    assert build_many(many, out, rejected_sheet=sheet, overwrite=True).resumed == IMAGES


def test_files_of_others_under_these_names_are_left_alone(many: Path, killed: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.bank"
    (tmp_path / f".a.bank.{0:016d}.building").symlink_to(killed)
    os.mkfifo(partial_path(out))
    before = left_beside(out)
    assert build_many(many, out).resumed == 0
    assert left_beside(out) == before
    assert killed.exists()


def test_a_full_disk_costs_what_would_be_resumed_only(
    many: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BufferedRandom):
        def flush(self) -> None:
            raise OSError("no space left")

    monkeypatch.setattr(
        "terse_aug.bank.build.partial_build.os.fdopen", lambda descriptor, mode: Full(io.FileIO(descriptor, mode))
    )
    with pytest.warns(UserWarning, match="cannot be resumed if it is stopped: no space left"):
        report = build_many(many, tmp_path / "a.bank")
    assert outcome(report) == whole
    assert not left_beside(tmp_path / "a.bank")


def test_ctrl_c_ends_all_processes_at_once_and_keeps_what_is_done(
    many: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "a.bank"
    with stopping_build(many, out, STOP, jobs=2) as build:
        began = time.monotonic()
        os.killpg(build.pid, signal.SIGINT)  # as a terminal does: to all of its processes
        _, printed = build.communicate(timeout=60)
        assert build.returncode != 0
    assert time.monotonic() - began < 30
    assert "KeyboardInterrupt: interrupted; 48 of 56 images are done and kept" in printed
    assert printed.count("Traceback") <= 2, "other processes printed something"
    assert left_beside(out) == [partial_path(out)]
    report = build_many(many, out)
    assert report.resumed == 48
    assert outcome(report) == whole


def test_the_command_explains_how_to_resume(many: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.bank"
    source = ["--annotations", str(many / "many.json"), "--images", str(many / "images"), "--boxes", "ellipse"]
    command = ["bank", "build", "coco", *source, "--out", str(out), "--jobs", "1"]
    kept = f"interrupted; {SAFE} of {IMAGES} images are done and kept"
    for chunks, message in ((0, "interrupted; nothing was written"), (SAFE // 8, kept)):
        interrupt(lambda: stopping(main(command)), chunks)
        assert message in capsys.readouterr().err
        assert len(left_beside(out)) == (chunks > 0)
    assert main(command) == 0
    assert f"resumed an unfinished build: {SAFE} of {IMAGES} images" in capsys.readouterr().out


def stopping(exit_code: int) -> None:
    """Turn the exit code for an interrupted command into what it was."""
    if exit_code == 130:
        raise KeyboardInterrupt


def test_builds_that_cannot_be_resumed_leave_nothing(many: Path, tmp_path: Path) -> None:
    def whole_box(image: np.ndarray, box: Any) -> np.ndarray:
        return box_alpha(image.shape, box)

    def fail(error: type[BaseException]) -> Any:
        def progress(done: int, total: int) -> None:
            if done == STOP:
                raise error

        return progress

    with pytest.raises(RuntimeError):
        build_many(many, tmp_path / "a.bank", progress=fail(RuntimeError))
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        build_many(many, tmp_path / "a.bank", progress=fail(KeyboardInterrupt), boxes=whole_box)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("terse_aug.bank.build.partial_build.open_locked", lambda *_, **__: None)  # as on Windows
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            build_many(many, tmp_path / "a.bank", progress=fail(KeyboardInterrupt))
    assert list(tmp_path.iterdir()) == []


def test_a_running_build_is_left_alone_and_a_killed_one_is_removed_by_any_writer(many: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.bank"
    with stopping_build(many, out, STOP) as build:
        assert build_many(many, out).resumed == 0
        assert len(left_beside(out)) == 2
        build.send_signal(signal.SIGKILL)
    write_bank(out, overwrite=True)
    assert not left_beside(out)
    assert len(ForegroundBank.open(out)) == 12


def test_identities_differ_where_input_differs() -> None:
    assert identity_of({"a": 1}, [Path("b"), b"c"], []) == identity_of({"a": 1}, [Path("b"), b"c"], [])
    numbers = np.arange(6, dtype=np.int16)
    assert identity_of({}, [numbers], []) == identity_of({}, [numbers.copy()], [])
    others = [numbers, numbers + 1, numbers.reshape(2, 3), np.int64(1), Path("b"), Path("c")]
    assert len({identity_of({}, [other], []) for other in others} - {None}) == len(others)
    for unknown in (object(), np.array([object()])):
        assert identity_of({}, [unknown], []) is None


def test_chunks_are_read_as_they_were_written(tmp_path: Path) -> None:
    log = BuildLog()
    shown = RejectedSample("a", "b", [1, float("nan")], MaskInFile(Path("m"), 3, True), (4, 5))
    log.drop("reason \udce9", "\udce9", shown=shown)
    log.repair(["note"], "x")
    log.mask_sources["mask"] += 3
    partial = PartialBuild(tmp_path / "a.bank")
    partial.append(ExtractedChunk(8, [b"one", b""], IndexColumns(), log, "id"))
    partial.__exit__(KeyboardInterrupt)
    partial = PartialBuild(tmp_path / "a.bank")
    assert not list(partial.resume([None])), "without a warning of other input: that is not known"
    partial.__exit__(KeyboardInterrupt)
    with PartialBuild(tmp_path / "a.bank") as partial:
        (again,) = partial.resume(["id", "other"])
    assert (again.images, again.records, str(again.log)) == (8, [b"one", b""], str(log))
