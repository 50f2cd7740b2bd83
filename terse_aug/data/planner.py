"""From a batch to what may be pasted on it, and to how that is rendered. Imports torch only.

Everything here is fixed when a :class:`terse_aug.Terse` is made; what it draws comes from the generators it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terse_aug.compositing.compose import RenderSettings
from terse_aug.compositing.plan import PastePlan, plan_pastes
from terse_aug.config import TerseConfig
from terse_aug.data.background_pool import BackgroundPool, put_on_backgrounds
from terse_aug.data.foreground_cache import ForegroundCache, ForegroundLike
from terse_aug.data.foreground_loader import SampledForegrounds, check_sampled_foregrounds
from terse_aug.models import ModelAdapter
from terse_aug.policies import Policy, PolicyContext
from terse_aug.policies.context import make_context
from terse_aug.samplers import Sampler
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.structures.validation import ValidatedBatch


@dataclass(frozen=True)
class PlannedBatch:
    """What may be pasted on a batch.

    Attributes:
        batch: on its backgrounds.
        backgrounds: by image that was replaced, the place of its background in the pool.
        layout: the cut-outs.
        scene: what a policy sees of them.
    """

    batch: ValidatedBatch
    backgrounds: dict[int, int]
    layout: PastePlan[ForegroundLike]
    scene: PolicyContext


@dataclass(frozen=True)
class PastePlanner:
    """Where cut-outs and backgrounds come from, and how they are put together.

    Attributes:
        config: of the run.
        pixels: of the host's images.
        shelf: of the bank.
        pool: of backgrounds, if there is one.
        distractors: shelf of their bank, if there is one.
        mirror_keypoints: for each keypoint the index of its mirror image.
        detector: for policies that ask it, if there is one.
    """

    config: TerseConfig
    pixels: PixelFormat
    shelf: ForegroundCache
    pool: BackgroundPool | None
    distractors: ForegroundCache | None
    mirror_keypoints: tuple[int, ...]
    detector: ModelAdapter | None

    def offer(
        self,
        batch: ValidatedBatch,
        policy: Policy,
        generator: torch.Generator,
        sampler: Sampler,
        sampled: Sequence[SampledForegrounds] | None = None,
    ) -> PlannedBatch:
        """Draw backgrounds and cut-outs.

        Args:
            batch: left untouched.
            policy: says how many cut-outs are offered for a paste, and what it sees.
            generator: the only source of randomness.
            sampler: of the cut-outs.
            parcels: with cut-outs that were drawn before.

        Raises:
            ValueError: parcels that do not fit.
        """
        if sampled is not None:
            check_sampled_foregrounds(
                sampled, self.shelf.bank_identity, policy.foreground_candidates, len(batch.images), sampler, self.config
            )
            for sample in sampled:
                self.shelf.lay_out(sample.foregrounds)
        backgrounds: dict[int, int] = {}
        background_draws: dict[int, list[int]] = {}
        if self.pool is not None:
            batch, backgrounds, background_draws = put_on_backgrounds(
                batch, self.pool, self.config, self.pixels, generator, sampler, policy, sampled
            )
        layout = plan_pastes(
            self.shelf,
            batch.usable,
            self.config,
            generator,
            sampler,
            policy,
            sampled,
            background_draws,
            self.distractors,
        )
        surface = self.surface(batch.images)
        scene = make_context(layout, batch.images, batch.targets, surface, policy, self.detector, self.shelf)
        return PlannedBatch(batch, backgrounds, layout, scene)

    def surface(self, images: Sequence[Tensor]) -> RenderSettings:
        """How cut-outs are rendered on these images."""
        return RenderSettings(self.config, self.pixels, self.mirror_keypoints, batched=images[0].is_cuda)
