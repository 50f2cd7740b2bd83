"""Robustness training: how far pixels may move, that the loss rises, and that nothing else is touched."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    KEYPOINTS,
    RampLoss,
    all_equal,
    every_image,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
    train_step,
)
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug import ForegroundBank, PixelFormat, Robustness, Terse, TerseWarning
from terse_aug.compositing.compose import Composites, Paste
from terse_aug.compositing.label_correction import PastedObject
from terse_aug.compositing.patches import Rectangle
from terse_aug.models import ClassifierAdapter, TorchvisionAdapter
from terse_aug.policies import Adversarial, Critic
from terse_aug.training.perturbation import PerturbationBall, object_pixels, tiled
from terse_aug.utils.random import isolated_global_rng

OBJECTS, BACKGROUND = 4 / 255, 10 / 255
FORMATS = {
    "rgb": PixelFormat(),
    "bgr, 255": PixelFormat(scale=255.0, bgr=True),
    "normalised": PixelFormat(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}


class Gradients:
    """A model whose loss is the sum of the pixels times given weights, image by image."""

    first_label, label_limit = 1, None

    def __init__(self, *weights: float) -> None:
        self.weights, self.calls = weights, 0

    def image_losses(self, images: Any, targets: Any, differentiable: bool = False) -> Tensor:
        return torch.zeros(len(images))

    def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
        self.seen = [image.detach().clone() for image in images]
        return [torch.full((len(target["boxes"]),), 0.5) for target in targets]

    def input_gradients(self, images: Any, targets: Any, loss_scale: float = 1.0) -> tuple[Tensor, list[Tensor]]:
        self.calls += 1
        weights = self.weights * len(images)
        given = zip(images, weights[: len(images)], strict=True)
        return torch.zeros(()), [torch.full_like(image, loss_scale * weight) for image, weight in given]


def robustness(**settings: Any) -> Robustness:
    return Robustness(**({"epsilon_object": OBJECTS, "epsilon_background": BACKGROUND} | settings))


def pair(bank: ForegroundBank, model: Any, batch: Any = None, pixels: PixelFormat | None = None, **own: Any) -> Any:
    """Composites with and without robustness, of the same batch; and the ``Terse`` that made the former."""
    batch = batch or make_batch()
    terse = Terse(bank, paste=every_image(), pixel_format=pixels, model=model, robustness=robustness(**own))
    clean, targets = Terse(bank, paste=every_image(), pixel_format=pixels)(*batch)
    moved, same = terse(*batch)
    for one, other in zip(targets, same, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    return clean, moved, terse


def pixels_of_objects(composites: Composites, number: int) -> Tensor:
    image, target = composites.images[number], composites.targets[number]
    return object_pixels(image, target, composites.pastes[number], composites.visible[number])


@pytest.mark.parametrize("pixels", FORMATS)
def test_every_pixel_keeps_within_epsilon_and_the_range_and_labels_stay(tiny_bank: ForegroundBank, pixels: str) -> None:
    form = FORMATS[pixels]
    images, targets = make_batch(masks=True)
    images = [form.encode(image * 2) for image in images]  # up to white
    clean, moved, terse = pair(tiny_bank, Gradients(1.0), (images, targets), form, steps=3)
    assert terse._composer.last is not None
    used: dict[float, float] = {}
    for number, (before, after) in enumerate(zip(clean, moved, strict=True)):
        where, shown = pixels_of_objects(terse._composer.last, number), form.decode(after)
        distance = (shown - form.decode(before)).abs().amax(0)
        for region, epsilon in ((where, OBJECTS), (~where, BACKGROUND)):
            farthest = float(distance[region].max())
            assert farthest <= epsilon + 1e-6
            used[epsilon] = max(used.get(epsilon, 0.0), farthest / epsilon)
        assert -1e-6 <= float(shown.min()) <= float(shown.max()) <= 1 + 1e-6
    assert min(used.values()) > 0.9
    assert terse.metrics()["robustness/images"] == 2


def test_what_lies_outside_the_range_is_not_moved_farther_out() -> None:
    image = torch.tensor([-0.5, 0.5, 1.5])[:, None, None].expand(3, 2, 2)
    ball = PerturbationBall.around(image, torch.full((2, 2), 0.1), PixelFormat())
    for direction, expected in ((1.0, (-0.4, 0.6, 1.5)), (-1.0, (-0.5, 0.4, 1.4))):
        moved = ball.moved(ball.center, torch.full_like(image, direction))
        torch.testing.assert_close(moved[:, 0, 0], torch.tensor(expected))


def test_object_pixels_are_masks_or_boxes_without_decoys_and_with_pastes() -> None:
    image = torch.zeros(3, 8, 8)
    boxes = torch.tensor([[0.0, 0.5, 4, 4], [5.0, 5, 7, 7]])
    decoy = PastedObject(Rectangle(0, 0, 2, 2), np.ones((2, 2), np.bool_), None, 4.0)
    paste = PastedObject(Rectangle(5, 5, 7, 7), np.eye(2, dtype=np.bool_), 1, 4.0)

    def found(**masks: Tensor) -> Tensor:
        return object_pixels(image, {"boxes": boxes, **masks}, [Paste(0, "", 1, torch.zeros(7), 1, 0)], [decoy, paste])

    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[:4, :4] = True
    expected[:2, :2] = False
    expected[5, 5] = expected[6, 6] = True
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    assert torch.equal(found(), expected)
    assert torch.equal(found(masks=masks), expected)  # an empty mask is a missing one
    masks[0, 3, 1:3] = 1
    expected[:4, :4] = False
    expected[3, 1:3] = True
    assert torch.equal(found(masks=masks), expected)


def learn(terse: Terse, model: nn.Module, loss_of: Callable[..., Tensor], **batch: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(30):
        images, targets = terse(*make_batch(step, **batch))
        with torch.random.fork_rng(devices=[]):
            loss = loss_of(model, images, targets)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        terse.step(loss)


def classifier_loss(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    return F.cross_entropy(model(torch.stack(images)), torch.stack([target["labels"][-1] for target in targets]))


def detector_loss(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack(list(model(images, targets).values())).sum()


def small_classifier() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(12 * 16, 3)),
    ).train()


@pytest.mark.parametrize("task", ["classifier", "detector"])
def test_gradient_steps_raise_the_loss_by_more_than_noise_does(tmp_path: Path, task: str) -> None:
    """Of a classifier or a detector that has learned from composites whose class is their colour."""
    foregrounds = [make_foreground(seed, label=1 + seed % 2) for seed in range(6)]
    for seed, own in enumerate(foregrounds):
        own.rgba[..., seed % 2] //= 4
    bank, paste = make_bank(tmp_path, foregrounds), every_image(objects=(1, 1))
    with isolated_global_rng(0):
        model = small_classifier() if task == "classifier" else make_detector("fasterrcnn")
    objects, loss_of = (0, classifier_loss) if task == "classifier" else (1, detector_loss)
    adapter: Any = ClassifierAdapter(model, 3) if task == "classifier" else TorchvisionAdapter(model)
    with isolated_global_rng(0):  # a detector samples its proposals by the global generator
        learn(Terse(bank, paste=paste), model, loss_of, sizes=((64, 64),) * 4, objects=objects)

    composites = Terse(bank, paste=paste).compose(*make_batch(99, sizes=((64, 64),) * 12, objects=objects))
    clean = adapter.image_losses(composites.images, composites.targets)
    generator = torch.Generator().manual_seed(0)
    noisy = []
    for number, image in enumerate(composites.images):
        epsilon = torch.where(pixels_of_objects(composites, number), OBJECTS, BACKGROUND)
        ball = PerturbationBall.around(image, epsilon, PixelFormat())
        noisy.append(ball.moved(image, (torch.rand(image.shape, generator=generator) - 0.5).sign()))
    stepped = []
    for steps in (1, 5):
        perturber = Terse(bank, robustness=robustness(steps=steps), model=adapter).perturber
        assert perturber is not None
        stepped.append(perturber.perturbed(composites, [True] * 12, 0, 0).images)
    noise, one, five = (
        float((adapter.image_losses(images, composites.targets) - clean).mean()) for images in (noisy, *stepped)
    )
    assert one > 4 * abs(noise)
    assert five > one


def test_composites_are_a_function_of_the_seed_and_inputs_stay(tiny_bank: ForegroundBank) -> None:
    made, state = [], torch.get_rng_state()
    for seed in (0, 0, 1):
        batch = make_batch()
        kept = [image.clone() for image in batch[0]]
        model = make_detector("fcos")
        terse = Terse(tiny_bank, paste=every_image(), robustness=Robustness(), model=model, seed=seed)
        made.append([image for _ in range(2) for image in terse(*batch)[0]])
        assert all_equal(batch[0], kept)
    assert all_equal(made[0], made[1])
    assert not all_equal(made[0], made[2])
    assert not torch.equal(made[0][0], made[0][2])  # of the second call
    assert torch.equal(state, torch.get_rng_state())


def test_off_means_off(tiny_bank: ForegroundBank) -> None:
    """No state of its own, no metrics; with probability 0 the composites are those without, to the bit."""
    terse = Terse(tiny_bank)
    assert not any("robust" in name or "perturb" in name for name in [*terse.state_dict(), *terse.metrics()])
    model = Gradients(1.0)
    clean, moved, terse = pair(tiny_bank, model, probability=0.0)
    assert all_equal(clean, moved)
    assert terse.metrics()["robustness/images"] == model.calls == 0
    terse.eval()
    images, targets = make_batch(3)
    assert all(one is other for one, other in zip(images, terse(images, targets)[0], strict=True))


def test_a_fraction_of_the_batches_is_perturbed(tiny_bank: ForegroundBank) -> None:
    model = Gradients(1.0)
    terse = Terse(tiny_bank, robustness=Robustness(probability=0.5, steps=2), model=model)
    for step in range(40):
        terse(*make_batch(step, sizes=((32, 32),)))
    assert 10 <= terse.metrics()["robustness/images"] <= 30
    assert model.calls == 2 * terse.metrics()["robustness/images"] == terse.metrics()["robustness/passes"]


def test_after_the_warmup_epsilon_grows_to_its_full_size(tiny_bank: ForegroundBank) -> None:
    terse = Terse(tiny_bank, robustness=robustness(warmup=2, ramp=4), model=Gradients(1.0))
    plain, parts = Terse(tiny_bank), []
    for step in range(8):
        moved, clean = (list(each(*make_batch(step))[0]) for each in (terse, plain))
        assert all_equal(clean, moved) is (step < 2)
        farthest = max(float((one - other).abs().max()) for one, other in zip(clean, moved, strict=True))
        parts.append(farthest / BACKGROUND)
    assert parts == pytest.approx([0, 0, 0.25, 0.5, 0.75, 1, 1, 1], abs=1e-4)


def test_a_policy_that_learns_from_gradients_learns_through_the_perturbation(tiny_bank: ForegroundBank) -> None:
    """The perturbation is a constant; of a linear loss the gradient is the same with it and without."""
    found = []
    for chosen in (None, Robustness()):
        policy = Adversarial(update_interval=1)
        terse = Terse(tiny_bank, policy, paste=every_image(), robustness=chosen, model=Gradients(1.0))
        images, _ = terse(*make_batch())
        loss = RampLoss()(images, [])["loss_ramp"]
        loss.backward()
        (pending,) = terse.trainer.feedback.batches
        found.append([leaf.grad.clone() for leaf in pending.proposal.leaves if leaf.grad is not None])
        terse.step(loss)
        assert terse.metrics()["updates"] == 1
    assert found[0]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_hardness_is_that_of_the_perturbed_composites(tiny_bank: ForegroundBank) -> None:
    """Whether it comes from an extra forward, or is recorded from the training forward, not from the gradient steps."""
    model = Gradients(1.0)
    settings: Any = {"policy": Critic(update_interval=1), "paste": every_image(), "robustness": Robustness(steps=3)}
    terse = Terse(tiny_bank, **settings, model=model)
    images, _ = terse(*make_batch())
    terse.step(1.0)
    assert all_equal(model.seen, list(images))
    detector = make_detector("fasterrcnn")
    recording = Terse(tiny_bank, **settings, model=detector)
    for step in range(3):
        train_step(recording, detector, step)
    assert recording.metrics()["updates"] == 3
    assert recording.metrics()["extra_forwards"] == 0
    assert "hardness" in recording.metrics()


def test_the_discriminator_judges_composites_without_the_perturbation(tiny_bank: ForegroundBank) -> None:
    crops = []
    for chosen in (None, Robustness(epsilon_object=0.3)):
        policy = Adversarial(discriminator_weight=0.1, update_interval=1)
        terse = Terse(tiny_bank, policy, paste=every_image(), robustness=chosen, model=Gradients(1.0))
        terse(*make_batch())
        crops.append(terse.trainer.feedback.batches[0].composite)
    assert crops[0] is not None
    assert torch.equal(*crops)  # type: ignore[arg-type]  # two of them


@pytest.mark.parametrize(
    ("weight", "counter"), [(math.nan, "not_finite"), (math.inf, "not_finite"), (0.0, "no_gradient")]
)
def test_an_image_without_a_usable_gradient_stays_as_it_is(
    tiny_bank: ForegroundBank, weight: float, counter: str
) -> None:
    clean, moved, terse = pair(tiny_bank, Gradients(weight, 1.0), steps=2)
    assert torch.equal(clean[0], moved[0])
    assert not torch.equal(clean[1], moved[1])
    metrics = terse.metrics()
    assert metrics["robustness/images"] == metrics[f"robustness/{counter}"] == 1
    assert metrics["robustness/not_finite"] + metrics["robustness/no_gradient"] == 1


def test_an_image_that_is_not_finite_is_left_out(tiny_bank: ForegroundBank) -> None:
    images, targets = make_batch()
    images[0][0, 3, 3] = math.nan
    model = make_detector("fcos")
    terse = Terse(tiny_bank, paste=every_image(), robustness=Robustness(), model=model)
    with pytest.warns(TerseWarning, match="NaN"):
        moved, _ = terse(images, targets)
    assert torch.equal(moved[0].nan_to_num(), images[0].nan_to_num())
    assert not torch.equal(moved[1], images[1])
    assert bool(moved[1].isfinite().all())
    assert terse.metrics()["robustness/images"] == 1
    assert model.training


def test_a_model_without_gradients_is_refused(tiny_bank: ForegroundBank) -> None:
    class Scores(Gradients):
        input_gradients = None  # type: ignore[assignment]  # it has none

    for model, message in ((None, r"expected Terse.model=.*, got no"), (Scores(), "input_gradients, got Scores")):
        with pytest.raises(ValueError, match=message):
            Terse(tiny_bank, robustness=Robustness(), model=model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_another_precision_keep_it(tiny_bank: ForegroundBank, dtype: torch.dtype) -> None:
    images, targets = make_batch()
    clean, moved, terse = pair(tiny_bank, Gradients(1e-3), ([image.to(dtype) for image in images], targets))
    assert all(image.dtype == dtype for image in moved)
    assert terse.metrics()["robustness/images"] == 2
    for before, after in zip(clean, moved, strict=True):
        assert 0.5 * BACKGROUND < float((before - after).abs().max()) <= BACKGROUND + 4e-3


def test_keypoints_and_images_without_objects_pass(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=KEYPOINTS)
    settings: dict[str, Any] = {"paste": every_image(paste_probability=0.5), "robustness": Robustness()}
    terse = Terse(bank, **settings, model=make_detector("keypointrcnn"))
    for step in range(4):
        terse(*make_batch(step, objects=step % 2, keypoints=True))
    assert terse.metrics()["robustness/images"] == 8


def test_a_tile_is_repeated_over_the_image() -> None:
    tile = torch.rand(3, 5, 5)
    assert torch.equal(tiled(tile, (13, 9)), tile.repeat(1, 3, 2)[:, :13, :9])
