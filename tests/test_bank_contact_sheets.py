"""Contact sheets of what a build rejected: every reason is shown, and annotations are drawn in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import as_labelme, as_voc, make_sample
from bank_samples import CocoSample
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank import BuildReport, build_from_coco, build_from_labelme, build_from_masks, build_from_voc
from terse_aug.bank.build.contact_sheets import draw_rejected, write_sheets
from terse_aug.bank.build.report import RejectedSample, Section
from terse_aug.viz.images import ORANGE, SKY_BLUE


@pytest.fixture
def sample(tmp_path: Path) -> CocoSample:
    """One object that is kept, and some that are not."""
    sample = CocoSample(tmp_path)
    sample.add(iscrowd=1)
    sample.add(segmentation=[[30, 10, 34, 10, 34, 30, 30, 30]], bbox=[30, 10, 4, 20])
    sample.add(segmentation=[["odd"]], bbox=["odd", None, [], 5])
    sample.add(segmentation=[[1, 2, 3, 4]], bbox=[float("nan"), 1, 1e300, 4])
    sample.content["images"].append({"id": 8, "file_name": "gone.png"})
    sample.add(image_id=8)
    return sample


def build(sample: CocoSample, rejected_sheet: Path, **more: Any) -> BuildReport:
    out = sample.folder / "out.bank"
    return build_from_coco(sample.content, sample.images, out, rejected_sheet=rejected_sheet, **more)


def shows(image: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.bool_]:
    return (np.abs(image.astype(int) - color) < 40).all(-1)


def height_of(sheet: Path) -> int:
    with Image.open(sheet) as image:
        return image.height


def test_every_reason_has_a_file_in_a_folder(sample: CocoSample) -> None:
    folder = sample.folder / "rejected"
    report = build(sample, folder)
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == len(report.rejected) + 1
    assert names[-1] == "kept.png"
    assert any("crowd-region" in name for name in names)
    assert f"images of what was rejected: {folder}" in report.summary()
    sample.content["annotations"] = [entry for entry in sample.content["annotations"] if not entry["iscrowd"]]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        build(sample, folder)
    build(sample, folder, overwrite=True)
    assert not any("crowd-region" in path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["01-my-cat.png", "kept.png", "own.txt"])
def test_files_of_others_are_left_alone(sample: CocoSample, name: str) -> None:
    own = sample.folder / "rejected" / name
    build(sample, own.parent)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(own, "png")
    before = {path.name: path.read_bytes() for path in own.parent.iterdir()}
    with pytest.raises(FileExistsError, match=f"such as {name}"):
        build(sample, own.parent, overwrite=True)
    assert {path.name: path.read_bytes() for path in own.parent.iterdir()} == before
    write_sheets(own.parent, [], Path)
    assert [path.name for path in own.parent.iterdir()] == [name]


@pytest.mark.parametrize("scale", [1, 5])
def test_the_outline_is_where_the_object_is(tmp_path: Path, scale: int) -> None:
    pixels = np.full((100 * scale, 150 * scale, 3), 255, np.uint8)
    left, top, width, height = (scale * side for side in (60, 40, 30, 20))
    pixels[top : top + height, left : left + width] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    polygon = [left, top, left + width, top, left + width, top + height, left, top + height]
    image = draw_rejected(RejectedSample("a.png", "", None, [polygon]), lambda name: tmp_path / name)
    assert image is not None
    assert max(image.shape) == 300
    rows, columns = np.nonzero(shows(image, SKY_BLUE))
    inner = (image < 30).all(-1)[rows.min() + 6 : rows.max() - 6, columns.min() + 6 : columns.max() - 6]
    assert inner.mean() > 0.95  # all that is within the outline is the object
    assert not shows(image, ORANGE).any()


@pytest.mark.parametrize("box", [[70, 20, 50, 20], [-30, 20, 20, 20], [1e9, 0, 5, 5]])
def test_a_box_beyond_the_image_is_shown_with_the_image(tmp_path: Path, box: list[float]) -> None:
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    image = draw_rejected(RejectedSample("a.png", "", box), lambda name: tmp_path / name)
    assert image is not None
    assert (image == 250).all(-1).mean() > 0.02
    assert (image < 30).all(-1).mean() > 0.1  # the image is in view
    assert shows(image, ORANGE).any() == (box[0] < 1e6)


@pytest.mark.parametrize(
    "thing",
    [None, "x", 5, [1, 2, 3], [1e308] * 4, [[1e308] * 4], [[float("inf")] * 6], {"size": 1}, [["a"] * 6], [None]],
)
def test_odd_annotations_are_shown_by_their_images(tmp_path: Path, thing: Any) -> None:
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    assert draw_rejected(RejectedSample("a.png", "", thing, thing), lambda name: tmp_path / name) is not None
    assert draw_rejected(RejectedSample("b.png", "", thing, thing), lambda name: tmp_path / name) is None


def test_sheets_are_bounded(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((900, 30, 3), np.uint8)).save(tmp_path / "a.png")
    sections = [Section(f"{n} reason {n}", [RejectedSample("a.png", "x" * 40)] * 30, ["x"]) for n in range(60)]
    write_sheets(tmp_path / "sheet.png", sections, lambda name: tmp_path / name)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.height < 24 * 450 + 200
        assert image.width < 1400


@pytest.mark.parametrize(
    ("place", "error"), [("no/sheets", FileNotFoundError), ("file", FileExistsError), ("folder.png", FileExistsError)]
)
def test_impossible_places_are_refused_before_anything_is_read(
    sample: CocoSample, place: str, error: type[Exception]
) -> None:
    (sample.folder / "file").write_text("")
    (sample.folder / "folder.png").mkdir()
    target, out = sample.folder / place, sample.folder / "out.bank"
    with pytest.raises(error):
        build(sample, target, overwrite=True)
    with pytest.raises(error):
        build_from_labelme(sample.folder / "nowhere", out, rejected_sheet=target, overwrite=True)
    assert not out.exists()


def test_other_builders_draw_too(tmp_path: Path) -> None:
    context = make_sample(tmp_path)
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.pad(np.array([[1, 2]], np.uint8).repeat(50, 1), ((40, 55), (9, 19)))).save(masks / "scene.png")
    with pytest.raises(ValueError, match="no foreground was kept"):
        build_from_masks(context.images, masks, tmp_path / "out.bank", rejected_sheet=tmp_path / "masks.png")
    shapes = [{"label": "cat", "points": [[1, 2]]}, {"label": "dog", "points": [[9, 9], [60, 9], [60, 60]]}]
    folder = as_labelme(context, shapes)
    build_from_labelme(folder, tmp_path / "out.bank", images=context.images, rejected_sheet=tmp_path / "sheets1")
    root = as_voc(context, **{"<name>dog</name><difficult>0": "<name>dog</name><difficult>1"})
    build_from_voc(root, tmp_path / "voc.bank", rejected_sheet=tmp_path / "sheets2")
    for sheets in ("masks.png", "sheets1/01-*", "sheets2/01-*"):
        (path,) = tmp_path.glob(sheets)
        assert height_of(path) > 200  # an image, not a line of text
