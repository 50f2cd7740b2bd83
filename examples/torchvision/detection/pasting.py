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
from terse_aug.policies import POLICIES


def add_flags(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags of terse-aug."""
    group = parser.add_argument_group("pasting")
    group.add_argument("--policy", choices=sorted(POLICIES), default="critic", help="how cut-outs are placed")
    group.add_argument("--bank", type=Path, help="cut-outs; none: cut from the training images, kept in --out")
    group.add_argument(
        "--terse",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="settings of TerseConfig, e.g. objects=1,5 temperature=0.2",
    )
    group.add_argument("--probe-images", type=int, default=64, help="composites probed at each evaluation; 0: none")
    return parser


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """`--terse NAME=VALUE ...` as keywords.

    A comma makes a pair, `ranges.NAME=LOW,HIGH` sets a range, `critic_held=NAME,NAME` lists names; `sampler=NAME`,
    `robust=NAME` and the folder `backgrounds=DIR` are texts.
    """
    keywords: dict[str, Any] = {}
    ranges: dict[str, Any] = {}
    for item in args.terse:
        name, separator, text = item.partition("=")
        if not separator:
            raise SystemExit(f"--terse expects NAME=VALUE, got {item!r}")
        if name in _TEXTS:
            keywords[name] = text
            continue
        if name in _LISTS_OF_NAMES:
            keywords[name] = tuple(filter(None, text.split(",")))
            continue
        try:
            parts = [_SWITCH[part] if part in _SWITCH else _number(part) for part in text.split(",")]
        except ValueError:
            raise SystemExit(f"--terse {name}: expects a number, LOW,HIGH, true or false, got {text!r}") from None
        value = parts[0] if len(parts) == 1 else tuple(parts)
        owner = ranges if name.startswith("ranges.") else keywords
        owner[name.removeprefix("ranges.")] = value
    return keywords | ({"ranges": terse_aug.TransformRanges(**ranges)} if ranges else {})


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(terse_aug.TerseConfig)}
_LISTS_OF_NAMES = {name for name, value in _DEFAULTS.items() if isinstance(value, tuple) and isinstance(value[0], str)}
_TEXTS = {name for name, value in _DEFAULTS.items() if isinstance(value, str)} | {"backgrounds"}
_SWITCH = {"true": True, "false": False}


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def open_bank(args: argparse.Namespace, training_set: DetectionDataset) -> terse_aug.ForegroundBank:
    """The bank given, or one cut from the training images and from no others."""
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
    """Names what a bank is cut from: other images, or a JSON that was changed, have a bank of their own in --out.

    Image files are taken to stay as they are.
    """
    folders = [path.resolve() for path in (args.penn_fudan, args.annotations, args.images) if path]
    sources = [(str(path), path.stat().st_mtime_ns if path.is_file() else None) for path in folders]
    return hashlib.sha256(repr((sources, training_set.names)).encode()).hexdigest()[:12]


def probe_figures(
    terse: terse_aug.Terse, detector: nn.Module, dataset: DetectionDataset, count: int, batch_size: int
) -> dict[str, dict[str, Any]]:
    """How hard and how diverse composites are, by the policy in use and by the random one, on the same images."""
    if not count:
        return {}
    device = next(detector.parameters()).device
    order = torch.arange(count) % len(dataset)
    batches = []
    for start in range(0, count, batch_size):
        samples = [dataset[int(index)] for index in order[start : start + batch_size]]
        images, targets = zip(*samples, strict=True)
        batches.append(to_device(list(images), list(targets), device))
    figures = {}
    for name, policy in (("composites", None), ("random composites", "random")):
        found = terse_aug.probe(terse, detector, batches, policy)
        spread = found.std_ratios
        figures[name] = {
            "objects": len(found.scores),
            "missed share": found.missed_fraction if len(found.scores) else None,
            "diversity": sum(spread.values()) / len(spread) if spread else None,
            "spread": spread,
            "spread by class": found.std_ratios_by_class,
            "neighbour distance": None if math.isnan(found.neighbour_distance) else found.neighbour_distance,
            "hardness histogram": found.histogram(),
        }
    return figures
