"""The layered generator of terse_aug.discovery, without its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from terse_aug.discovery import DiscoverySettings, LayeredGenerator
from terse_aug.discovery.generator import ResidualBlock
from terse_aug.discovery.weights_file import load_weights_file
from terse_aug.generators.latents import SampleKey, Truncation, draw_noise
from terse_aug.generators.protocol import Rendered, recorded_outputs, weights_digest
from terse_aug.utils.random import generator_for

CHECKPOINT, _KIND, _VERSION = "checkpoint.pt", "terse-aug cutter checkpoint", 1
"""Of a run of ``terse-aug learn cutter``."""


class LayeredFeatures:
    """A layered generator as any other: composites, and features of what makes their colors.

    The features are those of the background and of the foreground's appearance. Of the shape stage, which makes the
    mask, nothing is recorded; the appearance stage gets its result, as the colors depend on the shape. The generator's
    categories were discovered without names, so all samples are of one class, ``object``, and their category is a part
    of the latent.

    Args:
        model: trained, on any device.
    """

    name = "layered"

    def __init__(self, model: LayeredGenerator) -> None:
        self._model = model.eval().requires_grad_(False)
        self._settings = model.settings
        self._device = next(model.parameters()).device
        residual = {name for name, module in model.named_modules() if isinstance(module, ResidualBlock)}
        upsampling = [f"background.features.blocks.{number}" for number in range(len(model.background.features.blocks))]
        colors = [name for name in sorted(residual) if name.startswith(("background.", "appearance."))]
        self._recorded = [*upsampling, *colors]
        self.class_names: Sequence[str] = ["object"]
        self.fingerprint = weights_digest(model, sorted(self._settings.plain().items()))

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> LayeredFeatures:
        """The averaged generator of a run of ``terse-aug learn cutter``.

        Args:
            path: folder of the run, or its checkpoint.
            device: to render on.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: it is another kind of file, damaged, or not weights only; the message names it.
        """
        place = Path(path) / CHECKPOINT if Path(path).is_dir() else Path(path)
        content = load_weights_file(place, _KIND, _VERSION)
        try:
            known = {own.name for own in fields(DiscoverySettings)}
            settings = {name: value for name, value in content["run"].items() if name in known}
            model = LayeredGenerator(DiscoverySettings.from_plain(settings))
            model.load_state_dict(content["state"]["modules"]["average"])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{place}: a damaged checkpoint ({type(error).__name__}: {error})") from error
        return cls(model.to(device))

    def latent(self, key: SampleKey) -> Tensor:
        """z and the category: float32 ``[latent + 1]``."""
        rng = generator_for(key.seed, "layered category", key.label, key.number)
        category = torch.randint(self._settings.categories, (1,), generator=rng)
        return torch.cat([draw_noise(key, self._settings.latent), category.float()])

    def render(self, latents: Tensor, labels: Tensor, truncation: Truncation) -> Rendered:
        """See :class:`FeatureGenerator`."""
        codes = latents.to(self._device)
        return recorded_outputs(
            self._model, self._recorded, lambda: self._model(codes[:, :-1], codes[:, -1].long()).composite / 2 + 0.5
        )

    def masks(self, latents: Tensor) -> Tensor:
        """The masks that the composites are made with, ``[B, S, S]``, 0 to 1: to measure with, never to learn from."""
        codes = latents.to(self._device)
        with torch.no_grad():
            mask: Tensor = self._model(codes[:, :-1], codes[:, -1].long()).mask[:, 0]
        return mask
