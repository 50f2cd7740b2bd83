"""Views: the images of a paste that the critic's network gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import every_image, make_bank, make_batch, make_foreground
from torch import Tensor
from torch.nn import functional as F

from terse_aug import (
    PARAMETERS,
    Foreground,
    ForegroundBank,
    PasteConfig,
    Photometric,
    PixelFormat,
    Terse,
    TransformRanges,
)
from terse_aug.compositing.compose import compose
from terse_aug.compositing.layers import RenderSettings
from terse_aug.compositing.plan import PastePlan
from terse_aug.policies import VIEW_SIDE, CriticPolicy, Views
from terse_aug.policies.base import BOX_NUMBERS, VIEW_SHAPE, VIEWS
from terse_aug.policies.views import view_maker
from terse_aug.structures.validation import validate_batch
from terse_aug.utils.random import generator_for


def planned(bank: ForegroundBank, paste: PasteConfig, batch: Any) -> tuple[PastePlan[Any], RenderSettings]:
    terse = Terse(bank, paste=paste)
    plan = terse.planner.plan(validate_batch(*batch), terse.sampler, generator_for(0)).plan
    return plan, RenderSettings(paste, PixelFormat(), ())


COLORS = Photometric(brightness=(0.4, 1.4), contrast=(0.6, 1.2), saturation=(0, 2), hue=(-180, 180))


@pytest.mark.parametrize(("flip", "photometric"), [(0.0, Photometric()), (1.0, Photometric()), (0.0, COLORS)])
def test_a_view_shows_what_the_composite_shows(tmp_path: Path, flip: float, photometric: Photometric) -> None:
    bank = make_bank(tmp_path, [_triangle(seed) for seed in range(6)])
    ranges = TransformRanges(rotation=(-180, 180), scale=(1.0, 1.6), keep_inside=0.5)
    images, targets = make_batch(sizes=((96, 128), (128, 96)))
    images = [F.avg_pool2d(image[None], 9, 1, 4)[0] * factor for image, factor in zip(images, (1.0, 0.5), strict=True)]
    paste = every_image(objects=(2, 2), ranges=ranges, flip_probability=flip, photometric=photometric)
    plan, settings = planned(bank, paste, (images, targets))
    unit = torch.rand(3, 4, len(paste.columns), generator=generator_for(1))
    views = view_maker(plan, images, targets, settings)(unit)
    assert views.images.shape == (3, 4, *VIEW_SHAPE)
    for candidate in range(3):
        for row, number in enumerate(plan.image_of):
            # Each paste is shown alone.
            alone = PastePlan([number], [plan.indices[row]], [plan.foregrounds[row]], [plan.flipped[row]], [])
            composite = compose(images, targets, alone, unit[candidate, row : row + 1], settings).images[number]
            pasted = ((composite - images[number]).abs().amax(0, keepdim=True) > 0.02).float()
            numbers = views.numbers[candidate, row]
            size = torch.tensor([composite.shape[-1], composite.shape[-2]])
            half = 1.5 * (numbers[-2:] * size / 2).max()
            windows = {"local": ((numbers[-4:-2] + 1) / 2 * size, half), "global": (size / 2, size / 2)}
            for view, shown in zip(VIEWS, views.images[candidate, row], strict=True):
                inside = shown[5] > 0.99
                assert 0.2 < float(inside.float().mean()) <= 1
                assert bool(inside.all()) or view == "local"
                expected = _window(composite, *windows[view])
                assert float((shown[:3] - expected).abs().mean(0)[inside].mean()) < 0.04
                agreement = (_window(pasted, *windows[view])[0] > 0.5) == (shown[3] > 0.5)
                assert float(agreement[inside].float().mean()) > 0.9


def _triangle(seed: int) -> Foreground:
    """Half of a rectangle: rotated, its bounding box lies to one side of the rectangle's middle."""
    foreground = make_foreground(seed)
    height, width = foreground.rgba.shape[:2]
    half = np.arange(width) / (width - 1) <= np.arange(height)[:, None] / (height - 1)
    foreground.rgba[..., 3] = 255 * half[:: 1 - 2 * (seed % 2), :: 1 - 2 * (seed // 2 % 2)]
    return foreground


def _window(image: Tensor, center: Tensor, half_size: Tensor) -> Tensor:
    """A window as a square, sampled four times as densely as a view and averaged."""
    steps = (torch.arange(4 * VIEW_SIDE) + 0.5) / (2 * VIEW_SIDE) - 1
    size = torch.tensor([image.shape[-1], image.shape[-2]])
    points = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1) * half_size + center
    sampled = F.grid_sample(image[None], (2 * points / size - 1)[None], align_corners=False)
    return F.avg_pool2d(sampled, 4)[0]


def test_the_map_of_objects_lies_where_the_objects_are(tiny_bank: ForegroundBank) -> None:
    ranges = TransformRanges(translate_x=(0.5, 0.5), translate_y=(0.5, 0.5), scale=(1, 1))
    images = [torch.zeros(3, 100, 200)]
    targets = [{"boxes": torch.tensor([[100.0, 0, 200, 100]]), "labels": torch.tensor([1])}]
    plan, settings = planned(tiny_bank, every_image(objects=(1, 1), ranges=ranges), (images, targets))
    views = view_maker(plan, images, targets, settings)(torch.rand(1, 1, len(PARAMETERS)))
    for occupied in views.images[0, 0, :, 4]:
        assert float(occupied[:, : VIEW_SIDE // 2 - 1].amax()) == 0
        assert float(occupied[:, VIEW_SIDE // 2 + 1 :].amin()) == pytest.approx(1)


def test_the_network_has_weights_of_its_own_for_every_view() -> None:
    network = CriticPolicy().network
    last = network.head[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.normal_(last.weight, generator=generator_for(0))
    images = torch.rand(1, 2, *VIEW_SHAPE, generator=generator_for(1))
    numbers = torch.zeros(1, 2, len(PARAMETERS) + BOX_NUMBERS)
    output = network(Views(images, numbers))
    for view in range(len(VIEWS)):
        without = images.clone()
        without[:, :, view] = 0.5
        assert not torch.allclose(network(Views(without, numbers)), output, atol=1e-3)
    output.sum().backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in network.parameters())
