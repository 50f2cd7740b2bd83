"""The AffNIST example: its data, and tiny runs of every arm."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from example_modules import importable, load_script, modules_of

from terse_aug.models import ClassifierAdapter

FOLDER = Path(__file__).parents[1] / "examples" / "affnist"


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported as its script sees them, and unloaded afterwards."""
    pytest.importorskip("matplotlib")
    with importable(FOLDER, "affnist", "affnist_run"):
        run = load_script(FOLDER / "run.py", "affnist_run")
        names = ("arms", "composites", "data", "live", "lockstep", "models", "report")
        yield modules_of("affnist", *names, run=run, main=run.main)


@pytest.fixture(scope="module")
def mnist(data_root):
    return data_root / "mnist"


@pytest.fixture(scope="module")
def digits(example, mnist):
    return example.data.read_mnist(mnist, "t10k").part(slice(0, 400))


@pytest.fixture(scope="module")
def bank(example, digits, tmp_path_factory):
    return example.data.digit_bank(digits, tmp_path_factory.mktemp("bank") / "digits.bank")


@pytest.fixture(scope="module")
def training(example, digits, bank):
    """Digits, bank, test set and ranges, as the two functions that train take them."""
    ranges = example.data.AffineRanges()
    return digits, bank, example.data.affnist(digits, ranges, 0), ranges


def write_idx(path, array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(head + array.tobytes())


# --- data -----------------------------------------------------------------------------------------------------------


def test_plain_and_compressed_idx_files_are_read(example, tmp_path):
    images = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "labels", np.array([5, 0, 9], np.uint8))
    with gzip.open(tmp_path / "train-labels-idx1-ubyte.gz", "wb") as file:
        file.write((tmp_path / "labels").read_bytes())
    read = example.data.read_mnist(tmp_path, "train")
    assert np.array_equal(read.images.numpy(), images)
    assert read.labels.tolist() == [5, 0, 9]


def test_missing_broken_and_unequal_files_are_refused(example, tmp_path):
    with pytest.raises(ValueError, match=r"expected train-images-idx3-ubyte or train-images-idx3-ubyte\.gz"):
        example.data.read_mnist(tmp_path, "train")
    images = np.zeros((3, 28, 28), np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(2, np.uint8))
    with pytest.raises(ValueError, match="3 images, but 2 labels"):
        example.data.read_mnist(tmp_path, "train")
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is not an idx file of bytes, or it is truncated"):
        example.data.read_mnist(tmp_path, "train")


def test_affnist_is_a_function_of_its_seed_and_keeps_the_ink(example, digits):
    ranges = example.data.AffineRanges()
    first, labels = example.data.affnist(digits, ranges, seed=0)
    second, _ = example.data.affnist(digits, ranges, seed=0)
    other, _ = example.data.affnist(digits, ranges, seed=1)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(labels, digits.labels)
    assert first.shape == (400, 1, 40, 40)
    ink, before = first.sum((1, 2, 3)), digits.padded().sum((1, 2, 3))
    # The determinant of the map is that of the two scales, 0.64 to 1.44; nothing is cut off.
    assert float((ink / before).min()) > 0.58
    assert float((ink / before).max()) < 1.55
    assert float((ink / before).mean()) == pytest.approx(1.0, abs=0.05)


def test_digits_are_centered_on_average(example, digits):
    images, _ = example.data.affnist(digits, example.data.AffineRanges(), seed=0)
    mean = images.mean((0, 1))
    at = torch.arange(40) + 0.5
    assert float((mean.sum(0) * at).sum() / mean.sum()) == pytest.approx(20, abs=0.7)
    assert float((mean.sum(1) * at).sum() / mean.sum()) == pytest.approx(20, abs=0.7)


