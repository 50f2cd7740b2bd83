"""The sources of `terse-aug bank build`. Imports the bank."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank import (
    BuildReport,
    PlainBackground,
    build_from_coco,
    build_from_labelme,
    build_from_masks,
    build_from_panoptic,
    build_from_products,
    build_from_rgba,
    build_from_via,
    build_from_video,
    build_from_voc,
    build_from_yolo,
)
from terse_aug.cli.source_flags import (
    add_annotated,
    add_classes,
    add_common,
    add_names,
    add_scene_rules,
    choice,
    files_of,
    rules_of,
    run,
)

_GROUND = PlainBackground()


def add_parsers(sources: argparse._SubParsersAction[Any]) -> None:
    """Add all sources."""
    for add in (
        _add_coco,
        _add_masks,
        _add_rgba,
        _add_products,
        _add_video,
        _add_voc,
        _add_yolo,
        _add_labelme,
        _add_via,
        _add_panoptic,
        _add_detectron2,
        _add_mmdet,
    ):
        add(sources)


def _add_coco(sources: argparse._SubParsersAction[Any]) -> None:
    coco = sources.add_parser("coco", help="a COCO JSON with masks, polygons or RLE")
    coco.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="the COCO file")
    coco.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its images")
    add_annotated(coco, lambda a: build_from_coco(a.annotations, a.images, a.out, **choice(a)))


def _add_voc(sources: argparse._SubParsersAction[Any]) -> None:
    voc = sources.add_parser("voc", help="a folder in Pascal VOC's layout")
    voc.add_argument("--root", type=Path, required=True, metavar="DIR", help="with Annotations and JPEGImages")
    voc.add_argument("--split", metavar="NAME", help="a list in ImageSets, such as train (default: all images)")
    voc.add_argument("--difficult", action="store_true", help="take objects that are marked as difficult")
    add_names(voc)
    add_annotated(
        voc,
        lambda a: build_from_voc(a.root, a.out, split=a.split, difficult=a.difficult, names=a.names, **choice(a)),
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
    add_annotated(yolo, lambda a: build_from_yolo(a.images, a.out, labels=a.labels, names=a.names, **choice(a)))


def _add_labelme(sources: argparse._SubParsersAction[Any]) -> None:
    labelme = sources.add_parser("labelme", help="LabelMe's JSON files")
    labelme.add_argument("--folder", type=Path, required=True, metavar="DIR", help="folder of JSON files")
    labelme.add_argument("--images", type=Path, metavar="DIR", help="folder of images (default: as the files say)")
    add_names(labelme)
    add_annotated(labelme, lambda a: build_from_labelme(a.folder, a.out, images=a.images, names=a.names, **choice(a)))


def _add_via(sources: argparse._SubParsersAction[Any]) -> None:
    via = sources.add_parser("via", help="an export of VGG Image Annotator, JSON or CSV")
    via.add_argument("--file", type=Path, required=True, metavar="FILE", help="the export or the project")
    via.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    via.add_argument("--attribute", metavar="NAME", help="of the regions, their class (default: the most frequent)")
    add_names(via)
    add_annotated(
        via, lambda a: build_from_via(a.file, a.images, a.out, attribute=a.attribute, names=a.names, **choice(a))
    )


def _add_panoptic(sources: argparse._SubParsersAction[Any]) -> None:
    panoptic = sources.add_parser("panoptic", help="COCO's panoptic format; things are cut out")
    panoptic.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="the panoptic JSON")
    panoptic.add_argument("--masks", type=Path, required=True, metavar="DIR", help="folder of its PNG files")
    panoptic.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    add_annotated(panoptic, lambda a: build_from_panoptic(a.annotations, a.masks, a.images, a.out, **choice(a)))


def _add_masks(sources: argparse._SubParsersAction[Any]) -> None:
    masks = sources.add_parser("masks", help="images and instance masks of the same names (Penn-Fudan)")
    masks.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of images NAME.png")
    masks.add_argument(
        "--masks", type=Path, required=True, metavar="DIR", help="folder of masks NAME_mask.png or NAME.png"
    )
    masks.add_argument("--category", default="person", metavar="NAME", help="of all objects (default: %(default)s)")
    add_common(masks)
    add_scene_rules(masks)
    masks.set_defaults(
        run=run,
        build=lambda a: build_from_masks(a.images, a.masks, a.out, category=a.category, **files_of(a)),
    )


def _add_rgba(sources: argparse._SubParsersAction[Any]) -> None:
    rgba = sources.add_parser("rgba", help="a folder of PNG, WebP or TIFF files with transparency")
    rgba.add_argument(
        "--folder", type=Path, required=True, metavar="DIR", help="the folder; its subfolders are classes"
    )
    add_classes(rgba)
    add_common(rgba)
    rgba.set_defaults(
        run=run,
        build=lambda a: build_from_rgba(
            a.folder, a.out, category=a.category, relative_size=a.relative_size, **files_of(a)
        ),
    )


def _add_products(sources: argparse._SubParsersAction[Any]) -> None:
    products = sources.add_parser("products", help="photographs of objects before a plain ground, or with masks")
    products.add_argument("--folder", type=Path, required=True, metavar="DIR", help="its subfolders are classes")
    products.add_argument(
        "--masks", type=Path, metavar="DIR", help="folder of masks NAME.png, object white or black (default: by ground)"
    )
    products.add_argument(
        "--max-spread",
        type=float,
        default=_GROUND.max_spread,
        metavar="DISTANCE",
        help="leave out pictures whose ground varies more, in L*a*b* (default: %(default)s)",
    )
    products.add_argument("--refine", action="store_true", help="refine outlines by GrabCut")
    products.add_argument("--split", action="store_true", help="parts that do not touch are objects of their own")
    add_classes(products)
    add_common(products)
    add_scene_rules(products)
    products.set_defaults(run=run, build=_build_products)


def _build_products(arguments: argparse.Namespace) -> BuildReport:
    a, ground = arguments, PlainBackground(arguments.max_spread, arguments.refine, arguments.split)
    if a.masks is not None and ground != _GROUND:
        raise ValueError("--max-spread, --refine and --split are for pictures without --masks")
    own = {"masks": a.masks} if a.masks is not None else {"ground": ground}
    settings = own | {"category": a.category, "relative_size": a.relative_size}
    return build_from_products(a.folder, a.out, **settings, **files_of(a))


def _add_video(sources: argparse._SubParsersAction[Any]) -> None:
    video = sources.add_parser("video", help="frames of a video: what moves before a still camera, or masks")
    video.add_argument("--video", type=Path, required=True, metavar="PLACE", help="the file, or a folder of frames")
    video.add_argument("--every", type=int, default=30, metavar="N", help="take each n-th frame (default: %(default)s)")
    video.add_argument("--masks", type=Path, metavar="DIR", help="folder of instance masks (default: by motion)")
    video.add_argument("--category", default="object", metavar="NAME", help="of all objects (default: %(default)s)")
    add_common(video, images=False)
    add_scene_rules(video)
    video.set_defaults(run=run, build=_build_video)


def _build_video(arguments: argparse.Namespace) -> BuildReport:
    own = {name: getattr(arguments, name) for name in ("every", "masks", "category", "overwrite", "progress")}
    return build_from_video(arguments.video, arguments.out, rules=rules_of(arguments), **own)


def _add_detectron2(sources: argparse._SubParsersAction[Any]) -> None:
    registered = sources.add_parser("detectron2", help="data sets registered with Detectron2")
    registered.add_argument("--datasets", nargs="+", required=True, metavar="NAME", help="as in cfg.DATASETS.TRAIN")
    registered.add_argument(
        "--import", dest="modules", nargs="+", default=[], metavar="MODULE", help="Python modules that register them"
    )
    add_annotated(registered, _build_detectron2)


def _add_mmdet(sources: argparse._SubParsersAction[Any]) -> None:
    configured = sources.add_parser("mmdet", help="the training data set of an MMDetection config")
    configured.add_argument("--config", type=Path, required=True, metavar="FILE", help="the config")
    add_annotated(configured, _build_mmdet)


def _build_detectron2(arguments: argparse.Namespace) -> BuildReport:
    build: Callable[..., BuildReport] = _adapter("terse_aug_detectron2", arguments.modules).build_from_detectron2
    return build(arguments.datasets, arguments.out, **choice(arguments))


def _build_mmdet(arguments: argparse.Namespace) -> BuildReport:
    build: Callable[..., BuildReport] = _adapter("terse_aug_mmdet", []).build_from_mmdet
    return build(arguments.config, arguments.out, **choice(arguments))


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
