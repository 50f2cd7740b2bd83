"""Policy ``best-of-n``: of several random proposals for each image, the hardest for the detector is chosen.

The baseline that learning has to beat. It costs one detector forward per candidate and image.
"""

from __future__ import annotations

import torch

from terse_aug.config import BestOfN
from terse_aug.policies.base import Policy, PolicyContext, Proposal, uniform_proposal


class BestOfNPolicy(Policy):
    """Of some uniform proposals, the one on which the detector's loss is highest, image by image.

    Args:
        settings: see :class:`terse_aug.policies.BestOfN`; one candidate is the random policy.
    """

    needs_model = True

    def __init__(self, settings: BestOfN | None = None) -> None:
        super().__init__()
        self.candidates = (settings or BestOfN()).candidates

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`. A candidate with a loss that is not finite is never chosen."""
        if context.detector_loss is None:
            raise ValueError("policy best-of-n needs forwards of the detector: give Terse(model=detector)")
        count = len(context.image_of)
        units = [uniform_proposal(count, generator, columns=context.columns).unit for _ in range(self.candidates)]
        if self.candidates == 1 or count == 0:
            return Proposal(units[0], torch.zeros_like(units[0][:, 0]))
        losses = torch.stack([context.detector_loss(unit) for unit in units]).cpu()
        hardest = losses.nan_to_num(nan=-torch.inf, posinf=-torch.inf).argmax(0)
        unit = torch.stack(units)[hardest[context.image_of], torch.arange(count)]
        return Proposal(unit, torch.zeros_like(unit[:, 0]), extra_forwards=int((~losses.isnan()).sum()))
