"""The demo in examples/demo: tiny runs of the real thing, and the text of its report."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from example_modules import importable, modules_of
from processes import METHOD, fresh

DEMO = Path(__file__).parents[1] / "examples" / "demo"
TINY = ["--iterations", "3", "--measurements", "3", "--train-images", "6", "--test-images", "4", "--batch-size", "2"]
VOID = {"meta", "br", "img"}

# pycocotools 2.0.11 decodes masks through an `__array__` from before NumPy 2; nothing in our hands.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


@pytest.fixture(scope="module")
def demo():
    """The demo's modules, imported as its script sees them, and unloaded afterwards."""
    for package in ("skimage", "sklearn"):
        pytest.importorskip(package)
    with importable(DEMO, "run", "terse_demo"):
        import run

        names = ("data", "digits", "measurement", "processes", "report", "results", "training", "wording")
        yield modules_of("terse_demo", *names, main=run.main)


@pytest.fixture(scope="module")
def tiny(demo, tmp_path_factory):
    """The folder of a tiny run in this process."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    state = torch.get_rng_state()
    demo.main([*TINY, "--sequential", "--out", str(folder)])
    assert torch.equal(torch.get_rng_state(), state), "the run drew from the global generator"
    return folder


@pytest.fixture(scope="module")
def results(tiny):
    return json.loads((tiny / "results.json").read_text())


def test_training_and_test_share_neither_photographs_nor_handwriting(demo):
    train, test = demo.data.training_images(32), demo.data.test_images(100)
    assert not {image.photograph for image in train} & {image.photograph for image in test}
    assert not {row for image in train for row in image.rows} & {row for image in test for row in image.rows}
    classes = range(1, len(demo.data.CLASSES) + 1)
    assert {label for image in train for label in image.labels} == set(classes)
    assert {label for image in test for label in image.labels} == set(classes)


def test_the_data_is_the_same_every_time(demo):
    for one, other in zip(demo.data.test_images(6), demo.data.test_images(6), strict=True):
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.boxes, other.boxes)


def test_digits_lie_inside_the_image_apart_and_stand_out(demo):
    for image in demo.data.test_images(20):
        assert image.masks.shape == (len(image.labels), demo.data.SIZE, demo.data.SIZE)
        assert (image.masks.sum(0) <= 1).all()
        for mask in image.masks:
            assert not np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).any()
            assert mask.sum() > 20


def test_ink_lies_at_its_pose(demo):
    digit = np.ones((8, 8), np.float32)
    coverage = demo.digits.ink(digit, demo.digits.Pose(x=40, y=70, height=32), 128)
    rows, columns = np.nonzero(coverage > 0.5)
    assert columns.mean() + 0.5 == pytest.approx(40, abs=0.6)
    assert rows.mean() + 0.5 == pytest.approx(70, abs=0.6)
    assert rows.max() - rows.min() + 1 == pytest.approx(32, abs=3)


def test_ink_turns_clockwise(demo):
    digit = np.zeros((8, 8), np.float32)
    digit[:, 3:5] = 1
    coverage = demo.digits.ink(digit, demo.digits.Pose(x=64, y=64, height=40, rotation=30), 128)
    rows, columns = np.nonzero(coverage > 0.5)
    assert columns[rows < 55].mean() > 68, "the upper end leans to the right"


def test_every_digit_of_the_training_images_is_in_the_bank(demo, tmp_path):
    images = demo.data.training_images(32)
    annotations = demo.data.save_coco(images, tmp_path / "train")
    built = demo.data.build_bank(annotations, tmp_path / "train", tmp_path / "digits.bank")
    assert sum(built.kept.values()) == sum(len(image.labels) for image in images)
    assert not built.rejected


def test_a_run_writes_report_results_and_data(tiny):
    assert sorted(path.name for path in tiny.iterdir()) == ["data", "report.html", "results.json"]
    assert {path.name for path in (tiny / "data").iterdir()} >= {"train", "train.json", "test", "test.json"}


def test_the_results_are_all_there(demo, results):
    assert list(results["arms"]) == ["none", "random", "critic"]
    for name, arm in results["arms"].items():
        assert [one["iteration"] for one in arm["measurements"]] == [1, 2, 3]
        for one in arm["measurements"]:
            assert set(one["average_precision"]) == {"AP", "AP50", "AP75"}
            assert set(one["missed"]) == {"none": set(), "random": {"random"}, "critic": {"random", "critic"}}[name]
            assert all(0 <= value <= 100 for value in one["missed"].values())
        assert results["seconds"]["arms"][name]["cpu_per_iteration"] > 0
    assert results["arms"]["none"]["metrics"]["objects_pasted"] == 0
    assert results["arms"]["random"]["metrics"]["objects_pasted"] > 0
    assert results["arms"]["critic"]["metrics"]["updates"] > 0
    assert results["settings"]["seed"] == 0
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.fixture
def fresh_processes(demo, monkeypatch):
    """Processes that need not import torch again."""
    fresh()
    monkeypatch.setattr(demo.processes, "START", METHOD)


@pytest.mark.usefixtures("fresh_processes")
def test_processes_side_by_side_give_the_same_results(demo, results, tmp_path):
    demo.main([*TINY, "--out", str(tmp_path)])
    again = json.loads((tmp_path / "results.json").read_text())
    assert {**again, "seconds": None} == {**results, "seconds": None}


@pytest.mark.usefixtures("fresh_processes")
def test_a_process_that_dies_is_an_error(demo, tmp_path):
    settings = demo.training.Settings(iterations=1, measurements=1)
    with pytest.raises(RuntimeError, match="'random' ended early"):
        demo.processes.train_arms(["random"], settings, tmp_path / "missing.bank", lambda arm, done: None)


class _Page(HTMLParser):
    """Collects what a page refers to, and checks that its tags are closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_needs_nothing_else(tiny):
    text = (tiny / "report.html").read_text()
    page = _Page(text)
    assert len(page.links) > 10
    assert all(link.startswith(("data:image/jpeg;base64,", "data:image/svg+xml;base64,")) for link in page.links)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_report_has_the_results(demo, tiny, results):
    text = (tiny / "report.html").read_text()
    assert demo.wording.headline(results) in text
    assert "prefers-color-scheme: dark" in text
    for arm in results["arms"]:
        assert f"{demo.results.final(results, arm):.1f}" in text


