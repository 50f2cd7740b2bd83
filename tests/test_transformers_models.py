"""The adapter for transformers: what is recorded of each detector is what it predicts; batches; bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from feedback_reference import best_scores
from frameworks import QUIET_TRANSFORMERS, need_transformers
from torch import Tensor

need_transformers()

import transformers
from transformers_factories import MODELS, TinyData, make_model, padding_processor, square_processor

from terse_aug import PixelFormat
from terse_aug.models import IOU_THRESHOLDS
from terse_aug_transformers import TransformersAdapter, collate_detection
from terse_aug_transformers.batch import put_back, to_samples
from terse_aug_transformers.callback import pixel_format_of

pytestmark = QUIET_TRANSFORMERS


def batch_of(model: str, padded: bool) -> dict[str, Any]:
    """Two images of different sizes, padded; else of one size."""
    square = {} if padded else {"size": {"height": 64, "width": 64}}
    data = TinyData(padding_processor(**square), masks="masks" in model)
    return collate_detection([data[1], data[2]])


@pytest.mark.parametrize("name", MODELS)
def test_what_is_recorded_is_what_the_model_predicts(name: str) -> None:
    padded = not name.startswith(("YOLOS", "LW-DETR", "RF-DETR"))  # which are made for images of one size
    model, batch = make_model(name), batch_of(name, padded)
    adapter = TransformersAdapter(model)
    images, targets, layout = to_samples(batch)
    assert (len({image.shape for image in images}) == 2) == padded
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        _move_to_predictions(_predicted(model, model(**batch)), images, targets, batch)
    recorder = adapter.record_forward()
    output = model(**put_back(batch, images, targets, layout))
    output.loss.backward()
    recorded = recorder.scores(images, targets)
    recorder.close()
    assert recorder.error is None
    assert recorded is not None
    for number, (boxes, scores) in enumerate(_predicted(model, output)):
        own = _in_pixels(boxes, images[number], batch)
        target = targets[number]
        expected = best_scores(own, scores, target["boxes"], target["labels"], IOU_THRESHOLDS)
        assert max(expected) > 0
        torch.testing.assert_close(recorded[number].tolist(), expected, rtol=1e-4, atol=1e-5)


def _predicted(model: Any, output: Any) -> list[tuple[Tensor, Tensor]]:
    """Boxes ``[Q, 4]`` and scores ``[Q, K]`` of each image; queries for denoising come first, of groups the first is
    used."""
    count = output.logits.shape[1]
    own = slice(0, 12) if hasattr(model.config, "group_detr") else slice(count - 12, count)
    logits = output.logits[:, own].detach()
    scores = logits.softmax(-1) if logits.shape[-1] == 3 else logits.sigmoid()
    return list(zip(output.pred_boxes[:, own].detach(), scores, strict=True))


def _in_pixels(boxes: Tensor, image: Tensor, batch: dict[str, Any]) -> Tensor:
    """Boxes relative to the padded batch as corners in an image, clipped to it."""
    height, width = batch["pixel_values"].shape[-2:]
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    corners = torch.cat([centre - half, centre + half], 1) * torch.tensor([width, height] * 2)
    return corners.clamp(min=0).minimum(torch.tensor(image.shape[:0:-1] * 2))


def _move_to_predictions(predicted: Any, images: Any, targets: Any, batch: dict[str, Any]) -> None:
    """Give the targets the largest box that the model predicts, so that scores are above 0."""
    for (boxes, _), image, target in zip(predicted, images, targets, strict=True):
        found = _in_pixels(boxes, image, batch)
        largest = (found[:, 2:] - found[:, :2]).prod(1).argmax()
        target["boxes"] = found[largest].expand(len(target["boxes"]), 4).clone()


def test_an_extra_forward_scores_what_the_image_processor_detects() -> None:
    model, batch = make_model("RT-DETR"), batch_of("RT-DETR", padded=False)
    images, targets, _ = to_samples(batch)
    with torch.no_grad():
        output = model.eval()(pixel_values=batch["pixel_values"])
    size = torch.tensor([[64, 64]] * 2)
    detected = square_processor().post_process_object_detection(output, threshold=0.0, target_sizes=size)
    for own, target in zip(detected, targets, strict=True):
        target.update(boxes=own["boxes"][:1], labels=own["labels"][:1])
    found = TransformersAdapter(model.train()).object_scores(images, targets)
    for own, target, score in zip(detected, targets, found, strict=True):
        # The processor gives the best pairs of a query and a class, among which are those of the best one's class.
        by_class = torch.nn.functional.one_hot(own["labels"], 2) * own["scores"][:, None]
        expected = best_scores(own["boxes"], by_class, target["boxes"], target["labels"], IOU_THRESHOLDS)
        assert expected[0] > 0
        torch.testing.assert_close(score.tolist(), expected, rtol=1e-4, atol=1e-5)


def test_a_batch_without_pastes_is_given_back() -> None:
    batch = batch_of("with masks", padded=True)
    back = put_back(batch, *to_samples(batch))
    assert torch.equal(back["pixel_values"], batch["pixel_values"])
    assert torch.equal(back["pixel_mask"], batch["pixel_mask"])
    for own, label in zip(back["labels"], batch["labels"], strict=True):
        assert type(own) is type(label)
        assert own.keys() == label.keys()
        for name, value in label.items():
            assert own[name].dtype == value.dtype
            torch.testing.assert_close(own[name], value)


def test_padding_a_batch_keeps_boxes_and_masks_where_the_objects_are() -> None:
    """As the image processor itself pads a batch."""
    samples = [TinyData(padding_processor(), masks=True)[number] for number in (1, 2)]
    own = collate_detection(samples)
    bottom, right = own["pixel_values"].shape[-2:]
    processor = padding_processor(do_pad=True, pad_size={"height": bottom, "width": right})
    whole = collate_detection([TinyData(processor, masks=True)[number] for number in (1, 2)])
    assert torch.equal(own["pixel_values"], whole["pixel_values"])
    assert torch.equal(own["pixel_mask"], whole["pixel_mask"])
    for mine, theirs in zip(own["labels"], whole["labels"], strict=True):
        torch.testing.assert_close(mine["boxes"], theirs["boxes"])
        assert torch.equal(mine["masks"], theirs["masks"])
        assert mine["size"].tolist() == theirs["size"].tolist() == [bottom, right]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.tensor([[20.0, 20.0, 10.0, 10.0]])}, "relative to the image, got values up to 20"),
        ({"keypoints": torch.zeros(1, 3, 3)}, "have keypoints"),
        ({"boxes": None}, "expected class_labels and boxes"),
    ],
)
def test_labels_of_another_form_are_refused(change: dict[str, Any], message: str) -> None:
    label = {"class_labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.25, 0.25]])} | change
    labels = [{name: value for name, value in label.items() if value is not None}]
    with pytest.raises(ValueError, match=message):
        to_samples({"pixel_values": torch.zeros(1, 3, 64, 64), "labels": labels})
    with pytest.raises(ValueError, match="expected a batch with pixel_values"):
        to_samples({"pixel_values": torch.zeros(1, 3, 64, 64), "labels": torch.zeros(1)})
    mask = torch.ones(1, 64, 64)
    mask[:, 20:40, 20:40] = 0
    with pytest.raises(ValueError, match="padding at the right and bottom alone"):
        to_samples({"pixel_values": torch.zeros(1, 3, 64, 64), "pixel_mask": mask, "labels": labels[:1]} | _fine(label))


def _fine(label: dict[str, Any]) -> dict[str, Any]:
    return {"labels": [{"class_labels": label["class_labels"], "boxes": torch.tensor([[0.5, 0.5, 0.25, 0.25]])}]}


def test_pixels_are_those_of_the_image_processor() -> None:
    assert pixel_format_of(square_processor()) == PixelFormat()
    detr = padding_processor()
    assert pixel_format_of(detr) == PixelFormat(mean=tuple(detr.image_mean), std=tuple(detr.image_std))
    assert pixel_format_of(padding_processor(do_rescale=False, do_normalize=False)) == PixelFormat(scale=255.0)
    assert pixel_format_of(PixelFormat(bgr=True)) == PixelFormat(bgr=True)
    with pytest.raises(ValueError, match="expected the image processor that makes the batches"):
        pixel_format_of(None)


def test_a_model_that_takes_text_or_other_labels_is_refused() -> None:
    for kind in (transformers.GroundingDinoForObjectDetection, transformers.MaskFormerForInstanceSegmentation):
        with pytest.raises(ValueError, match="expected a detector that takes pixel_values and labels"):
            TransformersAdapter(kind.__new__(kind))
