"""One step of the training of generator, discriminator and segmentation network.

The state after a number of steps is a function of images, settings and seed: random numbers are drawn for the number
of the step, so a training that resumes is equal to the bit, on a CPU with the same number of threads.

Shape letters: B images, S side of the images.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.discovery import losses
from terse_aug.discovery.data import random_colors, random_crops
from terse_aug.discovery.discriminator import Discriminator, MaskClassifier
from terse_aug.discovery.generator import LayeredGenerator, Layers, Perturbation, draw_codes, draw_perturbation
from terse_aug.discovery.segmentation import SegmentationNetwork
from terse_aug.discovery.settings import DiscoverySettings
from terse_aug.utils.random import derived_seed, generator_for, isolated_global_rng

_BETAS = (0.5, 0.999)
_HELD_OUT = 256
_CHOICE_INTERVAL = 100
CHUNK = 32
"""Images of a forward without gradients."""
_STATISTICS_CHUNKS = 16


class DiscoveryTraining:
    """The networks, their optimizers, and the number of steps done.

    Args:
        images: photographs uint8 ``[N, 3, M, M]``.
        settings: of networks and training.
        seed: of everything random.
        device: of the networks.
    """

    def __init__(
        self, images: Tensor, settings: DiscoverySettings, seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        self.images, self.settings, self.seed, self.device = images, settings, seed, torch.device(device)
        with isolated_global_rng(derived_seed(seed, "networks")):
            self.generator = LayeredGenerator(settings)
            self.discriminator = Discriminator(settings)
            self.mask_classifier = MaskClassifier(settings)
        for network in (self.generator, self.discriminator, self.mask_classifier):
            network.to(self.device)
            for parameter in network.parameters():
                if parameter.dim() == 4:  # a sixth faster on a CPU
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.segmenter = SegmentationNetwork(settings.segmenter_width, derived_seed(seed, "segmenter")).to(self.device)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.chosen = copy.deepcopy(self.segmenter).eval().requires_grad_(False)
        self.chosen_iou, self.done = -1.0, 0
        self._has_own_statistics = False
        judging = chain(self.discriminator.trunk.parameters(), self.discriminator.realness.parameters())
        reading = chain(self.discriminator.category.parameters(), self.mask_classifier.parameters())
        self._optimizers = {
            "generator": self._adam(chain(self.generator.parameters(), reading)),
            "discriminator": self._adam(judging),
            "segmenter": torch.optim.Adam(self.segmenter.parameters(), lr=settings.segmenter_learning_rate),
        }

    def step(self) -> dict[str, float]:
        """Take one step, of the generator or of the segmentation network; its losses and measures."""
        within = self.done % (self.settings.generator_steps + self.settings.segmenter_steps)
        if within < self.settings.generator_steps:
            metrics = self._generator_step()
            self._update_average()
        else:
            self._start_segmenting(within)
            metrics = self._segmenter_step()
            last = within + 1 == self.settings.generator_steps + self.settings.segmenter_steps
            if (within + 1) % _CHOICE_INTERVAL == 0 or last:
                metrics |= self._choose_segmenter()
        self.done += 1
        return {name: float(value.detach()) for name, value in metrics.items()}

    @property
    def round(self) -> int:
        """Number of the round, from 1."""
        return self.done // (self.settings.generator_steps + self.settings.segmenter_steps) + 1

    @torch.no_grad()
    def sample(self, count: int, *keys: int | str, perturbed: bool = True) -> tuple[Layers, Tensor]:
        """Layers of the averaged generator, and their categories ``[count]``; the same for the same keys."""
        self._update_statistics()
        draw = generator_for(self.seed, *keys)
        z, category = self._codes(count, draw)
        perturbation = draw_perturbation(self.settings, count, draw) if perturbed else None
        parts = []
        for start in range(0, count, CHUNK):
            own = slice(start, start + CHUNK)
            moved = None if perturbation is None else Perturbation(*(values[own] for values in perturbation))
            parts.append(self.average(z[own], category[own], moved))
        return Layers(*map(torch.cat, zip(*parts, strict=True))), category

    def state(self) -> dict[str, Any]:
        """Tensors and plain values that :meth:`load_state` takes."""
        self._update_statistics()
        modules = {name: module.state_dict() for name, module in self._modules().items()}
        optimizers = {name: optimizer.state_dict() for name, optimizer in self._optimizers.items()}
        return {"modules": modules, "optimizers": optimizers, "chosen_iou": self.chosen_iou, "done": self.done}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state of a training of the same settings."""
        for name, module in self._modules().items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.chosen_iou, self.done = float(state["chosen_iou"]), int(state["done"])
        self._has_own_statistics = False

    def group_logits(self, masks: Tensor, draw: torch.Generator) -> Tensor:
        """Logits of groups that are read from masks ``[B, 1, S, S]``, with the noise of the settings on them."""
        noise = torch.randn(masks.shape, generator=draw).to(masks) * self.settings.mask_noise
        logits: Tensor = self.mask_classifier(masks + noise)
        return logits

    def _modules(self) -> dict[str, nn.Module]:
        names = ("generator", "discriminator", "mask_classifier", "segmenter", "average", "chosen")
        return {name: getattr(self, name) for name in names}

    def _adam(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Adam:
        return torch.optim.Adam(parameters, lr=self.settings.learning_rate, betas=_BETAS)

    def _codes(self, count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        z, category = draw_codes(self.settings, count, draw)
        return z.to(self.device), category.to(self.device)

    def _generator_step(self) -> dict[str, Tensor]:
        """A step of the discriminator and one of the generator, on the same generated images."""
        settings, draw = self.settings, generator_for(self.seed, self.done, "generated")
        z, category = self._codes(settings.batch, draw)
        layers: Layers = self.generator(z, category, draw_perturbation(settings, settings.batch, draw))
        metrics = self._discriminator_step(layers.composite.detach())
        realness, category_logits = self.discriminator(layers.composite)
        group = category // settings.group_size
        mask = layers.generated_mask
        group_logits = self.group_logits(mask, draw)
        weighted = {
            "realism": (1.0, losses.realism_loss(realness)),
            "code_of_composite": (settings.gamma_mi, losses.code_loss(category_logits, category)),
            "code_of_mask": (settings.gamma_mi, losses.code_loss(group_logits, group)),
            "mask_area": (settings.mask_area_weight, losses.mask_area_loss(mask, settings.min_mask_area)),
            "mask_softness": (settings.mask_binary_weight, losses.mask_binary_loss(mask)),
        }
        if settings.gamma_bg and self.round > 1:
            background = losses.background_loss(self.chosen(layers.background))
            weighted["background"] = (settings.gamma_bg, background)
        loss = torch.stack([weight * loss for weight, loss in weighted.values()]).sum()
        self._descend("generator", loss)
        return metrics | {
            **{name: loss for name, (_, loss) in weighted.items()},
            "generator": loss,
            "mask_code_accuracy": (group_logits.argmax(1) == group).float().mean(),
            "category_accuracy": (category_logits.argmax(1) == category).float().mean(),
            "mask_fraction": mask.mean(),
        }

    def _discriminator_step(self, generated: Tensor) -> dict[str, Tensor]:
        draw = generator_for(self.seed, self.done, "real")
        real = random_crops(self.images, self.settings.batch, self.settings.size, draw).to(self.device)
        on_real, on_generated = self.discriminator.judge(real), self.discriminator.judge(generated)
        loss = losses.discriminator_loss(on_real, on_generated)
        self._descend("discriminator", loss)
        return {"discriminator": loss, "realness_real": on_real.mean(), "realness_generated": on_generated.mean()}

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's, untyped
        optimizer.step()

    @torch.no_grad()
    def _update_average(self) -> None:
        # Without a shorter average at the start, the initial weights would be seen for thousands of steps.
        decay = min(self.settings.ema, (1 + self.done) / (10 + self.done))
        pairs = zip(self.average.parameters(), self.generator.parameters(), strict=True)
        for average, own in pairs:
            average.lerp_(own, 1 - decay)
        self._has_own_statistics = False

    @torch.no_grad()
    def _update_statistics(self) -> None:
        """Batch statistics of the averaged weights: those of other weights, averaged or not, do not suit them."""
        if self._has_own_statistics:
            return
        for module in self.average.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # the mean of all batches
        draw = generator_for(self.seed, "statistics")
        self.average.train()
        for _ in range(_STATISTICS_CHUNKS):
            self.average(*self._codes(CHUNK, draw))
        self.average.eval()
        self._has_own_statistics = True

    def _start_segmenting(self, within: int) -> None:
        if within == self.settings.generator_steps:
            self.chosen_iou = -1.0

    def _segmenter_step(self) -> dict[str, Tensor]:
        layers, _ = self.sample(self.settings.batch, self.done, "segmenter")
        images = random_colors(layers.composite, generator_for(self.seed, self.done, "colors"))
        target = (layers.mask > 0.5).float()
        loss = F.binary_cross_entropy_with_logits(self.segmenter(images), target)
        self._descend("segmenter", loss)
        return {"segmenter": loss}

    def _choose_segmenter(self) -> dict[str, Tensor]:
        """Keep the weights with the best IoU on held-out generated images."""
        layers, _ = self.sample(_HELD_OUT, "held out")
        self.segmenter.eval()
        with torch.no_grad():
            found = torch.cat([self.segmenter(own) for own in torch.split(layers.composite, CHUNK)]) > 0
        self.segmenter.train()
        true = layers.mask > 0.5
        iou = (found & true).sum() / (found | true).sum().clamp(min=1)
        if float(iou) > self.chosen_iou:
            self.chosen_iou = float(iou)
            self.chosen.load_state_dict(self.segmenter.state_dict())
        return {"segmenter_iou": iou}
