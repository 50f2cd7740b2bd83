"""Errors of a reader whose input has the format of another one name that one."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from terse_aug.bank.inputs.formats import Recognized, recognize
from terse_aug.bank.segmenters.cutter import UnhealthyCutterError

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


def names_other_formats(build: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate a ``build_from_<source>``: if it fails, and its files have another format, the error names the source.

    Files are looked for in the arguments that are annotated as ``Path``. Errors about a missing one name no source.
    Only ``ValueError`` and ``FileNotFoundError`` are extended, and nothing is read unless one of them occurs.
    """
    source = build.__name__.removeprefix("build_from_").replace("_", "-")
    signature = inspect.signature(build)
    inputs = [name for name, own in signature.parameters.items() if "Path" in str(own.annotation) and name != "out"]

    @functools.wraps(build)
    def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return build(*args, **kwargs)
        except UnhealthyCutterError:  # whatever the files are
            raise
        except (ValueError, FileNotFoundError) as error:
            given = signature.bind_partial(*args, **kwargs).arguments
            if isinstance(error, FileNotFoundError) and _missing(given, *inputs):
                raise
            texts = [given[name] for name in inputs if isinstance(given.get(name), str | Path)]
            paths = [Path(text) for text in texts if os.path.exists(text)]
            hint = _hint(source, [found for path in paths for found in recognize(path)])
            if not hint:
                raise
            kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
            raise kind(f"{error}. {hint}") from error

    return checked


def _missing(given: Mapping[str, Any], *inputs: str) -> bool:
    """Whether a file or folder among the arguments, or the text file of ``image_list``, does not exist."""
    paths = [*(given.get(name) for name in inputs), given.get("options", {}).get("image_list")]
    return any(isinstance(path, str | Path) and not os.path.exists(path) for path in paths)


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
