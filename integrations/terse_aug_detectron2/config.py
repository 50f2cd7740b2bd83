"""Keys of terse-aug in Detectron2's config, made from the one place where settings are named and explained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from detectron2.config import CfgNode

from terse_aug import TerseConfig, TransformRanges
from terse_aug.policies import POLICIES
from terse_aug.samplers import make_sampler

OWN_KEYS: dict[str, tuple[Any, str]] = {
    "ENABLED": (False, "paste at all; without it TerseHook.from_config gives None and TerseMapper changes nothing"),
    "BANK": ("", "path of the foreground bank, made by `terse-aug bank build`"),
    "POLICY": ("critic", "name of the policy: critic, random, hard-random, learned, deterministic"),
    "BACKGROUNDS": ("", "folder of images that take the place of BACKGROUND_PROBABILITY of those of the batches"),
    "DISTRACTOR_BANK": ("", "path of a bank of objects of none of the data set's classes, for DISTRACTORS"),
    "SEED": (-1, "of all that terse-aug draws; -1: cfg.SEED, or a fresh one where that is negative, too"),
    "DROP_UNKNOWN_CLASSES": (
        False,
        "leave cut-outs out whose class the data set does not have, in place of refusing the bank",
    ),
    "LOSS_SCALE": (1.0, "what your own loop multiplies each loss by before backward: 1 / n to accumulate n batches"),
    "LOG_PERIOD": (20, "iterations between two readings of the figures under terse_aug/; 0: none"),
    "IMAGE_PERIOD": (500, "iterations between two pictures of composites in TensorBoard; 0: none"),
}
"""Keys that are not settings of :class:`terse_aug.TerseConfig`: default, and what it means."""


def add_terse_config(cfg: CfgNode) -> None:
    """Add ``cfg.TERSE`` with everything at its default, which is off.

    Args:
        cfg: a config that is not frozen; call it before ``merge_from_file``. ``describe_config()`` explains the keys.
    """
    cfg.TERSE = CfgNode()
    for key, (default, _) in OWN_KEYS.items():
        cfg.TERSE[key] = default
    cfg.TERSE.RANGES = CfgNode()
    for node, key, default, _ in _settings():
        (cfg.TERSE.RANGES if node else cfg.TERSE)[key] = default


def terse_config(cfg: CfgNode) -> TerseConfig:
    """The settings that a config holds.

    Raises:
        ValueError: a value is outside its range, or the config has no ``TERSE``.
    """
    node = terse_node(cfg)
    ranges = TransformRanges(**{key.lower(): value for key, value in node.RANGES.items()})
    own = {key.lower(): node[key] for part, key, _, _ in _settings() if not part}
    config = TerseConfig(ranges=ranges, **own)
    make_sampler(config.sampler)  # what is wrong is said now, not when training begins
    return config


def chosen_seed(cfg: CfgNode) -> int | None:
    """``TERSE.SEED``, else ``SEED``; ``None`` where neither is set."""
    return next((seed for seed in (terse_node(cfg).SEED, cfg.SEED) if seed >= 0), None)


def chosen_policy(cfg: CfgNode) -> str:
    """``TERSE.POLICY``.

    Raises:
        ValueError: there is no policy of that name.
    """
    policy: str = terse_node(cfg).POLICY
    if policy not in POLICIES:
        raise ValueError(f"TERSE.POLICY: expected one of {', '.join(POLICIES)}, got {policy!r}")
    return policy


def terse_node(cfg: CfgNode) -> CfgNode:
    """``cfg.TERSE``.

    Raises:
        ValueError: there is none.
    """
    if "TERSE" not in cfg:
        raise ValueError("the config has no TERSE: call add_terse_config(cfg) before cfg.merge_from_file(...)")
    return cfg.TERSE


def describe_config() -> str:
    """Every key of ``cfg.TERSE`` with its default and what it means, a Markdown table."""
    rows = [(key, default, text) for key, (default, text) in OWN_KEYS.items()]
    rows += [(f"{node}{key}", default, text) for node, key, default, text in _settings()]
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, default, text in rows:
        lines.append(f"| `TERSE.{key}` | `{default!r}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _settings() -> Iterator[tuple[str, str, Any, str]]:
    """Node, key, default and meaning of every setting of ``TerseConfig``."""
    default = TerseConfig()
    for setting in fields(TerseConfig):
        if setting.name == "ranges":
            continue
        value = getattr(default, setting.name)
        yield "", setting.name.upper(), value, setting.metadata["help"]
    for part in fields(TransformRanges):
        meaning = "allowed range of this transform parameter, see terse_aug.TransformRanges"
        yield "RANGES.", part.name.upper(), getattr(default.ranges, part.name), meaning
