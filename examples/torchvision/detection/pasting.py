"""What `train_with_terse.py` adds besides its loop: flags, a bank, and a probe of the composites."""

import argparse
import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

import terse_aug
from detection.datasets import DetectionDataset
from detection.loading import to_device
from terse_aug.bank import build_from_coco, build_from_masks
from terse_aug.cli import flags
from terse_aug.config import POLICY_SETTINGS, check_fraction

# The settings whose flags have a prefix: those of each policy, and of robustness training.
PREFIXED = {name.replace("-", "_"): kind() for name, kind in POLICY_SETTINGS.items()}
PREFIXED["robustness"] = terse_aug.Robustness()


def add_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of terse-aug: those of `PasteConfig` as they are, those of a policy behind its name."""
    group = parser.add_argument_group("pasting")
    group.add_argument("--policy", choices=list(POLICY_SETTINGS), default="random", help="how transforms are chosen")
    group.add_argument("--bank", type=Path, help="foregrounds; none: taken from the training images, kept in --out")
    group.add_argument("--sampler", default="uniform", help="uniform, rarity, hardness, balanced, or dog=3,cat=0.5")
    group.add_argument("--backgrounds", type=Path, help="folder of images that replace some training images")
    group.add_argument("--background-probability", type=float, default=0.5, help="fraction of the images replaced")
    group.add_argument("--close-fraction", type=float, default=0.0, help="last fraction of it without pasting, 0 to 1")
    group.add_argument("--robustness", action="store_true", help="perturb composites before the detector sees them")
    group.add_argument("--probe-images", type=int, default=64, help="composites probed at each evaluation; 0: none")
    flags.add_flags(parser.add_argument_group("pasting, all policies"), terse_aug.PasteConfig())
    for prefix, defaults in PREFIXED.items():
        if dataclasses.fields(defaults):
            flags.add_flags(parser.add_argument_group(f"pasting, {type(defaults).__name__} only"), defaults, prefix)
    return parser


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `Terse` that the flags give.

    Raises:
        ValueError: If a value is outside its range, or a flag belongs to a policy that is not in use.
    """
    policy = args.policy.replace("-", "_")
    in_use = {policy, *(["robustness"] if args.robustness else [])}
    for prefix in PREFIXED.keys() - in_use:
        if given := [name for name in vars(args) if name.startswith(f"{prefix}_")]:
            switch = "--robustness" if prefix == "robustness" else f"--policy {prefix.replace('_', '-')}"
            raise ValueError(f"--{given[0].replace('_', '-')} has no effect without {switch}")
    keywords: dict[str, Any] = {
        "policy": flags.with_flags(PREFIXED[policy], args, policy),
        "paste": flags.with_flags(terse_aug.PasteConfig(), args),
        "sampler": args.sampler,
    }
    if args.backgrounds:
        keywords["backgrounds"] = terse_aug.BackgroundPool(args.backgrounds, args.background_probability)
    if args.robustness:
        keywords["robustness"] = flags.with_flags(PREFIXED["robustness"], args, "robustness")
    return keywords


def open_iterations(args: argparse.Namespace, start: int) -> int:
    """Iterations from `start` on in which objects are pasted."""
    check_fraction("--close-fraction", args.close_fraction)
    return max(math.ceil(round((1 - args.close_fraction) * args.iterations, 6)) - start, 0)


def open_bank(args: argparse.Namespace, training_set: DetectionDataset) -> terse_aug.ForegroundBank:
    """The bank given, or one built from the training images and from no others."""
    if args.bank:
        return terse_aug.ForegroundBank.open(args.bank)
    path = args.out / f"foregrounds-{_identity(args, training_set)}.bank"
    if not path.exists():
        args.out.mkdir(parents=True, exist_ok=True)
        if args.penn_fudan:
            report = build_from_masks(
                args.penn_fudan / "PNGImages",
                args.penn_fudan / "PedMasks",
                path,
                category=training_set.classes[0],
                image_list=training_set.names,
            )
        else:
            report = build_from_coco(args.annotations, args.images, path, image_list=training_set.names)
        print(report)
    return terse_aug.ForegroundBank.open(path)


def _identity(args: argparse.Namespace, training_set: DetectionDataset) -> str:
    """Names the source of a bank, so that other images or a changed JSON get a bank of their own in --out.

    Image files are assumed not to change.
    """
    folders = [path.resolve() for path in (args.penn_fudan, args.annotations, args.images) if path]
    sources = [(str(path), path.stat().st_mtime_ns if path.is_file() else None) for path in folders]
    return hashlib.sha256(repr((sources, training_set.names)).encode()).hexdigest()[:12]


def probe(
    terse: terse_aug.Terse, detector: nn.Module, dataset: DetectionDataset, count: int, batch_size: int
) -> dict[str, dict[str, Any]]:
    """Hardness and diversity of composites, by the policy in use and by the random one, on the same images."""
    if not count:
        return {}
    device = next(detector.parameters()).device
    order = torch.arange(count) % len(dataset)
    batches = []
    for start in range(0, count, batch_size):
        samples = [dataset[int(index)] for index in order[start : start + batch_size]]
        images, targets = zip(*samples, strict=True)
        batches.append(to_device(list(images), list(targets), device))
    measures = {}
    for name, policy in (("composites", None), ("random composites", "random")):
        found = terse_aug.probe(terse, detector, batches, policy)
        std_ratios = found.std_ratios
        measures[name] = {
            "objects": len(found.scores),
            "missed fraction": found.missed_fraction if len(found.scores) else None,
            "diversity": sum(std_ratios.values()) / len(std_ratios) if std_ratios else None,
            "std ratio": std_ratios,
            "std ratio by class": found.std_ratios_by_class,
            "neighbour distance": None if math.isnan(found.neighbour_distance) else found.neighbour_distance,
            "hardness histogram": found.histogram(),
        }
    return measures
