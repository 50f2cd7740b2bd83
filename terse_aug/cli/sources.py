"""The sources of `terse-aug bank build`, and their flags: from the signatures and docstrings of their builders."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from terse_aug.bank import (
    BOX_MASK_METHODS,
    AnnotationOptions,
    BoxMasks,
    BuildOptions,
    BuildReport,
    ExtractionRules,
    PlainBackground,
    ViewSettings,
)
from terse_aug.bank.inputs.pillow_settings import limited_pixels
from terse_aug.bank.readers import READERS
from terse_aug.cli.cutters import open_cutter
from terse_aug.cli.flags import add_flags, documented, with_flags
from terse_aug.cli.generator_source import build_from_generator
from terse_aug.cli.output import progress_bar

Build = Callable[..., BuildReport]

_BOXES = BoxMasks("grabcut")
_SETTINGS = {"background": PlainBackground(), "views": ViewSettings()}
"""Arguments that are dataclasses, with their defaults; each of their fields has a flag."""
_FLAG_NAMES = {"categories": "category", "modules": "import"}
_SHARED = {"out", "rules", "overwrite", "progress", "boxes", "only_read", "only_planned", "cutter"}
"""Arguments whose flags do not follow from their types."""


def annotation_sources() -> dict[str, Build]:
    """The builders of all sources of annotated images, by name."""
    own = {name: reader.build for name, reader in READERS.items() if reader.options is AnnotationOptions}
    return own | {"detectron2": _build_from_detectron2, "mmdet": _build_from_mmdet}


def add_parsers(sources: argparse._SubParsersAction[Any]) -> None:
    """Add all sources."""
    for name, reader in READERS.items():
        summary = (reader.build.__doc__ or "").partition("\n")[0]
        parser = sources.add_parser(name, help=summary.removeprefix("Build a bank from ").rstrip("."))
        add_source(parser, reader.build, reader.options, reader.unused_rules)
    detectron2 = sources.add_parser("detectron2", help="data sets registered with Detectron2")
    add_source(detectron2, _build_from_detectron2, AnnotationOptions)
    mmdet = sources.add_parser("mmdet", help="the training data set of an MMDetection config")
    add_source(mmdet, _build_from_mmdet, AnnotationOptions)
    generator = sources.add_parser("generator", help="a generator of images and its segmentation branch")
    files = ("image_list", "rejected_sheet", "max_image_pixels", "black_16bit", "white_16bit")
    unused = (*files, "min_box_agreement")
    add_source(generator, build_from_generator, BuildOptions, unused)


def _build_from_detectron2(
    datasets: Sequence[str], out: Path, modules: Sequence[str] = (), **options: Any
) -> BuildReport:
    """Build a bank from data sets registered with Detectron2.

    Args:
        datasets: names of the data sets, as in cfg.DATASETS.TRAIN.
        out: the bank to write.
        modules: Python modules to import, which register them.
        options: see :class:`AnnotationOptions`.
    """
    report: BuildReport = _import("terse_aug_detectron2", modules).build_from_detectron2(datasets, out, **options)
    return report


def _build_from_mmdet(config: Path, out: Path, **options: Any) -> BuildReport:
    """Build a bank from the training data set of an MMDetection config.

    Args:
        config: the config file, or one that a package ships (mmdet::faster_rcnn/NAME.py).
        out: the bank to write.
        options: see :class:`AnnotationOptions`.
    """
    report: BuildReport = _import("terse_aug_mmdet").build_from_mmdet(config, out, **options)
    return report


def _import(integration: str, modules: Sequence[str] = ()) -> Any:
    """Import an integration, and then modules of the user's that register data sets with its framework."""
    sys.path.insert(0, "")  # modules in the working directory
    try:
        imported = importlib.import_module(integration)
        for module in modules:
            importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{error}; this source needs its framework, and the modules that are named") from error
    return imported


def add_source(
    parser: argparse.ArgumentParser,
    build: Build,
    options: type[BuildOptions] | None,
    unused_rules: Collection[str] = (),
) -> None:
    """Add the flags of a builder, see :class:`terse_aug.bank.readers.Reader`, and set ``run`` of the parser.

    ``unused_rules`` and options of that name, such as ``max_image_pixels``, get none.
    """
    parameters = dict(inspect.signature(build).parameters)
    parameters.pop("options", None)
    help_texts = documented(build.__doc__, "Args")
    for name, parameter in parameters.items():
        if name not in _SHARED:
            add_flag(parser, name, parameter.annotation, parameter.default, help_texts.get(name, ""))
    if "cutter" in parameters:
        learned = "what cuts the objects out: a file of terse-aug learn cutter"
        parser.add_argument("--cutter", type=Path, required=True, metavar="FILE", help=learned)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the bank to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bank")
    if "max_image_pixels" not in unused_rules:
        largest = "largest image in pixels; 0 for any size, which may use all memory"
        default = "pillow's limit, 178956970"
        parser.add_argument("--max-image-pixels", type=int, metavar="N", help=f"{largest} (default: {default})")
    names = list(parameters)
    if options is not None:
        _add_options(parser, options, unused_rules)
        names += [setting.name for setting in dataclasses.fields(options)]
    add_flags(parser.add_argument_group("which objects are kept"), ExtractionRules(), without=unused_rules)
    parser.set_defaults(run=lambda arguments: _run(build, names, arguments))


