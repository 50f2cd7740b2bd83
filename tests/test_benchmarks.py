"""The benchmarks run and their JSON has the form that readers rely on; the figures are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosts import need_detectron2, need_mmdet

ROOT = Path(__file__).parents[1]


def run(module: str, out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{module}", "--json", str(out), *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    return json.loads(out.read_text()) | {"printed": finished.stdout}


def test_composite_reports_every_arm_and_memory(tmp_path: Path) -> None:
    content = run("composite", tmp_path / "f.json", "--rounds", "2", "--cases", "96:2", "128:1", "--memory", "10")
    assert [(row["size"], row["objects"]) for row in content["rows"]] == [(96, 2), (128, 1)]
    for row in content["rows"]:
        assert set(row["ms_per_image"]) == {"terse", "numpy", "mmdet", "segpaste"}
        for name, value in row["ms_per_image"].items():
            if value is None:
                assert f"{name}: not measured" in content["printed"]
            else:
                assert value > 0
                assert row["spread"][name]["repeats"] == 2
        assert row["ms_per_image"]["terse"] is not None
        assert row["ms_per_image"]["numpy"] is not None
    assert list(content["memory"]["resident_mb_after_images"]) == ["2", "10"]
    assert content["machine"]["threads"] == 1
    assert content["versions"]["torch"]


def test_step_reports_ratios_to_none(tmp_path: Path) -> None:
    content = run("step", tmp_path / "f.json", "--cycles", "1", "--warmup", "0", "--side", "64", "--batch", "1")
    assert {"random", "learned_k1", "learned_k4"} <= set(content["ratios"])
    assert all(value > 0 for value in content["ratios"].values())
    assert content["seconds_per_step"]["none"] > 0
    assert content["seconds_in_terse"]["none"] == 0


def test_mmdet_step_reports_ratios_and_loading(tmp_path: Path) -> None:
    need_mmdet()
    size = ["--cycles", "1", "--side", "64", "--batch", "1", "--detector", "rtmdet-tiny"]
    content = run("mmdet_step", tmp_path / "f.json", *size)
    assert {"CopyPaste", "random", "critic_k4", "learned_k1_in_preprocessor"} <= set(content["ratios"])
    assert all(value > 0 for value in content["ratios"].values())
    assert content["ms_in_terse"]["none"] == content["ms_in_terse"]["CopyPaste"] == 0
    assert min(content["ms_in_terse"][name] for name in ("random", "random_in_preprocessor")) > 0
    assert set(content["loading_ms"]) == {"none", "TersePaste", "CopyPaste"}


def test_penn_fudan_and_what_looks_at_its_runs(data_root: Path, tmp_path: Path) -> None:
    """One iteration; its detector and policy are then measured with."""
    photographs = str(data_root / "penn_fudan")
    flags = ["--data", photographs, "--out", str(tmp_path), "--iterations", "1", "--train", "20", "--seeds", "0"]
    weights = [
        "--weights",
        str(data_root / "weights" / "mobilenet_v2.pth"),
        "--arms",
        "critic",
        "--keep",
        "--probe-images",
        "4",
    ]
    command = [sys.executable, "-m", "benchmarks.penn_fudan", *flags, *weights]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    assert len(json.loads((tmp_path / "summary.json").read_text())) > 0
    critic = tmp_path / "train20-critic-seed0"
    checkpoint = str(critic / "checkpoint.pt")
    content = run(
        "gradient_quality", tmp_path / "g.json", "--data", photographs, "--checkpoint", checkpoint, "--count", "2"
    )
    assert content["pastes"] == 2
    arguments = ["--data", photographs, "--baseline", str(critic), "--runs", str(critic), "--images", "8"]
    found = run("hardness", tmp_path / "h.json", *arguments, "--terse", "critic_temperature=0.1")
    assert found["rows"][0]["settings"] == ["critic_temperature=0.1"]
    few = ["--data", photographs, "--baseline", str(critic), "--pastes", "3", "--candidates", "2"]
    for row in run("ceiling", tmp_path / "c.json", *few)["rows"].values():
        assert row["pastes"] <= 3
        assert row["missed share, random"] <= row["missed share, hardest"]


@pytest.mark.parametrize("host", ["detectron2", "mmdet"])
def test_penn_fudan_is_trained_on_through_a_host(data_root: Path, tmp_path: Path, host: str) -> None:
    {"detectron2": need_detectron2, "mmdet": need_mmdet}[host]()
    flags = ["--data", str(data_root / "penn_fudan"), "--out", str(tmp_path), "--train", "20", "--seeds", "0"]
    flags += ["--weights", str(data_root / "weights" / "mobilenet_v2.pth"), "--host", host, "--arms", "critic"]
    command = [sys.executable, "-m", "benchmarks.penn_fudan", *flags, "--iterations"]
    finished = subprocess.run([*command, "2"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stderr
    (row,) = json.loads((tmp_path / "summary.json").read_text())["summary"]
    assert (row["arm"], row["seeds"]) == ("critic", [0])
    assert 0 <= row["AP"]["mean"] <= row["AP50"]["mean"] <= 100
    other = subprocess.run([*command, "3"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "train20-critic-seed0 was run with" in other.stderr


def test_masks_of_boxes_are_compared_with_the_true_ones(data_root: Path, tmp_path: Path) -> None:
    source = data_root / "coco_mini" / "annotations" / "instances_val2017.json"
    content = json.loads(source.read_bytes())
    content["annotations"] = content["annotations"][:25]
    (tmp_path / "few.json").write_text(json.dumps(content))
    pair = f"{tmp_path / 'few.json'}={data_root / 'coco_mini' / 'val2017'}"
    found = run("box_masks", tmp_path / "f.json", "--coco", pair, "--classes", "2")
    assert 10 < found["all"]["objects"] <= 25
    assert len(found["by class"]) == 2
    assert found["by quality"][0]["objects"] >= found["by quality"][-1]["objects"]
    for way in ("grabcut", "ellipse", "box"):
        assert 0 <= found["all"][way]["10th percentile"] <= found["all"][way]["mean"] <= 1


def test_the_report_of_a_made_bank_is_measured(tmp_path: Path) -> None:
    content = run("bank_report", tmp_path / "f.json", "--cut-outs", "300", "--classes", "4")
    assert (content["cut_outs"], content["classes"]) == (300, 4)
    assert 0 < content["memory_mb"]["before"] <= content["memory_mb"]["peak"]
    assert set(content["seconds_of"]) == {"cut-outs", "shapes of classes", "duplicates", "page"}
    assert content["report_mb"] > 0.01
    assert content["copies"]["same"]["found"] == content["copies"]["same"]["made"] > 0
    assert content["certain_distance"] == 7


def test_a_large_bank_is_written_opened_and_read_by_several(tmp_path: Path) -> None:
    few = ["--cutouts", "500", "--readers", "2", "--seconds", "0.2", "--folder", str(tmp_path)]
    content = run("bank_scale", tmp_path / "s.json", *few)
    assert content["cut-outs"] == 500
    assert content["open seconds"] > 0
    assert content["bank: reads per second"] > 0 < content["lmdb: reads per second"]
    assert list(tmp_path.iterdir()) == [tmp_path / "s.json"]


def test_building_is_compared_with_decoding(data_root: Path, tmp_path: Path) -> None:
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


def test_the_paste_by_hand_is_a_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks._arms import numpy_arm
    from benchmarks._scenes import bounding_box, make_picture

    generator = np.random.default_rng(0)
    background, source = make_picture(120, 3, generator), make_picture(120, 3, generator)
    untouched = background.masks.copy()
    arm = numpy_arm([background], [source])
    image, boxes, labels, masks = arm.paste(arm.prepare(0))
    assert len(boxes) == len(labels) == len(masks)
    assert masks.sum(0).max() <= 1, "an object shows where another covers it"
    for box, mask in zip(boxes, masks, strict=True):
        assert tuple(box) == bounding_box(mask)
    assert (image != background.image).any()
    np.testing.assert_array_equal(background.masks, untouched)
