"""Runs of learning to cut out: resume, what they write, the commands, and bad input."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from discovery_samples import OFTEN, TINY, disks, save_images
from PIL import Image

from terse_aug.cli import main
from terse_aug.discovery import Cutter, DiscoverySettings
from terse_aug.discovery.agreement import agreement, masked_images
from terse_aug.discovery.data import MIN_IMAGES, random_crops, read_photographs
from terse_aug.discovery.learn import learn_cutter
from terse_aug.discovery.run_folder import CHECKPOINT, CUTTER, METRICS, RunFolder
from terse_aug.discovery.training import DiscoveryTraining
from terse_aug.utils.random import generator_for

pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("tensorboard")
FLAGS = [
    part
    for name, value in TINY.plain().items()
    for part in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value]))
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("photographs"), disks(MIN_IMAGES))


@pytest.fixture(scope="module")
def finished(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was not interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    learn_cutter(photographs, TINY, out=folder, intervals=OFTEN)
    return folder


def interrupted_after(steps: int) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if what == "learning to cut out" and done == steps:
            raise KeyboardInterrupt

    return progress


# Within the generator's steps of the first round, within those of the segmentation network, within the second round.
@pytest.mark.parametrize("steps", [2, 4, 7])
def test_a_run_resumes_to_the_bit(steps: int, photographs: Path, finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        learn_cutter(photographs, TINY, out=folder, intervals=OFTEN, progress=interrupted_after(steps))
    torch.rand(3)  # the global random state is another one in the process that resumes
    cutter = learn_cutter(photographs, TINY, out=folder, intervals=OFTEN)
    assert cutter.fingerprint == Cutter.load(finished / CUTTER).fingerprint
    states = [torch.load(own / CHECKPOINT, weights_only=True)["state"] for own in (folder, finished)]
    first, second = (dict(_tensors(state)) for state in states)
    assert first.keys() == second.keys()
    assert len(first) > 100
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert (folder / METRICS).read_text() == (finished / METRICS).read_text()


def _tensors(value: object, name: str = "") -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, own in parts for found in _tensors(own, f"{name}.{key}")]


def test_metrics_written_after_the_last_checkpoint_are_replaced(photographs: Path, tmp_path: Path) -> None:
    folder, rarely = tmp_path / "run", dataclasses.replace(OFTEN, checkpoint=3)
    with pytest.raises(KeyboardInterrupt):
        learn_cutter(photographs, TINY, out=folder, intervals=rarely, progress=interrupted_after(5))
    learn_cutter(photographs, TINY, out=folder, intervals=rarely)
    assert [line["step"] for line in RunFolder(folder).metrics()] == list(range(1, 11))


def test_another_seed_gives_another_cutter(photographs: Path, finished: Path, tmp_path: Path) -> None:
    other = learn_cutter(photographs, TINY, out=tmp_path / "run", intervals=OFTEN, seed=1)
    assert other.fingerprint != Cutter.load(finished / CUTTER).fingerprint


def test_a_run_that_is_complete_is_not_trained_again(photographs: Path, finished: Path) -> None:
    before = (finished / METRICS).read_text()
    assert learn_cutter(photographs, TINY, out=finished).fingerprint == Cutter.load(finished / CUTTER).fingerprint
    assert (finished / METRICS).read_text() == before


def test_from_the_second_round_on_backgrounds_are_segmented(finished: Path) -> None:
    by_step = {line["step"]: line for line in RunFolder(finished).metrics()}
    assert "background" not in by_step[3]
    assert "background" in by_step[6]
    assert "segmenter" in by_step[4]


def test_the_segmentation_network_learns_from_layers_alone() -> None:
    """Of a generator that never trained, its masks can still be found: they are where the colors of a layer are."""
    settings = dataclasses.replace(TINY, generator_steps=1, segmenter_steps=40, segmenter_width=8, rounds=1, batch=16)
    images = torch.from_numpy(np.stack(disks(MIN_IMAGES))).permute(0, 3, 1, 2)
    training = DiscoveryTraining(images, settings)
    losses = [training.step().get("segmenter", 1.0) for _ in range(settings.total_steps)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[1:6])
    assert training.chosen_iou > 0


@pytest.mark.parametrize(
    ("settings", "seed", "what"),
    [(dataclasses.replace(TINY, gamma_mi=2.0), 0, "gamma_mi was 1"), (TINY, 1, "seed was 0, not 1")],
)
def test_a_checkpoint_of_another_run_is_refused(
    settings: DiscoverySettings, seed: int, what: str, photographs: Path, finished: Path
) -> None:
    with pytest.raises(ValueError, match=rf"{CHECKPOINT}.*{what}.*new folder"):
        learn_cutter(photographs, settings, out=finished, seed=seed)


def test_a_checkpoint_of_other_photographs_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match="images was"):
        learn_cutter(disks(MIN_IMAGES, seed=3), TINY, out=finished)


def test_a_checkpoint_that_is_no_checkpoint_is_refused(photographs: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / CUTTER, tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=rf"{CHECKPOINT}: expected a terse-aug cutter checkpoint file"):
        learn_cutter(photographs, TINY, out=tmp_path)


def test_damaged_and_tiny_photographs_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photographs", disks(MIN_IMAGES))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a photograph")
    Image.new("RGB", (5, 300)).save(folder / "line.png")
    (folder / "notes.txt").write_text("no image")
    found = read_photographs(folder, 16)
    assert found.images.shape == (MIN_IMAGES, 3, 20, 20)
    assert found.left_out == {
        "image file is damaged or of an unknown kind": 1,
        "image is smaller than half the size trained on": 1,
    }


def test_too_few_photographs_are_refused_with_the_alternative(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "photographs", disks(MIN_IMAGES - 1))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a photograph")
    with pytest.raises(ValueError, match=rf"at least {MIN_IMAGES}.*got {MIN_IMAGES - 1}; 1 left out.*--boxes grabcut"):
        learn_cutter(folder, TINY, out=tmp_path / "run")


def test_random_crops_are_flipped_and_in_range() -> None:
    ramp = torch.arange(20).mul(12).expand(1, 3, 20, 20).to(torch.uint8)
    crops = random_crops(ramp, 64, 16, generator_for(0))
    slopes = (crops[..., -1] - crops[..., 0]).mean((1, 2))
    assert 16 < int((slopes > 0).sum()) < 48
    assert crops.min() >= -1
    assert crops.max() <= 1
    part = slopes.abs() / (19 * 12 / 127.5)
    assert 0.55 < part.min() < part.max() <= 1.0


def test_the_commands(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, page, masks = tmp_path / "run", tmp_path / "page.html", tmp_path / "masks"
    save_images(masks, [np.where(image.mean(2) > 110, 255, 0).astype(np.uint8) for image in disks(MIN_IMAGES)])
    assert main(["learn", "cutter", "--images", str(photographs), "--out", str(run), "--seed", "3", *FLAGS]) == 0
    cutter = Cutter.load(run / CUTTER)
    assert cutter.fingerprint in capsys.readouterr().out
    assert any((run / "tensorboard").iterdir())
    given = ["--images", str(photographs), "--masks", str(masks)]
    assert main(["learn", "report", str(run), "--out", str(page), *given]) == 0
    printed, text = capsys.readouterr().out, page.read_text()
    iou = agreement(cutter.cut, masked_images(photographs, masks))
    assert f"{iou.pooled:.3f}" in printed
    assert f"{iou.pooled:.3f}" in text
    assert f"on {MIN_IMAGES} images with masks" in text
    assert "layers after 10 steps" in text
    content = torch.load(run / CHECKPOINT, weights_only=True)
    assert {name: content["run"][name] for name in TINY.plain()} == TINY.plain(), "every flag reaches the training"
    assert content["run"]["seed"] == 3
    assert content["state"]["done"] == TINY.total_steps
    assert RunFolder(run).summary()["photographs"] == MIN_IMAGES
    assert iou.images == MIN_IMAGES
    assert 0 < iou.pooled < 1
    assert all(name in text for name in cutter.collapsed)
    assert "<script" not in text
    assert "://" not in text


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["cutter", "--images", "nowhere", "--out", "run"], "nowhere"),
        (["cutter", "--images", "few", "--out", "run", "--size", "48"], "power of two"),
        (["cutter", "--images", "few", "--out", "run", "--categories", "7"], "multiple of group_size"),
        (["cutter", "--images", "few", "--out", "run"], "at least 200"),
        (["cutter", "--images", "few", "--out", "no/run"], "no folder no"),
        (["cutter", "--images", "few", "--out", "few/run"], "few/run lies in few"),
        (["cutter", "--images", ".", "--out", "."], "lies in"),
        (["cutter", "--images", "few", "--out", "run", "--device", "abacus"], "--device abacus"),
        (["report", ".", "--out", "page.html"], "learn cutter"),
        (["report", ".", "--out", "page.html", "--masks", "."], "give both"),
    ],
)
def test_bad_commands_get_one_line(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few").mkdir()
    assert main(["learn", *arguments]) == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
    assert list(tmp_path.rglob("*")) == [tmp_path / "few"]


@pytest.mark.parametrize(
    "image", [np.zeros((40, 40, 3), np.float32), np.zeros((40, 40, 4), np.uint8), np.zeros((40, 40), np.uint8)]
)
def test_arrays_of_another_kind_are_refused(image: np.ndarray) -> None:
    images = [np.zeros((40, 40, 3), np.uint8)] * MIN_IMAGES
    with pytest.raises(TypeError, match=f"image {MIN_IMAGES}"):
        read_photographs([*images, image], 32)


@pytest.mark.parametrize("change", [{"size": 32.0}, {"batch": 32.5}, {"rounds": True}])
def test_counts_are_whole_numbers(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))}: expected a whole number"):
        DiscoverySettings(**change)
