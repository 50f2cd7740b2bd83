"""Classifiers, segmenters and regressors under training, and forwards that leave a model unchanged."""

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


def flat_head(outputs: int) -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12 * 36, outputs))


def dense_head() -> nn.Module:
    return nn.Sequential(nn.Conv2d(12, 3, 3, padding=1), nn.Upsample(scale_factor=2.0))


def classifier() -> tuple[ClassifierAdapter, Callable[..., Tensor]]:
    adapter = ClassifierAdapter(Features(flat_head(3)), 3)
    return adapter, lambda out, targets: F.cross_entropy(out, class_of(targets))


def segmenter() -> tuple[SegmenterAdapter, Callable[..., Tensor]]:
    adapter = SegmenterAdapter(Features(dense_head()), 3)
    return adapter, lambda out, targets: F.cross_entropy(out, torch.stack(list(map(label_map, targets))))


def regressor() -> tuple[RegressorAdapter, Callable[..., Tensor]]:
    adapter = RegressorAdapter(Features(flat_head(2)), centre, tolerance=0.1)
    return adapter, lambda out, targets: F.smooth_l1_loss(out, torch.stack(list(map(centre, targets))), beta=0.1)


TASKS = {"classifier": classifier, "segmenter": segmenter, "regressor": regressor}


