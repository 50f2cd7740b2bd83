"""BigGAN-deep of pytorch-pretrained-biggan, from a local folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights

from terse_aug.generators.latents import SampleKey, Truncation, draw_noise
from terse_aug.generators.local_files import class_names_of, state_dict_of
from terse_aug.generators.protocol import Rendered, last_of_each_size, recorded_outputs, weights_digest
from terse_aug.utils.packages import optional_module

_CONFIG, _WEIGHTS = "config.json", "pytorch_model.bin"
_SMALLEST_FEATURE = 8
_ROUNDING = 1e-9
"""In steps between recorded truncations."""


class BigGANGenerator:
    """BigGAN-deep (Brock et al. 2019); features are the last outputs of each size from 8 x 8 px on.

    Noise of truncation method ``truncated-normal`` comes with the batch statistics for its value, noise of ``scaled``
    with those of a value of 1.

    Args:
        folder: with ``config.json`` and ``pytorch_model.bin``, and ``class_names.txt`` (a name a line) if the classes
            are not ImageNet's.
        device: to render on.

    Raises:
        FileNotFoundError: a file is missing.
        MissingPackageError: pytorch-pretrained-biggan is not installed.
        ValueError: a file is damaged, or the weights are those of another config.
    """

    name = "biggan"

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        package = optional_module("pytorch_pretrained_biggan", "generators")
        root = Path(folder)
        weights = state_dict_of(root / _WEIGHTS)
        try:
            config = package.BigGANConfig.from_json_file(root / _CONFIG)
            self._model = package.BigGAN(config)
        except (json.JSONDecodeError, AttributeError, TypeError, KeyError) as error:
            raise ValueError(f"{root / _CONFIG}: no config of BigGAN ({error})") from error
        try:
            missing, _ = self._model.load_state_dict(weights, strict=False)  # as the package does
        except RuntimeError as error:
            raise ValueError(f"{root / _WEIGHTS}: weights of another config than {_CONFIG} ({error})") from error
        if missing:
            raise ValueError(f"{root / _WEIGHTS}: {len(missing)} weights are missing, such as {missing[0]}")
        self._model.eval().requires_grad_(False).to(device)
        self._device, self._noise, self._statistics = device, int(config.z_dim), int(config.n_stats)
        self._recorded = [f"generator.layers.{number}" for number in range(len(self._model.generator.layers))]
        self.class_names: Sequence[str] = class_names_of(root, int(config.num_classes), _imagenet)
        self.fingerprint = weights_digest(self._model, config.to_json_string())

    def latent(self, key: SampleKey) -> Tensor:
        """Noise float32 ``[z_dim]``."""
        return draw_noise(key, self._noise)

    def render(self, latents: Tensor, labels: Tensor, truncation: Truncation) -> Rendered:
        """See :class:`FeatureGenerator`."""
        one_hot = torch.nn.functional.one_hot(labels, len(self.class_names)).float().to(self._device)
        value = truncation.value if truncation.method == "truncated-normal" else 1.0
        statistics = statistics_argument(value, self._statistics)
        noise = latents.to(self._device)
        images, features = recorded_outputs(
            self._model, self._recorded, lambda: self._model(noise, one_hot, statistics) / 2 + 0.5
        )
        return Rendered(images, last_of_each_size(features, _SMALLEST_FEATURE))


def statistics_argument(truncation: float, count: int) -> float:
    """What the package has to be given to take the batch statistics of a truncation.

    It divides by the step between its recorded statistics. Between two of them it swaps their weights, so that for a
    recorded truncation rounding may yield its neighbor, as for 0.14 and 0.58 of 51 statistics.

    Args:
        truncation: above 0, at most 1.
        count: number of the statistics, of truncations from 0 to 1.
    """
    step = 1.0 / (count - 1)
    place = truncation / step
    if place == round(place):
        return truncation
    below = max(math.ceil(place - _ROUNDING) - 1, 0)
    return (below + max(1 - (place - below), _ROUNDING)) * step


def _imagenet() -> Sequence[str]:
    names: Sequence[str] = ResNet50_Weights.DEFAULT.meta["categories"]
    return names
