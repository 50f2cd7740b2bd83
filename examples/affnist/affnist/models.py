"""The two classifiers of the paper's AffNIST experiments."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from affnist.data import CANVAS

_MEAN, _STD = 0.1, 0.27  # of ink on the canvas, roughly; one number each, as is usual for MNIST
_DECAY = 0.99


class SmallNet(nn.Module):
    """Two convolutions (10 and 20 channels) and two dense layers (50 and 10), the target of the paper's figure."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        side = ((CANVAS - 4) // 2 - 4) // 2
        self.features = nn.Sequential(
            nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()
        )
        self.classify = nn.Sequential(
            nn.Flatten(), nn.Linear(20 * side * side, 50), nn.ReLU(), nn.Dropout(dropout), nn.Linear(50, 10)
        )
        self.to(memory_format=torch.channels_last)  # less time on a CPU

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B, 10]`` of images ``[B, c, CANVAS, CANVAS]`` in [0, 1], whose first channel is used."""
        logits: Tensor = self.classify(self.features(_normalised(images)))
        return logits


class FourConvolutions(nn.Module):
    """Four 5x5 convolutions of 64 channels and stride 2, each with BatchNorm and swish: the paper's Table 1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in (1, 64, 64, 64):
            layers += [nn.Conv2d(channels, 64, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(64), nn.SiLU()]
        self.features = nn.Sequential(*layers)
        side = CANVAS
        for _ in range(4):
            side = (side + 1) // 2
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(64 * side * side, 10))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`SmallNet`."""
        logits: Tensor = self.classify(self.features(_normalised(images)))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {"small": SmallNet, "table1": FourConvolutions}
"""Networks by name."""


def averaged(model: nn.Module) -> AveragedModel:
    """A copy for measuring: after every ``update_parameters`` the running mean of the weights.

    At a constant learning rate the weights of a single iteration wander, and accuracy with them, by a point or two. The
    mean reaches about a tenth of the iterations back, and at most 100: early on, when weights still travel, a longer
    one would lag behind.
    """
    return AveragedModel(model, avg_fn=_towards, use_buffers=True)


def _towards(mean: Tensor, own: Tensor, updates: Tensor | int) -> Tensor:
    if not mean.is_floating_point():
        return own
    decay = min(_DECAY, (1 + int(updates)) / (10 + int(updates)))
    return torch.lerp(mean, own, 1 - decay)


def _normalised(images: Tensor) -> Tensor:
    return (images[:, :1] - _MEAN) / _STD


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Per cent of images ``[N, 1, CANVAS, CANVAS]`` that a model gets right."""
    training = model.training
    model.eval()
    right = sum(
        int((model(images[start : start + batch_size]).argmax(1) == labels[start : start + batch_size]).sum())
        for start in range(0, len(images), batch_size)
    )
    model.train(training)
    return 100 * right / len(images)
