"""The sources of `terse-aug bank build`. Imports rich and the bank."""

from __future__ import annotations

import argparse
import importlib
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
    build_from_coco,
    build_from_labelme,
    build_from_masks,
    build_from_panoptic,
    build_from_rgba,
    build_from_via,
    build_from_voc,
    build_from_yolo,
)

Build = Callable[[argparse.Namespace], BuildReport]

_DEFAULT = CutRules()
_BOXES = BoxMasks("grabcut")


def add_parsers(sources: argparse._SubParsersAction[Any]) -> None:
    """Add all sources."""
    for add in (
        _add_coco,
        _add_masks,
        _add_rgba,
        _add_voc,
        _add_yolo,
        _add_labelme,
        _add_via,
        _add_panoptic,
        _add_detectron2,
        _add_mmdet,
    ):
        add(sources)


def _run(arguments: argparse.Namespace) -> int:
    """Build with a progress bar, and say what came of it."""
    with _progress() as arguments.progress:
        report = arguments.build(arguments)
    print(report.summary())
    return 0


def _add_coco(sources: argparse._SubParsersAction[Any]) -> None:
    coco = sources.add_parser("coco", help="a COCO JSON with masks, polygons or RLE")
    coco.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="the COCO file")
    coco.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its images")
    _add_annotated(coco, lambda a: build_from_coco(a.annotations, a.images, a.out, **_choice(a)))


def _add_voc(sources: argparse._SubParsersAction[Any]) -> None:
    voc = sources.add_parser("voc", help="a folder in Pascal VOC's layout")
    voc.add_argument("--root", type=Path, required=True, metavar="DIR", help="with Annotations and JPEGImages")
    voc.add_argument("--split", metavar="NAME", help="a list in ImageSets, such as train (default: all images)")
    voc.add_argument("--difficult", action="store_true", help="take objects that are marked as difficult")
    _add_names(voc)
    _add_annotated(
        voc, lambda a: build_from_voc(a.root, a.out, split=a.split, difficult=a.difficult, names=a.names, **_choice(a))
    )


def _add_yolo(sources: argparse._SubParsersAction[Any]) -> None:
    yolo = sources.add_parser("yolo", help="YOLO's text files, boxes or polygons")
    yolo.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    yolo.add_argument(
        "--labels", type=Path, metavar="DIR", help="folder of text files (default: images replaced by labels)"
    )
    yolo.add_argument(
        "--names", type=Path, metavar="FILE", help="data.yaml or classes.txt (default: one beside the folders)"
    )
    _add_annotated(yolo, lambda a: build_from_yolo(a.images, a.out, labels=a.labels, names=a.names, **_choice(a)))


def _add_labelme(sources: argparse._SubParsersAction[Any]) -> None:
    labelme = sources.add_parser("labelme", help="LabelMe's JSON files")
    labelme.add_argument("--folder", type=Path, required=True, metavar="DIR", help="folder of JSON files")
    labelme.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: as the files say)")
    _add_names(labelme)
    _add_annotated(labelme, lambda a: build_from_labelme(a.folder, a.out, images=a.images, names=a.names, **_choice(a)))


def _add_via(sources: argparse._SubParsersAction[Any]) -> None:
    via = sources.add_parser("via", help="an export of VGG Image Annotator, JSON or CSV")
    via.add_argument("--file", type=Path, required=True, metavar="FILE", help="the export or the project")
    via.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    via.add_argument("--attribute", metavar="NAME", help="of the regions, their class (default: the most frequent)")
    _add_names(via)
    _add_annotated(
        via, lambda a: build_from_via(a.file, a.images, a.out, attribute=a.attribute, names=a.names, **_choice(a))
    )


def _add_panoptic(sources: argparse._SubParsersAction[Any]) -> None:
    panoptic = sources.add_parser("panoptic", help="COCO's panoptic format; things are cut out")
    panoptic.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="the panoptic JSON")
    panoptic.add_argument("--masks", type=Path, required=True, metavar="DIR", help="folder of its PNG files")
    panoptic.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    _add_annotated(panoptic, lambda a: build_from_panoptic(a.annotations, a.masks, a.images, a.out, **_choice(a)))


def _add_masks(sources: argparse._SubParsersAction[Any]) -> None:
    masks = sources.add_parser("masks", help="images and instance masks of the same names (Penn-Fudan)")
    masks.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images NAME.png")
    masks.add_argument(
        "--masks", type=Path, required=True, metavar="DIR", help="folder of masks NAME_mask.png or NAME.png"
    )
    masks.add_argument("--category", default="person", metavar="NAME", help="of all objects (default: %(default)s)")
    _add_common(masks)
    _add_scene_rules(masks)
    masks.set_defaults(
        run=_run,
        build=lambda a: build_from_masks(a.images, a.masks, a.out, category=a.category, **_of_files(a)),
    )


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
    rgba.set_defaults(
        run=_run,
        build=lambda a: build_from_rgba(a.folder, a.out, category=a.category, extent=a.extent, **_of_files(a)),
    )


def _add_detectron2(sources: argparse._SubParsersAction[Any]) -> None:
    registered = sources.add_parser("detectron2", help="data sets registered with Detectron2")
    registered.add_argument("--datasets", nargs="+", required=True, metavar="NAME", help="as in cfg.DATASETS.TRAIN")
    registered.add_argument(
        "--import", dest="modules", nargs="+", default=[], metavar="MODULE", help="Python modules that register them"
    )
    _add_annotated(registered, _build_detectron2)


def _add_mmdet(sources: argparse._SubParsersAction[Any]) -> None:
    configured = sources.add_parser("mmdet", help="the training data set of an MMDetection config")
    configured.add_argument("--config", type=Path, required=True, metavar="FILE", help="the config")
    _add_annotated(configured, _build_mmdet)


def _add_annotated(parser: argparse.ArgumentParser, build: Build) -> None:
    """What all sources of annotations have in common."""
    parser.add_argument("--category", nargs="+", metavar="NAME", help="categories to keep (default: all)")
    _add_boxes(parser)
    _add_common(parser)
    _add_scene_rules(parser)
    _add_box_agreement(parser)
    parser.set_defaults(run=_run, build=build)


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
        "boxes": _boxes(arguments),
        **_of_files(arguments),
    }


def _add_names(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="classes, labelled 1, 2, ... in this order (default: those met, sorted)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the bank to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bank")
    parser.add_argument(
        "--drops",
        type=Path,
        metavar="PLACE",
        help="draw what was left out, by reason: NAME.png for one sheet, or a folder (default: no pictures)",
    )
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


def _of_files(arguments: argparse.Namespace) -> dict[str, Any]:
    """What builders take that cut out by files alone."""
    names = ("include", "drops", "overwrite", "progress")
    return {name: getattr(arguments, name) for name in names} | {"rules": _rules(arguments)}


def _build_detectron2(arguments: argparse.Namespace) -> BuildReport:
    build: Callable[..., BuildReport] = _adapter("terse_aug_detectron2", arguments.modules).build_from_detectron2
    return build(arguments.datasets, arguments.out, **_choice(arguments))


def _build_mmdet(arguments: argparse.Namespace) -> BuildReport:
    build: Callable[..., BuildReport] = _adapter("terse_aug_mmdet", []).build_from_mmdet
    return build(arguments.config, arguments.out, **_choice(arguments))


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


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; nothing where that is no terminal."""
    columns = (TextColumn("cutting out"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("images", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
