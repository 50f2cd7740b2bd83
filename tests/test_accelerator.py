"""Terse on a simulated accelerator: no tensors of two devices are mixed, results are those of the CPU, and counts.

``python tests/test_accelerator.py`` prints a table of launches, synchronisations and copies.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import (
    DETECTORS,
    EIGHT_BIT,
    KEYPOINTS,
    make_bank,
    make_batch,
    make_detector,
    make_foreground,
    policy_with,
)
from torch import Tensor

from terse_aug import BackgroundPool, Distractors, ForegroundBank, PasteConfig, Robustness, Terse
from terse_aug.samplers import HardnessSampler

pytest.importorskip("simulated_accelerator", reason="this torch has no devices made in Python", exc_type=ImportError)
from simulated_accelerator import DEVICE, Counts, SimulatedTensor, counted

POLICIES = ("random", "matched", "best-of-n", "critic", "adversarial", "paper")
FIELDS: tuple[tuple[str, ...], ...] = ((), ("masks",), ("masks", "keypoints"))
CASES = [("random", fields) for fields in FIELDS] + [(policy, FIELDS[2]) for policy in POLICIES[1:]]
SIZES = ((540, 450), (450, 540), (480, 512), (512, 480), (540, 540), (430, 550), (560, 448), (500, 470))

LIMITS = {  # synchronisations and launches at most, of images on the device and targets on the CPU
    "random": {"forward": (1, 60), "plain step": (0, 4)},
    "matched": {"forward": (1, 61), "plain step": (0, 4)},
    "critic": {"forward": (2, 150), "plain step": (0, 110), "update step": (1, 420)},
    "adversarial": {"update forward": (2, 210), "forward": (2, 190), "plain step": (0, 4), "update step": (1, 135)},
    "paper": {"update forward": (2, 190), "forward": (2, 170), "plain step": (0, 4), "update step": (1, 90)},
}
BOXES, MASKS = {"random": 1, "matched": 2}, 40
"""More synchronisations for decoys and for the real boxes, and more launches for masks of 8 images of different sizes,
if the targets are on the device, too."""


@dataclass
class Iteration:
    """One iteration of training; of ``detector``, its forward and backward, only the hooks of Terse count."""

    pastes: int
    updated: bool
    forward: Counts
    detector: Counts
    step: Counts


def coloured_bank(folder: Path, keypoints: bool = False) -> ForegroundBank:
    """Six foregrounds of usual size."""
    points = torch.tensor([[60.0, 20, 2], [30, 40, 2], [90, 40, 2]]).numpy() if keypoints else None
    foregrounds = [make_foreground(seed, 1 + seed % 2, side=120, keypoints=points) for seed in range(6)]
    return make_bank(folder, foregrounds, keypoint_names=KEYPOINTS if keypoints else ())


def moved(targets: list[dict[str, Tensor]], device: torch.device) -> list[dict[str, Tensor]]:
    return [{name: value.to(device) for name, value in target.items()} for target in targets]


class Training:
    """A small detector of torchvision and Terse on a device."""

    def __init__(
        self,
        bank: ForegroundBank,
        policy: str,
        device: torch.device,
        paste: PasteConfig | None = None,
        detector: str = "fasterrcnn",
        parts: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.device, self.detector = device, make_detector(detector).to(device)
        chosen = policy_with(policy, **settings)
        self.terse = Terse(bank, chosen, model=self.detector, paste=paste, seed=1, **(parts or {})).to(device)
        self.optimizer = torch.optim.SGD(self.detector.parameters(), lr=1e-3)
        self.composites: list[Tensor] = []
        self.targets: list[dict[str, Tensor]] = []

    def iterate(self, images: list[Tensor], targets: list[dict[str, Tensor]], moves_targets: bool = True) -> Iteration:
        images = [image.to(self.device) for image in images]
        targets = moved(targets, self.device) if moves_targets else targets
        updates = self.terse.metrics()["updates"]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            with counted() as forward:
                composites, corrected = self.terse(images, targets)
            pastes = sum(map(len, self.terse.pastes))
            with counted() as detector:
                losses = self.detector(composites, corrected)
                torch.stack(list(losses.values())).sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            with counted() as step:
                self.terse.step(losses)
        self.composites, self.targets = [image.detach() for image in composites], corrected
        return Iteration(pastes, self.terse.metrics()["updates"] > updates, forward, detector, step)


def measure(
    policy: str,
    fields: tuple[str, ...] = (),
    objects: tuple[int, int] | None = None,
    sizes: tuple[tuple[int, int], ...] = SIZES,
    iterations: int = 2,
    moves_targets: bool = True,
) -> list[Iteration]:
    """Counts of each iteration on images that are on the device; policies that learn update in the first.

    Args:
        policy: its name, with its default settings.
        fields: of ``masks`` and ``keypoints``; boxes are always there.
        objects: pasted on every image; by default as many as by default.
        sizes: height and width of each image; by default 8 of about 540 x 450.
        iterations: how many.
        moves_targets: to the device before Terse.
    """
    paste = PasteConfig() if objects is None else PasteConfig(objects=objects, paste_probability=1.0, decoys=(0, 0))
    with tempfile.TemporaryDirectory() as folder:
        training = Training(coloured_bank(Path(folder), "keypoints" in fields), policy, DEVICE, paste)
        flags = dict.fromkeys(fields, True)
        batches = [make_batch(seed, sizes, 3, **flags) for seed in range(iterations)]
        return [training.iterate(*batch, moves_targets) for batch in batches]


def table(policies: tuple[str, ...] = POLICIES) -> str:
    """Counts as a table in Markdown: launches / synchronisations / copies to the device."""
    lines = ["| policy | targets | fields | pastes | update | forward | hooks | step |", "|---" * 8 + "|"]
    for policy in policies:
        for where, fields in (*(("device", fields) for fields in FIELDS), ("CPU", FIELDS[1])):
            for one in measure(policy, fields, moves_targets=where == "device"):
                cells = [policy, where, " ".join(("boxes", *fields)), one.pastes, "yes" if one.updated else "no"]
                for counts in (one.forward, one.detector, one.step):
                    kinds = ("launches", "synchronisations", "copies")
                    from_hooks = counts is one.detector
                    own = [counts.of_package(kind) if from_hooks else getattr(counts, kind) for kind in kinds]
                    cells.append(" / ".join(map(str, own)))
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


# Terse.


@pytest.mark.parametrize("moves_targets", [True, False])
@pytest.mark.parametrize(("policy", "fields"), CASES)
def test_batches_are_those_of_the_cpu(
    tmp_path: Path, policy: str, fields: tuple[str, ...], moves_targets: bool
) -> None:
    bank = coloured_bank(tmp_path, "keypoints" in fields)
    settings = {"update_interval": 1, "discriminator_weight": 0.1}
    check_equal_on_both(bank, policy, fields, moves_targets=moves_targets, **settings)


@pytest.mark.parametrize("detector", DETECTORS[1:])
def test_every_detector_of_torchvision_gives_feedback(tmp_path: Path, detector: str) -> None:
    bank = coloured_bank(tmp_path, keypoints=True)
    metrics = check_equal_on_both(bank, "critic", FIELDS[2], detector=detector, update_interval=1)
    assert metrics["hardness"] > 0


@pytest.mark.parametrize("moves_targets", [True, False])
@pytest.mark.parametrize("policy", ["random", "critic", "adversarial"])
def test_parts_are_not_mixed(tmp_path: Path, policy: str, moves_targets: bool) -> None:
    parts = {
        "sampler": "hardness",
        "backgrounds": BackgroundPool([torch.full((3, 120, 140), 0.4)], probability=0.4),
        "distractors": Distractors(make_bank(tmp_path, [make_foreground(9, label=7)]), count=(1, 2)),
        "robustness": Robustness(steps=2),
    }
    settings: dict[str, Any] = {"update_interval": 1, "foreground_candidates": 2}
    settings |= {"parts": parts, "exact": False, "moves_targets": moves_targets}
    metrics = check_equal_on_both(coloured_bank(tmp_path), policy, ("masks",), **settings)
    assert metrics["robustness/images"] == 3


def check_equal_on_both(
    bank: ForegroundBank,
    policy: str,
    fields: tuple[str, ...],
    exact: bool = True,
    moves_targets: bool = True,
    **settings: Any,
) -> dict[str, float]:
    """Train on the CPU and on the device and compare the first iteration; returns the metrics."""
    paste = PasteConfig(objects=(2, 3), occluded_object_probability=0.5)
    runs = [Training(bank, policy, device, paste, **settings) for device in (torch.device("cpu"), DEVICE)]
    batch = make_batch(0, ((128, 160), (144, 128), (128, 128)), 2, **dict.fromkeys(fields, True))
    if fields == ("masks",):  # of both types
        batch[1][:] = [target | {"masks": target["masks"].bool()} for target in batch[1]]
    on_cpu, simulated = (run.iterate(*batch, moves_targets) for run in runs)
    assert simulated.pastes == on_cpu.pastes > 4
    assert simulated.updated == on_cpu.updated == runs[0].terse.policy.learns
    for expected, image in zip(*(run.composites for run in runs), strict=True):
        assert isinstance(image, SimulatedTensor)
        # OpenCV renders composites without a gradient on the CPU, to 8 bits.
        if exact:
            torch.testing.assert_close(image.cpu(), expected, rtol=0, atol=EIGHT_BIT)
    for expected, target in zip(*(run.targets for run in runs), strict=True):
        assert all(isinstance(value, SimulatedTensor) for value in target.values())
        _check_target({name: value.cpu() for name, value in target.items()}, expected)
    expected_metrics, metrics = (run.terse.metrics() for run in runs)
    for values in (metrics, expected_metrics):
        values.pop("robustness/loss_gain", None)  # what a random network's loss gains depends on every rounding
    assert metrics == pytest.approx(expected_metrics, rel=0.02, abs=0.02)
    assert runs[1].iterate(*batch, moves_targets).updated == simulated.updated
    return metrics


def _check_target(target: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal but for rounding: a mask ends where alpha is one half, so a box may end one pixel further."""
    assert target.keys() == expected.keys()
    torch.testing.assert_close(target["boxes"], expected["boxes"], rtol=0, atol=1)
    assert torch.equal(target["labels"], expected["labels"])
    if "keypoints" in target:
        torch.testing.assert_close(target["keypoints"], expected["keypoints"], rtol=0, atol=0.01)
    if "masks" in target:
        different = (target["masks"] != expected["masks"]).flatten(1).sum(1)
        assert (different <= 0.02 * expected["masks"].flatten(1).sum(1) + 1).all()


