"""How hard the pastes of a batch turned out: told by the training, or asked of the target. Imports torch only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terse_aug._adversary import Turn
from terse_aug._sample import Target
from terse_aug.targets import TargetModel

_SLACK = 1e-3  # rounding of low precision


def check_hardness(hardness: Sequence[Tensor], targets: Sequence[Target]) -> None:
    """Refuse what is not one value in [0, 1], or NaN, for each object of each target.

    Raises:
        ValueError: naming the image, what was expected and what came.
    """
    if len(hardness) != len(targets):
        raise ValueError(f"hardness: expected a tensor for each of {len(targets)} images, got {len(hardness)}")
    for number, (values, target) in enumerate(zip(hardness, targets, strict=True)):
        count = len(target["boxes"])
        if not isinstance(values, Tensor) or values.shape != (count,):
            got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ValueError(
                f"hardness of image {number}: expected a tensor [{count}], one value for each object of its target, "
                f"got {got}"
            )
        known = values.detach()[~values.isnan()]
        if len(known) and not (float(known.min()) >= -_SLACK and float(known.max()) <= 1 + _SLACK):
            raise ValueError(
                f"hardness of image {number}: expected values in [0, 1], one minus a probability, got "
                f"{float(known.min())} to {float(known.max())}"
            )


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
        scores = target.object_scores(
            [turn.composites.images[number] for number in labelled],
            [turn.composites.targets[number] for number in labelled],
        )
        turn.hardness = hardness_of_pastes(
            turn, {number: 1 - own for number, own in zip(labelled, scores, strict=True)}
        )
        asked += len(labelled)
    return asked


def hardness_of_pastes(turn: Turn, hardness: dict[int, Tensor]) -> Tensor:
    """Float ``[M]`` in [0, 1] for the pastes of a turn's proposal; NaN for those without a label.

    Args:
        turn: with its composites.
        hardness: by image, for those with a labelled paste at least: float ``[N]``, a value for each object.
    """
    assert turn.composites is not None
    values = torch.full((len(turn.proposal.unit),), float("nan"), device=turn.proposal.unit.device)
    for number, pastes in enumerate(turn.composites.pastes):
        labelled = [paste for paste in pastes if paste.row is not None]
        if labelled:
            own = hardness[number].detach()[[paste.row for paste in labelled]]
            values[[paste.number for paste in labelled]] = own.to(values).clamp(0, 1)
    return values
