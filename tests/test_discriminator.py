"""The discriminator: its formulas, its game, and that it can be switched on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from factories import (
    RampLoss,
    all_equal,
    backward,
    every_image,
    make_bank,
    make_batch,
    make_terse,
    parameters_of,
    train_step,
    white_disc,
)
from torch import nn

from terse_aug import PARAMETERS, ForegroundBank, PixelFormat, Terse, TerseWarning, TransformRanges
from terse_aug.policies import Adversarial, Paper
from terse_aug.training.discriminator import CROP, PatchDiscriminator, discriminator_loss, object_crops, realism_loss


def test_it_is_off_unless_it_has_a_weight(tiny_bank: ForegroundBank) -> None:
    policies = ("adversarial", "random", "critic", Adversarial(discriminator_weight=0.1), Paper(discriminator_weight=1))
    there = [Terse(tiny_bank, policy).trainer.updater.discriminator is not None for policy in policies]
    assert there == [False, False, False, True, True]


def test_it_judges_patches() -> None:
    discriminator = PatchDiscriminator(seed=0, width=8)
    logits = discriminator(torch.rand(2, 3, CROP, CROP))
    assert logits.shape[:2] == (2, 1)
    assert min(logits.shape[2:]) > 1
    widths = [layer.out_channels for layer in discriminator.layers if isinstance(layer, nn.Conv2d)]
    assert widths == [8, 16, 32, 64, 1]


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = (parameters_of(PatchDiscriminator(seed, width=8)) for seed in (1, 1, 2))
    assert all_equal(first, second)
    assert not all_equal(first, other)


def test_the_losses_are_those_of_the_paper() -> None:
    real, composite = torch.tensor([0.3, -1.0]), torch.tensor([2.0, -0.5])
    p_real, p_composite = real.sigmoid(), composite.sigmoid()
    assert float(discriminator_loss(real, composite)) == pytest.approx(
        float(-p_real.log().mean() - (1 - p_composite).log().mean())
    )
    assert float(realism_loss(composite)) == pytest.approx(float(-p_composite.log().mean()))


def test_crops_show_an_object_with_its_surroundings() -> None:
    image = torch.zeros(3, 120, 120)
    image[:, 40:80, 40:80] = 1
    (crop,) = object_crops([image], [torch.tensor([[40.0, 40.0, 80.0, 80.0]])])
    edge = round(CROP / 6)  # half as large again: a quarter of the object on each side
    assert float(crop[:, edge + 2 : -edge - 2, edge + 2 : -edge - 2].min()) == pytest.approx(1)
    assert float(crop[:, : edge - 2].max()) == pytest.approx(0)


def test_crops_of_several_images_come_in_their_order_and_may_be_none() -> None:
    images = [torch.full((3, 40, 40), value) for value in (0.1, 0.2, 0.3)]
    box = torch.tensor([[15.0, 15.0, 25.0, 25.0]])
    crops = object_crops(images, [box, torch.zeros(0, 4), box.repeat(2, 1)])
    assert crops.mean((1, 2, 3)).tolist() == pytest.approx([0.1, 0.3, 0.3])
    assert object_crops(images[:1], [torch.zeros(0, 4)]).shape == (0, 3, CROP, CROP)


def test_it_learns_to_separate_composites_from_real_images(tmp_path: Path) -> None:
    policy = Adversarial(update_interval=1, discriminator_weight=1e-6)
    terse = Terse(make_bank(tmp_path, [white_disc()]), policy, paste=every_image(objects=(1, 1)))
    first = math.nan
    for seed in range(10):
        train_step(terse, RampLoss(), seed, sizes=((48, 48),) * 2)
        first = terse.metrics()["discriminator_loss"] if seed == 0 else first
    assert terse.metrics()["discriminator_loss"] < 0.8 * first
    discriminator = terse.trainer.updater.discriminator
    assert discriminator is not None
    images, targets = make_batch(99, sizes=((48, 48),) * 2)
    composites = terse.compose(images, targets)
    pasted = [
        target["boxes"][[paste.row for paste in pastes if paste.row is not None]]
        for target, pastes in zip(composites.targets, composites.pastes, strict=True)
    ]
    with torch.no_grad():
        real = discriminator(object_crops(images, [target["boxes"] for target in targets])).mean()
        fake = discriminator(object_crops(composites.images, pasted)).mean()
    assert real > fake


class BrightLooksRealToTheLeft(nn.Module):
    """A discriminator for which a crop looks the more real, the farther to the left bright pixels lie."""

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        return -20 * (crops * torch.linspace(0, 1, CROP)).mean((1, 2, 3))[:, None, None, None]


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_synthesizer_moves_to_where_composites_look_real(tmp_path: Path, weight: float) -> None:
    """The detector's loss is flat here; only realism pulls."""
    ranges = TransformRanges(rotation=(0, 0), shear=(0, 0), scale=(1, 1), scale_x=(1, 1), scale_y=(1, 1))
    settings = {"kl_weight": 0.05, "learning_rate": 1e-2, "discriminator_weight": max(weight, 1e-9)}
    policy = Adversarial(update_interval=1, **settings)
    bank = make_bank(tmp_path, [white_disc()])
    terse = Terse(bank, policy, paste=every_image(ranges=ranges, objects=(1, 1)))
    terse.trainer.updater.discriminator = BrightLooksRealToTheLeft()  # type: ignore[assignment]  # a stand-in
    terse.trainer.updater.discriminator_optimizer = None
    image = torch.full((3, 48, 48), 0.25)
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}] * 4
    flat = RampLoss(strength=0.0)
    for _ in range(24):
        terse.step(backward(flat(*terse([image] * 4, targets))))
    found = [terse.compose([image] * 4, targets, seed=seed) for seed in range(8)]
    unit = torch.stack([paste.unit for one in found for pastes in one.pastes for paste in pastes])
    across = float(unit[:, PARAMETERS.index("translate_x")].mean())
    assert across < 0.3 if weight else 0.35 < across < 0.65


