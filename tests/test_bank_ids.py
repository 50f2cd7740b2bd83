"""Ids and categories that are ambiguous or extreme."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from bank_samples import CocoSample, make_foreground

from terse_aug.bank import BankWriter, BuildReport, ForegroundBank, build_from_coco

NO_CATEGORY = "category without a name or an id that is a number of 64 bits"
AMBIGUOUS, BY_NAME = "category as text is the id of one and the name of another", "category given by its name"
BY_TEXT = "id written as text"


@pytest.fixture
def sample(tmp_path: Path) -> CocoSample:
    return CocoSample(tmp_path)


def build(sample: CocoSample) -> BuildReport:
    """From the content in memory."""
    return build_from_coco(sample.content, sample.images, sample.folder / "out.bank", overwrite=True)


def labels(report: BuildReport) -> list[int]:
    with ForegroundBank.open(report.path) as bank:
        return bank.labels.tolist()


@pytest.mark.parametrize(
    ("texts", "others", "expected", "rejected", "repaired"),
    [
        (["0", "1", "9"], {11: "bus"}, [1, 2, 10], {}, {BY_NAME: 3}),  # 0 is no id
        (["1", "10"], {11: "bus"}, [1, 10], {}, {BY_TEXT: 2}),  # 10 is no name
        # A text that is no digit, and one that is an id only, leave both readings of the others open.
        (["1", "5", "car", "11 "], {11: "car", 12: "van"}, [11, 11], {AMBIGUOUS: 2}, {BY_NAME: 1, BY_TEXT: 1}),
        (["0", "10", "3"], {11: "bus"}, [1, 10], {AMBIGUOUS: 1}, {BY_NAME: 1, BY_TEXT: 1}),
        (["1", "2", 3], {}, [3], {AMBIGUOUS: 2}, {}),  # numbers are never ambiguous
    ],
)
def test_categories_with_digits_for_names_are_all_ids_or_all_names(
    sample: CocoSample,
    texts: list[Any],
    others: dict[int, str],
    expected: list[int],
    rejected: dict[str, int],
    repaired: dict[str, int],
) -> None:
    names = {number + 1: str(number) for number in range(10 if others else 3)} | others
    sample.content["categories"] = [{"id": label, "name": name} for label, name in names.items()]
    sample.content["annotations"] = []
    for text in texts:
        sample.add(category_id=text)
    report = build(sample)
    assert labels(report) == expected
    assert (report.rejected, report.repaired) == (rejected, repaired)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**200])
def test_category_ids_beyond_64_bits_are_rejected(sample: CocoSample, number: int) -> None:
    sample.content["categories"].append({"id": number, "name": "large"})
    sample.add(category_id=number)
    report = build(sample)
    assert report.kept == {"car": 1}
    assert report.rejected == {NO_CATEGORY: 1, "category is not in the JSON": 1}


def test_names_of_files_and_folders_that_are_no_text_do_not_end_a_build(sample: CocoSample, tmp_path: Path) -> None:
    """Names on disk may have bytes that are no UTF-8, and are stored escaped."""
    name = os.fsdecode(b"caf\xe9")
    with BankWriter(tmp_path / "a.bank", {1: name}) as writer:
        writer.add(make_foreground(0, label=1))
        writer.built = {"images": name, name: [name]}
    with ForegroundBank.open(tmp_path / "a.bank") as bank:
        assert bank.categories == {1: "caf\\udce9"}
        assert bank.info()["built"] == {"images": "caf\\udce9", "caf\\udce9": ["caf\\udce9"]}
        json.dumps(bank.info(), ensure_ascii=False).encode()
    sample.images = sample.images.rename(sample.folder / name)
    report = build(sample)
    report.summary().encode()
    assert report.kept == {"car": 1}