def test_pasting_a_digit_gives_the_transformed_digit(example, digits, bank):
    """Same spread of ink, as a whole, from the pasted digits as from the test set's own transform."""
    model = ClassifierAdapter(example.models.SmallNet(), 10)
    terse = example.arms.make_terse(example.arms.LIVE["random"], bank, model, example.data.AffineRanges(), seed=0)
    composites, classes, targets = example.live._composites(terse, 1500)
    several = example.data.Digits(digits.images.repeat(4, 1, 1), digits.labels.repeat(4))
    images, _ = example.data.affnist(several, example.data.AffineRanges(), seed=0)
    assert all(len(target["labels"]) == 1 for target in targets)
    assert set(classes.tolist()) == set(range(10))
    # The digits are drawn with replacement, and pasting spaces its scales logarithmically: 3 % less area on average.
    assert float(composites.sum((1, 2, 3)).mean()) == pytest.approx(float(images.sum((1, 2, 3)).mean()), rel=0.1)
    assert float((composites.amax((1, 2, 3)) > 0.8).float().mean()) > 0.98
    difference = (composites.mean((0, 1)) - images.mean((0, 1))).abs().mean() / images.mean()
    assert float(difference) < 0.2
    assert spread_of_centres(composites) == pytest.approx(spread_of_centres(images), rel=0.03)
    assert at_the_border(composites) == pytest.approx(at_the_border(images), abs=0.01)


def spread_of_centres(images):
    """Standard deviation of the ink's centre, pixels, across and down."""
    at, ink = torch.arange(40) + 0.5, images.sum((1, 2, 3))
    across, down = (images.sum((1, 2)) @ at) / ink, (images.sum((1, 3)) @ at) / ink
    return [float(across.std()), float(down.std())]


def at_the_border(images):
    """Fraction of the images with much ink in their outermost pixels: hardly any, or digits are cut off."""
    ends = (images[:, 0, 0], images[:, 0, -1], images[:, 0, :, 0], images[:, 0, :, -1])
    return float((torch.cat(ends, 1).sum(1) > 2).float().mean())


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["mnist", "random", "best-of-n", "adversarial", "critic", "critic-foregrounds"])
def test_every_arm_trains_and_repeats_itself(example, training, arm):
    schedule = example.live.Schedule(iterations=6, evaluate_every=3, batch_size=8)
    first, second = (
        example.live.train_live(example.arms.LIVE[arm], "small", *training, schedule, seed=1) for _ in range(2)
    )
    assert [evaluation["images"] for evaluation in first["evaluations"]] == [24, 48]
    assert first["evaluations"] == second["evaluations"]
    if arm == "mnist":
        assert "metrics" not in first
        return
    assert first["metrics"] == second["metrics"]
    assert first["metrics"]["objects_labelled"] == 6 * 8
    assert first["metrics"]["updates"] == (6 if "adversarial" in arm or "critic" in arm else 0)
    assert first["metrics"]["extra_forwards"] == (6 * 8 * 4 if arm == "best-of-n" else 0)
    assert sum(first["hardness histogram"]) == pytest.approx(1)


def test_the_learning_rate_falls_to_nothing_if_it_is_to(example, training, monkeypatch):
    used = []

    class Noted(torch.optim.SGD):
        def step(self):
            used.append(self.param_groups[0]["lr"])
            return super().step()

    monkeypatch.setattr(example.live.torch.optim, "SGD", Noted)
    for decay in (False, True):
        schedule = example.live.Schedule(iterations=4, evaluate_every=4, batch_size=8, learning_rate=0.1, decay=decay)
        example.live.train_live(example.arms.LIVE["random"], "small", *training, schedule, 0)
    assert used[:4] == [0.1] * 4
    assert used[4:] == pytest.approx([0.1, 0.0854, 0.05, 0.0146], abs=1e-4)


def test_evaluations_are_those_of_the_averaged_weights(example, training, tmp_path, monkeypatch):
    measured = []

    def updates(model):
        return model.n_averaged.item() if hasattr(model, "n_averaged") else "last"

    for module in (example.live, example.lockstep):
        monkeypatch.setattr(module, "accuracy", lambda model, *test: measured.append(updates(model)) or 0.0)
    arm = example.arms.LOCKSTEP["random"]
    live = example.live.Schedule(iterations=4, evaluate_every=2, batch_size=8)
    example.live.train_live(arm, "small", *training, live, 0)
    rounds = example.lockstep.LockStepSchedule(rounds=2, wanted=10, warm_up=5, iterations=3, batch_size=8)
    example.lockstep.train_in_lock_step(arm, "small", *training, rounds, 0, tmp_path / "run")
    assert measured == [2, 4, 8, "last", 11, "last"]