def _add_options(parser: argparse.ArgumentParser, options: type[BuildOptions], unused: Collection[str]) -> None:
    help_texts = {
        name: text for part in options.__mro__ for name, text in documented(part.__doc__, "Attributes").items()
    }
    for setting in dataclasses.fields(options):
        if setting.name not in _SHARED and setting.name not in unused:
            add_flag(parser, setting.name, str(setting.type), setting.default, help_texts.get(setting.name, ""))
    if issubclass(options, AnnotationOptions):
        add = parser.add_argument_group("objects with a box only").add_argument
        methods = ",".join(BOX_MASK_METHODS)
        boxes = "make masks of boxes, also by a cutter from terse-aug learn cutter (default: reject them)"
        add("--boxes", metavar=f"{{{methods},FILE}}", help=boxes)
        quality = "least quality of GrabCut's masks, 0 to 1 (default: %(default)s)"
        add("--min-quality", type=float, default=_BOXES.min_quality, metavar="FRACTION", help=quality)
        fallback = "where GrabCut fails, or a cutter finds nothing in the box or more beside it (default: reject)"
        add("--fallback", choices=("ellipse", "box"), help=fallback)
        add("--accept-unhealthy", action="store_true", help="use a cutter that is marked as collapsed")


def flag_of(name: str) -> str:
    """The flag of an argument of a builder."""
    return "--" + _FLAG_NAMES.get(name, name).replace("_", "-")


class _Once(argparse.Action):
    """Stores a value, and refuses a second one, which would silently replace the first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, flag: str | None = None
    ) -> None:
        given: frozenset[str] = getattr(namespace, "once", frozenset())
        if self.dest in given:
            parser.error(f"argument {flag}: expected once, for all folders together")
        namespace.once = given | {self.dest}
        setattr(namespace, self.dest, values)


def add_flag(parser: argparse._ActionsContainer, name: str, annotation: str, default: Any, help_text: str) -> None:
    """Add the flag of an argument, by its annotation as text."""
    if name in _SETTINGS and annotation.startswith(type(_SETTINGS[name]).__name__):
        add_flags(parser, _SETTINGS[name])
        return
    kwargs: dict[str, Any] = {"help": help_text.replace("%", "%%"), "dest": name}
    if annotation == "bool":
        kwargs["action"] = "store_true"
    elif "Paths" in annotation:
        kwargs |= {"type": Path, "nargs": "+", "action": "extend", "metavar": "PATH"}
        kwargs["help"] += "; several are joined in one bank"
    elif "Path" in annotation:
        kwargs |= {"type": Path, "metavar": "PATH", "action": _Once}
    elif annotation.startswith(("Sequence[str]", "Collection[str]")):
        kwargs |= {"nargs": "+", "metavar": "NAME"}
    else:
        kwargs |= {"type": {"int": int, "float": float, "str": str}[annotation.split(" ")[0]], "metavar": "VALUE"}
    if default is inspect.Parameter.empty:
        kwargs["required"] = True
    elif default == ():
        kwargs["default"] = default
    elif default is not None and annotation != "bool":
        kwargs |= {"default": default, "help": kwargs["help"] + " (default: %(default)s)"}
    parser.add_argument(flag_of(name), **kwargs)


def _run(build: Build, names: list[str], arguments: argparse.Namespace) -> int:
    """Build with a progress bar, and print the report."""
    if getattr(arguments, "max_side", None) == 0:
        arguments.max_side = None
    values = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    values["rules"] = with_flags(ExtractionRules(), arguments)
    if "boxes" in names:
        values["boxes"] = _box_masks(arguments)
    if "cutter" in names:
        values["cutter"] = open_cutter("--cutter", arguments.cutter)
    for name in _SETTINGS.keys() & set(names):
        given = with_flags(_SETTINGS[name], arguments)
        values[name] = None if given == _SETTINGS[name] else given
    with limited_pixels(getattr(arguments, "max_image_pixels", None)), progress_bar() as show:
        values["progress"] = lambda done, total: show("extracting", done, total)
        report = build(**values)
    print(report.summary())
    return 0


def _box_masks(arguments: argparse.Namespace) -> BoxMasks | None:
    boxes, is_named = arguments.boxes, arguments.boxes in (None, *BOX_MASK_METHODS)
    has_quality = arguments.min_quality != _BOXES.min_quality
    if boxes != "grabcut" and (has_quality or (is_named and arguments.fallback)):
        raise ValueError("--min-quality and --fallback are for --boxes grabcut, --fallback also for cutters")
    if is_named and arguments.accept_unhealthy:
        raise ValueError("--accept-unhealthy is for --boxes with the file of a cutter")
    if boxes is None:
        return None
    method = boxes if is_named else open_cutter(f"--boxes ({', '.join(BOX_MASK_METHODS)}, or a cutter)", Path(boxes))
    return BoxMasks(method, arguments.min_quality, arguments.fallback, arguments.accept_unhealthy)
