"""The fine-tuning benchmark: its measures and oracles on small detectors, and a short run of the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from example_modules import importable
from factories import make_bank
from torch import Tensor, nn

from terse_aug import BackgroundPool, PasteConfig, Terse

BOXES = torch.tensor([[4.0, 4.0, 24.0, 28.0], [30.0, 10.0, 50.0, 44.0]])
LABELS = torch.tensor([1, 2])


@pytest.fixture(scope="module")
def parts() -> Iterator[SimpleNamespace]:
    """The modules of the benchmark by the last word of their names."""
    names = ("data", "measures", "oracles", "pasting", "report", "training")
    with importable(Path(__file__).parents[1], "benchmarks", "detection"):
        yield SimpleNamespace(**{name: import_module(f"benchmarks._finetune_{name}") for name in names})


@pytest.fixture(scope="module")
def detector(parts: SimpleNamespace) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = parts.training.fasterrcnn_mobilenet_v2_small(num_classes=3, min_size=64, max_size=128)
    return found.train()


def real_sample(number: int) -> tuple[Tensor, dict[str, Any]]:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(number))
    return image, {"boxes": BOXES + number, "labels": LABELS, "image_id": number}


def composite(parts: SimpleNamespace, number: int, rows: tuple[int, ...] = (1,), **changes: Any) -> Any:
    image, target = real_sample(number)
    before = {"boxes": target["boxes"][:1], "labels": target["labels"][:1]}
    return parts.measures.Composite(image, target | changes, list(rows), before)


class Finds(nn.Module):
    """A detector that finds the same in every image."""

    def __init__(self, boxes: Tensor, labels: Tensor, score: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.found = {"boxes": boxes, "labels": labels, "scores": torch.full((len(boxes),), score)}

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [self.found for _ in images]


@pytest.mark.parametrize(
    ("shift", "labels", "score", "lost"),
    [
        (0.0, LABELS, 1.0, 0.0),  # perfect
        (0.0, LABELS.flip(0), 1.0, 1.0),  # of the other class
        (200.0, LABELS, 1.0, 1.0),  # finds nothing
        (0.0, LABELS, 0.5, 0.5),  # unsure
        (4.0, LABELS[:2], 1.0, 0.7),  # overlap 0.6: at three of ten overlaps
    ],
)
def test_ap_lost_is_that_of_the_pasted_objects(
    parts: SimpleNamespace, shift: float, labels: Tensor, score: float, lost: float
) -> None:
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [30.0, 10.0, 46.0, 26.0]])
    finds = Finds(boxes + torch.tensor([shift, 0.0, shift, 0.0]), labels, score)
    judge = parts.measures.Judge(finds, [], 0)
    own = composite(parts, 0, boxes=boxes)
    (found,) = judge.judge(["ap-pasted"], [own])
    torch.testing.assert_close(found, torch.tensor([lost]))
    (both,) = judge.judge(["ap-all"], [own])
    torch.testing.assert_close(both, torch.tensor([lost]))
    assert judge.extra_forwards == 2


def test_ap_pasted_leaves_other_objects_alone(parts: SimpleNamespace) -> None:
    judge = parts.measures.Judge(Finds(BOXES[:1], LABELS[:1], 1.0), [], 0)
    first, second, none = composite(parts, 0, (0,)), composite(parts, 0, (1,)), composite(parts, 0, ())
    (found,) = judge.judge(["ap-pasted"], [first, second, none])
    assert found.tolist() == [0.0, 1.0, -torch.inf]
    assert judge.judge(["ap-all"], [first])[0].tolist() == [0.5]


def test_an_image_agrees_most_with_itself(parts: SimpleNamespace, detector: nn.Module) -> None:
    judge = parts.measures.Judge(detector, [real_sample(0)], 0)
    own = [composite(parts, number) for number in range(3)]
    cosine, product = judge.judge(["agree-cosine", "agree"], own)
    assert float(cosine[0]) == pytest.approx(1, abs=1e-4)
    assert float(cosine[1:].max()) < 0.999
    norms = judge.losses(own, gradients=True)[1].norm(dim=1)
    torch.testing.assert_close(product, cosine * norms)


def reseed(*_: Any) -> None:
    torch.manual_seed(0)


def test_gradients_are_those_of_training(parts: SimpleNamespace, detector: nn.Module) -> None:
    image, target = real_sample(0)
    forward = parts.measures.TrainingForward(detector)
    others = [real_sample(1), (torch.rand(3, 80, 64), target)]  # of the same size and of another
    losses, gradients = forward([image, *(own for own, _ in others)], [target, *(own for _, own in others)], True)
    with torch.random.fork_rng(devices=[]):
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        hook = detector.transform.register_forward_hook(reseed)  # it draws a number, too
        own = detector([image], [target])
        sum(own.values()).backward()
        hook.remove()
        detector.train()
    predictor, head = detector.roi_heads.box_predictor, detector.rpn.head
    layers = [predictor.cls_score, predictor.bbox_pred, head.cls_logits, head.bbox_pred]
    wanted = torch.cat([p.grad.flatten() for layer in layers for p in layer.parameters()])
    detector.zero_grad()
    torch.testing.assert_close(gradients[0], wanted, rtol=1e-4, atol=1e-6)
    for name, value in losses.items():
        torch.testing.assert_close(value[0], own[name].detach(), rtol=1e-4, atol=1e-6)


def test_the_losses_and_the_running_mean(parts: SimpleNamespace, detector: nn.Module) -> None:
    judge = parts.measures.Judge(detector, [real_sample(5)], 0)
    own = [composite(parts, number) for number in range(2)]
    whole, classes, boxes, learnable = judge.judge(["loss", "class-loss", "box-loss", "learnable"], own)
    torch.testing.assert_close(whole, classes + boxes)
    torch.testing.assert_close(learnable, torch.zeros(2))
    before = detector.roi_heads.box_predictor.cls_score.bias.detach().clone()
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias[0] += 5
    judge.step()
    (moved,) = judge.judge(["learnable"], own)
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.bias.copy_(before)
    assert moved.abs().min() > 0.01


def test_size_place_and_overlap(parts: SimpleNamespace) -> None:
    judge = parts.measures.Judge(nn.Linear(1, 1), [real_sample(number) for number in range(6)], 0)
    usual = composite(parts, 0)
    tiny = composite(parts, 0, boxes=torch.tensor([[4.0, 4.0, 24.0, 28.0], [60.0, 1.0, 62.0, 3.0]]))
    over = composite(parts, 0, boxes=torch.tensor([[4.0, 4.0, 24.0, 28.0], [6.0, 6.0, 26.0, 30.0]]))
    density, overlap = judge.judge(["plausible", "least-overlap"], [usual, tiny, over])
    assert density[0] > density[1]
    torch.testing.assert_close(overlap, torch.tensor([0.0, 0.0, -18 * 22 / (20 * 24)]))


class Prefers:
    """A judge that likes one candidate, and keeps what it has judged."""

    extra_forwards = 0

    def __init__(self, candidate: int) -> None:
        self.candidate = candidate

    def start(self, targets: Any) -> None:
        pass

    def judge(self, measures: list[str], composites: Any) -> list[Tensor]:
        self.composites = composites
        every = [torch.zeros(3, len(composites) // 3) for _ in measures]
        every[0][self.candidate] = 1
        every[-1][self.candidate] = 1
        return [own.flatten() for own in every]


@pytest.mark.parametrize("choose", ["transforms", "foregrounds", "backgrounds", "all"])
def test_candidates_differ_in_what_is_chosen(parts: SimpleNamespace, tmp_path: Path, choose: str) -> None:
    pool = BackgroundPool([torch.full((3, 64, 64), level / 8) for level in range(8)], 0.5)
    terse = Terse(make_bank(tmp_path), paste=PasteConfig(paste_probability=1, decoys=(0, 0)), backgrounds=pool)
    images, targets = (list(own) for own in zip(*(real_sample(number) for number in range(2)), strict=True))
    judge = Prefers(2)
    oracle = parts.oracles.Oracle(terse, judge, ["loss", "agree"], 3, choose, seed=0)
    found, own_targets = oracle(images, targets)
    first, _, last = (judge.composites[start : start + 2] for start in (0, 2, 4))
    assert all(torch.equal(image, own.image) for image, own in zip(found, last, strict=True))
    assert all(torch.equal(own["boxes"], had.target["boxes"]) for own, had in zip(own_targets, last, strict=True))
    assert any(not torch.equal(a.image, b.image) for a, b in zip(first, last, strict=True))
    if choose in ("backgrounds", "all"):
        assert any(len(a.before["boxes"]) != len(b.before["boxes"]) for a, b in zip(first, last, strict=True))
    else:
        assert all(torch.equal(a.before["boxes"], b.before["boxes"]) for a, b in zip(first, last, strict=True))


def test_names_of_arms(parts: SimpleNamespace) -> None:
    assert parts.pasting.full_name("agree", "all") == "agree@all"
    assert parts.pasting.full_name("agree+loss@backgrounds", "transforms") == "agree+loss@backgrounds"
    assert parts.pasting.full_name("random", "all") == "random"
    assert parts.pasting.policy_of("matched.rarity") == ("matched", "rarity")
    assert parts.pasting.policy_of("random-again") == ("random", "uniform")
    assert parts.pasting.seed_of_pasting("random-again.rarity", 3) != parts.pasting.seed_of_pasting("random.rarity", 3)
    for wrong in (
        "nothing",
        "loss@sideways",
        "random@all",
        "loss+critic",
        "random.sideways",
        "random.",
        "copy-paste.rarity",
        "none-closed",
        "loss-closed",
    ):
        with pytest.raises(ValueError, match="there is no arm"):
            parts.pasting.full_name(wrong, "transforms")
    assert parts.pasting.full_name("matched-closed", "transforms") == "matched-closed"
    assert parts.pasting.policy_of("matched-closed") == ("matched", "uniform")
    assert parts.pasting.seed_of_pasting("random-again-closed", 3) == parts.pasting.seed_of_pasting("random-again", 3)


def test_the_report_pairs_runs(parts: SimpleNamespace) -> None:
    def result(ap: float) -> dict[str, Any]:
        values = dict.fromkeys(parts.report.MEASURES, ap)
        curve = [{"iteration": 5, "AP": (ap + 10) / 2}, {"iteration": 10, "AP": ap}]
        return values | {"curve": curve, "extra forwards": 0, "CPU seconds": 1.0}

    runs = {
        ("", "none"): {(0, 0): result(20)},
        ("right", "random"): {(0, 0): result(30), (0, 1): result(32)},
        ("right", "random-again"): {(0, 0): result(31), (0, 1): result(31)},
        ("right", "loss"): {(0, 0): result(51), (0, 1): result(51), (1, 0): result(70)},
    }
    baselines = {0: {"AP": 10.0}}
    none, random, again, loss = parts.report.summarise(runs, baselines)
    assert none["minus random"]["AP"] == {"mean": -10, "standard error": None, "pairs": [-10]}
    assert loss["minus random"]["AP"] == {"mean": 20, "standard error": 1, "pairs": [21, 19]}
    assert (none["iterations to random's AP"], random["iterations to random's AP"]) == (None, 10)
    assert loss["iterations to random's AP"] == 5  # from 10 to 30.5 in 5 iterations; 31 needs a little more
    noise = parts.report.noise(runs)
    assert noise["right"] == {"differences": [1, -1], "standard deviation": 1, "pairs for 0.5 AP": 16}
    assert "loss | 3 |" in parts.report.markdown("set", [none, random, again, loss], noise, "")


def test_a_closed_arm_pastes_nothing_in_the_last_quarter(
    parts: SimpleNamespace, data_root: Path, tmp_path: Path
) -> None:
    digits = parts.training.fasterrcnn_mobilenet_v2_small(num_classes=11, min_size=64, max_size=128)
    folder = parts.data.prepare("mnist-coco", data_root, tmp_path, (10, 4), 64)
    pasting = parts.pasting.make_pasting("random-closed", "right", "mnist-coco", folder, data_root, digits, [], 0, 4, 5)
    images, targets = (list(own) for own in zip(*(real_sample(number) for number in range(4)), strict=True))
    pasted = []
    for _ in range(5):
        found, _ = pasting(images, targets)
        pasting.step(torch.tensor(1.0))
        pasted.append(any(not torch.equal(*pair) for pair in zip(found, images, strict=True)))
    assert pasted == [True] * 4 + [False]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_short_run_is_resumed_and_reported(
    parts: SimpleNamespace, data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune = import_module("benchmarks.finetune")
    flags = ["--data", str(data_root), "--data-set", "mnist-coco", "--out", str(tmp_path), "--side", "64"]
    flags += ["--images", "10", "4", "--baseline-iterations", "2", "--evaluations", "1", "--baselines", "0"]
    flags += ["--seeds", "0"]
    finetune.main([*flags, "--arms", "none", "random", "--settings", "bad-masks", "--iterations", "2"])
    assert "random-baseline0-seed0 bad-masks" in capsys.readouterr().out
    both = ["--settings", "bad-masks", "unrelated", "--iterations", "2"]
    finetune.main([*flags, "--arms", "random", *both])
    again = capsys.readouterr().out
    assert "random-baseline0-seed0 bad-masks" not in again
    assert "random-baseline0-seed0 unrelated" in again
    looks = tuple(import_module("benchmarks._appearances").APPEARANCES)
    finetune.main([*flags, "--arms", "random", "--settings", *looks, "--iterations", "2"])
    finetune.main([*flags, "--arms", "agree@backgrounds", "--settings", "unrelated", "--iterations", "2"])
    content = json.loads((tmp_path / "summary.json").read_text())
    rows = {(row["settings"], row["arm"]): row for row in content["summary"]}
    # "none" is in all tables.
    assert len(rows) == 5 + 2 * len(looks)
    assert rows["unrelated", "agree@backgrounds"]["extra forwards"] > 0 == rows["unrelated", "random"]["extra forwards"]
    assert "## Settings: bad-masks" in (tmp_path / "summary.md").read_text()
    with pytest.raises(SystemExit, match="was run with"):
        finetune.main([*flags, "--arms", "critic", "--iterations", "3"])
    assert not list(tmp_path.rglob("critic*"))