@pytest.mark.parametrize(("updates", "lag"), [(20, 2.1), (200, 20), (3000, 99)])
def test_averaged_weights_lag_by_a_tenth_of_the_updates_and_at_most_a_hundred(example, updates, lag):
    model = torch.nn.BatchNorm1d(1)
    average = example.models.averaged(model)
    for number in range(updates):
        with torch.no_grad():  # they travel by one at each update
            model.bias.fill_(number)
            model.running_mean.fill_(number)
        average.update_parameters(model)
    assert average.module.bias.item() == pytest.approx(updates - 1 - lag, abs=0.15 * lag)
    assert average.module.running_mean.item() == pytest.approx(average.module.bias.item())
    assert average.module.num_batches_tracked == 0


LOCKSTEP = ["mnist", "random", "random-filtered", "paper", "adversarial", "critic", "critic-foregrounds"]


@pytest.mark.parametrize("arm", LOCKSTEP)
def test_every_arm_trains_in_lock_step(example, training, tmp_path, monkeypatch, arm):
    monkeypatch.setattr(example.composites, "BATCHES", 2)
    schedule = example.lockstep.LockStepSchedule(
        rounds=2, wanted=20, budget=400, warm_up=60, iterations=3, batch_size=8
    )
    run = example.lockstep.train_in_lock_step(
        example.arms.LOCKSTEP[arm], "small", *training, schedule, 0, tmp_path / "run"
    )
    assert list(example.arms.LOCKSTEP) == LOCKSTEP
    assert [evaluation["images wanted"] for evaluation in run["evaluations"]] == [20, 40]
    assert [evaluation["images"] for evaluation in run["evaluations"]] == ([0, 0] if arm == "mnist" else [20, 40])
    if arm == "mnist":
        assert "mining" not in run
        return
    assert [report["found"] for report in run["mining"]] == [dict.fromkeys(range(10), 2)] * 2
    for report in run["mining"]:
        assert report["yield per forward"] == pytest.approx(20 / report["model_forwards"])
        assert report["model_forwards"] == (2 if arm in ("adversarial", "paper") else 1) * report["seen"]
    assert 0 < run["neighbour distance of mined images"] < 0.3
    assert run["std ratio within a class"] == pytest.approx(1 if arm != "paper" else 0, abs=0.25)


def test_the_yield_is_that_of_mining_against_a_good_classifier(example):
    mining = [{"found": {0: 5}, "model_forwards": forwards} for forwards in (5, 10, 20, 50)]
    evaluations = [{"accuracy": 90.0, "accuracy of last weights": accuracy} for accuracy in (80.0, 86.0, 84.0, 90.0)]
    assert example.report.mining_yield({"mining": mining, "evaluations": evaluations}) == pytest.approx(5 / 20)
    assert np.isnan(example.report.mining_yield({"mining": mining[:2], "evaluations": evaluations[:2]}))


@pytest.mark.parametrize("name", ["small", "table1"])
def test_the_networks_give_ten_logits(example, name):
    logits = example.models.NETWORKS[name]()(torch.rand(2, 3, 40, 40))
    assert logits.shape == (2, 10)


@pytest.fixture
def small(example, mnist, tmp_path):
    """MNIST with 200 digits to train on beside those left out, and 100 to test on."""
    whole = example.data.read_mnist(mnist, "train").part(slice(0, 5200))
    folder = tmp_path / "mnist"
    folder.mkdir()
    for part, digits in (("train", whole), ("t10k", whole.part(slice(0, 100)))):
        write_idx(folder / f"{part}-images-idx3-ubyte", digits.images.numpy())
        write_idx(folder / f"{part}-labels-idx1-ubyte", digits.labels.numpy().astype(np.uint8))
    return folder


