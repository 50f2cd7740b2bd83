"""Robustness training: composites are perturbed before the detector is trained on them. Imports torch only.

Two ways, both within an l-infinity ball whose radius is one for the pixels of objects and another for the rest
(Jin & Rinard 2020)::

    pgd         x <- clip(x + a r sign(dL/dx)), some times over, from a random start (Madry et al. 2018; of a single
                step, Wong et al. 2020)
    universal   one pattern for all images, u <- clip(u + a sign(sum of dL/du)), where the gradient is what the
                detector's own backward leaves in the composites (Shafahi et al. 2020, "Universal Adversarial Training")

Shape letters: B images, H and W an image, S the side of a tile.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.compositing.compose import Composites, full_precision
from terse_aug.config import TerseConfig
from terse_aug.models import GivesInputGradients, ModelAdapter
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.training.perturbation import PerturbationBall, folded, foreground_map, tiled
from terse_aug.utils.distributed import rank
from terse_aug.utils.random import generator_for

TILE = 64
"""Side of the universal pattern, and of the noise that gradient steps start from, pixels; both are repeated."""

GRID = 32
"""The pattern is shifted by multiples of this, pixels: the stride of a detector's coarser features, which see a pattern
that is shifted otherwise as another one."""

COUNTERS = ("images", "passes", "not_finite", "no_gradient")
AVERAGES = ("start", "gain", "zero_share")

_AVERAGE_DECAY = 0.95
_FIRST_SCALE, _GROW_AFTER = 2.0**16, 1000


class Robustness(nn.Module):
    """Perturbs composites.

    Args:
        config: with ``robust`` other than ``"none"``.
        pixels: format of the host's images.
        seed: of the universal pattern before the first step.
        target: asked for gradients; does not become a part of this module.

    Attributes:
        pattern: float ``[2, 3, S, S]`` in [-1, 1], in units of the radius: the universal pattern of background and of
            objects; empty for gradient steps.
        counts: ``images`` perturbed, ``passes`` (a forward and a backward of an image), images left as they were or
            not learned from because the gradient was ``not_finite`` or zero everywhere (``no_gradient``).

    Raises:
        ValueError: gradient steps, and no target that gives gradients.
    """

    pattern: Tensor

    def __init__(self, config: TerseConfig, pixels: PixelFormat, seed: int, target: ModelAdapter | None) -> None:
        super().__init__()
        if config.robust == "pgd" and not isinstance(target, GivesInputGradients):
            got = "no target" if target is None else type(target).__name__
            raise ValueError(
                "robust='pgd' asks the detector for the gradient of its loss: expected Terse(target=...) with a model, "
                f"or a ModelAdapter that has input_gradients, got {got}; robust='universal' does without"
            )
        self._config, self._pixels = config, pixels
        self._target: tuple[GivesInputGradients, ...] = (target,) if isinstance(target, GivesInputGradients) else ()
        universal = config.robust == "universal"
        first = torch.rand(2 * universal, 3, TILE, TILE, generator=generator_for(seed, "universal")) * 2 - 1
        self.register_buffer("pattern", first)
        self.counts: Counter[str] = Counter()
        self._averages: dict[str, float] = {}
        self._scale, self._since_overflow = _FIRST_SCALE, 0
        self._awaited = 0
        self._heard: Tensor | None = None
        # Of the images heard: how many, and of these how many with a gradient that is finite and not zero, and finite.
        self._answers, self._flags = 0, torch.zeros(2)

    def perturbed(self, composites: Composites, usable: Sequence[bool], seed: int, call: int) -> Composites:
        """Composites with other images; what is random is a function of seed, rank and call.

        Whether a batch is perturbed is the same on all ranks, and so is the number of forwards and backwards.

        Args:
            composites: of a batch; left untouched.
            usable: for each image whether it is finite; the others stay as they are.
            seed: of ``Terse``.
            call: number of the batch, from 0 on.

        Returns:
            Composites whose images have a graph, if the detector's backward is to be heard.
        """
        chosen = torch.rand((), generator=generator_for(seed, "robust", call)) < self._config.robust_probability
        if call < self._config.robust_start or not bool(chosen):
            return composites
        generator = generator_for(seed, rank(), "robust", call)
        shifts = (torch.randint(TILE // GRID, (len(usable), 2), generator=generator) * GRID).tolist()
        with full_precision(composites.images[0].device):
            foregrounds = _foregrounds(composites)
            rooms = [
                PerturbationBall.around(image.detach().nan_to_num(), self._radius(where, call), self._pixels)
                for image, where in zip(composites.images, foregrounds, strict=True)
            ]
        if self._config.robust == "universal":
            images = self._patterned(composites.images, foregrounds, rooms, usable, shifts)
        else:
            images = self._ascended(composites, rooms, usable, generator)
        return replace(composites, images=images)

    def step(self) -> bool:
        """Let the universal pattern move by what the backward has left; false if it has left nothing at all."""
        awaited, heard, answers = self._awaited, self._heard, self._answers
        fine, finite = map(int, self._flags.tolist())
        self._forget()
        if not awaited:
            return True
        self.counts["not_finite"] += answers - finite
        self.counts["no_gradient"] += max(awaited - answers, 0) + finite - fine
        if heard is not None:
            self.pattern.add_(heard.sign(), alpha=self.step_size).clamp_(-1, 1)
        return answers > 0

    def figures(self) -> dict[str, float]:
        """Counters and running averages, by name, for :meth:`terse_aug.Terse.metrics`."""
        named = {name: float(self.counts[name]) for name in COUNTERS} | self._averages
        return {f"robust/{name}": value for name, value in named.items()}

    @property
    def step_size(self) -> float:
        """Length of a step in units of the radius."""
        if self._config.robust_step_size:
            return self._config.robust_step_size
        return 0.1 if self._config.robust == "universal" else min(1.25, 2.5 / self._config.robust_steps)

    def _radius(self, foreground: Tensor, call: int) -> Tensor:
        objects, background = self._config.robust_radius_objects, self._config.robust_radius_background
        return torch.where(foreground, objects, background) * self._growth(call)

    def _growth(self, call: int) -> float:
        """Part of the radius that a batch gets."""
        return min(1.0, (call - self._config.robust_start + 1) / max(self._config.robust_ramp, 1))

    # --- gradient steps ---------------------------------------------------------------------------------------------

    def _ascended(
        self,
        composites: Composites,
        rooms: Sequence[PerturbationBall],
        usable: Sequence[bool],
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Images after the gradient steps; those whose gradient is zero or not finite stay as they are."""
        target = self._target[0]
        dtypes = [image.dtype for image in composites.images]
        scale = self._scale if _in_half(composites.images[0]) else 1.0
        current = []
        for room in rooms:
            noise = torch.rand(3, TILE, TILE, generator=generator).to(room.centre) * 2 - 1
            current.append(room.moved(room.centre, tiled(noise, (0, 0), _size(room.centre))))
        losses, finite, moving = [], [], []
        for _ in range(self._config.robust_steps):
            given = [image.to(dtype) for image, dtype in zip(current, dtypes, strict=True)]
            loss, gradients = target.input_gradients(given, composites.targets, scale)
            losses.append(loss.double())
            finite.append(torch.stack([gradient.isfinite().all() for gradient in gradients]))
            moving.append(torch.stack([(gradient != 0).double().mean() for gradient in gradients]))
            current = [
                room.moved(image, self.step_size * gradient.sign().nan_to_num().to(image.dtype))
                for room, image, gradient in zip(rooms, current, gradients, strict=True)
            ]
        # Read at once: one wait for the device.
        flags = torch.stack([torch.stack(finite).all(0).double(), torch.stack(moving).amin(0)]).tolist()
        self._record(torch.stack(losses).tolist(), flags, usable, scale)
        keep = [own and bool(fine) and share > 0 for own, fine, share in zip(usable, *flags, strict=True)]
        return [
            _in_place_of(image, new) if kept else image
            for image, new, kept in zip(composites.images, current, keep, strict=True)
        ]

    def _record(
        self, losses: Sequence[float], flags: Sequence[Sequence[float]], usable: Sequence[bool], scale: float
    ) -> None:
        outcomes = [(bool(finite), share) for finite, share, own in zip(*flags, usable, strict=True) if own]
        shares = [share for finite, share in outcomes if finite and share > 0]
        not_finite = sum(not finite for finite, _ in outcomes)
        self.counts["images"] += len(shares)
        self.counts["passes"] += len(usable) * self._config.robust_steps
        self.counts["not_finite"] += not_finite
        self.counts["no_gradient"] += len(outcomes) - not_finite - len(shares)
        if shares:
            self._average("zero_share", 1 - sum(shares) / len(shares))
        if all(math.isfinite(loss) for loss in losses):
            self._average("start", losses[0])
            if len(losses) > 1:
                self._average("gain", losses[-1] - losses[0])
        if scale > 1:  # as a GradScaler does
            self._since_overflow = 0 if not_finite else self._since_overflow + 1
            if not_finite:
                self._scale = max(self._scale / 4, 2.0)
            elif self._since_overflow % _GROW_AFTER == 0:
                self._scale = min(self._scale * 2, _FIRST_SCALE)

    def _average(self, name: str, value: float) -> None:
        old = self._averages.get(name, value)
        self._averages[name] = _AVERAGE_DECAY * old + (1 - _AVERAGE_DECAY) * value

    # --- the universal pattern --------------------------------------------------------------------------------------

    def _patterned(
        self,
        images: Sequence[Tensor],
        foregrounds: Sequence[Tensor],
        rooms: Sequence[PerturbationBall],
        usable: Sequence[bool],
        shifts: Sequence[Sequence[int]],
    ) -> list[Tensor]:
        """Images with the pattern, whose gradient is heard wherever autograd is on."""
        perturbed = []
        for image, where, room, own, (down, right) in zip(images, foregrounds, rooms, usable, shifts, strict=True):
            if not own:
                perturbed.append(image)
                continue
            background, objects = tiled(self.pattern.to(room.centre), (down, right), _size(image))
            new = _in_place_of(image, room.moved(room.centre, torch.where(where, objects, background)))
            self.counts["images"] += 1
            if torch.is_grad_enabled():
                self._awaited += 1
                if not new.requires_grad:
                    new = new.requires_grad_().clone()  # no leaf, so that a host may write into it
                ear = _Hook(self, where, (down, right))
                new.register_hook(ear)  # type: ignore[no-untyped-call]  # torch has no types for it
            perturbed.append(new)
        return perturbed

    def hear(self, gradient: Tensor, foreground: Tensor, shift: tuple[int, int]) -> None:
        """Take the gradient ``[3, H, W]`` of an image, whatever its scale, until the next step."""
        gradient = gradient.detach().float()
        size = gradient.abs().mean()
        finite, nonzero = size.isfinite(), size > 0
        # All images weigh the same, however high their loss.
        own = torch.where(finite & nonzero, gradient / size, 0)
        both = torch.stack([own * ~foreground, own * foreground])
        sums = folded(both, shift, TILE).to(self.pattern)
        self._heard = sums if self._heard is None else self._heard + sums
        self._answers += 1
        self._flags = self._flags.to(sums.device) + torch.stack([finite & nonzero, finite]).to(sums.device)

    def _forget(self) -> None:
        self._awaited, self._heard, self._answers, self._flags = 0, None, 0, torch.zeros(2)

    # --- state ------------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        """Counters, averages and the scale of the loss."""
        counts = [float(self.counts[name]) for name in COUNTERS]
        averages = [self._averages.get(name, math.nan) for name in AVERAGES]
        return torch.tensor([*counts, *averages, self._scale, self._since_overflow], dtype=torch.float64)

    def set_extra_state(self, state: Any) -> None:
        """Take what :meth:`get_extra_state` gave; gradients that were heard before are of another run."""
        values = state.tolist()
        named = dict(zip((*COUNTERS, *AVERAGES), values, strict=False))
        self.counts = Counter({name: int(named[name]) for name in COUNTERS})
        self._averages = {name: named[name] for name in AVERAGES if not math.isnan(named[name])}
        self._scale, self._since_overflow = values[-2], int(values[-1])
        self._forget()


