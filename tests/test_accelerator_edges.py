"""Unusual but legal batches on a device are what they are on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_bank, make_batch, make_detector, make_foreground, policy_with
from torch import Tensor

from terse_aug import ForegroundBank, PasteConfig, Terse, TerseWarning, TransformRanges

pytest.importorskip("simulated_accelerator", reason="this torch has no devices made in Python", exc_type=ImportError)
from simulated_accelerator import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::terse_aug.utils.warnings.TerseWarning")
CPU = torch.device("cpu")
DEVICES = [CPU, DEVICE]
SIZES = ((64, 80), (90, 64), (80, 80))
PASTE = PasteConfig(objects=(2, 3), paste_probability=1.0, decoys=(1, 1))


@pytest.fixture
def bank(tmp_path: Path) -> ForegroundBank:
    return make_bank(tmp_path, [make_foreground(seed, 1 + seed % 2) for seed in range(4)])


def composed(
    bank: ForegroundBank, device: torch.device, batch: tuple[list[Tensor], list[dict[str, Tensor]]], **settings: Any
) -> tuple[Terse, list[Tensor], list[dict[str, Tensor]]]:
    """Terse, and images and targets back on the CPU."""
    terse = Terse(bank, seed=1, **({"paste": PASTE} | settings)).to(device)
    images, targets = batch
    there = [{name: value.to(device) for name, value in target.items()} for target in targets]
    images, corrected = terse([image.to(device) for image in images], there)
    back = [{name: value.cpu() for name, value in target.items()} for target in corrected]
    return terse, [image.detach().cpu() for image in images], back


@pytest.mark.parametrize("position", [0, 2])
@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_an_image_that_is_not_finite_is_left_alone_and_harms_no_other(
    bank: ForegroundBank, device: torch.device, position: int
) -> None:
    for seed in range(6):
        images, targets = make_batch(seed, SIZES, 2, masks=True)
        images[position].fill_(torch.nan)
        terse, found, corrected = composed(bank, device, (images, targets))
        assert torch.equal(found[position].isnan(), images[position].isnan())
        assert all(torch.equal(corrected[position][name], value) for name, value in targets[position].items())
        assert all(bool(own.isfinite().all()) for number, own in enumerate(found) if number != position)
        assert terse.metrics()["dropped/image_not_finite"] == 1


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_policy_learns_beside_an_image_that_is_not_finite(bank: ForegroundBank, device: torch.device) -> None:
    images, targets = make_batch(0, SIZES, 2)
    images[0].fill_(torch.nan)
    terse = Terse(bank, policy_with("adversarial", update_interval=1), seed=1, paste=PASTE).to(device)
    there = [{name: value.to(device) for name, value in target.items()} for target in targets]
    composites, _ = terse([image.to(device) for image in images], there)
    loss = sum((own.square().mean() for own in composites[1:]), start=torch.zeros((), device=device))
    loss.backward()
    terse.step(loss)
    assert terse.metrics()["updates"] == (1 if device == CPU else terse.metrics()["updates"])


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_decoys_alone_are_pasted_by_a_policy_that_learns_from_gradients(tmp_path: Path, device: torch.device) -> None:
    """All pastes are too small; the decoys of a larger foreground are not."""
    bank = make_bank(tmp_path, [make_foreground(0)])
    paste = PasteConfig(objects=(1, 1), decoys=(2, 2), paste_probability=1.0, min_side=20.0)
    ranges = TransformRanges(scale=(0.3, 1.5))
    shown = set()
    for seed in range(12):
        batch = make_batch(seed, ((64, 64),), 0)
        settings = PasteConfig(**(vars(paste) | {"ranges": ranges}))
        terse = Terse(bank, policy_with("adversarial", update_interval=1), seed=seed, paste=settings).to(device)
        there = [{name: value.to(device) for name, value in target.items()} for target in batch[1]]
        terse([image.to(device) for image in batch[0]], there)
        metrics = terse.metrics()
        shown.add((metrics["objects_pasted"] > 0, metrics["decoys"] > 0))
    assert (False, True) in shown


def test_targets_of_two_devices_are_refused(bank: ForegroundBank) -> None:
    images, targets = make_batch(0, SIZES, 1)
    there = [image.to(DEVICE) for image in images]
    targets[1] = {name: value.to(DEVICE) for name, value in targets[1].items()}
    with pytest.raises(ValueError, match="target 1: expected it on cpu, as the first target is, got one on simulated"):
        Terse(bank, seed=1).to(DEVICE)(there, targets)
    with pytest.raises(ValueError, match="boxes is on simulated:0, its image on cpu; move both"):
        Terse(bank, seed=1)(images, targets[1:2] + targets[:1] + targets[2:])


def test_masks_of_both_types_keep_theirs(bank: ForegroundBank) -> None:
    images, targets = make_batch(3, SIZES, 2, masks=True)
    targets[0]["masks"] = targets[0]["masks"].bool()
    targets[1]["masks"] = targets[1]["masks"] * 255
    (_, _, on_cpu), (_, _, found) = (composed(bank, device, (images, targets)) for device in DEVICES)
    for own, other in zip(found, on_cpu, strict=True):
        assert own["masks"].dtype == other["masks"].dtype
        assert set(own["masks"].unique().tolist()) == set(other["masks"].unique().tolist())


def test_boxes_end_at_the_border_where_nothing_is_pasted(bank: ForegroundBank) -> None:
    images, targets = make_batch(1, ((64, 80),), 1)
    targets[0]["boxes"] = torch.tensor([[-0.5, 10.0, 30.0, 64.7]])
    paste = PasteConfig(objects=(0, 0), decoys=(0, 0))
    for device in DEVICES:
        _, _, (target,) = composed(bank, device, (images, targets), paste=paste)
        assert target["boxes"].tolist() == [[0.0, 10.0, 30.0, 64.0]]


def test_decoys_do_not_see_boxes_that_are_left_out(bank: ForegroundBank) -> None:
    images, targets = make_batch(1, SIZES, 1)
    for target in targets:
        target["boxes"] = torch.tensor([[50.0, 20.0, 20.0, 50.0]])  # inverted
    decoys = [composed(bank, device, (images, targets))[0].metrics()["decoys"] for device in DEVICES]
    assert decoys[0] == decoys[1] > 0


def test_composites_can_be_changed_in_place(bank: ForegroundBank) -> None:
    images, targets = make_batch(1, SIZES, 1)
    terse = Terse(bank, policy_with("adversarial", update_interval=1), seed=1, paste=PASTE)
    composites, _ = terse(images, targets)
    for own in composites:
        own.sub_(0.5).mul_(2)
    torch.stack([own.square().mean() for own in composites]).sum().backward()
    terse.step(1.0)
    assert terse.metrics()["updates"] == 1


def trained(bank: ForegroundBank, device: torch.device, losses: list[Any], read: bool = False) -> Terse:
    """A critic after an iteration for each loss; a tensor is on the device."""
    detector = make_detector("fasterrcnn").to(device)
    terse = Terse(bank, policy_with("critic", update_interval=4), model=detector, seed=1, paste=PASTE).to(device)
    for step, loss in enumerate(losses):
        images, targets = make_batch(step, SIZES, 1)
        there = [{name: value.to(device) for name, value in target.items()} for target in targets]
        composites, corrected = terse([image.to(device) for image in images], there)
        if read:
            terse.metrics()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            detector(composites, corrected)
        terse.step(torch.tensor(loss, device=device) if isinstance(loss, float) else loss)
    return terse


@pytest.mark.parametrize("read", [False, True])
def test_values_read_between_forward_and_step_lose_nothing(bank: ForegroundBank, read: bool) -> None:
    on_cpu, found = (trained(bank, device, [1.0] * 6, read) for device in DEVICES)
    assert int(found.policy.replay_count) <= int(on_cpu.policy.replay_count)
    found.metrics()
    assert int(found.policy.replay_count) == int(on_cpu.policy.replay_count) > 0
    assert found.metrics()["hardness"] == pytest.approx(on_cpu.metrics()["hardness"], abs=0.01)


def test_losses_of_two_devices_and_unknown_ones_are_read(bank: ForegroundBank) -> None:
    metrics = trained(bank, DEVICE, [1.0, 3, None, 2.0, None, 1.0, 4, None, None]).metrics()
    assert metrics["updates"] == 3
    assert metrics["non_finite_losses"] == 0


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_gradient_that_is_not_finite_is_found_when_it_is_read(bank: ForegroundBank, device: torch.device) -> None:
    terse = Terse(bank, policy_with("adversarial", update_interval=1), seed=1, paste=PASTE).to(device)
    before = [own.detach().clone() for own in terse.parameters()]
    images, targets = make_batch(0, SIZES, 1)
    there = [{name: value.to(device) for name, value in target.items()} for target in targets]
    for factor in (torch.inf, 1.0, 1.0):
        composites, _ = terse([image.to(device) for image in images], there)
        (torch.stack([own.square().mean() for own in composites]).sum() * factor).backward()
        terse.step(1.0)
        metrics = terse.metrics()
        unchanged = all(torch.equal(own, old) for own, old in zip(terse.parameters(), before, strict=True))
        assert unchanged is (factor == torch.inf)
        assert metrics["skipped_updates"] == 1
    assert metrics["updates"] == 2
    assert terse.metrics()["random_fallback"] == 0


@pytest.mark.parametrize("saved_after", [None, 1, 4])
@pytest.mark.parametrize(
    ("device", "expected"), [(DEVICES[0], "01110111011100"), (DEVICES[1], "00000111011101")], ids=str
)
def test_pastes_are_random_from_a_failed_update_to_the_next_that_succeeds(
    bank: ForegroundBank, device: torch.device, expected: str, saved_after: int | None
) -> None:
    """On a device from when it is read; a run that is saved and resumed is no different."""

    def fresh() -> Terse:
        return Terse(bank, policy_with("adversarial", update_interval=4), seed=1, paste=PASTE).to(device)

    terse, random = fresh(), ""
    for iteration in range(len(expected)):
        images, targets = make_batch(iteration, SIZES, 1)
        there = [{name: value.to(device) for name, value in target.items()} for target in targets]
        random += str(int(terse.trainer.turn(0).random))
        composites, _ = terse([image.to(device) for image in images], there)
        loss = torch.stack([own.square().mean() for own in composites]).sum()
        if loss.requires_grad:
            (loss * (torch.inf if iteration < 12 else 1.0)).backward()
        terse.step(loss.detach())
        if iteration == saved_after:
            state, terse = terse.state_dict(), fresh()
            terse.load_state_dict(state)
    assert random == expected


def test_reading_values_does_not_change_what_is_pasted(bank: ForegroundBank) -> None:
    losses = [1.0, float("nan"), 1.0, 1.0, 1.0, 1.0]
    terse, read = (trained(bank, DEVICE, losses, read) for read in (False, True))
    assert terse.metrics()["non_finite_losses"] == read.metrics()["non_finite_losses"] == 1
    for name, value in terse.policy.state_dict().items():
        assert torch.equal(value.cpu(), read.policy.state_dict()[name].cpu()), name


@pytest.mark.parametrize("boxes_on", DEVICES, ids=str)
def test_boxes_of_another_format_are_refused_on_a_device_too(bank: ForegroundBank, boxes_on: torch.device) -> None:
    images, targets = make_batch(0, SIZES, 2)
    relative = [target | {"boxes": target["boxes"] / 100} for target in targets]
    there = [{name: value.to(boxes_on) for name, value in target.items()} for target in relative]
    with pytest.raises(ValueError, match="expected boxes as XYXY in pixels, got boxes between 0 and 1"):
        Terse(bank, paste=PASTE).to(DEVICE)([image.to(DEVICE) for image in images], there)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_a_single_box_that_seems_relative_is_warned_about(bank: ForegroundBank, device: torch.device) -> None:
    images, targets = make_batch(0, SIZES[:1], 1)
    targets[0]["boxes"] = torch.tensor([[0.5, 0.5, 1.0, 1.0]])
    with pytest.warns(TerseWarning, match="boxes between 0 and 1, relative to the image"):
        composed(bank, device, (images, targets))
