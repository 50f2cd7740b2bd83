"""Composes batches in the training process: when they are needed, or one batch ahead in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from terse_aug.composer import ComposedBatch, CompositeRecord, composites_of
from terse_aug.compositing.compose import POISSON, Composites
from terse_aug.compositing.layers import RenderSettings
from terse_aug.data.planner import PastePlanner, PlannedBatch
from terse_aug.models import ModelAdapter
from terse_aug.policies import Policy, Proposal
from terse_aug.policies.context import make_context
from terse_aug.structures.annotations import Target
from terse_aug.structures.validation import validate_batch
from terse_aug.training.acting import Turn, checked, propose
from terse_aug.training.closing import Closing
from terse_aug.training.metrics import Metrics, batch_counts
from terse_aug.training.policy_trainer import PolicyTrainer
from terse_aug.training.robustness import Perturber
from terse_aug.utils.transfer import Upload
from terse_aug.utils.warnings import WarnOnce

Split = Callable[[Any], tuple[Any, ...]]
"""From a batch of a data loader to the arguments of :meth:`terse_aug.Terse.forward`."""
Join = Callable[[Any, list[Tensor], list[Target]], Any]
"""From a batch of a data loader, its composites and their targets to the batch for the detector."""


@dataclass(frozen=True)
class PreparedBatch:
    """A batch that was composed, and that nothing in the training process knows of yet.

    Attributes:
        planned: what was pasted, and on what.
        proposal: of the policy.
        composites: made from it.
        turn: how it was composed.
        upload: of the composites to the device of the detector, if they are composed ahead of it.
    """

    planned: PlannedBatch
    proposal: Proposal
    composites: Composites
    turn: Turn
    upload: BatchUpload | None = None


class BatchUpload:
    """A batch on the CPU, packed for one copy to a device.

    Args:
        images: on the CPU.
        targets: likewise.
        device: where to.
        on_cpu: fields of the targets that stay.
    """

    def __init__(
        self, images: Sequence[Tensor], targets: Sequence[Target], device: torch.device, on_cpu: Collection[str]
    ) -> None:
        self._count, self._targets = len(images), targets
        self._names = [
            [name for name, own in target.items() if isinstance(own, Tensor) and name not in on_cpu]
            for target in targets
        ]
        fields = [target[name] for target, names in zip(targets, self._names, strict=True) for name in names]
        self._upload = Upload([*images, *fields], device)

    def send(self) -> tuple[list[Tensor], list[Target]]:
        """The batch on the device."""
        sent = iter(self._upload.send())
        images = [next(sent) for _ in range(self._count)]
        pairs = zip(self._targets, self._names, strict=True)
        return images, [{**target, **{name: next(sent) for name in names}} for target, names in pairs]


class _Lock:
    """A lock that has no state to copy."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[_Lock], tuple[()]]:
        return _Lock, ()


