"""`terse-aug bank build|info`: build a bank of cut-outs, say what is in one. Imports rich and the bank."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from terse_aug.bank import (
    WAYS,
    BoxMasks,
    BuildReport,
    CutRules,
    ForegroundBank,
    build_from_coco,
    build_from_labelme,
    build_from_masks,
    build_from_panoptic,
    build_from_rgba,
    build_from_via,
    build_from_voc,
    build_from_yolo,
)

_DEFAULT = CutRules()
_BOXES = BoxMasks("grabcut")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `bank` to the commands."""
    bank = subparsers.add_parser("bank", help="build a bank of cut-out objects, or look into one")
    actions = bank.add_subparsers(title="actions", dest="action", required=True, metavar="ACTION")
    build = actions.add_parser("build", help="cut objects out of annotated images")
    sources = build.add_subparsers(title="sources", dest="source", required=True, metavar="SOURCE")
    _add_coco(sources)
    _add_masks(sources)
    _add_rgba(sources)
    _add_voc(sources)
    _add_yolo(sources)
    _add_labelme(sources)
    _add_via(sources)
    _add_panoptic(sources)
    _add_detectron2(sources)
    _add_mmdet(sources)
    info = actions.add_parser("info", help="say what is in a bank")
    info.add_argument("bank", type=Path, help="the bank file")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)


def _add_coco(sources: argparse._SubParsersAction[Any]) -> None:
    coco = sources.add_parser("coco", help="a COCO JSON with masks, polygons or RLE")
    coco.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="the COCO file")
    coco.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its images")
    _add_annotated(coco, _build_coco)


def _add_voc(sources: argparse._SubParsersAction[Any]) -> None:
    voc = sources.add_parser("voc", help="a folder in Pascal VOC's layout")
    voc.add_argument("--root", type=Path, required=True, metavar="DIR", help="with Annotations and JPEGImages")
    voc.add_argument("--split", metavar="NAME", help="a list in ImageSets, such as train (default: all images)")
    voc.add_argument("--difficult", action="store_true", help="take objects that are marked as difficult")
    _add_annotated(voc, _build_voc)


def _add_yolo(sources: argparse._SubParsersAction[Any]) -> None:
    yolo = sources.add_parser("yolo", help="YOLO's text files, boxes or polygons")
    yolo.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    yolo.add_argument(
        "--labels", type=Path, metavar="DIR", help="folder of text files (default: images replaced by labels)"
    )
    yolo.add_argument(
        "--names", type=Path, metavar="FILE", help="data.yaml or classes.txt (default: one beside the folders)"
    )
    _add_annotated(yolo, _build_yolo)


def _add_labelme(sources: argparse._SubParsersAction[Any]) -> None:
    labelme = sources.add_parser("labelme", help="LabelMe's JSON files")
    labelme.add_argument("--folder", type=Path, required=True, metavar="DIR", help="folder of JSON files")
    labelme.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: as the files say)")
    _add_annotated(labelme, _build_labelme)


def _add_via(sources: argparse._SubParsersAction[Any]) -> None:
    via = sources.add_parser("via", help="an export of VGG Image Annotator, JSON or CSV")
    via.add_argument("--file", type=Path, required=True, metavar="FILE", help="the export or the project")
    via.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    via.add_argument("--attribute", metavar="NAME", help="of the regions, their class (default: the most frequent)")
    _add_annotated(via, _build_via)


def _add_panoptic(sources: argparse._SubParsersAction[Any]) -> None:
    panoptic = sources.add_parser("panoptic", help="COCO's panoptic format; things are cut out")
    panoptic.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="the panoptic JSON")
    panoptic.add_argument("--masks", type=Path, required=True, metavar="DIR", help="folder of its PNG files")
    panoptic.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    _add_annotated(panoptic, _build_panoptic)


def _add_annotated(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """What all sources of annotations have in common."""
    parser.add_argument("--category", nargs="+", metavar="NAME", help="categories to keep (default: all)")
    _add_boxes(parser)
    _add_common(parser)
    _add_scene_rules(parser)
    _add_box_agreement(parser)
    parser.set_defaults(run=run)


def _add_boxes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--boxes",
        choices=WAYS,
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
        "--otherwise", choices=("ellipse", "box"), help="grabcut: what is done where it fails (default: left out)"
    )


