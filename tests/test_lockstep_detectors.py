"""Lock-step with torchvision's detectors: which composites are hard, what is kept of them, and mixed batches."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import KEYPOINTS, every_image, keypoint_foregrounds, make_bank, make_batch, make_detector
from lockstep_samples import make_terse, noise_batches
from torch import Tensor
from torchvision.ops import box_iou

from terse_aug import ForegroundBank, PixelFormat
from terse_aug.lockstep import HardExampleCache, HardExampleMiner, mix_batches
from terse_aug.models import Detections, TorchvisionAdapter

SIZES = ((96, 80), (64, 112), (80, 80))
BATCH: dict[str, Any] = {"sizes": SIZES, "objects": 2}


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[HardExampleCache]:
    with HardExampleCache(tmp_path / "cache") as own:
        yield own


class Finds(TorchvisionAdapter):
    """Finds every object with a box of an overlap of 0.7 and a score by class: 0.9 of cats (1) and 0.4 of dogs (2)."""

    def detections(self, images: Any, targets: Any) -> list[Detections]:
        found = []
        for target in targets:
            boxes = target["boxes"].clone()
            boxes[:, 2] = boxes[:, 0] + 0.7 * (boxes[:, 2] - boxes[:, 0])
            scores = torch.tensor([0.0, 0.9, 0.4])[target["labels"]]
            found.append(Detections(boxes, target["labels"], scores))
        return found


@pytest.mark.parametrize("iou_thresholds", [{}, {"iou_thresholds": (0.75,)}], ids=str)
@pytest.mark.parametrize(("iou_threshold", "found"), [({}, {2}), ({"iou_threshold": 0.75}, {1, 2})], ids=str)
def test_a_paste_is_hard_by_the_score_of_a_box_that_overlaps_it_by_half(
    tiny_bank: ForegroundBank, cache: HardExampleCache, iou_thresholds: Any, iou_threshold: Any, found: set[int]
) -> None:
    """Whatever overlaps the adapter has, which are those of COCO's AP by default."""
    model = Finds(make_detector("fasterrcnn"), **iou_thresholds)
    before = model.iou_thresholds
    terse = make_terse(tiny_bank, "critic", model=model)
    miner = HardExampleMiner(terse, model, cache, {1: 9, 2: 9}, 30, **iou_threshold)
    assert set(miner.run(noise_batches(**BATCH)).found) == found
    assert model.iou_thresholds == before
    assert terse.metrics()["updates"] == terse.metrics()["iterations"] > 0


def sees_cats(name: str) -> TorchvisionAdapter:
    """A detector for which everything is a cat (1): cats are found where one of its boxes fits, and dogs nowhere."""
    module = make_detector(name)
    ends = ("cls_score.bias", "cls_logits.bias", "classification_head.module_list.0.bias")
    (bias,) = [
        own for parameter, own in module.named_parameters() if parameter.endswith(ends) and "rpn" not in parameter
    ]
    with torch.no_grad():
        bias.view(-1, 3)[:] = torch.tensor([-5.0, 5.0, -5.0])
    return TorchvisionAdapter(module)


@pytest.mark.parametrize("detector", ["fasterrcnn", "retinanet", "ssd"])
def test_what_a_detector_finds_is_not_kept(tiny_bank: ForegroundBank, cache: HardExampleCache, detector: str) -> None:
    model = sees_cats(detector)
    miner = HardExampleMiner(make_terse(tiny_bank, model=model), model, cache, {1: 20, 2: 20}, 30)
    report = miner.run(noise_batches(**BATCH))
    assert 0 < sum(report.found.values()) == len(cache) < report.seen == 30
    model.model.eval()
    for image, target in (cache[position] for position in range(len(cache))):
        with torch.no_grad():
            (found,) = model.detections([image], [target])
        fits = box_iou(target["boxes"], found.boxes) >= 0.5
        best = torch.where(fits & (target["labels"][:, None] == found.labels), found.scores, 0.0).sum(1)
        assert float(best[target["ids"] < 0]) < 0.55  # of an image with 8 bits


@pytest.mark.parametrize(("wanted", "classes"), [({1: 1, 2: 1}, 2), ({2: 1}, 2)], ids=str)
def test_a_label_that_the_detector_does_not_have_is_refused(
    tiny_bank: ForegroundBank, cache: HardExampleCache, wanted: dict[int, int], classes: int
) -> None:
    """It would be scored 0, and all of its composites were hard."""
    model = TorchvisionAdapter(make_detector("fasterrcnn", classes=classes))
    with pytest.raises(ValueError, match=r"wanted: the model's labels are 1 to 1, got \[2\]"):
        HardExampleMiner(make_terse(tiny_bank), model, cache, wanted, 1)


@pytest.mark.parametrize("setting", [{"iou_threshold": 0.0}, {"iou_threshold": 1.5}, {"learning_batches": -1}], ids=str)
def test_settings_out_of_range_are_refused(
    tiny_bank: ForegroundBank, cache: HardExampleCache, setting: dict[str, Any]
) -> None:
    model = TorchvisionAdapter(make_detector("fasterrcnn"))
    with pytest.raises(ValueError, match=next(iter(setting))):
        HardExampleMiner(make_terse(tiny_bank), model, cache, {1: 1}, 1, **setting)


