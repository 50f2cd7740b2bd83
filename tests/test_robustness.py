"""Robustness training: how far pixels may move, that the loss rises, and that nothing else is touched."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    DETECTORS,
    EVERY_IMAGE,
    RampLoss,
    all_equal,
    every_image,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
    parameters_of,
    train_step,
)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from terse_aug import ForegroundBank, PasteConfig, PixelFormat, Robustness, Terse, TerseConfig, TerseWarning
from terse_aug.compositing.compose import Paste
from terse_aug.compositing.label_correction import PastedObject
from terse_aug.compositing.render import Rectangle
from terse_aug.lockstep import HardExampleCache, HardExampleMining
from terse_aug.models import (
    ClassifierAdapter,
    GivesInputGradients,
    RegressorAdapter,
    SegmenterAdapter,
    TorchvisionAdapter,
)
from terse_aug.policies import Adversarial, Critic
from terse_aug.training.perturbation import PerturbationBall, folded, foreground_map, tiled
from terse_aug.training.robustness import TILE

OBJECTS, BACKGROUND = 4 / 255, 10 / 255
RADII: dict[str, Any] = {"robust_radius_objects": OBJECTS, "robust_radius_background": BACKGROUND}
FORMATS = {
    "rgb": PixelFormat(),
    "bgr, 255": PixelFormat(scale=255.0, bgr=True),
    "normalised": PixelFormat(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]


class Gradients:
    """A target whose loss is the sum of the pixels times given weights, image by image."""

    first_label, label_limit = 1, None

    def __init__(self, *weights: float) -> None:
        self.weights, self.asked = weights, 0

    def image_losses(self, images: Any, targets: Any, differentiable: bool = False) -> Tensor:
        return torch.zeros(len(images))

    def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
        self.seen = [image.detach().clone() for image in images]
        return [torch.full((len(target["boxes"]),), 0.5) for target in targets]

    def input_gradients(self, images: Any, targets: Any, loss_scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        self.asked += 1
        weights = self.weights * len(images)
        given = zip(images, weights[: len(images)], strict=True)
        return torch.zeros(()), [torch.full_like(image, loss_scale * weight) for image, weight in given]


def pair(bank: ForegroundBank, policy: str = "random", batch: Batch | None = None, **settings: Any) -> Any:
    """Composites with and without robustness, of the same batch; and the ``Terse`` that made the former."""
    batch = batch or make_batch()
    with_it = Terse(bank, policy, **(EVERY_IMAGE | RADII | settings))
    plain = {name: value for name, value in settings.items() if not name.startswith("robust")}
    clean, targets = Terse(bank, policy, **(EVERY_IMAGE | plain))(*batch)
    moved, same = with_it(*batch)
    return clean, targets, moved, same, with_it


def everything_of(target: dict[str, Tensor]) -> list[Tensor]:
    return [target[name] for name in sorted(target)]


# --- radii and ranges -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", FORMATS)
@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_every_pixel_keeps_within_its_radius_and_the_range_and_labels_stay(
    tiny_bank: ForegroundBank, robust: str, pixels: str
) -> None:
    form = FORMATS[pixels]
    images, targets = make_batch(masks=True)
    images = [form.encode(image * 2) for image in images]  # up to white
    settings = {"robust": robust, "robust_steps": 3, "target": Gradients(1.0), "pixels": form}
    clean, expected, moved, got, terse = pair(tiny_bank, batch=(images, targets), **settings)
    for one, other in zip(expected, got, strict=True):
        assert all_equal(everything_of(one), everything_of(other))
    composites = Terse(tiny_bank, "random", paste=every_image(), pixel_format=form)._composites(images, targets, None)
    used = torch.zeros(2)
    for number, (before, after) in enumerate(zip(clean, moved, strict=True)):
        where = foreground_map(before, got[number], composites.pastes[number], composites.visible[number])
        plain, shown = form.decode(before), form.decode(after.detach())
        distance = (shown - plain).abs().amax(0)
        for place, (region, radius) in enumerate(((where, OBJECTS), (~where, BACKGROUND))):
            assert bool(region.any())
            assert float(distance[region].max()) <= radius + 1e-6
            used[place] = max(float(used[place]), float(distance[region].max() / radius))
        assert float(shown.min()) >= -1e-6
        assert float(shown.max()) <= 1 + 1e-6
    assert bool((used > 0.9).all())  # the radius is made use of
    assert terse.metrics()["robustness/images"] == 2


def test_what_lies_outside_the_range_is_not_moved_farther_out() -> None:
    image = torch.tensor([-0.5, 0.5, 1.5])[:, None, None].expand(3, 2, 2)
    room = PerturbationBall.around(image, torch.full((2, 2), 0.1), PixelFormat())
    for direction, expected in ((1.0, (-0.4, 0.6, 1.5)), (-1.0, (-0.5, 0.4, 1.4))):
        moved = room.moved(room.center, torch.full_like(image, direction))
        torch.testing.assert_close(moved[:, 0, 0], torch.tensor(expected))


def test_foreground_is_masks_or_boxes_without_decoys_and_with_pastes() -> None:
    image = torch.zeros(3, 8, 8)
    boxes = torch.tensor([[0.0, 0.5, 4, 4], [5.0, 5, 7, 7]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    decoy = PastedObject(Rectangle(0, 0, 2, 2), mask, None, 4.0)
    paste = PastedObject(Rectangle(5, 5, 7, 7), torch.eye(2, dtype=torch.bool), 1, 4.0)
    pastes = [Paste(0, "", 1, torch.zeros(7), 1, 0)]
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = True
    expected[:2, :2] = False
    expected[5, 5] = expected[6, 6] = True
    assert torch.equal(foreground_map(image, {"boxes": boxes}, pastes, [decoy, paste]), expected)
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[0, 3, 1:3] = 1
    expected[:4, :4] = False
    expected[3, 1:3] = True
    assert torch.equal(foreground_map(image, {"boxes": boxes, "masks": masks}, pastes, [decoy, paste]), expected)
    # An empty mask says nothing.
    by_box = foreground_map(image, {"boxes": boxes}, pastes, [decoy, paste])
    assert torch.equal(foreground_map(image, {"boxes": boxes, "masks": masks * 0}, pastes, [decoy, paste]), by_box)


def test_folding_is_the_transpose_of_tiling() -> None:
    generator = torch.Generator().manual_seed(0)
    tile = torch.rand(3, 5, 5, generator=generator)
    values = torch.rand(3, 13, 9, generator=generator)
    for shift in ((0, 0), (2, 4), (7, 11)):
        whole = tiled(tile, shift, (13, 9))
        torch.testing.assert_close((whole * values).sum(), (tile * folded(values, shift, 5)).sum())
        assert torch.equal(whole[:, shift[0] % 5, shift[1] % 5], tile[:, 0, 0])


# --- what it is for -------------------------------------------------------------------------------------------------


def trained_classifier() -> tuple[nn.Module, ClassifierAdapter]:
    """Learns from a few composites which of two classes is in front."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(3, 12, 3, padding=1, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.1)),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(12 * 16, 3)),
        )
    return model.train(), ClassifierAdapter(model, 3)


