"""How hard the pastes of a batch turned out: told, heard in the training, or asked of the target. Imports torch only.

Shape letters: N objects of an image, M pastes of a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from terse_aug.models import GivesClassProbabilities, ModelAdapter
from terse_aug.structures.annotations import Target
from terse_aug.training.updates import PendingBatch

_SLACK = 1e-3  # rounding of low precision
_SUM_SLACK = 0.05  # of many roundings

Outcomes = Mapping[int, tuple[Tensor, Tensor | None]]
"""By image: the hardness of its objects ``[N]`` and, if they are told, the chances of the classes ``[N, K]``."""


def supplied_outcomes(
    hardness: Sequence[Tensor] | None,
    chances: Sequence[Tensor] | None,
    targets: Sequence[Target],
    classes: int | None,
) -> Outcomes:
    """Outcomes from what a training loop tells.

    Args:
        hardness: see :meth:`terse_aug.Terse.observe`.
        chances: likewise.
        targets: of the batch.
        classes: columns that the policy learns from; ``None`` if it learns from hardness alone.

    Raises:
        ValueError: naming the image, what was expected and what came.
    """
    if (hardness is None) == (chances is None):
        got = "neither" if hardness is None else "both"
        raise ValueError(f"observe: expected either hardness or chances, got {got}")
    if hardness is not None:
        _check_values("hardness", hardness, targets)
        return {number: (own, None) for number, own in enumerate(hardness)}
    assert chances is not None
    _check_rows("chances", chances, targets, classes)
    return dict(enumerate(_of_chances(own, target) for own, target in zip(chances, targets, strict=True)))


def extra_forward_hardness(turns: Sequence[PendingBatch], target: ModelAdapter, classes: int | None) -> int:
    """Ask the target about the pastes of whose hardness nobody has told; how many images it was asked about."""
    asked = 0
    for turn in turns:
        if turn.hardness is not None or turn.composites is None:
            continue
        labelled = [
            number
            for number, pastes in enumerate(turn.composites.pastes)
            if any(paste.row is not None and paste.number is not None for paste in pastes)
        ]
        if not labelled:
            continue
        images = [turn.composites.images[number] for number in labelled]
        targets = [turn.composites.targets[number] for number in labelled]
        take_outcomes(turn, dict(zip(labelled, extra_forward_outcomes(images, targets, target), strict=True)), classes)
        asked += len(labelled)
    return asked


def recorded_hardness(turn: PendingBatch) -> Exception | None:
    """Give a turn what its listener has heard, unless the hardness is known already; let go of the model.

    Returns:
        What went wrong in listening, if anything did; the hardness is not known then.
    """
    listener, turn.listener = turn.listener, None
    if listener is None:
        return None
    try:
        if turn.hardness is None and turn.composites is not None:
            scores = listener.scores(turn.composites.images, turn.composites.targets)
            if scores is not None:
                take_outcomes(turn, {number: (1 - own, None) for number, own in enumerate(scores)}, None)
                known = turn.hardness
                if known is not None and bool(known.isnan().all()):
                    turn.hardness = None
    except Exception as error:
        turn.hardness = None
        return error
    finally:
        trouble: Exception | None = getattr(listener, "error", None)
        listener.close()
    return trouble


def extra_forward_outcomes(
    images: Sequence[Tensor], targets: Sequence[Target], target: ModelAdapter
) -> list[tuple[Tensor, Tensor | None]]:
    """Outcomes of each image from one forward of the target."""
    if isinstance(target, GivesClassProbabilities):
        every = target.class_probabilities(images, targets)
        _check_rows("class_probabilities", every, targets, target.label_limit)
        return [_of_chances(own, its) for own, its in zip(every, targets, strict=True)]
    return [(1 - own, None) for own in target.object_scores(images, targets)]


def take_outcomes(turn: PendingBatch, outcomes: Outcomes, classes: int | None) -> None:
    """Give a turn the outcomes of the pastes of its proposal; NaN for those without a label.

    Args:
        turn: with its composites.
        outcomes: for the images with a labelled paste at least.
        classes: columns that the policy learns from; ``None`` if it learns from hardness alone.
    """
    assert turn.composites is not None
    count, device = len(turn.proposal.unit), turn.proposal.unit.device
    turn.hardness = torch.full((count,), float("nan"), device=device)
    turn.chances = None
    for number, pastes in enumerate(turn.composites.pastes):
        labelled = [paste for paste in pastes if paste.row is not None and paste.number is not None]
        if not labelled:
            continue
        rows, places = [paste.row for paste in labelled], [paste.number for paste in labelled]
        hardness, chances = outcomes[number]
        turn.hardness[places] = hardness.detach()[rows].to(turn.hardness).clamp(0, 1)
        if chances is not None and classes is not None:
            if turn.chances is None:
                turn.chances = torch.full((count, chances.shape[1]), float("nan"), device=device)
            turn.chances[places] = chances.detach()[rows].to(turn.chances).clamp(0, 1)


def outcomes_by_class(turn: PendingBatch) -> tuple[list[int], list[float]]:
    """Label and hardness of the pastes of which the hardness is known."""
    labels: list[int] = []
    values: list[float] = []
    if turn.hardness is not None and turn.composites is not None:
        hardness = turn.hardness.tolist()
        for paste in (paste for pastes in turn.composites.pastes for paste in pastes):
            if paste.number is not None and not math.isnan(hardness[paste.number]):
                labels.append(paste.label)
                values.append(hardness[paste.number])
    return labels, values


def _of_chances(chances: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """One minus the chance of each object's own class, NaN where that is no column; and the chances."""
    labels = target["labels"].long().to(chances.device)
    known = (labels >= 0) & (labels < chances.shape[1])
    own = chances.gather(1, labels.clamp(0, chances.shape[1] - 1)[:, None])[:, 0]
    return torch.where(known, 1 - own, torch.nan), chances


