"""The callback in Hugging Face's Trainer: real detectors with random weights, trained on tiny images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import all_equal, bank_of, every_image, make_bank, tiny_bank, weights_of, white_disc
from frameworks import QUIET_TRANSFORMERS, need_transformers

need_transformers()

from transformers import DetrForObjectDetection, RTDetrForObjectDetection
from transformers_factories import TinyData, make_model, padding_processor, square_processor, trainer

from terse_aug import ForegroundBank, PixelFormat, Terse
from terse_aug.policies import Adversarial
from terse_aug_transformers import TerseCallback, TransformersAdapter
from terse_aug_transformers.batch import put_back, to_samples

pytestmark = QUIET_TRANSFORMERS


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ForegroundBank:
    return tiny_bank(tmp_path_factory.mktemp("bank"))


def callback(bank: ForegroundBank | str, policy: str = "random", **more: Any) -> TerseCallback:
    """Pastes on every image, and updates the policy in every iteration."""
    own = {"type": policy, **({"update_interval": 1} if policy in ("critic", "adversarial") else {})}
    paste = {"paste_probability": 1.0, "decoys": (0, 0), **more.pop("paste", {})}
    return TerseCallback(bank if isinstance(bank, str) else bank.path, own, paste=paste, **more)


def test_off_means_off(bank: ForegroundBank, tmp_path: Path) -> None:
    runs = []
    for terse in (None, callback(bank, "critic", enabled=False), callback(bank, "critic")):
        training, watch = trainer(tmp_path, 2, terse, "RT-DETR")
        training.train()
        runs.append((watch.losses, weights_of(training.model)))
    without, off, on = runs
    assert without[0] == off[0] != on[0]
    assert all_equal(without[1], off[1])


@pytest.mark.parametrize("policy", ["random", "matched", "critic", "adversarial"])
def test_rt_detr_is_trained_with_every_policy(bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    terse = callback(bank, policy)
    training, watch = trainer(tmp_path, 4, terse, "RT-DETR")
    training.train()
    metrics = terse.terse.metrics()
    assert len(watch.losses) == 4
    assert all(map(math.isfinite, watch.losses))
    assert (metrics["calls"], metrics["iterations"], metrics["images"]) == (4, 4, 8)
    assert metrics["objects_pasted"] >= 8
    assert metrics["updates"] == (4 if policy in ("critic", "adversarial") else 0)
    assert metrics["feedback_failed"] == metrics["skipped_updates"] == 0
    if policy == "critic":
        assert metrics["extra_forwards"] == 0
        assert 0 < metrics["hardness"] <= 1
        assert training.state.log_history[-2]["terse_aug/hardness"] == metrics["hardness"]
    assert not training.model._forward_pre_hooks
    assert not training.model._forward_hooks


def test_labels_of_composites_are_right_with_padding_masks_and_normalization(tmp_path: Path) -> None:
    """White discs on noise images at most half as bright."""
    discs = make_bank(tmp_path, [white_disc(side=24, relative_size=0.4)])
    terse = callback(
        discs, paste={"objects": (1, 1), "edge_blur_sigma": 0.0}, drop_unknown_classes=True, policy="random"
    )
    processor = padding_processor()
    training, watch = trainer(tmp_path / "out", 4, terse, "DETR", processor=processor, data=TinyData(processor, True))
    training.train()
    pixels = PixelFormat(mean=tuple(processor.image_mean), std=tuple(processor.image_std))
    assert terse.terse.pixel_format == pixels
    assert any("pixel_mask" in batch for batch in watch.loaded)
    for before, after in zip(watch.loaded, watch.entered, strict=True):
        assert after["pixel_values"].shape == before["pixel_values"].shape
        padding = before["pixel_mask"] == 0 if "pixel_mask" in before else torch.zeros(2, 1, 1).bool()
        assert bool(((after["pixel_values"] == before["pixel_values"]) | ~padding[:, None]).all())
        images, targets, _ = to_samples(after)
        for number, (image, target) in enumerate(zip(images, targets, strict=True)):
            height, width = image.shape[1:]
            label = after["labels"][number]
            assert label["masks"].shape[1:] == after["pixel_values"].shape[2:]
            assert label["masks"].dtype == before["labels"][number]["masks"].dtype
            assert len(label["class_labels"]) == len(label["boxes"]) == len(label["area"]) == len(label["iscrowd"])
            assert label["class_labels"][-1] == 1  # a cat, which is 1 in the bank too, among dogs and cats
            white = pixels.decode(image).amin(0) > 0.9
            rows, columns = white.nonzero(as_tuple=True)
            expected = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
            assert torch.allclose(target["boxes"][-1], expected, atol=1.5)
            # The same in the form of the labels, relative to the padded batch.
            across, down = after["pixel_values"].shape[:1:-1]
            left, top, right, bottom = (expected / torch.tensor([across, down] * 2)).tolist()
            centred = torch.tensor([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top])
            assert torch.allclose(label["boxes"][-1], centred, atol=0.03)
            own = target["masks"][-1]
            assert float((own & ~white).sum()) <= 0.15 * float(white.sum())
            assert float((white & ~own).sum()) == 0
            assert own.shape == (height, width)


def test_classes_are_matched_by_name(bank: ForegroundBank, tmp_path: Path) -> None:
    terse = callback(bank)
    trainer(tmp_path, 1, terse)[0].train()
    assert terse.terse.bank.categories == {0: "dog", 1: "cat"}
    with pytest.raises(ValueError, match="mouse"):
        trainer(tmp_path, 1, callback(bank_of(tmp_path, "cat", "mouse")))[0].train()


def test_names_that_the_model_repeats_matter_only_if_the_bank_has_them(bank: ForegroundBank, tmp_path: Path) -> None:
    """As the "N/A" of models with COCO's 91 labels."""
    config = make_model("DETR").config
    config.id2label = {0: "N/A", 1: "dog", 2: "N/A", 3: "cat"}
    config.label2id = {name: label for label, name in config.id2label.items()}
    model = DetrForObjectDetection(config)
    terse = callback(bank)
    trainer(tmp_path, 1, terse, model)[0].train()
    assert terse.terse.bank.categories == {1: "dog", 3: "cat"}
    with pytest.raises(ValueError, match="listed twice: N/A"):
        trainer(tmp_path, 1, callback(bank_of(tmp_path, "cat", "N/A")), model)[0].train()


