"""The example with ten training images: its digits, its backgrounds, and tiny runs of every arm."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from example_modules import importable, load_script

from terse_aug.models import class_of

FOLDER = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def example():
    """The script, imported, and unloaded afterwards."""
    pytest.importorskip("matplotlib")
    with importable(FOLDER / "ten_images", "affnist", "ten_images_run"):
        yield load_script(FOLDER / "ten_images" / "run.py", "ten_images_run")


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty made digits as idx files, train and test: a bar whose position depends on the class."""
    folder = tmp_path_factory.mktemp("mnist")
    images, labels = np.zeros((40, 28, 28), np.uint8), np.arange(40, dtype=np.uint8) % 10
    for image, label in zip(images, labels, strict=True):
        image[4:24, 4 + 2 * label : 7 + 2 * label] = 255
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (folder / f"{name}.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return folder


def test_the_font_gives_ten_different_white_digits_of_mnists_size(example: ModuleType, tmp_path: Path) -> None:
    bank = example.font_bank(tmp_path / "digits.bank")
    assert bank.labels.tolist() == list(range(10))
    assert np.allclose(bank.relative_sizes, 0.5)
    shapes = {own.rgba[:, :, 3].tobytes() for own in bank}
    assert len(shapes) == 10
    assert all((own.rgba[:, :, :3] == 255).all() for own in bank)


def test_backgrounds_are_grey_and_of_many_kinds(example: ModuleType) -> None:
    backgrounds = torch.stack(example.random_backgrounds(60, 0)).float() / 255
    assert torch.equal(backgrounds[:, 0], backgrounds[:, 2])
    means, steps = backgrounds.mean((1, 2, 3)), (backgrounds[..., 1:] - backgrounds[..., :-1]).abs().mean((1, 2, 3))
    assert means.std() > 0.1
    assert steps.max() > 5 * steps.median()
    again = torch.stack(example.random_backgrounds(60, 0)).float() / 255
    other = torch.stack(example.random_backgrounds(60, 1)).float() / 255
    assert torch.equal(backgrounds, again)
    assert not torch.equal(backgrounds, other)


def test_the_class_is_that_of_the_digit_in_front(example: ModuleType, tmp_path: Path) -> None:
    bank = example.font_bank(tmp_path / "digits.bank")
    arm = example.Arm(occludees=True)
    terse = example.make_terse(bank, arm, example.SmallNet(), 0)
    _, targets = terse(*example.empty_canvases(example.CANVAS, 8))
    in_front = [pastes[-1].label for pastes in terse.pastes]
    assert class_of(targets).tolist() == in_front
    behind = [pastes[0].label for pastes in terse.pastes if len(pastes) == 2]
    assert behind
    assert all(
        own != pastes[-1].label for own, pastes in zip(behind, [p for p in terse.pastes if len(p) == 2], strict=True)
    )
    assert set(terse.replaced) == set(range(8))


def test_all_arms_run_and_finished_runs_are_neither_repeated_nor_mixed(
    example: ModuleType, mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digits in ("font", "sample"):
        args = example._arguments(
            ["--mnist", str(mnist), "--out", str(tmp_path), "--iterations", "2", "--digits", digits]
        )
        for arm in example.ARMS if digits == "font" else ["on black"]:
            example._run((args, arm, 0))
            run = json.loads((tmp_path / f"{digits}-{arm.replace(' ', '-')}-seed0.json").read_text())
            assert 0 <= run["accuracy"] <= 100
    monkeypatch.setattr(example, "_run", lambda job: pytest.fail("ran again"))
    command = ["--mnist", str(mnist), "--out", str(tmp_path)]
    example.main([*command, "--iterations", "2"])
    assert len(json.loads((tmp_path / "results.json").read_text())) == len(example.ARMS)
    with pytest.raises(SystemExit, match="other settings"):
        example.main([*command, "--iterations", "3"])
