"""Opens the training set and the evaluation set that the flags name."""

import argparse
import json
import random
from typing import Any

from detection.datasets import DetectionDataset, penn_fudan, penn_fudan_names

TEST_IMAGES = 50  # of Penn-Fudan's 170, where no split is given


def open_data(args: argparse.Namespace) -> tuple[DetectionDataset, DetectionDataset | None, dict[str, Any]]:
    """The training set, the evaluation set if there is one, and their description for the results."""
    training, evaluation = _open_penn_fudan(args) if args.penn_fudan else _open_coco(args)
    description = {
        "classes": training.classes,
        "keypoints": training.keypoint_names,
        "masks": training.has_masks,
        "split": {"train": training.names, "test": evaluation.names if evaluation else []},
        "dropped": dict(+training.dropped),
    }
    print(
        f"{len(training)} training images, {len(evaluation) if evaluation else 'no'} evaluation images, "
        f"{len(training.classes)} classes"
    )
    for what, count in description["dropped"].items():
        print(f"dropped from training: {count} {what}")
    return training, evaluation, description


def split_penn_fudan(names: list[str]) -> dict[str, list[str]]:
    """The default split; it does not depend on the seed of the run."""
    shuffled = sorted(names)
    random.Random(0).shuffle(shuffled)
    return {"train": shuffled[:-TEST_IMAGES], "test": shuffled[-TEST_IMAGES:]}


def _open_penn_fudan(args: argparse.Namespace) -> tuple[DetectionDataset, DetectionDataset | None]:
    names = penn_fudan_names(args.penn_fudan)
    split = json.loads(args.split.read_text()) if args.split else split_penn_fudan(names)
    for part in (args.train_part, "test"):
        if part not in split:
            raise ValueError(f"{args.split}: expected a list '{part}', found {', '.join(split)}")
    both = sorted(set(split[args.train_part]) & set(split["test"]))
    if both:
        raise ValueError(f"{args.split}: {both[:5]} are both in '{args.train_part}' and in 'test'")
    training = penn_fudan(args.penn_fudan, split[args.train_part][: args.train_images])
    test = penn_fudan(args.penn_fudan, split["test"]) if split["test"] else None
    return training, test


def _open_coco(args: argparse.Namespace) -> tuple[DetectionDataset, DetectionDataset | None]:
    training = DetectionDataset(args.annotations, args.images, keep_empty=args.keep_empty, limit=args.train_images)
    if not len(training):
        raise ValueError(f"{args.annotations}: no image with a usable box to train on")
    if not args.val_annotations:
        return training, None
    # Images without objects stay in: every detection on them is a false positive.
    evaluation = DetectionDataset(
        args.val_annotations, args.val_images or args.images, classes=training.classes, keep_empty=True
    )
    return training, evaluation
