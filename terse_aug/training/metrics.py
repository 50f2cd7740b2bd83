"""Counters and running figures of a run, saved as plain tensors. Imports torch only.

They live in Python, not in buffers on the device: reading them never waits for a GPU.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.transforms import PARAMETERS

COUNTERS = (
    "calls",
    "iterations",
    "images",
    "composites",
    "objects_pasted",
    "objects_labelled",
    "decoys",
    "moves",
    "skipped_moves",
    "extra_forwards",
    "suspended",
    "losses_not_finite",
    "dropped/occluded",
    "dropped/paste_hidden",
    "dropped/paste_too_small",
    "dropped/paste_outside",
    "dropped/decoy_without_background",
    "dropped/box_degenerate",
    "dropped/box_outside",
    "dropped/image_not_finite",
    "dropped/graph",
    "backgrounds",
    "superimposed",
    "distractors",
    "dropped/background_unreadable",
    "dropped/distractor_not_shown",
    "hearing_failed",
    "dropped/box_clipped",
)
"""Names of the counters, in the order in which they are saved."""

AVERAGES = (
    "loss",
    "divergence",
    "realism",
    "discriminator_loss",
    "gradient_norm",
    "hardness",
    "hardness_gain",
    "critic_correlation",
)
"""Names of the running averages, in the order in which they are saved."""

_AVERAGE_DECAY = 0.95
_SPREAD_DECAY = 0.98
_UNIFORM_DEVIATION = 1 / math.sqrt(12)


def std_ratios(unit: Tensor) -> dict[str, float]:
    """Standard deviation of each column of transforms ``[n, P]`` in the unit cube, relative to uniform."""
    if len(unit) == 0:
        return {}
    deviation = unit.double().std(0, correction=0) / _UNIFORM_DEVIATION
    return dict(zip(PARAMETERS, deviation.tolist(), strict=True))


class Ledger(nn.Module):
    """What happened so far.

    Attributes:
        counts: by name, see :data:`COUNTERS`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._averages: dict[str, float] = {}
        self._moments = torch.zeros(3, len(PARAMETERS), dtype=torch.float64)

    def average(self, name: str, value: float) -> None:
        """Move the running average of ``name`` towards a finite value."""
        old = self._averages.get(name, value)
        self._averages[name] = _AVERAGE_DECAY * old + (1 - _AVERAGE_DECAY) * value

    def see_transforms(self, unit: Tensor) -> None:
        """Take transforms ``[M, P]`` in the unit cube, on the CPU, into the running spread."""
        values = unit.double()
        new = torch.stack([torch.ones_like(values), values, values.square()]).sum(1)
        self._moments = _SPREAD_DECAY * self._moments + new

    def spread(self) -> dict[str, float]:
        """Standard deviation of each transform parameter, relative to the uniform distribution's.

        1 is as diverse as random pasting, 0 is collapsed; over about the last fifty calls.
        """
        weight, first, second = self._moments
        if float(weight[0]) == 0:
            return {}
        deviation = (second / weight - (first / weight) ** 2).clamp(min=0).sqrt() / _UNIFORM_DEVIATION
        return dict(zip(PARAMETERS, deviation.tolist(), strict=True))

    def summary(self) -> dict[str, float]:
        """Everything, flat, by name."""
        spread = self.spread()
        figures: dict[str, float] = {name: float(self.counts[name]) for name in COUNTERS}
        figures |= self._averages
        figures |= {f"spread/{name}": value for name, value in spread.items()}
        if spread:
            figures["diversity"] = sum(spread.values()) / len(spread)
        return figures

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "counts"] = torch.tensor([self.counts[name] for name in COUNTERS])
        averages = [self._averages.get(name, math.nan) for name in AVERAGES]
        destination[prefix + "averages"] = torch.tensor(averages, dtype=torch.float64)
        destination[prefix + "moments"] = self._moments.clone()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = ("counts", "averages", "moments")
        absent = [prefix + name for name in names if prefix + name not in state_dict]
        missing_keys.extend(absent)
        if absent:
            return
        counts, averages, moments = (state_dict[prefix + name].cpu() for name in names)
        if len(counts) != len(COUNTERS) or len(averages) != len(AVERAGES) or moments.shape != self._moments.shape:
            error_msgs.append(f"{prefix}: the state is of another version of terse-aug")
            return
        self.counts = Counter(dict(zip(COUNTERS, counts.tolist(), strict=True)))
        self._averages = {
            name: value for name, value in zip(AVERAGES, averages.tolist(), strict=True) if not math.isnan(value)
        }
        self._moments = moments.double().clone()
