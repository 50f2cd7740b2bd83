"""``terse-aug preview``: page and image agree with the composites, and bad input gets a clear error."""

from __future__ import annotations

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

from terse_aug import ForegroundBank, PasteConfig, Terse
from terse_aug.bank import BankWriter, Foreground
from terse_aug.cli import main
from terse_aug.policies import Adversarial, CriticPolicy
from terse_aug.preview import STATE_KEY, draw_batch, open_coco, open_masks, preview_samples, resize_sample

SCRIPT = "<script>alert(1)&.png"
NAMES = ("a.png", SCRIPT, "c.png")


def white(height: int, width: int, label: int, source: str) -> Foreground:
    return Foreground(np.full((height, width, 4), 255, np.uint8), label, source, 0.3)


class Data:
    """A bank with a person and a car, and a COCO data set of three images with other category ids."""

    def __init__(self, folder: Path):
        self.bank, self.images, self.json = folder / "x.bank", folder / "images", folder / "labels.json"
        self.out, self.png = folder / "sheet.html", folder / "sheet.png"
        self.images.mkdir()
        with BankWriter(self.bank, {1: "person", 3: "car"}) as writer:
            writer.add(white(30, 12, 1, "<b>source</b>1.jpg#1"))
            writer.add(white(14, 26, 3, "<b>source</b>3.jpg#1"))
        generator = np.random.default_rng(0)
        for name in NAMES:
            Image.fromarray(generator.integers(0, 256, (80, 120, 3), dtype=np.uint8)).save(self.images / name)
        self.content: dict[str, Any] = {
            "images": [{"id": i, "file_name": n, "height": 80, "width": 120} for i, n in enumerate(NAMES)],
            "categories": [{"id": 7, "name": "car"}, {"id": 9, "name": "person"}],
            "annotations": [self.annotation(i) for i in range(len(NAMES))],
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
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.chdir(tmp_path)
    return Data(tmp_path)


@pytest.fixture
def refused(data: Data, capsys: pytest.CaptureFixture[str]) -> Any:
    """Checks that arguments are refused with exit code 2 and one line, and that nothing is written."""

    def check(message: str, *more: str) -> None:
        assert main(data.arguments(*more)) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("error: ")
        assert printed.count("\n") == 1
        assert message in printed
        assert not data.out.exists()

    return check


def test_page_is_self_contained_and_escapes(data: Data) -> None:
    random_state = torch.get_rng_state()
    page = data.page("--paste-probability", "1")
    assert torch.equal(random_state, torch.get_rng_state())
    assert not re.search(r"https?:|url\(|<link|@import|<script", page)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == page.count(' alt="') == 9
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert html.escape(SCRIPT) in page
    assert "<b>source" not in page
    assert "viewport" in page
    assert "prefers-color-scheme: dark" in page


def test_counts_on_the_page_are_those_of_the_composites(data: Data) -> None:
    page = data.page("--paste-probability", "1", "--objects", "8", "12", "--min-visibility", "0.9", "--seed", "4")
    images = open_coco(data.json, data.images)
    paste = PasteConfig(paste_probability=1, objects=(8, 12), min_visibility=0.9)
    terse = Terse(ForegroundBank.open(data.bank), "random", seed=4, classes={"car": 7, "person": 9}, paste=paste)
    preview = preview_samples(terse, images.choose(12, 4), images.classes, 4)
    counts = {name: int(count) for count, name in re.findall(r"<li><b>(\d+)</b>([a-z ]+)</li>", page)}
    hidden = preview.dropped["paste_hidden"]
    assert counts == preview.counts
    assert hidden > 0
    assert f"<b>{hidden}</b> pasted objects hidden" in page
    assert page.count('<li class="paste">') == counts["pastes"]
    assert page.count("no label: hidden") == counts["pastes"] - counts["labelled pastes"] == hidden
    lost = [line for pair in preview.pairs for line in pair.lost]
    assert page.count('<li class="lost">') == len(lost) == preview.dropped["occluded"] > 0
    for pair in preview.pairs:
        labelled = Counter(paste.title.split()[0] for paste in pair.pastes if not paste.problem)
        assert Counter(pair.composite_objects) == labelled + Counter(person=1 - len(pair.lost))


def test_same_seed_same_bytes(data: Data) -> None:
    files = []
    for seed in ("0", "0", "1"):
        page = data.page("--png", str(data.png), "--count", "2", "--seed", seed)
        files.append((page, data.png.read_bytes()))
    assert files[0] == files[1]
    assert files[2][0] != files[0][0]
    assert files[2][1] != files[0][1]
    assert Image.open(io.BytesIO(files[0][1])).size[0] > 2000


def test_count_size_and_classes_by_another_name(data: Data) -> None:
    data.content["categories"][0]["name"] = "auto"
    data.write()
    page = data.page("--count", "1", "--image-size", "900", "--classes", "car=auto", "--paste-probability", "1")
    assert page.count("<article>") == 1
    assert "(1 of 3)" in page
    assert 'width="1024" height="683"' in page
    assert set(re.findall(r'<li class="paste"><span class="chip pasted">(\w+)', page)) == {"auto"}
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


def test_ids_with_fractions_and_empty_polygons_are_read(data: Data) -> None:
    """As pandas writes ids, and as some exports write boxes."""
    for entry in data.content["annotations"]:
        entry |= {name: float(entry[name]) for name in ("image_id", "category_id")} | {"segmentation": [[]]}
    data.write()
    assert [len(sample.target["boxes"]) for sample in open_coco(data.json, data.images).choose(3, 0)] == [1, 1, 1]


def test_state_file(data: Data) -> None:
    terse = Terse(ForegroundBank.open(data.bank), Adversarial(discriminator_weight=0.5))
    settings = ["--paste-probability", "1", "--count", "2"]
    untrained = data.page("--policy", "adversarial", *settings)
    assert max(map(float, re.findall(r"translate_x ([\d.]+)", untrained))) > 0.1
    assert "adversarial (not trained: no --state)" in untrained
    with torch.no_grad():  # everything to the left
        terse.policy.state_dict()["synthesizer.regressor.bias"][:] = -20
    state = terse.state_dict()
    for saved in (state, {STATE_KEY: state}, {"objects": {STATE_KEY: state}}):
        torch.save(saved, "state.pt")
        page = data.page("--state", "state.pt", *settings)
        assert "adversarial, state state.pt" in page
        places = re.findall(r"translate_x ([\d.]+)", page)
        assert places
        assert max(map(float, places)) < 0.1
    assert "paper, state state.pt" in data.page("--policy", "paper", "--state", "state.pt", "--count", "1")


@pytest.mark.parametrize("classes", [None, 12])
def test_state_of_a_critic_with_and_without_class_probabilities(data: Data, classes: int | None) -> None:
    torch.save(Terse(ForegroundBank.open(data.bank), CriticPolicy(classes=classes)).state_dict(), "critic.pt")
    page = data.page("--state", "critic.pt", "--count", "1", "--critic-candidates", "3")
    assert "critic, state critic.pt" in page
    assert "critic_candidates 3" in page


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def test_state_files_that_are_refused(data: Data, refused: Any) -> None:
    with ForegroundBank.open(data.bank) as bank:
        state, random = Terse(bank, "adversarial").state_dict(), Terse(bank, "random").state_dict()
    wrong_shape = state | {"trainer.updater.policy.synthesizer.regressor.bias": torch.zeros(3)}
    for content, message in (
        (wrong_shape, "differs in 1"),
        (random, "does not learn"),
        ({"weights": 1}, "['weights']"),
        (3, "found int"),
        (Evil(), "weights_only"),
    ):
        torch.save(content, "bad.pt")
        refused(message, "--state", "bad.pt")
    Path("bad.pt").write_bytes(b"junk")
    refused("weights_only", "--state", "bad.pt")
    assert not Path("evil").exists()
    torch.save(state, "good.pt")
    refused("--policy random does not learn", "--policy", "random", "--state", "good.pt")
    refused("expected the state of a CriticPolicy", "--policy", "critic", "--state", "good.pt")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--objects", "3", "1"], "objects: expected"),
        (["--count", "0"], "count: expected"),
        (["--image-size", "0"], "--image-size"),
        (["--policy", "best-of-n"], "needs a detector"),
        (["--critic-candidates", "3"], "--critic-candidates is a setting of --policy critic"),
        (["--state", "missing.pt"], "found none"),
        (["--classes", "dog"], "the bank has no dog"),
        (["--classes", "car=auto"], "have no auto"),
        (["--out", "sheet.bank"], "ends in .html"),
        (["--png", "nowhere/x.png"], "no folder"),
        (["--masks", "."], "not allowed with"),
        (["--images", "missing"], "found none"),
        (["--sampler", "best"], "sampler: expected one of uniform"),
        (["--background-probability", "0.5"], "expected --backgrounds"),
        (["--backgrounds", "missing"], "expected a folder or a sequence of images"),
        (["--distractors", "1", "1"], "expected --distractor-bank"),
        (["--distractor-bank", "x.bank"], "the detector knows this class"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(refused: Any, more: list[str], message: str) -> None:
    refused(message, *more)


def test_data_without_anything_to_show(data: Data, refused: Any, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    refused("none of the 3 images", "--images", "empty")
    masks = ["preview", str(data.bank), "--images", "empty", "--masks", "empty", "--out", str(data.out)]
    assert main(masks) == 2
    assert "no image of" in capsys.readouterr().err
    for name in NAMES:
        (data.images / name).write_bytes(b"no image")
    refused("3 image file cannot be read")
    data.content["categories"].pop()
    data.write()
    refused("have no person")
    data.content["images"] = []
    data.write()
    refused("lists no images")


def test_backgrounds_distractors_and_occludees_are_shown(data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pool").mkdir()
    Image.new("RGB", (100, 90), (250, 250, 0)).save("pool/yellow.png")
    with BankWriter(Path("pots.bank"), {1: "teapot"}) as writer:
        writer.add(white(20, 20, 1, "pot"))
    around = ["--backgrounds", "pool", "--background-probability", "1", "--distractor-bank", "pots.bank"]
    around += ["--distractors", "1", "2", "--occluded-object-probability", "1", "--objects", "1", "1"]
    page = data.page(*around, "--sampler", "balanced", "--count", "3")
    assert "3 composites, 6 pastes" in capsys.readouterr().out
    assert page.count("a background of the pool in place of the image and its objects") == 3
    assert "&lt;b&gt;source&lt;/b&gt;1.jpg#1" in page
    assert "&lt;b&gt;source&lt;/b&gt;3.jpg#1" in page
    for shown in ("pool (probability 1)", "pots.bank (1 to 2 per image)", "<dd>balanced</dd>"):
        assert shown in page


def real_page(kind: str, source: list[str], names: str, *more: str) -> str:
    """The page of a bank that is built from some images of a real data set."""
    Path("names.txt").write_text(names)
    build = ["bank", "build", kind, *source, "--image-list", "names.txt", "--out", "real.bank"]
    preview = ["preview", "real.bank", *source, "--out", "sheet.html", "--count", "3", "--image-size", "240", *more]
    assert main(build) == main(preview) == 0
    return Path("sheet.html").read_text()


def test_penn_fudan(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, masks = (data_root / "penn_fudan" / name for name in ("PNGImages", "PedMasks"))
    page = real_page("masks", ["--images", str(images), "--masks", str(masks)], "FudanPed00001\nFudanPed00002\n")
    assert page.count("<article>") == 3
    target = next(open_masks(images, masks).choose(1, 0)).target
    for (left, top, right, bottom), mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
        assert mask[top:bottom, left:right].sum() == mask.sum() > 0


def test_coco_with_keypoints(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = data_root / "coco_mini"
    source = ["--images", str(folder / "val2017")]
    source += ["--annotations", str(folder / "annotations" / "person_keypoints_val2017.json")]
    page = real_page("coco", source, "000000397133.jpg\n", "--paste-probability", "1", "--png", "sheet.png")
    assert page.count("<article>") == 3
    assert "crowd region" in page
    assert Path("sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_batch_of_targets_with_other_entries_is_drawn(data: Data) -> None:
    terse = Terse(ForegroundBank.open(data.bank), "random", paste=PasteConfig(paste_probability=1.0))
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "file_name": "a.jpg", "image_id": 7}
    composites, targets = terse([torch.rand(3, 64, 80)] * 2, [target] * 2)
    assert draw_batch(terse, list(composites), targets).ndim == 3
