"""A hunt for hard examples of a classifier that is simple to foresee, for the tests of lock-step."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import torch
from factories import every_image, make_batch, policy_with
from torch import Tensor, nn

from terse_aug import ForegroundBank, Terse
from terse_aug.lockstep import HardExampleCache, HardExampleMining
from terse_aug.models import ClassifierAdapter


class Brightness(nn.Module):
    """A classifier that takes what is bright on the left for class 1 and all else for class 2."""

    def forward(self, images: Tensor) -> Tensor:
        left = images[..., : images.shape[-1] // 2].mean((1, 2, 3)) - images[..., images.shape[-1] // 2 :].mean(
            (1, 2, 3)
        )
        return torch.stack([torch.zeros_like(left), 40 * left, -40 * left], 1)


def hunt(
    bank: ForegroundBank, folder: Path, policy: str, budget: int = 4000, **wanted: int
) -> tuple[HardExampleMining, Any, Terse]:
    folder.mkdir(exist_ok=True)
    target = ClassifierAdapter(Brightness(), classes=3)
    terse = Terse(bank, policy_with(policy, update_interval=1), paste=every_image(objects=(1, 1)), model=target)
    cache = HardExampleCache(folder / "hard")
    labels = {int(name.removeprefix("label")): number for name, number in wanted.items()}
    return HardExampleMining(terse, target, cache, labels, budget), cache, terse


def noise_batches() -> Any:
    for seed in count():
        yield make_batch(seed, sizes=((48, 48),) * 4, objects=0)
