"""Cutters as a way of ``boxes``, and of building from photographs without annotations."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from build_samples import build_many, left_beside, make_many, outcome
from numpy.typing import NDArray
from PIL import Image
from test_bank_boxes import coco
from test_bank_resume import interrupt

from terse_aug import ForegroundBank
from terse_aug.bank import BoxMasks, BuildReport, ExtractionRules, build_from_coco, build_from_unlabelled
from terse_aug.bank.extract import Box, RejectedObject
from terse_aug.bank.segmenters.cutter import tidy_alpha

RED, GREEN = (220, 30, 30), (40, 150, 60)


@dataclass(frozen=True)
class RedCutter:
    """Finds what is more red than green, as opaque as its red is strong; the rest is as faint as ``faint``."""

    fingerprint: str | None = "0123456789abcdef"
    collapsed: tuple[str, ...] = ()
    faint: int = 0

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if image.shape[1] < 20:
            raise RuntimeError("no memory")
        alpha = np.where(image[..., 0] > image[..., 1], image[..., 0], np.uint8(self.faint))
        return alpha[:-1] if image.shape[1] == 21 else alpha

    def __call__(self, image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
        x, y, width, height = map(int, box)
        alpha = np.full(image.shape[:2], self.faint, np.uint8)
        alpha[y : y + height, x : x + width] = self.cut(image)[y : y + height, x : x + width]
        return alpha


def photograph(path: Path, objects: tuple[tuple[int, int, int, int], ...] = (), shape: Any = (60, 80)) -> Path:
    """Red rectangles (left, top, width, height) on green."""
    pixels = np.full((*shape, 3), GREEN, np.uint8)
    for left, top, width, height in objects:
        pixels[top : top + height, left : left + width] = RED
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def red_boxes(folder: Path) -> tuple[dict[str, Any], Path]:
    """COCO annotations of a red object, of a box without one, and of one beside the box; and the image folder."""
    photograph(folder / "scene.png", ((20, 10, 30, 40),))
    content = coco([[18, 8, 34, 44], [55, 5, 20, 20]])
    content["annotations"] = content["annotations"][1:]
    return content, folder


@pytest.mark.parametrize("fallback", [None, "ellipse"])
def test_a_cutter_makes_masks_of_boxes(tmp_path: Path, fallback: str | None) -> None:
    content, images = red_boxes(tmp_path)
    boxes = BoxMasks(RedCutter(), fallback=fallback)
    report = build_from_coco(content, images, tmp_path / "a.bank", boxes=boxes)
    nothing = {"cutter 0123456789ab found nothing in the box": 1}
    assert report.rejected == ({} if fallback else nothing)
    assert report.mask_sources == {"cutter 0123456789ab": 1} | ({"ellipse": 1} if fallback else {})
    with ForegroundBank.open(report.path) as bank:
        built = bank.info()["built"]
        assert bank.sizes.tolist()[0] == [40, 30]
        assert bank[0].rgba[..., 3].max() == RED[0]
    assert (built["boxes"], built["cutter"], built["fallback"]) == (
        "cutter 0123456789ab",
        "0123456789abcdef",
        fallback,
    )
    assert "cutter_collapsed" not in built
    assert "min_quality" not in built


def test_what_fails_is_not_hidden_by_a_fallback(tmp_path: Path) -> None:
    photograph(tmp_path / "scene.png", ((2, 2, 12, 12),), (60, 19))
    content = coco([[0, 0, 16, 16]])
    content["annotations"] = content["annotations"][1:]
    with pytest.raises(ValueError, match=r"cutter 0123456789ab failed \(RuntimeError\)"):
        build_from_coco(content, tmp_path, tmp_path / "a.bank", boxes=BoxMasks(RedCutter(), fallback="box"))


def test_a_function_falls_back_where_it_finds_nothing(tmp_path: Path) -> None:
    def nothing(image: NDArray[np.uint8], box: Box) -> NDArray[np.bool_]:
        if box[0] > 50:
            raise RejectedObject("too small for this model")
        return np.zeros(image.shape[:2], bool)

    content, images = red_boxes(tmp_path)
    report = build_from_coco(content, images, tmp_path / "a.bank", boxes=BoxMasks(nothing, fallback="box"))
    assert report.mask_sources == {"box": 2}
    with pytest.raises(ValueError, match=r"function nothing found nothing in the box .*too small for this model"):
        build_from_coco(content, images, tmp_path / "b.bank", boxes=nothing)


def test_alpha_of_a_cutter_is_never_taken_for_a_mask_of_ones() -> None:
    """A network that finds nothing may give 1 of 255 somewhere."""
    image = np.full((40, 40, 3), GREEN, np.uint8)
    with pytest.raises(RejectedObject, match="found nothing"):
        BoxMasks(RedCutter(faint=1)).alpha(image, (5, 5, 20, 20))
    with pytest.raises(RejectedObject, match="found nothing"):
        BoxMasks(RedCutter(faint=100)).alpha(image, (5, 5, 20, 20))


def test_what_is_faint_in_a_box_is_left_out() -> None:
    image = np.full((60, 60, 3), GREEN, np.uint8)
    image[20:40, 20:40] = RED
    alpha, _ = BoxMasks(RedCutter(faint=60)).alpha(image, (5, 5, 50, 50))
    assert (alpha[20:40, 20:40] == RED[0]).all()
    assert not alpha[:16].any()


def test_faint_surroundings_and_specks_do_not_enlarge_a_foreground() -> None:
    alpha = np.full((100, 100), 60, np.uint8)
    alpha[30:70, 30:70] = 255
    alpha[28:30, 30:70] = 100
    alpha[5:8, 5:8] = 255
    tidy = tidy_alpha(alpha)
    assert (tidy[30:70, 30:70] == 255).all()
    assert (tidy[28:30, 35:65] == 100).all(), "a soft rim stays"
    outside = np.ones_like(alpha, bool)
    outside[28:72, 28:72] = False
    assert not tidy[outside].any()
    assert not tidy_alpha(np.full((9, 9), 127, np.uint8)).any()


def test_a_collapsed_cutter_is_refused_unless_accepted(tmp_path: Path) -> None:
    collapsed = RedCutter(collapsed=("mask empty", "masks alike"))
    content, images = red_boxes(tmp_path)
    with pytest.raises(ValueError, match=r"collapsed \(mask empty, masks alike\).*--accept-unhealthy"):
        build_from_coco(content, images, tmp_path / "a.bank", boxes=collapsed)
    with pytest.raises(ValueError, match="--accept-unhealthy"):
        build_from_unlabelled(tmp_path, tmp_path / "a.bank", cutter=collapsed)
    assert not (tmp_path / "a.bank").exists()
    accepted = BoxMasks(collapsed, accept_unhealthy=True)
    reports = [
        build_from_coco(content, images, tmp_path / "a.bank", boxes=accepted),
        build_from_unlabelled(images, tmp_path / "b.bank", cutter=collapsed, accept_unhealthy=True),
    ]
    for report in reports:
        with ForegroundBank.open(report.path) as bank:
            assert bank.info()["built"]["cutter_collapsed"] == ["mask empty", "masks alike"]


def some_photographs(folder: Path) -> Path:
    """Photographs of two classes, and some of which no foreground comes."""
    photograph(folder / "a.png", ((10, 5, 40, 30), (70, 50, 5, 5)))
    photograph(folder / "rose" / "b.png", ((0, 20, 20, 20),))
    photograph(folder / "rose" / "deep" / "c.png", ((30, 20, 30, 20),), (120, 80))
    photograph(folder / "empty.png")
    photograph(folder / "full.png", ((0, 0, 80, 60),))
    frame = photograph(folder / "inverted.png", ((0, 0, 80, 60),))
    pixels = np.asarray(Image.open(frame)).copy()
    pixels[15:45, 20:60] = GREEN
    Image.fromarray(pixels).save(frame)
    photograph(folder / "small.png", ((10, 10, 4, 4),))
    photograph(folder / "narrow.png", ((2, 2, 9, 9),), (30, 19))
    photograph(folder / "odd.png", ((2, 2, 9, 9),), (30, 21))
    (folder / "broken.png").write_bytes(b"no image")
    Image.new("RGBA", (30, 30)).save(folder / "transparent.png")
    return folder


REJECTED = {
    "the cutter found nothing: no pixel has an alpha of 128 or more": 1,
    "the mask fills the image: 95 % or more of it": 1,
    "the mask covers the image's border, and so is probably that of the background": 1,
    "fewer than 100 px visible (min_area)": 1,
    "cutter 0123456789ab failed (RuntimeError)": 1,
    "the function returned no mask of the image's size, bool or uint8": 1,
    "image cannot be read": 1,
    "image has transparency: build from it with source rgba": 1,
}


@pytest.mark.parametrize("jobs", [1, 2])
def test_photographs_without_annotations(tmp_path: Path, jobs: int) -> None:
    images, sheets = some_photographs(tmp_path / "photographs"), tmp_path / "sheets"
    arguments: dict[str, Any] = {"cutter": RedCutter(faint=5), "category": "flower", "jobs": jobs}
    report = build_from_unlabelled(images, tmp_path / "a.bank", rejected_sheet=sheets, **arguments)
    assert report.kept == {"flower": 1, "rose": 2}
    assert report.rejected == REJECTED
    assert report.mask_sources == {"cutter 0123456789ab": 3}
    assert {path.name.lstrip("0123456789-")[:8] for path in sheets.iterdir()} >= {"kept.png", "the-cutt", "the-mask"}
    assert len(list(sheets.iterdir())) == len(REJECTED) + 1
    with ForegroundBank.open(report.path) as bank:
        found = {one.source: one for one in bank}
        built = bank.info()["built"]
    assert (built["from"], built["images"], built["cutter"]) == ("unlabelled", "photographs", "0123456789abcdef")
    first, deep = found["a.png"], found["rose/deep/c.png"]
    assert first.size == (40, 30), "without the speck"
    assert first.center == pytest.approx((30 / 80, 20 / 60))
    assert first.relative_size == pytest.approx(40 / (60 * 80) ** 0.5)
    assert deep.relative_size == pytest.approx(30 / (120 * 80) ** 0.5)
    assert (first.label, deep.label) == (1, 2)
    other = build_from_unlabelled(images, tmp_path / "b.bank", **arguments | {"jobs": 3 - jobs})
    assert outcome(other) == outcome(report)


def test_rules_and_lists_apply_to_photographs(tmp_path: Path) -> None:
    images = some_photographs(tmp_path / "photographs")
    rules, names = ExtractionRules(drop_truncated=True), ["rose/b.png", "a.png"]
    report = build_from_unlabelled(images, tmp_path / "a.bank", cutter=RedCutter(), rules=rules, image_list=names)
    assert report.kept == {"object": 1}
    assert report.rejected["touches the border of its image (drop_truncated)"] == 1
    with pytest.raises(ValueError, match=r"method cut\(image\)"):
        build_from_unlabelled(images, tmp_path / "b.bank", cutter=abs)  # type: ignore[arg-type]  # no cutter


def ten(folder: Path) -> Path:
    """Ten photographs: two chunks of a build."""
    for number in range(10):
        photograph(folder / f"{number}.png", ((10 + number, 5, 40, 30),))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is resumed there")
@pytest.mark.parametrize(("other", "resumed"), [("0123456789abcdef", 8), ("fedcba9876543210", 0)])
@pytest.mark.parametrize("source", ["unlabelled", "boxes"])
def test_a_build_is_resumed_by_the_same_cutter_only(tmp_path: Path, source: str, other: str, resumed: int) -> None:
    out = tmp_path / "a.bank"
    if source == "boxes":
        make_many(tmp_path)

    def build(fingerprint: str) -> BuildReport:
        if source == "boxes":
            return build_many(tmp_path, out, boxes=RedCutter(fingerprint))
        return build_from_unlabelled(tmp_path / "ten", out, cutter=RedCutter(fingerprint), jobs=1)

    ten(tmp_path / "ten")
    interrupt(lambda: build(RedCutter().fingerprint or ""), 1)
    assert left_beside(out)
    with nullcontext() if resumed else pytest.warns(UserWarning, match="from the start"):
        assert build(other).resumed == resumed


def test_a_cutter_without_a_fingerprint_cannot_be_resumed(tmp_path: Path) -> None:
    images, out = ten(tmp_path / "ten"), tmp_path / "a.bank"

    def stop(done: int, total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_from_unlabelled(images, out, cutter=RedCutter(None), progress=stop)
    assert not left_beside(out)
    report = build_from_unlabelled(images, out, cutter=RedCutter(None))
    assert report.mask_sources == {"cutter RedCutter": 10}


def test_no_torch_is_needed(tmp_path: Path) -> None:
    some_photographs(tmp_path / "photographs")
    script = """if True:
        import sys
        from terse_aug.bank import build_from_unlabelled
        class Red:
            fingerprint, collapsed = "a", ()
            def cut(self, image):
                return image[..., 0] > image[..., 1]
        build_from_unlabelled(sys.argv[1], sys.argv[2], cutter=Red(), jobs=1)
        sys.exit("torch was imported" if "torch" in sys.modules else 0)
    """
    command = [sys.executable, "-c", script, str(tmp_path / "photographs"), str(tmp_path / "a.bank")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
