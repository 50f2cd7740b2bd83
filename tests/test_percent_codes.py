"""File names with percent codes, in annotations or on disk, and names that differ in several ways."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from annotated_samples import make_sample
from PIL import Image

from terse_aug.bank.inputs.file_names import FileFinder

PERCENT, SEVERAL = "file name in percent codes", "file name that differs in several ways"


def finder(folder: Path, files: list[str], names: list[str]) -> FileFinder:
    for file in files:
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + os.fsencode(file)))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path, "PNG")
    return FileFinder(folder, names)


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("a b ä.png", "a%20b%20%C3%A4.png", PERCENT),
        ("a%20b.png", "a b.png", PERCENT),
        ("a%2520b.png", "a b.png", PERCENT),
        ("https://host/set/a%20b.PNG", "a b.png", SEVERAL),  # folder and percent
        ("train/a b.png", "a%20b.png", SEVERAL),
        ("a b.png", "train/a%20b.png", SEVERAL),
        ("a%20b.jpg", "a b.png", SEVERAL),  # percent and ending
        ("C:\\old\\K%C3%A4fer%201.JPG", "Käfer 1.png", SEVERAL),  # folder, percent and ending
        ("old/a.jpg", "a.png", SEVERAL),  # folder and ending
        ("k%E4fer.png", "käfer.png", SEVERAL),  # percent codes of latin-1
        ("old/Käfer.png", os.fsdecode("Käfer.png".encode("latin-1")), SEVERAL),  # folder and encoding
    ],
)
def test_a_name_means_the_only_file_that_it_can_mean(tmp_path: Path, name: str, file: str, reason: str) -> None:
    assert finder(tmp_path, [file], [name]).find(name) == (file, reason)


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["a%20b.jpg"], ["x/a b.png", "y/a b.png"]),  # either may be meant
        (["c/a%20b.jpg", "d/a b.jpg"], ["a b.png"]),  # two names
        (["seq2/00%31.jpg"], ["seq1/001.png"]),  # another folder
    ],
)
def test_an_unclear_name_means_none(tmp_path: Path, names: list[str], files: list[str]) -> None:
    found = finder(tmp_path, files, names)
    for name in names:
        with contextlib.suppress(LookupError):  # or a missing file
            assert found.find(name) == (name, None)


def test_masks_under_the_name_of_a_photograph_are_not_taken(tmp_path: Path) -> None:
    sample = make_sample(tmp_path)
    Image.new("L", (8, 8)).save(sample.images / "a b.png")
    with pytest.raises(LookupError, match="may be a mask"):
        FileFinder(sample.images, ["old/a%20b.jpg"]).find("old/a%20b.jpg")