def two_colours(folder: Path) -> ForegroundBank:
    """Cut-outs whose class is their colour."""
    made = []
    for seed in range(6):
        own = make_foreground(seed, label=1 + seed % 2)
        own.rgba[..., seed % 2] //= 4
        made.append(own)
    return make_bank(folder, made)


def learn(terse: Terse, model: nn.Module, steps: int, loss_of: Callable[..., Tensor], **batch: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(steps):
        images, targets = terse(*make_batch(step, **batch))
        with torch.random.fork_rng(devices=[]):
            loss = loss_of(model, images, targets)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        terse.step(loss)


def classifier_loss(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    labels = torch.stack([target["labels"][-1] for target in targets])
    return F.cross_entropy(model(torch.stack(images)), labels)


def detector_loss(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    losses: dict[str, Tensor] = model(images, targets)
    return torch.stack(list(losses.values())).sum()


def rises(terse: Terse, target: Any, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean rise of the loss on composites: random signs, and what ``Terse`` does with other settings."""
    composites = terse.compose(images, targets, "random")
    clean = target.image_losses(composites.images, composites.targets)
    generator = torch.Generator().manual_seed(0)
    noise = []
    for number, image in enumerate(composites.images):
        where = foreground_map(image, composites.targets[number], composites.pastes[number], composites.visible[number])
        room = PerturbationBall.around(image, torch.where(where, OBJECTS, BACKGROUND), PixelFormat())
        noise.append(room.moved(image, (torch.rand(image.shape, generator=generator) - 0.5).sign()))
    found = {"noise": target.image_losses(noise, composites.targets) - clean}
    for steps in (1, 5):
        robust = Terse(
            terse.bank, "random", paste=every_image(), robustness=Robustness(steps=steps), **RADII, model=target
        )
        assert robust.robustness is not None
        perturbed = robust.robustness.perturbed(composites, [True] * len(images), 0, 0).images
        found[str(steps)] = target.image_losses(perturbed, composites.targets) - clean
    return {name: float(rise.mean()) for name, rise in found.items()}


@pytest.mark.parametrize("task", ["classifier", "detector"])
def test_gradient_steps_raise_the_loss_by_more_than_noise_does(tmp_path: Path, task: str) -> None:
    bank = two_colours(tmp_path)
    settings: dict[str, Any] = {"objects": (1, 1), **EVERY_IMAGE}
    size = {"sizes": ((64, 64),) * 4, "objects": 0 if task == "classifier" else 1}
    if task == "classifier":
        model, target = trained_classifier()
        learn(Terse(bank, "random", **settings), model, 30, classifier_loss, **size)
    else:
        model, target = (model := make_detector("fasterrcnn")), TorchvisionAdapter(model)
        learn(Terse(bank, "random", **settings), model, 30, detector_loss, **size)
    found = rises(
        Terse(bank, "random", **settings), target, *make_batch(99, sizes=((64, 64),) * 12, objects=size["objects"])
    )
    assert found["1"] > 4 * abs(found["noise"])
    assert found["5"] > found["1"]


def test_the_universal_pattern_raises_the_loss_of_images_it_has_not_seen(tiny_bank: ForegroundBank) -> None:
    """Of a filter whose output should be low, here: the pattern has to take its form, in every phase."""
    model = nn.Sequential(nn.Conv2d(3, 1, 5), nn.ReLU())
    with torch.no_grad():
        model[0].weight.copy_(torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(0)) - 0.5)
        model[0].bias.zero_()
    terse = Terse(tiny_bank, "random", paste=every_image(), robustness=Robustness(), **RADII)
    gains = []
    for turn, learning in enumerate((False, True)):
        if learning:
            for step in range(25):
                images, _ = terse(*make_batch(step))
                loss = torch.stack([model(image[None]).mean() for image in images]).mean()
                loss.backward()
                terse.step(loss)
        composites = terse.compose(*make_batch(100 + turn))
        assert terse.robustness is not None
        perturbed = terse.robustness.perturbed(composites, [True, True], 0, 0).images
        with torch.no_grad():
            clean, moved = (float(sum(model(i[None]).mean() for i in own)) for own in (composites.images, perturbed))
        gains.append(moved / clean - 1)
    assert gains[1] > 3 * max(gains[0], 0.01)
    assert terse.robustness.pattern.abs().max() <= 1
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- nothing else is touched ----------------------------------------------------------------------------------------


class Recomputed(nn.Module):
    """A classifier that recomputes its activations in the backward, with BatchNorm and dropout inside."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        self.reentrant = reentrant

    def forward(self, images: Tensor) -> Tensor:
        return self.head(checkpoint(self.features, images, use_reentrant=self.reentrant))


def _dense() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Dropout(0.5))


def _flat(outputs: int) -> nn.Module:
    return nn.Sequential(_dense(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, outputs))


TARGETS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{name: lambda name=name: (model := make_detector(name), TorchvisionAdapter(model)) for name in DETECTORS},
    "classifier": lambda: (model := _flat(3), ClassifierAdapter(model, 3)),
    "reentrant": lambda: (model := Recomputed(True), ClassifierAdapter(model, 3)),
    "recomputed": lambda: (model := Recomputed(False), ClassifierAdapter(model, 3)),
    "segmenter": lambda: (model := _dense(), SegmenterAdapter(model, 3)),
    "regressor": lambda: (model := _flat(2), RegressorAdapter(model, lambda target: target["boxes"][-1, :2], 10.0)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_gradient_leaves_no_trace_in_the_model(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model, target = TARGETS[name]()
    assert isinstance(target, GivesInputGradients)
    model.train()
    next(iter(model.children())).eval()  # a mixed state has to come back as well
    frozen = next(model.parameters()).requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    fires: list[int] = []
    for parameter in model.parameters():
        if parameter.requires_grad:  # as DistributedDataParallel's reducer waits for them
            parameter.register_post_accumulate_grad_hook(lambda _: fires.append(1))
    before = [value.clone() for value in model.state_dict().values()]
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    fields = {"masks": name in ("maskrcnn", "segmenter"), "keypoints": name == "keypointrcnn"}
    images, targets = make_batch(2, sizes=((64, 64), (64, 64)), objects=2, **fields)
    given = [image.clone() for image in images]
    with torch.no_grad():  # wherever it is called
        loss, gradients = target.input_gradients(images, targets, loss_scale=4.0)
    assert all_equal(images, given)
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)
    again, unscaled = target.input_gradients(images, targets)
    assert torch.equal(loss, again)
    for one, other in zip(gradients, unscaled, strict=True):
        torch.testing.assert_close(one, 4 * other, rtol=1e-4, atol=1e-9)
    assert not loss.requires_grad
    assert not fires
    assert not frozen.requires_grad
    assert all(bool((parameter.grad == 0.5).all()) for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters() if parameter is not frozen)
    assert all_equal(before, list(model.state_dict().values()))
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(state, torch.get_rng_state())


def test_the_gradient_of_a_batch_is_that_of_its_loss() -> None:
    """By a difference of the loss along it, and along another direction."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _, target = TARGETS["classifier"]()
    images, targets = make_batch(0, sizes=((32, 32), (32, 32)))
    _, gradients = target.input_gradients(images, targets)
    for direction in (gradients, [torch.full_like(image, 0.1) for image in images]):
        step = 0.1 / max(float(own.abs().max()) for own in direction)
        ahead, behind = (
            target.image_losses([i + s * d for i, d in zip(images, direction, strict=True)], targets).mean()
            for s in (step, -step)
        )
        slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
        assert float(ahead - behind) / (2 * step) == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_composites_are_a_function_of_the_seed_and_inputs_stay(tiny_bank: ForegroundBank, robust: str) -> None:
    made, state = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        batch = make_batch()
        kept = [image.clone() for image in batch[0]]
        terse = Terse(
            tiny_bank,
            "random",
            paste=every_image(),
            robustness=Robustness(XXX_robust=robust),
            **RADII,
            model=make_detector("fcos"),
            seed=seed,
        )
        made.append([image.detach() for _ in range(2) for image in terse(*batch)[0]])
        assert all_equal(batch[0], kept)
    assert all_equal(made[0], made[1])
    assert not all_equal(made[0], made[2])
    assert not torch.equal(made[0][0], made[0][2])  # of the second call
    assert torch.equal(state, torch.get_rng_state())


def test_off_means_off(tiny_bank: ForegroundBank) -> None:
    """No state of its own, no figures; with a share of no batches the composites are those without, to the bit."""
    terse = Terse(tiny_bank, "random")
    assert not any("robust" in name for name in [*terse.state_dict(), *terse.metrics()])
    for robust in ("pgd", "universal"):
        target = Gradients(1.0)
        clean, _, moved, _, terse = pair(tiny_bank, robust=robust, target=target, robust_probability=0.0)
        assert all_equal(clean, moved)
        assert terse.metrics()["robustness/images"] == target.asked == 0
        terse.eval()
        batch = make_batch(3)
        assert all(one is other for one, other in zip(batch[0], terse(*batch)[0], strict=True))


def test_a_share_of_the_batches_is_perturbed(tiny_bank: ForegroundBank) -> None:
    target = Gradients(1.0)
    terse = Terse(tiny_bank, "random", robustness=Robustness(probability=0.5, steps=2), model=target)
    for step in range(40):
        terse(*make_batch(step, sizes=((64, 64),)))
    assert 10 <= terse.metrics()["robustness/images"] <= 30
    assert target.asked == 2 * terse.metrics()["robustness/images"] == terse.metrics()["robustness/passes"]


@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_the_first_batches_are_left_alone(tiny_bank: ForegroundBank, robust: str) -> None:
    settings: dict[str, Any] = {"robust": robust, "robust_start": 3, "target": Gradients(1.0)}
    terse = Terse(tiny_bank, "random", **settings)
    plain = Terse(tiny_bank, "random")
    same = []
    for step in range(5):
        moved, _ = terse(*make_batch(step))
        clean, _ = plain(*make_batch(step))
        same.append(all_equal(list(clean), list(moved)))
    assert same == [True, True, True, False, False]


def test_the_radius_grows_to_its_full_size(tiny_bank: ForegroundBank) -> None:
    settings: dict[str, Any] = RADII | {"robust": "pgd", "robust_start": 1, "robust_ramp": 4, "target": Gradients(1.0)}
    terse, plain = Terse(tiny_bank, "random", **settings), Terse(tiny_bank, "random")
    parts = []
    for step in range(7):
        moved, _ = terse(*make_batch(step))
        clean, _ = plain(*make_batch(step))
        farthest = max(float((one - other).abs().max()) for one, other in zip(clean, moved, strict=True))
        parts.append(farthest / max(OBJECTS, BACKGROUND))
    assert parts == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 1], abs=1e-4)


# --- policies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_a_policy_that_learns_from_gradients_learns_through_the_perturbation(
    tiny_bank: ForegroundBank, robust: str
) -> None:
    """The perturbation is a constant; of a linear loss the gradient is the same with it and without."""
    found = []
    for chosen in ("none", robust):
        terse = Terse(
            tiny_bank,
            Adversarial(update_interval=1),
            paste=every_image(),
            robustness=Robustness(XXX_robust=chosen),
            model=Gradients(1.0),
        )
        images, _ = terse(*make_batch())
        loss = RampLoss()(images, [])["loss_ramp"]
        loss.backward()
        (turn,) = terse._feedback
        found.append([leaf.grad.clone() for leaf in turn.proposal.leaves if leaf.grad is not None])
        terse.step(loss)
        assert terse.metrics()["updates"] == 1
    assert found[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_what_is_heard_and_asked_is_of_the_perturbed(tiny_bank: ForegroundBank) -> None:
    target = Gradients(1.0)
    asking = Terse(tiny_bank, Critic(update_interval=1), paste=every_image(), robustness=Robustness(), model=target)
    images, _ = asking(*make_batch())
    asking.step(1.0)
    assert all_equal(target.seen, list(images))
    detector = make_detector("fasterrcnn")
    hearing = Terse(
        tiny_bank, Critic(update_interval=1), paste=every_image(), robustness=Robustness(steps=3), model=detector
    )
    for step in range(3):
        train_step(hearing, detector, step)
    assert hearing.metrics()["updates"] == 3
    assert hearing.metrics()["extra_forwards"] == 0  # its own forward was heard, not those of the gradient steps
    assert "hardness" in hearing.metrics()


def test_the_discriminator_judges_composites_without_the_perturbation(tiny_bank: ForegroundBank) -> None:
    crops = []
    for robust in ("none", "pgd"):
        settings = {"discriminator_weight": 0.1, "move_every": 1, "robust": robust, "robust_radius_objects": 0.3}
        terse = Terse(tiny_bank, "adversarial", paste=every_image(), **settings, model=Gradients(1.0))
        terse(*make_batch())
        crops.append(terse._feedback[0].composite)
    assert crops[0] is not None
    assert torch.equal(*crops)  # type: ignore[arg-type]  # two of them


# --- what goes wrong ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "counter"), [(math.nan, "not_finite"), (math.inf, "not_finite"), (0.0, "no_gradient")]
)
def test_an_image_without_a_usable_gradient_stays_as_it_is(
    tiny_bank: ForegroundBank, weight: float, counter: str
) -> None:
    clean, _, moved, _, terse = pair(tiny_bank, robust="pgd", robust_steps=2, target=Gradients(weight, 1.0))
    assert torch.equal(clean[0], moved[0])
    assert not torch.equal(clean[1], moved[1])
    figures = terse.metrics()
    assert figures["robustness/images"] == figures[f"robustness/{counter}"] == 1
    assert figures["robustness/not_finite"] + figures["robustness/no_gradient"] == 1


@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_an_image_that_is_not_finite_is_passed_over(tiny_bank: ForegroundBank, robust: str) -> None:
    images, targets = make_batch()
    images[0][0, 3, 3] = math.nan
    model, target = TARGETS["fcos"]()
    terse = Terse(tiny_bank, "random", paste=every_image(), robustness=Robustness(XXX_robust=robust), model=target)
    with pytest.warns(TerseWarning, match="NaN"):
        moved, _ = terse(images, targets)
    assert torch.equal(moved[0].nan_to_num(), images[0].nan_to_num())
    assert not torch.equal(moved[1], images[1])
    assert bool(moved[1].isfinite().all())
    assert terse.metrics()["robustness/images"] == 1
    assert model.training


def test_a_pattern_that_nobody_goes_backward_through_says_so(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random", paste=every_image(), robustness=Robustness())
    assert terse.robustness is not None
    before = terse.robustness.pattern.clone()
    terse(*make_batch())
    with pytest.warns(TerseWarning, match="no gradient reached the composites, so the pattern does not move"):
        terse.step(1.0)
    for factor in (math.nan, 0.0):
        images, _ = terse(*make_batch())
        torch.stack([(image * factor).sum() for image in images]).sum().backward()
        terse.step(1.0)
    assert torch.equal(before, terse.robustness.pattern)
    assert terse.metrics()["robustness/no_gradient"] == 4
    assert terse.metrics()["robustness/not_finite"] == 2
    (one, other), _ = terse(*make_batch())
    (one.sum() * math.nan + other.sum()).backward()
    terse.step(1.0)
    assert not torch.equal(before, terse.robustness.pattern)  # by the gradient of the other
    assert terse.metrics()["robustness/not_finite"] == 3


def test_what_the_pattern_hears_does_not_pile_up(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, "random", paste=every_image(), robustness=Robustness())
    assert terse.robustness is not None
    for _ in range(20):
        images, _ = terse(*make_batch(sizes=((64, 64), (64, 64))))
        torch.stack(list(images)).sum().backward()
    held = [value for value in vars(terse.robustness).values() if isinstance(value, list | tuple | dict)]
    assert max(map(len, held)) < 20
    terse.step(1.0)
    assert terse.metrics()["robustness/no_gradient"] == terse.metrics()["robustness/not_finite"] == 0


@pytest.mark.parametrize("stacked", [False, True])
def test_the_pattern_hears_a_host_that_writes_into_its_images(tiny_bank: ForegroundBank, stacked: bool) -> None:
    terse = Terse(tiny_bank, "random", paste=every_image(), robustness=Robustness())
    assert terse.robustness is not None
    before = terse.robustness.pattern.clone()
    images, targets = make_batch(sizes=((64, 64), (64, 64)))
    composites, _ = terse(torch.stack(images) if stacked else images, targets)
    assert isinstance(composites, Tensor) is stacked
    for image in [composites] if isinstance(composites, Tensor) else composites:
        image.sub_(0.5).pow(2).sum().backward()
    terse.step(1.0)
    assert not torch.equal(before, terse.robustness.pattern)
    assert terse.metrics()["robustness/no_gradient"] == 0


def test_settings_out_of_range_and_targets_without_a_gradient_are_refused(
    tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    wrong = {
        "robust": ("fgsm", "expected one of none, pgd, universal, got 'fgsm'"),
        "robust_radius_objects": (8.0, r"within \[0, 1\], got 8.0"),
        "robust_radius_background": (-0.1, r"within \[0, 1\], got -0.1"),
        "robust_steps": (0, "expected at least 1, got 0; robust='none' switches it off"),
        "robust_step_size": (math.inf, "finite value of at least 0, got inf"),
        "robust_start": (-1, "at least 0, got -1"),
        "robust_ramp": (-2, "at least 0, got -2"),
        "robust_probability": (1.5, r"within \[0, 1\], got 1.5"),
    }
    for name, (value, message) in wrong.items():
        with pytest.raises(ValueError, match=f"{name}: .*{message}"):
            TerseConfig(**{name: value})
    with pytest.raises(ValueError, match=r"expected Terse\(target=.*, got no target"):
        Terse(tiny_bank, "random", robustness=Robustness())

    class Scores:
        first_label, label_limit = 1, None

        def image_losses(self, images: Any, targets: Any, differentiable: bool = False) -> Tensor:
            return torch.zeros(len(images))

        def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
            return []

    with pytest.raises(ValueError, match="has input_gradients, got Scores"):
        Terse(tiny_bank, "random", robustness=Robustness(), model=Scores())
    Terse(tiny_bank, "random", robustness=Robustness(), model=Scores())
    terse = Terse(tiny_bank, "random", robustness=Robustness())
    with (
        HardExampleCache(tmp_path / "cache", capacity=4, pixels=terse.pixel_format) as cache,
        pytest.raises(ValueError, match=r"Terse with robust='none'.*got 'universal'"),
    ):
        HardExampleMining(terse, Gradients(1.0), cache, {1: 2}, budget=10)


# --- precision ------------------------------------------------------------------------------------------------------


class Faint(nn.Module):
    """A classifier whose gradients are too small for float16, or with a high gain too large."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.conv, self.gain = nn.Conv2d(3, 3, 3, stride=2), gain

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).float().mean((2, 3)) * self.gain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradient_steps_under_autocast_are_nearly_those_without(tiny_bank: ForegroundBank, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Faint(1e-3)
    signs = []
    for enabled in (False, True):
        terse = Terse(
            tiny_bank,
            "random",
            paste=every_image(),
            robustness=Robustness(),
            **RADII,
            model=ClassifierAdapter(model, 3),
        )
        batch = make_batch(sizes=((64, 64), (64, 64)))
        with torch.autocast("cpu", dtype=dtype, enabled=enabled):
            moved, _ = terse(*batch)
        assert all(image.dtype == torch.float32 for image in moved)
        signs.append(torch.stack(list(moved)))
        assert terse.metrics()["robustness/images"] == 2
        assert terse.metrics()["robustness/zero_share"] < 0.1
    assert float((signs[0] == signs[1]).float().mean()) > 0.95
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradients_that_overflow_in_float16_leave_images_alone_until_the_scale_fits(tiny_bank: ForegroundBank) -> None:
    torch.manual_seed(0)
    model = Faint(1e5)
    terse = Terse(tiny_bank, "random", paste=every_image(), robustness=Robustness(), model=ClassifierAdapter(model, 3))
    history = []
    for _ in range(12):
        with torch.autocast("cpu", dtype=torch.float16):
            terse(*make_batch(sizes=((32, 32),)))
        history.append(terse.metrics()["robustness/images"])
    assert history[0] == 0
    assert terse.metrics()["robustness/not_finite"] > 0
    assert history[-1] > history[-2] > history[-3] > 0


@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_training_under_autocast_goes_on(tiny_bank: ForegroundBank, robust: str) -> None:
    detector = make_detector("fasterrcnn")
    terse = Terse(
        tiny_bank,
        Adversarial(update_interval=1),
        paste=every_image(),
        robustness=Robustness(XXX_robust=robust),
        model=detector,
    )
    for seed in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = detector(*terse(*make_batch(seed)))
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        total.backward()
        terse.step(losses)
    assert terse.metrics()["updates"] == 2
    assert terse.metrics()["robustness/images"] == 4
    assert all(
        bool(parameter.grad.isfinite().all()) for parameter in detector.parameters() if parameter.grad is not None
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_images_of_another_precision_keep_it(tiny_bank: ForegroundBank, robust: str, dtype: torch.dtype) -> None:
    images, targets = make_batch()
    batch = [image.to(dtype) for image in images], targets
    clean, _, moved, _, terse = pair(tiny_bank, batch=batch, robust=robust, target=Gradients(1e-3))
    assert all(image.dtype == dtype for image in moved)
    assert terse.metrics()["robustness/images"] == 2
    for before, after in zip(clean, moved, strict=True):
        assert 0.5 * BACKGROUND < float((before - after.detach()).abs().max()) <= BACKGROUND + 4e-3


# --- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_a_resumed_run_is_the_same_to_the_bit(tiny_bank: ForegroundBank, robust: str) -> None:
    def made(detector: nn.Module) -> Terse:
        return Terse(
            tiny_bank,
            Critic(update_interval=2),
            paste=every_image(),
            robustness=Robustness(XXX_robust=robust, steps=2),
            model=detector,
        )

    def step(terse: Terse, detector: nn.Module, number: int) -> list[Tensor]:
        images, targets = terse(*make_batch(number))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(number)
            loss = detector_loss(detector, list(images), targets)
            loss.backward()
        detector.zero_grad()
        terse.step(loss)
        return [image.detach() for image in images]

    detector = make_detector("fasterrcnn")
    terse = made(detector)
    for number in range(3):
        step(terse, detector, number)
    other = copy.deepcopy(detector)
    resumed = made(other)
    resumed.load_state_dict(copy.deepcopy(terse.state_dict()))
    assert resumed.metrics() == terse.metrics()
    for number in range(3, 5):
        assert all_equal(step(terse, detector, number), step(resumed, other, number))
    assert resumed.metrics() == terse.metrics()
    if robust == "universal":
        assert terse.robustness is not None
        assert terse.robustness.pattern.shape == (2, 3, TILE, TILE)
        assert not torch.equal(terse.robustness.pattern, made(detector).robustness.pattern)  # type: ignore[union-attr]  # robustness is on


def test_keypoints_masks_and_images_without_objects_pass(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=("nose", "left_eye", "right_eye"))
    detector = make_detector("keypointrcnn")
    terse = Terse(bank, "random", paste=PasteConfig(paste_probability=0.5), robustness=Robustness(), model=detector)
    for step in range(4):
        terse(*make_batch(step, objects=step % 2, keypoints=True))
    assert terse.metrics()["robustness/images"] == 8
    assert parameters_of(detector)[0].isfinite().all()
