"""Robustness training: composites are perturbed before the detector is trained on them.

By projected gradient descent from a random start, x <- clip(x + a r sign(dL/dx)) (Madry et al. 2018; with a single
step, Wong et al. 2020), within an l-infinity ball whose radius r is epsilon_object for the pixels of objects and
epsilon_background for the rest (Jin & Rinard 2020).
Shape letters: B images, H and W an image, S the side of a tile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.compositing.compose import Composites, full_precision
from terse_aug.compositing.geometry import frame_of
from terse_aug.config import Robustness
from terse_aug.models import GivesInputGradients, ModelAdapter
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.training.metrics import Metrics
from terse_aug.training.perturbation import PerturbationBall, object_pixels, tiled
from terse_aug.utils.distributed import rank
from terse_aug.utils.random import generator_for

TILE = 64
"""Side of the noise that gradient steps start from, pixels; it is repeated over the image."""

_FIRST_SCALE, _GROW_AFTER = 2.0**16, 1000


class Perturber(nn.Module):
    """Perturbs composites.

    Args:
        settings: see :class:`terse_aug.Robustness`.
        pixel_format: of the images.
        model: computes gradients; does not become a part of this module.
        metrics: counts ``robustness/images`` perturbed, ``robustness/passes`` (a forward and a backward of an image),
            and images left unchanged because the gradient was ``robustness/not_finite`` or zero everywhere
            (``robustness/no_gradient``).

    Raises:
        ValueError: no model that gives gradients of its loss with respect to its input.
    """

    def __init__(
        self, settings: Robustness, pixel_format: PixelFormat, model: ModelAdapter | None, metrics: Metrics
    ) -> None:
        super().__init__()
        differentiable: Any = model
        if not isinstance(differentiable, GivesInputGradients):
            got = "no model" if model is None else type(model).__name__
            raise ValueError(
                "robustness needs the gradient of the detector's loss: expected Terse(model=...) with a model, or a "
                f"ModelAdapter that has input_gradients, got {got}"
            )
        self.settings, self._pixel_format = settings, pixel_format
        # In tuples, so that nn.Module does not register the detector, nor the metrics, which Terse saves.
        self._model, self._shared = (differentiable,), (metrics,)
        # Numbers, not buffers: reading them never synchronizes with a GPU.
        self._loss_scale, self._passes_since_overflow = _FIRST_SCALE, 0

    def perturbed(self, composites: Composites, usable: Sequence[bool], seed: int, call: int) -> Composites:
        """Composites with perturbed images; what is random is a function of seed, rank and call.

        Whether a batch is perturbed is the same on all ranks, and so is the number of forwards and backwards.

        Args:
            composites: of a batch; left untouched.
            usable: for each image whether it is finite; the others stay as they are.
            seed: of ``Terse``.
            call: number of the batch, from 0 on.
        """
        chosen = torch.rand((), generator=generator_for(seed, "robust", call)) < self.settings.probability
        if call < self.settings.warmup or not bool(chosen):
            return composites
        generator = generator_for(seed, rank(), "robust", call)
        with full_precision(composites.images[0].device):
            balls = [
                PerturbationBall.around(
                    image.detach().nan_to_num(),
                    self._radius(object_pixels(image, target, pastes, visible), call),
                    self._pixel_format,
                )
                for image, target, pastes, visible in zip(
                    composites.images, composites.targets, composites.pastes, composites.visible, strict=True
                )
            ]
        return replace(composites, images=self._descended(composites, balls, usable, generator))

    @property
    def step_size(self) -> float:
        """Length of a step in units of the radius."""
        return self.settings.step_size or min(1.25, 2.5 / self.settings.steps)

    @property
    def _metrics(self) -> Metrics:
        return self._shared[0]

    def _radius(self, objects: Tensor, call: int) -> Tensor:
        growth = min(1.0, (call - self.settings.warmup + 1) / max(self.settings.ramp, 1))
        return torch.where(objects, self.settings.epsilon_object, self.settings.epsilon_background) * growth

    def _descended(
        self,
        composites: Composites,
        balls: Sequence[PerturbationBall],
        usable: Sequence[bool],
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Images after the gradient steps; those whose gradient is zero or not finite stay as they are."""
        (model,) = self._model
        dtypes = [image.dtype for image in composites.images]
        scale = self._loss_scale if _in_half(composites.images[0]) else 1.0
        current = []
        for ball in balls:
            noise = torch.rand(3, TILE, TILE, generator=generator).to(ball.center) * 2 - 1
            current.append(ball.moved(ball.center, tiled(noise, frame_of(ball.center))))
        losses, finite, nonzero = [], [], []
        for _ in range(self.settings.steps):
            given = [image.to(dtype) for image, dtype in zip(current, dtypes, strict=True)]
            loss, gradients = model.input_gradients(given, composites.targets, scale)
            losses.append(loss.double())
            finite.append(torch.stack([gradient.isfinite().all() for gradient in gradients]))
            nonzero.append(torch.stack([(gradient != 0).double().mean() for gradient in gradients]))
            current = [
                ball.moved(image, self.step_size * gradient.sign().nan_to_num().to(image.dtype))
                for ball, image, gradient in zip(balls, current, gradients, strict=True)
            ]
        # One synchronization with the device for all images.
        flags = torch.stack([torch.stack(finite).all(0).double(), torch.stack(nonzero).amin(0)]).tolist()
        self._track(torch.stack(losses).tolist(), flags, usable, scale)
        keep = [own and bool(fine) and fraction > 0 for own, fine, fraction in zip(usable, *flags, strict=True)]
        return [
            _replaced(image, new) if kept else image
            for image, new, kept in zip(composites.images, current, keep, strict=True)
        ]

    def _track(
        self, losses: Sequence[float], flags: Sequence[Sequence[float]], usable: Sequence[bool], scale: float
    ) -> None:
        outcomes = [(bool(finite), fraction) for finite, fraction, own in zip(*flags, usable, strict=True) if own]
        fractions = [fraction for finite, fraction in outcomes if finite and fraction > 0]
        not_finite = sum(not finite for finite, _ in outcomes)
        counts = self._metrics.counts
        counts["robustness/images"] += len(fractions)
        counts["robustness/passes"] += len(usable) * self.settings.steps
        counts["robustness/not_finite"] += not_finite
        counts["robustness/no_gradient"] += len(outcomes) - not_finite - len(fractions)
        if fractions:
            self._metrics.average("robustness/zero_fraction", 1 - sum(fractions) / len(fractions))
        if all(math.isfinite(loss) for loss in losses):
            self._metrics.average("robustness/loss", losses[0])
            if len(losses) > 1:
                self._metrics.average("robustness/loss_gain", losses[-1] - losses[0])
        if scale > 1:  # as a GradScaler does
            self._passes_since_overflow = 0 if not_finite else self._passes_since_overflow + 1
            if not_finite:
                self._loss_scale = max(scale / 4, 2.0)
            elif self._passes_since_overflow % _GROW_AFTER == 0:
                self._loss_scale = min(scale * 2, _FIRST_SCALE)

    def get_extra_state(self) -> Tensor:
        """The scale of the loss, and the passes since it was reduced."""
        return torch.tensor([self._loss_scale, self._passes_since_overflow], dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """Take what :meth:`get_extra_state` gave."""
        self._loss_scale, self._passes_since_overflow = float(state[0]), int(state[1])


def _replaced(image: Tensor, new: Tensor) -> Tensor:
    """New values in the type of an image; added to it as a constant where it has a graph, which is kept."""
    if not image.requires_grad:
        return new.to(image.dtype)
    return image + (new - image.detach().to(new.dtype)).to(image.dtype)


def _in_half(image: Tensor) -> bool:
    """Whether gradients are computed in float16, in which small ones vanish."""
    kind = image.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return autocast or image.dtype == torch.float16
