"""Where the hardness of pastes comes from: an extra forward, or supplied by the training loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    every_image,
    make_bank,
    make_batch,
    make_detector,
    make_terse,
    white_disc,
)
from torch import Tensor

from terse_aug import ForegroundBank, Terse, TransformRanges
from terse_aug.models import ClassifierAdapter
from terse_aug.policies import CriticPolicy
from terse_aug.utils.warnings import TerseWarning


@pytest.mark.parametrize(("policy", "sampler"), [("critic", "uniform"), ("random", "hardness")])
def test_without_any_source_of_hardness_step_raises_and_names_the_options(
    tiny_bank: ForegroundBank, policy: str, sampler: str
) -> None:
    terse = Terse(tiny_bank, policy, paste=every_image(), sampler=sampler)
    terse(*make_batch())
    with pytest.raises(ValueError, match=r"learns from hardness: give Terse\(model=detector\), or call observe\(\)"):
        terse.step(1.0)


@pytest.mark.parametrize(("min_visibility", "forwards"), [(0.0, 2), (1.0, 0)])
def test_only_images_with_a_labelled_paste_have_an_extra_forward(
    tmp_path: Path, min_visibility: float, forwards: int
) -> None:
    """The frame cuts every disc in half, which is enough for a label or not; each image has an object of its own."""

    class Counting:
        first_label, label_limit = 0, None

        def __init__(self) -> None:
            self.batches: list[int] = []

        def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
            self.batches.append(len(images))
            return [torch.full((len(target["boxes"]),), 0.5) for target in targets]

        def image_losses(self, images: Any, targets: Any, differentiable: bool = False) -> Tensor:
            raise AssertionError

    ranges = TransformRanges(translate_x=(0.0, 0.0), keep_inside=0.0)
    paste = every_image(objects=(1, 1), min_visibility=min_visibility, ranges=ranges)
    model = Counting()
    terse = make_terse(make_bank(tmp_path, [white_disc()]), "critic", paste=paste, model=model)
    terse(*make_batch(objects=0))
    assert all(len(pastes) == 1 for pastes in terse.pastes)
    terse.step(1.0)
    assert model.batches == ([forwards] if forwards else [])
    assert terse.metrics()["extra_forwards"] == forwards


@pytest.mark.parametrize("policy", ["critic", "adversarial", "random"])
def test_hardness_that_does_not_fit_is_refused(tiny_bank: ForegroundBank, policy: str) -> None:
    terse = Terse(tiny_bank, policy, paste=every_image())
    with pytest.raises(ValueError, match="expected a call of Terse in training mode before"):
        terse.observe([])
    _, targets = terse(*make_batch())
    counts = [len(target["boxes"]) for target in targets]
    wrong: list[tuple[Any, str]] = [
        ([torch.zeros(1)], "expected a tensor for each of 2 images, got 1"),
        ([torch.zeros(counts[0]), torch.zeros(1, 1)], rf"image 1: expected a tensor \[{counts[1]}\].*got \[1, 1\]"),
        ([[0.5], [0.5]], r"expected a tensor .* got list"),
        ([torch.full((n,), 7.0) for n in counts], r"hardness of image 0: expected values in \[0, 1\], got 7.0 to 7.0"),
    ]
    for hardness, message in wrong:
        with pytest.raises(ValueError, match=message):
            terse.observe(hardness)
    terse.eval()
    terse(*make_batch())
    assert terse.pastes == []
    with pytest.raises(ValueError, match="expected a call of Terse in training mode before"):
        terse.observe([torch.zeros(count) for count in counts])


def test_class_probabilities_are_the_models_from_an_extra_forward_or_supplied(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, [white_disc()])
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 5))
    model = ClassifierAdapter(network, classes=5)
    computing, supplied = (make_terse(bank, "critic", paste=every_image(objects=(1, 1)), model=model) for _ in range(2))
    batch = make_batch(sizes=((32, 32),) * 3, objects=1)
    computing(*batch)
    computing.step(1.0)
    images, targets = supplied(*batch)
    supplied.observe(class_probabilities=model.class_probabilities(list(images), targets))
    supplied.step(1.0)
    assert computing.metrics()["extra_forwards"] == 3
    assert supplied.metrics()["extra_forwards"] == 0
    state, same = computing.policy.state_dict(), supplied.policy.state_dict()
    torch.testing.assert_close(state["replay_probabilities"][:3], network(torch.stack(list(images))).softmax(1))
    assert state["replay_labels"][:3].tolist() == [1, 1, 1]
    for name, value in state.items():
        assert torch.equal(value, same[name]), name


class FiveClasses(ClassifierAdapter):
    """A model with given probabilities."""

    def __init__(self, probabilities: Tensor | None = None) -> None:
        super().__init__(torch.nn.Flatten(), classes=5)
        self.probabilities = probabilities

    def class_probabilities(self, images: Any, targets: Any) -> list[Tensor]:
        assert self.probabilities is not None
        return [self.probabilities.expand(len(target["labels"]), -1) for target in targets]


def test_class_probabilities_that_do_not_fit_are_refused(tiny_bank: ForegroundBank) -> None:
    terse = make_terse(tiny_bank, "critic", model=FiveClasses())
    _, targets = terse(*make_batch())
    rows = [torch.full((len(target["boxes"]), 5), 0.2) for target in targets]
    where = "class_probabilities of image"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "expected either hardness or class_probabilities, got neither"),
        ({"hardness": [own[:, 0] for own in rows], "class_probabilities": rows}, "got both"),
        ({"class_probabilities": [own[:, :2] for own in rows]}, rf"{where} 0: expected a tensor \[\d, 5\]"),
        ({"class_probabilities": [rows[0], rows[1] - 1.2]}, rf"{where} 1: expected values in \[0, 1\], got -1.0"),
        ({"class_probabilities": [own / 2 for own in rows]}, rf"{where} 0: expected rows that sum to 1.*\[0.5"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            terse.observe(**arguments)
    terse.observe(class_probabilities=rows)
    for given, message in ((torch.full((4,), 0.25), r"expected a tensor \[\d, 5\]"), (torch.zeros(5), "sum to 1")):
        computing = make_terse(tiny_bank, "critic", model=FiveClasses(given))
        computing(*make_batch())
        with pytest.warns(TerseWarning, match=f"extra forward .*{where} 0: .*{message}"):
            computing.step(1.0)


def test_supplied_class_probabilities_give_hardness_where_the_model_has_none(tiny_bank: ForegroundBank) -> None:
    """The batch's own objects may have classes that no foreground has, and labels that stand for nothing."""
    terse = make_terse(tiny_bank, "critic")
    images, targets = make_batch()
    for target, label in zip(targets, (-1, 9), strict=True):
        target["labels"] = torch.full_like(target["labels"], label)
    _, targets = terse(images, targets)
    row = torch.tensor([0.05, 0.3, 0.3, *[0.05] * 7])  # the bank has labels 1 and 2
    terse.observe(class_probabilities=[row.expand(len(target["boxes"]), -1) for target in targets])
    terse.step(1.0)
    assert terse.metrics()["updates"] == 1
    assert terse.metrics()["hardness"] == pytest.approx(0.7)
    assert terse.policy.classes is None


def test_a_policy_made_for_other_classes_is_refused(tiny_bank: ForegroundBank) -> None:
    with pytest.raises(ValueError, match=r"of 2 classes, but .* none and the bank's labels go up to 2"):
        Terse(tiny_bank, CriticPolicy(classes=2))
    with pytest.raises(ValueError, match="of 3 classes, but the model gives those of 5"):
        Terse(tiny_bank, CriticPolicy(classes=3), model=FiveClasses())
    assert Terse(tiny_bank, "critic", model=FiveClasses()).policy.classes == 5
    assert Terse(tiny_bank, "critic", model=make_detector("fasterrcnn")).policy.classes is None
    for wrong, message in (({"capacity": 0}, "capacity: .* at least 1, got 0"), ({"classes": 1}, "at least 2, got 1")):
        with pytest.raises(ValueError, match=message):
            CriticPolicy(**wrong)
