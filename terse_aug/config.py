"""Every setting of terse-aug: one small dataclass for pasting, one for each policy, one for robustness training.

Framework configs, command-line flags and the documentation are generated from the fields and their ``help`` metadata.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from typing import Any, TypeVar

from terse_aug.transforms import EVERY_COLUMN, Photometric, TransformColumns, TransformRanges, checked_blends

Settings = TypeVar("Settings")


def setting(default: Any, help_text: str) -> Any:
    """A dataclass field with the ``help`` that generated documentation shows."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class PasteConfig(TransformColumns):
    """What is pasted on an image, and how it is blended; shared by all policies.

    Raises:
        ValueError: a value is outside its range; the message names the setting.
    """

    objects: tuple[int, int] = setting((1, 3), "fewest and most objects pasted on an image, 0 to 20")
    paste_probability: float = setting(0.75, "fraction of the images that objects are pasted on, 0 to 1")
    flip_probability: float = setting(0.5, "fraction of the foregrounds flipped left to right, 0 to 1")
    decoys: tuple[int, int] = setting(
        (0, 1), "fewest and most decoys on an image with pastes: background in an object's shape, without a label"
    )
    occluded_object_probability: float = setting(
        0.0, "fraction of the pastes that partly cover another pasted object, of another class, 0 to 1"
    )
    min_visibility: float = setting(0.25, "an object whose visible fraction is below this loses its label")
    min_side: float = setting(4.0, "a paste whose longer side would be below this many pixels is left out")
    blends: tuple[str, ...] = setting(
        ("gaussian",),
        "from which the blend of a paste, a decoy or a distractor is drawn: gaussian (its edge is blurred), alpha (it "
        "is not), none (pixels are all paste or all background), poisson (its gradients with the background's colors)",
    )
    edge_blur_sigma: float = setting(
        1.0, "standard deviation of the Gaussian blur of a paste's edge, with blend gaussian, pixels"
    )
    ranges: TransformRanges = field(
        default=TransformRanges(), metadata={"help": "allowed range of every transform parameter"}
    )
    photometric: Photometric = field(
        default=Photometric(), metadata={"help": "allowed range of every photometric parameter; none by default"}
    )

    def __post_init__(self) -> None:
        for name in ("objects", "decoys"):
            object.__setattr__(self, name, checked_count(name, getattr(self, name)))
        for name, kind in (("ranges", TransformRanges), ("photometric", Photometric)):
            if not isinstance(getattr(self, name), kind):
                raise ValueError(f"{name}: expected {kind.__name__}, got {getattr(self, name)!r}")
        object.__setattr__(self, "blends", checked_blends(self.blends))
        for name in ("paste_probability", "flip_probability", "occluded_object_probability", "min_visibility"):
            check_fraction(name, getattr(self, name))
        for name in ("edge_blur_sigma", "min_side"):
            _check_at_least(name, getattr(self, name), 0)


@dataclass(frozen=True)
class Random:
    """Policy ``random``: transforms drawn uniformly from the allowed ranges."""


@dataclass(frozen=True)
class BestOfN:
    """Policy ``best-of-n``: of several random proposals for an image, the one with the highest detector loss.

    Raises:
        ValueError: a value is outside its range.
    """

    candidates: int = setting(2, "random proposals for an image; each costs a forward of the detector")

    def __post_init__(self) -> None:
        _check_whole("candidates", self.candidates, 1)


