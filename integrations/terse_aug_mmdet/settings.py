"""Settings as a config holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from terse_aug import TerseConfig, TransformRanges
from terse_aug.config import replaced
from terse_aug.policies import POLICIES
from terse_aug.samplers import make_sampler

HOOK_ONLY = ("input_format", "interval", "image_interval", "backgrounds", "distractor_bank")
"""Arguments of the hook that the transform passes over, so that both can be given the same dictionary."""


def terse_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of :class:`terse_aug.TerseConfig`, of lists and dictionaries as configs have them.

    Args:
        settings: ``ranges`` may be a dictionary, pairs may be lists.

    Raises:
        ValueError: a setting that there is not, or a value outside its range.
    """
    known = {field.name for field in fields(TerseConfig)}
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"unknown settings {unknown}; expected some of {sorted(known)}")
    plain = dict(settings)
    if isinstance(ranges := plain.get("ranges"), Mapping):
        plain["ranges"] = TransformRanges(**ranges)
    config = replaced(TerseConfig(), plain)
    make_sampler(config.sampler)  # what is wrong is said now, not when training begins
    return plain


def checked_policy(policy: Any) -> Any:
    """A policy, or the name of one.

    Raises:
        ValueError: there is none of that name.
    """
    if isinstance(policy, str) and policy not in POLICIES:
        raise ValueError(f"policy: expected one of {', '.join(POLICIES)}, got {policy!r}")
    return policy
