"""How hard the pastes of a batch turned out: told by the training, or asked of the target. Imports torch only.

Shape letters: N objects of an image, M pastes of a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from terse_aug._adversary import Turn
from terse_aug._sample import Target
from terse_aug.targets import TargetModel, TellsChances

_SLACK = 1e-3  # rounding of low precision

Outcomes = Mapping[int, tuple[Tensor, Tensor | None]]
"""By image: the hardness of its objects ``[N]`` and, if they are told, the chances of the classes ``[N, K]``."""


def told_outcomes(
    hardness: Sequence[Tensor] | None, chances: Sequence[Tensor] | None, targets: Sequence[Target], classes: int
) -> Outcomes:
    """Outcomes from what a training loop tells.

    Raises:
        ValueError: naming the image, what was expected and what came.
    """
    if (hardness is None) == (chances is None):
        raise ValueError("observe: expected either hardness or chances, got " + ("both" if chances else "neither"))
    if hardness is not None:
        _check("hardness", hardness, targets, None)
        return {number: (own, None) for number, own in enumerate(hardness)}
    assert chances is not None
    _check("chances", chances, targets, classes)
    return {
        number: (_hardness(own, target), own) for number, (own, target) in enumerate(zip(chances, targets, strict=True))
    }


def ask_for_hardness(turns: Sequence[Turn], target: TargetModel) -> int:
    """Ask the target about the pastes of whose hardness nobody has told; how many images it was asked about."""
    asked = 0
    for turn in turns:
        if turn.hardness is not None or turn.composites is None:
            continue
        labelled = [
            number
            for number, pastes in enumerate(turn.composites.pastes)
            if any(paste.row is not None for paste in pastes)
        ]
        if not labelled:
            continue
        images = [turn.composites.images[number] for number in labelled]
        targets = [turn.composites.targets[number] for number in labelled]
        take_outcomes(turn, dict(zip(labelled, asked_outcomes(images, targets, target), strict=True)))
        asked += len(labelled)
    return asked


def asked_outcomes(
    images: Sequence[Tensor], targets: Sequence[Target], target: TargetModel
) -> list[tuple[Tensor, Tensor | None]]:
    """Outcomes of each image from one forward of the target."""
    if isinstance(target, TellsChances):
        every = target.object_chances(images, targets)
        return [(_hardness(own, its), own) for own, its in zip(every, targets, strict=True)]
    return [(1 - own, None) for own in target.object_scores(images, targets)]


def take_outcomes(turn: Turn, outcomes: Outcomes) -> None:
    """Give a turn the outcomes of the pastes of its proposal; NaN for those without a label.

    Args:
        turn: with its composites.
        outcomes: for the images with a labelled paste at least.
    """
    assert turn.composites is not None
    count, device = len(turn.proposal.unit), turn.proposal.unit.device
    turn.hardness = torch.full((count,), float("nan"), device=device)
    turn.chances = None
    for number, pastes in enumerate(turn.composites.pastes):
        labelled = [paste for paste in pastes if paste.row is not None]
        if not labelled:
            continue
        rows, places = [paste.row for paste in labelled], [paste.number for paste in labelled]
        hardness, chances = outcomes[number]
        turn.hardness[places] = hardness.detach()[rows].to(turn.hardness).clamp(0, 1)
        if chances is not None:
            if turn.chances is None:
                turn.chances = torch.full((count, chances.shape[1]), float("nan"), device=device)
            turn.chances[places] = chances.detach()[rows].to(turn.chances).clamp(0, 1)


def _hardness(chances: Tensor, target: Target) -> Tensor:
    """One minus the chance of each object's own class."""
    return 1 - chances.gather(1, target["labels"].long().to(chances.device)[:, None])[:, 0]


def _check(name: str, values: Sequence[Tensor], targets: Sequence[Target], classes: int | None) -> None:
    """Refuse what is not one value (with ``classes``, one row) in [0, 1], or NaN, for each object of each target."""
    if len(values) != len(targets):
        raise ValueError(f"{name}: expected a tensor for each of {len(targets)} images, got {len(values)}")
    what = "one value" if classes is None else "the probabilities of all classes"
    for number, (own, target) in enumerate(zip(values, targets, strict=True)):
        shape = (len(target["boxes"]),) if classes is None else (len(target["boxes"]), classes)
        if not isinstance(own, Tensor) or own.shape != shape:
            got = list(own.shape) if isinstance(own, Tensor) else type(own).__name__
            raise ValueError(
                f"{name} of image {number}: expected a tensor {list(shape)}, {what} for each object of its target, "
                f"got {got}"
            )
        known = own.detach()[~own.isnan()]
        if len(known) and not (float(known.min()) >= -_SLACK and float(known.max()) <= 1 + _SLACK):
            raise ValueError(
                f"{name} of image {number}: expected values in [0, 1], got {float(known.min())} to {float(known.max())}"
            )
