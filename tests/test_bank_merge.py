"""Merged banks have all foregrounds of the others, or are not written at all."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from bank_samples import assert_equal, make_foreground, write_bank
from build_samples import left_beside
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from terse_aug.bank import BankWriter, Foreground, ForegroundBank, build_from_coco, build_from_masks, merge_banks
from terse_aug.bank.analysis import bank_statistics, render_report
from terse_aug.bank.merge import NewLabel
from terse_aug.bank.storage import lmdb_writer
from terse_aug.bank.storage.record import DESCRIPTION_KEY, record_key
from terse_aug.cli import main


def write(path: Path, names: Mapping[int, str], first: int = 0, count: int = 4, **writer: Any) -> Path:
    """A bank of some foregrounds, whose labels take turns."""
    built = writer.pop("built", {})
    with BankWriter(path, names, **writer) as bank:
        for number in range(count):
            bank.add(make_foreground(first + number, label=sorted(names)[number % len(names)], center=(0.5, 0.25)))
        bank.built = built
    return path


def by_name(*paths: Path) -> list[tuple[str, Foreground]]:
    """All foregrounds of some banks with their classes."""
    found = []
    for path in paths:
        with ForegroundBank.open(path) as bank:
            found += [(bank.categories[one.label].strip(), one) for one in bank]
    return found


def assert_same(actual: Sequence[tuple[str, Foreground]], expected: Sequence[tuple[str, Foreground]]) -> None:
    """The same foregrounds of the same classes in the same order, whatever their labels."""
    assert len(actual) == len(expected)
    for (name, own), (other_name, other) in zip(actual, expected, strict=True):
        assert name == other_name
        assert own.center == other.center
        assert_equal(own, Foreground(**vars(other) | {"label": own.label}))


def change(path: Path, key: bytes, value: bytes) -> None:
    """Write another value into a bank."""
    with lmdb.open(str(path), subdir=False, lock=False, map_size=1 << 26) as opened, opened.begin(write=True) as own:
        own.put(key, value)


def stored(path: Path, key: bytes) -> bytes:
    with lmdb.open(str(path), subdir=False, lock=False, readonly=True) as opened, opened.begin() as own:
        return bytes(own.get(key))


def test_the_halves_of_real_data_are_the_whole(data_root: Path, tmp_path: Path) -> None:
    folders = data_root / "penn_fudan/PNGImages", data_root / "penn_fudan/PedMasks"
    names = [f"FudanPed{number:05d}" for number in range(1, 13)]
    lists = {"whole": names, "first": names[:6], "second": names[6:], "even": names[::2], "odd": names[1::2]}
    for name, own in lists.items():
        build_from_masks(*folders, tmp_path / f"{name}.bank", image_list=own, category="person", jobs=1)
    report = merge_banks([tmp_path / "first.bank", tmp_path / "second.bank"], tmp_path / "both.bank")
    with ForegroundBank.open(tmp_path / "both.bank") as both, ForegroundBank.open(tmp_path / "whole.bank") as whole:
        assert both.fingerprint == whole.fingerprint
        assert both.centers.tolist() == whole.centers.tolist()
        assert report.banks == {"first.bank": 10, "second.bank": 11}
        assert len(whole) == 21
    merge_banks([tmp_path / "even.bank", tmp_path / "odd.bank"], tmp_path / "mixed.bank")
    found, expected = by_name(tmp_path / "mixed.bank"), by_name(tmp_path / "whole.bank")
    assert_same(found, by_name(tmp_path / "even.bank", tmp_path / "odd.bank"))
    in_order = [sorted(own, key=lambda one: str(one[1].source)) for own in (found, expected)]
    assert_same(*in_order)


def test_banks_of_different_data_sets(data_root: Path, tmp_path: Path) -> None:
    penn = data_root / "penn_fudan"
    people = tmp_path / "people.bank"
    build_from_masks(penn / "PNGImages", penn / "PedMasks", people, image_list=["FudanPed00001"], category="person")
    coco, posed, cars = data_root / "coco_mini", tmp_path / "posed.bank", tmp_path / "cars.bank"
    listed = [path.name for path in sorted((coco / "val2017").iterdir())][:90]
    for kind, name, out in (("person_keypoints", "person", posed), ("instances", "car", cars)):
        annotations = coco / f"annotations/{kind}_val2017.json"
        build_from_coco(annotations, coco / "val2017", out, categories=[name], image_list=listed)
    report = merge_banks([cars, posed, people], tmp_path / "out.bank")
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert bank.categories == {1: "person", 3: "car"}
        assert bank.keypoint_names[:1] == ("nose",)
        assert sum(one.keypoints is not None for one in bank) == report.banks["posed.bank"] > 10
        assert bank.info()["built"]["mask_sources"] == {"mask": len(bank)}
    assert set(report.kept["person"]) == {"posed.bank", "people.bank"}
    assert set(report.kept["car"]) == {"cars.bank"}
    assert_same(by_name(tmp_path / "out.bank"), by_name(cars, posed, people))


CLASSES = st.dictionaries(st.integers(-2, 6), st.sampled_from(["ant", "bee", " bee ", "cow", "dog"]), min_size=1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(CLASSES, min_size=3, max_size=3), counts=st.lists(st.integers(1, 4), min_size=3, max_size=3))
def test_merging_is_associative(tmp_path: Path, names: list[dict[int, str]], counts: list[int]) -> None:
    paths = [
        write(tmp_path / f"{number}.bank", own, 10 * number, count, overwrite=True, built={"from": number})
        for number, (own, count) in enumerate(zip(names, counts, strict=True))
    ]
    merged = {name: tmp_path / f"{name}.bank" for name in ("all", "01", "12", "01+2", "0+12")}
    for name, parts in {
        "all": paths,
        "01": paths[:2],
        "12": paths[1:],
        "01+2": [merged["01"], paths[2]],
        "0+12": [paths[0], merged["12"]],
    }.items():
        merge_banks(parts, merged[name], overwrite=True)
    expected = by_name(*paths)
    records = []
    for name in ("all", "01+2", "0+12"):
        assert_same(by_name(merged[name]), expected)
        with ForegroundBank.open(merged[name]) as bank:
            records.append(bank.info()["built"])
            assert len(set(bank.categories.values())) == len(bank.categories)
    assert records[0] == records[1] == records[2]


def test_labels_are_those_of_the_first_bank_that_has_the_class(tmp_path: Path) -> None:
    first = write(tmp_path / "a.bank", {1: "cat", 5: "dog"})
    second = write(tmp_path / "b.bank", {1: "dog", 5: "eel", 7: "fox", 8: " cat "}, 10)
    report = merge_banks([first, second], tmp_path / "out.bank")
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert bank.categories == {1: "cat", 5: "dog", 7: "fox", 9: "eel"}
    assert report.labels == {"cat": 1, "dog": 5, "eel": 9, "fox": 7}
    changed = [("dog", 1, 5), ("eel", 5, 9), (" cat ", 8, 1)]
    assert report.new_labels == [NewLabel("b.bank", name.strip(), *labels) for name, *labels in changed]
    assert report.kept == {
        "cat": {"a.bank": 2, "b.bank": 1},
        "dog": {"a.bank": 2, "b.bank": 1},
        "fox": {"b.bank": 1},
        "eel": {"b.bank": 1},
    }
    assert "9  eel, 5 in b.bank" in report.summary()


def test_records_of_the_banks_are_kept_and_summed(tmp_path: Path) -> None:
    built = {"from": "coco", "rejected": {"crowd": 2}, "repaired": {}, "mask_sources": {"mask": 3, "grabcut": 1}}
    for name in "ab":
        (tmp_path / name).mkdir()
    first = write(tmp_path / "a/x.bank", {1: "cat"}, built=built)
    second = write(tmp_path / "b/x.bank", {1: "cat"}, 10, built=built | {"rejected": {"crowd": 1, "mask is empty": 4}})
    third = write(tmp_path / "c.bank", {1: "cat"}, 20, built={"rejected": "no counts"})
    merge_banks([first, second, third], tmp_path / "out.bank")
    with ForegroundBank.open(tmp_path / "out.bank") as bank, ForegroundBank.open(second) as own:
        record = bank.info()["built"]
        page = render_report(bank_statistics(bank))
        assert record["merged"][1] == {
            "bank": "b/x.bank",
            "fingerprint": own.fingerprint,
            "foregrounds": 4,
            "classes": {"cat": 4},
            "built": own.info()["built"],
        }
    sums = {"rejected": {"crowd": 3, "mask is empty": 4}, "repaired": {}, "mask_sources": {"mask": 6, "grabcut": 2}}
    assert {key: record[key] for key in sums} == sums
    assert [own["bank"] for own in record["merged"]] == ["a/x.bank", "b/x.bank", f"{tmp_path.name}/c.bank"]
    assert "bank b/x.bank, classes cat 4" in page


def test_the_output_is_none_of_the_banks(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.bank", {1: "cat"}, 10 * place) for place, name in enumerate("ab")]
    before = [path.read_bytes() for path in paths]
    (tmp_path / "link.bank").symlink_to(paths[0])
    os.link(paths[1], tmp_path / "hard.bank")
    for out in (paths[0], paths[1], tmp_path / "link.bank", tmp_path / "hard.bank", tmp_path / "x/../a.bank"):
        (tmp_path / "x").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="is one of the banks to merge; write to another file"):
            merge_banks(paths, out, overwrite=True)
    assert [path.read_bytes() for path in paths] == before


def test_foregrounds_are_not_merged_twice(tmp_path: Path) -> None:
    first, second, out = (tmp_path / f"{name}.bank" for name in ("a", "b", "out"))
    write(first, {1: "cat"})
    write(second, {1: "cat"}, 10)
    shutil.copy(first, tmp_path / "copy.bank")
    merge_banks([first, second], tmp_path / "ab.bank")
    for parts in ([first, first], [first, tmp_path / "copy.bank"], [tmp_path / "ab.bank", second]):
        with pytest.raises(ValueError, match="have the same foregrounds, or some; give one of them"):
            merge_banks(parts, out)
    for one in ([first], first, []):
        with pytest.raises(ValueError, match="expected two banks or more"):
            merge_banks(one, out)
    assert not out.exists()


def test_different_keypoints_are_refused(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / f"{name}.bank", {1: "cat"}, 10 * place, keypoint_names=names)
        for place, (name, names) in enumerate({"a": ("nose",), "b": ("tail",), "c": ()}.items())
    ]
    with pytest.raises(ValueError, match=r"a.bank and .*b.bank have different keypoints"):
        merge_banks(paths, tmp_path / "out.bank")
    merge_banks(paths[1:], tmp_path / "out.bank")
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert bank.keypoint_names == ("tail",)


@pytest.mark.parametrize("damage", ["pixel", "record", "version", "truncated", "label", "no bank", "missing"])
def test_a_damaged_bank_is_named_and_nothing_is_written(tmp_path: Path, damage: str) -> None:
    good, bad = write(tmp_path / "good.bank", {1: "cat"}), write(tmp_path / "bad.bank", {1: "cat", 2: "dog"}, 10)
    out = write(tmp_path / "out.bank", {1: "cat"}, 20)
    before = out.read_bytes()
    if damage == "pixel":
        record = bytearray(stored(bad, record_key(2)))
        record[-2] ^= 1
        change(bad, record_key(2), bytes(record))
    elif damage == "record":
        change(bad, record_key(3), stored(bad, record_key(3))[:-4])
    elif damage == "version":
        change(bad, DESCRIPTION_KEY, json.dumps(json.loads(stored(bad, DESCRIPTION_KEY)) | {"version": 2}).encode())
    elif damage == "label":
        change(bad, b"labels", np.array([1, 2, 1, 9], "<i8").tobytes())
    elif damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:-4096])
    elif damage == "no bank":
        bad.write_bytes(b"something else" * 1000)
    else:
        bad.unlink()
    expected = {
        "pixel": "bad.bank is damaged, or was changed: expected the fingerprint",
        "record": r"foreground 3 of .*bad.bank is damaged",
        "version": "bad.bank cannot be used: expected bank format version 1, got 2; build the bank again",
        "label": "bad.bank is damaged: label 9 has no name",
        "truncated": "bad.bank is truncated",
        "no bank": "bad.bank is no foreground bank",
        "missing": "no foreground bank at .*bad.bank",
    }
    with pytest.raises((ValueError, FileNotFoundError), match=expected[damage]):
        merge_banks([good, bad], out, overwrite=True)
    assert out.read_bytes() == before
    assert not left_beside(out)


def test_a_merge_that_is_stopped_leaves_what_was_there(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.bank", {1: "cat"}, 10 * place) for place, name in enumerate("ab")]
    out = write(tmp_path / "out.bank", {1: "cat"}, 20)
    before = out.read_bytes()

    def stop(done: int, total: int) -> None:
        assert total == 8
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_banks(paths, out, overwrite=True, progress=stop)
    assert out.read_bytes() == before
    assert not left_beside(out)
    with pytest.raises(FileExistsError, match="--overwrite"):
        merge_banks(paths, out)
    with pytest.raises(FileNotFoundError, match="create it first"):
        merge_banks(paths, tmp_path / "nowhere/out.bank")
    merge_banks(paths, out, overwrite=True)
    assert_same(by_name(out), by_name(*paths))


def test_one_foreground_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_writer, "_BATCH_BYTES", 1 << 18)
    rgba = np.full((200, 200, 4), 255, np.uint8)  # 160 kB
    for name, value in (("a", 1), ("b", 2)):
        with BankWriter(tmp_path / f"{name}.bank", {1: "cat"}) as writer:
            for _ in range(100):
                rgba[0, 0, 0] = value
                writer.add(make_foreground(1, rgba=rgba.copy(), label=1))
    tracemalloc.start()
    try:
        merge_banks([tmp_path / "a.bank", tmp_path / "b.bank"], tmp_path / "out.bank")
        assert tracemalloc.get_traced_memory()[1] < 20 * rgba.nbytes
    finally:
        tracemalloc.stop()


def test_names_that_are_no_text_do_not_look_like_damage(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{place}.bank", {1: "caf\udce9"}, 10 * place) for place in range(2)]
    merge_banks(paths, tmp_path / "out.bank")
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert bank.categories == {1: "caf\\udce9"}


def test_the_command_merges_any_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(write(tmp_path / f"{place}.bank", {1: f"class {place}"}, 10 * place)) for place in range(5)]
    out = str(tmp_path / "out.bank")
    assert main(["bank", "merge", *paths, "--out", out]) == 0
    printed = capsys.readouterr().out
    assert "out.bank: 20 foregrounds of 5 banks" in printed
    assert "4  class 3 (label 4; 3.bank 4)" in printed
    assert "4  class 3, 1 in 3.bank" in printed
    assert main(["bank", "info", out]) == 0
    assert "foregrounds per bank that it was merged from\n       4  0.bank" in capsys.readouterr().out
    assert main(["bank", "merge", paths[0], out, "--out", out, "--overwrite"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {out} is one of the banks to merge")
    write_bank(tmp_path / "some.bank", 3)
    assert main(["bank", "merge", str(tmp_path / "some.bank"), paths[0], "--out", out]) == 2
    assert "--overwrite" in capsys.readouterr().err
