"""Policy ``matched``: pastes have about the size and place of real objects of their class.

Of some random transforms one is drawn so that the bounding boxes of pastes are distributed like those of real objects:
with probability ~ density of its box among real boxes / density among random ones (sampling importance resampling,
Rubin 1987). Where random boxes are distributed like real ones, nothing is chosen; where ranges are wide, much is. There
is no network and no forward of the detector.
Shape letters: C candidates, M pastes, P transform parameters, n boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from terse_aug.config import Matched
from terse_aug.policies.base import Policy, PolicyContext, Proposal, uniform_proposal
from terse_aug.transforms import PARAMETERS

_FEWEST = 16
"""With fewer real objects of a class, those of all classes are used; with fewer of these, transforms are random."""
_MOST = 512
"""Boxes that a density is estimated from, the most recent ones."""
_LEAST = 1e-3
"""Side of a box, as a fraction of the image, so that its logarithm is finite; standard deviation of a feature."""
_POSITION = [PARAMETERS.index("translate_x"), PARAMETERS.index("translate_y")]


class BoxMemory(nn.Module):
    """The most recent boxes and their labels.

    Args:
        capacity: how many.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.register_buffer("boxes", torch.zeros(capacity, 4))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.long))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.boxes: Tensor
        self.labels: Tensor
        self.count: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BoxMemory:
        """Stays on the CPU, where transforms are proposed."""
        return self

    def add(self, boxes: Tensor, labels: Tensor) -> None:
        """Add boxes ``[n, 4]`` and labels ``[n]``; the oldest are overwritten."""
        boxes, labels = boxes[-len(self.boxes) :], labels[-len(self.boxes) :]
        places = (torch.arange(len(boxes)) + self.count) % len(self.boxes)
        self.boxes[places], self.labels[places] = boxes.to(self.boxes), labels
        self.count += len(boxes)

    def features(self, label: int | None = None) -> Tensor:
        """:func:`box_features` ``[n, 4]`` of a class, or of all, the most recent first, at most 512."""
        known = min(int(self.count), len(self.boxes))
        recent = (self.count - 1 - torch.arange(known)) % len(self.boxes)
        if label is not None:
            recent = recent[self.labels[recent] == label]
        return box_features(self.boxes[recent[:_MOST]])


class MatchedPolicy(Policy):
    """Chooses transforms so that bounding boxes are distributed like those of the real objects of the batches.

    Densities are Gaussian kernel estimates with Scott's bandwidth for the real boxes, in the logarithms of width and
    height, the center across and the lower edge, all relative to the image. Half of the candidates are moved to the
    place of a real object, and their boxes are counted as random ones.

    Args:
        settings: see :class:`terse_aug.policies.Matched`; one candidate is the random policy.
        capacity: real boxes that are kept, and random ones, at least 1.

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
        self.real, self.random = BoxMemory(capacity), BoxMemory(capacity)

    def acting_state(self) -> list[Tensor]:
        """See :meth:`Policy.acting_state`."""
        return list(self.buffers())

    def add_boxes(self, boxes: Tensor, labels: Tensor, proposal: Proposal | None = None) -> None:
        """See :meth:`Policy.add_boxes`."""
        self.real.add(boxes, labels)
        if proposal is not None and proposal.replay_data:
            self.random.add(*proposal.replay_data)

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`."""
        pastes = len(context.image_of)
        if not pastes or int(self.real.count) < _FEWEST:
            return uniform_proposal(pastes, generator)
        assert context.boxes is not None
        units = torch.rand(self.candidates, pastes, len(PARAMETERS), generator=generator)
        places = torch.rand(self.candidates // 2, pastes, generator=generator)
        draw = torch.rand(pastes, generator=generator)
        ends = torch.stack([units, units])
        ends[0][..., _POSITION], ends[1][..., _POSITION] = 0.0, 1.0
        # A box moves linearly with the translation, and does not change its size.
        first, last = context.boxes(ends.flatten(0, 1)).view(2, *units.shape[:2], 4)
        chosen = torch.empty(pastes, dtype=torch.long)
        boxes = torch.empty_like(first)
        for label in sorted(set(context.labels.tolist())):
            own = context.labels == label
            real, random = self._known(label)
            moved = real[(places[:, own] * len(real)).long()]
            units[: len(places), own, _POSITION[0] :] = _translation(
                first[: len(places), own], last[: len(places), own], moved
            )
            boxes[:, own] = first[:, own] + units[:, own][..., [*_POSITION, *_POSITION]] * (last - first)[:, own]
            features = box_features(boxes[:, own])
            weights = _log_ratio(features.flatten(0, 1), real, random).view(features.shape[:2]).softmax(0)
            chosen[own] = (weights.cumsum(0) < draw[own]).sum(0).clamp(max=self.candidates - 1)
        labels = context.labels.repeat(self.candidates)
        unit = units[chosen, torch.arange(pastes)]
        return Proposal(unit, torch.zeros(pastes), replay_data=(boxes.flatten(0, 1), labels))

    def _known(self, label: int) -> tuple[Tensor, Tensor]:
        """Features of real and of random boxes of a class, or of all."""
        real = self.real.features(label)
        if len(real) >= _FEWEST:
            return real, self.random.features(label)
        return self.real.features(), self.random.features()


def box_features(boxes: Tensor) -> Tensor:
    """Logarithms of width and height, center across and lower edge of boxes, float ``[..., 4]``."""
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=_LEAST).log()
    return torch.cat([size, (boxes[..., :1] + boxes[..., 2:3]) / 2, boxes[..., 3:]], -1)


def _translation(first: Tensor, last: Tensor, features: Tensor) -> Tensor:
    """Translations, float ``[..., 2]`` in [0, 1], that move boxes to the place of others, as near as is allowed.

    Args:
        first: boxes at translation 0, float ``[..., 4]``.
        last: at translation 1.
        features: of the others.
    """
    start, way = box_features(first)[..., 2:], (box_features(last) - box_features(first))[..., 2:]
    return ((features[..., 2:] - start) / torch.where(way > 0, way, torch.inf)).clamp(0, 1)


def _log_ratio(points: Tensor, real: Tensor, random: Tensor) -> Tensor:
    """Log of the density of features ``[n, 4]`` among real ones, minus that among random ones and themselves."""
    # Scott (1992): n ** (-1 / (d + 4)) standard deviations in d dimensions. The same for both, so that their bias is.
    bandwidth = real.std(0).clamp(min=_LEAST) * len(real) ** (-1 / 8)
    return _log_density(points / bandwidth, real / bandwidth) - _log_density(
        points / bandwidth, torch.cat([points, random]) / bandwidth
    )


def _log_density(points: Tensor, samples: Tensor) -> Tensor:
    # Minus half of the squared distances.
    exponents = points @ samples.T - points.square().sum(1, keepdim=True) / 2 - samples.square().sum(1) / 2
    return exponents.logsumexp(1) - math.log(len(samples))