class _Hook:
    """Hears the gradient of one image."""

    def __init__(self, robustness: Robustness, foreground: Tensor, shift: tuple[int, int]) -> None:
        self._told = (foreground, shift)
        self._robustness = robustness

    def __call__(self, gradient: Tensor) -> None:
        self._robustness.hear(gradient, *self._told)


def make_robustness(
    config: TerseConfig, pixels: PixelFormat, seed: int, target: ModelAdapter | None
) -> Robustness | None:
    """What the settings ask for; ``None`` for nothing."""
    return None if config.robust == "none" else Robustness(config, pixels, seed, target)


def _foregrounds(composites: Composites) -> list[Tensor]:
    return [
        foreground_map(image, target, pastes, shown)
        for image, target, pastes, shown in zip(
            composites.images, composites.targets, composites.pastes, composites.shown, strict=True
        )
    ]


def _in_place_of(image: Tensor, new: Tensor) -> Tensor:
    """New values in the type of an image; added to it as a constant where it has a graph, which is kept."""
    if not image.requires_grad:
        return new.to(image.dtype)
    return image + (new - image.detach().to(new.dtype)).to(image.dtype)


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _in_half(image: Tensor) -> bool:
    """Whether gradients are computed in float16, in which small ones vanish."""
    kind = image.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return autocast or image.dtype == torch.float16
