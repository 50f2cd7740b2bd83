"""What cutters find beside the box, what of it is shown, and builds that depend on torch's version."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from annotated_samples import as_voc, make_sample
from numpy.typing import NDArray
from test_bank_cutters import RedCutter, photograph, red_boxes, ten
from test_bank_resume import interrupt

from terse_aug import ForegroundBank
from terse_aug.bank import BoxMasks, build_from_coco, build_from_unlabelled
from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.extract import DEFAULT_RULES, Box, RejectedObject
from terse_aug.bank.inputs.folders import ListedImage
from terse_aug.bank.inputs.masks import segmentation_to_mask
from terse_aug.bank.readers.unlabelled import _Extractor
from terse_aug.bank.segmenters.cutter import tidy_alpha

BOX = (10, 10, 20, 20)


class Fixed:
    """Finds the same, whatever it is given."""

    fingerprint = "0123456789abcdef"

    def __init__(self, alpha: NDArray[np.uint8]) -> None:
        self.alpha = alpha

    def __call__(self, image: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
        return self.alpha


def parts(*rectangles: tuple[int, int, int, int], value: int = 255) -> NDArray[np.uint8]:
    """Alpha ``[100, 100]`` of rectangles (left, top, width, height)."""
    alpha = np.zeros((100, 100), np.uint8)
    for left, top, width, height in rectangles:
        alpha[top : top + height, left : left + width] = value
    return alpha


IMAGE = np.zeros((100, 100, 3), np.uint8)
SPECKS = tuple((10 + 4 * column, 10 + 4 * row, 2, 2) for row in range(5) for column in range(5))
"""In the box: together as large as half of what is beside it, and each below a tenth of it."""
BESIDE = (50, 50, 9, 9)


@pytest.mark.parametrize("alpha", [parts(BESIDE), parts(BESIDE, *SPECKS)])
def test_what_lies_beside_the_box_is_rejected_or_falls_back(alpha: NDArray[np.uint8]) -> None:
    with pytest.raises(RejectedObject, match="lies outside the box"):
        BoxMasks(Fixed(alpha)).alpha(IMAGE, BOX)
    fallen, method = BoxMasks(Fixed(alpha), fallback="ellipse").alpha(IMAGE, BOX)
    assert method == "ellipse"
    assert not fallen[40:].any()


def test_what_is_rejected_is_shown_as_it_was_judged() -> None:
    alpha = parts(BESIDE)
    alpha[48:62, 48:62] = np.maximum(alpha[48:62, 48:62], 100)
    with pytest.raises(RejectedObject, match="lies outside the box") as rejected:
        BoxMasks(Fixed(alpha)).alpha(IMAGE, BOX)
    assert rejected.value.mask is not None
    assert np.count_nonzero(rejected.value.mask) == 81


def test_faint_surroundings_of_a_rejected_photograph_are_not_shown(tmp_path: Path) -> None:
    path = photograph(tmp_path / "full.png", ((0, 0, 80, 58),))
    log = BuildLog()
    item = (ListedImage(path, "full.png", None), 1)
    assert not list(_Extractor(RedCutter(faint=60), DEFAULT_RULES).objects(item, log))
    ((reason, samples),) = log.samples.items()
    assert "fills the image" in reason
    assert np.count_nonzero(segmentation_to_mask(samples.held[0].segmentation, 60, 80)) == 80 * 58


@pytest.mark.parametrize(("side", "rim"), [(40, 2), (500, 5)])
def test_a_soft_rim_is_1_percent_of_the_object_and_at_least_2_px(side: int, rim: int) -> None:
    alpha = np.full((side + 60, side + 60), 60, np.uint8)
    alpha[30:-30, 30:-30] = 255
    row = tidy_alpha(alpha)[30 + side // 2]
    assert np.flatnonzero(row)[[0, -1]].tolist() == [30 - rim, 29 + side + rim]


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is resumed there")
def test_another_version_of_torch_does_not_resume_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, version = tmp_path / "a.bank", metadata.version
    images = ten(tmp_path / "ten")

    def build() -> int:
        return build_from_unlabelled(images, out, cutter=RedCutter(), jobs=1).resumed

    interrupt(build, 1)
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", lambda name: "9.9.9" if name == "torch" else version(name))
        with pytest.warns(UserWarning, match="from the start"):
            assert build() == 0
    with ForegroundBank.open(out) as bank:
        assert bank.info()["built"]["torch"] == "9.9.9"


def test_a_collapsed_cutter_is_no_matter_of_formats(tmp_path: Path) -> None:
    """Annotations beside the photographs are no hint that another source was meant."""
    root, collapsed = as_voc(make_sample(tmp_path)), RedCutter(collapsed=("empty masks",))
    with pytest.raises(ValueError, match=r"\(--accept-unhealthy\)$"):
        build_from_unlabelled(root, tmp_path / "a.bank", cutter=collapsed)
    content, images = red_boxes(tmp_path / "coco")
    with pytest.raises(ValueError, match=r"\(--accept-unhealthy\)$"):
        build_from_coco(content, images, tmp_path / "a.bank", boxes=collapsed)
