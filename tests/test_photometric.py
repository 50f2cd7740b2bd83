"""Photometric parameters of a paste: what each does, in both renderers, and that they are columns of a transform."""

from __future__ import annotations

import colorsys
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from compositing_samples import STILL, WIDE, foreground_of, opaque_rgba, plan_of, settings_of, target_of
from factories import every_image, make_bank, make_batch, make_detector, make_foreground, policy_with
from torch import Tensor

from terse_aug import PARAMETERS, Distractors, ForegroundBank, PasteConfig, Photometric, PixelFormat, Terse
from terse_aug.compositing.compose import Composites, compose
from terse_aug.compositing.layers import RenderSettings
from terse_aug.compositing.plan import Decoy
from terse_aug.policies import AdversarialPolicy, make_policy
from terse_aug.transforms import PHOTOMETRIC, color_matrix

EACH = {
    "brightness": (0.5, 1.5),
    "contrast": (0.4, 1.6),
    "saturation": (0.0, 2.0),
    "hue": (-180.0, 180.0),
    "blur": (0.0, 1.0),
    "noise": (0.0, 0.1),
}
ALL = Photometric(**EACH)
SETS = [Photometric(**{name: EACH[name]}) for name in EACH] + [ALL]
IDS = [*EACH, "all"]
LEVEL = 1 / 255
ROUNDED = 2.6 * LEVEL
"""The 8-bit renderer rounds warped colors, which contrast and saturation enlarge, and alpha."""
WARPED = 0.0 if int(cv2.__version__.split(".")[0]) >= 5 else 255 / 32
"""Levels by which a warp of OpenCV 4 is wrong at most, which knows positions to 1/32 pixel."""


def values_of(**values: float) -> np.ndarray:
    neutral = dict.fromkeys(PHOTOMETRIC[:3], 1.0) | dict.fromkeys(PHOTOMETRIC[3:], 0.0)
    return np.array([(neutral | values)[name] for name in PHOTOMETRIC])


def changed(color: tuple[float, float, float], **values: float) -> list[float]:
    matrix = color_matrix(values_of(**values))
    return (matrix[:, :3] @ np.array(color) + matrix[:, 3]).tolist()


def smooth(side: int, seed: int, sigma: float) -> np.ndarray:
    """Colored noise, blurred and stretched to all levels, ``[side, side, 3]``."""
    noise = np.random.default_rng(seed).random((side, side, 3)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigma) if sigma else noise
    return 255 * (blurred - blurred.min()) / (blurred.max() - blurred.min())