def _results(results, none, random, critic, missed=(30.0, 50.0), std_ratio=0.9):
    """Results of a run with these values."""
    made = copy.deepcopy(results)
    for arm, value in (("none", none), ("random", random), ("critic", critic)):
        for one in made["arms"][arm]["measurements"]:
            one["average_precision"] = {"AP": value, "AP50": value, "AP75": value}
    for one in made["arms"]["critic"]["measurements"]:
        one["missed"] = dict(zip(("random", "critic"), missed, strict=True))
        one["std_ratio"] = dict.fromkeys(one["std_ratio"], std_ratio)
    return made


@pytest.mark.parametrize(
    ("none", "random", "critic", "words"),
    [
        (10, 20, 25, "came out ahead"),
        (10, 25, 20, "did not win"),
        (25, 10, 20, "did not win"),
        (10, 20, 20.5, "ended level"),
        (10, 20, 19.5, "ended level"),
        (30, 20, 29.5, "ended level"),
    ],
)
def test_the_headline_follows_the_results(demo, results, none, random, critic, words):
    made = _results(results, none, random, critic)
    line = demo.wording.headline(made)
    assert words in line
    assert f"critic {critic:.1f} AP, random {random:.1f}, no pasting {none:.1f}" in line


def test_the_text_follows_the_results(demo, results):
    worse = " ".join(demo.wording.paragraphs(_results(results, 10, 25, 20, missed=(50.0, 30.0), std_ratio=0.3)))
    assert "gained 15.0 AP" in worse
    assert "5.0 AP below random" in worse
    assert "are easier for the detector than random ones" in worse
    assert "averaged over training, the detector missed 30 % of them, and 50 %" in worse
    assert "collapse: their standard deviation is 30 %" in worse
    better = " ".join(demo.wording.paragraphs(_results(results, 30, 25, 27)))
    assert "lost 5.0 AP" in better
    assert "2.0 AP above random" in better
    assert "are harder for the detector than random ones" in better
    assert "averaged over training, the detector missed 50 % of them, and 30 %" in better
    assert "stayed diverse: their standard deviation is 90 %" in better
    cheap = _results(results, 10, 20, 30)
    for arm, seconds in (("none", 0.2), ("random", 0.25), ("critic", 0.19)):
        cheap["seconds"]["arms"][arm]["cpu_per_iteration"] = seconds
    assert "25 % more CPU time with random pasting and 5 % less with the learned policy" in demo.wording.price(cheap)
    level = " ".join(demo.wording.paragraphs(_results(results, 20, 20.4, 20.2, missed=(40.0, 41.0))))
    assert "Random pasting made no difference" in level
    assert "The learned policy (critic) made no difference" in level
    assert "about as hard for the detector as random ones" in level


