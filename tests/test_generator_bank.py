"""`terse-aug learn branch` and `bank build generator`, from annotated samples to a bank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_generator import SIDE, TOY, ToyGenerator, annotated_samples, draw_masks

from terse_aug.bank import ForegroundBank
from terse_aug.cli import main
from terse_aug.generators import (
    BranchSettings,
    Filters,
    GeneratedSamples,
    SampleKey,
    build_from_generator,
    learn_branch,
    remake,
)
from terse_aug.generators.build import Classifier

LEARN = ["--width", "16", "--heads", "3", "--steps", "50", "--learning-rate", "0.003"]


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator") / "samples"
    assert main(["learn", "samples", "--generator", TOY, "--out", str(folder), "--count", "3"]) == 0
    draw_masks(folder)
    return folder


@pytest.fixture(scope="module")
def branch(annotated: Path) -> Path:
    out = annotated.parent / "branch.pt"
    assert main(["learn", "branch", "--samples", str(annotated), "--generator", TOY, "--out", str(out), *LEARN]) == 0
    assert not list(annotated.parent.glob(".*"))
    return out


def test_a_bank_from_a_generator(branch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy.bank"
    arguments = ["bank", "build", "generator", "--generator", TOY, "--branch", str(branch), "--out", str(out)]
    more = ["--count", "20", "--first", "100", "--min-area", "20", "--min-region", "5"]
    assert main([*arguments, *more]) == 0
    assert "4  among the samples that the heads disagree most about (drop)" in capsys.readouterr().out
    generator = ToyGenerator()
    with ForegroundBank.open(out) as bank:
        assert bank.categories == {1: "disk", 2: "ball"}
        assert len(bank) == 36
        built = bank.info()["built"]
        assert (built["generator"], built["generator_fingerprint"]) == (TOY, generator.fingerprint)
        overlaps = []
        for number in range(len(bank)):
            foreground = bank[number]
            key = SampleKey.from_source(foreground.source)
            assert foreground.source == key.source("toy 01234567", bank.categories[foreground.label])
            image, true = remake(generator, foreground.source), generator.mask(key)
            assert key.label == foreground.label - 1
            height, width = foreground.rgba.shape[:2]
            left = round(foreground.center[0] * SIDE - width / 2)
            top = round(foreground.center[1] * SIDE - height / 2)
            solid = foreground.rgba[..., 3] >= 128
            assert (image[top : top + height, left : left + width][solid] == foreground.rgba[solid][:, :3]).all()
            found = np.zeros((SIDE, SIDE), bool)
            found[top : top + height, left : left + width] = solid
            overlaps.append((found & true).sum() / (found | true).sum())
        assert np.mean(overlaps) > 0.9
    with pytest.raises(ValueError, match="another generator"):
        remake(ToyGenerator(fingerprint="another"), foreground.source)


def sources(bank: Path) -> list[str]:
    with ForegroundBank.open(bank) as opened:
        return [opened[number].source for number in range(len(opened))]


def test_a_classifier_rejects_the_least_probable(branch: Path, tmp_path: Path) -> None:
    generator, out = ToyGenerator(), tmp_path / "toy.bank"
    samples = GeneratedSamples(categories=["ball"], names=["marble"], count=10)
    filters = Filters(drop=0, keep=0.4, min_region=5)
    judge = "toy_generator:brightness"
    report = build_from_generator(TOY, branch, out, samples=samples, filters=filters, classifier=judge)
    assert report.kept == {"marble": 4}
    bright = {}
    for number in range(10):
        source = SampleKey(1, number).source("toy 01234567", "ball")
        bright[source] = remake(generator, source).mean()
    by_brightness = sorted(bright, key=lambda source: bright[source])
    assert set(sources(out)) == set(by_brightness[-4:])
    few = replace(filters, keep=0.01)
    build_from_generator(TOY, branch, out, samples=samples, filters=few, classifier=judge, overwrite=True)
    assert sources(out) == by_brightness[-1:]  # never none


def no_number(image: np.ndarray, label: int) -> float:
    return float("nan")


def broken(image: np.ndarray, label: int) -> float:
    raise KeyError("weights")


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (no_number, "classifier: expected a finite number, got nan for class 0, number 0"),
        (broken, "classifier: KeyError: 'weights'"),
    ],
)
def test_a_classifier_without_a_number_is_refused(
    branch: Path, tmp_path: Path, judge: Classifier, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build_from_generator(TOY, branch, tmp_path / "toy.bank", filters=Filters(keep=0.5), classifier=judge)


@pytest.mark.parametrize("class_names", [("disk", "ball"), ("1", "0")])
def test_classes_have_the_names_that_are_given_in_their_order(
    branch: Path, tmp_path: Path, class_names: tuple[str, str]
) -> None:
    generator, out = ToyGenerator(class_names), tmp_path / "toy.bank"
    few = {"count": 4, "seed": 1}
    for samples, expected in (
        (GeneratedSamples(class_names[::-1], ["B", "A"], **few), {"B": 1, "A": 0}),
        (GeneratedSamples(class_names[::-1], **few), {class_names[1]: 1, class_names[0]: 0}),
        (GeneratedSamples(class_names[1:], **few), {class_names[1]: 1}),
        (GeneratedSamples(**few), {class_names[0]: 0, class_names[1]: 1}),
    ):
        build_from_generator(generator, branch, out, samples=samples, filters=Filters(min_region=5), overwrite=True)
        with ForegroundBank.open(out) as bank:
            assert list(bank.categories.values()) == list(expected)
            found = {(bank.categories[own.label], SampleKey.from_source(own.source).label) for own in bank}
            assert found == set(expected.items())


def test_a_stopped_build_resumes_to_the_same_bank(branch: Path, tmp_path: Path) -> None:
    samples = GeneratedSamples(count=51)
    steps: list[tuple[int, int]] = []
    options = {"samples": samples, "progress": lambda *at: steps.append(at)}
    whole = build_from_generator(ToyGenerator(), branch, tmp_path / "whole.bank", **options)
    assert sorted(set(steps)) == [(26, 102), (51, 102), (77, 102), (102, 102)]
    assert whole.images == 102

    def stop(done: int, total: int) -> None:
        if done == 77:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"2 of 4 groups of at most 50 samples .* run the same build again"):
        build_from_generator(ToyGenerator(), branch, tmp_path / "stopped.bank", samples=samples, progress=stop)
    resumed = build_from_generator(ToyGenerator(), branch, tmp_path / "stopped.bank", samples=samples)
    assert (resumed.resumed, resumed.images) == (51, 102)
    assert resumed.kept == whole.kept
    fingerprints = set()
    for name in ("whole", "stopped"):
        with ForegroundBank.open(tmp_path / f"{name}.bank") as bank:
            fingerprints.add(bank.info()["fingerprint"])
    assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filters": Filters(keep=0.5)}, "classifier and keep"),
        ({"samples": GeneratedSamples(categories=["cube"])}, "expected one class 'cube'"),
        ({"samples": GeneratedSamples(names=["a"])}, "names: expected 2"),
        ({"generator": ToyGenerator(fingerprint="another")}, r"branch\.pt was learned from another generator"),
        ({"image_list": ["a.png"]}, "image_list"),
        ({"rejected_sheet": "rejected.png"}, "rejected_sheet"),
    ],
)
def test_what_a_build_cannot_do_is_refused(
    branch: Path, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    arguments = {"generator": TOY, "branch": branch} | change
    with pytest.raises(ValueError, match=message):
        build_from_generator(out=tmp_path / "toy.bank", **arguments)
    with pytest.raises(ValueError, match="drop"):
        Filters(drop=1)
    for wrong in ({"count": 0}, {"first": -1}, {"seed": -1}):
        with pytest.raises(ValueError, match="count of at least 1, first and seed of at least 0"):
            GeneratedSamples(**wrong)


def test_one_head_cannot_disagree_with_others(branch: Path, tmp_path: Path) -> None:
    generator, out = ToyGenerator(), tmp_path / "toy.bank"
    one = learn_branch(generator, annotated_samples(generator), BranchSettings(width=16, heads=1, steps=30))
    with pytest.raises(ValueError, match="drop: the branch has one head"):
        build_from_generator(generator, one, out, filters=Filters(drop=0.1))
    build_from_generator(generator, one, out, samples=GeneratedSamples(count=5), filters=Filters(0, min_region=5))
    assert len(sources(out)) == 10


@pytest.mark.parametrize("flag", [["--max-image-pixels", "9"], ["--rejected-sheet", "a.png"], ["--image-list", "a"]])
def test_flags_of_images_in_files_are_unknown(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--generator", TOY, "--branch", "branch.pt", "--out", "toy.bank"]
    assert main(["bank", "build", "generator", *arguments, *flag]) == 2
    assert f"unrecognized arguments: {' '.join(flag)}" in capsys.readouterr().err


def test_two_processes_build_the_same_bank(branch: Path, tmp_path: Path) -> None:
    fingerprints = set()
    for jobs in (1, 2):
        out, samples = tmp_path / f"{jobs}.bank", GeneratedSamples(count=5)
        build_from_generator(TOY, branch, out, samples=samples, filters=Filters(0.3, min_region=5), jobs=jobs)
        with ForegroundBank.open(out) as bank:
            fingerprints.add(bank.info()["fingerprint"])
    assert len(fingerprints) == 1
