"""Lock-step: mining hard examples for a frozen model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import every_image, make_batch, make_detector, parameters_of
from lockstep_samples import Brightness, make_miner, make_terse, noise_batches
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terse_aug import BackgroundPool, ForegroundBank, PixelFormat, Terse, TerseWarning
from terse_aug.lockstep import HardExampleCache, HardExampleMiner, MiningReport
from terse_aug.models import ClassifierAdapter, TorchvisionAdapter, class_of

CLASSIFIER = ClassifierAdapter(Brightness(), classes=3)


@pytest.fixture
def cache(tmp_path: Path) -> HardExampleCache:
    return HardExampleCache(tmp_path / "cache")


@pytest.mark.parametrize(("policy", "forwards"), [("random", 1), ("best-of-n", 3), ("critic", 1), ("adversarial", 2)])
def test_mining_ends_with_the_wanted_number_of_each_label(
    tiny_bank: ForegroundBank, tmp_path: Path, policy: str, forwards: int
) -> None:
    miner = make_miner(tiny_bank, tmp_path, {1: 6, 2: 4}, policy)
    report = miner.run(noise_batches())
    assert report.complete
    assert report.found == miner.cache.counts == {1: 6, 2: 4}
    for image, target in (miner.cache[position] for position in range(10)):
        assert float(CLASSIFIER.object_scores([image], [target])[0].min()) < 0.55
    metrics = miner.terse.metrics()
    assert report.model_forwards == 4 * forwards * metrics["iterations"]
    assert metrics["updates"] == (metrics["iterations"] if miner.terse.policy.learns else 0)


def test_mining_ends_with_its_budget_and_draws_no_batch_that_it_does_not_use(
    tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    miner = make_miner(tiny_bank, tmp_path, {1: 1000}, budget=10)
    drawn = []
    report = miner.run(drawn.append(0) or batch for batch in noise_batches())  # type: ignore[func-returns-value]
    assert not report.complete
    assert report.model_forwards == 12
    assert miner.terse.metrics()["iterations"] == len(drawn) == 3
    assert sum(report.found.values()) == len(miner.cache) <= report.seen == 12


def test_an_interrupted_run_is_resumed_from_its_report(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    miner = make_miner(tiny_bank, tmp_path, {1: 3, 2: 3})
    reports: list[MiningReport] = []

    def interrupt(report: MiningReport) -> None:
        reports.append(report)
        if sum(report.found.values()) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        miner.run(noise_batches(), progress=interrupt)
    assert len(miner.cache) == sum(reports[-1].found.values()) < 6
    report = miner.run(noise_batches(), resume_from=reports[-1])
    assert report.complete
    assert report.found == miner.cache.counts == {1: 3, 2: 3}
    assert report.batches > reports[-1].batches == len(reports)
    assert report.model_forwards == 4 * report.batches
    done = miner.run(noise_batches(), resume_from=dataclasses.replace(report, complete=False))
    assert done == report
    assert miner.run(noise_batches()).found == {1: 3, 2: 3}
    assert miner.cache.counts == {1: 6, 2: 6}


def test_only_labels_that_lack_examples_are_pasted(
    tiny_bank: ForegroundBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    miner = make_miner(tiny_bank, tmp_path, {1: 1, 2: 40}, budget=200)
    pasted: list[set[int]] = []
    forward = miner.terse.forward

    def spy(*batch: Any) -> Any:
        out = forward(*batch)
        pasted.append({paste.label for pastes in miner.terse.pastes for paste in pastes})
        return out

    monkeypatch.setattr(miner.terse, "forward", spy)
    found: list[int] = [0]
    miner.run(noise_batches(), progress=lambda report: found.append(report.found.get(1, 0)))
    assert 0 < found.count(0) < len(pasted)
    for labels, before in zip(pasted, found, strict=False):
        assert labels == {2} or not before
    pasted.clear()
    for batch, _ in zip(noise_batches(), range(5), strict=False):
        spy(*batch)
    assert set.union(*pasted) == {1, 2}


def test_mining_keeps_a_restriction_and_needs_no_model_of_terse(
    tiny_bank: ForegroundBank, cache: HardExampleCache
) -> None:
    """The model has ten classes, Terse has no model, and the user has restricted what is pasted."""

    class Ten(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return torch.nn.functional.pad(super().forward(images), (0, 7), value=-9.0)

    terse = make_terse(tiny_bank, "critic")
    terse.restrict_labels([2])
    report = HardExampleMiner(terse, ClassifierAdapter(Ten(), 10), cache, {1: 3}, 400).run(noise_batches())
    assert report.found == {1: 3}
    assert terse.metrics()["updates"] > 0
    assert terse.sampler.allowed_labels == [2]


@pytest.mark.parametrize(
    ("settings", "complete"),
    [
        ({"rival_margin": 0.05}, True),
        ({"rival_margin": 0.7}, False),
        ({"hard_below": 0.31}, True),
        ({"hard_below": 0.29}, False),
        ({"hard_below": 1.0}, True),
    ],
)
def test_an_example_is_hard_by_its_score_or_by_the_lead_of_another_class(
    tiny_bank: ForegroundBank, cache: HardExampleCache, settings: dict[str, float], complete: bool
) -> None:
    """Probabilities are 0.3 for the right class, 0.6 for another, 0.1 for the third."""

    class Fixed(ClassifierAdapter):
        def class_probabilities(self, images: Any, targets: Any) -> list[Tensor]:
            rows = torch.tensor([[0.1, 0.3, 0.6], [0.1, 0.3, 0.6], [0.1, 0.6, 0.3]])
            return [rows[target["labels"]] for target in targets]

    model = Fixed(Brightness(), classes=3)
    miner = HardExampleMiner(make_terse(tiny_bank), model, cache, {1: 2, 2: 2}, 40, **settings)
    assert miner.run(noise_batches()).complete is complete


def test_unknown_scores_do_not_stop_the_policy(tiny_bank: ForegroundBank, cache: HardExampleCache) -> None:
    class Partly(ClassifierAdapter):
        class_probabilities = None  # type: ignore[assignment]  # it has none

        def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
            return [torch.tensor([float("nan"), *[0.2] * (len(target["labels"]) - 1)]) for target in targets]

    terse = make_terse(tiny_bank, "critic")
    HardExampleMiner(terse, Partly(Brightness(), 3), cache, {1: 50}, 12).run(noise_batches(objects=1))
    assert terse.metrics()["non_finite_losses"] == 0
    assert terse.metrics()["updates"] == 3


class RightInFront(ClassifierAdapter):
    """Always right about the object in front."""

    def class_probabilities(self, images: Any, targets: Any) -> list[Tensor]:
        rows = super().class_probabilities(images, targets)
        for own, label in zip(rows, class_of(targets).tolist(), strict=True):
            own[-1:] = torch.nn.functional.one_hot(torch.tensor(label), own.shape[1])
        return rows


@pytest.mark.parametrize("settings", [{}, {"objects": (2, 2)}, {"occluded_object_probability": 0.5}], ids=str)
def test_objects_behind_another_are_no_examples_for_a_classifier(
    tiny_bank: ForegroundBank, cache: HardExampleCache, settings: dict[str, Any]
) -> None:
    model = RightInFront(Brightness(), classes=3)
    terse = make_terse(tiny_bank, "critic", model=model, paste=every_image(**({"objects": (1, 1)} | settings)))
    report = HardExampleMiner(terse, model, cache, {1: 5, 2: 5}, 60).run(noise_batches())
    assert report.found == {}
    assert report.seen == report.model_forwards == 60
    assert terse.metrics()["hardness"] == 0


def test_all_pastes_but_occluded_objects_count_for_a_detector(
    tiny_bank: ForegroundBank, cache: HardExampleCache
) -> None:
    terse = make_terse(tiny_bank, paste=every_image(objects=(2, 2), occluded_object_probability=0.5))
    model = TorchvisionAdapter(make_detector("fasterrcnn"))
    miner = HardExampleMiner(terse, model, cache, {1: 99, 2: 99}, 8)
    report = miner.run(noise_batches(sizes=((96, 96),) * 4, objects=1))
    metrics = terse.metrics()
    assert metrics["occludees"] > 0
    assert report.seen == metrics["objects_labelled"] - metrics["occludees"]


@pytest.mark.parametrize("policy", ["random", "adversarial"])
@pytest.mark.parametrize("label", [5, -1])
@pytest.mark.parametrize("settings", [{}, {"rival_margin": 0.05}], ids=str)
def test_objects_of_classes_that_the_model_does_not_have_are_ignored(
    tiny_bank: ForegroundBank, cache: HardExampleCache, label: int, policy: str, settings: dict[str, float]
) -> None:
    unknown = {"boxes": torch.tensor([[2.0, 2, 9, 9]]), "labels": torch.tensor([label])}
    batches = ((images, [target | unknown for target in targets]) for images, targets in noise_batches())
    terse = make_terse(tiny_bank, policy, paste=every_image(objects=(1, 1), paste_probability=0.5))
    assert HardExampleMiner(terse, CLASSIFIER, cache, {1: 3, 2: 3}, 400, **settings).run(batches).complete


def test_a_sampler_learns_without_extra_forwards(tiny_bank: ForegroundBank, cache: HardExampleCache) -> None:
    terse = make_terse(tiny_bank, sampler="hardness")
    model = TorchvisionAdapter(make_detector("fasterrcnn"))
    HardExampleMiner(terse, model, cache, {1: 50, 2: 50}, budget=6).run(noise_batches())
    assert float(terse.sampler.state_dict()["totals"][1].sum()) > 0
    assert terse.metrics()["extra_forwards"] == 0


class Recomputed(nn.Module):
    """Convolution, BatchNorm and dropout with gradient checkpointing."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(checkpoint(self.features, images, use_reentrant=self.reentrant).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in forwards without gradients
