"""`terse-aug preview`: a contact sheet of what would enter the model. Imports the preview, and so torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank import ForegroundBank
from terse_aug.cli.flags import add_flags, flat_settings, setting_text, with_flags
from terse_aug.cli.output import HTML, checked_output, write_whole
from terse_aug.config import TerseConfig
from terse_aug.data.class_mapping import check_distractors
from terse_aug.policies import make_policy
from terse_aug.preview import (
    STATE_KEY,
    Facts,
    LabelledImages,
    load_policy_state,
    open_coco,
    open_masks,
    preview_samples,
    render_html,
    render_png,
    resize_sample,
    saved_classes,
    saved_policy,
)
from terse_aug.terse import Terse
from terse_aug.viz.text import printable

_SUFFIXES = {"out": HTML, "png": (".png",)}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `preview` to the commands."""
    parser = subparsers.add_parser("preview", help="show images with objects of a bank pasted on, and their labels")
    parser.add_argument("bank", type=Path, help="the bank file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images to paste on")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--annotations", type=Path, metavar="JSON", help="their labels: a COCO file")
    labels.add_argument("--masks", type=Path, metavar="DIR", help="their labels: instance masks (Penn-Fudan)")
    parser.add_argument(
        "--category", default="person", metavar="NAME", help="with --masks: of all objects (default: %(default)s)"
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="categories of the bank to paste; NAME=OTHER where the images' labels call it OTHER (default: all)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="HTML", help="the page to write")
    parser.add_argument("--png", type=Path, metavar="PNG", help="write the sheet as a picture too")
    parser.add_argument("--count", type=int, default=12, metavar="N", help="images to show (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn (default: %(default)s)")
    parser.add_argument("--image-size", type=int, metavar="PX", help="scale images to this shorter side (default: not)")
    parser.add_argument(
        "--policy",
        help="random, critic or learned (default: random, with --state the one in it; deterministic has to be named)",
    )
    parser.add_argument(
        "--state",
        type=Path,
        metavar="FILE",
        help=f"trained adversary: torch.save of terse.state_dict(), or a checkpoint with it under {STATE_KEY!r}",
    )
    parser.add_argument(
        "--backgrounds", type=Path, metavar="DIR", help="pool of backgrounds, for --background-probability"
    )
    parser.add_argument(
        "--distractor-bank",
        type=Path,
        metavar="BANK",
        help="objects of classes that are not labelled, for --distractors",
    )
    add_flags(parser.add_argument_group("settings of the pasting"), TerseConfig())
    parser.set_defaults(run=_preview)


def _preview(arguments: argparse.Namespace) -> int:
    outputs = _outputs(arguments)
    if arguments.image_size is not None and arguments.image_size < 1:
        raise ValueError(f"--image-size: expected at least 1 px, got {arguments.image_size}")
    config = with_flags(TerseConfig(), arguments)
    with ForegroundBank.open(arguments.bank) as bank:
        data = _open_data(arguments)
        terse = _terse(arguments, bank, data, config)
        samples = data.choose(arguments.count, arguments.seed)
        if arguments.image_size is not None:
            samples = (resize_sample(sample, arguments.image_size) for sample in samples)
        preview = preview_samples(terse, samples, data.classes, arguments.seed)
        facts = _facts(arguments, terse, data, len(preview.pairs))
    write_whole(outputs["out"], render_html(preview, facts).encode("utf-8"))
    if "png" in outputs:
        write_whole(outputs["png"], render_png(preview, facts))
    counts = ", ".join(f"{count} {name}" for name, count in preview.counts.items())
    print(printable(f"{' and '.join(map(str, outputs.values()))}: {counts}"))
    return 0


def _outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """The files to write."""
    outputs = {name: path for name in _SUFFIXES if (path := getattr(arguments, name)) is not None}
    for name, path in outputs.items():
        checked_output(f"--{name}", path, _SUFFIXES[name])
    return outputs


def _open_data(arguments: argparse.Namespace) -> LabelledImages:
    if arguments.masks is not None:
        return open_masks(arguments.images, arguments.masks, arguments.category)
    return open_coco(arguments.annotations, arguments.images)


def _terse(arguments: argparse.Namespace, bank: ForegroundBank, data: LabelledImages, config: TerseConfig) -> Terse:
    name = _policy_name(arguments)
    policy = make_policy(name, config, arguments.seed)
    if policy.needs_model:
        raise ValueError(f"--policy {name} asks a detector, which a preview does not have; use random or critic")
    if arguments.state is not None and not policy.learns:
        raise ValueError(f"--policy {name} learns nothing, so it has no use for --state; leave one of them out")
    if config.robust != "none":
        raise ValueError(f"--robust {config.robust}: a preview shows composites before they are perturbed")
    if arguments.state is not None:
        policy = make_policy(name, config, arguments.seed, saved_classes(arguments.state))
    chosen, labels = _translation(arguments.classes, bank, data.classes)
    distractors = None if arguments.distractor_bank is None else ForegroundBank.open(arguments.distractor_bank)
    if distractors is not None:
        check_distractors(distractors, data.classes.values())
    terse = Terse(
        bank.select(categories=chosen),
        policy,
        seed=arguments.seed,
        classes=labels,
        backgrounds=arguments.backgrounds,
        distractor_bank=distractors,
        config=config,
    )
    if arguments.state is not None:
        load_policy_state(terse, arguments.state)
    return terse


def _policy_name(arguments: argparse.Namespace) -> str:
    name: str = arguments.policy or (saved_policy(arguments.state) if arguments.state else "random")
    return name


def _translation(
    wanted: Sequence[str] | None, bank: ForegroundBank, classes: dict[int, str]
) -> tuple[list[int], dict[str, int]]:
    """Labels of the bank to paste, and the label that the images give to each of their names."""
    names = dict(_renaming(entry, bank) for entry in wanted) if wanted else {n: n for n in bank.categories.values()}
    label_of = {name: label for label, name in reversed(classes.items())}
    absent = [name for name in names if name not in bank.categories.values()]
    if absent:
        raise ValueError(f"--classes: the bank has no {_listed(absent)}; it has {_listed(bank.categories.values())}")
    unknown = [name for name, other in names.items() if other not in label_of]
    if unknown:
        raise ValueError(
            f"the images' labels know no {_listed(names[name] for name in unknown)}; they know "
            f"{_listed(label_of)}. Choose or rename what is pasted: --classes NAME or NAME=OTHER"
        )
    chosen = [label for label, name in bank.categories.items() if name in names]
    return chosen, {name: label_of[other] for name, other in names.items()}


def _renaming(entry: str, bank: ForegroundBank) -> tuple[str, str]:
    name, equals, other = entry.partition("=")
    return (name, other) if equals and entry not in bank.categories.values() else (entry, entry)


def _listed(names: Any) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")


def _facts(arguments: argparse.Namespace, terse: Terse, data: LabelledImages, shown: int) -> Facts:
    bank = terse.bank
    size = "as they are" if arguments.image_size is None else f"shorter side {arguments.image_size} px"
    policy = _policy_name(arguments)
    untrained = " (not trained: no --state)" if terse.policy.learns and not arguments.state else ""
    about = {
        "bank": f"{arguments.bank} ({len(bank)} cut-outs of {_listed(bank.categories.values())})",
        "images": f"{data.origin} ({shown} of {len(data.names)})",
        "image size": size,
        "policy": f"{policy}, state {arguments.state}" if arguments.state else policy + untrained,
        "seed": str(arguments.seed),
    }
    settings = {name: setting_text(value) for name, value, _ in flat_settings(terse.config)}
    usual = {name: setting_text(value) for name, value, _ in flat_settings(TerseConfig())}
    changed = tuple(name for name in settings if settings[name] != usual[name])
    return Facts(about, settings, changed, data.dropped)
