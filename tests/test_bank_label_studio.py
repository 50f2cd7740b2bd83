"""Label Studio's JSON and JSON-MIN."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pixel_checks import HEIGHT, WIDTH, Mask, assert_masks, disk, noise, polygon, rectangle, save_image

from terse_aug.bank import BuildReport, build_from_label_studio
from terse_aug.bank.readers.label_studio import UPLOADED

TRIANGLE = [[10, 10], [60, 20], [30, 70]]
RING = disk(90, 40, 20) & ~disk(90, 40, 8)


def brush(mask: Mask, literal: bool = False, word: int = 8) -> list[int]:
    """A mask as Label Studio writes it, of the four channels of an image: equal runs, or value by value."""
    values = np.repeat(np.where(mask, 2**word - 1, 0).ravel(), 4)
    bits = f"{values.size:032b}{word - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value, run in groupby(values.tolist()):
        length = len(list(run))
        while length > 0:
            part = min(length, 8 if literal else 2**16)
            bits += "0" + "00" + f"{part - 1:03b}" + f"{value:0{word}b}" * part if literal else ""
            bits += "" if literal else "1" + "11" + f"{part - 1:016b}" + f"{value:0{word}b}"
            length -= part
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


def region(kind: str, label: str | None, identity: str, **value: Any) -> dict[str, Any]:
    labels = {} if label is None else {kind: [label]}
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    names = {"id": identity, "type": kind, "from_name": "label", "to_name": "image", "origin": "manual"}
    return names | size | {"value": value | labels}


def percent(points: list[list[float]]) -> list[list[float]]:
    return [[100 * x / WIDTH, 100 * y / HEIGHT] for x, y in points]


def box(left: float, top: float, width: float, height: float) -> dict[str, float]:
    (x, y), (w, h) = percent([[left, top], [width, height]])
    return {"x": x, "y": y, "width": w, "height": h, "rotation": 0}


def task(*results: dict[str, Any], image: str = "/data/upload/1/0a1b2c3d-a.png", **more: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"image": image}, "annotations": [{"result": list(results)}], "predictions": []} | more


def build(folder: Path, tasks: Any, file: str = "a.png", **options: Any) -> BuildReport:
    save_image(folder / "images" / file, noise())
    (folder / "export.json").write_text(json.dumps(tasks))
    return build_from_label_studio(folder / "export.json", folder / "images", folder / "out.bank", **options)


def ellipse() -> dict[str, Any]:
    (x, y), (across, down) = percent([[60.5, 50.5], [30, 12]])
    return {"x": x, "y": y, "radiusX": across, "radiusY": down, "rotation": 90}


def test_shapes_of_label_studio(tmp_path: Path) -> None:
    turned = box(100, 20, 60, 30) | {"rotation": 90}  # about its first corner
    report = build(
        tmp_path,
        [
            task(
                region("polygonlabels", "triangle", "a", points=percent(TRIANGLE), closed=True),
                region("brushlabels", "ring", "b", format="rle", rle=brush(RING)),
                region("ellipselabels", "oval", "c", **ellipse()),
                region("rectanglelabels", "turned", "d", **turned),
                region("rectangle", None, "e", **box(5, 60, 30, 20)),
                region("labels", "plain", "e", **box(5, 60, 30, 20)),  # the class of the same region
            )
        ],
        boxes="box",
    )
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    oval = ((columns - 60) / 12) ** 2 + ((rows - 50) / 30) ** 2 <= 1
    expected = {"triangle": [polygon(TRIANGLE)], "ring": [RING], "oval": [oval], "turned": [rectangle(70, 20, 30, 60)]}
    assert_masks(report, noise(), expected | {"plain": [rectangle(5, 60, 30, 20)]}, outline=True)
    assert report.rejected == {}
    assert report.repaired[UPLOADED] == 1


@pytest.mark.parametrize("literal", [True, False])
def test_brushes_are_exact(literal: bool, tmp_path: Path) -> None:
    report = build(tmp_path, [task(region("brushlabels", "ring", "b", rle=brush(RING, literal)))])
    assert_masks(report, noise(), {"ring": [RING]})


def test_json_min(tmp_path: Path) -> None:
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    own = {"points": percent(TRIANGLE), "polygonlabels": ["triangle"]} | size
    report = build(tmp_path, [{"id": 1, "image": "s3://bucket/sub/a.png", "label": [own], "annotator": 3}])
    assert_masks(report, noise(), {"triangle": [polygon(TRIANGLE)]}, outline=True)


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("/data/upload/1/0a1b2c3d-a.png", "0a1b2c3d-a.png"),
        ("/data/upload/1/0a1b2c3d-a.png", "a.png"),
        ("/data/local-files/?d=my%20set/a.png", "my set/a.png"),
        ("https://host/bucket/my%20set/a.png?X-Amz-Date=1", "my set/a.png"),
        ("s3://bucket/a.png", "a.png"),
        ("s3://bucket/my set#1/a?%20b.png", "my set#1/a?%20b.png"),
        ("/data/local-files/?d=my#1.png", "my#1.png"),
        ("https://host/a.png?d=300#top", "a.png"),
        ("C:\\data\\a.png", "a.png"),
    ],
)
def test_images_are_found(address: str, file: str, tmp_path: Path) -> None:
    report = build(tmp_path, task(region("brushlabels", "ring", "b", rle=brush(RING)), image=address), file)
    assert report.kept == {"ring": 1}


def test_a_name_with_a_number_sign_is_no_other_image(tmp_path: Path) -> None:
    ring = region("brushlabels", "ring", "b", rle=brush(RING))
    with pytest.raises(ValueError, match=r"1 +image file is missing"):
        build(tmp_path, task(ring, image="s3://bucket/my#1.png"), "my.png")


def test_uploads_of_the_same_name_are_not_confused(tmp_path: Path) -> None:
    ring = region("brushlabels", "ring", "b", rle=brush(RING))
    tasks = [task(ring, image=f"/data/upload/1/{prefix}-a.png") for prefix in ("0a1b2c3d", "1a1b2c3d")]
    with pytest.raises(ValueError, match=r"2 +image may be that of several uploads"):
        build(tmp_path, tasks)


def test_one_annotation_of_a_task_is_used_and_the_rest_is_counted(tmp_path: Path) -> None:
    ring, other = (region("brushlabels", name, name, rle=brush(RING)) for name in ("ring", "other"))
    results: list[dict[str, Any]] = [
        {"result": [other], "was_cancelled": True},
        {"result": [other, other]},
        {"result": [ring], "ground_truth": True},
    ]
    odd = [
        ring,
        region("keypointlabels", "a", "k", x=3, y=4, width=1),
        region("brushlabels", "a", "r", rle=brush(RING)[:40]),
        region("brushlabels", "a", "w", rle=brush(RING, word=12)),
        region("brushlabels", "a", "v", rle=brush(RING, word=1)),
        region("brushlabels", "a", "s", rle=brush(RING[:50])),
        {"type": "choices", "id": "z", "value": {"choices": ["day"]}},
        {"type": "relation", "from_id": "a", "to_id": "b"},
        region("brushlabels", None, "n", rle=brush(RING)),
        region("brushlabels", "a", "t", rle=brush(RING)) | {"image_rotation": 90},
    ]
    odd[-2]["value"]["brushlabels"] = ["a", "b"]
    tasks = [task(annotations=results), task(*odd), task(annotations=[]), {"data": {"text": "x"}}, 5]
    report = build(tmp_path, tasks)
    assert report.kept == {"ring": 2}
    assert report.rejected == {
        "annotation that was skipped by its annotator": 1,
        "region of another annotation of the same task": 2,
        "shape is a line or a point, which shows no object": 1,
        "run lengths of the brush are damaged": 3,
        "brush and image differ in size": 1,
        "result that is no region, such as a class of the whole image": 1,
        "result that is no region, such as a relation": 1,
        "region of several classes": 1,
        "image that was rotated in Label Studio": 1,
        "task without an annotation": 1,
        "task with several images, or without an image": 1,
        "task without data": 1,
    }
    with pytest.raises(ValueError, match="expected a JSON export of Label Studio"):
        build(tmp_path / "other", {"images": [], "annotations": [], "categories": []})
