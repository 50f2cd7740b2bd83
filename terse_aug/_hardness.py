"""How hard the pastes of a batch turned out: told by the training, or asked of the target. Imports torch only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from terse_aug._adversary import Turn
from terse_aug.targets import TargetModel


def take_hardness(turn: Turn, hardness: Sequence[Tensor]) -> None:
    """Keep the hardness of a turn's pastes.

    Args:
        turn: with its composites.
        hardness: for each image float ``[N]``, one value for each object of its target.

    Raises:
        ValueError: not one value for each object.
    """
    assert turn.composites is not None
    targets = turn.composites.targets
    if len(hardness) != len(targets):
        raise ValueError(f"hardness: expected a tensor for each of {len(targets)} images, got {len(hardness)}")
    for number, (values, target) in enumerate(zip(hardness, targets, strict=True)):
        count = len(target["boxes"])
        if values.shape != (count,):
            raise ValueError(
                f"hardness of image {number}: expected [{count}], one value for each object of its target, "
                f"got {list(values.shape)}"
            )
    turn.hardness = _of_pastes(turn, dict(enumerate(hardness)))


def ask_for_hardness(turns: Sequence[Turn], target: TargetModel) -> int:
    """Ask the target about the pastes of whose hardness nobody has told; how many images it was asked about."""
    asked = 0
    for turn in turns:
        if turn.hardness is not None or turn.composites is None:
            continue
        pasted = [number for number, pastes in enumerate(turn.composites.pastes) if pastes]
        scores = target.object_scores(
            [turn.composites.images[number] for number in pasted],
            [turn.composites.targets[number] for number in pasted],
        )
        turn.hardness = _of_pastes(turn, {number: 1 - own for number, own in zip(pasted, scores, strict=True)})
        asked += len(pasted)
    return asked


def _of_pastes(turn: Turn, hardness: dict[int, Tensor]) -> Tensor:
    """Float ``[M]`` in [0, 1] for the pastes of a turn's proposal; NaN for those without a label."""
    assert turn.composites is not None
    values = torch.full((len(turn.proposal.unit),), float("nan"), device=turn.proposal.unit.device)
    for number, pastes in enumerate(turn.composites.pastes):
        labelled = [paste for paste in pastes if paste.row is not None]
        if labelled:
            own = hardness[number].detach()[[paste.row for paste in labelled]]
            values[[paste.number for paste in labelled]] = own.to(values).clamp(0, 1)
    return values