class BatchComposer:
    """Composes batches, and keeps what training needs to know of them.

    Args:
        trainer: of ``Terse``.
        planner: of ``Terse``.
        rendering: of ``Terse``.
        model: of ``Terse``.
        perturber: of ``Terse``.
        metrics: of ``Terse``.
        warn: warns once.
        closing: of ``Terse``.

    Attributes:
        last: the batch that the detector is being trained on.
    """

    def __init__(
        self,
        trainer: PolicyTrainer,
        planner: PastePlanner,
        rendering: RenderSettings,
        model: ModelAdapter | None,
        perturber: Perturber | None,
        metrics: Metrics,
        warn: WarnOnce,
        closing: Closing,
    ) -> None:
        # Not a module, so that trainer and metrics stay parts of ``Terse`` alone.
        self._trainer, self._planner, self._rendering = trainer, planner, rendering
        self._model, self._perturber, self._metrics, self._warn = model, perturber, metrics, warn
        self._closing = closing
        self.last: Composites | ComposedBatch | None = None
        self._lock = _Lock()  # of what the planner caches
        policy = trainer.policy
        differentiable = policy.learns and policy.learns_from == "gradient"
        if differentiable and "poisson" in planner.paste.blends:
            raise ValueError(f"policy {type(policy).__name__}, {POISSON}")
        self._as_float = perturber is not None or differentiable

    def prepare(
        self,
        images: Sequence[Tensor] | Tensor,
        targets: Sequence[Target],
        from_workers: Sequence[Any] | None,
        turn: Turn,
    ) -> PreparedBatch:
        """Compose a batch; nothing that training depends on is changed.

        Args:
            images, targets, from_workers: see :meth:`terse_aug.Terse.forward`.
            turn: how.

        Raises:
            ValueError: see :meth:`terse_aug.Terse.forward`.
        """
        pixel_format = self._rendering.pixel_format
        batch = validate_batch(images, targets, self._planner.cache.keypoint_count)
        if self._as_float:
            batch = replace(batch, images=pixel_format.as_float(batch.images))
        with self._lock:
            with torch.no_grad():
                closed = self._closing.includes(turn.call)
                planned = self._planner.plan(batch, turn.sampler, turn.generator, from_workers, closed=closed)
                context = make_context(planned, self._rendering, turn.policy, self._model, self._planner.chosen)
            proposal = propose(context, turn, self._trainer.feedback.extra_forward_failed)
            composites = composites_of(planned, proposal, self._planner, self._rendering, self._warn.warn_all)
        if turn.call == 0 and (text := pixel_format.mismatch(batch.images, composites.largest)):
            self._warn.warn("pixel_format", text)
        return PreparedBatch(planned, proposal, composites, turn)

    def inspect(
        self, images: Sequence[Tensor], targets: Sequence[Target], policy: Policy, generator: torch.Generator
    ) -> Composites:
        """Composites that leave no trace; see :meth:`terse_aug.Terse.compose`."""
        batch = validate_batch(images, targets, self._planner.cache.keypoint_count)
        planner = self._planner.for_policy(policy)
        with self._lock, torch.no_grad():
            planned = planner.plan(batch, self._trainer.sampler.snapshot(), generator)
            context = make_context(planned, self._rendering, policy, self._model, planner.chosen)
            proposal = checked(policy.propose(context, generator, learning=False), context, policy)
            return composites_of(planned, proposal, planner, self._rendering, self._warn.warn_all)

    def compose(
        self,
        images: Sequence[Tensor] | Tensor,
        targets: Sequence[Target],
        from_workers: Sequence[Any] | None,
        turn: Turn,
    ) -> list[Tensor] | Tensor:
        """:meth:`prepare` and :meth:`keep` a batch; returns its images in the form of the input."""
        composites = self.keep(self.prepare(images, targets, from_workers, turn))
        return torch.stack(composites.images) if isinstance(images, Tensor) else composites.images

    def targets(self) -> list[Target]:
        """Of the batch that the detector is being trained on."""
        return self.last.targets if self.last else []

    def keep(self, prepared: PreparedBatch) -> Composites:
        """Count a batch and keep what is learned from it, before the detector is trained on it.

        Returns:
            What the detector is trained on: the composites, perturbed with robustness.
        """
        planned, proposal, turn = prepared.planned, prepared.proposal, prepared.turn
        shown = composites = prepared.composites
        if self._perturber is not None:
            usable = planned.batch.usable_given(composites.largest)
            shown = self._perturber.perturbed(composites, usable, turn.seed, turn.call)
        self._trainer.watch(planned.batch, proposal, composites, shown, turn.learning)
        self._metrics.counts["extra_forwards"] += proposal.extra_forwards
        self._metrics.add_batch(batch_counts(planned.plan, composites), composites.unit)
        self.last = shown
        return shown


class HasTrainer(Protocol):
    """What composing ahead uses of ``Terse``."""

    training: bool
    seed: int
    seconds: float
    trainer: PolicyTrainer


