"""Mining hard examples of a classifier that is easy to predict, for the tests of lock-step."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import torch
from factories import every_image, make_batch, policy_with
from torch import Tensor, nn

from terse_aug import ForegroundBank, Terse
from terse_aug.lockstep import HardExampleCache, HardExampleMiner
from terse_aug.models import ClassifierAdapter


class Brightness(nn.Module):
    """A classifier that predicts class 1 for images that are brighter on the left, else class 2."""

    def forward(self, images: Tensor) -> Tensor:
        left, right = images.tensor_split(2, dim=-1)
        difference = 40 * (left.mean((1, 2, 3)) - right.mean((1, 2, 3)))
        return torch.stack([torch.zeros_like(difference), difference, -difference], 1)


def make_terse(bank: ForegroundBank, policy: str = "random", **arguments: Any) -> Terse:
    """It pastes one object on every image and updates a small policy in every iteration."""
    settings = policy_with(policy, update_interval=1, candidates=2, replay_updates=1)
    return Terse(bank, settings, **({"paste": every_image(objects=(1, 1))} | arguments))


def make_miner(
    bank: ForegroundBank, folder: Path, wanted: dict[int, int], policy: str = "random", budget: int = 4000
) -> HardExampleMiner:
    folder.mkdir(exist_ok=True)
    model = ClassifierAdapter(Brightness(), classes=3)
    cache = HardExampleCache(folder / "hard")
    return HardExampleMiner(make_terse(bank, policy, model=model), model, cache, wanted, budget)


def noise_batches(**fields: Any) -> Iterator[Any]:
    for seed in count():
        yield make_batch(seed, **({"sizes": ((48, 48),) * 4, "objects": 0} | fields))