@pytest.mark.parametrize("ids", [False, True])
def test_all_corrected_labels_are_kept_and_pastes_have_negative_ids(
    tmp_path: Path, cache: HardExampleCache, ids: bool
) -> None:
    bank = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=list(KEYPOINTS))
    model = TorchvisionAdapter(make_detector("maskrcnn"))
    terse = make_terse(bank, model=model, paste=every_image(objects=(1, 3)))
    batches = list(islice(noise_batches(**BATCH, masks=True, keypoints=True), 2))
    numbers = {"ids": torch.tensor([7, 3])} if ids else {}
    batches = [(images, [target | numbers for target in targets]) for images, targets in batches]
    corrected: list[tuple[Any, list[int]]] = []
    forward = terse.forward

    def spy(*batch: Any) -> Any:
        composites, targets = forward(*batch)
        rows = [[paste.row for paste in pastes if paste.row is not None] for pastes in terse.pastes]
        corrected.extend(zip(targets, rows, strict=True))
        return composites, targets

    terse.forward = spy  # type: ignore[method-assign]
    HardExampleMiner(terse, model, cache, {1: 50}, 6).run(batches)
    assert len(cache) == len(corrected) == 6
    for position, (target, pasted) in enumerate(corrected):
        image, kept = cache[position]
        assert kept.keys() == target.keys() | {"ids"} == {"boxes", "labels", "masks", "keypoints", "ids"}
        assert all(torch.equal(kept[name], value) for name, value in target.items())
        assert (kept["ids"] < 0).nonzero()[:, 0].tolist() == pasted
        assert len(set(kept["ids"].tolist())) == len(kept["ids"]) > len(pasted) > 0
        assert kept["masks"].shape[1:] == image.shape[1:]


@pytest.mark.parametrize("name", ["maskrcnn", "keypointrcnn", "ssd"])
def test_a_detector_trains_on_mixed_batches_of_any_sizes(tmp_path: Path, cache: HardExampleCache, name: str) -> None:
    bank = make_bank(tmp_path, keypoint_foregrounds(), keypoint_names=list(KEYPOINTS))
    detector = make_detector(name, classes=2 if name == "keypointrcnn" else 3)
    fields = {field: True for field in ("masks", "keypoints") if name.startswith(field[:4])}
    model = TorchvisionAdapter(detector)
    miner = HardExampleMiner(make_terse(bank, model=model), model, cache, {1: 2}, 40)
    assert miner.run(noise_batches(sizes=SIZES, objects=0, **fields)).complete
    real = [make_batch(seed, **BATCH, **fields) for seed in range(2)]
    real = [(images, [{**own, "labels": own["labels"].clamp(max=1)} for own in targets]) for images, targets in real]
    for images, targets in mix_batches(real, cache, 0.5, seed=0):
        assert sum("ids" in target for target in targets) in (1, 2)
        assert all(bool(loss.isfinite()) for loss in detector(images, targets).values())


def test_examples_without_the_masks_of_the_real_images_are_refused(
    tiny_bank: ForegroundBank, cache: HardExampleCache
) -> None:
    model = TorchvisionAdapter(make_detector("maskrcnn"))
    HardExampleMiner(make_terse(tiny_bank, model=model), model, cache, {1: 1}, 9).run(noise_batches(**BATCH))
    batches = mix_batches([make_batch(0, **BATCH, masks=True)], cache, 0.5, seed=0)
    with pytest.raises(ValueError, match="expected hard examples with masks, as the real targets have"):
        next(batches)


@pytest.mark.parametrize("policy", ["random", "critic", "adversarial"])
def test_8_bit_images_are_mined_and_kept_to_the_bit(tiny_bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    pixels = PixelFormat(scale=255, mean=(103.5, 116.3, 123.7), std=(57.0, 58.0, 57.4), bgr=True)
    model = TorchvisionAdapter(make_detector("fasterrcnn"))
    terse = make_terse(tiny_bank, policy, model=model, pixel_format=pixels)
    shown: list[Tensor] = []
    forward = terse.forward

    def spy(images: Any, targets: Any) -> Any:
        composites, corrected = forward([(255 * image).byte() for image in images], targets)
        shown.extend(composites)
        return composites, corrected

    terse.forward = spy  # type: ignore[method-assign]
    with HardExampleCache(tmp_path / "hard", pixel_format=pixels) as cache:
        report = HardExampleMiner(terse, model, cache, {1: 50, 2: 50}, 3).run(noise_batches(**BATCH))
        assert report.seen == len(cache) == 3
        batch = [(255 * image).byte() for image in make_batch(0, **BATCH)[0]], [{}] * 3
        ((mixed, _),) = mix_batches([batch], cache, 1.0, seed=0)
        assert all(image.dtype == torch.uint8 for image in mixed)
        if policy != "adversarial":  # whose composites are float
            assert all(any(torch.equal(image, own) for own in shown) for image in mixed)
        expected = [image.float() for image in pixels.as_float(shown)]
        for position, image in enumerate(expected):
            torch.testing.assert_close(cache[position][0], image.detach(), rtol=0, atol=0.51 / 57)
