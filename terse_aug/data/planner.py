"""From a batch to what may be pasted on it, and to how that is rendered. Imports torch only.

Everything here is fixed when a :class:`terse_aug.Terse` is made; what it draws comes from the generators it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terse_aug.compositing.compose import Surface
from terse_aug.compositing.plan import Layout, draw_layout
from terse_aug.config import TerseConfig
from terse_aug.data.background_pool import BackgroundPool, put_on_backgrounds
from terse_aug.data.foreground_cache import Shelf, Shown
from terse_aug.data.foreground_loader import Parcel, check_parcels
from terse_aug.models import TargetModel
from terse_aug.policies import Policy, Scene
from terse_aug.policies.context import make_scene
from terse_aug.samplers import Sampler
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.structures.validation import Admission


@dataclass(frozen=True)
class Offer:
    """What may be pasted on a batch.

    Attributes:
        batch: on its backgrounds.
        backgrounds: by image that was replaced, the place of its background in the pool.
        layout: the cut-outs.
        scene: what a policy sees of them.
    """

    batch: Admission
    backgrounds: dict[int, int]
    layout: Layout[Shown]
    scene: Scene


@dataclass(frozen=True)
class Pasting:
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
    shelf: Shelf
    pool: BackgroundPool | None
    distractors: Shelf | None
    mirror_keypoints: tuple[int, ...]
    detector: TargetModel | None

    def offer(
        self,
        batch: Admission,
        policy: Policy,
        generator: torch.Generator,
        sampler: Sampler,
        parcels: Sequence[Parcel] | None = None,
    ) -> Offer:
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
        if parcels is not None:
            check_parcels(parcels, self.shelf.bank_identity, policy.offers, len(batch.images), sampler, self.config)
            for parcel in parcels:
                self.shelf.lay_out(parcel.foregrounds)
        backgrounds: dict[int, int] = {}
        visits: dict[int, list[int]] = {}
        if self.pool is not None:
            batch, backgrounds, visits = put_on_backgrounds(
                batch, self.pool, self.config, self.pixels, generator, sampler, policy, parcels
            )
        layout = draw_layout(
            self.shelf, batch.usable, self.config, generator, sampler, policy, parcels, visits, self.distractors
        )
        surface = self.surface(batch.images)
        scene = make_scene(layout, batch.images, batch.targets, surface, policy, self.detector, self.shelf)
        return Offer(batch, backgrounds, layout, scene)

    def surface(self, images: Sequence[Tensor]) -> Surface:
        """How cut-outs are rendered on these images."""
        return Surface(self.config, self.pixels, self.mirror_keypoints, batched=images[0].is_cuda)
