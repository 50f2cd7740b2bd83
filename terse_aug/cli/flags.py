"""Command line flags from a dataclass of settings, so that a setting is named and explained once. Imports no framework.

A field's help is its ``help`` metadata, or else its entry under ``Attributes:`` in the class's docstring; fields
that are dataclasses themselves give the flags of their own fields.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any, TypeVar

Settings = TypeVar("Settings")


def add_flags(parser: argparse._ActionsContainer, defaults: Any, prefix: str = "") -> None:
    """Add a flag ``--field-name`` for every setting; flags that are not given leave no trace in the namespace.

    Args:
        parser: or a group of one.
        defaults: a dataclass instance; values are booleans, numbers, texts, or tuples of one of these.
        prefix: before the name of every flag: ``critic`` gives ``--critic-candidates``.

    Raises:
        TypeError: a value is of a kind that no flag can be made for.
    """
    for setting, value, help_text in flat_settings(defaults):
        name = _prefixed(setting, prefix)
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": name}
        options["help"] = f"{help_text} (default: {setting_text(value)})".replace("%", "%%")
        sample = value[0] if isinstance(value, tuple) and value else value
        if isinstance(value, bool):
            options["action"] = argparse.BooleanOptionalAction
        elif isinstance(sample, (int, float, str)):
            options["type"] = type(sample)
            options["metavar"] = "VALUE"
        else:
            raise TypeError(f"{name}: no flag can be made for {value!r}")
        if isinstance(value, tuple):
            options["nargs"] = "*" if isinstance(sample, str) else len(value)
            options["metavar"] = ("LOW", "HIGH") if len(value) == 2 else "VALUE"
        parser.add_argument("--" + name.replace("_", "-"), **options)


def with_flags(defaults: Settings, arguments: argparse.Namespace, prefix: str = "") -> Settings:
    """A copy of ``defaults`` with the settings that were given; ``prefix`` as in :func:`add_flags`.

    Raises:
        ValueError: a value is outside its range, as the dataclass says.
    """
    changes: dict[str, Any] = {}
    for setting in dataclasses.fields(defaults):  # type: ignore[arg-type]  # mypy has no bound "any dataclass"
        value = getattr(defaults, setting.name)
        if dataclasses.is_dataclass(value):
            changes[setting.name] = with_flags(value, arguments, prefix)
        elif hasattr(arguments, name := _prefixed(setting.name, prefix)):
            given = getattr(arguments, name)
            changes[setting.name] = tuple(given) if isinstance(value, tuple) else given
    return dataclasses.replace(defaults, **changes)  # type: ignore[type-var]  # likewise


def flat_settings(settings: Any) -> Iterator[tuple[str, Any, str]]:
    """Name, value and help of every setting, those of nested dataclasses in their place."""
    documented = _documented(type(settings))
    for setting in dataclasses.fields(settings):
        value = getattr(settings, setting.name)
        if dataclasses.is_dataclass(value):
            yield from flat_settings(value)
        else:
            yield setting.name, value, setting.metadata.get("help") or documented.get(setting.name, "")


def setting_text(value: Any) -> str:
    """A value as it is written behind its flag."""
    if isinstance(value, tuple):
        return " ".join(setting_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _prefixed(name: str, prefix: str) -> str:
    return f"{prefix}_{name}" if prefix else name


def _documented(settings: type) -> dict[str, str]:
    """The entries under ``Attributes:`` of a docstring; nothing where Python was told to drop them (-OO)."""
    _, _, section = inspect.cleandoc(settings.__doc__ or "").partition("Attributes:\n")
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
