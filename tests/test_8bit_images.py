"""8-bit images go in and come out as they are, and float images that do not fit their format are warned about."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_bank, make_batch, make_detector, make_foreground, policy_with
from torch import Tensor

from terse_aug import BackgroundPool, Distractors, ForegroundBank, PasteConfig, PixelFormat, Robustness, Terse
from terse_aug.utils.warnings import TerseWarning

PASTE = PasteConfig(objects=(2, 3), paste_probability=1.0, decoys=(1, 1), occluded_object_probability=0.5)
SEVERAL_LAYERS = 1.6 / 255
"""Each layer rounds by up to half a level."""
SIZES = ((64, 80), (90, 64), (80, 80))


@pytest.fixture
def bank(tmp_path: Path) -> ForegroundBank:
    return make_bank(tmp_path, [make_foreground(seed, 1 + seed % 2) for seed in range(4)])


def batch(levels: bool, bgr: bool = False) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The same images as levels, and as float in [0, 1]."""
    images, targets = make_batch(3, SIZES, 2, masks=True)
    eight = [(image * 255).round().to(torch.uint8) for image in images]
    eight = [image.flip(0) if bgr else image for image in eight]
    return (eight if levels else [image.float() / 255 for image in eight]), targets


def composed(bank: ForegroundBank, levels: bool, policy: str = "random", bgr: bool = False, **parts: Any) -> Terse:
    detector = make_detector("fasterrcnn")
    terse = Terse(
        bank, policy_with(policy), model=detector, seed=2, paste=PASTE, pixel_format=PixelFormat(bgr=bgr), **parts
    )
    terse.result = terse(*batch(levels, bgr))
    return terse


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("policy", ["random", "critic", "best-of-n"])
def test_composites_of_levels_are_those_of_floats_to_a_level(bank: ForegroundBank, policy: str, bgr: bool) -> None:
    given = batch(True, bgr)[0]
    before = [image.clone() for image in given]
    (levels, targets), (floats, expected) = (composed(bank, own, policy, bgr).result for own in (True, False))
    assert all(image.dtype == torch.uint8 for image in levels)
    assert all(map(torch.equal, given, before))
    for image, exact, plain in zip(levels, floats, before, strict=True):
        assert (image.float() / 255 - exact).abs().max() < SEVERAL_LAYERS
        assert not torch.equal(image, plain)
    for target, other in zip(targets, expected, strict=True):
        assert all(torch.equal(target[name], other[name]) for name in other)


@pytest.mark.parametrize("levels", [False, True])
def test_the_order_of_the_channels_is_that_of_the_images(bank: ForegroundBank, levels: bool) -> None:
    rgb, bgr = (composed(bank, levels, bgr=bgr).result[0] for bgr in (False, True))
    for own, other in zip(rgb, bgr, strict=True):
        torch.testing.assert_close(own, other.flip(0))


def test_backgrounds_and_distractors_of_levels_are_those_of_floats(bank: ForegroundBank, tmp_path: Path) -> None:
    strange = make_bank(tmp_path, [make_foreground(9, label=7)])
    parts = {
        "backgrounds": BackgroundPool([make_batch(9, ((120, 140),), 0)[0][0]], probability=0.6),
        "distractors": Distractors(strange, count=(1, 2)),
    }
    levels, floats = (composed(bank, own, **parts) for own in (True, False))
    assert levels.replaced == floats.replaced != {}
    for image, exact in zip(levels.result[0], floats.result[0], strict=True):
        assert (image.float() / 255 - exact).abs().max() < SEVERAL_LAYERS


@pytest.mark.parametrize(("policy", "parts"), [("adversarial", {}), ("random", {"robustness": Robustness()})])
def test_where_gradients_are_needed_composites_are_float(bank: ForegroundBank, policy: str, parts: Any) -> None:
    (images, _), (expected, _) = (composed(bank, levels, policy, **parts).result for levels in (True, False))
    for image, exact in zip(images, expected, strict=True):
        assert image.dtype == torch.float32
        torch.testing.assert_close(image, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("policy", ["best-of-n", "critic"])
def test_the_model_gets_floats_in_an_extra_forward(bank: ForegroundBank, policy: str) -> None:
    detector = make_detector("retinanet")
    seen: list[Tensor] = []
    detector.register_forward_pre_hook(lambda module, given: seen.extend(given[0]))
    terse = Terse(bank, policy_with(policy, update_interval=1), model=detector, paste=PASTE)
    terse(*batch(True))
    terse.step(torch.tensor(1.0))
    assert terse.metrics()["extra_forwards"] > 0
    assert all(image.is_floating_point() and float(image.max()) <= 1 for image in seen)


NORMALIZED = PixelFormat(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@pytest.mark.parametrize("given", [PixelFormat(), PixelFormat(255.0), NORMALIZED], ids=["unit", "levels", "normalized"])
@pytest.mark.parametrize("declared", [PixelFormat(), PixelFormat(255.0), NORMALIZED], ids=["unit", "levels", "norm"])
def test_images_that_are_not_in_their_format_are_warned_about(
    bank: ForegroundBank, given: PixelFormat, declared: PixelFormat
) -> None:
    images, targets = batch(False)
    terse = Terse(bank, paste=PASTE, pixel_format=declared)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            terse([given.encode(image) for image in images], targets)
    texts = [str(own.message) for own in caught if issubclass(own.category, TerseWarning)]
    # Unit images within normalized ones cannot be told apart by their range.
    expected = int(given != declared and not (given == PixelFormat() and declared == NORMALIZED))
    assert sum("pixel_format" in text for text in texts) == expected
