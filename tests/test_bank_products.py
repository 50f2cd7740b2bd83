"""Product photographs: objects on a plain background, and masks of either polarity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank import BuildReport, ForegroundBank, PlainBackground, build_from_products
from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.segmenters.mask_polarity import BLACK, WHITE, object_alpha
from terse_aug.cli import main

HEIGHT, WIDTH = 160, 200
BACKGROUNDS = {"white": 248, "grey": 128, "green": (0, 177, 64), "black": 8}


def ring(hole: bool = True) -> NDArray[np.bool_]:
    """A disc with a hole."""
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    distance = np.hypot(rows - 80, columns - 90)
    disc: NDArray[np.bool_] = distance <= 50
    return disc & (distance > 20) if hole else disc


def photograph(
    mask: NDArray[np.bool_], background: Any = 248, course: float = 0, noise: float = 0
) -> NDArray[np.uint8]:
    """A brown object on a background whose brightness falls by ``course`` from left to right, after JPEG."""
    generator = np.random.default_rng(0)
    image = (
        np.broadcast_to(np.array(background, float), (HEIGHT, WIDTH, 3)) - course * np.linspace(0, 1, WIDTH)[:, None]
    )
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.7)[..., None]
    image = soft * generator.normal((150, 90, 50), 12, (HEIGHT, WIDTH, 3)) + (1 - soft) * image
    image += generator.normal(0, noise, image.shape) if noise else 0
    _, encoded = cv2.imencode(".jpg", image.clip(0, 255).astype(np.uint8)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def iou(alpha: NDArray[np.uint8], mask: NDArray[np.bool_]) -> float:
    found = alpha > 127
    return float((found & mask).sum() / (found | mask).sum())


@pytest.mark.parametrize("background", list(BACKGROUNDS))
@pytest.mark.parametrize(("course", "noise"), [(0, 0), (50, 0), (40, 4)])
def test_objects_and_holes_are_found_on_plain_backgrounds(background: str, course: float, noise: float) -> None:
    course = 0 if background == "black" else course
    for refine in (False, True):
        (alpha,) = PlainBackground(refine=refine).alphas(photograph(ring(), BACKGROUNDS[background], course, noise))
        assert alpha.dtype == np.uint8
        assert iou(alpha, ring()) > 0.93
        assert (alpha[:5] == 0).all()
        assert 0 < ((alpha > 20) & (alpha < 235)).mean() < 0.1  # soft at the edge, and only there


def two_parts() -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[30:80, 120:170] = mask[60:130, 20:90] = True
    return mask


def test_specks_are_removed_and_parts_may_be_objects() -> None:
    mask = two_parts()
    mask[140:144, 100:104] = True
    (both,) = PlainBackground().alphas(photograph(mask))
    assert both[142, 102] == 0
    left, right = PlainBackground(split=True).alphas(photograph(mask))
    assert left[100, 50] == right[50, 150] == 255
    assert left[50, 150] == right[100, 50] == 0
    assert (np.maximum(left, right) == both).all()


def test_a_gap_in_the_outline_does_not_leak() -> None:
    """What is inside has nearly the background's colour, as a white cup in front of a white wall."""
    image = np.full((HEIGHT, WIDTH, 3), 248, np.uint8)
    image[ring(False)] = 238
    image[ring() & ~cv2.erode(ring(False).astype(np.uint8), np.ones((9, 9))).astype(bool)] = (150, 90, 50)
    image[78:82, :60] = 248  # four pixels; blur leaves two
    (alpha,) = PlainBackground().alphas(image)
    assert iou(alpha, ring(False)) > 0.95


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8), "background is not plain"),
        (np.arange(HEIGHT * WIDTH * 3).reshape(HEIGHT, WIDTH, 3).astype(np.uint8), "background is not plain"),
        (photograph(ring(), 128, noise=60), r"background is not plain: spread of its colour above 5 \(max_spread\)"),
        (photograph(np.zeros((HEIGHT, WIDTH), bool)), "nothing stands out"),
        (np.full((3, 1, 3), 200, np.uint8), "nothing stands out"),
    ],
)
def test_other_images_are_rejected_with_the_reason(image: NDArray[np.uint8], reason: str) -> None:
    with pytest.raises(RejectedObject, match=reason):
        PlainBackground().alphas(image)


# --- masks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("grey", [False, True])
def test_the_border_decides_the_polarity_and_grey_is_alpha(inverted: bool, grey: bool) -> None:
    mask = np.where(ring(), 255, 0).astype(np.uint8)
    mask[:70] = np.minimum(mask[:70], 180 if grey else 255)
    alpha, polarity = object_alpha(255 - mask if inverted else mask, photograph(ring()))
    assert polarity == (BLACK if inverted else WHITE)
    np.testing.assert_array_equal(alpha, mask)


