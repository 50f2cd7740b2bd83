"""Errors of a reader whose input has the format of another one name that one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from terse_aug.bank.inputs.formats import Recognized, recognize

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_SOURCE_OF = {
    "COCO": "coco",
    "COCO panoptic": "panoptic",
    "CVAT for images": "cvat",
    "Label Studio": "label-studio",
    "LabelMe": "labelme",
    "Pascal VOC": "voc",
    "SA-1B": "sa1b",
    "VIA": "via",
    "YOLO": "yolo",
}
_NOT_INPUTS = ("out", "names")


def names_other_formats(build: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a ``build_from_<source>``: if it fails, and its files have another format, the error names the source.

    Only ``ValueError`` and ``FileNotFoundError`` are extended, and nothing is read unless one of them occurs.
    """
    source = build.__name__.removeprefix("build_from_").replace("_", "-")
    signature = inspect.signature(build)

    @functools.wraps(build)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return build(*args, **kwargs)
        except (ValueError, FileNotFoundError) as error:
            given = signature.bind_partial(*args, **kwargs).arguments
            paths = [own for name, own in given.items() if name not in _NOT_INPUTS and isinstance(own, str | Path)]
            hint = _hint(source, [found for path in paths for found in recognize(Path(path))])
            if not hint:
                raise
            kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
            raise kind(f"{error}. {hint}") from error

    return checked


def _hint(source: str, found: list[Recognized]) -> str:
    """A sentence about the first recognised file; empty if some file has the format of the chosen source."""
    if not found or any(_SOURCE_OF.get(own.format) == source for own in found):
        return ""
    path, name = found[0]
    other = _SOURCE_OF.get(name)
    from terse_aug.bank.readers import READERS  # which imports the readers, and so this module

    if other in READERS:
        return f"{path} has the format {name}: use source {other} (terse-aug bank build {other})"
    return f"{path} has the format {name}, which no source reads: export it as a COCO JSON"
