"""Backgrounds of a pool, distractors, and occludees: objects of other classes behind the pastes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    all_equal,
    every_image,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
    policy_with,
)
from PIL import Image
from torch import Tensor

from terse_aug import (
    BackgroundPool,
    Distractors,
    ForegroundBank,
    ForegroundLoader,
    Paste,
    PasteConfig,
    PixelFormat,
    Terse,
    TerseWarning,
    TransformRanges,
    probe,
)
from terse_aug.bank import BankWriter, Foreground
from terse_aug.models import ClassifierAdapter, class_of
from terse_aug.preview import Sample, preview_samples
from terse_aug.samplers import HardnessSampler, WeightedSampler
from terse_aug.utils.random import generator_for

COLOURS = np.array(
    [
        [255, 0, 0],
        [0, 255, 0],
        [0, 0, 255],
        [255, 255, 0],
        [255, 0, 255],
        [0, 255, 255],
        [255, 255, 255],
        [255, 128, 0],
    ],
    np.uint8,
)
"""Every foreground has its own color, so that its visible pixels can be found."""


def plain_paste(**settings: Any) -> PasteConfig:
    """Every image is pasted on, with hard edges and without decoys."""
    return every_image(**({"edge_blur_sigma": 0.0} | settings))


def coloured(number: int, label: int, relative_size: float = 0.4) -> Foreground:
    plain = make_foreground(number, label=label, side=24, relative_size=relative_size)
    plain.rgba[..., :3] = COLOURS[number]
    return plain


@pytest.fixture
def bank(tmp_path: Path) -> ForegroundBank:
    return make_bank(tmp_path, [coloured(number, label=(1, 2, 7)[number % 3]) for number in range(6)])


@pytest.fixture
def distractors(tmp_path: Path) -> ForegroundBank:
    with BankWriter(tmp_path / "distractors.bank", {1: "teapot", 2: "chair"}) as out:
        out.add(coloured(6, 1))
        out.add(coloured(7, 2, relative_size=0.5))
    return ForegroundBank.open(tmp_path / "distractors.bank")


def black_batch(objects: int = 0) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images, targets = make_batch(3, sizes=((96, 120), (110, 100)), objects=objects, masks=True)
    return [torch.zeros_like(image) for image in images], targets


def shown(image: Tensor, number: int) -> Tensor:
    """The pixels whose color is nearest to that of a foreground, bool ``[H, W]``."""
    palette = torch.cat([torch.from_numpy(COLOURS).float() / 255, torch.zeros(1, 3)])
    return (image[None] - palette[:, :, None, None]).square().sum(1).argmin(0) == number


def check_labels(image: Tensor, target: dict[str, Tensor], pastes: list[Paste]) -> int:
    """Check that masks are the visible pixels of labelled objects, and boxes enclose them; how many were checked."""
    checked = 0
    for paste in pastes:
        if paste.row is None or sum(other.index == paste.index for other in pastes) > 1:
            continue
        mask, seen = target["masks"][paste.row].bool(), shown(image, paste.index)
        assert int((mask ^ seen).sum()) <= 0.15 * int(mask.sum()) + 3
        rows, columns = mask.nonzero(as_tuple=True)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert target["boxes"][paste.row].tolist() == [float(side) for side in box]
        assert int(target["labels"][paste.row]) == paste.label
        checked += 1
    return checked


# --- backgrounds ----------------------------------------------------------------------------------------------------


def grey(level: float, size: tuple[int, int] = (50, 70)) -> Tensor:
    return torch.full((3, *size), level)


def test_an_image_of_the_pool_has_only_what_is_pasted(bank: ForegroundBank) -> None:
    terse = Terse(
        bank, "random", backgrounds=BackgroundPool([grey(0.2), grey(0.4)], probability=0.5), paste=plain_paste()
    )
    kept = replaced = 0
    for step in range(20):
        images, targets = make_batch(step, objects=2, masks=True)
        before = [image.clone() for image in images]
        composites, corrected = terse(images, targets)
        assert all_equal(images, before)
        for number, (image, target) in enumerate(zip(composites, corrected, strict=True)):
            if number not in terse.replaced:
                kept += 1
                continue
            replaced += 1
            assert image.shape == images[number].shape
            assert image.dtype == images[number].dtype
            pastes = terse.pastes[number]
            assert 1 <= len(pastes) <= 3
            assert len(target["boxes"]) == len(target["labels"]) == len(target["masks"])
            assert len(target["boxes"]) == sum(paste.row is not None for paste in pastes)
            level = 0.2 * (1 + terse.replaced[number])
            free = ~target["masks"].bool().any(0)
            assert float(((image - level).abs().amax(0) < 0.01)[free].float().mean()) > 0.85
    assert terse.metrics()["backgrounds"] == replaced
    assert replaced / (kept + replaced) == pytest.approx(0.5, abs=0.2)


def test_an_image_of_the_pool_gets_a_paste_whatever_the_others_get(bank: ForegroundBank) -> None:
    paste = PasteConfig(paste_probability=0.0, objects=(0, 2), edge_blur_sigma=0.0)
    terse = Terse(bank, backgrounds=BackgroundPool([grey(0.2)], probability=0.5), paste=paste)
    loader = ForegroundLoader(bank, paste=paste, background_probability=0.5)
    for sampled in (None, True):
        seen = 0
        for step in range(15):
            batch = make_batch(step)
            terse(*batch, None if sampled is None else [loader() for _ in batch[0]])
            assert [bool(pastes) for pastes in terse.pastes] == [number in terse.replaced for number in range(2)]
            seen += len(terse.replaced)
        assert 5 < seen < 25


@pytest.mark.parametrize("pixels", [PixelFormat(255.0, bgr=True), PixelFormat(1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
def test_the_pool_comes_in_the_format_of_the_framework(bank: ForegroundBank, pixels: PixelFormat) -> None:
    colour = torch.tensor([0.8, 0.4, 0.2])[:, None, None]
    pool = [(colour.expand(3, 60, 60) * 255).to(torch.uint8)]
    terse = Terse(
        bank, "random", backgrounds=BackgroundPool(pool, probability=1.0), paste=plain_paste(), pixel_format=pixels
    )
    images, targets = make_batch(masks=True)
    composites, corrected = terse([pixels.encode(image).double() for image in images], targets)
    for image, target in zip(composites, corrected, strict=True):
        assert image.dtype == torch.float64
        free = ~target["masks"].bool().any(0)
        difference = (pixels.decode(image) - colour).abs().amax(0)[free]
        assert float((difference < 0.01).float().mean()) > 0.85


def test_every_field_of_an_object_goes_with_it(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=("nose", "left_eye", "right_eye"))
    images, targets = make_batch(objects=3, masks=True, keypoints=True)
    for number, target in enumerate(targets):
        target |= {
            "ids": torch.arange(3) + 10,
            "area": torch.ones(3),
            "iscrowd": torch.ones(3, dtype=torch.long),
            "image_id": torch.tensor([number]),
        }
    terse = Terse(
        bank, "random", paste=every_image(objects=(2, 2)), backgrounds=BackgroundPool([grey(0.3)], probability=1.0)
    )
    _, corrected = terse(images, targets)
    for number, target in enumerate(corrected):
        count = len(target["boxes"])
        assert 1 <= count <= 2
        assert {name: len(value) for name, value in target.items()} == dict.fromkeys(target, count) | {"image_id": 1}
        assert (target["ids"] < 0).all()
        assert (target["iscrowd"] == 0).all()
        assert target["image_id"].tolist() == [number]
        assert len(targets[number]["ids"]) == 3


def test_pools_are_folders_paths_or_tensors(tmp_path: Path, bank: ForegroundBank) -> None:
    (tmp_path / "pool" / "deep").mkdir(parents=True)
    for number, name in enumerate(("b.png", "deep/a.jpg", "c.JPEG")):
        Image.new("RGB", (40 + number, 30), (50 * number,) * 3).save(tmp_path / "pool" / name)
    (tmp_path / "pool" / "notes.txt").write_text("no image")
    pool = BackgroundPool(tmp_path / "pool")
    assert [Path(pool.name(number)).name for number in range(len(pool))] == ["b.png", "c.JPEG", "a.jpg"]
    for size in ((20, 30), (100, 30), (1, 1)):
        part = pool.crop(0, *size, generator_for(0))
        assert part.shape == (*size, 3)
        assert part.dtype == np.uint8
    # A crop has the shape of the image: nothing is squeezed.
    ramp = torch.arange(200).expand(3, 100, 200).to(torch.uint8)
    row = BackgroundPool([ramp]).crop(0, 50, 50, generator_for(1))[0, :, 0].astype(int)
    assert 60 <= row[-1] - row[0] <= 100
    for wrong, message in (
        (tmp_path / "nowhere", "expected a folder or a sequence of images, got"),
        ([], "expected at least one image, got none"),
        ([torch.zeros(30, 40, 3)], r"background 0: expected a path or a tensor \[3, H, W\], got \[30, 40, 3\]"),
        ([torch.full((3, 4, 4), 200.0)], r"background 0: expected a float tensor in \[0, 1\], or uint8"),
        ([torch.zeros(3, 4, 4, dtype=torch.int32)], "expected a float or uint8 tensor, got torch.int32"),
    ):
        with pytest.raises(ValueError, match=message):
            BackgroundPool(wrong, probability=1.0)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize("sampler", ["uniform", "balanced"])
def test_a_background_that_cannot_be_read_is_counted_and_the_image_stays(
    tmp_path: Path, bank: ForegroundBank, sampler: str
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG, but not really")
    files = [tmp_path / "broken.png", tmp_path / "gone.png"]
    terse = Terse(
        bank, "random", backgrounds=BackgroundPool(files, probability=1.0), paste=plain_paste(), sampler=sampler
    )
    images, targets = make_batch(masks=True)
    with pytest.warns(TerseWarning, match=r"background .*(broken|gone).png cannot be read; the image keeps its own"):
        _, corrected = terse(images, targets)
    assert terse.metrics()["dropped/background_unreadable"] == 2
    assert terse.metrics()["backgrounds"] == 0
    assert not terse.replaced
    assert all(terse.pastes)
    assert all(len(target["ids"] if "ids" in target else target["boxes"]) >= 1 for target in corrected)


def test_wrong_settings_are_refused(bank: ForegroundBank, distractors: ForegroundBank, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="probability: expected a fraction"):
        BackgroundPool([grey(0.2)], probability=1.5)
    with pytest.raises(ValueError, match="count: expected whole numbers"):
        Distractors(distractors, count=(2, 1))
    for pool, message in (("folder", "expected a BackgroundPool"), (BackgroundPool([grey(0.2)]), "objects above 0")):
        with pytest.raises(ValueError, match=message):
            Terse(bank, paste=PasteConfig(objects=(0, 0)), backgrounds=pool)  # type: ignore[arg-type]  # wrong
    with pytest.raises(ValueError, match="objects above 0"):
        ForegroundLoader(bank, paste=PasteConfig(objects=(0, 0)), background_probability=0.5)
    with pytest.raises(ValueError, match="sampler: expected one of uniform"):
        Terse(bank, sampler=3)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match=r"expected a bank with at least two classes, .*got \['cat'\]"):
        Terse(make_bank(tmp_path, [make_foreground(label=1)]), paste=PasteConfig(occluded_object_probability=0.5))


@pytest.mark.parametrize("name", ["maskrcnn", "retinanet"])
def test_a_detector_learns_from_images_of_the_pool_even_if_nothing_could_be_pasted(
    bank: ForegroundBank, name: str
) -> None:
    detector = make_detector(name, classes=8)
    for min_side, objects in ((4.0, 3), (60.0, 0)):
        pool = BackgroundPool([grey(0.2)], probability=1.0)
        terse = Terse(bank, backgrounds=pool, paste=plain_paste(min_side=min_side))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TerseWarning)
            images, targets = terse(*make_batch(masks=True))
        assert max(len(target["boxes"]) for target in targets) <= objects
        losses = detector(images, targets)
        torch.stack(list(losses.values())).sum().backward()
        assert all(bool(loss.isfinite()) for loss in losses.values())
        terse.step(losses)


# --- distractors ----------------------------------------------------------------------------------------------------


def test_distractors_show_have_no_label_and_hide_what_is_beneath(
    bank: ForegroundBank, distractors: ForegroundBank
) -> None:
    terse = Terse(
        bank,
        "random",
        paste=plain_paste(objects=(1, 2)),
        distractors=Distractors(distractors, count=(2, 3)),
    )
    checked = seen = shrunk = 0
    for _ in range(25):
        images, targets = black_batch(objects=2)
        composites, corrected = terse(images, [dict(target) for target in targets])
        for image, target, before, pastes in zip(composites, corrected, targets, terse.pastes, strict=True):
            checked += check_labels(image, target, pastes)
            unlabelled = shown(image, 6) | shown(image, 7)
            assert all(paste.index < 6 for paste in pastes)
            assert set(target["labels"].tolist()) <= {1, 2, 7}
            assert not any(
                int((mask.bool() & unlabelled).sum()) > 0.1 * int(mask.sum()) + 3 for mask in target["masks"]
            )
            seen += int(unlabelled.sum())
            shrunk += int(before["masks"].sum()) - int(target["masks"][: len(target["masks"]) - len(pastes)].sum())
    assert checked > 30
    assert seen > 5000
    assert shrunk > 0
    metrics = terse.metrics()
    assert metrics["distractors"] + metrics["dropped/distractor_not_shown"] == pytest.approx(2.5 * 50, abs=20)
    assert metrics["objects_pasted"] <= 100


def test_keypoints_of_distractors_do_not_reach_the_target(tmp_path: Path) -> None:
    """Banks of other creatures have other keypoints."""
    people = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=("nose", "left_eye", "right_eye"))
    with BankWriter(tmp_path / "crabs.bank", {1: "crab"}, keypoint_names=("claw",)) as out:
        out.add(make_foreground(3, keypoints=np.array([[5, 5, 2]], np.float32)))
    crabs = ForegroundBank.open(tmp_path / "crabs.bank")
    terse = Terse(
        people,
        "random",
        paste=plain_paste(flip_probability=1.0),
        distractors=Distractors(crabs, count=(3, 3)),
    )
    _, targets = terse(*make_batch(masks=True, keypoints=True))
    assert terse.metrics()["distractors"] == 6
    assert all(len(target["keypoints"]) == len(target["boxes"]) for target in targets)


def test_distractors_are_beneath_the_pastes(bank: ForegroundBank, distractors: ForegroundBank) -> None:
    still = TransformRanges((0, 0), (0, 0), (1, 1), (1, 1), (1, 1), (0.5, 0.5), (0.5, 0.5))
    terse = Terse(
        bank,
        "random",
        paste=plain_paste(objects=(1, 1), ranges=still),
        distractors=Distractors(distractors, count=(3, 3)),
    )
    images, _ = terse(*black_batch())
    for image, (paste,) in zip(images, terse.pastes, strict=True):
        assert paste.row == 0
        middle = image[:, image.shape[1] // 2, image.shape[2] // 2]
        assert torch.allclose(middle, torch.from_numpy(COLOURS[paste.index]) / 255, atol=0.02)


@pytest.mark.parametrize("name", ["cat", " Dog "])
def test_a_distractor_of_a_class_that_the_detector_knows_is_refused(
    tmp_path: Path, bank: ForegroundBank, name: str
) -> None:
    with BankWriter(tmp_path / "some.bank", {4: "teapot", 5: name}) as out:
        out.add(coloured(6, 4))
        out.add(coloured(7, 5))
    some = ForegroundBank.open(tmp_path / "some.bank")
    with pytest.raises(ValueError, match=f"distractors: {name}: the detector knows this class"):
        Terse(bank, "random", distractors=Distractors(some, count=(1, 1)))
    assert Terse(bank, "random", distractors=Distractors(some.select(categories=[4]), count=(1, 1)))
    # Named by the detector, though the bank has none of it.
    with pytest.raises(ValueError, match="distractors: teapot: the detector knows this class"):
        Terse(
            bank,
            "random",
            distractors=Distractors(some.select(categories=[4]), count=(1, 1)),
            classes=["teapot", "cat", "dog", "zebra"],
        )


# --- objects behind -------------------------------------------------------------------------------------------------


def test_an_occludee_is_of_another_class_and_labelled_by_its_visible_pixels(bank: ForegroundBank) -> None:
    terse = Terse(
        bank,
        "random",
        paste=plain_paste(occluded_object_probability=1.0, objects=(1, 2), min_visibility=0.3),
    )
    checked = near = labelled = hidden = 0
    for step in range(30):
        images, targets = terse(*black_batch(objects=step % 2))
        for image, target, pastes in zip(images, targets, terse.pastes, strict=True):
            checked += check_labels(image, target, pastes)
            front = [paste for paste in pastes if paste.number is not None]
            behind = [paste for paste in pastes if paste.number is None]
            assert pastes == behind + front
            assert len(behind) == len(front)
            for one, other in zip(behind, front, strict=True):
                assert one.label != other.label
                labelled += one.row is not None
                hidden += one.row is None
                if one.row is not None and other.row is not None and len(front) == 1:
                    first, second = target["boxes"][one.row], target["boxes"][other.row]
                    near += bool((first[:2] < second[2:] + 2).all() and (first[2:] > second[:2] - 2).all())
    metrics = terse.metrics()
    assert checked > 80
    assert near > 10
    assert labelled > hidden > 0
    assert metrics["occludees"] == labelled + hidden


def test_a_class_without_weight_is_no_occludee(bank: ForegroundBank) -> None:
    without = next(iter(bank.categories))
    terse = Terse(
        bank,
        "random",
        paste=plain_paste(occluded_object_probability=1.0),
        sampler=WeightedSampler({without: 0.0}),
    )
    labels = []
    for _ in range(10):
        terse(*black_batch())
        labels += [paste.label for pastes in terse.pastes for paste in pastes]
    assert labels
    assert without not in labels


def test_a_fraction_of_the_pastes_has_an_occludee(bank: ForegroundBank) -> None:
    terse = Terse(
        bank,
        "random",
        paste=plain_paste(occluded_object_probability=0.3, objects=(2, 2)),
    )
    for step in range(60):
        terse(*make_batch(step))
    metrics = terse.metrics()
    assert metrics["occludees"] / (metrics["objects_pasted"] - metrics["occludees"]) == pytest.approx(0.3, abs=0.1)
    terse.restrict_labels([1, 7])
    for step in range(5):
        terse(*make_batch(step))
        assert {paste.label for pastes in terse.pastes for paste in pastes} <= {1, 7}
    terse.restrict_labels([1])
    terse(*make_batch())
    assert all(paste.number is not None for pastes in terse.pastes for paste in pastes)


def test_the_class_of_a_classifiers_image_is_that_of_the_object_in_front(bank: ForegroundBank) -> None:
    terse = Terse(
        bank,
        "random",
        paste=plain_paste(occluded_object_probability=1.0, objects=(1, 1), min_visibility=0.0),
    )
    for step in range(5):
        _, targets = terse(*make_batch(step, objects=0))
        front = [pastes[-1].label for pastes in terse.pastes]
        assert all(len(pastes) == 2 for pastes in terse.pastes)
        assert class_of(targets).tolist() == front


@pytest.mark.parametrize("policy", ["critic", "adversarial", "best-of-n"])
def test_policies_learn_from_their_own_pastes_only(
    bank: ForegroundBank, distractors: ForegroundBank, policy: str
) -> None:
    """With everything on, the policy learns from the frontmost paste of each image only, which a classifier scores."""
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 8))
    model, sampler = ClassifierAdapter(net, 8), HardnessSampler()
    sampler.update_interval = 1
    terse = Terse(
        bank,
        policy_with(policy, update_interval=1, foreground_candidates=2),
        paste=every_image(occluded_object_probability=0.7, objects=(2, 2)),
        backgrounds=BackgroundPool([grey(0.3)], probability=0.5),
        distractors=Distractors(distractors, count=(1, 1)),
        model=model,
        sampler=sampler,
    )
    learned_from = 0
    for step in range(4):
        images, targets = terse(*make_batch(step, sizes=((64, 64), (64, 64))))
        for pastes, found in zip(terse.pastes, targets, strict=True):
            learned_from += sum(p.row == len(found["labels"]) - 1 and p.number is not None for p in pastes)
        model.image_losses(
            list(images), targets, differentiable=True
        ).mean().backward() if policy == "adversarial" else None
        terse.step(1.0)
    assert terse.metrics()["updates"] == (0 if policy == "best-of-n" else 4)
    assert float(terse.sampler.state()["totals"][1].sum()) == pytest.approx(learned_from, rel=0.2)


# --- all of it ------------------------------------------------------------------------------------------------------


def everything(bank: ForegroundBank, distractors: ForegroundBank, probability: float = 0.5, **more: Any) -> Terse:
    return Terse(
        bank,
        seed=2,
        paste=PasteConfig(occluded_object_probability=0.5, objects=(1, 3)),
        backgrounds=BackgroundPool([grey(0.3), grey(0.6)], probability),
        distractors=Distractors(distractors, count=(0, 2)),
        **more,
    )


def test_a_resumed_run_is_the_run_that_was_not_stopped(bank: ForegroundBank, distractors: ForegroundBank) -> None:
    whole, begun, resumed = (everything(bank, distractors) for _ in range(3))
    expected = [list(whole(*make_batch(step))[0]) for step in range(6)]
    for step in range(3):
        begun(*make_batch(step))
    resumed.load_state_dict(begun.state_dict())
    for step in range(3, 6):
        assert all_equal(list(resumed(*make_batch(step))[0]), expected[step])
    assert resumed.metrics() == whole.metrics()


def test_what_is_previewed_and_measured_is_what_is_trained_on(
    bank: ForegroundBank, distractors: ForegroundBank
) -> None:
    terse = everything(bank, distractors, model=make_detector("fasterrcnn", classes=8))
    images, targets = make_batch(objects=1, masks=True, sizes=((80, 80),) * 6)
    composites = terse.compose(images, targets, seed=5)
    assert 0 < len(composites.backgrounds) < 6
    assert terse.metrics()["calls"] == 0
    samples = [
        Sample(f"{number}.png", image, target | {"ids": torch.tensor([5])})
        for number, (image, target) in enumerate(zip(images, targets, strict=True))
    ]
    preview = preview_samples(terse, samples, {1: "cat", 2: "dog", 7: "zebra"}, 0)
    lost = [line for pair in preview.pairs for line in pair.lost]
    assert sum("a background of the pool in place of the image" in line for line in lost) >= 1
    assert preview.counts["pastes"] >= preview.counts["labelled pastes"] > 0
    own = [
        paste for pastes in composites.pastes for paste in pastes if paste.row is not None and paste.number is not None
    ]
    assert len(probe(terse, make_detector("fasterrcnn", classes=8), [(images, targets)], seed=5).scores) == len(own)


def test_an_image_that_is_not_finite_is_left_as_it_is(bank: ForegroundBank, distractors: ForegroundBank) -> None:
    terse = everything(bank, distractors, probability=1.0)
    images, targets = make_batch()
    images[0] = images[0] * float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerseWarning)
        composites, corrected = terse(images, targets)
    assert composites[0] is images[0]
    assert len(corrected[0]["boxes"]) == 1
    assert list(terse.replaced) == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_of_it_works_on_a_device(bank: ForegroundBank, distractors: ForegroundBank) -> None:
    terse = everything(bank, distractors, probability=1.0, sampler="balanced").to("cuda")
    images, targets = make_batch(masks=True)
    moved = [{name: value.cuda() for name, value in target.items()} for target in targets]
    composites, corrected = terse([image.cuda() for image in images], moved)
    assert all(image.is_cuda for image in composites)
    assert all(value.is_cuda for target in corrected for value in target.values())
