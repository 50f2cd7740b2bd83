"""Ids and categories that are ambiguous or extreme."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bank_samples import CocoSample, make_foreground

from terse_aug.bank import BankWriter, BuildReport, ForegroundBank, build_from_coco
from terse_aug.bank.inputs.repair import find_id

LARGE = 2**53
"""From here on a float does not tell neighbouring numbers apart."""


@pytest.fixture
def sample(tmp_path: Path) -> CocoSample:
    return CocoSample(tmp_path)


def build(sample: CocoSample) -> BuildReport:
    """Of the content as it would be read from a file, without writing one."""
    return build_from_coco(sample.content, sample.images, sample.folder / "out.bank", overwrite=True)


def labels(report: BuildReport) -> list[int]:
    with ForegroundBank.open(report.path) as bank:
        return bank.labels.tolist()


@pytest.mark.parametrize("meant", [LARGE + 1, str(LARGE + 1), float(LARGE), f"{LARGE}.0", "9007199254740992e0"])
def test_neighbouring_large_ids_are_distinguished(meant: Any) -> None:
    notes: set[str] = set()
    assert find_id(meant, {LARGE: "a", str(LARGE): "b"}, notes) is None
    assert find_id(meant, {LARGE: "a", 1: "b"}, notes) is None


@pytest.mark.parametrize("written", [str, lambda number: f" {number} "])
def test_large_ids_as_text_are_exact(sample: CocoSample, written: Callable[[int], str]) -> None:
    sample.content["images"] = [sample.content["images"][0] | {"id": LARGE}]
    sample.content["annotations"] = []
    for number in (LARGE, LARGE + 1):
        sample.add(image_id=written(number))
    sample.add(image_id=float(LARGE))
    report = build(sample)
    assert report.kept == {"car": 1}
    assert report.rejected == {"image is not in the JSON": 2}
    assert report.repaired == {"id written as text": 1}


def test_large_categories_as_text_are_exact(sample: CocoSample) -> None:
    sample.content["categories"] = [
        {"id": str(LARGE + 1), "name": "odd"},
        {"id": LARGE, "name": "even"},
        {"id": f"{LARGE}.0", "name": "unclear"},
    ]
    sample.content["annotations"] = []
    sample.add(category_id=LARGE + 1)
    report = build(sample)
    assert report.kept == {"odd": 1}
    assert report.rejected == {"category without a name or an id that is a number": 1}


AMBIGUOUS = "category as text is the id of one and the name of another"


@pytest.mark.parametrize(
    ("texts", "expected", "dropped", "repaired"),
    [
        (["0", "1", "9"], [1, 2, 10], {}, {"category given by its name": 3}),  # 0 is no id
        (["1", "10"], [1, 10], {}, {"id written as text": 2}),  # 10 is no name
        (["1", "5", "car"], [11], {AMBIGUOUS: 2}, {"category given by its name": 1}),
        (["0", "10", "3"], [1, 10], {AMBIGUOUS: 1}, {"category given by its name": 1, "id written as text": 1}),
    ],
)
def test_categories_with_digits_for_names_are_read_in_one_way(
    sample: CocoSample, texts: list[str], expected: list[int], dropped: dict[str, int], repaired: dict[str, int]
) -> None:
    sample.content["categories"] = [{"id": number + 1, "name": str(number)} for number in range(10)]
    sample.content["categories"].append({"id": 11, "name": "car" if "car" in texts else "bus"})
    if "car" in texts:  # a text that is neither of digits leaves both readings of the others open
        sample.content["categories"].append({"id": 12, "name": "van"})
        texts = [*texts, "11 "]
        expected, repaired = [11, 11], repaired | {"id written as text": 1}
    sample.content["annotations"] = []
    for text in texts:
        sample.add(category_id=text)
    report = build(sample)
    assert labels(report) == expected
    assert (report.rejected, report.repaired) == (dropped, repaired)


def test_only_texts_that_are_both_are_left_out(sample: CocoSample) -> None:
    sample.content["categories"] = [{"id": number + 1, "name": str(number)} for number in range(3)]
    sample.content["annotations"] = []
    for category in ("1", "2", 3):
        sample.add(category_id=category)
    report = build(sample)
    assert labels(report) == [3]
    assert report.rejected == {AMBIGUOUS: 2}


def nested(levels: int) -> Any:
    value: Any = "1"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [12, 600, 20_000])
@pytest.mark.parametrize("key", ["segmentation", "bbox", "keypoints", "iscrowd", "image_id", "category_id", "id"])
def test_deep_nesting_is_dropped(sample: CocoSample, key: str, levels: int) -> None:
    sample.add(**{key: nested(levels)})
    report = build(sample)
    assert report.kept == {"car": 1}
    assert report.rejected == {"entry in annotations is nested too deeply": 1}


def test_deep_nesting_within_text_is_no_list(sample: CocoSample) -> None:
    sample.add(segmentation="[" * 600 + "1" + "]" * 600)
    report = build(sample)
    assert report.kept == {"car": 1}
    assert sum(report.rejected.values()) == 1


def test_a_file_nested_beyond_what_can_be_read_is_refused(sample: CocoSample) -> None:
    annotations, images = sample.write()
    annotations.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match="not JSON"):
        build_from_coco(annotations, images, sample.folder / "out.bank")


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**200])
def test_categories_that_are_too_large_are_dropped(sample: CocoSample, number: int) -> None:
    sample.content["categories"].append({"id": number, "name": "large"})
    sample.add(category_id=number)
    report = build(sample)
    assert report.kept == {"car": 1}
    assert report.rejected == {
        "category id is beyond 64 bits": 1,
        "category is not in the JSON": 1,
    }


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("place", ["id", "image_id", "category_id"])
def test_endless_ids_end_nothing(sample: CocoSample, place: str, text: bool) -> None:
    sample.add(**{place: "?"})
    sample.content["images"].append({"id": "?", "file_name": "a.png"})
    sample.content["categories"].append({"id": "?", "name": "y"})
    annotations, images = sample.write()
    digits = "1" * 5000
    annotations.write_text(annotations.read_text().replace('"?"', f'"{digits}"' if text else digits))
    report = build_from_coco(annotations, images, sample.folder / "out.bank")
    kept = 1 if place == "category_id" else 2
    assert report.kept == {"car": kept}


def test_endless_numbers_that_are_no_text_end_nothing(sample: CocoSample) -> None:
    sample.add(id=10**5000)
    report = build(sample)
    assert report.kept == {"car": 1}
    assert report.rejected == {"entry in annotations has an id of more than 300 digits": 1}


def test_names_that_are_no_text_do_not_end_a_build(tmp_path: Path) -> None:
    """Names of folders on disk may have bytes that are no UTF-8, and are then stored escaped."""
    name = os.fsdecode(b"caf\xe9")
    with BankWriter(tmp_path / "a.bank", {1: name}) as writer:
        writer.add(make_foreground(0, label=1))
        writer.built = {"images": name, name: [name]}
    with ForegroundBank.open(tmp_path / "a.bank") as bank:
        assert bank.categories == {1: "caf\\udce9"}
        assert bank.info()["built"] == {"images": "caf\\udce9", "caf\\udce9": ["caf\\udce9"]}
        json.dumps(bank.info(), ensure_ascii=False).encode()


def test_folders_that_are_no_text_do_not_end_a_build(sample: CocoSample) -> None:
    images = Path(os.fsdecode(os.fsencode(sample.folder) + b"/caf\xe9"))
    sample.images.rename(images)
    report = build_from_coco(sample.content, images, sample.folder / "out.bank")
    report.summary().encode()
    assert report.kept == {"car": 1}