@pytest.mark.parametrize(
    ("policy", "make"),
    [
        ("critic", lambda: TorchvisionAdapter(make_detector("fasterrcnn"))),
        ("adversarial", lambda: TorchvisionAdapter(make_detector("fasterrcnn"))),
        ("adversarial", lambda: ClassifierAdapter(Recomputed(reentrant=False), 3)),
        ("adversarial", lambda: ClassifierAdapter(Recomputed(reentrant=True), 3)),
    ],
)
def test_the_policy_learns_and_the_model_is_frozen(
    tiny_bank: ForegroundBank, cache: HardExampleCache, policy: str, make: Any
) -> None:
    torch.manual_seed(0)
    model = make()
    module = model.model.train()
    before, rng = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    terse = make_terse(tiny_bank, policy)
    start = parameters_of(terse)
    report = HardExampleMiner(terse, model, cache, {1: 50, 2: 50}, 16).run(noise_batches())
    assert report.seen > 0
    assert terse.metrics()["updates"] > 0
    assert any(not torch.equal(new, old) for new, old in zip(parameters_of(terse), start, strict=True))
    assert module.training
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("gives_gradients", [True, False])
def test_a_model_without_gradient_is_warned_about(
    tiny_bank: ForegroundBank, cache: HardExampleCache, gives_gradients: bool
) -> None:
    class Detached(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.detach())

    class Adapter(ClassifierAdapter):
        if not gives_gradients:
            input_gradients = None  # type: ignore[assignment]  # it has none

    terse = make_terse(tiny_bank, "adversarial")
    before = parameters_of(terse)
    miner = HardExampleMiner(terse, Adapter(Detached(), 3), cache, {1: 50, 2: 50}, 16)
    with pytest.warns(TerseWarning, match="no gradient reached the composites"):
        miner.run(noise_batches())
    assert (terse.metrics()["updates"], terse.metrics()["skipped_updates"]) == (0, 2)
    assert all(torch.equal(new, old) for new, old in zip(parameters_of(terse), before, strict=True))


