"""Classifiers, segmenters and regressors as targets: each trains for real, and a pass leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from factories import every_image, make_batch, parameters_of, policy_with
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug import ForegroundBank, Terse
from terse_aug.models import (
    NO_CLASS,
    ClassifierAdapter,
    ModelAdapter,
    RegressorAdapter,
    SegmenterAdapter,
    class_of,
    label_map,
)

SIDE = 48


def centre(target: dict[str, Tensor]) -> Tensor:
    """Middle of the last object, in fractions of the image."""
    left, top, right, bottom = target["boxes"][-1] / SIDE
    return torch.stack([(left + right) / 2, (top + bottom) / 2])


class Features(nn.Sequential):
    def __init__(self, head: nn.Module) -> None:
        super().__init__(nn.Conv2d(3, 12, 3, padding=1, stride=2), nn.BatchNorm2d(12), nn.ReLU(), nn.Dropout(0.1), head)


class Upsampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        return F.interpolate(self.conv(features), scale_factor=2.0)


def flat_head(outputs: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12 * 36, outputs))


def classifier() -> tuple[ModelAdapter, nn.Module, Callable[..., Tensor]]:
    model = Features(flat_head(3))
    return ClassifierAdapter(model, 3), model, lambda out, targets: F.cross_entropy(out, class_of(targets))


def segmenter() -> tuple[ModelAdapter, nn.Module, Callable[..., Tensor]]:
    model = Features(Upsampled())
    return (
        SegmenterAdapter(model, 3),
        model,
        lambda out, targets: F.cross_entropy(out, torch.stack([label_map(target) for target in targets])),
    )


def regressor() -> tuple[ModelAdapter, nn.Module, Callable[..., Tensor]]:
    model = Features(flat_head(2))
    target = RegressorAdapter(model, centre, tolerance=0.1)
    return target, model, lambda out, targets: F.smooth_l1_loss(out, torch.stack(list(map(centre, targets))), beta=0.1)


TASKS = {"classifier": classifier, "segmenter": segmenter, "regressor": regressor}


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return TASKS[request.param]()


def batch(seed: int, count: int = 8) -> tuple[Tensor, list[dict[str, Tensor]]]:
    images, targets = make_batch(seed, sizes=((SIDE, SIDE),) * count, objects=0, masks=True)
    return torch.stack(images) * 0.2, targets


@pytest.mark.parametrize("policy", ["random", "best-of-n", "critic", "adversarial"])
def test_it_trains_with_every_policy(task: Any, policy: str, tiny_bank: ForegroundBank) -> None:
    target, model, loss_of = task
    assert isinstance(target, ModelAdapter)
    terse = Terse(tiny_bank, policy_with(policy, update_interval=1), paste=every_image(objects=(1, 1)), model=target)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    before, losses = parameters_of(terse), []
    for step in range(30):
        images, targets = terse(*batch(step))
        loss = loss_of(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        terse.step(loss)
        losses.append(float(loss.detach()))
    assert sum(losses[-8:]) < 0.85 * sum(losses[:8])
    assert terse.metrics()["updates"] == (30 if terse.policy.learns else 0)
    changed = any(not torch.equal(new, old) for new, old in zip(parameters_of(terse), before, strict=True))
    assert changed is terse.policy.learns


def test_a_pass_leaves_no_trace_and_scores_agree_with_losses(task: Any, tiny_bank: ForegroundBank) -> None:
    target, model, _ = task
    terse = Terse(tiny_bank, "random", paste=every_image(objects=(1, 1)))
    images, targets = terse(*batch(0, count=20))
    before, state = [value.clone() for value in model.state_dict().values()], torch.get_rng_state()
    losses = target.image_losses(list(images), targets)
    scores = target.object_scores(list(images), targets)
    assert losses.shape == (20,)
    assert not losses.requires_grad
    assert [len(own) for own in scores] == [len(found["boxes"]) for found in targets]
    first = torch.stack([own[0] for own in scores])
    assert bool(((first >= 0) & (first <= 1)).all())
    assert float(torch.corrcoef(torch.stack([losses, first]))[0, 1]) < -0.4
    assert all(torch.equal(new, old) for new, old in zip(model.state_dict().values(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


class Restless(nn.Module):
    """Writes into buffers in training, one of which has two names, and draws whether it trains or not."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.InstanceNorm2d(3, track_running_stats=True)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        self.register_buffer("seen", torch.zeros(()))
        self.counter = nn.Module()
        self.counter.register_buffer("seen", self.seen)
        self.told: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        self.told.append(float(self.counter.seen))
        return self.head(F.dropout(self.normed(images).mean((2, 3)) + images.mean((2, 3)), 0.5, training=True))


