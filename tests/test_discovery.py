"""Networks, losses and health checks of learning to cut out."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from discovery_samples import TINY

from terse_aug.discovery import PRESETS, DiscoverySettings, LayeredGenerator, Layers
from terse_aug.discovery.discriminator import Discriminator, MaskClassifier
from terse_aug.discovery.generator import Perturbation, draw_codes, draw_perturbation, with_contrast
from terse_aug.discovery.health import (
    ALIKE,
    CODE_AT_RANDOM,
    EMPTY,
    EXPLANATIONS,
    FULL,
    INVISIBLE,
    TRANSPARENT,
    Health,
    measure_health,
)
from terse_aug.discovery.losses import background_loss, code_loss, discriminator_loss
from terse_aug.utils.random import generator_for


@pytest.fixture
def generator() -> LayeredGenerator:
    torch.manual_seed(0)
    return LayeredGenerator(TINY)


def codes(count: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return draw_codes(TINY, count, generator_for(seed))


def test_the_composite_is_the_foreground_over_the_background(generator: LayeredGenerator) -> None:
    layers = generator(*codes(), draw_perturbation(TINY, 6, generator_for(1)))
    composed = layers.mask * layers.foreground + (1 - layers.mask) * layers.background
    assert layers.composite.shape == (6, 3, 16, 16)
    assert torch.equal(layers.composite, composed)
    assert layers.mask.min() >= 0
    assert layers.mask.max() <= 1


def test_which_layer_depends_on_which_code(generator: LayeredGenerator) -> None:
    """The mask on z and group, the foreground on z, group and category, the background on z only."""
    generator.eval()
    z, _ = codes(1)
    first, sibling, cousin = (generator(z, torch.tensor([number])) for number in (0, 1, 2))
    assert torch.equal(first.background, cousin.background)
    assert torch.equal(first.mask, sibling.mask)
    assert not torch.equal(first.mask, cousin.mask)
    assert not torch.equal(first.foreground, sibling.foreground)
    other = generator(codes(1, seed=5)[0], torch.tensor([0]))
    for name in ("background", "mask", "foreground"):
        assert not torch.equal(getattr(first, name), getattr(other, name)), name


def test_reading_the_mask_teaches_the_mask_path_only(generator: LayeredGenerator) -> None:
    z, category = codes()
    layers = generator(z, category, draw_perturbation(TINY, 6, generator_for(1)))
    code_loss(MaskClassifier(TINY)(layers.generated_mask), category // TINY.group_size).backward()
    reached = {name for name, own in generator.named_parameters() if own.grad is not None and own.grad.any()}
    assert reached == {name for name, _ in generator.named_parameters() if name.startswith("shape.")}


def test_reading_the_composite_teaches_all_layers(generator: LayeredGenerator) -> None:
    z, category = codes()
    code_loss(Discriminator(TINY)(generator(z, category).composite)[1], category).backward()
    unreached = {name for name, own in generator.named_parameters() if own.grad is None or not own.grad.any()}
    assert unreached == set()


def test_a_perturbation_moves_the_foreground_and_leaves_the_background(generator: LayeredGenerator) -> None:
    generator.eval()
    z, category = codes(1)
    still = generator(z, category)
    # A shift of 4 px to the right: affine_grid's matrix says where a pixel comes from, in half sides.
    right = Perturbation(torch.tensor([[[1.0, 0.0, -0.5], [0.0, 1.0, 0.0]]]), torch.ones(1))
    moved = generator(z, category, right)
    torch.testing.assert_close(moved.mask[..., 4:], still.mask[..., :-4], atol=1e-5, rtol=0)
    assert (moved.mask[..., :4] == 0).all()
    torch.testing.assert_close(moved.foreground[..., 4:], still.foreground[..., :-4], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.background, still.background)
    torch.testing.assert_close(moved.composite[..., :4], still.background[..., :4])


def test_perturbations_are_within_their_ranges() -> None:
    settings = dataclasses.replace(TINY, scale=(-1.0, 0.5), shift=0.25, rotation=30, contrast=0.3)
    affine, contrast = draw_perturbation(settings, 4000, generator_for(0))
    matrix = affine[:, :, :2].inverse()
    size = matrix.det().sqrt()
    assert 0.5 <= size.min() < 0.51
    assert 1.4 < size.max() <= math.sqrt(2) + 1e-5
    angle = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0])).abs().max()
    assert 29 < angle <= 30.01
    shift = (matrix @ -affine[:, :, 2:]).abs().max() / 2  # of the layer, in sides
    assert 0.24 < shift <= 0.2501
    assert 0.7 <= contrast.min() < 0.71
    assert 1.29 < contrast.max() <= 1.3


def test_contrast_keeps_the_range_of_an_image() -> None:
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    torch.testing.assert_close(with_contrast(images, torch.ones(2)), images)
    changed = with_contrast(images, torch.tensor([0.5, 2.0]))
    assert (changed.amax((2, 3)) <= images.amax((2, 3))).all()
    assert (changed.amin((2, 3)) >= images.amin((2, 3))).all()
    assert changed[0].std() < images[0].std()
    assert changed[1].std() > images[1].std()


def test_losses() -> None:
    assert discriminator_loss(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, -3.0])) == 0
    assert discriminator_loss(torch.tensor([0.0]), torch.tensor([0.5])) == 2.5
    certain = torch.full((1, 1, 4, 4), 8.0)
    assert background_loss(certain) > 7.9 > background_loss(-certain)


def layers_of(masks: torch.Tensor, difference: float = 1.0) -> Layers:
    background = torch.zeros(len(masks), 3, *masks.shape[2:])
    foreground = background + difference
    return Layers(masks * foreground + (1 - masks) * background, masks, foreground, background, masks)


def planted(kind: str) -> tuple[Health, str]:
    """Health of layers that have collapsed in one way, and the name of that way."""
    count, groups, side = 64, torch.arange(64) % 4, 16
    masks = torch.zeros(count, 1, side, side)
    for number in range(count):  # four shapes at four places each
        row, column = int(groups[number]) * 3, number // 4 % 4 * 3
        masks[number, :, row : row + 6, column : column + 6] = 1
    logits = torch.eye(4)[groups]
    if kind == "healthy":
        return measure_health(layers_of(masks), groups, logits), ""
    if kind == EMPTY:
        return measure_health(layers_of(masks * 0), groups, logits), EMPTY
    if kind == FULL:
        return measure_health(layers_of(torch.ones_like(masks)), groups, logits), FULL
    if kind == ALIKE:
        return measure_health(layers_of(masks[:1].expand_as(masks)), groups, logits), ALIKE
    if kind == TRANSPARENT:
        return measure_health(layers_of(0.4 + 0.2 * masks), groups, logits), TRANSPARENT
    if kind == INVISIBLE:
        return measure_health(layers_of(masks, difference=0.01), groups, logits), INVISIBLE
    return measure_health(layers_of(masks), groups, logits[torch.randperm(64)]), CODE_AT_RANDOM


@pytest.mark.parametrize("kind", [EMPTY, FULL, ALIKE, TRANSPARENT, INVISIBLE, CODE_AT_RANDOM])
def test_a_planted_collapse_is_called_by_its_name(kind: str) -> None:
    torch.manual_seed(0)
    health, name = planted(kind)
    assert name in health.collapsed


def test_healthy_layers_raise_no_alarm() -> None:
    assert planted("healthy")[0].collapsed == ()


@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_the_difference_is_that_within_the_masks(alpha: float) -> None:
    masks = torch.zeros(4, 1, 16, 16)
    masks[..., :4, :4] = alpha  # a sixteenth of the image
    health = measure_health(layers_of(masks, difference=0.3), torch.arange(4), None)
    assert health.difference == pytest.approx(0.3)


def test_without_mutual_information_its_check_is_left_out() -> None:
    masks = (torch.rand(8, 1, 4, 4) > 0.5).float()
    assert CODE_AT_RANDOM not in measure_health(layers_of(masks), torch.zeros(8).long(), None).collapsed


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"size": 48}, "power of two.* 32 or 64"),
        ({"size": 512}, "at most 256"),
        ({"categories": 20, "group_size": 8}, "multiple of group_size 8.*16"),
        ({"categories": 4, "group_size": 4}, "two groups"),
        ({"gamma_mi": -1.0}, "gamma_mi: expected at least 0"),
        ({"scale": (0.5, -0.5)}, "scale: expected two ascending"),
        ({"ema": 1.0}, "ema: expected at most"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"batch": 1}, "batch: expected at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, object], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        dataclasses.replace(TINY, **change)


def test_the_papers_presets() -> None:
    """Its table 1, at 128 px."""
    table = {
        name: (own.categories, own.group_size, own.rotation, own.contrast, own.gamma_mi, own.gamma_bg)
        for name, own in PRESETS.items()
        if not name.startswith("cpu")
    }
    assert table == {
        "cub": (200, 10, 15, 0, 1, 2),
        "dogs": (120, 10, 15, 0, 2, 1),
        "cars": (196, 14, 0, 0.3, 1, 2),
        "apc": (200, 10, 15, 0, 2, 0),
    }
    assert {own.size for name, own in PRESETS.items() if name in table} == {128}
    assert {own.size * own.shift for name, own in PRESETS.items() if name in table} == {16}


def test_every_setting_has_a_row_in_the_documentation() -> None:
    text = (Path(__file__).parents[1] / "docs" / "generators.md").read_text()
    for own in dataclasses.fields(DiscoverySettings):
        assert f"| `--{own.name.replace('_', '-')}` | " in text, own.name
        assert own.metadata["help"] in text, own.name
    assert all(f"| `{name}` | " in text for name in EXPLANATIONS)
    assert all(f"`{name}`" in text for name in PRESETS)
