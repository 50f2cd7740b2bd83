"""``terse-aug preview``: a contact sheet of the composites that a model would be trained on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from terse_aug.bank import ForegroundBank
from terse_aug.bank.selection import listed
from terse_aug.cli.flags import add_flags, flat_settings, setting_text, with_flags
from terse_aug.cli.labels import add_label_flags, open_labels
from terse_aug.cli.output import HTML, checked_output
from terse_aug.config import POLICY_SETTINGS, PasteConfig, PolicySettings, policy_settings
from terse_aug.data.auxiliary_objects import Distractors
from terse_aug.data.background_pool import BackgroundPool
from terse_aug.policies import BestOfN, Policy, make_policy
from terse_aug.preview import (
    STATE_KEY,
    Facts,
    LabelledImages,
    SavedPolicy,
    learn_boxes,
    preview_samples,
    render_html,
    render_png,
    resize_sample,
)
from terse_aug.terse import Terse
from terse_aug.utils.files import write_whole
from terse_aug.viz.text import printable

_IMAGES_WITH_BOXES = 64
"""From which a policy that needs real boxes gets them, without a saved state."""
_SUFFIXES = {"out": HTML, "png": (".png",)}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add ``preview`` to the commands."""
    parser = subparsers.add_parser("preview", help="show images with objects of a bank pasted on, and their labels")
    add_data_flags(parser)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="HTML", help="the page to write")
    add("--png", type=Path, metavar="PNG", help="also write the contact sheet as an image")
    add("--count", type=int, default=12, metavar="N", help="images to show (default: %(default)s)")
    add_composing_flags(parser)
    parser.set_defaults(run=_preview)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the bank, of labelled images (:func:`~terse_aug.cli.labels.open_labels`) and of classes."""
    add = parser.add_argument
    add("bank", type=Path, help="the bank file")
    add_label_flags(parser)
    classes = "categories of the bank to paste; NAME=OTHER where the images' labels call it OTHER (default: all)"
    add("--classes", nargs="+", metavar="NAME", help=classes)


def add_composing_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of what is drawn and how it is pasted, see :func:`composing_terse`."""
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of everything drawn (default: %(default)s)")
    add("--image-size", type=int, metavar="PX", help="resize images to this shorter side (default: original size)")
    policies = "random, matched, critic, adversarial or paper, which has to be named (default: as --state, or random)"
    add("--policy", help=policies)
    state = f"trained policy: torch.save of terse.state_dict(), or a checkpoint with it under {STATE_KEY!r}"
    add("--state", type=Path, metavar="FILE", help=state)
    sampler = "uniform, rarity, hardness, balanced, or class weights as dog=3,cat=0.5 (default: %(default)s)"
    add("--sampler", default="uniform", help=sampler)
    add("--backgrounds", type=Path, metavar="DIR", help="folder of images that replace some of the images")
    add("--background-probability", type=float, metavar="P", help="fraction of the images replaced (default: 0.5)")
    add("--distractor-bank", type=Path, metavar="BANK", help="objects of other classes, pasted without a label")
    add("--distractors", type=int, nargs=2, metavar=("LOW", "HIGH"), help="how many on an image (default: 1 3)")
    add_flags(parser.add_argument_group("settings of the pasting"), PasteConfig())
    for name, kind in POLICY_SETTINGS.items():
        if kind is not BestOfN:
            add_flags(parser.add_argument_group(f"settings of the policy {name}"), kind(), name)


def _preview(arguments: argparse.Namespace) -> int:
    outputs = _outputs(arguments)
    with ForegroundBank.open(arguments.bank) as bank:
        terse, settings, data = composing_terse(arguments, bank, _IMAGES_WITH_BOXES)
        samples = data.choose(arguments.count, arguments.seed)
        if arguments.image_size is not None:
            samples = (resize_sample(sample, arguments.image_size) for sample in samples)
        preview = preview_samples(terse, samples, data.classes, arguments.seed)
        hint = preview.size_hint(terse.paste.ranges.scale)
        facts = replace(_facts(arguments, terse, settings, data, len(preview.pairs)), hint=hint)
    write_whole(outputs["out"], render_html(preview, facts).encode("utf-8"))
    if "png" in outputs:
        write_whole(outputs["png"], render_png(preview, facts))
    counts = ", ".join(f"{count} {name}" for name, count in preview.counts.items())
    print(printable(f"{' and '.join(map(str, outputs.values()))}: {counts}"))
    if hint:
        print(hint)
    return 0


def _outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """The files to write."""
    outputs = {name: path for name in _SUFFIXES if (path := getattr(arguments, name)) is not None}
    return {name: checked_output(f"--{name}", path, _SUFFIXES[name]) for name, path in outputs.items()}


def composing_terse(
    arguments: argparse.Namespace, bank: ForegroundBank, images_with_boxes: int
) -> tuple[Terse, PolicySettings, LabelledImages]:
    """``Terse`` with the policy that is asked for, its settings, and the labelled images.

    Args:
        arguments: of :func:`add_data_flags` and :func:`add_composing_flags`.
        bank: the foregrounds.
        images_with_boxes: from which a policy that needs real boxes gets them, without a saved state.

    Raises:
        ValueError: an argument is outside its range, or does not fit another.
        OSError: a file cannot be read.
    """
    if arguments.image_size is not None and arguments.image_size < 1:
        raise ValueError(f"--image-size: expected at least 1 px, got {arguments.image_size}")
    paste = with_flags(PasteConfig(), arguments)
    saved = None if arguments.state is None else SavedPolicy.read(arguments.state)
    settings = _policy_settings(arguments, saved)
    policy = _policy(settings, saved, arguments.seed, paste)
    data = open_labels(arguments)
    terse = _terse(arguments, bank, data, policy, paste)
    if policy.uses_boxes and saved is None:
        # From data of its own, so that what is left out there is not counted.
        learn_boxes(terse, open_labels(arguments).choose(images_with_boxes, arguments.seed))
    return terse, settings, data


