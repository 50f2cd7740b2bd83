"""Pictures of what a build left out: every reason is there, and the annotation lies where it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotated_samples import as_labelme, as_voc, make_context
from bank_samples import CocoSample
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank import BuildReport, build_from_coco, build_from_labelme, build_from_masks, build_from_voc
from terse_aug.bank.build.contact_sheets import Section, _on_image, write_sheets
from terse_aug.bank.build.rejected_sample import EvenSample, RejectedSample
from terse_aug.cli import main
from terse_aug.viz.pictures import ORANGE, SKY_BLUE


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
    return build_from_coco(
        sample.content, sample.images, sample.folder / "out.bank", rejected_sheet=rejected_sheet, **more
    )


def shows(picture: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.bool_]:
    return (np.abs(picture.astype(int) - color) < 40).all(-1)


def test_every_reason_has_a_file_in_a_folder(sample: CocoSample) -> None:
    report = build(sample, sample.folder / "rejected_sheet")
    names = sorted(path.name for path in (sample.folder / "rejected_sheet").iterdir())
    assert len(names) == len(report.rejected) + 1
    assert names[-1] == "kept.png"
    assert any("crowd-region" in name for name in names)
    assert f"images of what was rejected: {report.rejected_sheet}" in report.summary()
    sample.content["annotations"] = [entry for entry in sample.content["annotations"] if not entry["iscrowd"]]
    with pytest.raises(FileExistsError, match="overwrite=True"):
        build(sample, sample.folder / "rejected_sheet")
    build(sample, sample.folder / "rejected_sheet", overwrite=True)
    names = [path.name for path in (sample.folder / "rejected_sheet").iterdir()]
    assert not any("crowd-region" in name for name in names)


@pytest.mark.parametrize("name", ["01-my-cat.png", "kept.png", "own.txt"])
def test_files_of_others_are_left_alone(sample: CocoSample, name: str) -> None:
    own = sample.folder / "rejected_sheet" / name
    build(sample, own.parent)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(own, "png")
    before = {path.name: path.read_bytes() for path in own.parent.iterdir()}
    with pytest.raises(FileExistsError, match=f"such as {name}"):
        build(sample, own.parent, overwrite=True)
    assert {path.name: path.read_bytes() for path in own.parent.iterdir()} == before
    write_sheets(own.parent, [], Path)
    assert [path.name for path in own.parent.iterdir()] == [name]


def test_one_sheet_is_drawn_even_if_nothing_is_kept(sample: CocoSample) -> None:
    sheet = sample.folder / "drops.png"
    build(sample, sheet)
    with Image.open(sheet) as image:
        whole = np.asarray(image)
    sample.content["annotations"] = sample.content["annotations"][1:]
    (sample.folder / "out.bank").unlink()
    with pytest.raises(ValueError, match="no foreground was kept"):
        build(sample, sheet, overwrite=True)
    with Image.open(sheet) as image:
        rest = np.asarray(image)
    assert 0 < len(rest) < len(whole)
    assert not (sample.folder / "out.bank").exists()


@pytest.mark.parametrize("scale", [1, 5])
def test_box_and_outline_lie_where_the_object_is(tmp_path: Path, scale: int) -> None:
    pixels = np.full((100 * scale, 150 * scale, 3), 255, np.uint8)
    left, top, width, height = (scale * side for side in (60, 40, 30, 20))
    pixels[top : top + height, left : left + width] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    polygon = [left, top, left + width, top, left + width, top + height, left, top + height]
    shown = _on_image(RejectedSample("a.png", "", None, [polygon]), lambda name: tmp_path / name)
    assert shown is not None
    assert max(shown.shape) == 300
    rows, columns = np.nonzero(shows(shown, SKY_BLUE))
    dark = (shown < 30).all(-1)
    inner = np.nonzero(dark[rows.min() + 6 : rows.max() - 6, columns.min() + 6 : columns.max() - 6])
    area = (rows.max() - rows.min() - 13) * (columns.max() - columns.min() - 13)
    assert len(inner[0]) > 0.95 * area  # all that is within the outline is the object
    assert not shows(shown, ORANGE).any()


def test_a_box_beyond_the_image_is_seen_on_paper(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    for box in ([70, 20, 50, 20], [-30, 20, 20, 20], [1e9, 0, 5, 5]):
        shown = _on_image(RejectedSample("a.png", "", box), lambda name: tmp_path / name)
        assert shown is not None
        assert (shown == 250).all(-1).mean() > 0.02
        assert (shown < 30).all(-1).mean() > 0.1  # the image is in view
        assert shows(shown, ORANGE).any() == (box[0] < 1e6)


@pytest.mark.parametrize(
    "thing",
    [None, "x", 5, [1, 2, 3], [1e308] * 4, [[1e308] * 4], [[float("inf")] * 6], {"size": 1}, [["a"] * 6], [None]],
)
def test_odd_annotations_are_shown_by_their_images(tmp_path: Path, thing: Any) -> None:
    Image.fromarray(np.zeros((60, 90, 3), np.uint8)).save(tmp_path / "a.png")
    assert _on_image(RejectedSample("a.png", "", thing, thing), lambda name: tmp_path / name) is not None
    assert _on_image(RejectedSample("b.png", "", thing, thing), lambda name: tmp_path / name) is None


def test_sheets_are_bounded(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((900, 30, 3), np.uint8)).save(tmp_path / "a.png")
    sections = [Section(f"{n} reason {n}", [RejectedSample("a.png", "x" * 40)] * 30, ["x"]) for n in range(60)]
    write_sheets(tmp_path / "sheet.png", sections, lambda name: tmp_path / name)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.height < 24 * 450 + 200
        assert image.width < 1400


def test_a_spread_is_even_and_bounded() -> None:
    spread: EvenSample[int] = EvenSample(10)
    for number in range(1000):
        spread.add(number)
        assert len(spread.items(99)) <= 20
    items = spread.items()
    assert len(items) == 10
    assert items[0] == 0
    assert max(np.diff(items)) <= 2.1 * min(np.diff(items))
    assert spread.items(3) == [spread.items(99)[len(spread.items(99)) * at // 3] for at in range(3)]


def test_places_that_cannot_be_are_refused_before_anything_is_read(sample: CocoSample) -> None:
    (sample.folder / "file").write_text("")
    (sample.folder / "folder.png").mkdir()
    nowhere = sample.folder / "nowhere"
    for place, error in (("no/drops", FileNotFoundError), ("file", FileExistsError), ("folder.png", FileExistsError)):
        with pytest.raises(error):
            build(sample, sample.folder / place, overwrite=True)
        with pytest.raises(error):
            build_from_labelme(
                nowhere, sample.folder / "new.bank", rejected_sheet=sample.folder / place, overwrite=True
            )
    assert not (sample.folder / "out.bank").exists()


def test_other_builders_draw_too(tmp_path: Path) -> None:
    scene = make_context(tmp_path)
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(np.pad(np.array([[1, 2]], np.uint8).repeat(50, 1), ((40, 55), (9, 19)))).save(masks / "scene.png")
    with pytest.raises(ValueError, match="no foreground was kept"):
        build_from_masks(scene.images, masks, tmp_path / "out.bank", rejected_sheet=tmp_path / "masks.png")
    shapes = [{"label": "cat", "points": [[1, 2]]}, *[{"label": "dog", "points": [[9, 9], [60, 9], [60, 60]]}]]
    folder = as_labelme(scene, shapes)
    build_from_labelme(folder, tmp_path / "out.bank", images=scene.images, rejected_sheet=tmp_path / "rejected_sheet")
    root = as_voc(scene, **{"<name>dog</name><difficult>0": "<name>dog</name><difficult>1"})
    build_from_voc(root, tmp_path / "voc.bank", rejected_sheet=tmp_path / "other")
    for sheets in ("masks.png", "rejected_sheet/01-polygon-is-degenerate*", "other/01-marked-as-difficult*"):
        (path,) = tmp_path.glob(sheets)
        with Image.open(path) as image:
            assert image.height > 200  # a picture, not a line of text


def test_the_command_draws(sample: CocoSample, capsys: pytest.CaptureFixture[str]) -> None:
    source = ["--annotations", str(sample.write()[0]), "--images", str(sample.images)]
    place = str(sample.folder / "drops.png")
    assert (
        main(["bank", "build", "coco", *source, "--out", str(sample.folder / "o.bank"), "--rejected-sheet", place]) == 0
    )
    assert f"images of what was rejected: {place}" in capsys.readouterr().out
    assert Path(place).stat().st_size > 1000
