"""Banks, settings and arms of :mod:`benchmarks.finetune`: what pastes onto a batch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks._appearances import APPEARANCES
from benchmarks._finetune_copy_paste import CopyPastePasting
from benchmarks._finetune_data import DATA_SETS, CachedDataset, DataSet, annotation
from benchmarks._finetune_example import as_coco
from benchmarks._finetune_measures import Judge, Target
from benchmarks._finetune_oracles import CHOICES, Oracle, measures_of
from terse_aug import BackgroundPool, ForegroundBank, PasteConfig, Terse
from terse_aug.bank import ExtractionRules, build_from_coco
from terse_aug.config import POLICY_SETTINGS
from terse_aug.samplers import SAMPLERS

SETTINGS = ("right", "wide", "unrelated", "bad-masks", "long-tail", *APPEARANCES)
POLICY_ARMS = {"random": "random", "random-again": "random", "critic": "critic"}
"""Arms that are policies of the library; ``random-again`` differs from ``random`` in the seed of pasting alone."""
CLOSED = "-closed"
"""Ends the names of arms of a policy that pastes nothing in the last quarter of the iterations."""
CLOSE_FRACTION = 0.25
WITHOUT_SETTINGS = ("none", "copy-paste")
"""Arms that are the same whatever the settings."""
_DAMAGED = 5  # one in so many
_TAIL = 0.6  # each class has so many times the foregrounds of the one before it


class Pasting(Protocol):
    """What an arm does in an iteration."""

    def __call__(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Any, Any]:
        """Paste onto a batch."""

    def step(self, losses: Any) -> None:
        """The detector has been trained on the batch."""

    @property
    def extra_forwards(self) -> int:
        """Forwards of one image beside training."""


class NoPasting:
    """Arm ``none``."""

    extra_forwards = 0

    def __call__(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Any, Any]:
        """The batch as it is."""
        return images, targets

    def step(self, losses: Any) -> None:
        """Nothing to do."""


class PolicyPasting:
    """An arm that is a policy of the library.

    Args:
        terse: pastes.
    """

    def __init__(self, terse: Terse) -> None:
        self.terse = terse

    def __call__(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[Any, Any]:
        """Composites."""
        return self.terse(images, targets)

    def step(self, losses: Any) -> None:
        """Update the policy."""
        self.terse.step(losses)

    @property
    def extra_forwards(self) -> int:
        """As counted by the library."""
        return int(self.terse.metrics()["extra_forwards"])


def split_arm(arm: str, choose: str = "transforms") -> tuple[str, str]:
    """Name and choice of an arm such as ``agree@backgrounds``; ``random.rarity`` names policy and sampler.

    Raises:
        ValueError: there is no such arm or choice.
    """
    name, _, own = arm.partition("@")
    choice = own or choose
    oracle = measures_of(name) is not None
    policy, dot, sampler = name.removesuffix(CLOSED).partition(".")
    known = name in WITHOUT_SETTINGS or policy in POLICY_ARMS or policy in POLICY_SETTINGS or oracle
    known &= not dot or sampler in SAMPLERS
    if not known or choice not in CHOICES or (own and not oracle):
        raise ValueError(f"there is no arm {arm!r}")
    return name, choice


def full_name(arm: str, choose: str) -> str:
    """The name of an arm, with what its candidates differ in unless that is the transforms."""
    name, choice = split_arm(arm, choose)
    return f"{name}@{choice}" if measures_of(name) and choice != "transforms" else name


def policy_of(name: str) -> tuple[str, str]:
    """Policy and sampler of an arm that is no oracle; of ``none`` the default ones.

    Args:
        name: of the arm.

    Raises:
        ValueError: it is an oracle, or ``copy-paste``.
    """
    name = name.removesuffix(CLOSED)
    if name == "copy-paste":
        raise ValueError("'copy-paste' runs in torchvision alone; take none, random or another policy")
    if measures_of(name.partition("@")[0]) is not None:
        raise ValueError(f"{name!r} is an oracle, which torchvision alone has; take none, random or another policy")
    policy, _, sampler = name.partition(".")
    return POLICY_ARMS.get(policy, policy if policy in POLICY_SETTINGS else "random"), sampler or "uniform"


def seed_of_pasting(name: str, seed: int) -> int:
    """The seed of an arm's pasting, from that of the pair."""
    return seed + (1_000_003 if name.removesuffix(CLOSED).partition(".")[0] == "random-again" else 0)


