"""Builds one bank from several folders or files of a source, such as VOC 2007 and VOC 2012.

Each is read as if it was the only one, and what there is to build from is joined, see
:mod:`terse_aug.bank.build.parts`.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from terse_aug.bank.build.parts import BuildPart, Planned, join_parts
from terse_aug.bank.build.pipeline import BuildOptions
from terse_aug.bank.build.report import BuildLog, BuildReport
from terse_aug.bank.inputs.file_names import distinct_ends
from terse_aug.bank.inputs.image_list import SharedImageList

Paths = str | Path | Sequence[str | Path]
"""A folder or file, or several."""

Arguments = ParamSpec("Arguments")
Build = Callable[Arguments, BuildReport]

_NAMING = ("root", "folder", "images")
"""Arguments that parts are named after, the first that has several values; else any that has."""


def as_path(path: Paths) -> Path:
    """The one path of a part; ``TypeError`` for several."""
    if isinstance(path, str | Path):
        return Path(path)
    raise TypeError(f"expected one path, got {path!r}")


def takes_several(own_labels: bool = False) -> Callable[[Build[Arguments]], Build[Arguments]]:
    """Decorate a ``build_from_<source>`` whose ``**options`` are :class:`BuildOptions` to take several parts.

    Arguments annotated as :data:`Paths` may then be lists. One path, or a list of one, is for all parts; lists of more
    are of the same length, and the n-th part is read from the n-th of each.

    Args:
        own_labels: labels are numbers in the data, see :func:`join_parts`.
    """

    def decorate(build: Build[Arguments]) -> Build[Arguments]:
        signature = inspect.signature(build)
        names = [name for name, own in signature.parameters.items() if "Paths" in str(own.annotation)]

        @functools.wraps(build)
        def checked(*args: Arguments.args, **kwargs: Arguments.kwargs) -> BuildReport:
            given = signature.bind(*args, **kwargs).arguments
            lists = {name: list(given[name]) for name in names if isinstance(given.get(name), list | tuple)}
            if not lists:
                return build(*args, **kwargs)
            arguments = given | given.pop("options", {})
            parts = _parts(lists)
            if len(parts) == 1:
                return build(**arguments | next(iter(parts.values())))  # type: ignore[call-arg]  # by name, as bound
            return _build_from_parts(build, arguments, parts, own_labels)

        return checked

    return decorate


def _parts(lists: Mapping[str, Sequence[str | Path]]) -> dict[str, dict[str, Path]]:
    """The paths of each part, by its name: the folders in which its path differs from those of all other parts."""
    counts = {len(paths) for paths in lists.values()}
    if 0 in counts or len(counts - {1}) > 1:
        numbers = ", ".join(f"{len(paths)} of {name}" for name, paths in lists.items())
        raise ValueError(f"expected one path or more, and as many of each argument that has several, got {numbers}")
    count = max(counts)
    parts = [{name: Path(paths[min(at, len(paths) - 1)]) for name, paths in lists.items()} for at in range(count)]
    if count == 1:
        return {"": parts[0]}
    several = [name for name, paths in lists.items() if len(paths) > 1]
    naming = next((name for name in _NAMING if name in several), several[0])
    for at, part in enumerate(parts):
        for other in parts[:at] + parts[at + 1 :]:
            _check_apart({name: part[name] for name in several}, other, naming)
    return dict(zip(_short_names([part[naming] for part in parts]), parts, strict=True))


def _check_apart(part: Mapping[str, Path], other: Mapping[str, Path], naming: str) -> None:
    """Raise ``ValueError`` if all paths of a part lie in those of another, whose files would be used twice."""
    if all(path.resolve().is_relative_to(other[name].resolve()) for name, path in part.items()):
        if part[naming].resolve() == other[naming].resolve():
            raise ValueError(f"{part[naming]} is given twice; give it once")
        raise ValueError(f"{part[naming]} lies in {other[naming]}, so its files would be used twice; give one of them")


def _short_names(paths: Sequence[Path]) -> list[str]:
    absolute = [Path(os.path.abspath(path)) for path in paths]
    while len({path.name for path in absolute}) == 1 and min(len(path.parts) for path in absolute) > 2:
        absolute = [path.parent for path in absolute]  # without a name that all have, such as "images"
    return distinct_ends(absolute)


def _build_from_parts(
    build: Callable[..., BuildReport],
    arguments: dict[str, Any],
    paths: Mapping[str, Mapping[str, Path]],
    own_labels: bool,
) -> BuildReport:
    """Read all parts, and build one bank of them."""
    if arguments.get("only_read"):
        raise ValueError(f"expected one folder of labelled images, got {len(paths)}: {', '.join(paths)}")
    options = {name: value for name, value in arguments.items() if name in BuildOptions.__dataclass_fields__}
    settings = BuildOptions.checked(arguments["out"], options)
    image_list = SharedImageList(settings.image_list)
    parts: dict[str, BuildPart] = {}
    for name, own in paths.items():
        image_list.part = name
        try:
            build(**arguments | dict(own) | {"image_list": image_list, "only_planned": True})
        except Planned as end:
            parts[name] = end.part
    joined = join_parts(parts, own_labels)
    _check_categories(arguments.get("categories"), joined.categories, parts)
    log = BuildLog()
    image_list.report_all(log)
    joined.source.log.merge(log)
    return settings.build(arguments["out"], **vars(joined))


def _check_categories(wanted: Any, known: Mapping[int, str], parts: Mapping[str, BuildPart]) -> None:
    """Each part may lack some of the categories that are wanted, but not all parts the same."""
    wanted = [wanted] if isinstance(wanted, str) else list(wanted or ())
    if unknown := [name for name in wanted if name not in known.values()]:
        raise ValueError(f"no such categories: {', '.join(unknown)}; none of {', '.join(parts)} has them")
