"""The one place where a setting of terse-aug is named, explained, defaulted and checked. Imports no framework.

Adapters and command lines are made from the fields of :class:`TerseConfig` and their ``help`` metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from terse_aug.transforms import PARAMETERS, TransformRanges


def _setting(default: Any, help_text: str) -> Any:
    """A dataclass field whose meaning adapters can show to their users."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True)
class TerseConfig:
    """Settings of :class:`terse_aug.Terse`; ``dataclasses.fields(TerseConfig)`` carries the ``help`` of each.

    Raises:
        ValueError: a value is outside its range; the message names the setting.
    """

    objects: tuple[int, int] = _setting((1, 3), "fewest and most objects pasted on an image, 0 to 20")
    image_probability: float = _setting(0.75, "share of the images that get pastes, 0 to 1")
    ranges: TransformRanges = field(
        default=TransformRanges(), metadata={"help": "allowed range of every transform parameter"}
    )
    sampler: str = _setting(
        "uniform",
        "which cut-outs are pasted: uniform, rarity, hardness (classes that the detector finds hard), balanced (all "
        "equally often), or weights of classes, as dog=3,cat=0.5",
    )
    rarity_power: float = _setting(
        0.5, "sampler rarity: a cut-out of a class with n of them weighs n ** -this; 1 makes classes equally frequent"
    )
    background_probability: float = _setting(
        0.0, "share of the images that are replaced by one of the pool of backgrounds, which then gets pastes, 0 to 1"
    )
    distractors: tuple[int, int] = _setting(
        (0, 0), "fewest and most distractors on a pasted image: objects of no class of the detector's, without a label"
    )
    superimpose_probability: float = _setting(
        0.0, "share of the pastes that get an object of another class, labelled like them, behind them, 0 to 1"
    )
    mirror_probability: float = _setting(0.5, "share of the cut-outs mirrored left to right, 0 to 1")
    min_visibility: float = _setting(0.25, "an object whose visible share falls below this loses its label, 0 to 1")
    min_side: float = _setting(4.0, "a paste whose larger side would be below this many pixels is left out")
    edge_sigma: float = _setting(1.0, "standard deviation of the Gaussian that softens the edge, pixels")
    decoys: tuple[int, int] = _setting(
        (0, 1), "fewest and most decoys on a pasted image: background in an object's shape, without a label"
    )
    candidates: int = _setting(2, "hard-random: proposals per image of which the detector picks one")
    move_every: int = _setting(4, "critic, learned, deterministic: the policy moves every this many iterations")
    critic_candidates: int = _setting(8, "critic: candidates of which its network picks one")
    critic_cutouts: int = _setting(
        1, "critic: cut-outs among which it also chooses, for each paste; each has its own candidates"
    )
    critic_any_class: bool = _setting(
        False,
        "critic: whether the cut-outs that it chooses among (critic_cutouts above 1) may be of different classes; hard "
        "classes are then pasted more often. Else all are of one class, and classes as frequent as in the bank",
    )
    critic_goal: float = _setting(
        0.7,
        "critic: it chooses no more sharply than brings the mean foretold hardness to this, 0 (random) to 1 (always as "
        "sharply as its temperature allows)",
    )
    critic_temperature: float = _setting(
        0.5,
        "critic: a candidate is picked with probability ~ foretold odds ** (1 / this) at the sharpest; higher is more "
        "random",
    )
    critic_held: tuple[str, ...] = _setting(
        ("scale",),
        "critic: transform parameters that it does not choose and that stay as diverse as random ones; small things "
        "are hard, and a critic that may choose the scale pastes little else",
    )
    critic_rehearsals: int = _setting(4, "critic: optimizer steps in a move, each on 64 remembered pastes")
    temperature: float = _setting(
        0.1,
        "learned: weight tau of KL(q || uniform), in units of the loss of an image; higher is more random",
    )
    learning_rate: float = _setting(1e-3, "Adam step size of synthesizer, discriminator and critic")
    dropout: float = _setting(0.1, "learned, deterministic: dropout in the synthesizer, 0 to 1")
    max_gradient_norm: float = _setting(1.0, "all that learn: the policy's gradient is clipped to this norm")
    discriminator_weight: float = _setting(
        0.0, "weight of realism in the synthesizer's objective; 0 switches the discriminator off"
    )

    robust: str = _setting(
        "none",
        "perturb composites before the detector is trained on them: none, pgd (gradient steps, each a forward and a "
        "backward more), universal (one pattern for all images, learned from the backward that is made anyway)",
    )
    robust_radius_objects: float = _setting(
        4 / 255, "robust: how far a value of a pixel that shows an object may be moved, in units of [0, 1]"
    )
    robust_radius_background: float = _setting(
        8 / 255, "robust: how far a value of another pixel may be moved, likewise"
    )
    robust_steps: int = _setting(1, "robust pgd: gradient steps")
    robust_step_size: float = _setting(
        0.0,
        "robust: length of a step relative to the radius; 0 for 2.5 / robust_steps but at most 1.25 (pgd), 0.1 "
        "(universal)",
    )
    robust_probability: float = _setting(1.0, "robust: share of the batches that are perturbed, 0 to 1")
    robust_start: int = _setting(
        0,
        "robust: batches that are left alone before; a model that is trained from scratch may learn nothing if it is "
        "perturbed from the first batch on",
    )
    robust_ramp: int = _setting(
        0, "robust: batches, after robust_start, over which the radius grows to its full size; 0 for at once"
    )

    def __post_init__(self) -> None:
        for name in ("objects", "decoys", "distractors", "critic_held"):
            # Whatever kind of list a configuration library makes of them.
            if isinstance(value := getattr(self, name), Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        for name in ("objects", "decoys", "distractors"):
            value = getattr(self, name)
            pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(n, int) for n in value)
            if not (pair and 0 <= value[0] <= value[1] <= 20):
                raise ValueError(f"{name}: expected whole numbers (low, high), 0 <= low <= high <= 20, got {value!r}")
        if not isinstance(self.ranges, TransformRanges):
            raise ValueError(f"ranges: expected TransformRanges, got {self.ranges!r}")
        held = self.critic_held
        if isinstance(held, str) or not set(held) <= set(PARAMETERS):
            raise ValueError(f"critic_held: expected a list of some of {', '.join(PARAMETERS)}, got {held!r}")
        for name in _SHARES:
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a share within [0, 1], got {value}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share within [0, 1), got {self.dropout}")
        if not isinstance(self.sampler, str):
            raise ValueError(
                f"sampler: expected the name of one, got {self.sampler!r}; give an instance to Terse(sampler=)"
            )
        if self.background_probability > 0 and self.objects[1] == 0:
            raise ValueError(
                "background_probability: expected objects above 0 with it, for images of the pool get pastes"
            )
        for name in ("edge_sigma", "temperature", "discriminator_weight", "min_side", "rarity_power"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a finite value of at least 0, got {getattr(self, name)}")
        for name in ("candidates", "critic_candidates", "critic_cutouts", "critic_rehearsals", "move_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not isinstance(self.critic_any_class, bool):
            raise ValueError(f"critic_any_class: expected True or False, got {self.critic_any_class!r}")
        if self.critic_any_class and self.critic_cutouts == 1:
            raise ValueError("critic_any_class: expected critic_cutouts above 1 with it, got 1: there is no choice")
        if not 0 <= self.critic_goal <= 1:
            raise ValueError(f"critic_goal: expected a hardness in [0, 1], got {self.critic_goal}")
        check_robust(self)
        for name in ("critic_temperature", "learning_rate", "max_gradient_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a value above 0, got {getattr(self, name)}")

    def sampler_settings(self, sampler: Any = None) -> Any:
        """What :func:`terse_aug.samplers.make_sampler` takes: the given sampler, else the setting."""
        chosen = self.sampler if sampler is None else sampler
        return {"type": "rarity", "power": self.rarity_power} if chosen == "rarity" else chosen


_SHARES = (
    "image_probability",
    "mirror_probability",
    "min_visibility",
    "background_probability",
    "superimpose_probability",
    "robust_probability",
)
ROBUST = ("none", "pgd", "universal")


def check_robust(config: TerseConfig) -> None:
    """Refuse settings of robustness training outside their range.

    Raises:
        ValueError: naming the setting.
    """
    if config.robust not in ROBUST:
        raise ValueError(f"robust: expected one of {', '.join(ROBUST)}, got {config.robust!r}")
    for name in ("robust_radius_objects", "robust_radius_background"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name}: expected a share of the pixel range within [0, 1], got {getattr(config, name)}")
    if config.robust_steps < 1:
        raise ValueError(f"robust_steps: expected at least 1, got {config.robust_steps}; robust='none' switches it off")
    for name in ("robust_start", "robust_ramp"):
        if getattr(config, name) < 0:
            raise ValueError(f"{name}: expected a number of batches of at least 0, got {getattr(config, name)}")
    if not 0 <= config.robust_step_size < float("inf"):
        raise ValueError(f"robust_step_size: expected a finite value of at least 0, got {config.robust_step_size}")


def replaced(config: TerseConfig, settings: dict[str, Any]) -> TerseConfig:
    """A configuration with single settings replaced.

    Raises:
        ValueError: a setting that there is not, or a value outside its range.
    """
    known = [setting.name for setting in fields(TerseConfig)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"unknown settings {unknown}; expected some of {known}")
    return replace(config, **settings)