@pytest.mark.parametrize("inverted", [False, True])
def test_the_image_decides_if_the_border_does_not(inverted: bool) -> None:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[:, :95] = True
    image = photograph(mask)
    image[:30] = image[-30:] = 248  # the object ends before the border: the mask is too generous
    given = np.where(mask ^ inverted, 255, 0).astype(np.uint8)
    assert object_alpha(given, image)[1] == (BLACK if inverted else WHITE)
    with pytest.raises(RejectedObject, match="white or black"):
        object_alpha(given, np.full((HEIGHT, WIDTH, 3), 90, np.uint8))
    with pytest.raises(RejectedObject, match="the same everywhere"):
        object_alpha(np.zeros((HEIGHT, WIDTH), np.uint8), image)


@pytest.mark.parametrize("value", [1, 7, 90, 254])
@pytest.mark.parametrize("inverted", [False, True])
def test_masks_of_two_values_are_binary(value: int, inverted: bool) -> None:
    given = np.where(ring() ^ inverted, value, 0).astype(np.uint8)
    alpha, polarity = object_alpha(given, photograph(ring()))
    assert polarity == (BLACK if inverted else WHITE)
    np.testing.assert_array_equal(alpha, np.where(ring(), 255, 0))


def test_faint_alpha_is_removed() -> None:
    mask = np.where(ring(), 255, 0) + np.random.default_rng(0).integers(-4, 5, ring().shape)
    alpha, _ = object_alpha(mask.clip(0, 255).astype(np.uint8), photograph(ring()))
    np.testing.assert_array_equal(alpha > 0, ring())
    faint = np.where(ring(), 127, 0).astype(np.uint8)
    faint[80] //= 2
    with pytest.raises(RejectedObject, match="no pixel has an alpha of 128"):
        object_alpha(faint, photograph(ring()))


# --- the builder ----------------------------------------------------------------------------------------------------


def save(path: Path, pixels: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def bank_of(report: BuildReport) -> ForegroundBank:
    return ForegroundBank.open(report.path)


def test_folders_are_classes_and_unusable_images_are_counted(tmp_path: Path) -> None:
    root = tmp_path / "products"
    save(root / "cup" / "a.png", photograph(ring()))
    save(root / "plate" / "b.jpg", photograph(ring(False), 128, 30))
    save(root / "c.png", photograph(ring(), (0, 177, 64)))
    save(root / "cup" / "busy.png", np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))
    save(root / "cup" / "mask.png", ring())
    save(root / "cup" / "cut.png", np.dstack([photograph(ring()), np.where(ring(), 255, 0).astype(np.uint8)]))
    (root / "cup" / "broken.png").write_bytes(b"no image")
    report = build_from_products(root, tmp_path / "out.bank", relative_size=0.4, rejected_sheet=tmp_path / "drops.png")
    assert report.kept == {"cup": 1, "object": 1, "plate": 1}
    assert report.mask_sources == {"plain background": 3}
    assert sorted(report.rejected.values()) == [1, 1, 1, 1]
    with bank_of(report) as bank:
        assert bank.categories == {1: "cup", 2: "object", 3: "plate"}
        assert [foreground.source for foreground in bank] == ["c.png", "cup/a.png", "plate/b.jpg"]
        assert np.allclose(bank.relative_sizes, 0.4)
        for foreground in bank:
            assert np.abs(np.subtract(foreground.size, 101)).max() <= 4
            assert foreground.rgba[0, :, 3].max() >= 8  # the crop holds all visible pixels
        assert bank.info()["built"]["max_spread"] == PlainBackground().max_spread
    assert build_from_products(root, tmp_path / "again.bank", relative_size=0.4).bytes > 0
    with ForegroundBank.open(tmp_path / "again.bank") as again, bank_of(report) as bank:
        assert again.fingerprint == bank.fingerprint


@pytest.mark.parametrize("place", ["beside", "own", "flat"])
def test_masks_of_both_polarities_are_counted(tmp_path: Path, place: str) -> None:
    root = tmp_path / "products"
    masks = root if place == "beside" else tmp_path / "masks"
    folders = {"beside": "cup/", "own": "cup/", "flat": ""}[place]
    for name in ("a", "b", "c", "d"):
        save(root / "cup" / f"{name}.jpg", photograph(ring()))
    save(masks / f"{folders}a.pbm", ring())
    save(masks / f"{folders}b.png", np.where(ring(), 0, 255).astype(np.uint8))
    save(masks / f"{folders}c_mask.png", np.where(ring(), 200 - ring(False).cumsum(0), 0).astype(np.uint8))
    save(masks / f"{folders}e_mask.png", ring())
    report = build_from_products(root, tmp_path / "out.bank", masks=masks)
    assert report.kept == {"cup": 3}
    assert report.mask_sources == {"mask, object white": 2, "mask, object black": 1}
    assert report.rejected == {"image without a mask of its name": 1, "mask without an image of its name": 1}
    assert "2  mask, object white" in report.summary()
    with bank_of(report) as bank:
        assert [int(foreground.rgba[..., 3].max()) for foreground in bank] == [255, 255, 199]
        for foreground in bank:
            np.testing.assert_array_equal(foreground.rgba[..., 3] > 0, ring()[30:131, 40:141])


