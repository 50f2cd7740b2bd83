"""Policy ``matched``: pastes have about the size, the place and the overlaps of real objects.

Of some random transforms one is drawn so that the bounding boxes of pastes are distributed like those of real objects
of the class: with probability ~ density of its box among real boxes / density among random ones (sampling importance
resampling, Rubin 1987). Where random boxes are distributed like real ones, nothing is chosen; where ranges are wide,
much is. Pastes are left out at random, so that they overlap other objects no more often than real objects overlap each
other (rejection sampling). There is no network and no forward of the detector.
Shape letters: C candidates, M pastes, P transform parameters, n boxes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.config import Matched
from terse_aug.policies.base import Policy, PolicyContext, Proposal, uniform_proposal
from terse_aug.policies.real_objects import RealObjects, overlap_fractions
from terse_aug.transforms import PARAMETERS

_FEWEST = 16
"""With fewer real objects of a class, those of all classes are used; with fewer of these, transforms are random."""
_MOST = 256
"""Boxes that a density is estimated from."""
_LEAST = 1e-3
"""Side of a box, as a fraction of the image, so that its logarithm is finite; standard deviation of a feature."""
_OVERLAPS = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75])
"""Upper ends of the bins of overlap; the first is for none, after the last one comes one more."""
_POSITION = [PARAMETERS.index("translate_x"), PARAMETERS.index("translate_y")]


class BoxMemory(nn.Module):
    """The most recent boxes, as :func:`box_features`, each with the bin of its overlap and its label.

    Args:
        capacity: how many.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(capacity, 4, device="cpu"))
        self.register_buffer("bins", torch.zeros(capacity, dtype=torch.long, device="cpu"))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.long, device="cpu"))
        self.register_buffer("count", torch.zeros((), dtype=torch.long, device="cpu"))
        self.features: Tensor
        self.bins: Tensor
        self.labels: Tensor
        self.count: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BoxMemory:
        """Stays on the CPU, where transforms are proposed."""
        return self

    def add(self, features: Tensor, bins: Tensor, labels: Tensor) -> None:
        """Add features float ``[n, 4]``, bins and labels int64 ``[n]``; the oldest are overwritten."""
        start = max(len(labels) - len(self.labels), 0)
        places = (torch.arange(len(labels) - start) + self.count) % len(self.labels)
        self.features[places], self.bins[places], self.labels[places] = features[start:], bins[start:], labels[start:]
        self.count += len(places)

    def of_class(self, label: int | None) -> Tensor:
        """Features float ``[n, 4]`` of a class, or of all (``None``); of more than 256 some, evenly over time."""
        rows = torch.arange(self._known())
        if label is not None:
            rows = rows[self.labels[: len(rows)] == label]
        return self.features[_thinned(rows)]

    def frequencies(self) -> Tensor:
        """Of the bins of overlap, float ``[6]``, above 0: one more box is counted in each."""
        counts = self.bins[: self._known()].bincount(minlength=len(_OVERLAPS) + 1) + 1.0
        return counts / counts.sum()

    def _known(self) -> int:
        return min(int(self.count), len(self.labels))