@pytest.mark.parametrize(
    ("changes", "terse", "message"),
    [
        ({"budget": 0}, {}, "budget: expected at least 1 image, got 0"),
        ({"hard_below": 0.0}, {}, r"hard_below: expected a probability in \(0, 1\], got 0.0"),
        ({"rival_margin": 1.0}, {}, r"rival_margin: expected a difference of probabilities in \[0, 1\), got 1.0"),
        (
            {"rival_margin": 0.1, "model": TorchvisionAdapter(make_detector("fasterrcnn"))},
            {},
            "rival_margin: expected a model with class_probabilities, got TorchvisionAdapter",
        ),
        ({"wanted": {}}, {}, "wanted: expected a number of hard examples"),
        ({"wanted": {1: 60_000}}, {}, "wanted: 60000 examples, more than the cache's capacity 50000"),
        ({"wanted": {1: 1, 5: 1}}, {}, r"no foreground in the bank has the label\(s\) \[5\]"),
        ({"wanted": {1: 1, 2: 1}}, {"sampler": "cat=1,dog=0"}, r"never draws the label\(s\) \[2\], whose weight is 0"),
        (
            {},
            {"sampler": "balanced", "backgrounds": BackgroundPool([torch.zeros(3, 40, 40)])},
            "another sampler than 'balanced'",
        ),
        ({}, {"pixel_format": PixelFormat(scale=255)}, "expected a cache with .*255"),
    ],
)
def test_impossible_mining_is_refused(
    tiny_bank: ForegroundBank, cache: HardExampleCache, changes: dict[str, Any], terse: dict[str, Any], message: str
) -> None:
    own = Terse(tiny_bank, "random", **terse)
    own.restrict_labels([1])
    settings: dict[str, Any] = {"model": CLASSIFIER, "cache": cache, "wanted": {1: 1}, "budget": 1} | changes
    with pytest.raises(ValueError, match=message):
        HardExampleMiner(own, **settings)


def test_evaluation_mode_is_refused(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    miner = make_miner(tiny_bank, tmp_path, {1: 1})
    miner.terse.eval()
    with pytest.raises(ValueError, match="expected Terse in training mode"):
        miner.run([make_batch()])
