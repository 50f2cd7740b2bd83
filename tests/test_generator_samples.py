"""`terse-aug learn samples`, and what is read of its folder after a person has annotated it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_generator import SIDE, TOY, ToyGenerator, draw_masks, mask_of

from terse_aug.cli import main
from terse_aug.generators import Rendered, SampleKey, Truncation, draw_noise, read_annotated, remake, write_samples


@pytest.fixture(scope="module")
def annotated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generator") / "samples"
    assert main(["learn", "samples", "--generator", TOY, "--out", str(folder), "--count", "3"]) == 0
    draw_masks(folder)
    return folder


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
        (["--out", str(out / "b"), "--seed", "-1"], "seed from 0 on"),
        (["--out", str(out / "b"), "--numbers", "-1"], "numbers from 0 on"),
    ):
        assert main(["learn", "samples", "--generator", TOY, *more]) == 2
        assert message in capsys.readouterr().err
    assert not (out / "b").exists()


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
    arguments = ["--samples", str(folder), "--generator", TOY, "--out", str(tmp_path / "b.pt")]
    assert main(["learn", "branch", *arguments]) == 2
    printed = capsys.readouterr()
    assert all(f"left out: {name}: {reason}" in printed.out for name, reason in found.left_out.items())
    assert "at least 3 annotated samples, got 2" in printed.err
    with pytest.raises(ValueError, match="rendered by another generator"):
        read_annotated(folder, ToyGenerator(fingerprint="another"))
    (folder / "samples.json").write_text("{}")
    with pytest.raises(ValueError, match=r"samples\.json"):
        read_annotated(folder, ToyGenerator())


def test_white_is_the_object_even_if_it_fills_most_of_the_image(annotated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(annotated, folder)
    images = draw_masks(folder)
    for image in images:
        Image.fromarray(255 - np.asarray(Image.open(mask_of(image)))).save(mask_of(image))
    Image.new("L", (SIDE, SIDE), 255).save(mask_of(images[0]))
    found = read_annotated(folder, ToyGenerator())
    assert list(found.left_out) == [images[0].name]
    assert "fills the image" in found.left_out[images[0].name]
    assert len(found.samples) == 5
    for sample in found.samples:
        assert (sample.mask == ~ToyGenerator().mask(sample.key)).all()


class SmallObjects(ToyGenerator):
    """Samples of a class differ by the place of a square of 3 px alone."""

    def latent(self, key: SampleKey) -> torch.Tensor:
        return torch.full((9,), key.number / 10)

    def render(self, latents: torch.Tensor, labels: torch.Tensor, truncation: Truncation) -> Rendered:
        made = super().render(torch.zeros_like(latents), labels, truncation)
        left = round(10 * latents[0, 0].item())
        square = made.images[:, :, 20:23, left : left + 3]
        square.add_(torch.where(square < 0.5, 0.4, -0.4))
        return made


def test_images_swapped_between_samples_that_differ_in_a_small_object_are_left_out(tmp_path: Path) -> None:
    generator, folder = SmallObjects(), tmp_path / "samples"
    write_samples(generator, TOY, [SampleKey(0, number) for number in (2, 12, 22)], folder)
    first, second, _ = draw_masks(folder)
    pixels = [np.asarray(Image.open(image)).astype(int) for image in (first, second)]
    assert np.abs(pixels[0] - pixels[1]).mean() < 2
    first.rename(tmp_path / "first.png")
    second.rename(first)
    (tmp_path / "first.png").rename(second)
    found = read_annotated(folder, generator)
    assert set(found.left_out) == {first.name, second.name}
    assert all("not what its latents render" in reason for reason in found.left_out.values())
    assert [sample.key.number for sample in found.samples] == [22]


def test_samples_of_a_number_or_seed_below_0_are_left_out(annotated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(annotated, folder)
    content = json.loads((folder / "samples.json").read_text())
    content["samples"][0]["number"] = content["samples"][1]["seed"] = -1
    (folder / "samples.json").write_text(json.dumps(content))
    found = read_annotated(folder, ToyGenerator())
    assert list(found.left_out) == [own["file"] for own in content["samples"][:2]]
    assert all("from 0 on" in reason for reason in found.left_out.values())


class TypedLatents(ToyGenerator):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def latent(self, key: SampleKey) -> torch.Tensor:
        return (100 * draw_noise(key, 9).double()).to(self.dtype)

    def render(self, latents: torch.Tensor, labels: torch.Tensor, truncation: Truncation) -> Rendered:
        assert latents.dtype == self.dtype
        return super().render(latents.float() / 100, labels, truncation)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_latents_keep_type_and_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    generator = TypedLatents(dtype)
    keys = [SampleKey(own, 3) for own in (1, 0)]
    write_samples(generator, TOY, keys, tmp_path / "samples")
    draw_masks(tmp_path / "samples")
    found = read_annotated(tmp_path / "samples", generator)
    assert [sample.key for sample in found.samples] == keys
    for sample in found.samples:
        expected = generator.latent(sample.key)
        assert sample.latent.dtype == dtype
        assert torch.equal(sample.latent, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64])
def test_latents_that_cannot_be_recorded_are_refused_before_anything_is_written(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"toy: expected latents of .*, got {dtype}"):
        write_samples(TypedLatents(dtype), TOY, [SampleKey(0, 0)], tmp_path / "samples")
    assert not (tmp_path / "samples").exists()


def test_code_that_only_the_samples_name_is_not_imported(
    annotated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(annotated, tmp_path / "samples")
    (tmp_path / "code_of_samples.py").write_text("open('imported', 'w').close()\ndef make(): open('called', 'w')\n")
    content = json.loads((tmp_path / "samples" / "samples.json").read_text())
    monkeypatch.chdir(tmp_path)
    for named in ("code_of_samples:make", "code_of_samples", "layered", ""):
        recorded = content | {"generator": named}
        (tmp_path / "samples" / "samples.json").write_text(json.dumps(recorded))
        assert main(["learn", "branch", "--samples", "samples", "--out", "branch.pt"]) == 2
        assert "generator" in capsys.readouterr().err
    assert "code_of_samples" not in sys.modules
    assert sorted(own.name for own in tmp_path.iterdir()) == ["code_of_samples.py", "samples"]


def test_classes_that_are_called_by_numbers_keep_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "numerals.py").write_text(
        "from toy_generator import ToyGenerator\ndef make(): return ToyGenerator(class_names=('1', '0'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for arguments, expected in (
        ([], [("1", 0), ("0", 1)]),
        (["--category", "0"], [("0", 1)]),
        (["--category", "0", "1"], [("0", 1), ("1", 0)]),
    ):
        out = tmp_path / f"samples{len(arguments)}"
        more = ["--generator", "numerals:make", "--out", str(out), "--count", "1"]
        assert main(["learn", "samples", *more, *arguments]) == 0
        entries = json.loads((out / "samples.json").read_text())["samples"]
        assert [(own["class"], own["label"]) for own in entries] == expected


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_a_mask_with_a_palette_is_read_by_its_colors(annotated: Path, tmp_path: Path, order: tuple[int, ...]) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(annotated, folder)
    expected = [sample.mask for sample in read_annotated(folder, ToyGenerator()).samples]
    for path in folder.glob("*_mask.png"):
        colors = np.where(np.asarray(Image.open(path).convert("L")) > 0, 2, 0)  # black, red, white
        colors[colors > 0] -= np.arange((colors > 0).sum()) % 2
        palette = Image.fromarray(np.argsort(order)[colors].astype(np.uint8), "P")
        palette.putpalette([level for own in order for level in ((0, 0, 0), (255, 0, 0), (255, 255, 255))[own]])
        palette.save(path)
    found = [sample.mask for sample in read_annotated(folder, ToyGenerator()).samples]
    assert len(found) == len(expected) > 0
    assert all(map(np.array_equal, found, expected))
