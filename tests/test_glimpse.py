"""Glimpses: what a critic sees of a paste."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import every_image, make_bank, make_batch, make_foreground
from torch import Tensor
from torch.nn import functional as F

from terse_aug import PARAMETERS, Foreground, ForegroundBank, Terse, TransformRanges
from terse_aug.compositing.compose import compose
from terse_aug.compositing.plan import plan_pastes
from terse_aug.data.foreground_cache import ForegroundCache
from terse_aug.policies import VIEW_SIDE, CriticPolicy, Views
from terse_aug.policies.base import VIEW_NUMBERS, VIEW_SHAPE, VIEWS
from terse_aug.policies.views import view_maker
from terse_aug.utils.random import generator_for


@pytest.mark.parametrize("mirror", [0.0, 1.0])
def test_a_glimpse_shows_what_the_composite_shows(tmp_path: Path, flip: float) -> None:
    bank = make_bank(tmp_path, [_triangle(seed) for seed in range(6)])
    ranges = TransformRanges(rotation=(-180, 180), scale=(1.0, 1.6), keep_inside=0.5)
    terse = Terse(bank, "random", paste=every_image(objects=(2, 2), ranges=ranges, flip_probability=flip))
    images, targets = make_batch(sizes=((96, 128), (128, 96)))
    images = [F.avg_pool2d(image[None], 9, 1, 4)[0] * share for image, share in zip(images, (1.0, 0.5), strict=True)]
    cache, sampler = ForegroundCache(terse.bank), terse.sampler
    plan = plan_pastes(cache, [True, True], terse.config, generator_for(0), sampler, terse.policy)
    unit = torch.rand(3, 4, len(PARAMETERS), generator=generator_for(1))
    render_settings = terse.pasting.render_settings(images)
    views = view_maker(plan, images, targets, render_settings)(unit)
    assert views.pictures.shape == (3, 4, *VIEW_SHAPE)
    for candidate in range(3):
        for row in range(4):
            # Each paste is judged alone.
            alone = type(plan)(*([value[row]] for value in _fields(plan)), [])
            number = plan.image_of[row]
            composite = compose(images, targets, alone, unit[candidate, row : row + 1], render_settings)
            figures = views.figures[candidate, row]
            size = torch.tensor([images[number].shape[-1], images[number].shape[-2]])
            half = 1.5 * (figures[9:11] * size / 2).max()
            views = {"window": ((figures[7:9] + 1) / 2 * size, half), "image": (size / 2, size / 2)}
            for view, shown in zip(VIEWS, views.pictures[candidate, row], strict=True):
                expected = _window(composite.images[number], *views[view])
                inside = shown[5] > 0.99
                assert 0.2 < float(inside.float().mean()) <= 1
                assert bool(inside.all()) or view == "window"
                assert float((shown[:3] - expected).abs().mean(0)[inside].mean()) < 0.04
                pasted = (composite.images[number] - images[number]).abs().amax(0, keepdim=True) > 0.02
                agreement = (_window(pasted.float(), *views[view])[0] > 0.5) == (shown[3] > 0.5)
                assert float(agreement[inside].float().mean()) > 0.9


def _triangle(seed: int) -> Foreground:
    """Half of a rectangle: turned, its bounding box lies to one side of the rectangle's middle."""
    foreground = make_foreground(seed)
    height, width = foreground.rgba.shape[:2]
    half = np.arange(width) / (width - 1) <= np.arange(height)[:, None] / (height - 1)
    foreground.rgba[..., 3] = 255 * half[:: 1 - 2 * (seed % 2), :: 1 - 2 * (seed // 2 % 2)]
    return foreground


def _fields(plan: Any) -> list[list[Any]]:
    return [plan.image_of, plan.indices, plan.foregrounds, plan.flipped]


def _window(image: Tensor, center: Tensor, half_size: Tensor) -> Tensor:
    """A window as a square, sampled four times as densely as a glimpse and averaged."""
    steps = (torch.arange(4 * VIEW_SIDE) + 0.5) / (2 * VIEW_SIDE) - 1
    size = torch.tensor([image.shape[-1], image.shape[-2]])
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1) * half_size + center
    looked = F.grid_sample(image[None], (2 * points / size - 1)[None], align_corners=False)
    return F.avg_pool2d(looked, 4)[0]


def test_the_map_of_objects_lies_where_the_objects_are(tiny_bank: ForegroundBank) -> None:
    ranges = TransformRanges(translate_x=(0.5, 0.5), translate_y=(0.5, 0.5), scale=(1, 1))
    terse = Terse(tiny_bank, "random", paste=every_image(objects=(1, 1), ranges=ranges))
    images = [torch.zeros(3, 100, 200)]
    targets = [{"boxes": torch.tensor([[100.0, 0, 200, 100]]), "labels": torch.tensor([1])}]
    plan = plan_pastes(ForegroundCache(terse.bank), [True], terse.config, generator_for(0), terse.sampler, terse.policy)
    views = view_maker(plan, images, targets, terse.pasting.render_settings(images))(torch.rand(1, 1, len(PARAMETERS)))
    for occupied in views.pictures[0, 0, :, 4]:
        assert float(occupied[:, : VIEW_SIDE // 2 - 1].amax()) == 0
        assert float(occupied[:, VIEW_SIDE // 2 + 1 :].amin()) == pytest.approx(1)


def test_a_critic_looks_at_every_view_with_weights_of_its_own() -> None:
    critic = CriticPolicy(seed=0).critic
    torch.nn.init.normal_(critic.judge[-1].weight, generator=generator_for(0))  # type: ignore[arg-type]  # a linear layer's
    pictures = torch.rand(1, 2, *VIEW_SHAPE, generator=generator_for(1))
    figures = torch.zeros(1, 2, VIEW_NUMBERS)
    seen = critic(Views(pictures, figures))
    for view in range(len(VIEWS)):
        without = pictures.clone()
        without[:, :, view] = 0.5
        assert not torch.allclose(critic(Views(without, figures)), seen, atol=1e-3)
    seen.sum().backward()
    assert all(bool(parameter.grad.any()) for parameter in critic.parameters())  # type: ignore[union-attr]  # after a backward