def _policy_settings(arguments: argparse.Namespace, saved: SavedPolicy | None) -> PolicySettings:
    default = policy_settings(arguments.policy or (saved.name if saved else "random"))
    name = _policy_name(default)
    if isinstance(default, BestOfN):
        raise ValueError(f"--policy {name} needs a detector, which there is none of here; use random or critic")
    for other in POLICY_SETTINGS.keys() - {name}:
        given = [flag for flag in vars(arguments) if flag.startswith(other + "_")]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} is a setting of --policy {other}, not of {name}")
    return with_flags(default, arguments, name)


def _policy_name(settings: PolicySettings) -> str:
    return next(name for name, kind in POLICY_SETTINGS.items() if type(settings) is kind)


def _policy(settings: PolicySettings, saved: SavedPolicy | None, seed: int, paste: PasteConfig) -> Policy:
    policy = make_policy(settings, seed, saved.classes if saved else None, paste.columns)
    if saved is not None:
        if not policy.state_dict():
            raise ValueError(f"--policy {_policy_name(settings)} does not learn: leave out --state or --policy")
        saved.load_into(policy)
    return policy


def _terse(
    arguments: argparse.Namespace, bank: ForegroundBank, data: LabelledImages, policy: Policy, paste: PasteConfig
) -> Terse:
    chosen, labels = _class_mapping(arguments.classes, bank, data.classes)
    distractors = _distractors(arguments)
    if distractors is not None:
        distractors.check_classes(data.classes.values())
    return Terse(
        bank.select(categories=chosen),
        policy,
        seed=arguments.seed,
        classes=labels,
        paste=paste,
        sampler=arguments.sampler,
        backgrounds=_backgrounds(arguments),
        distractors=distractors,
    )


def _backgrounds(arguments: argparse.Namespace) -> BackgroundPool | None:
    given = [value for value in (arguments.background_probability,) if value is not None]
    if arguments.backgrounds is not None:
        return BackgroundPool(arguments.backgrounds, *given)
    if given:
        raise ValueError("--background-probability: expected --backgrounds with it")
    return None


def _distractors(arguments: argparse.Namespace) -> Distractors | None:
    given = [tuple(count) for count in (arguments.distractors,) if count is not None]
    if arguments.distractor_bank is not None:
        return Distractors(ForegroundBank.open(arguments.distractor_bank), *given)
    if given:
        raise ValueError("--distractors: expected --distractor-bank with it")
    return None


def _class_mapping(
    wanted: Sequence[str] | None, bank: ForegroundBank, classes: dict[int, str]
) -> tuple[list[int], dict[str, int]]:
    """Category ids of the bank to paste, and by each of their names the label in the images' annotations."""
    own = set(bank.categories.values())
    names = dict(_renaming(entry, own) for entry in wanted) if wanted else {name: name for name in own}
    if absent := sorted(names.keys() - own):
        raise ValueError(f"--classes: the bank has no {listed(absent)}; it has {listed(bank.categories.values())}")
    label_of = {name: label for label, name in reversed(classes.items())}
    unknown = sorted(set(names.values()) - label_of.keys())
    if unknown:
        raise ValueError(
            f"the images' labels have no {listed(unknown)}; they have {listed(label_of)}. "
            "Choose or rename what is pasted: --classes NAME or NAME=OTHER"
        )
    chosen = [label for label, name in bank.categories.items() if name in names]
    return chosen, {name: label_of[other] for name, other in names.items()}


def _renaming(entry: str, known: set[str]) -> tuple[str, str]:
    name, equals, other = entry.partition("=")
    return (name, other) if equals and entry not in known else (entry, entry)


def _facts(
    arguments: argparse.Namespace, terse: Terse, settings: PolicySettings, data: LabelledImages, shown: int
) -> Facts:
    bank, name = terse.bank, _policy_name(settings)
    trained = f", state {arguments.state}" if arguments.state else " (not trained: no --state)"
    if terse.policy.uses_boxes and not arguments.state:
        trained = f" (learned from up to {_IMAGES_WITH_BOXES} of the images)"
    about = {
        "bank": f"{arguments.bank} ({len(bank)} foregrounds of {listed(bank.categories.values())})",
        "images": f"{data.origin} ({shown} of {len(data.names)})",
        "image size": f"shorter side {arguments.image_size} px" if arguments.image_size else "original",
        "policy": name + (trained if terse.policy.state_dict() else ""),
        "sampler": arguments.sampler,
        "seed": str(arguments.seed),
    }
    if pool := terse.planner.pool:
        about["backgrounds"] = f"{arguments.backgrounds} (probability {pool.probability:g})"
    if distractors := terse.planner.distractors:
        low, high = distractors.count
        about["distractors"] = f"{arguments.distractor_bank} ({low} to {high} per image)"
    used = _texts(terse.paste) | _texts(settings, name)
    defaults = _texts(PasteConfig()) | _texts(type(settings)(), name)
    changed = {name: text for name, text in used.items() if text != defaults[name]}
    return Facts(about, used, changed, data.dropped)


def _texts(settings: Any, prefix: str = "") -> dict[str, str]:
    return {name: setting_text(value) for name, value, _ in flat_settings(settings, prefix)}