def test_a_model_with_masks_learns_from_those_of_the_pastes(bank: ForegroundBank, tmp_path: Path) -> None:
    processor = padding_processor(size={"height": 64, "width": 64})
    data = TinyData(processor, masks=True)
    training, watch = trainer(
        tmp_path, 2, callback(bank, "critic"), "RF-DETR with masks", data=data, processor=processor
    )
    training.train()
    assert all(map(math.isfinite, watch.losses))
    for label in watch.entered[-1]["labels"]:
        assert len(label["masks"]) == len(label["boxes"]) > 1
        assert bool(label["masks"].flatten(1).any(1).all())


def test_a_resumed_run_equals_an_uninterrupted_one(bank: ForegroundBank, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole_callback, rest_callback = callback(bank, "critic"), callback(bank, "critic")
    whole, watched = trainer(tmp_path, 3, whole_callback, "RT-DETR", **saving)
    whole.train()
    checkpoint = str(tmp_path / "checkpoint-2")
    # Trainer itself does not find all weights of RT-DETR in its checkpoints (transformers 5.24).
    model = RTDetrForObjectDetection.from_pretrained(checkpoint)
    rest, resumed = trainer(tmp_path, 3, rest_callback, model, **saving)
    rest.train(resume_from_checkpoint=checkpoint)
    assert resumed.losses == watched.losses[2:]
    assert all_equal(weights_of(whole.model), weights_of(rest.model))
    state = rest_callback.terse.state_dict()
    for name, value in whole_callback.terse.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def test_the_state_of_another_run_is_not_loaded(
    bank: ForegroundBank, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training is resumed from another folder than that of its output, which has a checkpoint of the same step."""
    for folder, rate in (("a", 1e-3), ("b", 2e-3)):
        saving = {"save_strategy": "steps", "save_steps": 1, "learning_rate": rate}
        trainer(tmp_path / folder, 1, callback(bank, "critic"), **saving)[0].train()
    other = str(tmp_path / "b" / "checkpoint-1")
    for given, updates, warned in ((None, 1, True), (other, 2, False)):
        caplog.clear()
        terse = callback(bank, "critic", resume_from=given)
        trainer(tmp_path / "a", 2, terse)[0].train(resume_from_checkpoint=other)
        assert terse.terse.metrics()["updates"] == updates
        assert ("belongs to another run" in caplog.text) == warned
    (tmp_path / "a" / "checkpoint-1" / "terse_aug.pt").unlink()
    trainer(tmp_path / "a", 2, terse := callback(bank, "critic"))[0].train(resume_from_checkpoint=other)
    assert terse.terse.metrics()["updates"] == 1
    assert "no state of terse-aug" in caplog.text


def test_accumulated_batches_are_all_pasted_on_and_make_one_update(bank: ForegroundBank, tmp_path: Path) -> None:
    terse = callback(bank, "adversarial")
    training, watch = trainer(tmp_path, 1, terse, "DETR", gradient_accumulation_steps=2)
    training.train()
    metrics = terse.terse.metrics()
    assert (metrics["calls"], metrics["iterations"], metrics["updates"]) == (2, 1, 1)
    assert _policy_after(bank, watch.loaded, loss_scale=0.5, expected=watch.losses) == parameters_of(terse)
    assert _policy_after(bank, watch.loaded, loss_scale=1.0, expected=watch.losses) != parameters_of(terse)


def parameters_of(terse: TerseCallback | Terse) -> list[list[float]]:
    policy = (terse.terse if isinstance(terse, TerseCallback) else terse).policy
    return [own.flatten().tolist() for own in policy.parameters()]


def _policy_after(
    bank: ForegroundBank, batches: list[dict[str, Any]], loss_scale: float, expected: list[float]
) -> list[list[float]]:
    """The policy after one iteration of the loop in the manual over some batches, with losses half as large."""
    model = make_model("DETR")
    adapter = TransformersAdapter(model)
    paste = every_image()
    policy = Adversarial(update_interval=1)
    terse = Terse(bank.relabel(["dog", "cat"]), policy, model=adapter, seed=0, paste=paste)
    losses = []
    for batch in batches:
        images, targets, layout = to_samples(batch)
        loss = model(**put_back(batch, *terse(images, targets), layout)).loss
        (loss * 0.5).backward()
        losses.append(loss.detach())
    assert [float(loss) for loss in losses] == expected
    terse.step(torch.stack(losses).mean(), loss_scale=loss_scale)
    return parameters_of(terse)


def test_evaluation_is_left_alone(bank: ForegroundBank, tmp_path: Path) -> None:
    terse = callback(bank, "critic")
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "prediction_loss_only": True}
    training, _ = trainer(tmp_path, 2, terse, evaluated=TinyData(square_processor(), count=2), **evaluating)
    training.train()
    evaluated = [entry["eval_loss"] for entry in training.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 2
    assert evaluated[1] == training.evaluate()["eval_loss"]
    assert terse.terse.metrics()["calls"] == 2
    assert "terse_aug/hardness" not in next(entry for entry in training.state.log_history if "eval_loss" in entry)


def test_nothing_is_pasted_in_the_last_fraction_of_a_training(bank: ForegroundBank, tmp_path: Path) -> None:
    """With gradients of two batches accumulated in each of the four steps."""
    training, watch = trainer(tmp_path, 4, callback(bank, close_fraction=0.5), "RT-DETR", gradient_accumulation_steps=2)
    training.train()
    pasted = [
        not torch.equal(before["pixel_values"], after["pixel_values"])
        for before, after in zip(watch.loaded, watch.entered, strict=True)
    ]
    assert pasted == [True] * 4 + [False] * 4