@pytest.fixture(params=sorted(TASKS))
def task(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return TASKS[request.param]()


def batch(seed: int, count: int = 8) -> tuple[Tensor, list[dict[str, Tensor]]]:
    images, targets = make_batch(seed, sizes=((SIDE, SIDE),) * count, objects=0, masks=True)
    return torch.stack(images) * 0.2, targets


def target_of(*labels: int, dtype: torch.dtype = torch.long) -> dict[str, Tensor]:
    return {"boxes": torch.zeros(len(labels), 4), "labels": torch.tensor(labels, dtype=dtype)}


@pytest.mark.parametrize("policy", ["random", "best-of-n", "critic", "adversarial"])
def test_a_model_trains_with_every_policy(task: Any, policy: str, tiny_bank: ForegroundBank) -> None:
    adapter, loss_of = task
    assert isinstance(adapter, ModelAdapter)
    settings = policy_with(policy, update_interval=1, replay_updates=1)
    terse = Terse(tiny_bank, settings, paste=every_image(objects=(1, 1)), model=adapter)
    optimizer = torch.optim.Adam(adapter.model.parameters(), 3e-3)
    adapter.model.train()
    before, losses = parameters_of(terse), []
    for step in range(30):
        images, targets = terse(*batch(step))
        loss = loss_of(adapter.model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        terse.step(loss)
        losses.append(float(loss.detach()))
    assert sum(losses[-8:]) < 0.85 * sum(losses[:8])
    assert terse.metrics()["updates"] == (30 if terse.policy.learns else 0)
    changed = any(not torch.equal(new, old) for new, old in zip(parameters_of(terse), before, strict=True))
    assert changed is terse.policy.learns


def test_forwards_change_nothing_and_scores_agree_with_losses(task: Any, tiny_bank: ForegroundBank) -> None:
    adapter, _ = task
    model = adapter.model
    images, targets = Terse(tiny_bank, "random", paste=every_image(objects=(1, 1)))(*batch(0, count=20))
    before, state = [value.clone() for value in model.state_dict().values()], torch.get_rng_state()
    losses = adapter.image_losses(list(images), targets)
    scores = adapter.object_scores(list(images), targets)
    assert losses.shape == (20,)
    assert not losses.requires_grad
    assert [len(own) for own in scores] == [len(target["boxes"]) for target in targets]
    first = torch.stack([own[0] for own in scores])
    assert bool(((first >= 0) & (first <= 1)).all())
    assert float(torch.corrcoef(torch.stack([losses, first]))[0, 1]) < -0.4
    leaf = images.detach().requires_grad_()
    adapter.image_losses(list(leaf), targets, differentiable=True).sum().backward()
    assert bool((leaf.grad.flatten(1).abs().amax(1) > 0).all())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(new, old) for new, old in zip(model.state_dict().values(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


class Stateful(nn.Module):
    """Writes to buffers in training (one has two names), and draws random numbers in both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.InstanceNorm2d(3, track_running_stats=True)
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
        self.register_buffer("forwards", torch.zeros(()))
        self.counter = nn.Module()
        self.counter.register_buffer("forwards", self.forwards)
        self.history: list[float] = []

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += 1
        self.history.append(float(self.counter.forwards))
        return self.head(F.dropout(self.normed(images).mean((2, 3)) + images.mean((2, 3)), 0.5, training=True))


@pytest.mark.parametrize("kind", ["image_losses", "input_gradients", "object_scores"])
def test_a_model_with_state_and_random_draws_is_left_unchanged(kind: str) -> None:
    torch.manual_seed(0)
    model = Stateful().train()
    forward = getattr(ClassifierAdapter(model, 3), kind)
    images, targets = list(batch(0, count=2)[0]), [target_of(1)] * 2
    own = dict(model.named_buffers(remove_duplicate=False))
    before, state = {name: value.clone() for name, value in own.items()}, torch.get_rng_state()
    torch.testing.assert_close(forward(images, targets), forward(images, targets), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)
    after = dict(model.named_buffers(remove_duplicate=False))
    assert all(after[name] is own[name] for name in own)
    if kind != "object_scores":  # in evaluation mode buffers are not copied
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert model.history == [1, 1]
    model(torch.stack(images))
    assert float(model.counter.forwards) == float(model.forwards) == (3 if kind == "object_scores" else 1)


class Tabled(nn.Module):
    """Computes a table, in a non-persistent buffer, when the image size changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1, 1), persistent=False)
        self.size = (1, 1)

    def forward(self, images: Tensor) -> Tensor:
        if self.size != tuple(images.shape[-2:]):
            self.size = tuple(images.shape[-2:])
            self.table = torch.ones(self.size)
        return (images * self.table).mean((2, 3))


def test_a_table_computed_in_an_extra_forward_is_kept() -> None:
    model = Tabled().train()
    images, _ = batch(0, count=1)
    ClassifierAdapter(model, 3).image_losses(list(images), [target_of(1)])
    assert torch.equal(model(images), images.mean((2, 3)))


def test_images_without_objects_have_no_loss_and_no_scores(task: Any) -> None:
    adapter, _ = task
    images, targets = batch(0, count=2)
    assert class_of(targets).tolist() == [NO_CLASS] * 2
    if not isinstance(adapter, SegmenterAdapter):  # whose background is a class
        assert adapter.image_losses(list(images), targets).tolist() == [0, 0]
    assert [len(own) for own in adapter.object_scores(list(images), targets)] == [0, 0]


def test_an_unknown_class_has_no_score_and_no_loss() -> None:
    adapter, _ = classifier()
    images, targets = list(batch(0, count=2)[0]), [target_of(5), target_of(-1)]
    assert torch.cat(adapter.object_scores(images, targets)).isnan().all()
    assert adapter.image_losses(images, targets).tolist() == [0, 0]


def test_the_score_of_a_regression_falls_with_its_error() -> None:
    class Exact(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.25, 0.75]]).expand(len(images), -1)

    right, wrong = (target_of(1) | {"boxes": torch.tensor([[left, 24, left + 24, 48]])} for left in (0.0, 24.0))
    scores = RegressorAdapter(Exact(), centre, tolerance=0.1).object_scores([torch.zeros(3, 4, 4)] * 2, [right, wrong])
    assert float(scores[0]) == pytest.approx(1)
    assert float(scores[1]) == pytest.approx(2.718**-5, rel=1e-2)
    with pytest.raises(ValueError, match="tolerance: expected a value above 0, got 0"):
        RegressorAdapter(Exact(), centre, tolerance=0)


def test_the_label_map_has_later_objects_in_front_and_needs_masks() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.uint8)
    masks[0, :3], masks[1, 2:] = 1, 1
    assert label_map(target_of(1, 2) | {"masks": masks})[:, 0].tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"needs masks; this one has \['boxes', 'labels'\]"):
        label_map(target_of())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int64])
def test_labels_of_every_integer_type_are_classes(dtype: torch.dtype) -> None:
    adapter, _ = classifier()
    images, target = list(batch(0, count=1)[0]), target_of(2, 0, 2, dtype=dtype)
    (scores,), (rows,) = (forward(images, [target]) for forward in (adapter.object_scores, adapter.class_probabilities))
    assert scores.isnan().tolist() == [True, True, False]
    assert float(scores[2]) == float(rows[2, 2]) != float(rows[2, 0])
    assert float(rows[2].sum()) == pytest.approx(1)
    assert bool(rows[:2].isnan().all())
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    masks[:2, :4] = True
    (scores,) = segmenter()[0].object_scores(images, [target | {"masks": masks}])
    assert scores.isnan().tolist() == [False, False, True]
