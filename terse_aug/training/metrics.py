"""Counters and running averages of a run.

They live in Python, not in buffers on the device: reading them never synchronizes with a GPU. They are saved by name.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from terse_aug.compositing.compose import Composites
from terse_aug.compositing.geometry import ForegroundLike
from terse_aug.compositing.plan import PastePlan
from terse_aug.transforms import PARAMETERS, loaded_columns, saved_columns
from terse_aug.utils.warnings import TerseWarning

COUNTERS = (
    "calls",
    "iterations",
    "images",
    "composites",
    "objects_pasted",
    "objects_labelled",
    "decoys",
    "distractors",
    "occludees",
    "backgrounds",
    "updates",
    "skipped_updates",
    "extra_forwards",
    "random_fallback",
    "non_finite_losses",
    "hooks_failed",
    "feedback_failed",
    "dropped/occluded",
    "dropped/paste_hidden",
    "dropped/paste_too_small",
    "dropped/paste_outside",
    "dropped/paste_overlaps",
    "dropped/decoy_without_background",
    "dropped/box_degenerate",
    "dropped/box_outside",
    "dropped/box_clipped",
    "dropped/image_not_finite",
    "dropped/background_unreadable",
    "dropped/distractor_not_shown",
    "dropped/graph",
)
ROBUSTNESS_COUNTERS = (
    "robustness/images",
    "robustness/passes",
    "robustness/not_finite",
    "robustness/no_gradient",
)
STATE_VERSION = 1

_AVERAGE_DECAY = 0.95
_MOMENTS_DECAY = 0.98
_UNIFORM_STD = 1 / math.sqrt(12)


def std_ratios(unit: Tensor, columns: Sequence[str] = PARAMETERS) -> dict[str, float]:
    """Standard deviation of each column of transforms ``[n, P]`` in the unit cube, relative to uniform."""
    if len(unit) == 0:
        return {}
    ratios = unit.double().std(0, correction=0) / _UNIFORM_STD
    return dict(zip(columns, ratios.tolist(), strict=True))


def batch_counts(plan: PastePlan[ForegroundLike], composites: Composites) -> Counter[str]:
    """What the counters grow by for a batch of composites."""
    pastes = [paste for own in composites.pastes for paste in own]
    counts = Counter({f"dropped/{reason}": count for reason, count in composites.dropped.items()})
    counts["images"] = len(composites.images)
    counts["composites"] = sum(bool(own) for own in composites.pastes)
    counts["objects_pasted"] = len(pastes)
    counts["objects_labelled"] = sum(paste.row is not None for paste in pastes)
    counts["decoys"] = len(plan.decoys) - composites.dropped["decoy_without_background"]
    counts["backgrounds"] = len(composites.backgrounds)
    counts["occludees"] = sum(paste.number is None for paste in pastes)
    counts["distractors"] = len(plan.distractors) - composites.dropped["distractor_not_shown"]
    return counts


class Metrics(nn.Module):
    """What has happened in a run.

    Args:
        names: of the counters.
        columns: names of the P columns of a transform.

    Attributes:
        counts: by name.
    """

    def __init__(self, names: Iterable[str] = COUNTERS, columns: Sequence[str] = PARAMETERS) -> None:
        super().__init__()
        self._names, self._columns = tuple(names), tuple(columns)
        self.counts: Counter[str] = Counter()
        self._averages: dict[str, float] = {}
        self._moments = np.zeros((3, len(self._columns)))

    def average(self, name: str, value: float) -> None:
        """Update the running average of ``name`` with a finite value."""
        old = self._averages.get(name, value)
        self._averages[name] = _AVERAGE_DECAY * old + (1 - _AVERAGE_DECAY) * value

    def add_batch(self, counts: Mapping[str, int], unit: Tensor) -> None:
        """Count a batch.

        Args:
            counts: see :func:`batch_counts`.
            unit: float ``[M, P]``, its transforms in the unit cube, on the CPU.
        """
        self.counts["calls"] += 1
        self.counts.update(counts)
        if len(unit):
            self.add_transforms(unit)

    def add_transforms(self, unit: Tensor) -> None:
        """Update the running moments with transforms ``[M, P]`` in the unit cube, on the CPU."""
        values = unit.numpy().astype(np.float64)
        self._moments *= _MOMENTS_DECAY
        self._moments[0] += len(values)
        self._moments[1] += values.sum(0)
        self._moments[2] += (values * values).sum(0)

    def std_ratios(self) -> dict[str, float]:
        """Standard deviation of each transform parameter over about the last fifty calls, relative to uniform.

        1 is as diverse as random pasting, 0 is collapsed.
        """
        known = self._moments[0] > 0
        weight, first, second = self._moments[:, known]
        ratios = np.sqrt((second / weight - (first / weight) ** 2).clip(0)) / _UNIFORM_STD
        names = [name for name, own in zip(self._columns, known, strict=True) if own]
        return dict(zip(names, ratios.tolist(), strict=True))

    def summary(self) -> dict[str, float]:
        """Everything, by name."""
        ratios = self.std_ratios()
        values: dict[str, float] = {name: float(self.counts[name]) for name in self._names}
        values |= self._averages
        values |= {f"std_ratio/{name}": value for name, value in ratios.items()}
        if ratios:
            values["diversity"] = sum(ratios.values()) / len(ratios)
        return values

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "version"] = torch.tensor(STATE_VERSION)
        for name in self._names:
            destination[f"{prefix}count/{name}"] = torch.tensor(self.counts[name])
        for name, value in self._averages.items():
            destination[f"{prefix}average/{name}"] = torch.tensor(value, dtype=torch.float64)
        destination[prefix + "transform_moments"] = torch.from_numpy(self._moments.copy())
        destination[prefix + "columns"] = saved_columns(self._columns)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing_keys: list[str], *_: Any
    ) -> None:
        own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if "version" not in own:
            missing_keys.append(prefix + "version")
            return
        version = int(own.pop("version"))
        counts = {name: own.pop(f"count/{name}", None) for name in self._names}
        moments, columns = own.pop("transform_moments", None), loaded_columns(own.pop("columns", None))
        averages = {name: value for name, value in own.items() if name.startswith("average/")}
        missing = [name for name, value in counts.items() if value is None]
        by_name: dict[str, Any] = {}
        if moments is None or moments.shape != (len(self._moments), len(columns)):
            missing.append("transform_moments")
        else:
            by_name = dict(zip(columns, moments.cpu().double().numpy().T, strict=True))
        unknown = sorted(own.keys() - averages.keys())
        if missing or unknown:
            warnings.warn(
                f"the state was saved by another version of terse-aug (state version {version}, here {STATE_VERSION}): "
                f"missing {missing}, which start at 0; unknown {unknown}, which are ignored",
                TerseWarning,
                stacklevel=2,
            )
        self.counts = Counter({name: int(value) for name, value in counts.items() if value is not None})
        self._averages = {name.removeprefix("average/"): float(value) for name, value in averages.items()}
        # A column that was not drawn when the state was saved has no moments yet.
        self._moments = np.stack([by_name.get(name, np.zeros(3)) for name in self._columns], 1)
