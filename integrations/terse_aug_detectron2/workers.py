"""Composites that are made in the workers of Detectron2's data loaders."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from inspect import GEN_CREATED, getgeneratorstate, isgenerator
from typing import Any

import torch
from detectron2.data.common import ToIterableDataset

from terse_aug import Composer, CompositeRecord, NumberedSampler, Terse
from terse_aug.data.numbered_dataset import RECORD_KEY, NumberedDataset
from terse_aug.integration import TrainingHook
from terse_aug.where_to_compose import thread_composes
from terse_aug_detectron2.batch import Item, Needs, checked_items, from_samples, sampled_foregrounds_of, to_samples

_LOGGER = logging.getLogger("detectron2.terse_aug")
_BEGUN = "The data loader's iterator was made before the hook began, and its workers cannot be given anything."
_UNKNOWN = "The data loader is not one of build_detection_train_loader with a data set and a sampler."
_CPU = torch.device("cpu")


class ItemComposer:
    """Composes what a mapper returns.

    Args:
        composer: of ``Terse``.
        needs: see :func:`terse_aug_detectron2.batch.to_samples`.
    """

    def __init__(self, composer: Composer, needs: Needs) -> None:
        self._composer, self._needs = composer, needs

    def __call__(self, item: Item, number: int) -> Item:
        """The composed item, with its record."""
        for sampled in sampled_foregrounds_of([item]) or ():
            self._composer.check_unused(sampled)
        images, targets = to_samples([item], _CPU, self._needs)
        image, target, record = self._composer(images[0], targets[0], number)
        (composed,) = from_samples([item], [image], [target])
        return composed | {RECORD_KEY: record}


class WorkerComposites:
    """Lets the workers of a trainer's data loader compose, where they can; else a thread or the training loop composes.

    Args:
        hook: whose ``Terse`` composes.
        enabled: without it nothing is changed, and the training loop composes.

    Attributes:
        thread: whether a thread is to compose.
    """

    def __init__(self, hook: TrainingHook, enabled: bool) -> None:
        self._hook, self._enabled = hook, enabled
        self.thread = False
        self._part: Any = None
        self._before: dict[str, Any] = {}

    def begin(self, loader: Any, iterator: Any, needs: Needs) -> None:
        """Let a loader compose its samples, in iterators that are made from now on; the log says who composes.

        Args:
            loader: of ``build_detection_train_loader``; others are left alone.
            iterator: of the loader, if it was made already.
            needs: see :func:`terse_aug_detectron2.batch.to_samples`.
        """
        part, terse = _sampled_part(loader), self._hook.terse

        def in_workers(composer: Composer) -> str:
            if part is None or (_has_begun(iterator) and part is not self._part):
                return _UNKNOWN if part is None else _BEGUN
            self.end()
            self._part, self._before = part, {"dataset": part.dataset, "sampler": part.sampler}
            part.dataset = NumberedDataset(part.dataset, ItemComposer(composer, needs))
            part.sampler = NumberedSampler(part.sampler, terse.image_count)
            return ""

        self.thread = thread_composes(terse, self._enabled, in_workers, _LOGGER, _closes_at(terse, loader))

    def end(self) -> None:
        """Leave the loader as it was; an iterator of it whose workers have begun continues to compose."""
        if self._part is not None:
            vars(self._part).update(self._before)


def records_of(batch: Sequence[Item]) -> list[CompositeRecord] | None:
    """The records of a batch that was composed in the workers."""
    records = [item.get(RECORD_KEY) for item in checked_items(batch)]
    return [own for own in records if own is not None] if None not in records else None


def without_records(batch: Sequence[Item]) -> list[Item]:
    """The batch for the model."""
    return [{key: value for key, value in item.items() if key != RECORD_KEY} for item in batch]


def _sampled_part(loader: Any) -> ToIterableDataset | None:
    """The part of a loader that has a data set and a sampler."""
    part = loader
    while part is not None and not isinstance(part, ToIterableDataset):
        own = getattr(part, "__dict__", {})
        part = own.get("dataset", own.get("_dataset"))
    return part


def _closes_at(terse: Terse, loader: Any) -> int | None:
    """Number of the first sample that nothing is pasted on; ``None`` if there is none, or its number is not known."""
    batches, part = terse.closing.open_batches, loader
    while part is not None and batches is not None:
        own = getattr(part, "__dict__", {})
        if isinstance(size := own.get("batch_size"), int):  # of a loader, or of the part that groups by aspect ratio
            return terse.image_count + batches * size
        part = own.get("dataset", own.get("_dataset"))
    return None


def _has_begun(iterator: Any) -> bool:
    """Whether an iterator of a data loader may have workers: a generator has none before its first batch."""
    return iterator is not None and not (isgenerator(iterator) and getgeneratorstate(iterator) == GEN_CREATED)