class MatchedPolicy(Policy):
    """Chooses transforms so that bounding boxes are distributed like those of the real objects of the batches.

    Densities are Gaussian kernel estimates with Scott's bandwidth for the real boxes, in the logarithms of width and
    height, the center across and the lower edge, all relative to the image. Half of the candidates are moved to the
    place of a real object, and their boxes are counted as random ones. The overlap of an object is the largest part
    that its box and another one share, relative to the smaller one; its frequencies are those in six bins.

    Args:
        settings: see :class:`terse_aug.policies.Matched`; one candidate is the random policy but for what is left out.
        capacity: real boxes that are kept, at least 1.

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
        self.real, self.random, self.chosen = (BoxMemory(capacity) for _ in range(3))

    def acting_state(self) -> list[Tensor]:
        """See :meth:`Policy.acting_state`."""
        return list(self.buffers())

    def add_boxes(self, proposal: Proposal) -> None:
        """See :meth:`Policy.add_boxes`."""
        data = proposal.replay_data
        if data:
            self.real.add(*data[:3])
        if len(data) > 3:
            self.random.add(*data[3:6])
            self.chosen.add(*data[6:])

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`."""
        assert context.real is not None
        real, pastes = context.real, len(context.image_of)
        seen = (box_features(real.boxes), _bins(real.overlaps()), real.labels)
        if not pastes or int(self.real.count) < _FEWEST:
            proposal = uniform_proposal(pastes, generator, columns=context.columns)
            proposal.replay_data = seen
            return proposal
        known = {label: self._known(label) for label in sorted(set(context.labels.tolist()))}
        units, boxes = self._candidates(context, known, generator)
        features, log_weights = box_features(boxes), torch.empty(units.shape[:2])
        with torch.autocast("cpu", enabled=False):
            for label, samples in known.items():
                own = context.labels == label
                points = features[:, own]
                log_weights[:, own] = _log_ratio(points.flatten(0, 1), *samples).view(points.shape[:2])
        draws = torch.rand(2, pastes, generator=generator)
        bins, chosen, kept = self._chosen(boxes, log_weights, context.image_of, real, draws)
        every = torch.arange(pastes)
        labels = context.labels.repeat(self.candidates)
        own_box = (features[chosen, every], bins[chosen, every], context.labels)
        return Proposal(
            units[chosen, every][kept],
            torch.zeros(len(kept)),
            rows=kept if len(kept) < pastes else None,
            replay_data=(*seen, features.flatten(0, 1), bins.flatten(), labels, *own_box),
        )

    def _candidates(
        self, context: PolicyContext, known: Mapping[int, tuple[Tensor, Tensor]], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Transforms float ``[C, M, P]`` and their boxes ``[C, M, 4]``, clipped; ``known`` as of :meth:`_known`."""
        assert context.boxes is not None
        pastes = len(context.labels)
        units = torch.rand(self.candidates, pastes, len(context.columns), generator=generator)
        places = torch.rand(self.candidates // 2, pastes, generator=generator)
        ends = torch.stack([units, units])
        ends[0][..., _POSITION], ends[1][..., _POSITION] = 0.0, 1.0
        # A box moves linearly with the translation, and does not change its size.
        first, last = context.boxes(ends.flatten(0, 1)).view(2, *units.shape[:2], 4)
        wanted = torch.empty(*places.shape, 2)
        for label, (real, _) in known.items():
            own = context.labels == label
            wanted[:, own] = real[(places[:, own] * len(real)).long()][..., 2:]
        units[: len(places)][..., _POSITION] = _translation(first[: len(places)], last[: len(places)], wanted)
        # Clipped, as those of real objects are.
        return units, (first + units[..., [*_POSITION, *_POSITION]] * (last - first)).clamp(0, 1)

    def _chosen(
        self, boxes: Tensor, log_weights: Tensor, image_of: Tensor, real: RealObjects, draws: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Choose a candidate for each paste, one paste after the other.

        Args:
            boxes: of the candidates, float ``[C, M, 4]`` within [0, 1].
            log_weights: of their sizes and places ``[C, M]``.
            image_of: int64 ``[M]``.
            real: objects of the batch.
            draws: uniform, float ``[2, M]``.

        Returns:
            The bins of overlap ``[C, M]``, the chosen candidates ``[M]``, and which pastes are not left out.
        """
        natural = self.real.frequencies()
        ratio, chosen_before = natural / self.random.frequencies(), self.chosen.frequencies()
        # Relative to pastes that overlap nothing, which are never left out.
        accepted = (natural / natural[0]) / (chosen_before / chosen_before[0])
        bins, chosen = torch.empty(log_weights.shape, dtype=torch.long), torch.empty(len(image_of), dtype=torch.long)
        placed: dict[int, Tensor] = {}
        kept = []
        for paste, image in enumerate(image_of.tolist()):
            others = placed.setdefault(image, real.boxes[real.image_of == image])
            overlaps = overlap_fractions(boxes[:, paste], others)
            bins[:, paste] = _bins(overlaps.amax(1)) if len(others) else 0
            weights = (log_weights[:, paste] + ratio[bins[:, paste]].log()).softmax(0)
            best = int((weights.cumsum(0) < draws[0, paste]).sum().clamp(max=self.candidates - 1))
            chosen[paste] = best
            if draws[1, paste] < accepted[bins[best, paste]]:
                kept.append(paste)
                placed[image] = torch.cat([others, boxes[best, paste][None]])
        return bins, chosen, torch.tensor(kept, dtype=torch.long)

    def _known(self, label: int) -> tuple[Tensor, Tensor]:
        """Features of real and of random boxes of a class, or of all."""
        real = self.real.of_class(label)
        if len(real) >= _FEWEST:
            return real, self.random.of_class(label)
        return self.real.of_class(None), self.random.of_class(None)


def box_features(boxes: Tensor) -> Tensor:
    """Logarithms of width and height, center across and lower edge of boxes, float ``[..., 4]``."""
    return torch.cat([(boxes[..., 2:] - boxes[..., :2]).clamp(min=_LEAST).log(), _place(boxes)], -1)


def _place(boxes: Tensor) -> Tensor:
    """Center across and lower edge of boxes, float ``[..., 2]``."""
    return torch.cat([(boxes[..., :1] + boxes[..., 2:3]) / 2, boxes[..., 3:]], -1)


def _bins(overlaps: Tensor) -> Tensor:
    """The bins of overlaps, int64 in [0, 5]."""
    return torch.bucketize(overlaps, _OVERLAPS)


def _translation(first: Tensor, last: Tensor, place: Tensor) -> Tensor:
    """Translations, float ``[..., 2]`` in [0, 1], that move boxes to a place, as near as is allowed.

    Args:
        first: boxes at translation 0, float ``[..., 4]``.
        last: at translation 1.
        place: :func:`_place` of others, float ``[..., 2]``.
    """
    start = _place(first)
    way = _place(last) - start
    return ((place - start) / torch.where(way > 0, way, torch.inf)).clamp(0, 1)


def _log_ratio(points: Tensor, real: Tensor, random: Tensor) -> Tensor:
    """Log of the density of features ``[n, 4]`` among real ones, minus that among random ones and themselves."""
    # Scott (1992): n ** (-1 / (d + 4)) standard deviations in d dimensions. The same for both, so that their bias is.
    bandwidth = real.std(0).clamp(min=_LEAST) * len(real) ** (-1 / 8)
    center = real.mean(0)
    scaled, real, random = ((own - center) / bandwidth for own in (points, real, torch.cat([points, random])))
    among_real = _exponents(scaled, real).logsumexp(1) - math.log(len(real))
    random = _thinned(random)
    # Its own kernel, of exponent 0, so that no point is infinitely rare.
    among_random = F.pad(_exponents(scaled, random), (0, 1)).logsumexp(1) - math.log(len(random) + 1)
    return among_real - among_random


def _exponents(points: Tensor, samples: Tensor) -> Tensor:
    """Minus half of the squared distances, float ``[n, m]``."""
    return points @ samples.T - points.square().sum(1, keepdim=True) / 2 - samples.square().sum(1) / 2


def _thinned(rows: Tensor) -> Tensor:
    """At most 256 rows, evenly."""
    return rows if len(rows) <= _MOST else rows[torch.arange(_MOST) * len(rows) // _MOST]
