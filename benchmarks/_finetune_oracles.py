"""The oracle: of several random composites of an image, the one that a measure likes most is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from benchmarks._finetune_measures import MEASURES, Composite, Judge, Target
from terse_aug import Composites, Terse
from terse_aug.compositing.compose import compose
from terse_aug.compositing.layers import RenderSettings
from terse_aug.data.planner import PlannedBatch
from terse_aug.samplers import DrawRequest
from terse_aug.structures.annotations import take_objects
from terse_aug.structures.validation import ValidatedBatch, validate_batch
from terse_aug.utils.random import generator_for

CHOICES = ("transforms", "foregrounds", "backgrounds", "all")
"""In what the candidates of an image differ."""
COMBINED = {"agree-hard": "agree+loss"}
"""Other names of combinations."""


def measures_of(name: str) -> list[str] | None:
    """The measures of an arm such as ``loss``, or ``agree+loss`` for the sum of the ranks; ``None`` for another arm."""
    parts = COMBINED.get(name, name).split("+")
    return parts if set(parts) <= set(MEASURES) else None


class Oracle:
    """Pastes like ``Terse`` with the random policy, but composes several candidates and keeps one for each image.

    Args:
        terse: gives bank, planner and settings; its policy is not used.
        judge: judges the candidates.
        measures: one, or several whose ranks among an image's candidates are summed.
        candidates: for each image.
        choose: one of ``CHOICES``. With ``backgrounds`` each candidate is put on a background of the pool, or not, as
            the pool's probability has it; ``all`` draws everything anew, the number of pastes too.
        seed: of all draws.
    """

    def __init__(
        self, terse: Terse, judge: Judge, measures: Sequence[str], candidates: int, choose: str, seed: int
    ) -> None:
        self.terse, self.judge, self.measures = terse, judge, measures
        self.candidates, self.choose, self.seed = candidates, choose, seed
        self._rendering = RenderSettings(terse.paste, terse.pixel_format, ())
        self._calls = 0

    def __call__(self, images: Sequence[Tensor], targets: Sequence[Target]) -> tuple[list[Tensor], list[Target]]:
        """Composites and their targets, one for each image."""
        self.judge.start(targets)
        with torch.no_grad():
            batch = validate_batch(images, targets)
            found = [
                self._composed(planned, unit) for planned, unit in self._candidates(batch, self._generator("plan"))
            ]
            chosen = self._chosen(found, [image for image in range(len(images)) if self._pasted(found, image)])
        self._calls += 1
        picked = [found[candidate][0] for candidate in chosen]
        return (
            [own.images[image] for image, own in enumerate(picked)],
            [own.targets[image] for image, own in enumerate(picked)],
        )

    def step(self, losses: Any) -> None:
        """The detector has been trained on the batch."""
        self.judge.step()

    @property
    def extra_forwards(self) -> int:
        """Forwards of one image that judging has cost."""
        return self.judge.extra_forwards

    def _generator(self, *keys: int | str) -> torch.Generator:
        return generator_for(self.seed, "oracle", self._calls, *keys)

    def _candidates(self, batch: ValidatedBatch, generator: torch.Generator) -> list[tuple[PlannedBatch, Tensor]]:
        planner, sampler = self.terse.planner, self.terse.sampler
        first = planner.plan(batch, sampler, generator)
        found = []
        for number in range(self.candidates):
            own, key = first, number if self.choose in ("transforms", "all") else 0
            if number and self.choose == "all":
                own = planner.plan(batch, sampler, self._generator("plan", number))
            elif number and self.choose == "foregrounds":
                own = self._other_foregrounds(first, self._generator("foregrounds", number))
            elif number and self.choose == "backgrounds":
                own = self._other_backgrounds(first, batch, self._generator("backgrounds", number))
            unit = torch.rand(
                len(own.plan.image_of), len(self.terse.paste.columns), generator=self._generator("unit", key)
            )
            found.append((own, unit))
        return found

    def _other_foregrounds(self, planned: PlannedBatch, generator: torch.Generator) -> PlannedBatch:
        plan, cache = planned.plan, self.terse.planner.cache
        indices = self.terse.sampler.draw(DrawRequest([1] * len(plan.image_of)), generator)
        foregrounds = [cache.foreground(index) for index in indices]
        return replace(planned, plan=replace(plan, indices=indices, foregrounds=foregrounds))

    def _other_backgrounds(
        self, planned: PlannedBatch, batch: ValidatedBatch, generator: torch.Generator
    ) -> PlannedBatch:
        """The same pastes, each image on its own background or on one of the pool."""
        pool = self.terse.planner.pool
        if pool is None:
            raise ValueError("to choose backgrounds takes a pool of them: settings 'unrelated'")
        images, targets = list(batch.images), list(batch.targets)
        for image in sorted(set(planned.plan.image_of)):
            if float(torch.rand((), generator=generator)) < pool.probability:
                index = int(torch.randint(len(pool), (), generator=generator))
                pixels = pool.crop(index, *images[image].shape[-2:], generator)
                images[image] = torch.from_numpy(pixels).permute(2, 0, 1).to(images[image]) / 255
                targets[image] = take_objects(targets[image], [])
        return replace(planned, batch=replace(planned.batch, images=images, targets=targets))

    def _composed(self, planned: PlannedBatch, unit: Tensor) -> tuple[Composites, list[Target]]:
        plan = self.terse.planner.chosen(planned.plan, None)
        batch = planned.batch
        return compose(batch.images, batch.targets, plan, unit, self._rendering), batch.targets

    @staticmethod
    def _pasted(found: Sequence[tuple[Composites, list[Target]]], image: int) -> bool:
        return any(own.pastes[image] for own, _ in found)

    def _chosen(self, found: Sequence[tuple[Composites, list[Target]]], judged: Sequence[int]) -> list[int]:
        """The candidate chosen for each image; the first where nothing is pasted."""
        chosen = [0] * len(found[0][0].images)
        if not judged or len(found) == 1:
            return chosen
        composites = [
            Composite(
                own.images[image],
                own.targets[image],
                [paste.row for paste in own.labelled(image) if paste.row is not None],
                before[image],
            )
            for own, before in found
            for image in judged
        ]
        every = [own.view(len(found), len(judged)) for own in self.judge.judge(self.measures, composites)]
        scores = every[0] if len(every) == 1 else sum(own.argsort(0).argsort(0) for own in every)
        for image, best in zip(judged, scores.argmax(0).tolist(), strict=True):
            chosen[image] = best
        return chosen
