"""Composes single samples in a data loader's workers, for policies that need nothing of the training process.

Shape letters: M pastes, P transform parameters.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from terse_aug.compositing.compose import Composites, Paste, compose
from terse_aug.compositing.layers import RenderSettings
from terse_aug.data.foreground_loader import SampledForegrounds
from terse_aug.data.planner import PastePlanner, PlannedBatch
from terse_aug.policies import Policy, Proposal
from terse_aug.policies.context import make_context
from terse_aug.samplers import Sampler
from terse_aug.structures.annotations import Target
from terse_aug.structures.validation import left_out_warnings, validate_batch
from terse_aug.training.acting import checked
from terse_aug.training.metrics import Metrics, batch_counts
from terse_aug.utils.distributed import rank
from terse_aug.utils.random import derived_seed, generator_for
from terse_aug.utils.warnings import WarnOnce

_THERE = "compose there: terse(images, targets)"
Origin = tuple[int, tuple[int, ...] | None, int]
"""See :func:`origin_of`."""


@dataclass(frozen=True)
class CompositeRecord:
    """What a :class:`Composer` did to one image, for ``Terse(images, targets, records)``: numbers and texts.

    Attributes:
        origin: of the composer, see :func:`origin_of`.
        counts: what the counters grow by.
        unit: M rows of P numbers, the transforms in the unit cube.
        pastes: the fields of each :class:`terse_aug.Paste`.
        background: index in the background pool of the image that replaced it; ``None`` if it was not replaced.
        warnings: texts to warn of once, by kind.
    """

    origin: Origin
    counts: dict[str, int]
    unit: list[list[float]]
    pastes: list[tuple[int, str, int, list[float], int | None, int | None]]
    background: int | None
    warnings: dict[str, str]


class Composer:
    """Pastes foregrounds onto one image, on the CPU, in a data loader's worker or anywhere else.

    Made by :meth:`terse_aug.Terse.composer`, after a saved state was loaded. What it draws is a function of (seed,
    rank, number of the sample): the number of workers changes nothing. A sample numbered n becomes what ``Terse`` makes
    of a batch of this image alone in its call n. The source of decoys is the image itself.

    Args:
        planner: of ``Terse``.
        sampler: of ``Terse``; only foregrounds that it may draw at present are drawn.
        policy: of ``Terse``.
        rendering: of ``Terse``.
        seed: of ``Terse``.
        robust: whether ``Terse`` perturbs composites.
        closes_at: nothing is pasted on samples from this number on, see :meth:`terse_aug.Terse.close_after`.

    Raises:
        ValueError: the policy or the sampler needs the training process, or composites are perturbed.
    """

    def __init__(
        self,
        planner: PastePlanner,
        sampler: Sampler,
        policy: Policy,
        rendering: RenderSettings,
        seed: int,
        robust: bool,
        closes_at: int | None = None,
    ) -> None:
        _check(sampler, policy, robust)
        self._closes_at = closes_at
        self._planner, self._policy, self._rendering, self._seed = planner, policy, rendering, seed
        self._sampler = copy.copy(sampler)  # a later restriction is none of samples that are composed already
        # The rank is that of the process that makes the composer: a worker may not know it.
        self._rank = rank()
        self._origin = origin_of(drawn_from(planner, sampler), sampler, seed)
        self._one_thread = False

    def __call__(self, image: Tensor, target: Target, number: int) -> tuple[Tensor, Target, CompositeRecord]:
        """Paste foregrounds onto an image.

        Args:
            image: ``[3, H, W]``, uint8 or float, see :meth:`terse_aug.Terse.forward`; on the CPU, left untouched.
            target: see :meth:`terse_aug.Terse.forward`; left untouched.
            number: of the sample in the run, see :class:`terse_aug.NumberedSampler`.

        Returns:
            Composite, corrected target, and what ``Terse`` has to know of them.

        Raises:
            ValueError: image or target do not keep to the contract of ``Terse``, or are not on the CPU.
        """
        if isinstance(image, Tensor) and image.device.type != "cpu":
            raise ValueError(f"expected an image on the CPU, where it is composed, got one on {image.device}")
        self._use_one_thread()
        generator = generator_for(self._seed, self._rank, "paste", number)
        warnings: dict[str, str] = {}
        with torch.no_grad():
            batch = validate_batch([image], [target], self._planner.cache.keypoint_count)
            closed = self._closes_at is not None and number >= self._closes_at
            planned = self._planner.plan(batch, self._sampler, generator, closed=closed)
            context = make_context(planned, self._rendering, self._policy, None, self._planner.chosen)
            proposal = checked(self._policy.propose(context, generator, learning=False), context, self._policy)
            composites = composites_of(planned, proposal, self._planner, self._rendering, warnings.update)
        if number == 0 and (text := self._rendering.pixel_format.mismatch(batch.images, composites.largest)):
            warnings["pixel_format"] = text
        record = CompositeRecord(
            self._origin,
            dict(+batch_counts(planned.plan, composites)),
            composites.unit.tolist(),
            [
                (own.index, own.source, own.label, own.unit.tolist(), own.row, own.number)
                for own in composites.pastes[0]
            ],
            composites.backgrounds.get(0),
            warnings,
        )
        return composites.images[0], composites.targets[0], record

    def check_unused(self, sampled: SampledForegrounds) -> None:
        """Refuse foregrounds that a transform has sampled beside this composer, if its settings are others.

        They are not pasted; whoever chose these settings expects them to be.

        Raises:
            ValueError: naming the difference.
        """
        self._planner.check_sampled([sampled], 1, self._sampler)

    def _use_one_thread(self) -> None:
        """In a worker OpenCV uses one thread, as torch does: the workers are the threads."""
        if not self._one_thread and get_worker_info() is not None:
            cv2.setNumThreads(0)  # not 1: that waits for threads which a forked process does not have
            self._one_thread = True


class ComposedBatch:
    """A batch that was composed in the workers.

    Args:
        records: of its images.
        targets: of its images.

    Attributes:
        targets: of its images.
    """

    def __init__(self, records: Sequence[CompositeRecord], targets: list[Target]) -> None:
        self._records, self.targets = records, targets

    @property
    def pastes(self) -> list[list[Paste]]:
        """See :attr:`terse_aug.Composites.pastes`."""
        return [
            [
                Paste(index, source, label, torch.tensor(unit), row, number)
                for index, source, label, unit, row, number in own.pastes
            ]
            for own in self._records
        ]

    @property
    def backgrounds(self) -> dict[int, int]:
        """See :attr:`terse_aug.Composites.backgrounds`."""
        return {image: own.background for image, own in enumerate(self._records) if own.background is not None}


class ComposedBatches:
    """What ``Terse`` does with batches that were composed in the workers: it checks and counts them.

    Args:
        planner: of ``Terse``.
        sampler: of ``Terse``.
        metrics: of ``Terse``.
        warn: warns once.
    """

    def __init__(self, planner: PastePlanner, sampler: Sampler, metrics: Metrics, warn: WarnOnce) -> None:
        self._planner, self._sampler, self._metrics, self._warn = planner, sampler, metrics, warn

    def batch(self, records: Sequence[CompositeRecord], targets: Sequence[Target], seed: int) -> ComposedBatch:
        """The batch of some records, which is counted.

        Args:
            records: of its images.
            targets: of its images.
            seed: of ``Terse``.

        Raises:
            ValueError: they are not of this batch, or were made by a composer with other settings.
        """
        if len(records) != len(targets):
            raise ValueError(f"expected a record for each of {len(targets)} images, got {len(records)}")
        origin = origin_of(self._drawn_from, self._sampler, seed)
        for number, own in enumerate(records):
            if not isinstance(own, CompositeRecord):
                raise ValueError(f"record of image {number}: expected what a composer gives, got {type(own).__name__}")
            if own.origin != origin:
                raise ValueError(
                    f"record of image {number}: (bank, sampler and columns, labels that may be pasted, seed) are "
                    f"{own.origin} in the composer, {origin} in Terse: make the composer by terse.composer(), after "
                    "loading a state and after restrict_labels"
                )
        counts: Counter[str] = Counter()
        for own in records:
            counts.update(own.counts)
            self._warn.warn_all(own.warnings)
        unit = [row for own in records for row in own.unit]
        self._metrics.add_batch(counts, torch.tensor(unit).view(-1, len(self._planner.paste.columns)))
        return ComposedBatch(records, list(targets))

    @cached_property
    def _drawn_from(self) -> int:
        return drawn_from(self._planner, self._sampler)


def composites_of(
    planned: PlannedBatch,
    proposal: Proposal,
    planner: PastePlanner,
    rendering: RenderSettings,
    warn: Callable[[Mapping[str, str]], None],
) -> Composites:
    """The composites of a proposal; ``warn`` gets texts to warn of once, by kind."""
    batch, plan = planned.batch, planner.chosen(planned.plan, proposal.rows)
    with torch.set_grad_enabled(bool(proposal.leaves)):
        found = compose(batch.images, batch.targets, plan, proposal.unit, rendering, proposal.placement, planned.boxes)
    found.dropped.update(batch.dropped)
    found.dropped["paste_overlaps"] += len(planned.plan.indices) // planner.foreground_candidates - len(plan.indices)
    found.dropped["image_not_finite"] += batch.usable_given(found.largest).count(False)
    found.backgrounds.update(planned.backgrounds)
    warn(batch.warnings | found.warnings | left_out_warnings(found.dropped))
    return found


def drawn_from(planner: PastePlanner, sampler: Sampler) -> int:
    """Equal for the same bank and distribution of foregrounds, and the same columns of transforms."""
    return derived_seed(planner.cache.bank_identity, sampler.identity, *planner.paste.columns)


def origin_of(drawn_from: int, sampler: Sampler, seed: int) -> Origin:
    """What composer and ``Terse`` have to agree in: bank, sampler and columns, labels that may be pasted, seed."""
    allowed = sampler.allowed_labels
    return drawn_from, None if allowed is None else tuple(allowed), seed


def check_ahead(policy: Policy, sampler: Sampler, robust: bool) -> None:
    """Refuse what cannot be composed while the detector trains on the batch before.

    Args:
        policy: of ``Terse``.
        sampler: of ``Terse``.
        robust: whether composites are perturbed.

    Raises:
        ValueError: naming what cannot.
    """
    if not (policy.in_workers or policy.ahead) or (policy.learns and policy.learns_from == "gradient"):
        raise ValueError(
            f"policy: {type(policy).__name__} needs what the training process knows only after the iteration before; "
            f"{_THERE}, or use policy 'random', 'matched' or 'critic'"
        )
    _check_sampler(sampler, robust, "is known only after it")


def _check(sampler: Sampler, policy: Policy, robust: bool) -> None:
    if not policy.in_workers:
        raise ValueError(
            f"policy: {type(policy).__name__} needs the state of the training process, which the data loader's "
            f"workers do not have; {_THERE}, or use policy 'random'"
        )
    _check_sampler(sampler, robust, "the data loader's workers do not know")


def _check_sampler(sampler: Sampler, robust: bool, unknown: str) -> None:
    if not sampler.in_workers:
        raise ValueError(
            f"sampler: {type(sampler).__name__} depends on what was pasted before, which {unknown}; {_THERE}, or use "
            "another sampler"
        )
    if robust:
        raise ValueError(
            "robustness: composites are perturbed in the training process, where it has to be known which of their "
            f"pixels were pasted; {_THERE}"
        )
