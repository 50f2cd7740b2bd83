"""Planning a batch: which foregrounds go on which images, and which images are replaced by backgrounds of the pool.

Shape letters: B images, M pastes, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.compositing.geometry import ForegroundLike
from terse_aug.compositing.plan import Decoy, PastePlan
from terse_aug.config import PasteConfig
from terse_aug.data.auxiliary_objects import Distractors, draw_occludees
from terse_aug.data.background_pool import BackgroundPool, put_on_backgrounds
from terse_aug.data.foreground_cache import ForegroundCache
from terse_aug.data.foreground_loader import (
    SampledForegrounds,
    check_count_on_backgrounds,
    check_sampled_foregrounds,
    draw_counts,
)
from terse_aug.samplers import DrawRequest, ForegroundIndex, Sampler, make_sampler
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.structures.validation import ValidatedBatch
from terse_aug.utils.distributed import rank, rank_count
from terse_aug.utils.transfer import Reading

_DECOY_TRIES = 8


class ChoosesForegrounds(Protocol):
    """What the planner needs to know of a policy."""

    foreground_candidates: int
    mix_classes: bool


@dataclass(frozen=True)
class PlannedBatch:
    """A batch with what will be pasted on it.

    Attributes:
        batch: some images replaced by backgrounds.
        plan: the pastes, before the policy has chosen among foregrounds.
        backgrounds: by image that was replaced, the index of its background in the pool.
        boxes: of the objects of each image, on their way to the CPU if decoys need them.
    """

    batch: ValidatedBatch
    plan: PastePlan[ForegroundLike]
    backgrounds: dict[int, int]
    boxes: Reading


@dataclass(frozen=True)
class PastePlanner:
    """Draws what is pasted on a batch.

    Attributes:
        paste: settings.
        pixel_format: of the images.
        cache: foregrounds of the bank.
        foreground_candidates: foregrounds for each paste, from which the policy chooses one.
        mix_classes: whether these may be of different classes.
        pool: backgrounds, if there are any.
        distractors: if there are any.

    Raises:
        ValueError: no background pool, or nothing can be pasted on its images.
    """

    paste: PasteConfig
    pixel_format: PixelFormat
    cache: ForegroundCache
    foreground_candidates: int = 1
    mix_classes: bool = False
    pool: BackgroundPool | None = None
    distractors: Distractors | None = None

    def __post_init__(self) -> None:
        if self.pool is None:
            return
        if not isinstance(self.pool, BackgroundPool):
            raise ValueError(f"backgrounds: expected a BackgroundPool, got {type(self.pool).__name__}")
        check_count_on_backgrounds(self.paste, self.pool.probability)

    def for_policy(self, policy: ChoosesForegrounds) -> PastePlanner:
        """The same planner for another policy."""
        return replace(self, foreground_candidates=policy.foreground_candidates, mix_classes=policy.mix_classes)

    def plan(
        self,
        batch: ValidatedBatch,
        sampler: Sampler,
        generator: torch.Generator,
        sampled: Sequence[SampledForegrounds] | None = None,
        *,
        closed: bool = False,
    ) -> PlannedBatch:
        """Draw backgrounds and foregrounds.

        Args:
            batch: left untouched.
            sampler: of the foregrounds.
            generator: the only source of randomness.
            sampled: foregrounds that were drawn in the data loader's workers.
            closed: nothing is pasted, and no image replaced.

        Raises:
            ValueError: sampled foregrounds of another batch, bank or setting.
        """
        if closed:
            return PlannedBatch(batch, PastePlan([], [], [], [], []), {}, Reading([]))
        if sampled is not None:
            self.check_sampled(sampled, len(batch.images), sampler)
            for own in sampled:
                self.cache.put_decoded(own.foregrounds)
        backgrounds: dict[int, int] = {}
        drawn_with_background: dict[int, list[int]] = {}
        if self.pool is not None:
            batch, backgrounds, drawn_with_background = put_on_backgrounds(
                batch, self.pool, self.paste, self.pixel_format, sampler, self._request, generator, sampled
            )
        plan = self._draw(batch.usable, sampler, generator, sampled, drawn_with_background)
        boxes = Reading([target["boxes"] for target in batch.targets] if plan.decoys else [])
        return PlannedBatch(batch, plan, backgrounds, boxes)

    def check_sampled(self, sampled: Sequence[SampledForegrounds], images: int, sampler: Sampler) -> None:
        """Refuse foregrounds of another bank or other settings, see :func:`check_sampled_foregrounds`."""
        probability = 0.0 if self.pool is None else self.pool.probability
        identity, candidates = self.cache.bank_identity, self.foreground_candidates
        check_sampled_foregrounds(sampled, images, identity, candidates, sampler, probability, self.paste)

    def chosen(self, plan: PastePlan[ForegroundLike], rows: Tensor | None) -> PastePlan[Foreground]:
        """The plan with whole foregrounds, and only with the rows that the policy has chosen, if it has."""
        kept: list[int] = list(range(len(plan.indices))) if rows is None else rows.tolist()
        foregrounds = [
            own if isinstance(own, Foreground) else self.cache.foreground(index)
            for index, own in ((plan.indices[row], plan.foregrounds[row]) for row in kept)
        ]
        self.cache.clear_decoded()
        return PastePlan(
            [plan.image_of[row] for row in kept],
            [plan.indices[row] for row in kept],
            foregrounds,
            [plan.flipped[row] for row in kept],
            plan.decoys,
            plan.distractors,
            plan.occludees.occluded_by_some([row // self.foreground_candidates for row in kept]),
        )

    def _request(self, counts: Sequence[int]) -> DrawRequest:
        return DrawRequest(counts, self.foreground_candidates, self.mix_classes, rank(), rank_count())

    def _draw(
        self,
        usable: Sequence[bool],
        sampler: Sampler,
        generator: torch.Generator,
        sampled: Sequence[SampledForegrounds] | None,
        drawn: Mapping[int, Sequence[int]],
    ) -> PastePlan[ForegroundLike]:
        """Draw the plan.

        Args:
            usable: for each image whether it can be pasted on.
            sampler: of the foregrounds.
            generator: the only source of randomness.
            sampled: for each image, if they were drawn in the workers; the cache has them decoded.
            drawn: foregrounds that were drawn together with a background, by image.
        """
        per_paste = self.foreground_candidates
        both = draw_counts(self.paste, len(usable), generator)
        if sampled is not None:
            both = [(len(own.objects) // own.foreground_candidates, len(own.decoys)) for own in sampled]
        counts = {
            image: len(drawn[image]) // per_paste if image in drawn else both[image][0]
            for image, usable_here in enumerate(usable)
            if image in drawn or (usable_here and both[image][0])
        }
        decoy_counts = [decoys for _, decoys in both]
        decoys = self._decoys(counts, decoy_counts, usable, generator, sampled)
        own = [image for image in counts if image not in drawn and sampled is None]
        fresh = iter(sampler.draw(self._request([counts[image] for image in own]), generator))
        indices: list[int] = []
        for image, count in counts.items():
            given = drawn.get(image, None if sampled is None else sampled[image].objects)
            indices += [next(fresh) for _ in range(count * per_paste)] if given is None else given
        image_of = [image for image, count in counts.items() for _ in range(count * per_paste)]
        fractions = torch.rand(len(image_of), generator=generator).tolist()
        flipped = [fraction < self.paste.flip_probability for fraction in fractions]
        read = self.cache.foreground if per_paste == 1 else self.cache.thumbnail
        foregrounds: Sequence[ForegroundLike] = [read(index) for index in indices]
        plan = PastePlan(image_of, indices, foregrounds, flipped, decoys)
        if self.distractors is not None:
            distractors = self.distractors.draw(list(counts), self.paste, generator)
            plan = replace(plan, distractors=distractors)
        if self.paste.occluded_object_probability > 0:
            groups = [foregrounds[first : first + per_paste] for first in range(0, len(foregrounds), per_paste)]
            labels = [{own.label for own in group} for group in groups]
            allowed, images = sampler.possible_labels(), image_of[::per_paste]
            occludees = draw_occludees(self.cache, sampler.foregrounds, images, labels, allowed, self.paste, generator)
            plan = replace(plan, occludees=occludees)
        return plan

    def _decoys(
        self,
        counts: Mapping[int, int],
        decoy_counts: Sequence[int],
        usable: Sequence[bool],
        generator: torch.Generator,
        sampled: Sequence[SampledForegrounds] | None,
    ) -> list[Decoy]:
        decoys: list[Decoy] = []
        sources = [image for image, usable_here in enumerate(usable) if usable_here]
        for image in counts:
            for number in range(decoy_counts[image]):
                if sampled is None:
                    index = int(torch.randint(len(self.cache), (1,), generator=generator))
                else:
                    index = sampled[image].decoys[number]
                source = sources[int(torch.randint(len(sources), (1,), generator=generator))]
                units = torch.rand(_DECOY_TRIES, len(self.paste.columns), generator=generator)
                corners = [(x, y) for x, y in torch.rand(_DECOY_TRIES, 2, generator=generator).tolist()]
                decoys.append(Decoy(image, source, self.cache.foreground(index), units, corners))
        return decoys


def bound_sampler(
    sampler: str | Sampler | Mapping[str, Any],
    bank: ForegroundBank,
    seed: int,
    foreground_candidates: int,
    pool: BackgroundPool | None,
) -> Sampler:
    """A sampler that draws from a bank.

    Raises:
        ValueError: there is no such sampler, it does not fit bank or pool, or does not allow several candidates.
    """
    bound = make_sampler(sampler)
    if foreground_candidates > 1 and not bound.allows_candidates:
        raise ValueError(
            f"sampler {type(bound).__name__} with foreground_candidates {foreground_candidates}: the policy would "
            "choose among foregrounds, and they would not be equally frequent; set foreground_candidates to 1"
        )
    bound.bind(ForegroundIndex(bank.labels, bank.categories), seed, 0 if pool is None else len(pool))
    return bound