def test_masks_that_do_not_fit_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        save(tmp_path / "products" / f"{name}.png", photograph(ring()))
    save(tmp_path / "masks" / "A.png", ring())
    save(tmp_path / "masks" / "b.png", ring()[:-1])
    save(tmp_path / "masks" / "c.png", photograph(ring()))
    save(tmp_path / "masks" / "d.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    report = build_from_products(tmp_path / "products", tmp_path / "out.bank", masks=tmp_path / "masks")
    assert report.kept == {"object": 1}
    assert report.repaired == {"mask: file name in other capitals": 1}
    assert report.rejected == {
        "mask file and image differ in size": 1,
        "mask file cannot be read": 1,
        "mask shows no object: it is the same everywhere": 1,
    }


@pytest.mark.parametrize("place", ["beside", "below"])
def test_a_mask_belongs_to_one_image(tmp_path: Path, place: str) -> None:
    """Names that end with ``_mask`` themselves, and images that differ in their extension only."""
    root, masks = tmp_path / "products", tmp_path / "products" / ("masks" if place == "below" else "")
    parts = {"gas": ring(), "gas_mask": ring(False)}
    if place == "below":
        for name, mask in parts.items():
            save(root / "cup" / f"{name}.jpg", photograph(mask))
            save(masks / f"{name}.png", mask)
    else:
        save(root / "cup" / "gas.png", photograph(ring()))
        save(root / "cup" / "gas_mask.jpg", np.where(ring(), 255, 0).astype(np.uint8))
    for suffix in ("bmp", "tif"):
        save(root / "cup" / f"two.{suffix}", photograph(ring()))
    save(masks / ("two.png" if place == "below" else "cup/two_mask.png"), ring())
    report = build_from_products(root, tmp_path / "out.bank", masks=masks)
    assert report.rejected == {"image has its mask in common with another of its name": 2}
    assert report.repaired == {}
    with bank_of(report) as bank:
        assert bank.categories == {1: "cup"}
        for foreground in bank:
            name = Path(foreground.source).stem
            solid = foreground.rgba[..., 3] > 127
            assert solid.sum() == pytest.approx(parts[name].sum(), rel=0.02)
        assert len(bank) == (2 if place == "below" else 1)


def test_wrong_calls_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "products" / "a.png", photograph(ring()))
    root, out, no = tmp_path / "products", tmp_path / "out.bank", tmp_path / "no"
    with pytest.raises(ValueError, match="relative_size"):
        build_from_products(root, out, relative_size=0)
    with pytest.raises(ValueError, match="max_spread is for images without masks"):
        build_from_products(root, out, masks=tmp_path, background=PlainBackground(max_spread=3, split=True))
    for folder, more in ((root, {"masks": no}), (root, {"image_list": no}), (no, {})):
        with pytest.raises(FileNotFoundError):
            build_from_products(folder, out, **more)
    with pytest.raises(ValueError, match="max_spread above 0"):
        PlainBackground(max_spread=0)
    assert [path.name for path in tmp_path.iterdir()] == ["products"]


def test_real_product_masks_are_inverted(data_root: Path, tmp_path: Path) -> None:
    """Studio images with PBM masks beside them; their background is not plain."""
    folder = data_root / "syndata_demo" / "objects_dir"
    report = build_from_products(folder, tmp_path / "out.bank", masks=folder)
    assert report.kept == {"honey_bunches": 2, "mahatma_rice": 2}
    assert report.mask_sources == {"mask, object black": 4}
    with pytest.raises(ValueError, match="background is not plain"):
        build_from_products(folder, tmp_path / "other.bank", image_list=["mahatma_rice/NP1_228.jpg"])


def test_the_command_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "products" / "a.png", photograph(two_parts(), noise=2))
    save(tmp_path / "masks" / "a.png", two_parts())
    arguments = ["bank", "build", "products", "--folder", str(tmp_path / "products"), "--category", "cup"]
    out = ["--out", str(tmp_path / "out.bank"), "--overwrite"]
    assert main([*arguments, *out, "--split", "--refine", "--max-spread", "4", "--relative-size", "0.2"]) == 0
    with ForegroundBank.open(tmp_path / "out.bank") as bank:
        assert [foreground.source for foreground in bank] == ["a.png#1", "a.png#2"]
        built = bank.info()["built"]
        assert (built["max_spread"], built["refine"], built["split"]) == (4, True, True)
        assert np.allclose(bank.relative_sizes, 0.2)
    assert main([*arguments, *out, "--masks", str(tmp_path / "masks")]) == 0
    assert "1  mask, object white" in capsys.readouterr().out
    assert main([*arguments, *out, "--masks", str(tmp_path / "masks"), "--max-spread", "4"]) == 2
