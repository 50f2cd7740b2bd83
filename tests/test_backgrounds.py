"""Images of a pool in place of the batch's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from coloured_samples import everything, grey, plain_paste
from factories import (
    KEYPOINTS,
    all_equal,
    backward,
    keypoint_foregrounds,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
)
from PIL import Image

from terse_aug import (
    BackgroundPool,
    Distractors,
    ForegroundBank,
    ForegroundLoader,
    PasteConfig,
    PixelFormat,
    Terse,
    TerseWarning,
    probe,
)
from terse_aug.preview import Sample, preview_samples
from terse_aug.utils.random import generator_for


def test_an_image_of_the_pool_has_only_what_is_pasted_in_every_field(tmp_path: Path) -> None:
    bank = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=KEYPOINTS)
    pool = BackgroundPool([grey(0.2), grey(0.4)], probability=0.5)
    terse = Terse(bank, "random", backgrounds=pool, paste=plain_paste())
    kept = replaced = 0
    for step in range(20):
        images, targets = make_batch(step, objects=3, masks=True, keypoints=True)
        for number, target in enumerate(targets):
            target |= {"ids": torch.arange(3) + 10, "area": torch.ones(3), "iscrowd": torch.ones(3).long()}
            target |= {"image_id": torch.tensor([number])}
        before = [image.clone() for image in images]
        composites, corrected = terse(images, targets)
        assert all_equal(images, before)
        for number, (image, target) in enumerate(zip(composites, corrected, strict=True)):
            if number not in terse.replaced:
                kept += 1
                continue
            replaced += 1
            assert (image.shape, image.dtype) == (images[number].shape, images[number].dtype)
            pastes = terse.pastes[number]
            assert 1 <= len(pastes) <= 3
            count = sum(paste.row is not None for paste in pastes)
            assert {name: len(value) for name, value in target.items()} == dict.fromkeys(target, count) | {
                "image_id": 1
            }
            assert (target["ids"] < 0).all()
            assert (target["iscrowd"] == 0).all()
            assert target["image_id"].tolist() == [number]
            assert len(targets[number]["ids"]) == 3
            level = 0.2 * (1 + terse.replaced[number])
            free = ~target["masks"].bool().any(0)
            assert float(((image - level).abs().amax(0) < 0.01)[free].float().mean()) > 0.85
    assert terse.metrics()["backgrounds"] == replaced
    assert replaced / (kept + replaced) == pytest.approx(0.5, abs=0.2)


def test_an_image_of_the_pool_gets_a_paste_whatever_the_others_get(coloured_bank: ForegroundBank) -> None:
    paste = PasteConfig(paste_probability=0.0, objects=(0, 2), edge_blur_sigma=0.0)
    terse = Terse(coloured_bank, backgrounds=BackgroundPool([grey(0.2)], probability=0.5), paste=paste)
    loader = ForegroundLoader(coloured_bank, paste=paste, background_probability=0.5)
    for sampled in (None, True):
        seen = 0
        for step in range(15):
            batch = make_batch(step)
            terse(*batch, None if sampled is None else [loader() for _ in batch[0]])
            assert [bool(pastes) for pastes in terse.pastes] == [number in terse.replaced for number in range(2)]
            seen += len(terse.replaced)
        assert 5 < seen < 25


@pytest.mark.parametrize("pixels", [PixelFormat(255.0, bgr=True), PixelFormat(1.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
def test_the_pool_comes_in_the_format_of_the_framework(coloured_bank: ForegroundBank, pixels: PixelFormat) -> None:
    colour = torch.tensor([0.8, 0.4, 0.2])[:, None, None]
    pool = BackgroundPool([(colour.expand(3, 60, 60) * 255).to(torch.uint8)], probability=1.0)
    terse = Terse(coloured_bank, "random", backgrounds=pool, paste=plain_paste(), pixel_format=pixels)
    images, targets = make_batch(masks=True)
    composites, corrected = terse([pixels.encode(image).double() for image in images], targets)
    for image, target in zip(composites, corrected, strict=True):
        assert image.dtype == torch.float64
        free = ~target["masks"].bool().any(0)
        difference = (pixels.decode(image) - colour).abs().amax(0)[free]
        assert float((difference < 0.01).float().mean()) > 0.85


def test_pools_are_folders_paths_or_tensors(tmp_path: Path, coloured_bank: ForegroundBank) -> None:
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
    tmp_path: Path, coloured_bank: ForegroundBank, sampler: str
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG, but not really")
    pool = BackgroundPool([tmp_path / "broken.png", tmp_path / "gone.png"], probability=1.0)
    terse = Terse(coloured_bank, "random", backgrounds=pool, paste=plain_paste(), sampler=sampler)
    with pytest.warns(TerseWarning, match=r"background .*(broken|gone).png cannot be read; the image keeps its own"):
        _, corrected = terse(*make_batch(masks=True))
    metrics = terse.metrics()
    assert (metrics["dropped/background_unreadable"], metrics["backgrounds"], terse.replaced) == (2, 0, {})
    assert all(terse.pastes)
    assert all(len(target["boxes"]) >= 1 for target in corrected)


def test_wrong_settings_are_refused(coloured_bank: ForegroundBank, distractors: ForegroundBank, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="probability: expected a fraction"):
        BackgroundPool([grey(0.2)], probability=1.5)
    with pytest.raises(ValueError, match="count: expected whole numbers"):
        Distractors(distractors, count=(2, 1))
    for pool, message in (("folder", "expected a BackgroundPool"), (BackgroundPool([grey(0.2)]), "objects above 0")):
        with pytest.raises(ValueError, match=message):
            Terse(coloured_bank, paste=PasteConfig(objects=(0, 0)), backgrounds=pool)  # type: ignore[arg-type]  # wrong
    with pytest.raises(ValueError, match="objects above 0"):
        ForegroundLoader(coloured_bank, paste=PasteConfig(objects=(0, 0)), background_probability=0.5)
    with pytest.raises(ValueError, match=r"expected a bank with at least two classes, .*got \['cat'\]"):
        Terse(make_bank(tmp_path, [make_foreground(label=1)]), paste=PasteConfig(occluded_object_probability=0.5))


@pytest.mark.parametrize("name", ["maskrcnn", "retinanet"])
def test_a_detector_learns_from_images_of_the_pool_even_if_nothing_could_be_pasted(
    coloured_bank: ForegroundBank, name: str
) -> None:
    detector = make_detector(name, classes=8)
    for min_side, objects in ((4.0, 3), (60.0, 0)):
        pool = BackgroundPool([grey(0.2)], probability=1.0)
        terse = Terse(coloured_bank, backgrounds=pool, paste=plain_paste(min_side=min_side))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TerseWarning)
            images, targets = terse(*make_batch(masks=True))
        assert max(len(target["boxes"]) for target in targets) <= objects
        losses = backward(detector(images, targets))
        assert all(bool(loss.isfinite()) for loss in losses.values())
        terse.step(losses)


def test_what_is_previewed_and_measured_is_what_is_trained_on(
    coloured_bank: ForegroundBank, distractors: ForegroundBank
) -> None:
    terse = Terse(coloured_bank, **everything(distractors), model=make_detector("fasterrcnn", classes=8), seed=2)
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


def test_an_image_that_is_not_finite_is_left_as_it_is(
    coloured_bank: ForegroundBank, distractors: ForegroundBank
) -> None:
    terse = Terse(coloured_bank, **everything(distractors, 1.0))
    images, targets = make_batch()
    images[0] = images[0] * float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TerseWarning)
        composites, corrected = terse(images, targets)
    assert composites[0] is images[0]
    assert len(corrected[0]["boxes"]) == 1
    assert list(terse.replaced) == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_all_of_it_works_on_cuda(coloured_bank: ForegroundBank, distractors: ForegroundBank) -> None:
    terse = Terse(coloured_bank, **everything(distractors, 1.0), sampler="balanced").to("cuda")
    images, targets = make_batch(masks=True)
    moved = [{name: value.cuda() for name, value in target.items()} for target in targets]
    composites, corrected = terse([image.cuda() for image in images], moved)
    assert all(image.is_cuda for image in composites)
    assert all(value.is_cuda for target in corrected for value in target.values())