@dataclass(frozen=True)
class Matched:
    """Policy ``matched``: pastes have about the size, place and overlaps of real objects, learned from the batches.

    Raises:
        ValueError: a value is outside its range.
    """

    candidates: int = setting(32, "transforms for a paste, from which one is drawn")

    def __post_init__(self) -> None:
        _check_whole("candidates", self.candidates, 1)


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What all policies with a network have."""

    update_interval: int = setting(4, "iterations between two updates")
    learning_rate: float = setting(1e-3, "Adam step size")
    max_gradient_norm: float = setting(1.0, "gradients are clipped to this norm")

    def __post_init__(self) -> None:
        _check_whole("update_interval", self.update_interval, 1)
        _check_above_zero("learning_rate", self.learning_rate)
        _check_above_zero("max_gradient_norm", self.max_gradient_norm)


@dataclass(frozen=True, kw_only=True)
class _Synthesizer(_Trained):
    """What the policies with a synthesizer have."""

    dropout: float = setting(0.1, "dropout in the synthesizer, 0 to 1")
    discriminator_weight: float = setting(
        0.0, "weight of realism in the synthesizer's objective; 0 switches the discriminator off"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.dropout, Real) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout: expected a fraction within [0, 1), got {self.dropout!r}")
        _check_at_least("discriminator_weight", self.discriminator_weight, 0)


@dataclass(frozen=True)
class Critic(_Trained):
    """Policy ``critic``: of several random proposals, one that a small network predicts to be hard.

    Raises:
        ValueError: a value is outside its range.
    """

    candidates: int = setting(8, "random transforms for a paste, from which one is chosen")
    foreground_candidates: int = setting(
        1, "foregrounds for a paste, from which one is chosen; each has its own random transforms"
    )
    mix_classes: bool = setting(
        False,
        "whether the foreground candidates of a paste may be of different classes, so that hard classes are pasted "
        "more often",
    )
    target_hardness: float = setting(
        0.7, "it chooses no more sharply than brings the mean predicted hardness here, 0 (random) to 1"
    )
    temperature: float = setting(
        0.5, "at the sharpest, a candidate is chosen with probability ~ predicted odds ** (1 / this)"
    )
    fixed_parameters: tuple[str, ...] = setting(
        ("scale",), "transform parameters that are not chosen and stay random; else it chooses small objects"
    )
    replay_updates: int = setting(4, "optimizer steps in an update, each on 64 pastes from the replay buffer")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("candidates", "foreground_candidates", "replay_updates"):
            _check_whole(name, getattr(self, name), 1)
        if not isinstance(self.mix_classes, bool):
            raise ValueError(f"mix_classes: expected True or False, got {self.mix_classes!r}")
        if self.mix_classes and self.foreground_candidates == 1:
            raise ValueError("mix_classes: expected foreground_candidates above 1 with it, got 1: there is no choice")
        check_fraction("target_hardness", self.target_hardness)
        _check_above_zero("temperature", self.temperature)
        fixed = self.fixed_parameters
        if isinstance(fixed, str) or not isinstance(fixed, Iterable) or not set(fixed) <= set(EVERY_COLUMN):
            raise ValueError(f"fixed_parameters: expected a list of some of {', '.join(EVERY_COLUMN)}, got {fixed!r}")
        object.__setattr__(self, "fixed_parameters", tuple(fixed))


@dataclass(frozen=True)
class Adversarial(_Synthesizer):
    """Policy ``adversarial``: a network proposes transforms and ascends the detector's loss, held near uniform.

    Raises:
        ValueError: a value is outside its range.
    """

    kl_weight: float = setting(
        0.1, "weight of KL(proposals || uniform) in units of the loss of an image; higher is more random"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_at_least("kl_weight", self.kl_weight, 0)


@dataclass(frozen=True)
class Paper(_Synthesizer):
    """Policy ``paper``: TERSE's own synthesizer, one transform for a background and a foreground; it collapses.

    Raises:
        ValueError: a value is outside its range.
    """


PolicySettings = Random | Matched | BestOfN | Critic | Adversarial | Paper
POLICY_SETTINGS: dict[str, type[PolicySettings]] = {
    "random": Random,
    "matched": Matched,
    "best-of-n": BestOfN,
    "critic": Critic,
    "adversarial": Adversarial,
    "paper": Paper,
}
"""The settings of each policy, by its name."""


@dataclass(frozen=True)
class Robustness:
    """Robustness training: composites are perturbed by projected gradient descent before the detector sees them.

    Raises:
        ValueError: a value is outside its range.
    """

    epsilon_object: float = setting(4 / 255, "largest change of a pixel value on objects, in units of [0, 1]")
    epsilon_background: float = setting(8 / 255, "largest change of a pixel value elsewhere, in units of [0, 1]")
    steps: int = setting(1, "gradient steps, each a forward and a backward of the detector")
    step_size: float = setting(0.0, "length of a step in units of epsilon; 0 for 2.5 / steps, but at most 1.25")
    probability: float = setting(1.0, "fraction of the batches that are perturbed, 0 to 1")
    warmup: int = setting(0, "batches left alone at the start; a model trained from scratch may learn nothing else")
    ramp: int = setting(0, "batches after the warmup over which epsilon grows to its full size")

    def __post_init__(self) -> None:
        for name in ("epsilon_object", "epsilon_background", "probability"):
            check_fraction(name, getattr(self, name))
        for name, least in (("steps", 1), ("warmup", 0), ("ramp", 0)):
            _check_whole(name, getattr(self, name), least)
        _check_at_least("step_size", self.step_size, 0)


def policy_settings(policy: str | PolicySettings | Mapping[str, Any]) -> PolicySettings:
    """Settings of a policy from its name, from a dictionary ``{"type": "Critic", ...}``, or as they are.

    Raises:
        ValueError: there is no policy of that name, or a setting is unknown or outside its range.
    """
    if not isinstance(policy, (str, Mapping)):
        return policy
    values = {"type": policy} if isinstance(policy, str) else dict(policy)
    name = str(values.pop("type", ""))
    by_name = POLICY_SETTINGS | {kind.__name__: kind for kind in POLICY_SETTINGS.values()}
    if name not in by_name:
        raise ValueError(f"policy: expected one of {', '.join(POLICY_SETTINGS)}, got {name!r}")
    return settings_from(by_name[name], values)


def settings_from(kind: type[Settings], values: Mapping[str, Any]) -> Settings:
    """A settings dataclass from a dictionary as configs hold it; nested dictionaries become nested dataclasses.

    Raises:
        ValueError: a setting is unknown or outside its range.
    """
    known = {own.name: own for own in fields(kind)}  # type: ignore[arg-type]  # mypy has no bound "any dataclass"
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown settings {unknown} of {kind.__name__}; expected some of {sorted(known)}")
    nested = {
        name: settings_from(type(known[name].default), value)
        for name, value in values.items()
        if isinstance(value, Mapping) and known[name].default is not MISSING
    }
    return kind(**{**values, **nested})


def checked_count(name: str, value: Any) -> tuple[int, int]:
    """A range of counts as a tuple, whatever kind of sequence a config library makes of it.

    Raises:
        ValueError: it is not (low, high) with 0 <= low <= high <= 20.
    """
    pair = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
    whole = isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(n, int) for n in pair)
    if not (whole and 0 <= pair[0] <= pair[1] <= 20):
        raise ValueError(f"{name}: expected whole numbers (low, high), 0 <= low <= high <= 20, got {value!r}")
    return pair[0], pair[1]


def check_fraction(name: str, value: float) -> None:
    """Refuse a value outside [0, 1].

    Raises:
        ValueError: naming the setting.
    """
    if not (isinstance(value, Real) and 0 <= value <= 1):
        raise ValueError(f"{name}: expected a fraction within [0, 1], got {value!r}")


def _check_at_least(name: str, value: float, least: float) -> None:
    if not (isinstance(value, Real) and least <= value < math.inf):
        raise ValueError(f"{name}: expected a finite value of at least {least}, got {value!r}")


def _check_whole(name: str, value: int, least: int) -> None:
    if not (isinstance(value, Integral) and value >= least):
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")


def _check_above_zero(name: str, value: float) -> None:
    if not (isinstance(value, Real) and value > 0):
        raise ValueError(f"{name}: expected a value above 0, got {value!r}")