def _boxes(arguments: argparse.Namespace) -> BoxMasks | None:
    if arguments.boxes != "grabcut" and (arguments.otherwise or arguments.min_quality != _BOXES.min_quality):
        raise ValueError("--min-quality and --otherwise are for --boxes grabcut")
    if arguments.boxes is None:
        return None
    return BoxMasks(arguments.boxes, arguments.min_quality, arguments.otherwise)


def _choice(arguments: argparse.Namespace) -> dict[str, Any]:
    """What all builders from annotations take."""
    return {
        "categories": arguments.category,
        "include": arguments.include,
        "boxes": _boxes(arguments),
        "rules": _rules(arguments),
        "overwrite": arguments.overwrite,
    }


def _add_detectron2(sources: argparse._SubParsersAction[Any]) -> None:
    registered = sources.add_parser("detectron2", help="data sets registered with Detectron2, with masks")
    registered.add_argument("--datasets", nargs="+", required=True, metavar="NAME", help="as in cfg.DATASETS.TRAIN")
    registered.add_argument(
        "--import", dest="modules", nargs="+", default=[], metavar="MODULE", help="Python modules that register them"
    )
    registered.add_argument("--category", nargs="+", metavar="NAME", help="categories to keep (default: all)")
    _add_common(registered)
    _add_scene_rules(registered)
    _add_box_agreement(registered)
    registered.set_defaults(run=_build_detectron2)


def _add_mmdet(sources: argparse._SubParsersAction[Any]) -> None:
    configured = sources.add_parser("mmdet", help="the training data set of an MMDetection config, with masks")
    configured.add_argument("--config", type=Path, required=True, metavar="FILE", help="the config")
    configured.add_argument("--category", nargs="+", metavar="NAME", help="categories to keep (default: all)")
    _add_common(configured)
    _add_scene_rules(configured)
    _add_box_agreement(configured)
    configured.set_defaults(run=_build_mmdet)


def _add_masks(sources: argparse._SubParsersAction[Any]) -> None:
    masks = sources.add_parser("masks", help="images and instance masks of the same names (Penn-Fudan)")
    masks.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images NAME.png")
    masks.add_argument(
        "--masks", type=Path, required=True, metavar="DIR", help="folder of masks NAME_mask.png or NAME.png"
    )
    masks.add_argument("--category", default="person", metavar="NAME", help="of all objects (default: %(default)s)")
    _add_common(masks)
    _add_scene_rules(masks)
    masks.set_defaults(run=_build_masks)


def _add_rgba(sources: argparse._SubParsersAction[Any]) -> None:
    rgba = sources.add_parser("rgba", help="a folder of PNG, WebP or TIFF files with transparency")
    rgba.add_argument(
        "--folder", type=Path, required=True, metavar="DIR", help="the folder; its subfolders are classes"
    )
    rgba.add_argument(
        "--category", default="object", metavar="NAME", help="of files in no subfolder (default: %(default)s)"
    )
    rgba.add_argument(
        "--extent",
        type=float,
        default=0.3,
        metavar="PART",
        help="natural size: larger side over the square root of a background's area (default: %(default)s)",
    )
    _add_common(rgba)
    rgba.set_defaults(run=_build_rgba)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the bank to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bank")
    parser.add_argument(
        "--include",
        type=Path,
        metavar="FILE",
        help="text file of image names to use, one a line (default: all)",
    )
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


def _add_scene_rules(parser: argparse.ArgumentParser) -> None:
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


def _rules(arguments: argparse.Namespace) -> CutRules:
    return CutRules(
        min_area=arguments.min_area,
        min_side=arguments.min_side,
        max_side=arguments.max_side or None,
        min_box_agreement=getattr(arguments, "min_box_agreement", _DEFAULT.min_box_agreement),
        drop_truncated=getattr(arguments, "drop_truncated", False),
    )