def _check_values(name: str, values: Sequence[Tensor], targets: Sequence[Target]) -> None:
    """Refuse what is not a value in [0, 1], or NaN, for each object of each image."""
    for where, own, count in _by_image(name, values, targets):
        if not isinstance(own, Tensor) or own.shape != (count,):
            raise ValueError(
                f"{where}: expected a tensor [{count}], one value for each object of its target, got {_shape(own)}"
            )
        _check_range(where, own)


def _check_rows(name: str, values: Sequence[Tensor], targets: Sequence[Target], classes: int | None) -> None:
    """Refuse what is not a row of probabilities that sum to 1, or of NaN, for each object of each image.

    Args:
        name: of what is checked.
        values: by image.
        targets: by image.
        classes: columns; ``None`` for any number.
    """
    for where, own, count in _by_image(name, values, targets):
        if not isinstance(own, Tensor) or own.ndim != 2 or own.shape != (count, classes or own.shape[1]):
            raise ValueError(
                f"{where}: expected a tensor [{count}, {classes or 'classes'}], the probabilities of all classes for "
                f"each object of its target, got {_shape(own)}"
            )
        _check_range(where, own)
        sums = own.detach().float().sum(1)
        if bool(((sums - 1).abs() > _SUM_SLACK).any()):
            raise ValueError(f"{where}: expected rows that sum to 1, got sums {sums.tolist()[:3]}")


def _by_image(name: str, values: Sequence[Tensor], targets: Sequence[Target]) -> Iterator[tuple[str, Tensor, int]]:
    """For each image what a message calls it, its values, and the number of its objects."""
    if len(values) != len(targets):
        raise ValueError(f"{name}: expected a tensor for each of {len(targets)} images, got {len(values)}")
    for number, (own, target) in enumerate(zip(values, targets, strict=True)):
        yield f"{name} of image {number}", own, len(target["boxes"])


def _check_range(where: str, own: Tensor) -> None:
    known = own.detach()[~own.isnan()]
    if len(known) and not (float(known.min()) >= -_SLACK and float(known.max()) <= 1 + _SLACK):
        raise ValueError(f"{where}: expected values in [0, 1], got {float(known.min())} to {float(known.max())}")


def _shape(own: object) -> object:
    return list(own.shape) if isinstance(own, Tensor) else type(own).__name__