def test_counts_name_the_line_of_the_package() -> None:
    first = measure("random", sizes=((64, 80),) * 2, iterations=1)[0]
    lines = first.forward.origins["synchronisations"]
    assert sum(lines.values()) == first.forward.of_package("synchronisations") == first.forward.synchronisations
    assert any(line.startswith("utils/transfer.py:") for line in lines)
    assert first.detector.launches > 100
    assert first.detector.of_package("launches") == 0


@pytest.mark.parametrize(("fields", "moves_targets"), [*((fields, True) for fields in FIELDS), (FIELDS[2], False)])
@pytest.mark.parametrize("policy", LIMITS)
def test_counts_are_within_limits(policy: str, fields: tuple[str, ...], moves_targets: bool) -> None:
    update, plain = measure(policy, fields, moves_targets=moves_targets)
    assert update.updated == (policy not in ("random", "matched"))
    assert not plain.updated
    parts = {"forward": plain.forward, "plain step": plain.step}
    parts |= {"update forward": update.forward, "update step": update.step}
    over = [
        f"blocking copies: {counts.origins}"
        for own in (update, plain)
        for counts in (own.forward, own.detector, own.step)
        if counts.of_package("blocking_copies")
    ]
    for name, (synchronisations, launches) in LIMITS[policy].items():
        found, most = parts[name], launches
        if moves_targets and "forward" in name:
            most += MASKS if fields else 0
            synchronisations += BOXES.get(policy, 0)
        if found.synchronisations > synchronisations or found.launches > most:
            over.append(
                f"{name}: {found.synchronisations} synchronisations, {found.launches} launches: {found.origins}"
            )
    assert not over