def test_settings_are_chosen_on_the_training_digits_that_are_left_out(example, small, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        example.run, "train_live", lambda *args: seen.append(args) or {"evaluations": [{"accuracy": 1.0}]}
    )
    monkeypatch.setattr(example.report, "draw", lambda *args: None)
    monkeypatch.setattr(example.report, "print_table", lambda *args: None)
    flags = ["--mnist", str(small), "--arms", "critic", "mnist", "--settings", '{"target_hardness": 0.5}']
    for part in ("test", "validation"):
        example.main([*flags, "--out", str(tmp_path / part), "--measure", part])
    whole = example.data.read_mnist(small, "train")
    for (arm, _, digits, _, (_, labels), *_), (policy, part) in zip(
        seen, [(0.5, "test"), (None, "test"), (0.5, "validation"), (None, "validation")], strict=True
    ):
        assert (None if arm.policy is None else arm.policy.target_hardness) == policy
        assert torch.equal(digits.labels, whole.labels[:200])
        assert torch.equal(labels, whole.labels[200:] if part == "validation" else whole.labels[:100])
    with pytest.raises(SystemExit, match=r"'measured on': 'test', .*, not .*'measured on': 'validation'"):
        example.main([*flags, "--out", str(tmp_path / "test"), "--measure", "validation"])
    with pytest.raises(SystemExit):
        example.main([*flags, "--out", str(tmp_path / "test"), "--settings", "[]"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--mode lockstep --decay", "are flags of --mode live"),
        ("--mode lockstep --learning-rate 0.1", "are flags of --mode live"),
        ("--iterations 3", "--iterations: expected a multiple of --evaluate-every 400, got 3"),
        ("--iterations 0", "--iterations, --evaluate-every: expected at least 1"),
        ("--mode lockstep --wanted 9", "--wanted: expected a multiple of 10, the same number of each class, got 9"),
        ("--mode lockstep --wanted 0", "--wanted: expected a multiple of 10"),
        ('--settings {"depth":3}', "none of the policies has 'depth'"),
        ("--arms paper", "live has mnist, random, best-of-n, adversarial, critic, critic-foregrounds, not paper"),
    ],
)
def test_flags_that_make_no_sense_are_refused(example, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        example.main(f"--mnist {tmp_path} --out {tmp_path}/out {flags}".split())
    assert message in capsys.readouterr().err


def test_digits_of_another_folder_have_a_bank_of_their_own(example, small, tmp_path):
    flags = ["--out", str(tmp_path / "out"), "--iterations", "2", "--evaluate-every", "2"]
    example.main([*flags, "--mnist", str(small), "--arms", "random"])
    other = tmp_path / "other"
    shutil.copytree(small, other)
    example.main([*flags, "--mnist", str(other), "--arms", "mnist"])
    assert len(list((tmp_path / "out").glob("digits-*.bank"))) == 2


def test_the_script_writes_table_and_chart_and_resumes(example, small, tmp_path, capsys):
    flags = ["--mnist", str(small), "--out", str(tmp_path / "out"), "--iterations", "4", "--evaluate-every", "2"]
    example.main([*flags, "--arms", "random", "critic", "--seeds", "0"])
    assert "random, seed 0" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["arm"] for run in results["runs"]] == ["random", "critic"]
    assert results["test set"]["rotation"] == 20
    assert (tmp_path / "out" / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    example.main([*flags, "--arms", "random", "critic", "--seeds", "0"])
    assert "seed 0:" not in capsys.readouterr().out
    short = ["--mnist", str(small), "--out", str(tmp_path / "out"), "--mode", "lockstep", "--iterations", "2"]
    short += ["--warm-up", "80"]
    example.main([*short, "--rounds", "2", "--wanted", "10", "--arms", "critic", "mnist"])
    assert "critic, seed 0" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("lockstep-*-seed0"))
    begun = tmp_path / "out" / "lockstep-small-random-seed0"
    begun.mkdir()
    (begun / "settings.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"random-seed0 was started with \{\}, not .*; choose another --out"):
        example.main([*short, "--rounds", "2", "--wanted", "10", "--arms", "random"])
    with pytest.raises(SystemExit, match=r"'test seed': 0, .*, not .*'test seed': 5, .*; choose another --out"):
        example.main([*flags, "--arms", "random", "--test-seed", "5"])
    with pytest.raises(SystemExit, match=r"'target_hardness': 0\.7.*'target_hardness': 0\.5"):
        example.main([*flags, "--arms", "critic", "--settings", '{"target_hardness": 0.5}'])
