"""`terse-aug bank`: builds, reports, and prints user errors in one line."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from annotated_samples import as_labelme, as_panoptic, as_via, as_voc, as_yolo, make_sample
from bank_samples import CocoSample, write_bank

from terse_aug.bank import ExtractionRules, ForegroundBank
from terse_aug.bank.readers import READERS
from terse_aug.cli import main
from terse_aug.utils.files import write_whole


@pytest.fixture
def sample(tmp_path: Path) -> CocoSample:
    sample = CocoSample(tmp_path)
    sample.add(category_id=90, segmentation=None)
    sample.write()
    return sample


def coco_arguments(sample: CocoSample, *more: str) -> list[str]:
    out = str(sample.folder / "out.bank")
    source = ["--annotations", str(sample.json), "--images", str(sample.images)]
    return ["bank", "build", "coco", *source, "--out", out, *more]


def test_build_coco_prints_what_was_kept_and_rejected(sample: CocoSample, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(coco_arguments(sample)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no bar where stderr is no terminal
    assert "1 foregrounds" in printed.out
    assert "1  car" in printed.out
    assert "(--boxes grabcut) cuts such objects out (such as a.png#2 (toothbrush))" in printed.out


def test_options_reach_the_builder(sample: CocoSample) -> None:
    rules = ["--min-area", "50", "--min-side", "3", "--max-side", "10", "--min-box-agreement", "0.9"]
    image_list = sample.folder / "train.txt"
    image_list.write_text("a.png\n")
    more = [*rules, "--drop-truncated", "--category", "car", "--image-list", str(image_list)]
    assert main(coco_arguments(sample, *more)) == 0
    bank = ForegroundBank.open(sample.folder / "out.bank")
    built = bank.info()["built"]
    expected = ExtractionRules(min_area=50, min_side=3, max_side=10, min_box_agreement=0.9, drop_truncated=True)
    assert {name: built[name] for name in vars(expected)} == vars(expected)
    assert bank.sizes.tolist() == [[5, 10]]
    assert built["rejected"] == {"category is not in `categories`": 1}
    assert main(coco_arguments(sample, "--max-side", "0", "--overwrite")) == 0
    assert ForegroundBank.open(sample.folder / "out.bank").info()["built"]["max_side"] is None


def test_build_masks_and_info_of_real_data(data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = data_root / "penn_fudan", str(tmp_path / "penn.bank")
    image_list = tmp_path / "split.txt"
    image_list.write_text("FudanPed00001\nFudanPed00002.png\n")
    source = ["--images", str(folder / "PNGImages"), "--masks", str(folder / "PedMasks")]
    arguments = ["bank", "build", "masks", *source, "--category", "walker", "--image-list", str(image_list)]
    assert main([*arguments, "--out", out]) == 0
    capsys.readouterr()
    assert main(["bank", "info", out]) == 0
    assert "3  walker" in capsys.readouterr().out
    assert main(["bank", "info", out, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["foregrounds_per_category"] == {"walker": 3}
    assert info["built"]["rejected"] == {"image is not in `image_list`": 168}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["bank"], "ACTION"),
        (["bank", "build", "kitti"], "invalid choice: 'kitti'"),
        (["bank", "build", "coco"], "--annotations"),
        (["bank", "info", "missing.bank"], "no foreground bank at"),
        (["bank", "info", "."], "got the folder"),
        (["bank", "build", "rgba", "--folder", "missing", "--out", "x.bank"], "found none"),
        (["bank", "build", "rgba", "--folder", ".", "--out", "x.bank", "--min-area", "0"], "min_area"),
        (["bank", "build", "rgba", "--folder", ".", "--out", "x.bank", "--min-area", "a"], "invalid int"),
        (["bank", "build", "rgba", "--folder", ".", "--out", "."], "got the folder"),
        (["bank", "build", "rgba", "--folder", ".", "--out", "some.bank"], "--overwrite"),
        (["bank", "report", "missing.bank", "--out", "x.html"], "no foreground bank at"),
        (["bank", "report", "some.bank"], "--out"),
        (["bank", "report", "some.bank", "--out", "x.bank"], "ends in .html"),
        (["bank", "report", "some.bank", "--out", "nowhere/x.html"], "no folder"),
        (["bank", "report", "some.bank", "--out", "x.html", "--samples", "-1"], "0 or more"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bank(tmp_path / "some.bank", 3)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert [path.name for path in tmp_path.iterdir()] == ["some.bank"]


def test_every_format_can_be_built_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    context = make_sample(tmp_path)
    as_yolo(context)
    annotations, masks = as_panoptic(context)
    images = ["--images", str(context.images)]
    via = ["--file", str(as_via(context)), *images]
    sources = {
        "voc": ["--root", str(as_voc(context)), "--split", "train", "--names", "dog", "cat"],
        "yolo": [*images, "--boxes", "box"],
        "labelme": ["--folder", str(as_labelme(context)), *images, "--boxes", "ellipse"],
        "via": [*via, "--attribute", "kind", "--boxes", "grabcut", "--fallback", "box"],
        "panoptic": ["--annotations", str(annotations), "--masks", str(masks), *images],
    }
    for source, arguments in sources.items():
        out = tmp_path / f"{source}.bank"
        assert main(["bank", "build", source, *arguments, "--out", str(out)]) == 0
        assert "2 foregrounds" in capsys.readouterr().out
        with ForegroundBank.open(out) as bank:
            assert sorted(bank.categories.values()) == ["cat", "dog"]
            assert (bank.categories.get(1) == "dog") is (source in ("voc", "yolo"))
    assert main(["bank", "build", "via", *via, "--fallback", "box", "--out", "x.bank"]) == 2
    assert "are for --boxes grabcut" in capsys.readouterr().err


@pytest.mark.parametrize("source", [*READERS, "detectron2", "mmdet", "generator"])
def test_every_flag_is_explained(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bank", "build", source, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--out FILE" in text
    assert "the bank to write" in text
    assert "`" not in text
    assert not re.search(r"\bfunction|\bNone\b|content of", text), "help is for the command line"
    of_their_own = ("masks", "object-masks", "rgba", "products", "mesh", "unlabelled", "video", "generator")
    assert ("--min-box-agreement" in text) == (source not in of_their_own)
    assert ("--drop-truncated" in text) == (source not in ("rgba", "mesh"))


def test_a_page_is_on_disk_before_it_replaces_an_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", lambda *paths: (synced.append(-1), replace(*paths)))
    write_whole(tmp_path / "a.html", b"page")
    assert synced == [4, -1]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"page"]
