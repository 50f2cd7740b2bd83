"""Messy names of files: a name means the only file that it can mean, and no file is taken for two."""

from __future__ import annotations

import os
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from bank_samples import gradient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_bank_messy import (
    CODEC,
    NAME,
    OTHER,
    SUFFIX,
    build,
    clean,
    damaged,
    fingerprint,
    first,
    renamed,
    runs,
    write_images,
)

from terse_aug.bank import BuildReport, build_from_masks
from terse_aug.bank.inputs.file_names import FileFinder, match_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path)


@pytest.mark.parametrize("codec", ["cp1252", "cp437", "latin-1"])
def test_damaged_names_on_disk_are_found(folder: Path, codec: str) -> None:
    """The reverse: an archive was unpacked wrongly, as text or as bytes that are none."""
    images = folder / "images"
    for spelled in (os.fsencode(damaged(codec)), NAME.encode(codec)):
        broken = Path(os.fsdecode(os.fsencode(images) + b"/" + spelled))
        broken.parent.mkdir(exist_ok=True)
        (images / NAME).rename(broken)
        report, _ = build(folder, clean(), overwrite=True)
        assert (report.kept, report.repaired) == ({"car": 1, "toothbrush": 1}, {CODEC: 1})
        broken.rename(images / NAME)


def listed_as(folder: Path, *names: str) -> BuildReport:
    """A data set of these images and the usual two, with a toothbrush in each."""
    content = clean()
    content["images"] += [{"id": 20 + row, "file_name": name} for row, name in enumerate(names)]
    content["annotations"] = [
        {"id": row, "image_id": image["id"], "category_id": 90, "segmentation": runs(30)}
        for row, image in enumerate(content["images"])
    ]
    return build(folder, content, overwrite=True)[0]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        ((), ("c.PNG", "C.png")),  # both are the same file
        (("d.png",), ("d.jpg", "d.png")),  # one has the file already
        (("e.png", "e.webp"), ("e.jpg", "b.png")),  # either may be meant
        (("f/x.png",), ("g/x.png", "b.png")),  # frames of another video
    ],
)
def test_ambiguous_names_are_not_repaired(folder: Path, files: tuple[str, ...], names: tuple[str, ...]) -> None:
    for file in (*files, "c.png"):
        (folder / "images" / file).parent.mkdir(exist_ok=True)
        (folder / "images" / file).write_bytes((folder / "images" / OTHER).read_bytes())
    report = listed_as(folder, *names)
    known = sum((folder / "images" / name).is_file() for name in names)
    missing = [count for reason, count in report.rejected.items() if "image file is missing" in reason]
    assert (report.kept, sum(missing)) == ({"toothbrush": 2 + known}, 2 - known)
    assert report.repaired == {}


def test_a_file_that_a_path_leads_to_belongs_to_no_other_name(folder: Path) -> None:
    same = str(Path(NAME).with_name(Path(NAME).name.upper()))
    for path in (str(folder / "images" / NAME), f"../images/{NAME}", f"./züge/../{NAME}", NAME):
        content = clean()
        renamed(path)(content)
        content["images"].append({"id": 10, "file_name": same})
        content["annotations"].append(first(content) | {"id": 5, "image_id": 10})
        report, _ = build(folder, content, overwrite=True)
        assert (report.kept["car"], report.repaired) == (1, {})
        assert report.rejected["image file is missing"] == 1


@pytest.mark.parametrize(
    ("mode", "file", "name", "others", "kept"),
    [
        ("P", "c/a.png", "c/a.jpg", (), False),  # masks
        ("L", "c/a.png", "c/a.jpg", (), False),
        ("RGB", "c/a.png", "c/a.jpg", (), True),
        ("RGB", "c/a.png", "c/a.jpg", ("c/b.PNG",), False),  # PNG files are named as such
        ("RGB", "c/a.png", "c/a.jpg", ("d/b.png",), True),
        ("L", "c/a.jpg", "c/a.JPEG", ("c/b.jpg",), True),  # one format
        ("L", "c/a.tif", "c/a.tiff", ("c/b.tif",), True),
    ],
)
def test_another_format_matches_photographs_only(
    folder: Path, mode: str, file: str, name: str, others: tuple[str, ...], kept: bool
) -> None:
    (folder / "images" / "c").mkdir()
    Image.fromarray(gradient(80, 120)).convert(mode).save(folder / "images" / file)
    report = listed_as(folder, name, *others)
    assert (report.kept["toothbrush"], report.repaired) == (2 + kept, {SUFFIX: 1} if kept else {})
    unclear = [count for reason, count in report.rejected.items() if "several may be meant" in reason]
    assert unclear == ([] if kept else [1])


names = st.text("aAäÄéß1._ /\\", min_size=1, max_size=8)


@given(st.sets(names), st.sets(names))
def test_no_file_matches_two_names(wanted: set[str], existing: set[str]) -> None:
    matches = match_names(wanted, existing)
    files = [match.name for match in matches.values() if match.name is not None]
    assert len(files) == len(set(files))
    assert set(files) <= existing - wanted
    assert not set(matches) & existing


def test_masks_of_another_spelling(folder: Path) -> None:
    masks, images = folder / "masks", folder / "images"
    masks.mkdir()
    (images / NAME).rename(images / "Käfer.png")
    for name in ("Käfer_mask.png", "b_mask.png"):
        Image.fromarray(np.pad(np.ones((20, 30), np.uint8), ((10, 50), (40, 50)))).save(masks / name)
    expected = build_from_masks(images, masks, folder / "clean.bank")
    (masks / "Käfer_mask.png").rename(masks / unicodedata.normalize("NFD", "Käfer_mask.png"))
    report = build_from_masks(images, masks, folder / "out.bank")
    assert fingerprint(report) == fingerprint(expected)
    assert (report.rejected, report.repaired) == ({}, {"mask: file name in another Unicode form": 1})


def test_names_of_another_format_take_time_in_proportion(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.png").touch()
    files = FileFinder(tmp_path, [f"{number}.jpg" for number in range(2000)])
    began = time.process_time()
    for number in range(2000):
        with pytest.raises(LookupError, match="may be a mask"):
            files.find(f"{number}.jpg")
    assert time.process_time() - began < 5
