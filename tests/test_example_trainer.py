"""The plain-PyTorch trainer in examples/torchvision: tiny runs."""

import importlib
import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trainer_samples as samples
from example_modules import importable, modules_of
from PIL import Image
from trainer_samples import HEIGHT, WIDTH

from terse_aug import PasteConfig, Robustness, TransformRanges
from terse_aug.config import POLICY_SETTINGS, Critic

REPOSITORY = Path(__file__).parents[1]
EXAMPLE = REPOSITORY / "examples" / "torchvision"
MODULES = ("checkpoint", "datasets", "evaluation", "loading", "models", "options", "pasting", "schedule", "sources")
RESNETS = ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos")
MODELS = (
    *("fasterrcnn_mobilenet_v2_fpn", *(f"{name}_resnet50_fpn" for name in RESNETS)),
    *("ssd300_vgg16", "ssdlite320_mobilenet_v3_large"),
)

# pycocotools 2.0.11 decodes masks through an `__array__` from before NumPy 2; nothing in our hands.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


@pytest.fixture(scope="module")
def example():
    """The example's modules, imported as a script of its folder sees them, and unloaded afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with importable(EXAMPLE, "train", "train_with_terse", "detection"):
        mains = {name: importlib.import_module(name).main for name in ("train", "train_with_terse")}
        yield modules_of("detection", *MODULES, main=mains["train"], main_with_terse=mains["train_with_terse"])
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return samples.write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def coco_set(example, coco):
    """The set of `coco` for training."""
    return example.datasets.DetectionDataset(coco / "annotations.json", coco)


def test_coco_targets(example, coco, coco_set):
    assert (coco_set.classes, len(coco_set)) == (["person", "dog"], 5)
    reasons = ("crowd annotations", "boxes thinner than a pixel", "images without a usable box")
    assert coco_set.dropped == dict.fromkeys(reasons, 1)
    image, target = coco_set[1]
    assert image.shape == (3, HEIGHT, WIDTH)
    assert 0 <= image.min() < image.max() <= 1
    expected = {"labels": [1, 2], "boxes": [[9, 15, 33, 45], [49, 15, 73, 45]], "area": [720, 720], "iscrowd": [0, 0]}
    assert {name: target[name].tolist() for name in expected} == expected
    assert (target["image_id"], target["masks"].dtype) == (11, torch.bool)
    assert target["keypoints"].shape == (2, 3, 3)
    assert not target["keypoints"][1].any()  # the dog has none
    kept = example.datasets.DetectionDataset(coco / "annotations.json", coco, keep_empty=True)
    shapes = {"boxes": (0, 4), "masks": (0, HEIGHT, WIDTH), "keypoints": (0, 3, 3)}
    assert {name: tuple(kept[5][1][name].shape) for name in shapes} == shapes


def test_masks_are_all_or_none_and_classes_are_known(example, coco, tmp_path):
    content = json.loads((coco / "annotations.json").read_text())
    content["annotations"][0]["segmentation"] = []
    (tmp_path / "partly.json").write_text(json.dumps(content))
    partly = example.datasets.DetectionDataset(tmp_path / "partly.json", coco)
    assert "masks" not in partly[0][1]
    assert partly.dropped["masks, because other objects have none"] == 9
    with pytest.raises(ValueError, match="needs masks"):
        example.models.build("maskrcnn_resnet50_fpn", partly)
    with pytest.raises(ValueError, match=r"\['dog'\] are not among the training set's"):
        example.datasets.DetectionDataset(coco / "annotations.json", coco, classes=["person"])


def test_penn_fudan_targets_and_split(example, data_root):
    dataset = example.datasets.penn_fudan(data_root / "penn_fudan", ["FudanPed00001", "PennPed00027"])
    for _, target in (dataset[0], dataset[1]):
        for (left, top, right, bottom), mask in zip(target["boxes"].int().tolist(), target["masks"], strict=True):
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert all(edge.any() for edge in (mask[top], mask[bottom - 1], mask[:, left], mask[:, right - 1]))
    assert example.evaluation.Evaluator(dataset).score(samples.perfect_predictions(dataset))["mask"]["AP"] == 100.0
    with pytest.raises(FileNotFoundError, match="no image and mask"):
        example.datasets.penn_fudan(data_root / "penn_fudan", ["PennPed99999"])
    written = json.loads((REPOSITORY / "benchmarks" / "penn_fudan_split.json").read_text())
    split = example.sources.split_penn_fudan(example.datasets.penn_fudan_names(data_root / "penn_fudan"))
    train = split["train"]
    assert written == {"train_20": train[:20], "train_60": train[:60], "test": split["test"]}
    assert not set(written["test"]) & set(train)


def test_flipping_twice_is_the_identity(example, coco_set):
    order = example.loading.flipped_keypoints(coco_set.keypoint_names)
    assert order == [0, 2, 1]
    image, target = coco_set[2]
    once_image, once = example.loading.flip(image, target, order)
    twice_image, twice = example.loading.flip(once_image, once, order)
    assert torch.equal(twice_image, image)
    for key in ("boxes", "masks", "keypoints", "labels"):
        assert torch.equal(twice[key], target[key]), key
    left, top, right, bottom = once["boxes"][0].int().tolist()
    assert once["masks"][0, top:bottom, left:right].all()
    assert once_image[0, top:bottom, left:right].min() > 0.9  # the red person went with its box
    assert once["keypoints"][0, 2].tolist() == [WIDTH - target["keypoints"][0, 1, 0], 25, 2]
    assert once["keypoints"][0, 1].tolist() == [0, 0, 0]


def test_order_is_a_function_of_seed_and_position(example):
    order = example.loading.TrainingOrder
    whole = list(order(7, 3, seed=4, start=0, end=14))
    assert list(order(7, 3, seed=4, start=9, end=14)) == whole[9:]
    assert list(order(7, 3, seed=5, start=0, end=14)) != whole
    draws, unflipped = itertools.chain(*whole), itertools.chain(*order(7, 3, seed=4, start=0, end=14, flip=False))
    indices, flipped = zip(*draws, strict=True)
    assert all(sorted(indices[at : at + 7]) == list(range(7)) for at in range(0, 42, 7))
    assert 0.2 < np.mean(flipped) < 0.8
    assert list(unflipped) == [(index, False) for index in indices]


def test_learning_rate(example):
    none, step, cosine = (
        [example.schedule.learning_rate(i, 90, 1.0, 9, decay) for i in range(90)]
        for decay in ("none", "step", "cosine")
    )
    assert none[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert none[-1] == cosine[9] == 1
    assert [step[59], step[60], step[-1]] == pytest.approx([1, 0.1, 0.01])
    assert cosine[-1] < 0.01


def test_perfect_and_empty_predictions(example, coco_set):
    evaluator = example.evaluation.Evaluator(coco_set)
    perfect = evaluator.score(samples.perfect_predictions(coco_set))
    for kind in ("box", "mask"):
        assert perfect[kind]["AP"] == perfect[kind]["AP75"] == 100.0
        assert perfect[kind]["per_class"] == {"person": 100.0, "dog": 100.0}
        assert perfect[kind]["AP_large"] is None  # there are no large objects
    shifted = samples.perfect_predictions(coco_set)
    for prediction in shifted.values():
        prediction["boxes"] = prediction["boxes"] + 3
    assert 0 < evaluator.score(shifted)["box"]["AP"] < 60
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "scores": torch.zeros(0)}
    for predictions in ({}, {10: nothing}):
        assert evaluator.score(predictions)["box"]["AP"] == 0.0

    class Silent(torch.nn.Module):
        def forward(self, images):
            assert not self.training
            return [nothing for _ in images]

    detector = Silent().train()
    assert evaluator.measure(detector, torch.device("cpu"), batch_size=2, workers=0)["box"]["AP"] == 0.0
    assert detector.training


@pytest.mark.parametrize("policy", [None, "critic"])
def test_resumed_run_equals_uninterrupted(example, coco, tmp_path, monkeypatch, policy):
    main = example.main_with_terse if policy else example.main
    flags = ["--iterations", "4", "--checkpoint-every", "2", "--eval-every", "2", "--image-every", "2"]
    pasting = f"--policy {policy} --objects 2 2 --paste-probability 1 --close-fraction 0.25 --probe-images 8"
    flags += f"{pasting} --{policy}-update-interval 2".split() if policy else []
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    resumed.mkdir()
    save = example.checkpoint.save

    def save_and_copy(path, objects, iteration, notes):
        save(path, objects, iteration, notes)
        if iteration == 2:
            shutil.copy(path, resumed)

    monkeypatch.setattr(example.checkpoint, "save", save_and_copy)
    main(samples.coco_flags(coco, whole, *flags))
    main(samples.coco_flags(coco, resumed, *flags, "--resume"))
    expected, actual = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, resumed))
    assert set(actual["objects"]) == {"detector", "optimizer", *(["terse"] if policy else [])}
    assert expected.pop("notes")["history"] == actual.pop("notes")["history"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    assert actual["iteration"] == 4
    assert len(actual["objects"]["optimizer"]["state"]) > 50
    results = samples.check_results(resumed)
    if policy:
        samples.check_probe(resumed, results, actual["objects"]["terse"])
        assert actual["objects"]["terse"]["trainer.updater.policy.network.head.2.weight"].any()  # it starts at zero
    renamed = (coco / "annotations.json").read_text().replace('"dog"', '"horse"')
    (coco / "renamed.json").write_text(renamed)
    other = ["--annotations", coco / "renamed.json", "--val-annotations", coco / "renamed.json", "--resume"]
    with pytest.raises(ValueError, match="the checkpoint is for"):
        main(samples.coco_flags(coco, resumed, *flags, *other))


def pasting_flags(example, flags):
    """The flags of the script with terse-aug, parsed."""
    return example.pasting.add_flags(example.options.parser("")).parse_args(flags.split())


def test_flags_become_settings(example, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "background.png")
    flags = "--policy critic --critic-fixed-parameters --critic-learning-rate 0.01 --objects 1 5 --rotation -5 5.5"
    flags += f" --sampler dog=3,cat=1 --backgrounds {tmp_path} --background-probability 0.3"
    flags += " --robustness --robustness-steps 2"
    read = example.pasting.settings(pasting_flags(example, flags))
    assert read.pop("backgrounds").probability == 0.3
    assert read == {
        "policy": Critic(fixed_parameters=(), learning_rate=0.01),
        "paste": PasteConfig(objects=(1, 5), ranges=TransformRanges(rotation=(-5, 5.5))),
        "sampler": "dog=3,cat=1",
        "robustness": Robustness(steps=2),
    }
    assert example.pasting.probe(None, None, None, 0, 4) == {}
    for name, kind in POLICY_SETTINGS.items():
        read = example.pasting.settings(pasting_flags(example, f"--policy {name}"))
        assert read == {"policy": kind(), "paste": PasteConfig(), "sampler": "uniform"}


def test_a_bank_is_of_the_images_that_are_trained_on(example, coco, tmp_path):
    """Also if another subset was trained on with the same --out."""
    args = pasting_flags(example, " ".join(samples.coco_flags(coco, tmp_path)))
    sources = []
    for limit in (2, 4, 2):
        known = example.datasets.DetectionDataset(coco / "annotations.json", coco, limit=limit)
        with example.pasting.open_bank(args, known) as bank:
            sources.append({foreground.source.partition("#")[0] for foreground in bank})
    assert sources[0] == sources[2] < sources[1]
    assert len(list(tmp_path.glob("foregrounds-*.bank"))) == 2


def test_an_image_is_rotated_by_its_exif_tag(example, tmp_path):
    image, path, read = Image.new("RGB", (8, 4)), tmp_path / "a.png", example.datasets.read_image
    image.putpixel((0, 0), (255, 0, 0))
    exif = image.getexif()
    exif[0x0112] = 3  # half a turn
    image.save(path, exif=exif)
    assert read(path)[:, 3, 7].tolist() == [1, 0, 0]
    exif[0x0112] = 6  # a quarter
    image.save(path, exif=exif)
    for annotated, shape in ((None, (8, 4)), ((4, 8), (8, 4)), ((8, 4), (4, 8))):  # width, height; what fits is taken
        assert read(path, annotated).shape[1:] == shape


def test_checkpoints_of_either_script(example, tmp_path, capsys):
    def parts(*names):
        return {name: torch.nn.Linear(2, 1) for name in ("detector", "optimizer", *names)}

    path, save, load = tmp_path / "checkpoint.pt", example.checkpoint.save, example.checkpoint.load
    save(path, saved := parts("terse"), 3, {"classes": ["person"]})
    loaded, restored = load(path), parts()
    assert (loaded.iteration, loaded.notes) == (3, {"classes": ["person"]})
    loaded.restore(restored)
    assert torch.equal(restored["detector"].weight, saved["detector"].weight)
    assert "'terse' is not used here" in capsys.readouterr().out
    save(path, parts(), 3, {})
    load(path).restore(parts("terse"))
    assert "no state for 'terse', which starts from scratch" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no terse"):
        load(path).restore(parts("terse"), required=("terse",))
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="use --weights"):
        load(path)


def test_penn_fudan_run_from_backbone_weights(example, data_root, tmp_path):
    names = example.datasets.penn_fudan_names(data_root / "penn_fudan")
    (tmp_path / "split.json").write_text(json.dumps({"few": names[:3], "test": names[-2:]}))
    flags = f"--penn-fudan {data_root}/penn_fudan --split {tmp_path}/split.json --train-part few --train-images 2 "
    flags += f"--weights {data_root}/weights/mobilenet_v2.pth --image-size 96 --batch-size 2 --iterations 2 "
    flags += f"--amp --threads 1 --workers 1 --log-every 1 --out {tmp_path}/run"
    example.main(flags.split())
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["split"] == {"train": names[:2], "test": names[-2:]}
    assert results["evaluations"][0]["iteration"] == 2

    weights = torch.load(data_root / "weights" / "mobilenet_v2.pth", weights_only=True)
    trained = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["objects"]["detector"]
    for frozen in ("0.0.weight", "3.conv.0.0.weight", "17.conv.1.1.running_mean"):
        assert torch.equal(trained[f"backbone.body.{frozen}"], weights[f"features.{frozen}"]), frozen
    assert not torch.equal(trained["backbone.body.4.conv.0.0.weight"], weights["features.4.conv.0.0.weight"])


def test_detector_weights_for_other_classes(example, coco_set, tmp_path, capsys):
    name = "fasterrcnn_mobilenet_v2_fpn"
    source = example.models.build(name, SimpleNamespace(classes=["cat"], has_masks=False, keypoint_names=[]))
    torch.save({"model": source.state_dict()}, tmp_path / "cat.pth")
    detector = example.models.build(name, coco_set, weights=tmp_path / "cat.pth")
    assert torch.equal(detector.rpn.head.conv[0][0].weight, source.rpn.head.conv[0][0].weight)
    assert "roi_heads.box_predictor.cls_score.weight" in capsys.readouterr().out
    with pytest.raises(ValueError, match="do not fit"):
        example.models.build("retinanet_resnet50_fpn", coco_set, weights=tmp_path / "cat.pth")
    torch.save({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "torn.pth")
    with pytest.raises(ValueError, match="lacks"):
        example.models.build(name, coco_set, weights=tmp_path / "torn.pth")
    with pytest.raises(ValueError, match="whole detector's weights"):
        example.models.build("ssd300_vgg16", coco_set, weights=tmp_path / "torn.pth")


@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_and_predicts(example, coco_set, name, monkeypatch):
    for fill in ("normal_", "kaiming_uniform_"):
        monkeypatch.setattr(torch.nn.init, fill, samples.zero_if_large(getattr(torch.nn.init, fill)))
    assert tuple(example.models.MODELS) == MODELS
    fixed_size = example.models.MODELS[name].image_size is None
    torch.manual_seed(0)
    detector = example.models.build(name, coco_set, None if fixed_size else (64, 96)).train()
    if name.endswith("rcnn_resnet50_fpn"):  # its per-box heads are slow, and a few boxes are enough
        detector.roi_heads.fg_bg_sampler.batch_size_per_image = 16
        detector.roi_heads.detections_per_img = 4
    count = 2 if name.startswith("ssdlite") else 1  # its BatchNorm is trained, on maps of one pixel
    images, targets = zip(*(coco_set[index] for index in range(count)), strict=True)
    sum(detector(list(images), list(targets)).values()).backward()
    assert any(parameter.grad is not None for parameter in detector.parameters())
    with torch.inference_mode():
        output = detector.eval()([images[0]])[0]
    prediction = example.evaluation.compact(output)
    assert prediction["boxes"].shape == (len(prediction["scores"]), 4)
    assert ("masks" in prediction) == name.startswith("maskrcnn")
    if fixed_size:
        with pytest.raises(ValueError, match="one fixed size"):
            example.models.build(name, coco_set, (64, 96))


MESSAGES = {
    "": "either --annotations",
    "--annotations a.json": "needs --images",
    "--penn-fudan x --image-size 9 3": "SHORTER",
    "--penn-fudan x --iterations 0": "at least 1",
}
REFUSED = ["--objects 1", "--objects 3 1", "--depth 3", "--critic-candidates 4", "--robustness-steps 2"]


@pytest.mark.parametrize("flags", [*MESSAGES, *REFUSED, "--policy best-of-n --best-of-n-candidates 0"])
def test_flags_that_make_no_sense_are_refused(example, capsys, flags):
    with pytest.raises((SystemExit, ValueError)):
        example.main(flags.split()) if flags in MESSAGES else example.pasting.settings(pasting_flags(example, flags))
    assert MESSAGES.get(flags, "") in capsys.readouterr().err


def test_runs_as_a_script_from_anywhere(tmp_path):
    command = [sys.executable, EXAMPLE / "train.py", "--help"]
    assert b"--penn-fudan" in subprocess.run(command, cwd=tmp_path, capture_output=True, check=True).stdout