@pytest.mark.parametrize("iterations", [1, 2, 9, 10, 11, 720])
def test_the_learning_rate_rises_and_falls_within_any_run(demo, iterations):
    factors = [demo.training.rate_factor(done, iterations) for done in range(iterations)]
    highest = factors.index(max(factors))
    assert max(factors) == 1
    assert min(factors) > 0
    assert factors[: highest + 1] == sorted(factors[: highest + 1])
    assert factors[highest:] == sorted(factors[highest:], reverse=True)


def test_every_image_comes_once_before_any_comes_again(demo):
    samples = [(torch.tensor(number), {}) for number in range(6)]
    settings = demo.training.Settings(iterations=3, batch_size=4)
    drawn = [int(image) for images, _ in demo.training.batches(samples, settings) for image in images]
    assert sorted(drawn[:6]) == sorted(drawn[6:]) == list(range(6))


def test_pairs_come_hardest_first_whichever_policy_is_the_harder(demo):
    def scored(score):
        box = (0.0, 0.0, 1.0, 1.0)
        return demo.measurement.ScoredImage(np.zeros((2, 2, 3), np.uint8), [_scored_object(demo, box, score)])

    ones, others = [scored(0.9), scored(0.1), scored(0.5)], [scored(0.1), scored(0.3), scored(0.8)]
    pairs = demo.measurement.hardest_pairs(ones, others, count=2)
    assert [pair[0].pasted_scores[0] for pair in pairs] == [0.1, 0.9]


def _scored_object(demo, box, score):
    return demo.measurement.ScoredObject(1, box, score, pasted=True)


def test_a_confident_detection_of_the_wrong_class_is_a_false_alarm(demo):
    target = {"boxes": torch.tensor([[10.0, 10, 30, 40]]), "labels": torch.tensor([2])}
    prediction = {
        "boxes": torch.tensor([[10.0, 10, 30, 40], [10, 10, 30, 40], [60, 60, 80, 90], [60, 60, 80, 90]]),
        "labels": torch.tensor([2, 3, 2, 2]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.3]),
    }
    found = demo.measurement._false_alarms(target, prediction)
    assert [(one.label, round(one.score, 1), one.outcome) for one in found] == [
        (3, 0.8, "false"),
        (2, 0.7, "false"),
    ]


def test_perfect_predictions_have_full_precision(demo):
    samples = [image.tensors() for image in demo.data.test_images(18)]

    class Oracle(torch.nn.Module):
        def forward(self, batch):
            known = [next(target for image, target in samples if torch.equal(image, given)) for given in batch]
            return [target | {"scores": torch.ones(len(target["labels"]))} for target in known]

    results = demo.measurement.Evaluator(demo.data.test_images(18)).measure(Oracle())
    assert results == {"AP": pytest.approx(100), "AP50": pytest.approx(100), "AP75": pytest.approx(100)}


def test_texts_on_an_image_are_inside_and_apart(demo):
    boxes = [(10.0, 2.0, 30.0, 30.0), (12.0, 4.0, 32.0, 34.0), (100.0, 60.0, 128.0, 128.0), (96.0, 58.0, 127.0, 120.0)]
    objects = [_scored_object(demo, box, 0.5) for box in boxes]
    own = demo.measurement.ScoredObject(1, boxes[0], 0.5)
    placed = demo.report.labels(demo.measurement.ScoredImage(np.zeros((128, 128, 3), np.uint8), [own, *objects]))
    assert [one for _, _, one in placed] == objects, "the image's own objects are not labelled"
    for number, (x, y, _) in enumerate(placed):
        assert 0 <= x <= 128 - 40
        assert 9 <= y <= 128
        assert all(abs(x - other[0]) >= 40 or abs(y - other[1]) >= 9 for other in placed[:number])


def test_a_file_is_replaced_as_a_whole(demo, tmp_path):
    path = tmp_path / "results.json"
    demo.results.write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        demo.results.write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("flag", ["--iterations", "--train-images", "--test-images", "--measurements"])
def test_a_flag_below_one_is_refused(demo, flag, capsys, tmp_path):
    with pytest.raises(SystemExit):
        demo.main([flag, "0", "--out", str(tmp_path)])
    assert "expected at least 1, got 0" in capsys.readouterr().err
