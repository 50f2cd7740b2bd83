"""Command-line flags generated from settings dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def add_flags(
    parser: argparse._ActionsContainer, defaults: Any, prefix: str = "", without: Collection[str] = ()
) -> None:
    """Add a flag ``--prefix-field-name`` for every setting; a flag that is not given is absent from the namespace.

    Args:
        parser: a parser, or a group of one.
        defaults: a dataclass instance; its values are booleans, numbers, texts, or tuples of one of these.
        prefix: in front of all names, as ``critic``.
        without: names of settings that get no flag.

    Raises:
        TypeError: no flag can be made for a value of this type.
    """
    for name, value, help_text in flat_settings(defaults, prefix):
        if name in without:
            continue
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        options["help"] = f"{help_text} (default: {setting_text(value)})".replace("%", "%%")
        sample = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(sample, (int, float, str)):
            options |= {"type": type(sample), "metavar": "VALUE"}
        else:
            raise TypeError(f"{name}: no flag can be made for {value!r}")
        if isinstance(value, tuple):
            options["nargs"] = "*" if isinstance(sample, str) else len(value)
            options["metavar"] = ("LOW", "HIGH") if len(value) == 2 else "VALUE"
        parser.add_argument("--" + name.replace("_", "-"), **options)


def with_flags(defaults: Settings, arguments: argparse.Namespace, prefix: str = "") -> Settings:
    """A copy of a dataclass with the values of the flags of :func:`add_flags` that were given, or ``ValueError``."""
    changes: dict[str, Any] = {}
    for own in dataclasses.fields(defaults):  # type: ignore[arg-type]  # mypy has no bound "any dataclass"
        value, name = getattr(defaults, own.name), _with_prefix(own.name, prefix)
        if dataclasses.is_dataclass(value):
            changes[own.name] = with_flags(value, arguments, prefix)
        elif hasattr(arguments, name):
            given = getattr(arguments, name)
            changes[own.name] = tuple(given) if isinstance(value, tuple) else given
    return dataclasses.replace(defaults, **changes)  # type: ignore[type-var]  # likewise


def flat_settings(settings: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Name with prefix, value and help of every setting; those of nested dataclasses in their place."""
    attributes = documented(type(settings).__doc__, "Attributes")
    for own in dataclasses.fields(settings):
        value = getattr(settings, own.name)
        if dataclasses.is_dataclass(value):
            yield from flat_settings(value, prefix)
        else:
            help_text = own.metadata.get("help") or attributes.get(own.name, "")
            yield _with_prefix(own.name, prefix), value, help_text


def setting_text(value: Any) -> str:
    """A value as it is written after its flag."""
    if isinstance(value, tuple):
        return " ".join(map(setting_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _with_prefix(name: str, prefix: str) -> str:
    return f"{prefix}_{name}" if prefix else name


def documented(docstring: str | None, section: str) -> Mapping[str, str]:
    """The entries of a section of a docstring in Google style; none where Python drops docstrings (-OO)."""
    _, _, text = inspect.cleandoc(docstring or "").partition(f"{section}:\n")
    text = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", text, flags=re.MULTILINE)
    plain = ((name, re.sub(r":class:`~?([\w.]*\.)?(\w+)`|``", r"\2", entry)) for name, entry in entries)
    return {name: " ".join(entry.split()).rstrip(".") for name, entry in plain}
