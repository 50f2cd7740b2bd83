"""Composites that are made in the workers of MMEngine's data loaders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from torch.utils.data import DataLoader

from terse_aug import Composer, CompositeRecord, NumberedSampler, Terse
from terse_aug.data.numbered_dataset import RECORD_KEY, NumberedDataset
from terse_aug_mmdet.batch import check_batch, put_back, sampled_foregrounds_of, to_samples

_CPU = torch.device("cpu")
_BEGUN = (
    "The data loader's iterator was made before the hook began, and its workers cannot be given anything. Make the "
    "runner by Runner.from_cfg."
)
_UNKNOWN = "The data loader has no sampler of indices."


class SampleComposer:
    """Composes what a data set returns, packed by ``PackDetInputs``.

    Args:
        composer: of ``Terse``.
        first: samples with lower numbers, which a resumed run only skips, are left alone.
    """

    def __init__(self, composer: Composer, first: int) -> None:
        self._composer, self._first = composer, first

    def __call__(self, packed: dict[str, Any], number: int) -> dict[str, Any]:
        """The composed sample, with its record."""
        if number < self._first:
            return packed
        check_batch(packed)
        batch: dict[str, Any] = {name: [packed[name]] for name in ("inputs", "data_samples") if name in packed}
        for sampled in sampled_foregrounds_of(batch) or ():
            self._composer.check_unused(sampled)
        images, targets = to_samples(batch, _CPU)
        image, target, record = self._composer(images[0], targets[0], number)
        put_back(batch, [image], [target], () if record.background is None else [0])
        batch["data_samples"][0].set_field(record, RECORD_KEY, field_type="metainfo")
        return packed | {name: value[0] for name, value in batch.items()}


def compose_in_workers(runner: Any, terse: Terse, composer: Composer) -> str:
    """Let the training's data loader compose its samples; the reason if it cannot, else an empty text.

    The data set is wrapped, not its pipeline changed: this holds for data sets inside others, and for a pipeline that
    is switched during training.

    Args:
        runner: before its training.
        terse: of the hook, after its state was loaded.
        composer: of ``terse``.
    """
    loop, settings = runner.train_loop, runner.cfg.get("train_dataloader")
    by_iterations = hasattr(loop, "dataloader_iterator")
    if loop.dataloader.batch_sampler is None:
        return _UNKNOWN
    if by_iterations and isinstance(settings, Mapping):
        # Its iterator was made with the loop, and its workers have taken from the sampler: both are made anew. In a
        # resumed run it begins with the first batch, and MMEngine skips those that were trained on.
        dataset = NumberedDataset(_data_set(loop.dataloader), SampleComposer(composer, terse.image_count))
        loop.dataloader = runner.build_dataloader(
            {**settings, "dataset": dataset, "num_batch_per_epoch": None},
            seed=runner.seed,
            diff_rank_seed=runner.cfg.get("randomness", {}).get("diff_rank_seed", False),
        )
        _number(loop.dataloader, 0)
        loop.dataloader_iterator = type(loop.dataloader_iterator)(loop.dataloader)
    elif by_iterations or getattr(loop.dataloader, "_iterator", None) is not None:
        return _BEGUN
    else:
        dataset = NumberedDataset(_data_set(loop.dataloader), SampleComposer(composer, 0))
        vars(loop.dataloader)["dataset"] = dataset  # torch allows no assignment
        _number(loop.dataloader, lambda: terse.image_count)
    return ""


def first_closed_sample(runner: Any, terse: Terse) -> int | None:
    """Number of the first sample that nothing is pasted on; ``None`` if there is none, or its number is not known."""
    sampler, batches = _plain_sampler(runner.train_dataloader), terse.closing.open_batches
    size: int | None = getattr(sampler, "batch_size", None)
    if batches is None or size is None or not hasattr(sampler, "sampler"):
        return None
    by_iterations = hasattr(runner.train_loop, "dataloader_iterator")
    # Such a loop numbers from the beginning of the training, one by epochs goes on from what was composed.
    first, before = (0, runner.iter) if by_iterations else (terse.image_count, 0)
    if by_iterations and isinstance(sampler.sampler, InfiniteSampler):
        return (before + batches) * size
    epochs, rest = divmod(before + batches, len(sampler))
    # The last batch of an epoch may be smaller.
    images = len(sampler) * size if getattr(sampler, "drop_last", False) else len(sampler.sampler)
    return first + epochs * images + rest * size


def records_of(batch: Mapping[str, Any]) -> list[CompositeRecord] | None:
    """The records of a batch that was composed in the workers; they are removed from it."""
    check_batch(batch)
    samples = batch.get("data_samples")
    if not isinstance(samples, list | tuple) or not all(RECORD_KEY in sample for sample in samples):
        return None
    records = [sample.get(RECORD_KEY) for sample in samples]
    for sample in samples:
        delattr(sample, RECORD_KEY)
    return records


def _data_set(loader: DataLoader[Any]) -> Any:
    """That of the loader, without an earlier training's composer."""
    return vars(loader.dataset)["dataset"] if isinstance(loader.dataset, NumberedDataset) else loader.dataset


def _number(loader: DataLoader[Any], start: Any) -> None:
    vars(loader)["batch_sampler"] = NumberedSampler(_plain_sampler(loader), start)


def _plain_sampler(loader: DataLoader[Any]) -> Any:
    """The batch sampler of the loader, without an earlier training's numbers."""
    sampler: Any = loader.batch_sampler
    return sampler.sampler if isinstance(sampler, NumberedSampler) else sampler