class Tabled(nn.Module):
    """Computes a table when the size of what comes changes, in a buffer that is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1, 1), persistent=False)
        self.size = (1, 1)

    def forward(self, images: Tensor) -> Tensor:
        if self.size != tuple(images.shape[-2:]):
            self.size = tuple(images.shape[-2:])
            self.table = torch.ones(self.size)
        return (images * self.table).mean((2, 3))


def test_a_table_that_a_model_computed_while_it_was_asked_stays_with_it() -> None:
    model = Tabled().train()
    images, _ = batch(0, count=1)
    found = [{"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.long)}]
    ClassifierAdapter(model, 3).image_losses(list(images), found)
    assert torch.equal(model(images), images.mean((2, 3)))


def test_an_object_that_is_no_class_of_the_classifiers_has_no_score_and_no_loss() -> None:
    torch.manual_seed(0)
    target = ClassifierAdapter(Features(flat_head(3)), 3)
    images, _ = batch(0, count=2)
    found = [{"boxes": torch.zeros(1, 4), "labels": torch.tensor([label])} for label in (5, -1)]
    assert torch.cat(target.object_scores(list(images), found)).isnan().all()
    assert target.image_losses(list(images), found).tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["losses", "gradients", "scores"])
def test_a_model_that_writes_and_draws_is_left_as_it_was(kind: str) -> None:
    torch.manual_seed(0)
    model = Restless().train()
    target = ClassifierAdapter(model, 3)
    images, _ = batch(0, count=2)
    found = [{"boxes": torch.zeros(1, 4), "labels": torch.ones(1, dtype=torch.long)}] * 2
    ask = {"losses": target.image_losses, "gradients": target.input_gradients, "scores": target.object_scores}[kind]
    own = dict(model.named_buffers(remove_duplicate=False))
    before, state = {name: value.clone() for name, value in own.items()}, torch.get_rng_state()
    first, second = ask(list(images), found), ask(list(images), found)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    after = dict(model.named_buffers(remove_duplicate=False))
    assert all(after[name] is own[name] for name in own)
    if kind != "scores":  # what a model writes when it predicts is not looked after
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert model.told == [1, 1]
    model(images)
    assert float(model.counter.seen) == float(model.seen) == before["seen"] + (3 if kind == "scores" else 1)


def test_a_differentiable_pass_reaches_the_images_and_no_parameter(task: Any, tiny_bank: ForegroundBank) -> None:
    target, model, _ = task
    images, targets = Terse(tiny_bank, "random", paste=every_image(objects=(1, 1)))(*batch(0))
    leaf = images.detach().requires_grad_()
    target.image_losses(list(leaf), targets, differentiable=True).sum().backward()
    assert bool((leaf.grad.flatten(1).abs().amax(1) > 0).all())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_what_is_right_scores_one_and_what_is_wrong_little() -> None:
    class Exact(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.25, 0.75]]).expand(len(images), -1)

    target = {"boxes": torch.tensor([[0.0, 24, 24, 48]]), "labels": torch.tensor([1])}
    moved = {"boxes": torch.tensor([[24.0, 24, 48, 48]]), "labels": torch.tensor([1])}
    scores = RegressorAdapter(Exact(), centre, tolerance=0.1).object_scores([torch.zeros(3, 4, 4)] * 2, [target, moved])
    assert float(scores[0]) == pytest.approx(1)
    assert float(scores[1]) == pytest.approx(2.718**-5, rel=1e-2)
    with pytest.raises(ValueError, match="tolerance: expected a value above 0, got 0"):
        RegressorAdapter(Exact(), centre, tolerance=0)


def test_the_label_map_has_later_objects_in_front_and_needs_masks() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    masks[0, :3], masks[1, 2:] = 1, 1
    target = {"boxes": torch.zeros(2, 4), "labels": torch.tensor([1, 2]), "masks": masks}
    assert label_map(target)[:, 0].tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"needs masks; this one has \['boxes', 'labels'\]"):
        label_map({"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)})


def test_an_image_without_objects_has_no_class_and_no_loss() -> None:
    torch.manual_seed(0)
    model = Features(flat_head(3))
    images, targets = batch(0, count=2)
    assert class_of(targets).tolist() == [NO_CLASS] * 2
    assert ClassifierAdapter(model, 3).image_losses(list(images), targets).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_labels_of_every_integer_type_are_classes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    target = ClassifierAdapter(Features(flat_head(3)), 3)
    images, _ = batch(0, count=1)
    found = {"boxes": torch.zeros(3, 4), "labels": torch.tensor([2, 0, 2], dtype=dtype)}
    (scores,), (chances,) = (ask(list(images), [found]) for ask in (target.object_scores, target.class_probabilities))
    assert scores.isnan().tolist() == [True, True, False]
    assert float(scores[2]) == float(chances[2, 2]) != float(chances[2, 0])
    assert float(chances[2].sum()) == pytest.approx(1)
    assert bool(chances[:2].isnan().all())
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    masks[:2, :4] = True
    (scores,) = SegmenterAdapter(Features(Upsampled()), 3).object_scores(list(images), [found | {"masks": masks}])
    assert scores.isnan().tolist() == [False, False, True]


def test_a_regression_leaves_images_without_objects_out() -> None:
    torch.manual_seed(0)
    target = RegressorAdapter(Features(flat_head(2)), centre, tolerance=0.1)
    images, targets = batch(0, count=2)
    assert target.image_losses(list(images), targets).tolist() == [0, 0]
    assert [len(own) for own in target.object_scores(list(images), targets)] == [0, 0]
