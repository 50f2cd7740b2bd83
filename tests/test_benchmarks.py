"""The benchmarks run, and their JSON has the documented form; the values are not checked."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from frameworks import need_detectron2, need_mmdet

from terse_aug.bank import ForegroundBank
from terse_aug.discovery import Cutter
from terse_aug.discovery.segmentation import SegmentationNetwork

REPOSITORY = Path(__file__).parents[1]
FEW = {"train_20": 6, "train_60": 2, "test": 2}
"""Images of Penn-Fudan that are kept of each part of the split."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of benchmarks and examples with few images in the split, on Python's path; unloaded afterwards."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("benchmarks", "examples"):
        shutil.copytree(REPOSITORY / name, folder / name)
    for name in ("terse_aug", "integrations"):
        (folder / name).symlink_to(REPOSITORY / name)
    split = folder / "benchmarks" / "penn_fudan_split.json"
    names = json.loads(split.read_text())
    split.write_text(json.dumps({part: names[part][:count] for part, count in FEW.items()}))
    modules, path, threads = set(sys.modules), sys.path.copy(), cv2.getNumThreads()
    sys.path.insert(0, str(folder))
    with torch.random.fork_rng(devices=[]):
        yield folder
    sys.path[:] = path
    cv2.setNumThreads(threads)
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("benchmarks", "terse_demo"):
            del sys.modules[name]


