"""`terse-aug learn samples`, `learn branch` and `bank build generator`, from annotated samples to a bank."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_generator import SIDE, ToyGenerator

from terse_aug.bank import ForegroundBank
from terse_aug.cli import main
from terse_aug.generators import SampleKey, build_from_generator, read_annotated, remake
from terse_aug.generators.build import Filters, GeneratedSamples
from terse_aug.generators.samples import MASK_ENDING

TOY = "toy_generator:make_toy"
LEARN = ["--width", "16", "--heads", "3", "--steps", "50", "--learning-rate", "0.003"]


def draw_masks(folder: Path, count: int | None = None) -> list[Path]:
    """What the user does: a mask beside each image, or beside the first ones."""
    entries = json.loads((folder / "samples.json").read_text())["samples"]
    images = []
    for entry in entries[:count]:
        key = SampleKey(entry["label"], entry["number"], entry["seed"])
        images.append(folder / entry["file"])
        mask = Image.fromarray(ToyGenerator().mask(key).astype(np.uint8) * 255)
        mask.save(images[-1].with_name(images[-1].stem + MASK_ENDING))
    return images


def mask_of(image: Path) -> Path:
    return image.with_name(image.stem + MASK_ENDING)


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator") / "samples"
    assert main(["learn", "samples", "--generator", TOY, "--out", str(folder), "--count", "3"]) == 0
    draw_masks(folder)
    return folder


@pytest.fixture(scope="module")
def branch(annotated: Path) -> Path:
    out = annotated.parent / "branch.pt"
    assert main(["learn", "branch", "--samples", str(annotated), "--out", str(out), *LEARN]) == 0
    assert not list(annotated.parent.glob(".*"))
    return out


def test_samples_are_rendered_with_their_latents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples"
    arguments = ["--generator", TOY, "--category", "ball", "--numbers", "4", "2", "--seed", "3", "--truncation", "0.5"]
    assert main(["learn", "samples", "--out", str(out), *arguments]) == 0
    entries = json.loads((out / "samples.json").read_text())["samples"]
    assert [(own["class"], own["number"], own["seed"]) for own in entries] == [("ball", 2, 3), ("ball", 4, 3)]
    assert {own["truncation_method"] for own in entries} == {"scaled"}
    key = SampleKey(1, 2, 3)._replace(truncation=SampleKey(0, 0).truncation._replace(value=0.5))
    assert entries[0]["latent"] == ToyGenerator().latent(key).tolist()
    source = key.source("toy 01234567", "ball")
    assert (np.asarray(Image.open(out / entries[0]["file"])) == remake(ToyGenerator(), source)).all()
    capsys.readouterr()
    for more, message in (
        (["--out", str(out)], "not an empty folder"),
        (["--out", str(out / "b"), "--category", "cube"], "toy: expected one class 'cube', got 0; it has disk, ball"),
        (["--out", str(out / "b"), "--category", "2"], "expected one class '2'"),
        (["--out", str(out / "b"), "--truncation", "0"], "truncation"),
    ):
        assert main(["learn", "samples", "--generator", TOY, *more]) == 2
        assert message in capsys.readouterr().err


def test_annotations_that_cannot_be_used_are_named_with_the_reason(
    annotated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(annotated, folder)
    images = draw_masks(folder)
    Image.new("L", (SIDE, SIDE + 1)).save(mask_of(images[0]))
    Image.new("L", (SIDE, SIDE)).save(mask_of(images[1]))
    shutil.copy(images[3], images[2])
    mask_of(images[3]).unlink()
    found = read_annotated(folder, ToyGenerator())
    assert [sample.key.number for sample in found.samples] == [1, 2]
    assert found.without_mask == 1
    assert "another size, 32 x 33 px" in found.left_out[images[0].name]
    assert "empty" in found.left_out[images[1].name]
    assert "not what its latents render" in found.left_out[images[2].name]
    assert main(["learn", "branch", "--samples", str(folder), "--out", str(tmp_path / "b.pt"), *LEARN]) == 2
    printed = capsys.readouterr()
    assert all(f"left out: {name}: {reason}" in printed.out for name, reason in found.left_out.items())
    assert "at least 3 annotated samples, got 2" in printed.err
    with pytest.raises(ValueError, match="rendered by another generator"):
        read_annotated(folder, ToyGenerator(fingerprint="another"))
    (folder / "samples.json").write_text("{}")
    with pytest.raises(ValueError, match=r"samples\.json"):
        read_annotated(folder, ToyGenerator())


def test_dark_objects_on_white_are_objects(annotated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(annotated, folder)
    for image in draw_masks(folder):
        Image.fromarray(255 - np.asarray(Image.open(mask_of(image)))).save(mask_of(image))
    for sample in read_annotated(folder, ToyGenerator()).samples:
        assert (sample.mask == ToyGenerator().mask(sample.key)).all()


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
    assert set(sources(out)) == set(sorted(bright, key=lambda source: bright[source])[-4:])


def test_a_stopped_build_resumes_to_the_same_bank(branch: Path, tmp_path: Path) -> None:
    samples = GeneratedSamples(count=51)
    whole = build_from_generator(ToyGenerator(), branch, tmp_path / "whole.bank", samples=samples)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="run the same build again"):
        build_from_generator(ToyGenerator(), branch, tmp_path / "stopped.bank", samples=samples, progress=stop)
    resumed = build_from_generator(ToyGenerator(), branch, tmp_path / "stopped.bank", samples=samples)
    assert resumed.resumed == 2
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
    with pytest.raises(ValueError, match="count"):
        GeneratedSamples(count=0)