def test_a_learning_sampler_waits_in_updates_alone(tmp_path: Path) -> None:
    training = Training(
        coloured_bank(tmp_path), "random", DEVICE, parts={"sampler": HardnessSampler(update_interval=2)}
    )
    steps = [training.iterate(*make_batch(seed, ((64, 80),) * 2)).step for seed in range(4)]
    assert [step.synchronisations for step in steps[1::2]] == [0, 0]
    assert [step.synchronisations for step in steps[::2]] == [1, 1]
    assert sum(training.terse.sampler.state()["recorded"][1]) > 0


def test_random_waits_once_without_decoys() -> None:
    """Decoys need boxes of the targets before anything is rendered."""
    assert measure("random", ("masks",), (2, 3))[1].forward.synchronisations == 1


@pytest.mark.parametrize("policy", LIMITS)
def test_counts_do_not_grow_with_the_number_of_pastes(policy: str) -> None:
    few, many = (measure(policy, ("masks",), (number, number), ((160, 200),) * 4) for number in (2, 8))
    assert sum(one.pastes for one in many) > 3 * sum(one.pastes for one in few)
    for one, other in zip(few, many, strict=True):
        for own, more in ((one.forward, other.forward), (one.step, other.step)):
            assert more.synchronisations <= own.synchronisations
            assert more.copies <= own.copies
            assert more.launches <= own.launches


if __name__ == "__main__":
    print(table())
