"""What sources of `terse-aug bank build` have in common: flags, and how they are run. Imports the bank."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terse_aug.bank import BOX_MASK_METHODS, BoxMasks, BuildReport, ExtractionRules
from terse_aug.bank.build.workers import MAX_DEFAULT_JOBS
from terse_aug.cli.progress import progress_bar

Build = Callable[[argparse.Namespace], BuildReport]

_DEFAULT = ExtractionRules()
_BOXES = BoxMasks("grabcut")


def add_classes(parser: argparse.ArgumentParser) -> None:
    """For folders of cut-outs."""
    parser.add_argument(
        "--category", default="object", metavar="NAME", help="of files in no subfolder (default: %(default)s)"
    )
    parser.add_argument(
        "--relative-size",
        type=float,
        default=0.3,
        metavar="PART",
        help="natural size: larger side over the square root of a background's area (default: %(default)s)",
    )


def add_annotated(parser: argparse.ArgumentParser, build: Build) -> None:
    """What all sources of annotations have in common."""
    parser.add_argument("--category", nargs="+", metavar="NAME", help="categories to keep (default: all)")
    _add_boxes(parser)
    add_common(parser)
    add_scene_rules(parser)
    _add_box_agreement(parser)
    parser.set_defaults(run=run, build=build)


def _add_boxes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--boxes",
        choices=BOX_MASK_METHODS,
        help="how objects of which only the box is known are cut out (default: they are left out)",
    )
    parser.add_argument(
        "--min-quality",
        type=float,
        default=_BOXES.min_quality,
        metavar="PART",
        help="grabcut: masks of a lower quality are not used, 0 to 1 (default: %(default)s)",
    )
    parser.add_argument(
        "--fallback", choices=("ellipse", "box"), help="grabcut: what is done where it fails (default: left out)"
    )


def _boxes(arguments: argparse.Namespace) -> BoxMasks | None:
    if arguments.boxes != "grabcut" and (arguments.fallback or arguments.min_quality != _BOXES.min_quality):
        raise ValueError("--min-quality and --fallback are for --boxes grabcut")
    if arguments.boxes is None:
        return None
    return BoxMasks(arguments.boxes, arguments.min_quality, arguments.fallback)


def choice(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all builders from annotations take."""
    return {
        "categories": arguments.category,
        "boxes": _boxes(arguments),
        **files_of(arguments),
    }


def add_names(parser: argparse.ArgumentParser) -> None:
    """Names that fix the labels."""
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="classes, labelled 1, 2, ... in this order (default: those met, sorted)",
    )


def add_common(parser: argparse.ArgumentParser, images: bool = True) -> None:
    """What all sources have in common; with those of image files also which are used, and where drops are drawn."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the bank to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bank")
    if images:
        _add_images(parser)
        _add_jobs(parser)
    parser.add_argument(
        "--min-area",
        type=int,
        default=_DEFAULT.min_area,
        metavar="PX",
        help="drop objects with fewer visible pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--min-side",
        type=int,
        default=_DEFAULT.min_side,
        metavar="PX",
        help="drop objects with a shorter side (default: %(default)s)",
    )
    parser.add_argument(
        "--max-side",
        type=int,
        default=_DEFAULT.max_side,
        metavar="PX",
        help="scale larger cut-outs down, 0 for never (default: %(default)s)",
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rejected-sheet",
        type=Path,
        metavar="PLACE",
        help="draw what was left out, by reason: NAME.png for one sheet, or a folder (default: no pictures)",
    )
    parser.add_argument(
        "--image-list",
        type=Path,
        metavar="FILE",
        help="text file of image names to use, one a line (default: all)",
    )


def _add_jobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help=f"number of worker processes (default: one per core, at most {MAX_DEFAULT_JOBS}, for builds that take a "
        "few seconds or more)",
    )


def add_scene_rules(parser: argparse.ArgumentParser) -> None:
    """For objects that are cut out of an image."""
    parser.add_argument(
        "--drop-truncated", action="store_true", help="drop objects that touch the border of their image"
    )


def _add_box_agreement(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-box-agreement",
        type=float,
        default=_DEFAULT.min_box_agreement,
        metavar="IOU",
        help="drop objects whose mask and box overlap less (default: %(default)s)",
    )


def rules_of(arguments: argparse.Namespace) -> ExtractionRules:
    """What is kept."""
    return ExtractionRules(
        min_area=arguments.min_area,
        min_side=arguments.min_side,
        max_side=arguments.max_side or None,
        min_box_agreement=getattr(arguments, "min_box_agreement", _DEFAULT.min_box_agreement),
        drop_truncated=getattr(arguments, "drop_truncated", False),
    )


def files_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """What builders take that cut out by files alone."""
    names = ("image_list", "rejected_sheet", "overwrite", "progress", "jobs")
    return {name: getattr(arguments, name) for name in names} | {"rules": rules_of(arguments)}


def run(arguments: argparse.Namespace) -> int:
    """Build with a progress bar, and say what came of it."""
    with progress_bar() as tell:
        arguments.progress = lambda done, total: tell("cutting out", done, total)
        report = arguments.build(arguments)
    print(report.summary())
    return 0
