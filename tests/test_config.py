"""Settings: the range of every one, help for every one, and settings from dictionaries."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from typing import Any

import pytest

from terse_aug import PasteConfig, Photometric, Robustness, Terse, TransformRanges
from terse_aug.cli.flags import add_flags, flat_settings, with_flags
from terse_aug.config import POLICY_SETTINGS, policy_settings, settings_from
from terse_aug.policies import Adversarial, BestOfN, Critic, Matched, Paper, Random, RandomPolicy, make_policy

SETTINGS = (PasteConfig, *POLICY_SETTINGS.values(), Robustness, TransformRanges, Photometric)

COUNTS = ([(0, 0), (2, 20), [1, 3]], [(3, 1), (-1, 2), (1, 21), 3, (1.5, 3), "13", (1, 2, 3)])
FRACTION = ([0, 0.25, 1], [-0.1, 1.5, math.nan, "0.5", None])
NOT_NEGATIVE = ([0, 2.5], [-0.1, math.nan, math.inf, "1", None])
POSITIVE = ([1e-6, 3], [0, -1.0, math.nan, "1", None])
WHOLE_FROM_1 = ([1, 5], [0, -2, 1.5, math.nan, "2"])
WHOLE_FROM_0 = ([0, 5], [-1, 1.5, math.nan, "2"])
DROPOUT = ([0, 0.9], [-0.1, 1, math.nan, "0"])
RANGE = ([(-3, 4.5), (1, 1), [0, 1]], [(2, 1), (0, math.inf), (math.nan, 1), 3, (1, 2, 3), "ab", None])
SCALE = ([(0.1, 4), (1, 1)], [(0, 1), (-1, 1), (2, 1), 1.0])
FACTOR = ([(0, 2), (1, 1), [0.5, 3]], [(-0.1, 1), (2, 1), (0, math.inf), 1.0])
PLACE = ([(0, 1), (0.5, 0.5)], [(-0.1, 1), (0, 1.1), (1, 0)])
UPDATES = {"update_interval": WHOLE_FROM_1, "learning_rate": POSITIVE, "max_gradient_norm": POSITIVE}
SYNTHESIZER = {"dropout": DROPOUT, "discriminator_weight": NOT_NEGATIVE, **UPDATES}
VALUES: dict[type, dict[str, tuple[list[Any], list[Any]]]] = {
    PasteConfig: {
        "objects": COUNTS,
        "paste_probability": FRACTION,
        "flip_probability": FRACTION,
        "decoys": COUNTS,
        "occluded_object_probability": FRACTION,
        "min_visibility": FRACTION,
        "min_side": NOT_NEGATIVE,
        "blends": ([("none",), ["alpha", "poisson"]], [(), "alpha", ("soft",), ("none", "none"), None]),
        "edge_blur_sigma": NOT_NEGATIVE,
        "ranges": ([TransformRanges(rotation=(0, 0))], [None, {"rotation": (0, 0)}]),
        "photometric": ([Photometric(hue=(0, 9))], [None, {"hue": (0, 9)}, TransformRanges()]),
    },
    Random: {},
    BestOfN: {"candidates": WHOLE_FROM_1},
    Critic: {
        "candidates": WHOLE_FROM_1,
        "foreground_candidates": WHOLE_FROM_1,
        "mix_classes": ([False], [True, "no", None]),  # alone: with one foreground there is no choice
        "target_hardness": FRACTION,
        "temperature": POSITIVE,
        "fixed_parameters": ([(), ("scale", "shear"), ["rotation", "hue"]], ["scale", ("size",)]),
        "replay_updates": WHOLE_FROM_1,
        **UPDATES,
    },
    Adversarial: {"kl_weight": NOT_NEGATIVE, **SYNTHESIZER},
    Paper: SYNTHESIZER,
    Matched: {"candidates": WHOLE_FROM_1},
    Robustness: {
        "epsilon_object": FRACTION,
        "epsilon_background": FRACTION,
        "steps": WHOLE_FROM_1,
        "step_size": NOT_NEGATIVE,
        "probability": FRACTION,
        "warmup": WHOLE_FROM_0,
        "ramp": WHOLE_FROM_0,
    },
    TransformRanges: {
        **dict.fromkeys(("rotation", "shear"), RANGE),
        **dict.fromkeys(("scale", "scale_x", "scale_y"), SCALE),
        **dict.fromkeys(("translate_x", "translate_y"), PLACE),
        "keep_inside": FRACTION,
    },
    Photometric: {
        **dict.fromkeys(("brightness", "contrast", "saturation"), FACTOR),
        "hue": ([(-180, 180), [0, 20]], [(-181, 0), (0, 181), (3, 2), "hue"]),
        **dict.fromkeys(("blur", "noise"), PLACE),
    },
}
ALL = [(kind, own.name) for kind in SETTINGS for own in fields(kind)]
IDS = [f"{kind.__name__}.{name}" for kind, name in ALL]


@pytest.mark.parametrize(("kind", "name"), ALL, ids=IDS)
def test_values_within_the_range_are_kept_and_others_refused_by_name(kind: type, name: str) -> None:
    accepted, refused = VALUES[kind][name]
    for value in accepted:
        expected = tuple(value) if isinstance(value, list) else value
        assert getattr(kind(**{name: value}), name) == expected
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{name}: "):
            kind(**{name: value})


@pytest.mark.parametrize(("kind", "name"), ALL, ids=IDS)
def test_every_setting_has_help_and_a_default_within_its_range(kind: type, name: str) -> None:
    (own,) = (own for own in fields(kind) if own.name == name)
    text = own.metadata["help"]
    assert len(text) > 10
    assert text == text.strip()
    assert not text.endswith(".")
    assert getattr(kind(), name) == own.default


def test_settings_have_no_field_that_the_table_lacks() -> None:
    assert {kind: set(own) for kind, own in VALUES.items()} == {
        kind: {own.name for own in fields(kind)} for kind in SETTINGS
    }


def test_classes_are_mixed_among_several_foregrounds_only() -> None:
    assert Critic(foreground_candidates=2, mix_classes=True).mix_classes
    with pytest.raises(ValueError, match="mix_classes: expected foreground_candidates above 1 with it"):
        Critic(mix_classes=True)


def test_settings_from_a_dictionary_are_those_of_keywords() -> None:
    values: dict[str, Any] = {"objects": [2, 4], "ranges": {"scale": [0.8, 1.25], "keep_inside": 0.5}}
    ranges = TransformRanges(scale=(0.8, 1.25), keep_inside=0.5)
    assert settings_from(PasteConfig, values) == PasteConfig(objects=(2, 4), ranges=ranges)
    values["photometric"] = {"hue": [-5, 5]}
    photometric = Photometric(hue=(-5, 5))
    assert settings_from(PasteConfig, values) == PasteConfig(objects=(2, 4), ranges=ranges, photometric=photometric)
    for wrong, message in (
        ({"object": (1, 2)}, r"unknown settings \['object'\] of PasteConfig; expected some of \['blends', "),
        ({"ranges": {"size": (1, 2)}}, r"unknown settings \['size'\] of TransformRanges"),
        ({"ranges": {"scale": (2, 1)}}, "scale: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            settings_from(PasteConfig, wrong)


@pytest.mark.parametrize("name", POLICY_SETTINGS)
def test_a_policy_is_given_by_name_settings_or_dictionary(name: str) -> None:
    kind = POLICY_SETTINGS[name]
    for given in (name, kind(), {"type": name}, {"type": kind.__name__}):
        assert policy_settings(given) == kind()
    policy = make_policy({"type": kind.__name__}, seed=0)
    assert type(make_policy(kind(), seed=0)) is type(policy)
    assert make_policy(policy, seed=0) is policy


def test_a_dictionary_has_the_settings_of_the_policy() -> None:
    assert policy_settings({"type": "Critic", "target_hardness": 0.5}) == Critic(target_hardness=0.5)
    for wrong, message in (
        ({"type": "Random", "candidates": 2}, r"unknown settings \['candidates'\] of Random"),
        (
            "adversary",
            "policy: expected one of random, matched, best-of-n, critic, adversarial, paper, got 'adversary'",
        ),
        ({}, "policy: expected one of random, .* got ''"),
    ):
        with pytest.raises(ValueError, match=message):
            policy_settings(wrong)


def test_what_is_no_policy_is_refused(tiny_bank: Any) -> None:
    for wrong in (3, PasteConfig(), None):
        with pytest.raises(ValueError, match="policy: expected a name, settings or a Policy, got"):
            Terse(tiny_bank, wrong)  # type: ignore[arg-type]  # wrong on purpose
    assert isinstance(Terse(tiny_bank).policy, RandomPolicy)  # by default


def test_every_setting_is_a_documented_flag() -> None:
    parser = argparse.ArgumentParser()
    kinds: dict[str, Any] = {"": PasteConfig} | POLICY_SETTINGS
    for prefix, kind in kinds.items():
        add_flags(parser, kind(), prefix)
        for name, value, help_text in flat_settings(kind(), prefix):
            assert help_text
            values = value if isinstance(value, tuple) else (value,)
            flag = "--" + name.replace("_", "-")
            given = [f"--no-{flag[2:]}"] if value is False else [flag, *map(str, values)]
            assert with_flags(kind(), parser.parse_args(given), prefix) == kind()
    parser.format_help()
    given = ["--rotation", "-30", "2.5", "--objects", "2", "2", "--keep-inside", "1", "--critic-mix-classes"]
    given += ["--critic-foreground-candidates", "2", "--critic-fixed-parameters"]
    arguments = parser.parse_args(given)
    paste = PasteConfig(objects=(2, 2), ranges=TransformRanges(rotation=(-30, 2.5), keep_inside=1))
    assert with_flags(PasteConfig(), arguments) == paste
    critic = Critic(mix_classes=True, foreground_candidates=2, fixed_parameters=())
    assert with_flags(Critic(), arguments, "critic") == critic
