"""Policy ``hard-random``: several random proposals for each image, of which the detector picks the hardest.

The baseline that learning has to beat. Costs one detector forward per candidate and image.
"""

from __future__ import annotations

import torch

from terse_aug.policies.base import Policy, PolicyContext, Proposal, uniform_proposal


class BestOfNPolicy(Policy):
    """Of ``candidates`` uniform proposals, the one on which the detector's loss is highest, image by image.

    Args:
        candidates: at least 1; 1 is the random policy.

    Raises:
        ValueError: ``candidates`` below 1, or no target to ask.
    """

    needs_model = True

    def __init__(self, candidates: int = 2) -> None:
        super().__init__()
        if candidates < 1:
            raise ValueError(f"candidates: expected at least 1, got {candidates}")
        self.candidates = candidates

    def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`. A candidate with a loss that is not finite is never picked."""
        if scene.detector_loss is None:
            raise ValueError("policy 'hard-random' asks the detector: give Terse(target=detector)")
        count = len(scene.image_of)
        units = [uniform_proposal(count, generator, scene.image_of.device).unit for _ in range(self.candidates)]
        if self.candidates == 1 or count == 0:
            return Proposal(units[0], torch.zeros_like(units[0][:, 0]))
        losses = torch.stack([scene.detector_loss(unit) for unit in units]).to(units[0].device)
        hardest = losses.nan_to_num(nan=-torch.inf, posinf=-torch.inf).argmax(0)
        unit = torch.stack(units)[hardest[scene.image_of], torch.arange(count, device=units[0].device)]
        return Proposal(unit, torch.zeros_like(unit[:, 0]), extra_forwards=int((~losses.isnan()).sum()))
