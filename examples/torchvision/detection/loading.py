"""From a data set to batches: the order of the images, and which are flipped.

Everything random here is a pure function of (seed, position in the stream of images). A resumed run
therefore trains on the same images as an uninterrupted one, and skips to its iteration at no cost.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detection.datasets import DetectionDataset, Sample, Target

ORDER, FLIP, ITERATION = range(3)  # the independent random streams below one seed


class Draw(NamedTuple):
    """One entry of the training stream."""

    index: int
    flipped: bool


class TrainingOrder(Sampler[list[Draw]]):
    """Batches of an endlessly reshuffled data set, for iterations `start` to `end`.

    Args:
        length: Images in the data set.
        batch_size: Images per batch; a batch may span two epochs, so that none is short.
        seed: Of order and flipping.
        start: First iteration, counted from 0.
        end: One past the last iteration.
        flip: Whether half the images, chosen at random, are flipped.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int, end: int, flip: bool = True):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.end, self.flip = start, end, flip

    def __len__(self) -> int:
        return max(0, self.end - self.start)

    def __iter__(self) -> Iterator[list[Draw]]:
        current, draws = -1, []
        for iteration in range(self.start, self.end):
            batch = []
            for position in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
                epoch, place = divmod(position, self.length)
                if epoch != current:
                    current, draws = epoch, self._epoch(epoch)
                batch.append(draws[place])
            yield batch

    def _epoch(self, epoch: int) -> list[Draw]:
        order = np.random.default_rng([self.seed, ORDER, epoch]).permutation(self.length)
        flipped = np.random.default_rng([self.seed, FLIP, epoch]).random(self.length) < 0.5
        return [Draw(int(i), bool(m) and self.flip) for i, m in zip(order, flipped, strict=True)]


class Flipped(Dataset[Sample]):
    """A data set indexed by `Draw`s: the image, flipped where the draw has it."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset
        self.keypoint_order = flipped_keypoints(dataset.keypoint_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Sample:
        image, target = self.dataset[draw.index]
        return flip(image, target, self.keypoint_order) if draw.flipped else (image, target)


def flip(image: Tensor, target: Target, keypoint_order: list[int]) -> Sample:
    """Image and target flipped left to right; its own inverse.

    Args:
        image: `[3, H, W]`.
        target: In the data sets' convention.
        keypoint_order: See `flipped_keypoints`.
    """
    width = image.shape[-1]
    flipped = dict(target)
    left, top, right, bottom = target["boxes"].unbind(1)
    flipped["boxes"] = torch.stack([width - right, top, width - left, bottom], dim=1)
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(-1)
    if "keypoints" in target:
        x, y, visibility = target["keypoints"][:, keypoint_order].unbind(2)
        # COCO marks an unlabelled point by zeros, which must stay at zero.
        x = torch.where(visibility > 0, width - x, x)
        flipped["keypoints"] = torch.stack([x, y, visibility], dim=2)
    return image.flip(-1), flipped


def flipped_keypoints(names: list[str]) -> list[int]:
    """For every keypoint the position of its mirror image: that of `left_eye` is `right_eye`."""

    def other_side(name: str) -> str:
        for here, there in (("left", "right"), ("right", "left")):
            if here in name:
                return name.replace(here, there)
        return name

    return [names.index(other_side(name)) if other_side(name) in names else i for i, name in enumerate(names)]


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed torch's global generators (the detectors sample proposals with them) for one iteration.

    One seed per iteration instead of one at the start: random numbers drawn by evaluation or logging then have no
    effect on training, and a resumed run needs no generator states.
    """
    sequence = np.random.SeedSequence([seed, ITERATION, iteration])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def training_batches(
    dataset: DetectionDataset, order: TrainingOrder, workers: int, pin_memory: bool
) -> DataLoader[tuple[list[Tensor], list[Target]]]:
    """The batches of `order`, as `(images, targets)`."""
    return _loader(Flipped(dataset), workers, pin_memory, batch_sampler=order)


def evaluation_batches(
    dataset: DetectionDataset, batch_size: int, workers: int
) -> DataLoader[tuple[list[Tensor], list[Target]]]:
    """The data set once, in its order, not flipped."""
    return _loader(dataset, workers, pin_memory=False, batch_size=batch_size)


def to_device(images: list[Tensor], targets: list[Target], device: torch.device) -> tuple[list[Tensor], list[Target]]:
    """A batch on the detector's device; values that are not tensors (`image_id`) are unchanged."""

    def move(value: object) -> object:
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return (
        [image.to(device, non_blocking=True) for image in images],
        [{key: move(value) for key, value in target.items()} for target in targets],
    )


def _loader(dataset: Dataset[Sample], workers: int, pin_memory: bool, **batching: object) -> DataLoader:
    # Its own generator: a DataLoader draws its workers' seed from the global one otherwise.
    return DataLoader(
        dataset,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=_as_lists,
        generator=torch.Generator(),
        **batching,
    )


def _as_lists(samples: list[Sample]) -> tuple[list[Tensor], list[Target]]:
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)
