"""A build that was stopped is gone on with, and the bank is that of a build that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import struct
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from bank_samples import write_bank
from build_samples import IMAGES, build_many, keys_of, left_beside, make_many, stopping_build, told

from terse_aug.bank import ExtractionRules, ForegroundBank, build_from_coco
from terse_aug.bank.build.journal import Entry, hash_of, identity_of, journal_key
from terse_aug.bank.build.partial_build import sound_chunks, sound_part
from terse_aug.bank.build.report import Ledger
from terse_aug.bank.segmenters.box import box_alpha
from terse_aug.bank.storage.lmdb_writer import Store
from terse_aug.bank.storage.record import record_key
from terse_aug.cli import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL, and builds begin anew there")

STOP = 44
SAFE = 40
"""Images that are on the disk when 44 are done, in chunks of eight. Where other processes cut them, 48 are by then."""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    make_many(folder)
    return folder


@pytest.fixture(scope="module")
def whole(many: Path) -> dict[str, Any]:
    """What a build that nobody stops comes to."""
    return told(build_many(many, many / "whole.bank"))


@pytest.fixture(scope="module")
def killed(many: Path) -> Path:
    """The half-written file of a build that was killed."""
    with stopping_build(many, many / "killed.bank", STOP) as build:
        build.send_signal(signal.SIGKILL)
    (left,) = left_beside(many / "killed.bank")
    assert not (many / "killed.bank").exists()
    return left


def leave(killed: Path, out: Path) -> Path:
    """A copy of it beside another bank."""
    copy = out.with_name(f".{out.name}.{'0' * 16}.building")
    shutil.copy(killed, copy)
    return copy


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_build_goes_on(many: Path, whole: dict[str, Any], killed: Path, tmp_path: Path, jobs: int) -> None:
    out = tmp_path / "a.bank"
    leave(killed, out)
    seen: list[tuple[int, int]] = []
    report = build_many(
        many, out, jobs=jobs, progress=lambda *done: seen.append(done), rejected_sheet=tmp_path / "on.png"
    )
    assert report.resumed == SAFE
    assert f"went on from a build that was stopped: {SAFE} of {IMAGES} images" in report.summary()
    assert seen[0] == (SAFE, IMAGES)
    assert seen[-1] == (IMAGES, IMAGES)
    assert told(report) == whole
    assert len(whole["rejected"]) == 3
    assert len(whole["repaired"]) > 1
    assert not left_beside(out)
    build_many(many, tmp_path / "b.bank", rejected_sheet=tmp_path / "anew.png")
    assert (tmp_path / "on.png").read_bytes() == (tmp_path / "anew.png").read_bytes()


def test_nothing_of_the_journal_is_published(many: Path, killed: Path, tmp_path: Path) -> None:
    assert journal_key(0) in keys_of(killed)
    leave(killed, tmp_path / "a.bank")
    report = build_many(many, tmp_path / "a.bank")
    build_many(many, tmp_path / "b.bank")
    assert report.resumed == SAFE
    assert keys_of(tmp_path / "a.bank") == keys_of(tmp_path / "b.bank")
    assert not any(key.startswith(b"j") for key in keys_of(tmp_path / "b.bank"))


def test_a_build_of_several_processes_dies_with_its_processes(
    many: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("this system does not tell a process's children")
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
    assert told(report) == whole


@pytest.mark.parametrize(
    ("changes", "resumed"),
    [
        ({}, SAFE),
        ({"rules": ExtractionRules(min_area=50)}, 0),
        ({"boxes": "box"}, 0),
        ({"categories": ["person"]}, 0),
        ({"overwrite": True}, SAFE),
        ({"boxes": lambda image, box: np.ones(image.shape[:2], bool)}, 0),
    ],
)
def test_only_the_same_build_goes_on(
    many: Path, killed: Path, tmp_path: Path, changes: dict[str, Any], resumed: int
) -> None:
    left = leave(killed, tmp_path / "a.bank")
    said = not resumed and not callable(changes.get("boxes"))
    warning = pytest.warns(UserWarning, match=f"with {SAFE} images done") if said else nullcontext()
    with warning, pytest.MonkeyPatch.context() as patch:
        patch.setattr("terse_aug.bank.build.resumable_writer.ResumableWriter.add_cut", stopped_after(0))
        with pytest.raises(KeyboardInterrupt):
            build_many(many, tmp_path / "a.bank", **changes)
    if not resumed:
        assert left_beside(tmp_path / "a.bank") == [left]
    with pytest.warns(UserWarning, match="begins anew") if said else nullcontext():
        report = build_many(many, tmp_path / "a.bank", **changes)
    assert report.resumed == resumed
    if not resumed:
        assert told(report) == told(build_many(many, tmp_path / "b.bank", **changes))
    assert not left_beside(tmp_path / "a.bank")


def test_what_changed_is_done_again_from_there_on(tmp_path: Path) -> None:
    make_many(tmp_path)
    out = tmp_path / "a.bank"
    with stopping_build(tmp_path, out, STOP) as build:
        build.send_signal(signal.SIGKILL)
    touched, *gone = (tmp_path / "images" / f"{number:03d}.png" for number in (19, *range(24, 56)))
    status = touched.stat()
    os.utime(touched, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    for path in gone:
        path.write_bytes(b"no image")
    report = build_many(tmp_path, out)
    assert report.resumed == 16
    assert told(report) == told(build_many(tmp_path, tmp_path / "b.bank"))
    assert keys_of(out) == keys_of(tmp_path / "b.bank")


def test_damage_of_what_is_left_costs_time_at_most(
    many: Path, whole: dict[str, Any], killed: Path, tmp_path: Path
) -> None:
    generator, sound = np.random.default_rng(0), killed.read_bytes()
    damages: list[bytes] = [b"", sound[: len(sound) // 2], sound[:8192] + bytes(len(sound) - 8192)]
    for _ in range(2):
        damaged = bytearray(sound)
        for place in generator.integers(8192, len(sound), 40):
            damaged[place] ^= 1 << generator.integers(8)
        damages.append(bytes(damaged))
    for number, damaged in enumerate(damages):
        out = tmp_path / f"{number}.bank"
        leave(killed, out).write_bytes(damaged)
        report = build_many(many, out)
        assert report.resumed < SAFE
        assert told(report) == whole
        assert not left_beside(out)


def page_of(data: bytes, number: int) -> tuple[int, int]:
    """Where the newest node of a large record says on which page it is, and that page (struct MDB_node of mdb.c)."""
    key = record_key(number)
    place = data.rfind(struct.pack("<H", len(key)) + key) + 2 + len(key)
    return place, struct.unpack_from("<Q", data, place)[0]


def test_a_record_that_points_at_another_does_not_spoil_it(
    many: Path, whole: dict[str, Any], killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terse_aug.bank.build.resumable_writer._SECONDS_PER_FLUSH", 0)
    left = leave(killed, tmp_path / "a.bank")
    data = bytearray(left.read_bytes())
    records = sum(key.startswith(b"r") for key in keys_of(killed))
    struct.pack_into("<Q", data, page_of(data, records - 1)[0], page_of(data, 0)[1])
    left.write_bytes(data)
    report = build_many(many, tmp_path / "a.bank")
    assert 0 < report.resumed < SAFE
    assert told(report) == whole


def test_ctrl_c_while_a_build_is_taken_over_keeps_it(
    many: Path, whole: dict[str, Any], killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.bank"
    left = leave(killed, out)
    before, taken = left.read_bytes(), []

    def stop(self: Ledger, other: Ledger) -> None:
        taken.append(other)
        if len(taken) == 4:
            raise KeyboardInterrupt
        take(self, other)

    take = Ledger.take
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "take", stop)
        with pytest.raises(KeyboardInterrupt, match=f"{SAFE} of {IMAGES} images are done and kept"):
            build_many(many, out)
    assert left_beside(out) == [left]
    assert left.read_bytes() == before
    report = build_many(many, out)
    assert report.resumed == SAFE
    assert told(report) == whole


def test_a_build_that_cannot_check_what_is_left_keeps_it(
    many: Path, killed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.bank"
    left = leave(killed, out)
    with monkeypatch.context() as patch:
        patch.setitem(multiprocessing.current_process()._config, "daemon", True)  # which may have no children
        patch.setattr("terse_aug.bank.build.resumable_writer.ResumableWriter.add_cut", stopped_after(4))
        with pytest.raises(KeyboardInterrupt):
            build_many(many, out)
    assert left_beside(out) == [left]
    assert build_many(many, out).resumed == SAFE


@pytest.mark.parametrize(("error", "said"), [(KeyboardInterrupt, f"{IMAGES} of {IMAGES} images"), (OSError, "no font")])
def test_pictures_that_fail_do_not_cost_the_build(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], said: str
) -> None:
    def fail(*_: object) -> None:
        raise error("no font" if error is OSError else "")

    with monkeypatch.context() as patch:
        patch.setattr("terse_aug.bank.build.pipeline.write_sheets", fail)
        with pytest.raises(error, match=said):
            build_many(many, tmp_path / "a.bank", rejected_sheet=tmp_path / "drops.png")
    assert build_many(many, tmp_path / "a.bank", rejected_sheet=tmp_path / "drops.png").resumed == IMAGES


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_waits_for_a_bank_that_is_put_in_its_place(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, publish = tmp_path / "a.bank", Store.publish

    def interrupted(store: Store, check: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        publish(store, check)

    monkeypatch.setattr(Store, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted, after .*a\.bank was written$"):
        build_many(many, out)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not left_beside(out)
    assert len(ForegroundBank.open(out)) > 0


def test_nothing_is_kept_where_it_cannot_be_gone_on_with(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("terse_aug.bank.build.resumable_writer.CAN_GO_ON", False)
    monkeypatch.setattr("terse_aug.bank.build.resumable_writer._SECONDS_PER_FLUSH", 0)
    monkeypatch.setattr("terse_aug.bank.build.resumable_writer.ResumableWriter.add_cut", stopped_after(4))
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        build_many(many, tmp_path / "a.bank")
    assert list(tmp_path.iterdir()) == []


def test_odd_things_under_the_name_of_what_is_left_are_passed_over(many: Path, killed: Path, tmp_path: Path) -> None:
    name = ".a.bank." + "{:016d}.building"
    os.mkfifo(tmp_path / name.format(1))
    (tmp_path / name.format(2)).symlink_to(killed)
    for number, text in ((3, b"[" * 100_000), (4, b'{"ledger": {"dropped": []}}'), (5, b"[1]")):
        opened = lmdb.open(str(tmp_path / name.format(number)), subdir=False, lock=False, map_size=1 << 22)
        with opened, opened.begin(write=True) as transaction:
            transaction.put(journal_key(0), hashed(text))
    assert build_many(many, tmp_path / "a.bank").resumed == 0
    assert [path.name for path in left_beside(tmp_path / "a.bank")] == [name.format(1), name.format(2)]
    assert killed.exists()


def hashed(text: bytes) -> bytes:
    """An entry of the journal that says so."""
    return bytes.fromhex(hash_of([text])) + text


def test_a_record_or_entry_that_changed_ends_what_is_sound(killed: Path, tmp_path: Path) -> None:
    assert sound_part(str(killed))[:2] == (SAFE // 8, SAFE)
    first = next(sound_chunks(str(killed))).entry
    for key, left in ((b"r" + (len(first.columns)).to_bytes(8, "big"), 1), (journal_key(2), 2)):
        copy = leave(killed, tmp_path / "a.bank")
        opened = lmdb.open(str(copy), subdir=False, lock=False, map_size=1 << 26)
        with opened, opened.begin(write=True) as transaction:
            value = bytearray(transaction.get(key))
            value[-1] ^= 1
            transaction.put(key, bytes(value))
        assert sound_part(str(copy)).chunks == left


def test_ctrl_c_ends_at_once_and_keeps_what_is_done(many: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "a.bank"
    with stopping_build(many, out, STOP, jobs=2) as build:
        began = time.monotonic()
        os.killpg(build.pid, signal.SIGINT)  # as a terminal does: to all of its processes
        _, said = build.communicate(timeout=60)
        assert build.returncode != 0
    assert time.monotonic() - began < 30
    assert "KeyboardInterrupt: interrupted; 48 of 56 images are done and kept" in said
    assert said.count("Traceback") <= 2, "other processes said something"
    assert len(left_beside(out)) == 1
    report = build_many(many, out)
    assert report.resumed == 48
    assert told(report) == whole


def test_the_command_says_how_to_go_on(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.bank"
    source = ["--annotations", str(many / "many.json"), "--images", str(many / "images"), "--boxes", "ellipse"]
    command = ["bank", "build", "coco", *source, "--out", str(out), "--jobs", "1"]

    kept = f"interrupted; {SAFE} of {IMAGES} images are done and kept"
    for seconds, after, said in ((5, 2, "interrupted; nothing was written"), (0, SAFE // 8, kept)):
        with monkeypatch.context() as patch:
            patch.setattr("terse_aug.bank.build.resumable_writer.ResumableWriter.add_cut", stopped_after(after))
            patch.setattr("terse_aug.bank.build.resumable_writer._SECONDS_PER_FLUSH", seconds)
            assert main(command) == 130
        assert said in capsys.readouterr().err
    assert main(command) == 0
    assert f"went on from a build that was stopped: {SAFE} of {IMAGES} images" in capsys.readouterr().out


def stopped_after(chunks: int) -> Any:
    """A way to add chunks that is interrupted after some."""
    from terse_aug.bank.build.resumable_writer import ResumableWriter

    add, added = ResumableWriter.add_cut, []

    def add_some(writer: ResumableWriter, cut: Any) -> None:
        if len(added) == chunks:
            raise KeyboardInterrupt
        added.append(cut)
        add(writer, cut)

    return add_some


def test_a_build_by_a_function_leaves_nothing(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def whole_box(image: np.ndarray, box: Any) -> np.ndarray:
        return box_alpha(image.shape, box)

    with monkeypatch.context() as patch:
        patch.setattr("terse_aug.bank.build.resumable_writer.ResumableWriter.add_cut", stopped_after(4))
        patch.setattr("terse_aug.bank.build.resumable_writer._SECONDS_PER_FLUSH", 0)
        with pytest.raises(KeyboardInterrupt):
            build_many(many, tmp_path / "a.bank", boxes=whole_box)
    assert list(tmp_path.iterdir()) == []


def test_a_live_build_is_left_alone_and_another_writer_clears_up(many: Path, killed: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.bank"
    with stopping_build(many, out, STOP) as build:
        assert build_many(many, out).resumed == 0
        assert len(left_beside(out)) == 1
        build.send_signal(signal.SIGKILL)
    write_bank(out, overwrite=True)
    assert not left_beside(out)
    assert len(ForegroundBank.open(out)) == 12


def test_an_error_leaves_nothing(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("terse_aug.bank.build.resumable_writer._SECONDS_PER_FLUSH", 0)

    def fail(done: int, total: int) -> None:
        if done == STOP:
            raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        build_many(many, tmp_path / "a.bank", progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_told_from_another_has_no_identity() -> None:
    assert identity_of({"a": 1}, [Path("b"), b"c"], []) == identity_of({"a": 1}, [Path("b"), b"c"], [])
    assert identity_of({"a": 1}, [Path("b")], []) != identity_of({"a": 1}, [Path("c")], [])
    assert identity_of({}, [object()], []) is None
    assert identity_of({}, [np.array([object()])], []) is None
    numbers = np.arange(6, dtype=np.int16)
    assert identity_of({}, [numbers], []) == identity_of({}, [numbers.copy()], [])
    others = (numbers + 1, numbers.reshape(2, 3), numbers.view(np.uint16), numbers.tolist())
    assert len({identity_of({}, [other], []) for other in (numbers, *others)}) == 5
    assert identity_of({}, [np.int64(1)], []) is not None


def test_annotations_with_numpy_numbers_go_on(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = json.loads((many / "many.json").read_text())
    for entry in content["annotations"]:
        entry |= {"track": np.int64(1), "score": np.float32(0.5), "embedding": np.ones((2, 3), np.float32)}

    def build() -> Any:
        return build_from_coco(content, many / "images", tmp_path / "a.bank", boxes="ellipse", jobs=1)

    with monkeypatch.context() as patch:
        patch.setattr("terse_aug.bank.build.resumable_writer.ResumableWriter.add_cut", stopped_after(4))
        patch.setattr("terse_aug.bank.build.resumable_writer._SECONDS_PER_FLUSH", 0)
        with pytest.raises(KeyboardInterrupt, match="32 of"):
            build()
    assert build().resumed == 32
    (tmp_path / "a.bank").unlink()
    content["annotations"][0]["track"] = object()
    with pytest.warns(UserWarning, match="cannot be gone on with"):
        build()


def test_what_was_counted_survives_writing() -> None:
    from terse_aug.bank.build.rejected_sample import RejectedSample
    from terse_aug.bank.inputs.masks import MaskInFile
    from terse_aug.bank.storage.columns import Columns

    ledger = Ledger()
    for number in range(60):
        shown = RejectedSample(Path("a"), f"{number}", [1, float("nan")], MaskInFile(Path("m"), number, True), (4, 5))
        ledger.drop("reason \udce9", "\udce9", shown=shown)
    ledger.repair(["note"], "x")
    ledger.mask_sources["mask"] += 3
    stored = Entry("id", 8, Columns(), "hash", ledger).encode()
    assert stored is not None
    again = Entry.decode(stored).ledger
    assert (again.rejected, again.repaired, again.mask_sources) == (
        ledger.rejected,
        ledger.repaired,
        ledger.mask_sources,
    )
    pairs = zip(again.exhibits["reason \udce9"].held, ledger.exhibits["reason \udce9"].held, strict=True)
    assert all(str(one) == str(other) for one, other in pairs)
    both = Ledger(), Ledger()
    for into, known in zip(both, (ledger, again), strict=True):
        into.take(known)
    assert str(both[0]) == str(both[1])
    assert Entry("id", 8, Columns(), "hash", with_exhibit(object())).encode() is None


def with_exhibit(segmentation: object) -> Ledger:
    from terse_aug.bank.build.rejected_sample import RejectedSample

    ledger = Ledger()
    ledger.drop("reason", "where", shown=RejectedSample("a", "b", segmentation=segmentation))
    return ledger
