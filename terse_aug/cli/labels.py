"""The flags of labelled images, in every annotation format that a bank can be built from, and reading them."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terse_aug.cli.flags import documented
from terse_aug.cli.sources import add_flag, annotation_sources, flag_of
from terse_aug.preview import LabelledImages, open_annotations, open_coco, open_masks

_OF_MASKS = ("images", "masks", "category")
_CATEGORY = "object"
_NAMES = "class names in the order of their labels (default: those that occur, sorted); yolo: or the file with them"


def add_label_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--images``, ``--annotations``, ``--masks``, ``--category``, ``--source`` and the flags of all sources."""
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="folder of images to paste on")
    add("--annotations", type=Path, metavar="JSON", help="their labels: a COCO file, or that of another --source")
    add("--masks", type=Path, metavar="DIR", help="their labels: instance masks (Penn-Fudan)")
    category = f"of all objects, with --masks, or with via if its regions have no class (default: {_CATEGORY})"
    add("--category", metavar="NAME", help=category)
    group = parser.add_argument_group("labels of other formats, by the flags of terse-aug bank build SOURCE")
    sources = annotation_sources()
    group.add_argument(
        "--source", choices=["masks", *sources], help="the format (default: coco, or masks with --masks)"
    )
    known = set(_OF_MASKS) | {"annotations"}
    for build in sources.values():
        help_texts = documented(build.__doc__, "Args")
        for name, parameter in _parameters(build).items():
            if name not in known:
                known.add(name)
                help_text = _NAMES if name == "names" else help_texts.get(name, "")
                add_flag(group, name, _type_of(name, parameter), None, help_text)


def open_labels(arguments: argparse.Namespace) -> LabelledImages:
    """The labelled images that the flags of :func:`add_label_flags` stand for.

    Raises:
        ValueError: a flag is missing, or is none of the source's; and as the source's builder.
        OSError: likewise.
    """
    sources = annotation_sources()
    source = arguments.source or ("masks" if arguments.masks is not None else "coco")
    every = {*_OF_MASKS, "annotations", *(name for build in sources.values() for name in _parameters(build))}
    given = {name: value for name in every if (value := getattr(arguments, name)) not in (None, False)}
    if source == "masks":
        _check_flags(source, given, dict.fromkeys(_OF_MASKS[:2], True) | {"category": False})
        return open_masks(given["images"], given["masks"], given.get("category", _CATEGORY))
    parameters, category = _parameters(sources[source]), None
    if source == "via":
        category = given.pop("category", None)
    _check_flags(source, given, {name: own.default is own.empty for name, own in parameters.items()})
    if source == "coco":
        return open_coco(given["annotations"], given["images"])
    values = {name: _converted(value, parameters[name]) for name, value in given.items()}
    if category is None:
        return open_annotations(sources[source], **values)
    data = open_annotations(sources[source], **values, categories=[category])
    if set(data.classes.values()) - {category, *given.get("names", ())}:
        raise ValueError(
            f"--category {category}: expected regions without a class, got {', '.join(data.classes.values())}; "
            "leave it out, or name the classes to paste by --classes"
        )
    return data


def _parameters(build: Any) -> dict[str, inspect.Parameter]:
    """The arguments of a builder that say what is read."""
    parameters = dict(inspect.signature(build).parameters)
    return {name: own for name, own in parameters.items() if name not in ("out", "options")}


def _type_of(name: str, parameter: inspect.Parameter) -> str:
    if name == "names":  # a file for one source, names for others
        return "Sequence[str]"
    return str(parameter.annotation).replace("Paths", "Path")  # one data set is read


def _converted(value: Any, parameter: inspect.Parameter) -> Any:
    is_file = isinstance(value, list) and len(value) == 1 and "Path" in str(parameter.annotation)
    return Path(value[0]) if is_file else value


def _check_flags(source: str, given: Mapping[str, Any], needed: Mapping[str, bool]) -> None:
    """Check flags against those of a source, and whether each is required."""
    if unknown := sorted(given.keys() - needed.keys()):
        allowed = ", ".join(map(flag_of, needed))
        raise ValueError(f"{flag_of(unknown[0])}: not allowed with --source {source}, whose flags are {allowed}")
    if missing := [name for name, required in needed.items() if required and name not in given]:
        raise ValueError(
            f"expected {' and '.join(map(flag_of, missing))} for --source {source}; other formats by --source"
        )
