"""A cutter: what it cuts out, and its file."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from terse_aug.discovery import Cutter
from terse_aug.discovery.segmentation import SegmentationNetwork

pytest.importorskip("segmentation_models_pytorch")


class _BrightNetwork(SegmentationNetwork):
    """Bright pixels are foreground."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(1, keepdim=True) * 100


@pytest.fixture
def bright() -> Cutter:
    return Cutter(_BrightNetwork(4), 32)


@pytest.fixture
def cutter() -> Cutter:
    return Cutter(SegmentationNetwork(4, seed=1), 32, ["empty masks"], {"seed": 1})


def photograph(height: int = 90, width: int = 140) -> NDArray[np.uint8]:
    """Dark, with two bright rectangles."""
    image = np.zeros((height, width, 3), np.uint8)
    image[20:50, 30:70] = 250
    image[60:85, 100:130] = 250
    return image


def iou(alpha: NDArray[np.uint8], true: NDArray[np.bool_]) -> float:
    found = alpha >= 128
    return float((found & true).sum() / (found | true).sum())


def test_a_whole_photograph_is_cut_at_its_own_size(bright: Cutter) -> None:
    image = photograph()
    alpha = bright.cut(image)
    assert alpha.shape == (90, 140)
    assert alpha.dtype == np.uint8
    assert iou(alpha, image[..., 0] > 0) > 0.8


def test_only_the_object_in_the_box_is_cut_out(bright: Cutter) -> None:
    image = photograph()
    alpha = bright(image, (25, 15, 50, 40))
    true = np.zeros((90, 140), bool)
    true[20:50, 30:70] = True
    assert iou(alpha, true) > 0.85
    inside = np.zeros((90, 140), bool)
    inside[15:55, 25:75] = True
    assert not alpha[~inside].any()


@pytest.mark.parametrize(
    "box", [(-20, -10, 60, 50), (120, 70, 60, 60), (0, 0, 140, 90), (10.4, 20.6, 3.2, 2.1), (139, 89, 1, 1)]
)
def test_boxes_may_reach_beyond_the_image(cutter: Cutter, box: tuple[float, float, float, float]) -> None:
    x, y, width, height = box
    alpha = cutter(photograph(), box)
    assert alpha.shape == (90, 140)
    rows, columns = np.nonzero(alpha)
    assert ((rows + 1 > y) & (rows < y + height) & (columns + 1 > x) & (columns < x + width)).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3), (17, 23)])
def test_photographs_of_any_size_are_cut(cutter: Cutter, shape: tuple[int, int]) -> None:
    assert cutter.cut(np.full((*shape, 3), 99, np.uint8)).shape == shape


def test_a_saved_cutter_cuts_the_same(cutter: Cutter, tmp_path: Path) -> None:
    cutter.save(tmp_path / "cutter.pt")
    loaded = Cutter.load(tmp_path / "cutter.pt")
    copied = pickle.loads(pickle.dumps(cutter))  # for worker processes
    for other in (loaded, copied):
        assert other.fingerprint == cutter.fingerprint
        assert other.collapsed == ("empty masks",)
        assert np.array_equal(other.cut(photograph()), cutter.cut(photograph()))
    assert [path.name for path in tmp_path.iterdir()] == ["cutter.pt"]


def test_the_fingerprint_is_that_of_weights_and_settings(cutter: Cutter) -> None:
    same = Cutter(SegmentationNetwork(4, seed=1), 32, ["empty masks"], {"seed": 1})
    assert same.fingerprint == cutter.fingerprint
    others = [
        Cutter(SegmentationNetwork(4, seed=2), 32, ["empty masks"], {"seed": 1}),
        Cutter(SegmentationNetwork(4, seed=1), 64, ["empty masks"], {"seed": 1}),
        Cutter(SegmentationNetwork(4, seed=1), 32, [], {"seed": 1}),
    ]
    assert len({cutter.fingerprint, *(own.fingerprint for own in others)}) == 4


class _Planted:
    """Would make a file if it were unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("unpickled"),)


def test_files_that_are_no_cutter_are_refused(cutter: Cutter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cutter.save("cutter.pt")
    content = torch.load("cutter.pt", weights_only=True)
    Path("text.pt").write_text("no weights")
    Path("half.pt").write_bytes(Path("cutter.pt").read_bytes()[:3000])
    torch.save(_Planted(), "pickle.pt")
    torch.save({"weights": torch.zeros(3)}, "other.pt")
    torch.save({**content, "version": 99}, "newer.pt")
    torch.save({**content, "width": 8}, "shapes.pt")
    torch.save({**content, "weights": {}}, "none.pt")
    for name in ("text", "half", "pickle", "other", "newer", "shapes", "none"):
        with pytest.raises(ValueError, match=rf"^{name}\.pt: "):
            Cutter.load(f"{name}.pt")
    assert not Path("unpickled").exists()
    with pytest.raises(FileNotFoundError, match=r"missing\.pt"):
        Cutter.load("missing.pt")


class _Seen(Cutter):
    """Notes the sizes of what is cut."""

    shapes: tuple[tuple[int, ...], ...] = ()

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        self.shapes += (image.shape,)
        return super().cut(image)


def test_memory_for_large_boxes_is_bounded() -> None:
    """A square about a box 50,000 px long would have 12 GB."""
    seen = _Seen(_BrightNetwork(4), 32)
    assert seen(np.zeros((9, 50_000, 3), np.uint8), (0, 0, 50_000, 9)).shape == (9, 50_000)
    image = np.zeros((4000, 4500, 3), np.uint8)
    image[200:3800, 300:3900] = 250
    alpha = seen(image, (200, 100, 3800, 3800))
    assert iou(alpha, image[..., 0] > 0) > 0.9
    assert seen.shapes == ((4096, 4096, 3),) * 2


@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_a_few_pixels_are_cut(cutter: Cutter, seed: int) -> None:
    draw = np.random.default_rng(seed)
    for _ in range(40):
        x, y, width, height = draw.uniform((-3, -3, 0.2, 0.2), (140, 90, 9, 9))
        assert cutter(photograph(), (x, y, width, height)).shape == (90, 140)


def test_masks_do_not_depend_on_the_number_of_threads(cutter: Cutter, monkeypatch: pytest.MonkeyPatch) -> None:
    used, threads = [], torch.get_num_threads()
    forward = cutter._network.forward
    monkeypatch.setattr(cutter._network, "forward", lambda own: (used.append(torch.get_num_threads()), forward(own))[1])
    try:
        torch.set_num_threads(2)
        cutter.cut(photograph())
        assert (used, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(threads)