def make_pasting(
    arm: str,
    settings: str,
    data_set: str,
    folder: Path,
    data: Path,
    detector: nn.Module,
    training_set: CachedDataset,
    seed: int,
    candidates: int,
    iterations: int,
) -> Pasting:
    """The pasting of an arm.

    Args:
        arm: its full name.
        settings: one of ``SETTINGS``.
        data_set: name of the data set.
        folder: of the data set, see :func:`benchmarks._finetune_data.prepare`.
        data: folder of the real data.
        detector: under training.
        training_set: real images.
        seed: of all draws.
        candidates: of an oracle.
        iterations: of the training.
    """
    name, choice = split_arm(arm)
    if name == "none":
        return NoPasting()
    if name == "copy-paste":
        return CopyPastePasting(training_set, seed, DATA_SETS[data_set].flip)
    kind = DATA_SETS[data_set]
    pool = BackgroundPool([str(path) for path in kind.backgrounds(data)], 0.5) if settings == "unrelated" else None
    measures = measures_of(name)
    policy, sampler = ("random", "uniform") if measures else policy_of(name)
    terse = Terse(
        open_bank(settings, folder, kind.classes),
        policy,
        model=detector,
        classes=kind.classes,
        seed=seed_of_pasting(name, seed),
        paste=paste_settings(settings, kind),
        sampler=sampler,
        backgrounds=pool,
    ).to(next(detector.parameters()).device)
    if name.endswith(CLOSED):
        terse.close_after(math.ceil((1 - CLOSE_FRACTION) * iterations))
    if measures is None:
        return PolicyPasting(terse)
    return Oracle(terse, Judge(detector, training_set, seed), measures, candidates, choice, seed)


def paste_settings(settings: str, kind: DataSet) -> PasteConfig:
    """What is pasted, in which ranges, and how it looks."""
    if settings != "wide":
        return replace(kind.paste, **APPEARANCES.get(settings, {}))
    return replace(kind.paste, ranges=replace(kind.paste.ranges, scale=(0.1, 3), rotation=(-45, 45)))


def open_bank(settings: str, folder: Path, classes: Sequence[str]) -> ForegroundBank:
    """The bank of a data set's training images, damaged where the settings are so; built if it is not there."""
    changes: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "bad-masks": with_bad_masks,
        "long-tail": with_long_tail,
    }
    path = folder / f"{settings if settings in changes else 'foregrounds'}.bank"
    if not path.exists():
        content = json.loads((folder / "train.json").read_text())
        if settings in changes:
            content = changes[settings](content)
        rules = ExtractionRules(min_side=2, min_area=12, min_box_agreement=0)
        build_from_coco(content, folder / "images", path, rules=rules, jobs=1)
    return ForegroundBank.open(path)


def with_bad_masks(content: dict[str, Any]) -> dict[str, Any]:
    """A fifth of the foregrounds badly cut (dilated, shifted, or their box), and another fifth mislabelled."""
    random, coco = np.random.default_rng(0), as_coco(content)
    labels = [category["id"] for category in content["categories"]]
    order = random.permutation(len(content["annotations"]))
    annotations = []
    for place, own in zip(order, content["annotations"], strict=True):
        mask = coco.annToMask(own).astype(bool)
        own = own | {"segmentation": annotation(own["category_id"], mask)["segmentation"]}
        if place % _DAMAGED == 0:
            own = own | annotation(own["category_id"], _badly_cut(mask, random))
        elif place % _DAMAGED == 1 and len(labels) > 1:
            own = own | {"category_id": int(random.choice([label for label in labels if label != own["category_id"]]))}
        annotations.append(own)
    return content | {"annotations": annotations}


def _badly_cut(mask: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.bool_]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = (int(own[-1] - own[0] + 1) for own in (rows, columns))
    way = random.integers(3)
    if way == 0:
        size = max(3, round(0.3 * min(height, width)))
        return cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8)) > 0
    if way == 1:
        right, down = (int(random.choice((-1, 1)) * max(2, round(0.35 * side))) for side in (width, height))
        moved = cv2.warpAffine(mask.astype(np.uint8), np.float32([[1, 0, right], [0, 1, down]]), mask.shape[::-1]) > 0
        if moved.any():
            return moved
    return np.outer(mask.any(1), mask.any(0))


def with_long_tail(content: dict[str, Any]) -> dict[str, Any]:
    """Foregrounds whose classes have ever fewer, at least one each.

    Raises:
        ValueError: there is one class only.
    """
    if len(content["categories"]) < 2:
        raise ValueError("settings long-tail: expected a data set of several classes")
    by_class: dict[int, list[dict[str, Any]]] = {category["id"]: [] for category in content["categories"]}
    for own in content["annotations"]:
        by_class[own["category_id"]].append(own)
    kept = [
        own
        for place, group in enumerate(by_class.values())
        for own in group[: max(1, round(len(group) * _TAIL**place))]
    ]
    return content | {"annotations": kept}