class ComposedAhead:
    """A data loader whose batches are composed on the CPU, in a thread, while the detector trains on the one before.

    Made by :meth:`terse_aug.Terse.ahead`. A batch that was composed when the loop is left early is dropped.

    Args:
        terse: whose batches these are.
        composer: of ``Terse``.
        device: of ``Terse``.
        loader: of batches on the CPU.
        split: see :data:`Split`.
        join: see :data:`Join`.
        on_cpu: fields of the targets that stay on the CPU.
    """

    def __init__(
        self,
        terse: HasTrainer,
        composer: BatchComposer,
        device: torch.device,
        loader: Iterable[Any],
        split: Split,
        join: Join,
        on_cpu: Collection[str],
    ) -> None:
        self._terse, self._composer, self._device, self._loader = terse, composer, device, loader
        self._split, self._join, self._on_cpu = split, join, on_cpu

    def __len__(self) -> int:
        """Batches of the loader."""
        return len(self._loader)  # type: ignore[arg-type]  # a loader without a length raises TypeError, as it does

    def __iter__(self) -> Generator[Any, None, None]:
        """Composites, in the form of the loader's batches, on the device of ``Terse``."""
        self._terse.trainer.feedback.log_sources()
        waiting: list[tuple[Any, Future[PreparedBatch] | None]] = []
        with ThreadPoolExecutor(1, "terse_aug") as thread:
            # The loader is used in this thread: what it draws from global generators stays in one order.
            for batch in self._loader:
                ready = [self._delivered(*one) for one in waiting]
                waiting = [(batch, self._submit(batch, thread))]
                yield from ready
            yield from [self._delivered(*one) for one in waiting]

    def _submit(self, batch: Any, thread: Executor) -> Future[PreparedBatch] | None:
        """Begin to compose a batch; ``None`` if it passes through."""
        if not self._terse.training:
            return None
        return thread.submit(self._prepared, batch, self._terse.trainer.turn_ahead(self._terse.seed))

    def _prepared(self, batch: Any, turn: Turn) -> PreparedBatch:
        images, targets, from_workers = self._split(batch)
        if len(images) and images[0].device.type != "cpu":
            raise ValueError(f"expected images on the CPU, where they are composed ahead, got {images[0].device}")
        if from_workers and isinstance(from_workers[0], CompositeRecord):
            raise ValueError("the batch was composed in the workers: call terse(images, targets, records) instead")
        prepared = self._composer.prepare(images, targets, from_workers, turn)
        return replace(prepared, upload=self._upload(prepared.composites.images, prepared.composites.targets))

    def _upload(self, images: Sequence[Tensor], targets: Sequence[Target]) -> BatchUpload:
        return BatchUpload(images, targets, self._device, self._on_cpu)

    def _delivered(self, batch: Any, coming: Future[PreparedBatch] | None) -> Any:
        """The batch as the detector is trained on it."""
        started, trainer = time.perf_counter(), self._terse.trainer
        prepared = None if coming is None else coming.result()
        trainer.end_batch()
        if prepared is None:
            images, targets, _ = self._split(batch)
            self._composer.last = None
            return self._join(batch, *self._upload(images, targets).send())
        assert prepared.upload is not None
        images, targets = prepared.upload.send()
        self._composer.keep(replace(prepared, composites=replace(prepared.composites, images=images, targets=targets)))
        trainer.advance()
        joined = self._join(batch, images, targets)
        self._terse.seconds += time.perf_counter() - started
        return joined


def split_batch(batch: Sequence[Any]) -> tuple[Any, ...]:
    """Images, targets, and what the workers gave if there is anything, of a batch ``(images, targets)``."""
    return (*batch, None) if len(batch) == 2 else tuple(batch)


def join_batch(batch: Sequence[Any], images: list[Tensor], targets: list[Target]) -> tuple[Any, list[Target]]:
    """Images and targets in the form of the batch."""
    return torch.stack(images) if isinstance(batch[0], Tensor) else images, targets