def textured(seed: int, sigma: float = 0.8, side: int = 40, label: int = 1) -> Any:
    """A disc with a texture."""
    rgba = np.dstack([smooth(side, seed, sigma), np.zeros((side, side))]).astype(np.uint8)
    cv2.circle(rgba, (side // 2, side // 2), side // 2 - 2, (255,) * 4, -1)
    rgba[..., :3] = smooth(side, seed, sigma)
    return foreground_of(torch.from_numpy(rgba / 255).permute(2, 0, 1), 0.4, label=label)


def images_of(count: int = 2, side: int = 90, sigma: float = 2.0) -> list[Tensor]:
    return [torch.from_numpy(smooth(side, 50 + n, sigma) / 255).permute(2, 0, 1).contiguous() for n in range(count)]


def unit_of(settings: RenderSettings, count: int, seed: int = 0, **values: float) -> Tensor:
    """Random transforms; of some columns the given values."""
    unit = torch.rand(count, len(settings.paste.columns), generator=torch.Generator().manual_seed(seed))
    for name, value in values.items():
        unit[:, settings.paste.columns.index(name)] = value
    return unit


def composed(photometric: Photometric, unit: Tensor | None = None, decoys: bool = False, **settings: Any) -> Composites:
    rendering = settings_of(WIDE, photometric=photometric)
    unit = unit_of(rendering, 4) if unit is None else unit
    tries = unit_of(rendering, 8, seed=7)
    corners = [(n / 8, 1 - n / 8) for n in range(8)]
    decoy = Decoy(0, 1, textured(8), tries, corners)
    plan = plan_of([textured(seed) for seed in range(4)], [0, 0, 1, 1], [decoy] if decoys else [])
    images = settings.get("images", images_of())
    pixel_format = settings.get("pixel_format", PixelFormat())
    rendering = RenderSettings(rendering.paste, pixel_format, ())
    return compose(images, [target_of(), target_of()], plan, unit, rendering)


def test_a_color_is_changed_as_its_name_says() -> None:
    color = (200.0, 100.0, 50.0)
    luma = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    assert changed(color) == pytest.approx(color)
    assert changed(color, brightness=0.5) == pytest.approx((100, 50, 25))
    assert changed(color, contrast=0) == pytest.approx((127.5,) * 3)
    assert changed(color, contrast=2) == pytest.approx((272.5, 72.5, -27.5))
    assert changed(color, saturation=0) == pytest.approx((luma,) * 3)
    assert changed(color, hue=120) == pytest.approx((50, 200, 100))
    assert changed((80, 80, 80), hue=77, saturation=1.9) == pytest.approx((80,) * 3)
    turned = changed(color, hue=30)
    before, after = (colorsys.rgb_to_hsv(*own)[0] * 360 for own in (color, turned))
    assert after - before == pytest.approx(30, abs=3)
    # One after the other, in the order of their names.
    expected: Any = color
    values = {"brightness": 0.8, "contrast": 1.3, "saturation": 0.6, "hue": -40.0}
    for name, value in values.items():
        expected = changed(tuple(expected), **{name: value})
    assert changed(color, **values) == pytest.approx(expected)
    reversed_order = color_matrix(values_of(**values), bgr=True)
    assert (reversed_order[:, :3] @ np.array(color[::-1]) + reversed_order[:, 3])[::-1] == pytest.approx(expected)


@pytest.mark.parametrize("photometric", SETS, ids=IDS)
@pytest.mark.parametrize("kind", ["unit", "normalized", "bgr", "levels"])
def test_both_renderers_change_colors_alike(photometric: Photometric, kind: str) -> None:
    """Of pastes and decoys; float images with and without a gradient, and levels."""
    pixel_format = {
        "normalized": PixelFormat(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25)),
        "bgr": PixelFormat(scale=255.0, bgr=True),
    }.get(kind, PixelFormat())
    images = [pixel_format.encode(image) for image in images_of()]
    unit = unit_of(settings_of(photometric=photometric), 4)
    given = {"pixel_format": pixel_format, "decoys": True}
    exact = composed(photometric, unit.clone().requires_grad_(), images=images, **given)
    eight = [(pixel_format.decode_levels(image)).round().byte() for image in images]
    fast = composed(photometric, unit, images=eight if kind == "levels" else images, **given)
    plain = composed(Photometric(), unit[:, : len(PARAMETERS)], images=images, **given)
    assert exact.images[0].requires_grad
    for one, other, before in zip(exact.images, fast.images, plain.images, strict=True):
        one, other, before = (pixel_format.decode(own.detach()) for own in (one, other, before))
        assert (one - other).abs().max() < (2 * ROUNDED if kind == "levels" else ROUNDED)
        assert (one - before).abs().max() > 4 * ROUNDED
    for target, other in zip(exact.targets, fast.targets, strict=True):
        torch.testing.assert_close(target["boxes"], other["boxes"], rtol=0, atol=1)


STRONG = Photometric(brightness=(0.5, 2), contrast=(0.4, 2), saturation=(0, 2), hue=(-180, 180))
STRONGER = [Photometric(brightness=(1, 4)), STRONG, *SETS, Photometric()]


@pytest.mark.parametrize("levels", [False, True], ids=["float", "levels"])
@pytest.mark.parametrize("photometric", STRONGER, ids=["bright", "strong", *IDS, "none"])
def test_renderers_differ_by_what_the_colors_are_multiplied_with(photometric: Photometric, levels: bool) -> None:
    """The bound in docs/design.md, for each image by the gain of its paste."""
    rendering = settings_of(WIDE, photometric=photometric, edge_blur_sigma=0.5)
    eight = [image.mul(255).round().byte() for image in images_of(2, sigma=0.0)]
    images = [image / 255 for image in eight]
    plan = plan_of([textured(0, 0.0), textured(1, 0.0)], [0, 1])
    farthest = 0.0
    for seed in range(4):
        unit = unit_of(rendering, 2, seed)
        values = rendering.paste.photometric_values(unit.numpy())
        gains = [1.0, 1.0] if values is None else abs(color_matrix(values)[:, :, :3]).sum(2).max(1).tolist()
        exact = compose(images, [target_of()] * 2, plan, unit.clone().requires_grad_(), rendering)
        fast = compose(eight if levels else images, [target_of()] * 2, plan, unit, rendering)
        for one, other, gain in zip(exact.images, fast.images, gains, strict=True):
            difference = float((one.detach() * 255 - (other if levels else other * 255)).abs().max())
            assert difference < (0.5 + WARPED) * (gain + 2) + (1 if levels else 0) + 0.01
            farthest = max(farthest, difference)
    # More than for plain colors, which is why the bound has the gain in it.
    assert farthest > 1.5 or photometric not in STRONGER[:2]


@pytest.mark.parametrize("photometric", SETS, ids=IDS)
def test_the_composite_has_the_right_gradient_in_the_photometric_columns(photometric: Photometric) -> None:
    """Sharpness is measured where the paste lies and is a constant: the place is held."""
    rendering = settings_of(WIDE, photometric=photometric, edge_blur_sigma=0.7)
    images = [image.double()[:, :20, :24] * 0.5 + 0.25 for image in images_of(1, sigma=3.0)]
    plan = plan_of([textured(0, 0.0, 12), textured(1, 0.0, 9)], [0, 0])
    place = torch.tensor([[0.4, 0.6, 0.5, 0.7, 0.3, 0.2, 0.3], [0.6, 0.3, 0.6, 0.5, 0.4, 0.9, 0.8]]).double()
    looks = (torch.rand(2, len(photometric.columns), generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3).double()

    def composite(looks: Tensor) -> Tensor:
        unit = torch.cat([place + 0 * looks[:, :1], looks], 1)
        return compose(images[:1], [target_of()], plan, unit, rendering).images[0]

    looks.requires_grad_()
    (gradient,) = torch.autograd.grad(composite(looks)[0].square().sum(), looks)
    assert (gradient != 0).all()
    assert torch.autograd.gradcheck(composite, (looks,), atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("photometric", SETS[:4], ids=IDS[:4])
def test_with_other_colors_the_gradient_of_the_place_is_right(photometric: Photometric) -> None:
    rendering = settings_of(WIDE, photometric=photometric)
    unit = unit_of(rendering, 1, seed=4).double().requires_grad_()
    images, plan = [images_of(1)[0].double()[:, :14, :16]], plan_of([textured(0, 0.4, 9)], [0])

    def composite(unit: Tensor) -> Tensor:
        return compose(images, [target_of()], plan, unit, rendering).images[0]

    assert torch.autograd.gradcheck(composite, (unit,), atol=1e-4, fast_mode=True)


def second_differences(image: Tensor, margin: int) -> float:
    """Their mean size in the middle of an image."""
    inner = image[:, margin:-margin, margin:-margin]
    return float((inner[:, 2:] - 2 * inner[:, 1:-1] + inner[:, :-2]).abs().mean())


def blurred_paste(own: float, background: float, blur: float) -> Tensor:
    """A paste of some sharpness in the middle of an image of some sharpness."""
    rendering = settings_of(STILL, photometric=Photometric(blur=(blur, blur)) if blur else Photometric())
    rgba = opaque_rgba(60, 60)
    rgba[:3] = torch.from_numpy(smooth(60, 3, own) / 255).permute(2, 0, 1)
    plan = plan_of([foreground_of(rgba, 60 / 120)], [0])
    unit = torch.full((1, len(rendering.paste.columns)), 0.5)
    return compose([images_of(1, 120, background)[0]], [target_of()], plan, unit, rendering).images[0]


def test_a_paste_is_blurred_towards_its_background_and_never_sharpened() -> None:
    sharp, half, whole = (second_differences(blurred_paste(0.0, 2.0, blur), 40) for blur in (0.0, 0.5, 1.0))
    assert sharp > 2 * half > 2.5 * whole
    # As sharp as what has the sharpness of the background.
    like_background = second_differences(blurred_paste(1.9, 2.0, 0.0), 40)
    assert whole / sharp == pytest.approx(like_background / sharp, abs=0.12)
    torch.testing.assert_close(blurred_paste(2.0, 0.0, 1.0), blurred_paste(2.0, 0.0, 0.0), rtol=0, atol=1.1 * LEVEL)


def test_blur_mixes_colors_of_the_object_alone() -> None:
    """What lies under transparent pixels stays out."""
    rgba = opaque_rgba(40, 40)
    rgba[:] = torch.tensor([0.0, 1.0, 0.0, 0.0])[:, None, None].double()
    rgba[:, 8:32, 8:32] = torch.tensor([1.0, 0.0, 0.0, 1.0])[:, None, None].double()
    rendering = settings_of(STILL, photometric=Photometric(blur=(1, 1)), edge_blur_sigma=0.0)
    unit = torch.full((1, len(rendering.paste.columns)), 0.5)
    plan = plan_of([foreground_of(rgba, 40 / 80)], [0])
    for grad in (False, True):
        made = compose([images_of(1, 80, 3.0)[0]], [target_of()], plan, unit.requires_grad_(grad), rendering)
        left, top, right, bottom = made.targets[0]["boxes"][0].int().tolist()
        assert float(made.images[0][1, top + 1 : bottom - 1, left + 1 : right - 1].detach().max()) < 3 * LEVEL


def test_noise_has_the_given_strength_and_differs_between_pastes() -> None:
    rendering = settings_of(STILL, photometric=Photometric(noise=(0, 0.2)))
    gray = opaque_rgba(50, 50)
    gray[:3] = 0.5
    plan = plan_of([foreground_of(gray, 0.5)] * 2, [0, 1])
    unit = torch.full((2, len(rendering.paste.columns)), 0.5)
    unit[:, -1] = torch.tensor([0.25, 0.2512])
    made = compose([torch.zeros(3, 100, 100)] * 2, [target_of()] * 2, plan, unit, rendering)
    inner = [image[:, 30:70, 30:70] - 0.5 for image in made.images]
    for noise in inner:
        assert float(noise.std()) == pytest.approx(0.05, rel=0.06)
        assert abs(float(noise.mean())) < 0.005
    assert abs(float(torch.corrcoef(torch.stack([own.flatten() for own in inner]))[0, 1])) < 0.1


@pytest.fixture
def bank(tmp_path: Path) -> ForegroundBank:
    return make_bank(tmp_path)


def everything(bank: ForegroundBank, tmp_path: Path, policy: Any = "random", **settings: Any) -> Terse:
    paste = PasteConfig(
        objects=(2, 3), paste_probability=1.0, decoys=(1, 1), occluded_object_probability=0.5, photometric=ALL
    )
    distractors = Distractors(make_bank(tmp_path, [make_foreground(9, label=7)]), count=(1, 2))
    return Terse(bank, policy, paste=paste, distractors=distractors, **settings)


@pytest.mark.parametrize("policy", ["random", "matched", "best-of-n", "critic", "adversarial", "paper"])
def test_every_policy_proposes_the_columns_that_are_switched_on(
    bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    detector = make_detector("fasterrcnn")
    terse = everything(bank, tmp_path, policy_with(policy, update_interval=1), model=detector)
    assert terse.paste.columns == PARAMETERS + PHOTOMETRIC
    for seed in range(3):
        images, targets = terse(*make_batch(seed, ((80, 96), (96, 80)), 2))
        assert {len(paste.unit) for own in terse.pastes for paste in own} == {len(PARAMETERS + PHOTOMETRIC)}
        losses = detector(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        terse.step(losses)
    metrics = terse.metrics()
    assert metrics["updates"] == (3 if terse.policy.learns else 0)
    assert {f"std_ratio/{name}" for name in PHOTOMETRIC} <= metrics.keys()
    again = everything(bank, tmp_path, policy_with(policy, update_interval=1), model=detector)
    again.load_state_dict(terse.state_dict())
    assert again.metrics() == metrics
    assert [len(rows) > 0 for rows in terse.compose(*make_batch(5)).pastes] == [True, True]


def test_a_gradient_changes_the_photometric_columns(bank: ForegroundBank, tmp_path: Path) -> None:
    """Brighter is worse for this model: the synthesizer learns to brighten."""
    photometric = Photometric(brightness=(0.2, 1.8))
    settings = policy_with("adversarial", update_interval=1, learning_rate=0.02, kl_weight=0.01)
    terse = Terse(bank, settings, paste=every_image(photometric=photometric, objects=(2, 2)))
    column = terse.paste.columns.index("brightness")
    means = []
    for seed in range(8):
        images, _ = terse(*make_batch(seed % 4))
        means.append(float(torch.stack([own.unit for pastes in terse.pastes for own in pastes])[:, column].mean()))
        loss = torch.stack([image.mean() for image in images]).mean() * 30
        loss.backward()
        terse.step(loss)
    assert means[0] < 0.7
    assert min(means[-3:]) > 0.85


def test_workers_compose_what_terse_composes(bank: ForegroundBank, tmp_path: Path) -> None:
    terse, other = (everything(bank, tmp_path, seed=4) for _ in range(2))
    composer = other.composer()
    for number in range(3):
        images, targets = make_batch(number, ((80, 96),), 2)
        expected, _ = terse(images, targets)
        image, target, record = composer(images[0], targets[0], number)
        assert torch.equal(image, expected[0])
        assert {len(unit) for unit in record.unit} == {len(terse.paste.columns)}
        other([image], [target], [record])
    assert other.metrics() == terse.metrics()


def test_a_policy_with_other_columns_is_refused(bank: ForegroundBank) -> None:
    paste = PasteConfig(photometric=Photometric(hue=(-9, 9)))
    with pytest.raises(ValueError, match=r"policy: AdversarialPolicy proposes transforms with rotation, .*, hue: make"):
        Terse(bank, AdversarialPolicy(), paste=paste)
    Terse(bank, AdversarialPolicy(columns=paste.columns), paste=paste)
    Terse(bank, make_policy("random", 0), paste=paste)


def test_without_photometric_ranges_nothing_is_drawn() -> None:
    assert PasteConfig().columns == PARAMETERS
    assert PasteConfig(photometric=Photometric(hue=(0, 0), noise=(0, 0.1))).columns == (*PARAMETERS, "noise")
    assert math.isclose(float(PasteConfig(photometric=ALL).physical(torch.full((13,), 0.75))[-1]), 0.075, rel_tol=1e-6)
