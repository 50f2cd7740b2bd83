"""Policy ``matched``: pastes have about the size and place of real objects of their class.

For each paste a real object is drawn. Some random transforms are moved to its place, and that is chosen whose bounding
box is nearest to the object's. So ranges may be wide: they only say what is allowed. There is no network and no forward
of the detector.
Shape letters: C candidates, M pastes, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from terse_aug.config import Matched
from terse_aug.policies.base import Policy, PolicyContext, Proposal, uniform_proposal
from terse_aug.transforms import PARAMETERS

_FEWEST = 16
"""With fewer objects of a class, those of all classes are used; with fewer of these, transforms are random."""
_LEAST = 1e-3
"""Side of a box, as a fraction of the image, so that its logarithm is finite; standard deviation of a feature."""
_POSITION = [PARAMETERS.index("translate_x"), PARAMETERS.index("translate_y")]


class MatchedPolicy(Policy):
    """Chooses transforms so that bounding boxes are distributed like those of the real objects of the batches.

    The distribution is a kernel density estimate: a stored box, plus normal noise of Scott's bandwidth, in the
    logarithms of width and height, the center across and the lower edge, all relative to the image.

    Args:
        settings: see :class:`terse_aug.policies.Matched`; one candidate is the random policy.
        capacity: boxes that are kept, the most recent ones, at least 1.

    Raises:
        ValueError: a number is outside its range.
    """

    uses_boxes = True
    ahead = True

    def __init__(self, settings: Matched | None = None, capacity: int = 8192) -> None:
        super().__init__()
        if capacity < 1:
            raise ValueError(f"capacity: expected at least 1, got {capacity}")
        self.candidates = (settings or Matched()).candidates
        self.register_buffer("boxes", torch.zeros(capacity, 4))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.long))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.boxes: Tensor
        self.labels: Tensor
        self.count: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MatchedPolicy:
        """Stays on the CPU, where transforms are proposed."""
        return self

    def acting_state(self) -> list[Tensor]:
        """See :meth:`Policy.acting_state`."""
        return [self.boxes, self.labels, self.count]

    def add_real_boxes(self, boxes: Tensor, labels: Tensor) -> None:
        """See :meth:`Policy.add_real_boxes`; the oldest boxes are overwritten."""
        boxes, labels = boxes[-len(self.boxes) :], labels[-len(self.boxes) :]
        places = (torch.arange(len(boxes)) + self.count) % len(self.boxes)
        self.boxes[places], self.labels[places] = boxes.to(self.boxes), labels
        self.count += len(boxes)

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`."""
        pastes = len(context.image_of)
        known = min(int(self.count), len(self.boxes))
        if known < _FEWEST or not pastes:
            return uniform_proposal(pastes, generator)
        assert context.boxes is not None
        wanted, spread = self._wanted(context.labels, known, generator)
        units = torch.rand(self.candidates, pastes, len(PARAMETERS), generator=generator)
        ends = torch.stack([units, units])
        ends[0][..., _POSITION], ends[1][..., _POSITION] = 0.0, 1.0
        # A box moves linearly with the translation, and does not change its size.
        first, last = _features(context.boxes(ends.flatten(0, 1)).view(*ends.shape[:3], 4))
        way = last - first
        moved = ((wanted - first) / torch.where(way > 0, way, torch.inf)).clamp(0, 1)
        units[..., _POSITION] = moved[..., 2:]
        distance = ((first + moved * way - wanted) / spread).square().sum(-1)
        return Proposal(units[distance.argmin(0), torch.arange(pastes)], torch.zeros(pastes))

    def _wanted(self, labels: Tensor, known: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Features to come near to, and the standard deviations of real ones; both float ``[M, 4]``."""
        draw, noise = torch.rand(len(labels), generator=generator), torch.randn(len(labels), 4, generator=generator)
        features, own = _features(self.boxes[:known]), self.labels[:known]
        wanted, spread = torch.empty_like(noise), torch.empty_like(noise)
        for label in sorted(set(labels.tolist())):
            rows, pastes = features[own == label], labels == label
            rows = rows if len(rows) >= _FEWEST else features
            spread[pastes] = rows.std(0).clamp(min=_LEAST)
            wanted[pastes] = rows[(draw[pastes] * len(rows)).long()]
            # Scott (1992): n ** (-1 / (d + 4)) standard deviations, in d = 4 dimensions.
            noise[pastes] *= len(rows) ** (-1 / 8)
        return wanted + noise * spread, spread


def _features(boxes: Tensor) -> Tensor:
    """Logarithms of width and height, center across and lower edge of boxes, float ``[..., 4]``."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=_LEAST).log()
    return torch.cat([size, (boxes[..., :1] + boxes[..., 2:3]) / 2, boxes[..., 3:]], -1)