@pytest.fixture
def run(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``run(module, out, *arguments)``: what ``python -m benchmarks.MODULE`` writes and prints.

    In this process, as importing torch anew takes longer than most benchmarks here.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it would restart itself

    def run_here(module: str, out: Path, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [module, "--json", str(out), *arguments])
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as printed:
            warnings.simplefilter("ignore")
            runpy.run_module(f"benchmarks.{module}", run_name="__main__", alter_sys=True)
            gc.collect()
        return json.loads(out.read_text()) | {"printed": printed.getvalue()}

    return run_here


def run_apart(root: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in a separate process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)


def test_composite_reports_every_arm_and_memory(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a separate process that starts with more threads than the one that it measures with."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    out = tmp_path / "f.json"
    size = ["--rounds", "2", "--cases", "96:2", "128:1", "--memory", "10"]
    finished = run_apart(root, "composite", "--json", str(out), *size)
    assert finished.returncode == 0, finished.stderr
    content = json.loads(out.read_text()) | {"printed": finished.stdout}
    assert [(row["size"], row["objects"]) for row in content["rows"]] == [(96, 2), (128, 1)]
    for row in content["rows"]:
        assert {"terse", "terse_boxes", "numpy", "mmdet", "segpaste", "terse_photometric"} < set(row["ms_per_image"])
        for name, value in row["ms_per_image"].items():
            if value is None:
                assert f"{name}: not measured" in content["printed"]
            else:
                assert value > 0
                assert row["spread"][name]["repeats"] == 2
        assert row["ms_per_image"]["terse"] is not None
        assert row["ms_per_image"]["numpy"] is not None
    assert list(content["memory"]["mb_after_images"]) == ["2", "10"]
    assert content["machine"]["threads"] == 1
    assert content["versions"]["torch"]


def test_step_reports_ratios_to_none(run: Any, tmp_path: Path) -> None:
    size = ["--cycles", "1", "--warmup", "0", "--side", "64", "--batch", "1"]
    content = run("step", tmp_path / "f.json", *size, "--arms", "critic_k4", "pgd_1")
    assert set(content["ratios"]) == {"critic_k4", "pgd_1"}
    assert all(value > 0 for value in content["ratios"].values())
    assert content["seconds_per_step"]["none"] > 0
    assert content["seconds_in_terse"]["none"] == 0


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_robustness_training_is_compared_with_none(run: Any, tmp_path: Path) -> None:
    for package in ("skimage", "sklearn"):
        pytest.importorskip(package)
    content = run("robustness", tmp_path / "f.json", "--iterations", "1", "--images", "2")
    assert list(content["rows"]) == ["none", "pgd"]
    for row in content["rows"].values():
        assert 0 <= row["AP"] <= 100
        assert 0 <= row["AP, attacked"] <= 100
        assert row["CPU ms per iteration"] > 0


def test_mmdet_step_reports_ratios_and_loading(root: Path, tmp_path: Path) -> None:
    need_mmdet()
    out = tmp_path / "f.json"
    size = ["--cycles", "1", "--side", "64", "--batch", "1", "--loaded", "2", "--detector", "rtmdet-tiny"]
    finished = run_apart(root, "mmdet_step", "--json", str(out), *size)  # MMDetection replaces pycocotools for all
    assert finished.returncode == 0, finished.stderr
    content = json.loads(out.read_text())
    assert {"CopyPaste", "random", "critic_k4", "adversarial_k1"} <= set(content["ratios"])
    assert all(value > 0 for value in content["ratios"].values())
    assert content["ms_in_terse"]["none"] == content["ms_in_terse"]["CopyPaste"] == 0
    assert content["ms_in_terse"]["random"] > 0
    assert set(content["loading_ms"]) == {"none", "TersePaste", "CopyPaste", "composed"}
    assert all(value > 0 for value in content["images_per_second"].values())


@pytest.mark.parametrize("framework", ["torchvision", "detectron2", "mmdet"])
def test_penn_fudan_trains_with_every_framework(root: Path, data_root: Path, tmp_path: Path, framework: str) -> None:
    {"torchvision": lambda: None, "detectron2": need_detectron2, "mmdet": need_mmdet}[framework]()
    flags = ["--data", str(data_root / "penn_fudan"), "--out", str(tmp_path), "--train", "20", "--seeds", "0"]
    flags += ["--weights", str(data_root / "weights" / "mobilenet_v2.pth"), "--framework", framework]
    flags += ["--arms", "critic", "--probe-images", "4"]
    options = ["--", "--critic-candidates", "4"] if framework == "torchvision" else []
    finished = run_apart(root, "penn_fudan", *flags, "--iterations", "2", *options)
    assert finished.returncode == 0, finished.stderr
    content = json.loads((tmp_path / "summary.json").read_text())
    (row,) = content["summary"]
    assert (row["arm"], row["seeds"]) == ("critic", [0])
    assert 0 <= row["AP"]["mean"] <= row["AP50"]["mean"] <= 100
    assert ("composites: missed fraction" in row) == (framework == "torchvision")
    (result,) = content["runs"].values()
    assert result["arguments"]["options"] == options[1:]
    if framework == "torchvision":  # the check is the same for all
        other = run_apart(root, "penn_fudan", *flags, "--iterations", "3")
        assert "train20-critic-seed0 was run with" in other.stderr


def test_masks_of_boxes_are_compared_with_the_true_ones(run: Any, data_root: Path, tmp_path: Path) -> None:
    source = data_root / "coco_mini" / "annotations" / "instances_val2017.json"
    content = json.loads(source.read_bytes())
    content["annotations"] = content["annotations"][:25]
    (tmp_path / "few.json").write_text(json.dumps(content))
    pair = f"{tmp_path / 'few.json'}={data_root / 'coco_mini' / 'val2017'}"
    Cutter(SegmentationNetwork(4), 32, ["mask share"]).save(tmp_path / "cutter.pt")
    banks = tmp_path / "banks"
    more = ["--classes", "2", "--cutter", str(tmp_path / "cutter.pt"), "--banks", str(banks)]
    found = run("box_masks", tmp_path / "f.json", "--coco", pair, *more)
    assert 10 < found["all"]["objects"] <= 25
    assert len(found["by class"]) == 2
    assert found["by quality"][0]["objects"] >= found["by quality"][3]["objects"]
    for method in ("grabcut", "ellipse", "box", "cutter"):
        assert 0 <= found["all"][method]["10th percentile"] <= found["all"][method]["mean"] <= 1
        if found["banks"].get(method):
            with ForegroundBank.open(banks / f"{method}.bank") as bank:
                assert len(bank) == found["banks"][method]
                assert "mask" not in bank.info()["built"]["mask_sources"]
    assert found["banks"].keys() == {"grabcut", "ellipse", "box", "cutter"}
    assert found["cutter"]["cutter_collapsed"] == ["mask share"]


def test_masks_in_loose_boxes_are_measured(run: Any, tmp_path: Path, data_root: Path) -> None:
    """Of the sets with more than 100 images."""
    found = run("loose_boxes", tmp_path / "f.json", "--data", str(data_root), "--every", "400", "--first", "100")
    assert {row["data"] for row in found["masks"]} == {"Penn-Fudan", "flowers"}
    loose = found["all, enlarged to 1.25"]
    assert 0 <= loose["quality"]["good"] <= loose["quality"]["kept"] <= loose["masks"] < len(found["masks"])


def test_the_report_of_a_made_bank_is_measured(run: Any, tmp_path: Path) -> None:
    content = run("bank_report", tmp_path / "f.json", "--foregrounds", "300", "--classes", "4")
    assert (content["foregrounds"], content["classes"]) == (300, 4)
    assert 0 < content["memory_mb"]["before"] <= content["memory_mb"]["peak"]
    assert len(content["seconds_of"]) == 4
    assert {"duplicates", "page"} <= set(content["seconds_of"])
    assert content["report_mb"] > 0.01
    assert content["copies"]["same"]["found"] == content["copies"]["same"]["made"] > 0
    assert content["certain_distance"] == 7


def test_a_large_bank_is_written_opened_and_read_by_several_processes(run: Any, tmp_path: Path) -> None:
    few = ["--foregrounds", "500", "--readers", "2", "--seconds", "0.2", "--folder", str(tmp_path)]
    content = run("bank_scale", tmp_path / "s.json", *few)
    assert content["foregrounds"] == 500
    assert content["open seconds"] > 0
    assert content["bank: reads per second"] > 0 < content["lmdb: reads per second"]
    assert list(tmp_path.iterdir()) == [tmp_path / "s.json"]


def test_building_is_compared_with_decoding(run: Any, data_root: Path, tmp_path: Path) -> None:
    coco = data_root / "coco_mini"
    content = json.loads((coco / "annotations" / "instances_val2017.json").read_bytes())
    some = {image["id"] for image in content["images"][:10]}
    content["annotations"] = [own for own in content["annotations"] if own["image_id"] in some][:40]
    (tmp_path / "few.json").write_text(json.dumps(content))
    few = ["--repeat", "2", "--rounds", "1", "--grabcut-images", "2", "--folder", str(tmp_path)]
    found = run("bank_build", tmp_path / "f.json", "--coco", f"{tmp_path / 'few.json'}={coco / 'val2017'}", *few)
    assert set(found["images_per_second"]) == {"decode", "jobs 1", "jobs 2", "grabcut, jobs 1", "grabcut, jobs 2"}
    assert found["objects"]["jobs 1"] == found["objects"]["jobs 2"] <= found["objects"]["decode"] <= 80
    assert set(found["ratios"]) > {"jobs 1 / decode", "grabcut, jobs 2 / grabcut, jobs 1"}
    assert found["start_of_a_process_seconds"]["median"] > 0
    assert set(found["bank_mb"]) == set(found["objects"]) - {"decode"}
    assert found["bank_mb"]["jobs 1"] == found["bank_mb"]["jobs 2"] != found["bank_mb"]["grabcut, jobs 2"]


def test_writing_composites_is_compared_with_training(run: Any, data_root: Path, tmp_path: Path) -> None:
    few = ["--data", str(data_root / "penn_fudan"), "--images", "2", "--rounds", "1"]
    content = run("compose", tmp_path / "f.json", *few)
    written = {"coco, jpg", "coco, png", "yolo, jpg", "yolo-seg, jpg"}
    assert set(content["per core"]) == {"composing", "training"} | written
    assert content["ratio to training"]["training"] == {"median": 1, "least": 1, "most": 1}
    assert all(own["least"] > 0 for own in content["ratio to training"].values())


@pytest.mark.usefixtures("root")
def test_the_numpy_arm_pastes() -> None:
    from benchmarks._copy_paste_peers import numpy_arm
    from benchmarks._drawn_images import bounding_box, draw_image

    generator = np.random.default_rng(0)
    background, source = draw_image(120, 3, generator), draw_image(120, 3, generator)
    untouched = background.masks.copy()
    arm = numpy_arm([background], [source])
    image, boxes, labels, masks = arm.paste(arm.prepare(0))
    assert len(boxes) == len(labels) == len(masks)
    assert masks.sum(0).max() <= 1, "two objects claim the same pixel"
    for box, mask in zip(boxes, masks, strict=True):
        assert tuple(box) == bounding_box(mask)
    assert (image != background.image).any()
    np.testing.assert_array_equal(background.masks, untouched)
