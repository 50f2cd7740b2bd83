"""`terse-aug preview`: what is drawn is what the record says, and the page stands alone."""

from __future__ import annotations

import argparse
import html
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from terse_aug import ForegroundBank, PasteConfig, Terse, TransformRanges
from terse_aug.bank import BankWriter, Foreground
from terse_aug.cli import main
from terse_aug.cli.flags import add_flags, flat_settings, with_flags
from terse_aug.config import POLICY_SETTINGS
from terse_aug.policies import Adversarial, Critic, CriticPolicy
from terse_aug.preview import (
    STATE_KEY,
    draw_batch,
    open_coco,
    open_masks,
    preview_samples,
    resize_sample,
)

SCRIPT = "<script>alert(1)&.png"


class Data:
    """A bank with cut-outs of a person and a car, and a COCO set of three images whose category ids differ."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("a.png", SCRIPT, "c.png")):
        self.bank, self.images, self.json = folder / "x.bank", folder / "images", folder / "labels.json"
        self.out, self.png = folder / "sheet.html", folder / "sheet.png"
        self.images.mkdir()
        with BankWriter(self.bank, {1: "person", 3: "car"}) as writer:
            for label, height, width in ((1, 30, 12), (3, 14, 26)):
                rgba = np.full((height, width, 4), 255, np.uint8)
                writer.add(Foreground(rgba, label, f"<b>source</b>{label}.jpg#1", 0.3))
        generator = np.random.default_rng(0)
        for name in names:
            pixels = generator.integers(0, 256, (80, 120, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(self.images / name)
        self.content: dict[str, Any] = {
            "images": [{"id": i, "file_name": n, "height": 80, "width": 120} for i, n in enumerate(names)],
            "categories": [{"id": 7, "name": "car"}, {"id": 9, "name": "person"}],
            "annotations": [self.annotation(i) for i in range(len(names))],
        }
        self.write()

    @staticmethod
    def annotation(image: int, **changes: Any) -> dict[str, Any]:
        polygon = [30, 10, 70, 10, 70, 30, 30, 30]
        entry = {"id": 50 + image, "image_id": image, "category_id": 9, "bbox": [30, 10, 40, 20], "iscrowd": 0}
        return entry | {"segmentation": [polygon]} | changes

    def write(self) -> None:
        self.json.write_text(json.dumps(self.content))

    def arguments(self, *more: str) -> list[str]:
        source = ["--images", str(self.images), "--annotations", str(self.json)]
        return ["preview", str(self.bank), *source, "--out", str(self.out), *more]

    def page(self, *more: str) -> str:
        assert main(self.arguments(*more)) == 0
        return self.out.read_text(encoding="utf-8")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path)


def test_page_stands_alone_and_escapes(data: Data) -> None:
    page = data.page("--paste-probability", "1")
    assert not re.search(r"https?:|url\(|<link|@import|<script", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert html.escape(SCRIPT) in page
    assert "<b>source" not in page
    assert page.count(' alt="') == 6
    assert "viewport" in page
    assert "prefers-color-scheme: dark" in page


def test_counts_on_the_page_are_those_of_the_record(data: Data) -> None:
    more = ["--paste-probability", "1", "--objects", "8", "12", "--min-visibility", "0.9", "--seed", "4"]
    page = data.page(*more)
    set_of_images, config = (
        open_coco(data.json, data.images),
        PasteConfig(paste_probability=1, objects=(8, 12), min_visibility=0.9),
    )
    terse = Terse(ForegroundBank.open(data.bank), "random", seed=4, classes={"car": 7, "person": 9}, paste=config)
    preview = preview_samples(terse, set_of_images.choose(12, 4), set_of_images.classes, 4)
    told = {name: int(count) for count, name in re.findall(r"<li><b>(\d+)</b>([a-z ]+)</li>", page)}
    assert told == preview.counts
    assert preview.dropped["paste_hidden"] > 0
    assert f"<b>{preview.dropped['paste_hidden']}</b> pasted objects hidden" in page
    assert page.count('<li class="paste">') == told["pastes"]
    assert page.count("no label: hidden") == told["pastes"] - told["labelled pastes"] == preview.dropped["paste_hidden"]
    lost = [line for pair in preview.pairs for line in pair.lost]
    assert page.count('<li class="lost">') == len(lost) == preview.dropped["occluded"] > 0
    for pair in preview.pairs:
        labelled = Counter(paste.title.split()[0] for paste in pair.pastes if not paste.problem)
        assert Counter(pair.composite_objects) == labelled + Counter(person=1 - len(pair.lost))


def test_same_seed_same_bytes(data: Data) -> None:
    first = (data.page("--png", str(data.png)), data.png.read_bytes())
    again = (data.page("--png", str(data.png)), data.png.read_bytes())
    other = data.page("--png", str(data.png), "--seed", "1")
    assert first == again
    assert other != first[0]
    assert Image.open(io.BytesIO(first[1])).size[0] > 2000


def test_random_state_is_left_alone(data: Data) -> None:
    before = torch.get_rng_state()
    data.page()
    assert torch.equal(before, torch.get_rng_state())


def test_count_and_size(data: Data) -> None:
    page = data.page("--count", "2", "--image-size", "900")
    assert page.count("<article>") == 2
    assert "(2 of 3)" in page
    assert 'width="1024" height="683"' in page
    sample = next(open_coco(data.json, data.images).choose(1, 0))
    large = resize_sample(sample, 160)
    assert large.image.shape == (3, 160, 240)
    assert large.target["boxes"].tolist() == [[60, 20, 140, 60]]
    assert large.target["masks"].sum() == 4 * sample.target["masks"].sum()


def test_missing_images_are_named(data: Data) -> None:
    (data.images / "a.png").unlink()
    (data.images / "c.png").write_bytes(b"no image")
    page = data.page()
    assert page.count("<article>") == 1
    assert "<li>1 image file is missing (a.png)</li>" in page
    assert "<li>1 image file cannot be read (c.png)</li>" in page


def test_what_is_left_out_of_a_coco_file_is_counted(data: Data) -> None:
    data.content["annotations"] += [
        data.annotation(0, iscrowd=1),
        data.annotation(99),
        data.annotation(0, category_id=5),
        data.annotation(0, id=70, bbox=[1, 2]),
        data.annotation(0, id=71, bbox=[1, 2, float("inf"), 2]),
        data.annotation(0, id=10**30, bbox=[90, 60, 0, 0]),
        {key: value for key, value in data.annotation(0).items() if key != "segmentation"},
    ]
    data.write()
    found = open_coco(data.json, data.images)
    samples = list(found.choose(3, 0))
    assert [len(sample.target["boxes"]) for sample in samples] == [3, 1, 1]
    assert "masks" not in samples[0].target
    assert found.dropped.counts == {
        "crowd region, not one object (iscrowd)": 1,
        "object of an image that is not in the JSON": 1,
        "object of a category that is not in the JSON": 1,
        "mask, because other objects of the data set have none": 6,
        "object: box is not x, y, width, height": 2,
    }
    page = data.page()
    assert "<b>1</b> original objects whose box has no area" in page
    assert "person 4 · not used" in page


def test_classes_are_translated_by_name(data: Data) -> None:
    data.content["categories"][0]["name"] = "auto"
    data.write()
    page = data.page("--classes", "car=auto", "--paste-probability", "1")
    pasted = re.findall(r'<li class="paste"><span class="chip pasted">(\w+)', page)
    assert pasted
    assert set(pasted) == {"auto"}


def test_state_file(data: Data, tmp_path: Path) -> None:
    terse = Terse(ForegroundBank.open(data.bank), Adversarial(discriminator_weight=0.5))
    random = data.page("--policy", "adversarial", "--paste-probability", "1")
    with torch.no_grad():  # everything to the left
        regressor = terse.policy.state_dict()["synthesizer.regressor.bias"]
        regressor[:] = -20
    for number, saved in enumerate(
        (terse.state_dict(), {STATE_KEY: terse.state_dict()}, {"objects": {STATE_KEY: terse.state_dict()}})
    ):
        path = tmp_path / f"{number}.pt"
        torch.save(saved, path)
        page = data.page("--state", str(path), "--paste-probability", "1")
        assert f"adversarial, state {path}" in page
        places = re.findall(r"translate_x ([\d.]+)", page)
        assert places
        assert max(map(float, places)) < 0.1
    assert max(map(float, re.findall(r"translate_x ([\d.]+)", random))) > 0.1


@pytest.mark.parametrize("classes", [None, 12])
def test_the_state_of_a_critic_is_shown_whatever_number_of_classes_it_has_learned(
    data: Data, tmp_path: Path, classes: int | None
) -> None:
    terse = Terse(ForegroundBank.open(data.bank), CriticPolicy(classes=classes))
    torch.save(terse.state_dict(), tmp_path / "critic.pt")
    for chosen in ([], ["--policy", "critic"]):
        page = data.page(*chosen, "--state", str(tmp_path / "critic.pt"))
        assert f"critic, state {tmp_path / 'critic.pt'}" in page
    assert "critic" in data.page("--policy", "critic")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def test_state_files_that_are_refused(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    terse = Terse(ForegroundBank.open(data.bank), "adversarial")
    state = terse.state_dict()
    shape = state | {"trainer.updater.policy.synthesizer.regressor.bias": torch.zeros(3)}
    random = Terse(ForegroundBank.open(data.bank), "random").state_dict()
    cases = [
        (shape, "differs in 1"),
        (random, "does not learn"),
        ({"weights": 1}, "['weights']"),
        (3, "found int"),
        (Evil(), "weights_only"),
    ]
    for content, message in cases:
        torch.save(content, tmp_path / "bad.pt")
        assert main(data.arguments("--state", "bad.pt")) == 2
        assert_one_line(capsys.readouterr().err, message)
    (tmp_path / "bad.pt").write_bytes(b"junk")
    assert main(data.arguments("--state", "bad.pt")) == 2
    assert_one_line(capsys.readouterr().err, "weights_only")
    assert not (tmp_path / "evil").exists()
    assert not data.out.exists()


def assert_one_line(printed: str, message: str) -> None:
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert message in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--objects", "3", "1"], "objects: expected"),
        (["--scale", "0", "1"], "scale"),
        (["--count", "0"], "count: expected"),
        (["--image-size", "0"], "--image-size"),
        (["--policy", "best-of-n"], "needs a detector"),
        (["--policy", "best"], "best-of-n"),
        (["--policy", "random", "--state", "x.pt"], "none"),
        (["--state", "missing.pt"], "found none"),
        (["--classes", "dog"], "the bank has no dog"),
        (["--classes", "car=auto"], "have no auto"),
        (["--out", "sheet.bank"], "ends in .html"),
        (["--png", "nowhere/x.png"], "no folder"),
        (["--masks", "."], "not allowed with"),
        (["--images", "missing"], "found none"),
        (["--sampler", "biregular"], "sampler: expected one of uniform"),
        (["--critic-candidates", "3"], "--critic-candidates is a setting of --policy critic"),
        (["--distractors", "1", "1"], "expected --distractor-bank"),
        (["--background-probability", "0.5"], "expected --backgrounds"),
        (["--backgrounds", "missing", "--background-probability", "1"], "expected a folder or a sequence of images"),
        (["--distractor-bank", "x.bank", "--distractors", "1", "1"], "the detector knows this class"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    data: Data,
    more: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(data.arguments(*more)) == 2
    assert_one_line(capsys.readouterr().err, message)
    assert not data.out.exists()


def test_data_without_anything_to_show(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(data.arguments("--images", str(empty))) == 2
    assert_one_line(capsys.readouterr().err, "none of the 3 images")
    masks = ["preview", str(data.bank), "--images", str(empty), "--masks", str(empty), "--out", str(data.out)]
    assert main(masks) == 2
    assert_one_line(capsys.readouterr().err, "no image of")
    for name in ("a.png", SCRIPT, "c.png"):
        (data.images / name).write_bytes(b"no image")
    assert main(data.arguments()) == 2
    assert_one_line(capsys.readouterr().err, "3 image file cannot be read")
    data.content["categories"].pop()
    data.write()
    assert main(data.arguments()) == 2
    assert_one_line(capsys.readouterr().err, "have no person")
    data.content["images"] = []
    data.write()
    assert main(data.arguments()) == 2
    assert_one_line(capsys.readouterr().err, "lists no images")


@pytest.mark.parametrize(("kind", "prefix"), [(PasteConfig, ""), *((POLICY_SETTINGS[n], n) for n in POLICY_SETTINGS)])
def test_every_setting_is_a_documented_flag(kind: Any, prefix: str) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, kind(), prefix)
    for name, value, help_text in flat_settings(kind(), prefix):
        assert help_text
        values = value if isinstance(value, tuple) else (value,)
        flag = "--" + name.replace("_", "-")
        given = [flag if value else f"--no-{flag[2:]}"] if isinstance(value, bool) else [flag, *map(str, values)]
        assert with_flags(kind(), parser.parse_args(given), prefix) == kind()
    parser.format_help()


def test_flags_change_settings() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, PasteConfig())
    add_flags(parser, Critic(), "critic")
    given = ["--rotation", "-30", "2.5", "--objects", "2", "2", "--keep-inside", "1", "--critic-mix-classes"]
    given += ["--critic-foreground-candidates", "2", "--critic-fixed-parameters", "scale", "rotation"]
    arguments = parser.parse_args(given)
    ranges = TransformRanges(rotation=(-30, 2.5), keep_inside=1)
    assert with_flags(PasteConfig(), arguments) == PasteConfig(objects=(2, 2), ranges=ranges)
    expected = Critic(mix_classes=True, foreground_candidates=2, fixed_parameters=("scale", "rotation"))
    assert with_flags(Critic(), arguments, "critic") == expected
    none_fixed = parser.parse_args(["--critic-fixed-parameters"])
    assert with_flags(Critic(), none_fixed, "critic") == Critic(fixed_parameters=())


def test_what_is_around_the_pastes_is_shown(data: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pool").mkdir()
    Image.new("RGB", (100, 90), (250, 250, 0)).save(tmp_path / "pool" / "yellow.png")
    with BankWriter(tmp_path / "pots.bank", {1: "teapot"}) as writer:
        writer.add(Foreground(np.full((20, 20, 4), 255, np.uint8), 1, "pot", 0.3))
    around = ["--backgrounds", str(tmp_path / "pool"), "--background-probability", "1", "--distractors", "1", "2"]
    around += ["--distractor-bank", str(tmp_path / "pots.bank"), "--occluded-object-probability", "1"]
    around += ["--objects", "1", "1"]
    page = data.page(*around, "--sampler", "balanced", "--count", "3")
    assert "3 composites, 6 pastes" in capsys.readouterr().out
    assert page.count("a background of the pool in place of the image and its objects") == 3
    assert "&lt;b&gt;source&lt;/b&gt;1.jpg#1" in page
    assert "&lt;b&gt;source&lt;/b&gt;3.jpg#1" in page


def test_penn_fudan(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "penn_fudan"
    (tmp_path / "names.txt").write_text("FudanPed00001\nFudanPed00002\n")
    source = ["--images", str(folder / "PNGImages"), "--masks", str(folder / "PedMasks")]
    bank = str(tmp_path / "penn.bank")
    assert main(["bank", "build", "masks", *source, "--image-list", str(tmp_path / "names.txt"), "--out", bank]) == 0
    out = tmp_path / "sheet.html"
    assert main(["preview", bank, *source, "--out", str(out), "--count", "3", "--image-size", "240"]) == 0
    assert out.read_text().count("<article>") == 3
    sample = next(open_masks(folder / "PNGImages", folder / "PedMasks").choose(1, 0))
    for box, mask in zip(sample.target["boxes"].int().tolist(), sample.target["masks"], strict=True):
        assert mask[box[1] : box[3], box[0] : box[2]].sum() == mask.sum() > 0


def test_coco_with_keypoints(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "coco_mini"
    source = ["--images", str(folder / "val2017")]
    source += ["--annotations", str(folder / "annotations" / "person_keypoints_val2017.json")]
    (tmp_path / "names.txt").write_text("000000397133.jpg\n")
    bank = str(tmp_path / "coco.bank")
    assert main(["bank", "build", "coco", *source, "--image-list", str(tmp_path / "names.txt"), "--out", bank]) == 0
    out, png = tmp_path / "sheet.html", tmp_path / "sheet.png"
    more = ["--count", "3", "--paste-probability", "1", "--png", str(png), "--image-size", "240"]
    assert main(["preview", bank, *source, "--out", str(out), *more]) == 0
    page = out.read_text()
    assert page.count("<article>") == 3
    assert "crowd region" in page
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_batch_with_other_entries_is_drawn(data: Data) -> None:
    with ForegroundBank.open(data.bank) as bank:
        terse = Terse(bank, "random", paste=PasteConfig(paste_probability=1.0))
        images = [torch.rand(3, 64, 80)] * 2
        targets = [
            {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "file_name": "a.jpg", "image_id": number}
            for number in range(2)
        ]
        composites, found = terse(images, targets)
        assert draw_batch(terse, list(composites), found).ndim == 3


def test_labels_that_a_bank_reads_are_shown(data: Data) -> None:
    """Ids as fractions, as pandas writes them, and empty polygons, as some exports write for boxes."""
    expected = preview_labels(data)
    for entry in data.content["annotations"]:
        entry.update(image_id=float(entry["image_id"]), category_id=float(entry["category_id"]), segmentation=[[]])
    data.write()
    assert preview_labels(data) == expected > 0


def preview_labels(data: Data) -> int:
    """How many objects the reader of the preview finds."""
    found = open_coco(data.json, data.images)
    return sum(len(found.read(index).target["boxes"]) for index in range(len(found.names)))