def test_it_sees_rgb_in_the_unit_range_whatever_the_pixel_format(tiny_bank: ForegroundBank) -> None:
    formats = [PixelFormat(), PixelFormat(scale=255.0, mean=(103.5, 116.3, 123.7), std=(57.4, 57.1, 58.4), bgr=True)]
    shown = []
    for pixels in formats:
        terse = Terse(tiny_bank, Adversarial(discriminator_weight=0.1), paste=every_image(), pixel_format=pixels)
        images, targets = make_batch()
        terse([pixels.encode(image) for image in images], targets)
        (pending,) = terse.trainer.feedback.batches
        assert pending.real is not None
        assert pending.composite is not None
        shown.append(torch.cat([pending.real, pending.composite]))
    torch.testing.assert_close(shown[0], shown[1], rtol=0, atol=2e-3)


def test_without_real_objects_it_is_not_updated(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, Adversarial(update_interval=1, discriminator_weight=0.1), paste=every_image())
    assert terse.trainer.updater.discriminator is not None
    before = parameters_of(terse.trainer.updater.discriminator)
    train_step(terse, RampLoss(), objects=0)
    assert all_equal(before, parameters_of(terse.trainer.updater.discriminator))
    train_step(terse, RampLoss(), objects=1)
    assert not all_equal(before, parameters_of(terse.trainer.updater.discriminator))


def test_it_is_not_updated_where_the_policy_is_not(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, discriminator_weight=0.5)
    assert terse.trainer.updater.discriminator is not None
    before = [own.clone() for own in parameters_of(terse.trainer.updater.discriminator)]
    composites, _ = terse(*make_batch())
    (torch.stack([own.mean() for own in composites]).sum() * torch.inf).backward()
    with pytest.warns(TerseWarning, match="gradient is not finite"):
        terse.step(1.0)
    assert terse.metrics()["skipped_updates"] == 1
    assert all_equal(parameters_of(terse.trainer.updater.discriminator), before)
