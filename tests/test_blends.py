"""How a paste is blended in: gaussian, alpha, none, poisson; drawn for each paste, decoy and distractor."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compositing_samples import STILL, WIDE, foreground_of, opaque_rgba, plan_of, settings_of, target_of, units
from factories import every_image, make_bank, make_batch, make_foreground
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from terse_aug import PARAMETERS, Distractors, Foreground, PasteConfig, Photometric, PixelFormat, Terse
from terse_aug.compositing.compose import Composites, compose
from terse_aug.compositing.geometry import frame_of, paste_geometry, place_unit
from terse_aug.compositing.layers import Layer, RenderSettings, layers_of
from terse_aug.compositing.patches import Patch, Rectangle, blend
from terse_aug.structures.validation import validate_batch
from terse_aug.transforms import BLENDS, Placement
from terse_aug.utils.random import generator_for

WHITE_DISC = make_foreground(0, side=30).rgba | np.uint8([255, 255, 255, 0])


def pasted(blends: str | tuple[str, ...], grad: bool = False, image: Tensor | None = None, **given: Any) -> Composites:
    """White ellipses on black, where nothing else is given."""
    blends = (blends,) if isinstance(blends, str) else blends
    rendering = settings_of(WIDE, blends=blends, **given)
    unit = torch.cat([units(2, 3), torch.full((2, len(rendering.paste.columns) - len(PARAMETERS)), 0.5)], 1)
    plan = plan_of([Foreground(WHITE_DISC, 1, "disc", 0.4)] * 2, [0, 0])
    image = torch.zeros(3, 70, 80) if image is None else image
    return compose([image], [target_of()], plan, unit.requires_grad_(grad), rendering)


@pytest.mark.parametrize("grad", [False, True])
def test_the_edge_is_as_soft_as_the_blend_says(grad: bool) -> None:
    made = {name: pasted(name, grad).images[0].detach() for name in BLENDS[:3]}
    torch.testing.assert_close(
        made["alpha"], pasted("gaussian", grad, edge_blur_sigma=0.0).images[0].detach(), rtol=0, atol=3e-5
    )
    soft = {name: int(((image > 0.01) & (image < 0.99)).sum()) for name, image in made.items()}
    assert soft["gaussian"] > 1.5 * soft["alpha"] > 0
    assert set((made["none"] * 1e4).round().unique().tolist()) == {0.0, 1e4}
    assert torch.equal(made["none"] > 0.5, made["alpha"] > 0.5)


@pytest.mark.parametrize("name", BLENDS[:3])
@pytest.mark.parametrize("levels", [False, True])
def test_both_renderers_blend_alike(name: str, levels: bool) -> None:
    image = torch.randint(0, 256, (3, 70, 80), generator=torch.Generator().manual_seed(0)).byte()
    exact, fast = (pasted(name, grad, image / 255 if grad or not levels else image) for grad in (True, False))
    one, other = exact.images[0].detach(), fast.images[0] / (255 if levels else 1)
    # Without a soft edge a pixel in the middle of the ramp may fall to either side.
    different = ((one - other).abs().amax(0) > 3 / 255).sum()
    assert int(different) <= (6 if name == "none" else 0)
    assert exact.targets[0]["labels"].tolist() == fast.targets[0]["labels"].tolist()


@pytest.mark.parametrize("name", ["alpha", "none"])
def test_the_composite_has_the_right_gradient(name: str) -> None:
    rendering = settings_of(WIDE, blends=(name,), min_side=0.0)
    generator = torch.Generator().manual_seed(0)
    rgba = torch.rand(4, 8, 9, generator=generator).double()
    rgba[3] = 1
    image = torch.rand(3, 20, 24, generator=generator).double()
    unit = units(1, 5).double().requires_grad_()

    def composite(unit: Tensor) -> Tensor:
        return compose([image], [target_of()], plan_of([foreground_of(rgba)], [0]), unit, rendering).images[0]

    (gradient,) = torch.autograd.grad(composite(unit).square().sum(), unit)
    assert (gradient != 0).all()
    assert torch.autograd.gradcheck(composite, (unit,), fast_mode=True)


def clone(color: Tensor, mask: np.ndarray, background: Tensor, corner: tuple[int, int], **format: Any) -> Tensor:
    """Clone a patch ``[3, h, w]`` in [0, 1] into a background in a format."""
    height, width = mask.shape
    rectangle = Rectangle(corner[0], corner[1], corner[0] + height, corner[1] + width)
    levels = (color * 255).round().byte()
    alpha = torch.from_numpy(mask.astype(np.float32))[None]
    return blend(background, [Patch(rectangle, levels, alpha, PixelFormat(**format), True)])


def ramp(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(rows + columns) / 2, rows, columns]).float() / 255 + 0.1


@pytest.mark.parametrize("corner", [(20, 30), (0, 0), (60, 0), (60, 80)])
def test_poisson_takes_the_gradients_of_the_paste_and_the_colors_of_the_background(corner: tuple[int, int]) -> None:
    """Also at the border of the image."""
    background = ramp(100, 120)
    mask = np.zeros((40, 40), bool)
    mask[5:35, 3:37] = True
    if corner == (0, 0):  # of odd sides
        mask[:] = False
        mask[5:34, 3:36] = True
    elif corner != (20, 30):
        mask[:] = True
    inside = background[:, corner[0] : corner[0] + 40, corner[1] : corner[1] + 40]
    # What has the gradients of the background becomes the background, whatever its own brightness.
    same = clone(inside * 1.0 + 0.3, mask, background, corner)
    assert float((same - background).abs().max()) < 2.5 / 255
    # A spot stays one.
    spot = inside + 0.2
    spot[:, 18:22, 18:22] += 0.2
    made = clone(spot, mask, background, corner)
    raised = made[:, corner[0] : corner[0] + 40, corner[1] : corner[1] + 40] - inside
    expected = torch.zeros(3, 40, 40, dtype=torch.bool)
    expected[:, 18:22, 18:22] = True
    assert torch.equal(raised > 0.1, expected)
    assert float(raised[expected].mean()) == pytest.approx(0.2, abs=0.06)
    outside = torch.ones(100, 120, dtype=torch.bool)
    outside[corner[0] : corner[0] + 40, corner[1] : corner[1] + 40] &= ~torch.from_numpy(mask)
    assert torch.equal(made[:, outside], background[:, outside])


def test_poisson_is_the_same_in_every_format() -> None:
    background, color = ramp(60, 70), torch.rand(3, 30, 30, generator=torch.Generator().manual_seed(1))
    mask = np.zeros((30, 30), bool)
    mask[4:26, 4:26] = True
    plain = clone(color, mask, background, (10, 10))
    levels = clone(color, mask, (background * 255).round().byte(), (10, 10))
    assert float((levels / 255 - plain).abs().max()) < 1.6 / 255
    own = {"scale": 1.0, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    encoded = PixelFormat(**own).encode(background)
    assert (
        float((PixelFormat(**own).decode(clone(color, mask, encoded, (10, 10), **own)) - plain).abs().max()) < 3 / 255
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_poisson_takes_every_size_and_shape(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    seed = data.draw(st.integers(0, 99))
    mask = np.random.default_rng(seed).random((height, width)) < data.draw(st.sampled_from([0.0, 0.1, 0.6, 1.0]))
    color = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
    background = ramp(12, 12)
    made = clone(color, mask, background, (data.draw(st.integers(0, 12 - height)), 0))
    changed = (made != background).any(0)
    assert int(changed.sum()) <= int(mask.sum())
    assert bool(made.isfinite().all())


def test_the_blend_of_each_paste_decoy_and_distractor_is_drawn(tmp_path: Path) -> None:
    paste = every_image(objects=(3, 3), decoys=(2, 2), blends=BLENDS, photometric=Photometric(hue=(-9, 9)))
    assert paste.columns == (*PARAMETERS, "hue", "blend")
    distractors = Distractors(make_bank(tmp_path, [make_foreground(9, label=7)]), count=(2, 2))
    terse = Terse(make_bank(tmp_path), paste=paste, distractors=distractors, seed=1)
    counts: dict[str, Counter[str]] = {}
    for seed in range(30):
        images, targets = make_batch(seed, ((120, 140),))
        composites = terse.compose(images, targets, seed=seed)
        drawn = [own.unit[-1] for own in composites.pastes[0]]
        assert paste.blends_of(torch.stack([own.unit for own in composites.pastes[0]])) == [
            BLENDS[min(int(value * 4), 3)] for value in drawn
        ]
    for seed in range(30):
        for layer in layers_with(terse, seed):
            counts.setdefault(layer.kind, Counter())[layer.blend] += 1
    assert counts.keys() == {"paste", "decoy", "distractor"}
    for kind, own in counts.items():
        assert set(own) == set(BLENDS), kind
        assert max(own.values()) < 2.5 * min(own.values()), kind


def layers_with(terse: Terse, seed: int) -> list[Layer]:
    """The layers of a batch."""
    images, targets = make_batch(seed, ((120, 140),))
    generator = generator_for(seed)
    planned = terse.planner.plan(validate_batch(images, targets), terse.sampler, generator)
    plan = terse.planner.chosen(planned.plan, None)
    unit = torch.rand(len(plan.indices), len(terse.paste.columns), generator=generator).numpy()
    frames = [frame_of(images[0])]
    geometry = paste_geometry(plan.foregrounds, plan.flipped, frames * len(unit), unit)
    placement: Placement = place_unit(unit, geometry, terse.paste.ranges)
    rendering = RenderSettings(terse.paste, PixelFormat(), ())
    layers, _ = layers_of(plan, unit, placement, frames, planned.boxes.values(), rendering, Counter())
    return layers


def test_with_one_blend_nothing_is_drawn() -> None:
    assert PasteConfig(blends=("none",)).columns == PARAMETERS
    assert PasteConfig(blends=["alpha", "none"]).blends == ("alpha", "none")


def test_poisson_is_refused_where_gradients_are_needed(tmp_path: Path) -> None:
    paste = PasteConfig(blends=("gaussian", "poisson"))
    for policy in ("adversarial", "paper"):
        with pytest.raises(ValueError, match="blends: poisson is computed on the CPU, and has no gradient: compose"):
            Terse(make_bank(tmp_path), policy, paste=paste)
    with pytest.raises(ValueError, match="blends: poisson is computed on the CPU"):
        pasted("poisson", grad=True)


@pytest.mark.parametrize("name", BLENDS)
def test_a_label_has_the_pixels_of_the_paste(name: str) -> None:
    rendering = settings_of(STILL, blends=(name,), edge_blur_sigma=1.0)
    target = target_of() | {"masks": torch.zeros(0, 60, 60, dtype=torch.bool)}
    made = compose(
        [torch.zeros(3, 60, 60)], [target], plan_of([foreground_of(opaque_rgba(20, 24))], [0]), units(1), rendering
    )
    shown = made.targets[0]["masks"][0]
    assert int(shown.sum()) == pytest.approx(20 * 24, abs=2)
    if name != "poisson":
        assert torch.equal(shown, made.images[0][0] > 0.5)
