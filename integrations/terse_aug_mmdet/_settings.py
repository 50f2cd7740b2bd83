"""Settings as a config holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from terse_aug import TerseConfig, TransformRanges

HOOK_ONLY = ("input_format", "interval", "image_interval")
"""Arguments of the hook that the transform passes over, so that both can be given the same dictionary."""


def terse_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of :class:`terse_aug.TerseConfig`, of lists and dictionaries as configs have them.

    Args:
        settings: ``ranges`` may be a dictionary, pairs may be lists.

    Raises:
        ValueError: a setting that there is not.
    """
    known = {field.name for field in fields(TerseConfig)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"unknown settings {unknown}; expected some of {sorted(known)}")
    plain = {name: _plain(value) for name, value in settings.items()}
    if isinstance(ranges := plain.get("ranges"), Mapping):
        plain["ranges"] = TransformRanges(**{name: _plain(value) for name, value in ranges.items()})
    return plain


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
