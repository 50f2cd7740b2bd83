"""Learned cutters on the command line: `bank build --boxes cutter.pt` and `bank build unlabelled`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from build_samples import left_beside
from PIL import Image
from test_bank_cutters import photograph
from torch.nn import functional as F

pytest.importorskip("segmentation_models_pytorch")

from terse_aug.bank import ForegroundBank
from terse_aug.cli import main
from terse_aug.discovery import Cutter
from terse_aug.discovery.segmentation import SegmentationNetwork

SIDE = 32


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    """Trained in a second to find red rectangles on green."""
    generator = torch.Generator().manual_seed(0)
    network = SegmentationNetwork(4)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        masks = torch.zeros(8, 1, SIDE, SIDE)
        for mask in masks:
            left, top, width, height = torch.randint(6, 16, (4,), generator=generator).tolist()
            mask[:, top : top + height, left : left + width] = 1
        images = torch.tensor([40.0, 150.0, 60.0]).view(3, 1, 1) * (1 - masks)
        images = images + torch.tensor([220.0, 30.0, 30.0]).view(3, 1, 1) * masks
        loss = F.binary_cross_entropy_with_logits(network(images / 127.5 - 1), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2
    return network


@pytest.fixture
def cutter(network: SegmentationNetwork, tmp_path: Path) -> Path:
    Cutter(network, SIDE).save(tmp_path / "cutter.pt")
    return tmp_path / "cutter.pt"


@pytest.fixture
def collapsed(network: SegmentationNetwork, tmp_path: Path) -> Path:
    Cutter(network, SIDE, ["mask share"]).save(tmp_path / "collapsed.pt")
    return tmp_path / "collapsed.pt"


def boxes_only(folder: Path) -> list[str]:
    """Arguments for a COCO JSON with two boxes, of which one holds an object."""
    photograph(folder / "scenes" / "scene.png", ((30, 20, 40, 50),), (120, 160))
    objects = [
        {"id": number, "image_id": 1, "category_id": 1, "bbox": box}
        for number, box in enumerate([[28, 18, 44, 54], [100, 30, 40, 40]])
    ]
    content = {
        "images": [{"id": 1, "file_name": "scene.png"}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return ["bank", "build", "coco", "--annotations", str(folder / "boxes.json"), "--images", str(folder / "scenes")]


def opened(path: Path) -> tuple[list[Any], dict[str, Any]]:
    with ForegroundBank.open(path) as bank:
        return list(bank), bank.info()["built"]


def test_boxes_are_cut_out_by_a_learned_cutter(
    cutter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, fingerprint = tmp_path / "a.bank", Cutter.load(cutter).fingerprint
    command = [*boxes_only(tmp_path), "--boxes", str(cutter), "--out", str(out)]
    assert main([*command, "--fallback", "ellipse"]) == 0
    assert f"1  cutter {fingerprint[:12]}" in capsys.readouterr().out
    (found, _), built = opened(out)
    assert built["cutter"] == fingerprint
    assert built["mask_sources"] == {f"cutter {fingerprint[:12]}": 1, "ellipse": 1}
    # Within two pixels of the network, which sees the box enlarged to 1.3 of its size at 32 pixels.
    assert found.size == pytest.approx((40, 50), abs=2 * 1.3 * 54 / SIDE)


def test_photographs_are_cut_out_by_a_learned_cutter(cutter: Path, tmp_path: Path) -> None:
    images = tmp_path / "photographs"
    for number in range(9):
        photograph(images / f"{number}.png", ((30 + number, 25, 40, 50),), (96, 128))
    photograph(images / "tulip" / "a.png", ((30, 25, 40, 50),), (96, 128))
    photograph(images / "none.png", (), (96, 128))
    command = ["bank", "build", "unlabelled", "--images", str(images), "--cutter", str(cutter), "--category", "flower"]
    threads = torch.get_num_threads()
    assert main([*command, "--out", str(tmp_path / "a.bank"), "--rejected-sheet", str(tmp_path / "a.png")]) == 0
    assert torch.get_num_threads() == threads
    found, built = opened(tmp_path / "a.bank")
    assert built["rejected"] == {"the cutter found nothing: no pixel has an alpha of 128 or more": 1}
    assert [one.source for one in found] == [*(f"{number}.png" for number in range(9)), "tulip/a.png"]
    for one in found:
        # Within a pixel of the network on each side, which is 3 wide here.
        assert one.size == pytest.approx((40, 50), abs=6)
        assert one.relative_size == pytest.approx(50 / (96 * 128) ** 0.5, abs=6 / (96 * 128) ** 0.5)
    assert np.asarray(Image.open(tmp_path / "a.png")).std() > 5
    assert main([*command, "--out", str(tmp_path / "b.bank"), "--jobs", "2"]) == 0
    fingerprints = [ForegroundBank.open(tmp_path / f"{name}.bank").fingerprint for name in "ab"]
    assert fingerprints[0] == fingerprints[1]


def test_a_collapsed_cutter_needs_a_flag(collapsed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph(tmp_path / "photographs" / "a.png", ((30, 25, 40, 50),), (96, 128))
    out = tmp_path / "a.bank"
    commands = [
        [*boxes_only(tmp_path), "--boxes", str(collapsed)],
        ["bank", "build", "unlabelled", "--images", str(tmp_path / "photographs"), "--cutter", str(collapsed)],
    ]
    for command in commands:
        assert main([*command, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert "collapsed (mask share)" in error
        assert "--accept-unhealthy" in error
        assert error.count("\n") == 1
        assert not out.exists()
        assert not left_beside(out)
        assert main([*command, "--out", str(out), "--accept-unhealthy"]) == 0
        assert opened(out)[1]["cutter_collapsed"] == ["mask share"]
        out.unlink()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--boxes", "grabcutt"], "--boxes (grabcut, ellipse, box, or a cutter): there is no file grabcutt"),
        (["--boxes", "boxes.json"], "or a cutter): boxes.json: expected a terse-aug cutter file"),
        (["--boxes", "cutter.pt", "--min-quality", "0.5"], "--min-quality"),
        (["--boxes", "box", "--fallback", "box"], "--fallback"),
        (["--boxes", "grabcut", "--accept-unhealthy"], "--accept-unhealthy is for"),
        (["--boxes", "pickled.pt"], "pickled.pt: expected a terse-aug cutter file"),
        (["--boxes", "weights.pt"], "expected a terse-aug cutter file"),
    ],
)
def test_what_is_no_cutter_is_one_line(
    cutter: Path,
    flags: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Path("x"), "pickled.pt")
    torch.save({"weights": torch.zeros(3)}, "weights.pt")
    assert main([*boxes_only(tmp_path), *flags, "--out", "a.bank"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert not (tmp_path / "a.bank").exists()


def test_a_missing_package_is_one_line(cutter: Path, tmp_path: Path) -> None:
    script = """if True:
        import sys
        sys.modules["segmentation_models_pytorch"] = None
        from terse_aug.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    command = [*boxes_only(tmp_path), "--boxes", str(cutter), "--out", str(tmp_path / "a.bank")]
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install terse-aug[learn]" in done.stderr
    assert done.stderr.count("\n") == 1