def _build_coco(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build_from_coco(
            arguments.annotations, arguments.images, arguments.out, progress=progress, **_choice(arguments)
        )
    return _print_report(report)


def _build_voc(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build_from_voc(
            arguments.root,
            arguments.out,
            split=arguments.split,
            difficult=arguments.difficult,
            progress=progress,
            **_choice(arguments),
        )
    return _print_report(report)


def _build_yolo(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build_from_yolo(
            arguments.images,
            arguments.out,
            labels=arguments.labels,
            names=arguments.names,
            progress=progress,
            **_choice(arguments),
        )
    return _print_report(report)


def _build_labelme(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build_from_labelme(
            arguments.folder, arguments.out, images=arguments.images, progress=progress, **_choice(arguments)
        )
    return _print_report(report)


def _build_via(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build_from_via(
            arguments.file,
            arguments.images,
            arguments.out,
            attribute=arguments.attribute,
            progress=progress,
            **_choice(arguments),
        )
    return _print_report(report)


def _build_panoptic(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build_from_panoptic(
            arguments.annotations,
            arguments.masks,
            arguments.images,
            arguments.out,
            progress=progress,
            **_choice(arguments),
        )
    return _print_report(report)


def _build_masks(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build_from_masks(
            arguments.images,
            arguments.masks,
            arguments.out,
            category=arguments.category,
            include=arguments.include,
            rules=_rules(arguments),
            overwrite=arguments.overwrite,
            progress=progress,
        )
    return _print_report(report)


def _build_rgba(arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build_from_rgba(
            arguments.folder,
            arguments.out,
            category=arguments.category,
            extent=arguments.extent,
            include=arguments.include,
            rules=_rules(arguments),
            overwrite=arguments.overwrite,
            progress=progress,
        )
    return _print_report(report)


def _build_detectron2(arguments: argparse.Namespace) -> int:
    adapter = _adapter("terse_aug_detectron2", arguments.modules)
    return _build_from_host(adapter.build_from_detectron2, arguments.datasets, arguments)


def _build_mmdet(arguments: argparse.Namespace) -> int:
    adapter = _adapter("terse_aug_mmdet", [])
    return _build_from_host(adapter.build_from_mmdet, arguments.config, arguments)


def _adapter(name: str, modules: Sequence[str]) -> Any:
    """A host's adapter, and modules of the user's."""
    sys.path.insert(0, "")  # they lie where the command is given
    try:
        adapter = importlib.import_module(name)
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}; this source needs its host, and the modules that are named") from error
    return adapter


def _build_from_host(build: Callable[..., BuildReport], source: Any, arguments: argparse.Namespace) -> int:
    with _progress() as progress:
        report = build(
            source,
            arguments.out,
            categories=arguments.category,
            include=arguments.include,
            rules=_rules(arguments),
            overwrite=arguments.overwrite,
            progress=progress,
        )
    return _print_report(report)


def _info(arguments: argparse.Namespace) -> int:
    with ForegroundBank.open(arguments.bank) as bank:
        info = bank.info()
    print(json.dumps(info, indent=2, ensure_ascii=False) if arguments.json else _info_text(info))
    return 0


def _info_text(info: dict[str, Any]) -> str:
    lines = [
        f"{info['path']}: {info['cut_outs']} cut-outs, {info['bytes'] / 1e6:.1f} MB, "
        f"format version {info['format_version']}",
        f"fingerprint {info['fingerprint']}",
    ]
    for measure in ("height_px", "width_px", "extent"):
        numbers = ", ".join(f"{name} {value:g}" for name, value in info[measure].items())
        lines.append(f"{measure.replace('_', ' in '):<13} {numbers}")
    if info["keypoint_names"]:
        lines.append(f"keypoints     {', '.join(info['keypoint_names'])}")
    lines.append("cut-outs per category")
    lines += [f"{count:>8}  {name}" for name, count in info["cut_outs_per_category"].items()]
    dropped = info["built"].get("dropped")
    if dropped:
        lines.append("dropped when it was built")
        lines += [f"{count:>8}  {reason}" for reason, count in dropped.items()]
    return "\n".join(lines)


def _print_report(report: BuildReport) -> int:
    print(report.summary())
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; nothing where that is no terminal."""
    columns = (TextColumn("cutting out"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
