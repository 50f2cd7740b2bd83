"""From a data set to batches: which image comes when, mirrored or not.

Everything random here is a pure function of (seed, position in the stream of images). A resumed run
therefore meets the images that the uninterrupted one would have met, at no cost: the order of an epoch is
computed, not walked through.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from detection.datasets import DetectionDataset, Sample, Target

ORDER, MIRROR, ITERATION = range(3)  # the independent random streams below one seed


class Draw(NamedTuple):
    """One entry of the training stream."""

    index: int
    flipped: bool


class TrainingOrder(Sampler[list[Draw]]):
    """Batches of an endlessly reshuffled data set, for iterations `start` to `end`.

    Args:
        length: Images in the data set.
        batch_size: Images per batch; a batch may span two epochs, so that none is short.
        seed: Decides order and mirroring.
        start: First iteration, counted from 0.
        end: One past the last iteration.
        mirror: Whether half the images, chosen at random, are to be mirrored.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int, end: int, mirror: bool = True):
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start, self.end, self.mirror = start, end, mirror

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
        flipped = np.random.default_rng([self.seed, MIRROR, epoch]).random(self.length) < 0.5
        return [Draw(int(i), bool(m) and self.mirror) for i, m in zip(order, flipped, strict=True)]


class Mirrored(Dataset[Sample]):
    """A data set addressed by `Draw`s: the image, mirrored where the draw says so."""

    def __init__(self, dataset: DetectionDataset):
        self.dataset = dataset
        self.keypoint_order = mirrored_keypoints(dataset.keypoint_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Sample:
        image, target = self.dataset[draw.index]
        return mirror(image, target, self.keypoint_order) if draw.flipped else (image, target)


def mirror(image: Tensor, target: Target, keypoint_order: list[int]) -> Sample:
    """Image and target, left and right exchanged; applied twice it gives back what it got.

    Args:
        image: `[3, H, W]`.
        target: In the data sets' convention.
        keypoint_order: See `mirrored_keypoints`.
    """
    width = image.shape[-1]
    flipped = dict(target)
    left, top, right, bottom = target["boxes"].unbind(1)
    flipped["boxes"] = torch.stack([width - right, top, width - left, bottom], dim=1)
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(-1)
    if "keypoints" in target:
        x, y, visibility = target["keypoints"][:, keypoint_order].unbind(2)
        # COCO marks an unlabelled point by zeros, which must not wander to the right edge.
        x = torch.where(visibility > 0, width - x, x)
        flipped["keypoints"] = torch.stack([x, y, visibility], dim=2)
    return image.flip(-1), flipped


def mirrored_keypoints(names: list[str]) -> list[int]:
    """For every keypoint the position of its mirror image: `left_eye` takes `right_eye`'s place."""

    def other_side(name: str) -> str:
        for here, there in (("left", "right"), ("right", "left")):
            if here in name:
                return name.replace(here, there)
        return name

    return [names.index(other_side(name)) if other_side(name) in names else i for i, name in enumerate(names)]


def seed_iteration(seed: int, iteration: int) -> None:
    """Seed torch's global generators (the detectors sample proposals with them) for one iteration.

    A seed per iteration instead of one at the start: what evaluation or logging draws in between then
    changes nothing, and a resumed run needs no generator states.
    """
    sequence = np.random.SeedSequence([seed, ITERATION, iteration])
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))


def training_batches(
    dataset: DetectionDataset, order: TrainingOrder, workers: int, pin_memory: bool
) -> DataLoader[tuple[list[Tensor], list[Target]]]:
    """The batches of `order`, as `(images, targets)`."""
    return _loader(Mirrored(dataset), workers, pin_memory, batch_sampler=order)


def evaluation_batches(
    dataset: DetectionDataset, batch_size: int, workers: int
) -> DataLoader[tuple[list[Tensor], list[Target]]]:
    """The data set once, in its order, unmirrored."""
    return _loader(dataset, workers, pin_memory=False, batch_size=batch_size)


def to_device(images: list[Tensor], targets: list[Target], device: torch.device) -> tuple[list[Tensor], list[Target]]:
    """A batch on the detector's device; what is no tensor (`image_id`) stays as it is."""

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
