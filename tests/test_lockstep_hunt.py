"""Lock-step: the hunt for hard examples."""

from __future__ import annotations

import dataclasses
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import EVERY_IMAGE, make_batch, make_detector, parameters_of
from hunting import Brightness, hunt, noise_batches
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from terse_aug import ForegroundBank, PixelFormat, Terse, TerseWarning
from terse_aug.lockstep import HardExampleCache, HardExampleMining, MiningReport
from terse_aug.models import ClassifierAdapter, TorchvisionAdapter, class_of


@pytest.mark.parametrize("policy", ["random", "hard-random", "critic", "learned"])
def test_a_hunt_ends_with_the_wanted_number_of_each_label(
    tiny_bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    hunter, cache, terse = hunt(tiny_bank, tmp_path, policy, label1=6, label2=4)
    report = hunter.run(noise_batches())
    assert report.complete
    assert report.found == cache.counts == {1: 6, 2: 4}
    target = ClassifierAdapter(Brightness(), classes=3)
    for position in range(len(cache)):
        image, fields = cache[position]
        assert float(target.object_scores([image], [fields])[0].min()) < 0.55
    forwards = {"random": 1, "hard-random": 3, "critic": 1, "learned": 2}[policy]
    assert report.target_forwards == 4 * forwards * terse.metrics()["iterations"]
    assert terse.metrics()["moves"] == (terse.metrics()["iterations"] if terse.policy.learns else 0)


def test_a_hunt_ends_with_its_budget(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    hunter, cache, terse = hunt(tiny_bank, tmp_path, "random", budget=10, label1=1000)
    report = hunter.run(noise_batches())
    assert not report.complete
    assert report.target_forwards == 12
    assert terse.metrics()["iterations"] == 3
    assert sum(report.found.values()) == len(cache) <= report.seen == 12


def test_a_hunt_goes_on_where_an_interrupted_one_was(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    hunter, cache, _ = hunt(tiny_bank, tmp_path, "random", label1=3, label2=3)
    reports = []

    def interrupt(report: MiningReport) -> None:
        reports.append(report)
        if sum(report.found.values()) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hunter.run(noise_batches(), progress=interrupt)
    assert len(cache) == sum(reports[-1].found.values()) < 6
    report = hunter.run(noise_batches(), begun=reports[-1])
    assert report.complete
    assert report.found == cache.counts == {1: 3, 2: 3}
    assert report.batches > reports[-1].batches == len(reports)
    assert report.target_forwards == 4 * report.batches
    assert hunter.run(noise_batches()).found == {1: 3, 2: 3}
    assert cache.counts == {1: 6, 2: 6}


def test_only_labels_that_are_short_are_pasted(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    hunter, _, terse = hunt(tiny_bank, tmp_path, "random", budget=200, label1=1, label2=40)
    pasted: set[int] = set()
    both_short = True

    def watch(report: MiningReport) -> None:
        nonlocal both_short
        if not both_short:
            pasted.update(watched)
        both_short = report.found.get(1, 0) == 0

    watched: list[int] = []
    forward = terse.forward

    def spy(*batch: Any) -> Any:
        out = forward(*batch)
        watched[:] = [paste.label for pastes in terse.pastes for paste in pastes]
        return out

    terse.forward = spy  # type: ignore[method-assign]  # a spy
    hunter.run(noise_batches(), progress=watch)
    assert pasted == {2}
    terse.forward = forward  # type: ignore[method-assign]  # a spy
    for images, targets in (make_batch(seed, sizes=((48, 48),) * 4) for seed in range(5)):
        spy(images, targets)
        pasted.update(watched)
    assert pasted == {1, 2}


def test_a_hunt_keeps_a_restriction_and_needs_no_target_of_terse(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    """The target tells ten classes, Terse knows of none, and the user has chosen what is pasted."""

    class Ten(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return torch.nn.functional.pad(super().forward(images), (0, 7), value=-9.0)

    terse = Terse(tiny_bank, "critic", objects=(1, 1), move_every=1, **EVERY_IMAGE)
    terse.paste_only([2])
    report = HardExampleMining(
        terse, ClassifierAdapter(Ten(), 10), HardExampleCache(tmp_path / "hard"), {1: 3}, 400
    ).run(noise_batches())
    assert report.found == {1: 3}
    assert terse.metrics()["moves"] > 0
    assert terse.pasted_labels == [2]
    done = HardExampleMining(terse, ClassifierAdapter(Ten(), 10), HardExampleCache(tmp_path / "more"), {1: 2}, 400)
    assert done.run(noise_batches(), begun=dataclasses.replace(report, complete=False)).batches == report.batches


def test_a_score_that_is_not_known_does_not_stop_the_policy(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    class Partly(ClassifierAdapter):
        class_probabilities = None  # type: ignore[assignment]  # it has none

        def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
            return [torch.tensor([float("nan"), *[0.2] * (len(target["labels"]) - 1)]) for target in targets]

    terse = Terse(tiny_bank, "critic", objects=(1, 1), move_every=1, **EVERY_IMAGE)
    hunter = HardExampleMining(terse, Partly(Brightness(), 3), HardExampleCache(tmp_path / "hard"), {1: 50}, 12)
    hunter.run(make_batch(seed, sizes=((48, 48),) * 4, objects=1) for seed in count())
    assert terse.metrics()["losses_not_finite"] == 0
    assert terse.metrics()["moves"] == 3


@pytest.mark.parametrize(("margin", "hard"), [(0.05, True), (0.7, False)])
def test_hard_may_be_what_another_class_is_ahead_of(
    tiny_bank: ForegroundBank, tmp_path: Path, margin: float, hard: bool
) -> None:
    """Chances 0.3 for the right class, 0.6 for another, 0.1 for the third."""

    class Told(ClassifierAdapter):
        def class_probabilities(self, images: Any, targets: Any) -> list[Tensor]:
            rows = torch.tensor([[0.0, 0.3, 0.6], [0.0, 0.3, 0.6], [0.0, 0.6, 0.3]]) + torch.tensor([0.1, 0, 0])
            return [rows[target["labels"]] for target in targets]

    target = Told(Brightness(), classes=3)
    terse = Terse(tiny_bank, "random", objects=(1, 1), **EVERY_IMAGE)
    cache = HardExampleCache(tmp_path / "hard")
    report = HardExampleMining(terse, target, cache, {1: 2, 2: 2}, 40, rival_margin=margin).run(noise_batches())
    assert report.complete is hard
    with pytest.raises(ValueError, match=r"rival_margin: expected a target that tells .* got TorchvisionAdapter"):
        HardExampleMining(terse, TorchvisionAdapter(make_detector("fasterrcnn")), cache, {1: 1}, 1, rival_margin=0.1)
    with pytest.raises(ValueError, match=r"rival_margin: expected a difference .* got 1.0"):
        HardExampleMining(terse, target, cache, {1: 1}, 1, rival_margin=1.0)
    for most, fewer in ((0.31, True), (0.29, False)):
        hunter = HardExampleMining(
            terse, target, HardExampleCache(tmp_path / str(most)), {1: 2, 2: 2}, 40, hard_below=most
        )
        assert hunter.run(noise_batches()).complete is fewer
    everything = HardExampleMining(terse, target, HardExampleCache(tmp_path / "all"), {1: 2, 2: 2}, 400, hard_below=1.0)
    assert everything.run(noise_batches()).complete


def test_a_hunt_teaches_a_sampler_and_asks_nothing_for_it(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    terse = Terse(tiny_bank, "random", sampler="hardness", move_every=1, **EVERY_IMAGE)
    detector = TorchvisionAdapter(make_detector("fasterrcnn"))
    HardExampleMining(terse, detector, HardExampleCache(tmp_path / "hard"), {1: 50, 2: 50}, budget=6).run(
        make_batch(seed) for seed in count()
    )
    assert float(terse.state_dict()["sampler.totals"][1].sum()) > 0
    assert terse.metrics()["extra_forwards"] == 0
    pool = [torch.zeros(3, 40, 40)]
    graph = Terse(tiny_bank, "random", sampler="balanced", backgrounds=pool, background_probability=0.5)
    with pytest.raises(ValueError, match="another sampler than 'balanced'"):
        HardExampleMining(graph, detector, HardExampleCache(tmp_path / "none"), {1: 1}, budget=6)


@pytest.mark.parametrize("policy", ["critic", "learned"])
def test_a_hunt_leaves_the_target_as_it_was(tiny_bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    detector = make_detector("fasterrcnn")
    before, state = parameters_of(detector), torch.get_rng_state()
    terse = Terse(tiny_bank, policy, move_every=1, **EVERY_IMAGE)
    cache = HardExampleCache(tmp_path / "hard")
    start = parameters_of(terse)
    report = HardExampleMining(terse, TorchvisionAdapter(detector), cache, {1: 50, 2: 50}, budget=12).run(
        make_batch(seed) for seed in count()
    )
    assert report.seen > 0
    assert detector.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in detector.parameters())
    assert all(torch.equal(new, old) for new, old in zip(parameters_of(detector), before, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert any(not torch.equal(new, old) for new, old in zip(parameters_of(terse), start, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 0}, "budget: expected at least 1 image, got 0"),
        ({"hard_below": 0.0}, r"hard_below: expected a probability in \(0, 1\], got 0.0"),
        ({"wanted": {}}, "wanted: expected a number of hard examples"),
        ({"wanted": {1: 60_000}}, "wanted: 60000 examples, more than the cache's capacity 50000"),
        ({"wanted": {1: 1, 5: 1}}, r"no cut-out in the bank has the label\(s\) \[5\]"),
        ({"wanted": {1: 1, 2: 1}, "sampler": "cat=1,dog=0"}, r"never draws the label\(s\) \[2\], whose weight is 0"),
    ],
)
def test_a_hunt_refuses_what_it_cannot_do(
    tiny_bank: ForegroundBank, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings: dict[str, Any] = {"wanted": {1: 1}, "budget": 1} | changes
    terse = Terse(tiny_bank, "random", sampler=settings.pop("sampler", None))
    terse.paste_only([1])
    target = ClassifierAdapter(Brightness(), classes=3)
    with pytest.raises(ValueError, match=message):
        HardExampleMining(terse, target, HardExampleCache(tmp_path / "hard"), **settings)


def test_a_hunt_wants_the_pixels_of_its_cache_and_training_mode(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    target = ClassifierAdapter(Brightness(), classes=3)
    terse = Terse(tiny_bank, "random", pixels=PixelFormat(scale=255))
    with HardExampleCache(tmp_path / "hard") as cache, pytest.raises(ValueError, match=r"expected a cache with .*255"):
        HardExampleMining(terse, target, cache, {1: 1}, 10)
    hunter, _, terse = hunt(tiny_bank, tmp_path, "random", label1=1)
    terse.eval()
    with pytest.raises(ValueError, match="expected Terse in training mode"):
        hunter.run(noise_batches())


def test_a_hunt_draws_no_batch_that_it_does_not_use(tiny_bank: ForegroundBank, tmp_path: Path) -> None:
    hunter, _, terse = hunt(tiny_bank, tmp_path, "random", budget=8, label1=1000)
    drawn = []
    hunter.run(drawn.append(0) or batch for batch in noise_batches())  # type: ignore[func-returns-value]  # it appends, too
    assert len(drawn) == terse.metrics()["iterations"] == 2


class InFront(ClassifierAdapter):
    """Is always right about what is in front."""

    def class_probabilities(self, images: Any, targets: Any) -> list[Tensor]:
        every = super().class_probabilities(images, targets)
        for own, label in zip(every, class_of(targets).tolist(), strict=True):
            own[-1:] = torch.nn.functional.one_hot(torch.tensor(label), own.shape[1])
        return every


@pytest.mark.parametrize(
    "settings", [{}, {"objects": (2, 2)}, {"objects": (1, 1), "superimpose_probability": 0.5}], ids=str
)
def test_what_is_behind_another_object_is_no_example_of_a_classifier_that_is_right(
    tiny_bank: ForegroundBank, tmp_path: Path, settings: dict[str, Any]
) -> None:
    target = InFront(Brightness(), classes=3)
    terse = Terse(tiny_bank, "critic", move_every=1, target=target, **EVERY_IMAGE, **settings)
    report = HardExampleMining(terse, target, HardExampleCache(tmp_path / "hard"), {1: 5, 2: 5}, 60).run(
        noise_batches()
    )
    assert report.found == {}
    assert report.seen == report.target_forwards == 60
    assert terse.metrics()["hardness"] == 0


def test_a_target_that_scores_every_object_is_asked_about_every_paste(
    tiny_bank: ForegroundBank, tmp_path: Path
) -> None:
    terse = Terse(tiny_bank, "random", objects=(2, 2), superimpose_probability=0.5, **EVERY_IMAGE)
    target = TorchvisionAdapter(make_detector("fasterrcnn"))
    hunter = HardExampleMining(terse, target, HardExampleCache(tmp_path / "hard"), {1: 99, 2: 99}, 8)
    report = hunter.run(make_batch(seed, sizes=((96, 96),) * 4) for seed in count())
    metrics = terse.metrics()
    assert metrics["superimposed"] > 0
    assert report.seen == metrics["objects_labelled"] - metrics["superimposed"]


@pytest.mark.parametrize("policy", ["random", "learned"])
@pytest.mark.parametrize("label", [5, -1])
def test_objects_of_no_class_of_the_target_are_passed_over(
    tiny_bank: ForegroundBank, tmp_path: Path, label: int, policy: str
) -> None:
    def batches() -> Any:
        for images, targets in noise_batches():
            for target in targets:
                target |= {"boxes": torch.tensor([[2.0, 2, 9, 9]]), "labels": torch.tensor([label])}
            yield images, targets

    target = ClassifierAdapter(Brightness(), classes=3)
    terse = Terse(tiny_bank, policy, objects=(1, 1), **(EVERY_IMAGE | {"image_probability": 0.5}))
    for number, settings in enumerate(({}, {"rival_margin": 0.05})):
        cache = HardExampleCache(tmp_path / f"{number}")
        assert HardExampleMining(terse, target, cache, {1: 3, 2: 3}, 400, **settings).run(batches()).complete


@pytest.mark.parametrize("aside", [True, False])
def test_a_hunt_whose_target_has_no_gradient_says_so(tiny_bank: ForegroundBank, tmp_path: Path, aside: bool) -> None:
    """Whether it takes gradients aside or not."""

    class Asked(ClassifierAdapter):
        if not aside:
            input_gradients = None  # type: ignore[assignment]  # it has none

    class Deaf(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.detach())

    terse = Terse(tiny_bank, "learned", objects=(1, 1), move_every=1, **EVERY_IMAGE)
    before = parameters_of(terse)
    hunter = HardExampleMining(terse, Asked(Deaf(), 3), HardExampleCache(tmp_path / "hard"), {1: 50, 2: 50}, 16)
    with pytest.warns(TerseWarning, match="no gradient reached the composites"):
        hunter.run(noise_batches())
    assert (terse.metrics()["moves"], terse.metrics()["skipped_moves"]) == (0, 2)
    assert all(torch.equal(new, old) for new, old in zip(parameters_of(terse), before, strict=True))


class Recomputed(nn.Module):
    """Convolution, BatchNorm and dropout whose activations are computed again in the backward."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(checkpoint(self.features, images, use_reentrant=self.reentrant).mean((2, 3)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # where it is asked without gradients
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_target_that_recomputes_its_activations_is_frozen_as_well(
    tiny_bank: ForegroundBank, tmp_path: Path, reentrant: bool
) -> None:
    torch.manual_seed(0)
    model = Recomputed(reentrant).train()
    before, rng = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    terse = Terse(tiny_bank, "learned", objects=(1, 1), move_every=1, **EVERY_IMAGE)
    cache = HardExampleCache(tmp_path / "hard")
    HardExampleMining(terse, ClassifierAdapter(model, 3), cache, {1: 50, 2: 50}, 16).run(noise_batches())
    assert terse.metrics()["moves"] == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
