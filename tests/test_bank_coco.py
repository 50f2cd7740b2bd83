"""Banks from COCO JSON: what is kept is what pycocotools decodes, and whatever is dropped is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_samples import CocoSample
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from terse_aug.bank import BuildReport, ExtractionRules, ForegroundBank, build_from_coco
from terse_aug.bank.extract import RejectedObject, spread_object_color
from terse_aug.bank.inputs.masks import run_lengths

# pycocotools 2.0.11 with numpy 2: its decoder, which only these tests call, has no `copy` keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def sample(tmp_path: Path) -> CocoSample:
    return CocoSample(tmp_path)


def build(sample: CocoSample, **arguments: Any) -> tuple[BuildReport, ForegroundBank]:
    report = build_from_coco(*sample.write(), sample.folder / "out.bank", **arguments)
    return report, ForegroundBank.open(report.path)


def rectangle_mask() -> np.ndarray:
    mask = np.zeros((80, 120), np.uint8, order="F")
    mask[10:30, 30:70] = 1
    return mask


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *changes.tolist(), flat.size]).tolist() if not flat[0] else [0]


def compressed() -> dict[str, Any]:
    encoded = coco_mask.encode(rectangle_mask())
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize(
    "segmentation",
    [
        [[30, 10, 70, 10, 70, 30, 30, 30]],
        [[30, 10, 50, 10, 50, 30, 30, 30], [50, 10, 70, 10, 70, 30, 50, 30], [1, 2, 3, 4]],
        {"size": [80, 120], "counts": runs_of(rectangle_mask())},
        compressed(),
    ],
    ids=["polygon", "parts, one degenerate", "runs", "compressed"],
)
def test_segmentations_of_all_forms(sample: CocoSample, segmentation: object) -> None:
    sample.content["annotations"] = []
    sample.add(segmentation=segmentation)
    report, bank = build(sample)
    assert report.kept == {"car": 1}
    assert report.rejected == {}
    foreground = bank[0]
    assert foreground.rgba.shape == (20, 40, 4)
    assert (foreground.rgba[..., 3] == 255).all()
    np.testing.assert_array_equal(foreground.rgba[..., :3], sample.pixels[10:30, 30:70])
    assert (foreground.label, foreground.source) == (3, "a.png#1")
    assert foreground.relative_size == pytest.approx(40 / np.sqrt(80 * 120))
    assert foreground.center == pytest.approx((50 / 120, 20 / 80))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"segmentation": None}, "no mask: the annotation has a box only"),
        ({"segmentation": []}, "no mask: the annotation has a box only"),
        ({"iscrowd": 1}, "crowd"),
        ({"ignore": 1}, "marked to be ignored"),
        ({"segmentation": [[1, 2, 3, 4]]}, "fewer than 3 points"),
        ({"segmentation": [[10, 10, 50, 10, 50, float("nan")]]}, "no list of finite numbers"),
        ({"segmentation": [[1, 1, 1e9, 1, 1e9, 1e9]]}, "far outside"),
        ({"segmentation": [[200, 10, 240, 10, 240, 30, 200, 30]]}, "mask is empty"),
        ({"segmentation": {"size": [80, 121], "counts": [80 * 121]}}, "RLE and image differ in size"),
        ({"segmentation": {"size": [80, 120], "counts": [5, 5]}}, "RLE is damaged"),
        ({"segmentation": {"size": [80, 120], "counts": [-5, 9605]}}, "RLE is damaged"),
        ({"segmentation": {"size": [80, 120], "counts": "\u00ff!?"}}, "RLE is damaged"),
        ({"segmentation": {"size": [80, 120], "counts": compressed()["counts"][:-1]}}, "RLE is damaged"),
        ({"segmentation": {"size": [80, 120]}}, "RLE is damaged"),
        ({"bbox": [0, 50, 40, 20]}, "mask and box disagree"),
        ({"bbox": [30, 10, 0, 0]}, "mask and box disagree"),
        ({"segmentation": [[30, 10, 34, 10, 34, 30, 30, 30]], "bbox": [30, 10, 4, 20]}, "min_area"),
        ({"segmentation": [[30, 10, 70, 10, 70, 14, 30, 14]], "bbox": [30, 10, 40, 4]}, "min_side"),
        ({"image_id": 8}, "image is not in the JSON"),
        ({"category_id": 4}, "category is not in the JSON"),
    ],
)
def test_unusable_objects_are_counted(sample: CocoSample, changes: dict[str, Any], reason: str) -> None:
    sample.add(**changes)
    report, bank = build(sample)
    assert len(bank) == 1
    assert sum(report.rejected.values()) == 1
    (given,) = report.rejected
    assert reason in given
    assert "2" in report.examples[given][0]
    assert given in report.summary()
    assert bank.info()["built"]["rejected"] == report.rejected


@pytest.mark.parametrize("trouble", ["missing", "truncated", "size", "text"])
def test_unusable_images_are_counted_by_object(sample: CocoSample, trouble: str) -> None:
    sample.content["images"].append({"id": 8, "file_name": "b.png", "height": 80, "width": 120})
    sample.add(image_id=8)
    sample.add(image_id=8)
    whole = (sample.images / "a.png").read_bytes()
    if trouble == "truncated":
        (sample.images / "b.png").write_bytes(whole[: len(whole) // 2])
    elif trouble == "text":
        (sample.images / "b.png").write_text("no image")
    elif trouble == "size":
        Image.fromarray(sample.pixels[:-1]).save(sample.images / "b.png")
    report, _ = build(sample)
    assert list(report.rejected.values()) == [2]
    expected = {"missing": "missing", "size": "another size"}.get(trouble, "cannot be read")
    assert expected in next(iter(report.rejected))


def test_keypoints_move_and_shrink_with_the_foreground(sample: CocoSample) -> None:
    sample.content["categories"][0]["keypoints"] = ["front", "back", "top"]
    sample.content["annotations"][0]["keypoints"] = [30, 10, 2, 70, 30, 1, 0, 0, 0]
    _, bank = build(sample)
    assert bank.keypoint_names == ("front", "back", "top")
    assert bank[0].keypoints is not None
    assert bank[0].keypoints.tolist() == [[0, 0, 2], [40, 20, 1], [0, 0, 0]]
    _, small = build(sample, rules=ExtractionRules(max_side=20), overwrite=True)
    assert small[0].rgba.shape == (10, 20, 4)
    assert (small[0].relative_size, small[0].center) == (bank[0].relative_size, bank[0].center)
    assert small[0].keypoints is not None
    assert small[0].keypoints.tolist() == [[0, 0, 2], [20, 10, 1], [0, 0, 0]]


def test_different_keypoints_are_refused_unless_one_is_chosen(sample: CocoSample) -> None:
    for category, names in zip(sample.content["categories"], (["a"], ["b"]), strict=True):
        category["keypoints"] = names
    with pytest.raises(ValueError, match="different keypoints"):
        build(sample)
    assert build(sample, categories=["car"])[1].keypoint_names == ("a",)


def test_scaling_down_excludes_the_background_colour(sample: CocoSample) -> None:
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[..., 1] = 255  # the background is green, the object red
    mask = np.zeros((80, 120), np.uint8, order="F")
    mask[10:61, 30:81] = np.tri(51, dtype=np.uint8)
    pixels[mask > 0] = (255, 0, 0)
    Image.fromarray(pixels).save(sample.images / "a.png")
    encoded = coco_mask.encode(mask)
    sample.content["annotations"] = []
    sample.add(segmentation={"size": [80, 120], "counts": encoded["counts"].decode()}, bbox=[30, 10, 51, 51])
    _, bank = build(sample, rules=ExtractionRules(max_side=20))
    rgba = bank[0].rgba
    assert max(rgba.shape) == 20
    assert set(np.unique(rgba[..., 3])) - {0, 255}  # the edge is soft
    assert (rgba[rgba[..., 3] > 0][:, :3] == (255, 0, 0)).all()


def test_truncated_objects_can_be_rejected(sample: CocoSample) -> None:
    sample.add(segmentation=[[0, 10, 40, 10, 40, 30, 0, 30]], bbox=[0, 10, 40, 20])
    assert sum(build(sample)[0].kept.values()) == 2
    report, _ = build(sample, rules=ExtractionRules(drop_truncated=True), overwrite=True)
    assert report.rejected == {"touches the border of its image (drop_truncated)": 1}


def test_choice_of_categories(sample: CocoSample) -> None:
    sample.add(category_id=90)
    report, bank = build(sample, categories=["toothbrush"])
    assert bank.categories == {90: "toothbrush"}
    assert report.rejected == {"category is not in `categories`": 1}
    with pytest.raises(ValueError, match="no such categories: cat; the JSON has car, toothbrush"):
        build(sample, categories=["cat"], overwrite=True)


@pytest.mark.parametrize("entry", ["b.png", "b", "sub/b.png", "sub/b"])
def test_the_image_list_selects_images(sample: CocoSample, entry: str) -> None:
    (sample.images / "sub").mkdir()
    Image.fromarray(sample.pixels).save(sample.images / "sub" / "b.png")
    sample.content["images"].append({"id": 8, "file_name": "sub/b.png", "height": 80, "width": 120})
    sample.add(image_id=8)
    listing = sample.folder / "train.txt"
    listing.write_text(f"# training split\n\n{entry}\nmissing.png\n", encoding="utf-8")
    report, bank = build(sample, image_list=listing)
    assert [foreground.source for foreground in bank] == ["sub/b.png#2"]
    assert report.rejected == {
        "image is not in `image_list`": 1,
        "listed in `image_list`, but there is no such image": 1,
    }
    assert [f.source for f in build(sample, image_list=[entry], overwrite=True)[1]] == ["sub/b.png#2"]


@pytest.mark.parametrize("content", ["[1, 2]", "{", '{"images": [], "annotations": []}', "\x00\x01"])
def test_other_json_is_refused(sample: CocoSample, content: str) -> None:
    sample.write()
    sample.json.write_text(content)
    with pytest.raises(ValueError, match="expected a COCO JSON"):
        build_from_coco(sample.json, sample.images, sample.folder / "out.bank")


def test_real_coco_agrees_with_pycocotools(data_root: Path, tmp_path: Path) -> None:
    annotations = data_root / "coco_mini" / "annotations" / "instances_val2017.json"
    images = data_root / "coco_mini" / "val2017"
    every = ExtractionRules(min_area=1, min_side=1, max_side=None, min_box_agreement=0)
    report = build_from_coco(annotations, images, tmp_path / "out.bank", rules=every)
    coco = COCO(str(annotations))
    bank = ForegroundBank.open(report.path)
    singles = [entry for entry in coco.anns.values() if not entry["iscrowd"]]
    areas = {entry["id"]: int(coco.annToMask(entry).sum()) for entry in singles}
    assert len(bank) == sum(area > 0 for area in areas.values())
    assert sum(report.kept.values()) + sum(report.rejected.values()) == len(coco.anns)
    for foreground in bank:
        name, number = foreground.source.split("#")
        entry = coco.anns[int(number)]
        assert np.count_nonzero(foreground.rgba[..., 3]) == areas[int(number)]
        assert foreground.label == entry["category_id"]
        image = coco.imgs[entry["image_id"]]
        larger = foreground.relative_size * np.sqrt(image["height"] * image["width"])
        assert larger == pytest.approx(max(foreground.rgba.shape[:2]), rel=1e-5)
        assert name == image["file_name"]


def test_compressed_runs_are_decoded_as_by_pycocotools(sample: CocoSample) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        mask = (generator.random(generator.integers(1, 40, 2)) < generator.random()).astype(np.uint8)
        encoded = coco_mask.encode(np.asfortranarray(mask))
        runs = run_lengths(encoded["counts"].decode())
        again = coco_mask.decode(coco_mask.frPyObjects({"size": [*mask.shape], "counts": runs}, *mask.shape))
        np.testing.assert_array_equal(again, mask)


def test_runs_of_any_length_are_decoded_and_damaged_ones_rejected() -> None:
    decoded = {"": [], "0": [0], "o0": [31], "oooooo0": [2**30 - 1], "PPPPPP1": [2**30]}
    assert {text: run_lengths(text) for text in decoded} == decoded
    for text in ("o", "1o", "ooooooo0", "\u0100", "\udc80", "/", "p"):
        with pytest.raises(RejectedObject, match="damaged"):
            run_lengths(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [("min_area", 0), ("min_side", 0), ("max_side", 1), ("max_side", 20_000), ("min_box_agreement", 1.5)],
)
def test_wrong_rules_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"expected .*{name}"):
        ExtractionRules(**{name: value})


def test_the_old_background_is_replaced_by_the_color_of_the_nearest_object_pixel():
    rgba = np.zeros((9, 12, 4), np.uint8)
    rgba[..., :3] = (0, 255, 0)
    rgba[2:7, 2:5] = (200, 10, 10, 255)
    rgba[2:7, 8:10] = (10, 10, 200, 255)
    spread = spread_object_color(rgba)
    assert (spread[:, :6, :3] == (200, 10, 10)).all()
    assert (spread[:, 7:, :3] == (10, 10, 200)).all()
    assert (rgba[0, 0, :3] == (0, 255, 0)).all()


def test_the_color_under_a_faint_edge_is_the_objects():
    rgba = np.zeros((5, 5, 4), np.uint8)
    rgba[1:4, 1:4] = (90, 80, 70, 60)
    rgba[2, 2] = (250, 240, 230, 255)
    assert (spread_object_color(rgba)[..., :3] == (250, 240, 230)).all()


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(4))))
def test_alpha_and_the_object_itself_are_untouched_and_nothing_new_appears(rgba):
    spread = spread_object_color(rgba)
    inside = rgba[..., 3] >= 128
    assert (spread[..., 3] == rgba[..., 3]).all()
    assert (spread[inside] == rgba[inside]).all()
    if inside.any():
        known = {tuple(color) for color in rgba[inside][:, :3]}
        assert {tuple(color) for color in spread[..., :3].reshape(-1, 3)} <= known
