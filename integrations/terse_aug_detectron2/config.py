"""Keys of terse-aug in Detectron2's config, generated from the settings dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from detectron2.config import CfgNode

from terse_aug.config import POLICY_SETTINGS, PasteConfig, PolicySettings, Robustness
from terse_aug.integration import TerseSettings
from terse_aug.samplers import RaritySampler

Keys = dict[str, tuple[Any, str]]
"""Default and meaning by key; a dot separates nested nodes."""

GENERAL_KEYS: Keys = {
    "ENABLED": (False, "without it TerseHook.from_config returns None, and TerseMapper.from_config the given mapper"),
    "BANK": ("", "path of the foreground bank, made by `terse-aug bank build`"),
    "SEED": (-1, "of everything drawn; -1: cfg.SEED, or a fresh one if that is negative too"),
    "COMPOSE_AHEAD": (
        True,
        "make composites before they are needed: in the loader's workers (random) or a thread (matched, critic)",
    ),
    "CLOSE_FRACTION": (0.0, "last fraction of the iterations in which nothing is pasted, 0 to 1"),
    "DROP_UNKNOWN_CLASSES": (False, "leave out foregrounds of classes that the data set does not have; else an error"),
    "LOSS_SCALE": (1.0, "factor of each loss before backward in your own loop: 1 / n to accumulate n batches"),
    "LOG_PERIOD": (20, "iterations between two logs of the metrics under terse_aug/; 0: none"),
    "IMAGE_PERIOD": (500, "iterations between two images of composites in TensorBoard; 0: none"),
}
COMPONENT_KEYS: Keys = {
    "POLICY.NAME": ("random", f"policy: {', '.join(POLICY_SETTINGS)}"),
    "SAMPLER.NAME": ("uniform", "sampler: uniform, rarity, hardness, balanced, or class weights as dog=3,cat=0.5"),
    "SAMPLER.RARITY_POWER": (0.5, "sampler rarity: a foreground of a class with n of them has weight n ** -power"),
    "BACKGROUNDS.FOLDER": ("", "folder of images without annotations that replace some of a batch; empty: none"),
    "BACKGROUNDS.PROBABILITY": (0.5, "fraction of the images that are replaced, 0 to 1"),
    "DISTRACTORS.BANK": ("", "bank of objects of none of the data set's classes, pasted without a label; empty: none"),
    "DISTRACTORS.COUNT": ((1, 3), "fewest and most distractors on an image with pastes, 0 to 20"),
    "ROBUSTNESS.ENABLED": (False, "robustness training: composites are perturbed by projected gradient descent"),
}


def add_terse_config(cfg: CfgNode) -> None:
    """Add ``cfg.TERSE`` with everything at its default, which is off.

    Args:
        cfg: a config that is not frozen; call it before ``merge_from_file``. ``describe_config()`` explains the keys.
    """
    cfg.TERSE = CfgNode()
    for key, (default, _) in _keys().items():
        *nodes, name = key.split(".")
        node = cfg.TERSE
        for part in nodes:
            node = node.setdefault(part, CfgNode())
        node[name] = default


def describe_config() -> str:
    """Every key of ``cfg.TERSE`` with its default and meaning, a Markdown table."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for key, (default, text) in _keys().items():
        lines.append(f"| `TERSE.{key}` | `{default!r}` | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def terse_node(cfg: CfgNode) -> CfgNode:
    """``cfg.TERSE``.

    Raises:
        ValueError: there is none.
    """
    if "TERSE" not in cfg:
        raise ValueError("the config has no TERSE: call add_terse_config(cfg) before cfg.merge_from_file(...)")
    return cfg.TERSE


def terse_settings(cfg: CfgNode) -> TerseSettings:
    """The settings of ``cfg.TERSE``.

    Raises:
        ValueError: a value is outside its range, a folder or bank cannot be opened, or the config has no ``TERSE``.
    """
    node = terse_node(cfg)
    policy, sampler = node.POLICY.NAME, node.SAMPLER.NAME
    if policy not in POLICY_SETTINGS:
        raise ValueError(f"TERSE.POLICY.NAME: expected one of {', '.join(POLICY_SETTINGS)}, got {policy!r}")
    robustness = _lower(node.ROBUSTNESS)
    return TerseSettings(
        {"type": policy, **_lower(node.POLICY.get(_policy_node(policy), {}))},
        paste=_lower(node.PASTE),
        sampler=RaritySampler(node.SAMPLER.RARITY_POWER) if sampler == "rarity" else sampler,
        backgrounds={"source": node.BACKGROUNDS.FOLDER, "probability": node.BACKGROUNDS.PROBABILITY}
        if node.BACKGROUNDS.FOLDER
        else None,
        distractors=_lower(node.DISTRACTORS) if node.DISTRACTORS.BANK else None,
        robustness=robustness if robustness.pop("enabled") else None,
    )


def chosen_seed(cfg: CfgNode) -> int | None:
    """``TERSE.SEED``, else ``SEED``; ``None`` where neither is set."""
    return next((seed for seed in (terse_node(cfg).SEED, cfg.SEED) if seed >= 0), None)


def _keys() -> Keys:
    """Every key of ``cfg.TERSE``."""
    keys = {**GENERAL_KEYS, **dict(_settings("PASTE", PasteConfig())), "POLICY.NAME": COMPONENT_KEYS["POLICY.NAME"]}
    for name, kind in POLICY_SETTINGS.items():
        keys |= _settings(f"POLICY.{_policy_node(name)}", kind())
    return keys | COMPONENT_KEYS | dict(_settings("ROBUSTNESS", Robustness()))


def _settings(node: str, default: PolicySettings | PasteConfig | Robustness) -> Iterator[tuple[str, tuple[Any, str]]]:
    for own in fields(default):
        key, value = f"{node}.{own.name.upper()}", getattr(default, own.name)
        if is_dataclass(value):
            yield from _settings(key, value)  # type: ignore[arg-type]  # settings within settings: ranges, photometric
        else:
            yield key, (value, own.metadata["help"])


def _policy_node(policy: str) -> str:
    return policy.upper().replace("-", "_")


def _lower(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key.lower(): _lower(value) if isinstance(value, Mapping) else value for key, value in node.items()}
