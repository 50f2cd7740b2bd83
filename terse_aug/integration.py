"""What all framework adapters share: settings from configs, the base class of hooks."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from terse_aug.bank import ForegroundBank
from terse_aug.config import PasteConfig, Robustness, check_fraction, policy_settings, settings_from
from terse_aug.data.auxiliary_objects import Distractors
from terse_aug.data.background_pool import BackgroundPool
from terse_aug.data.foreground_loader import ForegroundLoader, SampledForegrounds, check_loader_settings
from terse_aug.models import ModelAdapter
from terse_aug.policies import Policy
from terse_aug.preview import draw_batch
from terse_aug.samplers import Sampler, make_sampler
from terse_aug.structures.keypoints import Flips
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.terse import Terse
from terse_aug.utils.warnings import WarnOnce

Settings = TypeVar("Settings")

SAMPLED_KEY = "terse_foregrounds"
"""Key under which the data of an image carries its sampled foregrounds from the workers to the hook."""


_UNKNOWN_LOSS = (
    "the detector's loss cannot be read from what its training forward returns: it is not logged as terse-aug's loss, "
    "and an update is not skipped where it is not finite"
)


class TerseSettings:
    """Arguments of :class:`terse_aug.Terse`, from objects or from dictionaries as configs hold them.

    Args:
        policy: a name, settings, a dictionary such as ``dict(type="Critic", target_hardness=0.7)``, or a policy.
        paste: a :class:`terse_aug.PasteConfig` or a dictionary of its settings.
        sampler: a name, class weights as text, a dictionary with ``type``, or a sampler.
        backgrounds: a :class:`terse_aug.BackgroundPool` or a dictionary with ``source`` and ``probability``.
        distractors: a :class:`terse_aug.Distractors` or a dictionary with ``bank``, a path, and ``count``.
        robustness: a :class:`terse_aug.Robustness` or a dictionary of its settings.
        open_files: open the folder of backgrounds and the bank of distractors; else only the settings are checked.

    Raises:
        ValueError: an unknown setting, a value outside its range, or a folder or bank that cannot be opened.
    """

    def __init__(
        self,
        policy: Any = "random",
        paste: PasteConfig | Mapping[str, Any] | None = None,
        sampler: str | Mapping[str, Any] | Sampler = "uniform",
        backgrounds: BackgroundPool | Mapping[str, Any] | None = None,
        distractors: Distractors | Mapping[str, Any] | None = None,
        robustness: Robustness | Mapping[str, Any] | None = None,
        *,
        open_files: bool = True,
    ) -> None:
        self.policy = policy if isinstance(policy, Policy) else policy_settings(policy)
        self.paste = _settings(PasteConfig, paste) or PasteConfig()
        self.sampler = make_sampler(sampler)
        self.robustness = _settings(Robustness, robustness)
        if not open_files:
            backgrounds = _replaced(backgrounds, "source", [torch.zeros(3, 1, 1)])
            distractors = _replaced(distractors, "bank", None)
        self.backgrounds = _made(BackgroundPool, "backgrounds", backgrounds)
        if isinstance(distractors, Mapping) and isinstance(distractors.get("bank"), str | Path):
            distractors = {**distractors, "bank": ForegroundBank.open(distractors["bank"])}
        self.distractors = _made(Distractors, "distractors", distractors)

    def foreground_loader(self, bank: ForegroundBank, seed: int) -> ForegroundLoader:
        """The loader for the data loader's workers.

        Raises:
            ValueError: the sampler draws in the training process only.
        """
        return ForegroundLoader(
            bank,
            self.policy,
            seed=seed,
            paste=self.paste,
            sampler=self.sampler,
            background_probability=self._background_probability,
        )

    def check_for_workers(self) -> None:
        """Refuse what :meth:`foreground_loader` refuses, without a bank.

        Raises:
            ValueError: the sampler draws in the training process only.
        """
        check_loader_settings(self.paste, self.sampler, self._background_probability)

    @property
    def _background_probability(self) -> float:
        return 0.0 if self.backgrounds is None else self.backgrounds.probability

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``Terse``; the sampler is a copy, since it is bound to one ``Terse``."""
        return vars(self) | {"sampler": copy.deepcopy(self.sampler)}


class TrainingHook:
    """Base class of the frameworks' hooks: pastes on batches, updates the policy, and keeps state and metrics.

    An adapter's hook calls, in this order, :meth:`start` and :meth:`load` before training, :meth:`paste_on` and
    :meth:`record_loss` for each batch, and :meth:`update` after the optimizer's step.

    Args:
        settings: arguments of ``Terse``.
        input_format: channel order of the images, ``"BGR"`` or ``"RGB"``; ``None`` if it is known only later.
        seed: of everything drawn, the same on all ranks; ``None`` for that of the framework.
        log_period: iterations between two logs of the metrics; 0 for none.
        image_period: iterations between two images of composites; 0 for none.
        close_fraction: last fraction of the training's iterations in which nothing is pasted, 0 to 1.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        settings: TerseSettings,
        *,
        input_format: str | None,
        seed: int | None,
        log_period: int,
        image_period: int,
        close_fraction: float,
    ) -> None:
        check_fraction("close_fraction", close_fraction)
        if input_format not in (None, "BGR", "RGB"):
            raise ValueError(f"input_format: expected BGR or RGB, got {input_format!r}")
        for name, period in (("log_period", log_period), ("image_period", image_period)):
            if period < 0:
                raise ValueError(f"{name}: expected a number of iterations, or 0 for none, got {period}")
        self.settings, self.input_format, self.seed = settings, input_format, seed
        self.log_period, self.image_period, self.close_fraction = log_period, image_period, close_fraction
        self.device = torch.device("cpu")
        self.saved_state: Mapping[str, Any] | None = None
        self.losses: list[Tensor | None] = []
        self._terse: Terse | None = None
        self._clock = (0.0, 0.0)
        self._warn = WarnOnce()

    @property
    def started(self) -> bool:
        """Whether training has begun with this hook enabled."""
        return self._terse is not None

    @property
    def terse(self) -> Terse:
        """The module that pastes; made when training begins.

        Raises:
            RuntimeError: before training, or the hook is not enabled.
        """
        if self._terse is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} has not begun, or is not enabled: register it with a trainer and train")
        return self._terse

    def start(
        self,
        bank: ForegroundBank,
        model: ModelAdapter,
        device: torch.device,
        *,
        seed: int,
        bgr: bool = False,
        pixel_format: PixelFormat | None = None,
        keypoint_flips: Flips | None = None,
    ) -> Terse:
        """Make ``Terse``.

        Args:
            bank: with the data set's labels.
            model: under training.
            device: of the model.
            seed: used if the hook was given none.
            bgr: whether the first channel is blue.
            pixel_format: of the images; by default values of 0 to 255.
            keypoint_flips: see :class:`terse_aug.Terse`.
        """
        self.device = device
        self._terse = Terse(
            bank,
            **self.settings.arguments(),
            model=model,
            seed=seed if self.seed is None else self.seed,
            pixel_format=pixel_format or PixelFormat(scale=255.0, bgr=bgr),
            keypoint_flips=keypoint_flips,
        ).to(device)
        self._clock = (time.perf_counter(), 0.0)
        return self._terse

    def close(self, done: int, total: int, batches: int = 1) -> None:
        """Let pasting end in time, see ``close_fraction``; after :meth:`load`.

        Args:
            done: iterations that the model was trained for.
            total: iterations of the whole training.
            batches: in an iteration.
        """
        if self.close_fraction > 0:
            first = math.ceil(round((1 - self.close_fraction) * total, 6))  # 0.3 of 10 are 3.0000000000000004
            self.terse.close_after(max(first - done, 0) * batches)

    def paste_on(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Mapping[str, Any]],
        from_workers: Sequence[Any] | None,
        *,
        mixed_precision: bool,
        dtype: torch.dtype | None = None,
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """Composites and targets of a batch on the model's device.

        Args:
            images, targets, from_workers: see :meth:`terse_aug.Terse.forward`.
            mixed_precision: of the training. The gradient steps of robustness training use it too, so that they cost
                what the training's own forward does.
            dtype: with mixed precision; ``None`` for torch's default on the device.
        """
        mixed = mixed_precision and self.terse.perturber is not None
        with torch.autocast(self.device.type, dtype=dtype, enabled=mixed):
            composites, corrected = self.terse(images, targets, from_workers)
        return list(composites), corrected

    def log_feedback(self, logger: logging.Logger) -> None:
        """Log where feedback comes from and what it costs, after :meth:`load`; the logger is the framework's."""
        self.terse.trainer.feedback.log_sources(logger)

    def record_loss(self, loss: Tensor | None) -> None:
        """Record the detector's loss on a batch, a scalar; ``None``, which is warned about once, if it is unknown."""
        if loss is None:
            self._warn.warn("unknown_loss", _UNKNOWN_LOSS)
        self.losses.append(None if loss is None else loss.detach())

    def update(self, loss_scale: float) -> None:
        """Update the policy after an iteration: with the mean loss of its batches.

        Args:
            loss_scale: see :meth:`terse_aug.Terse.step`.
        """
        known = [loss for loss in self.losses if loss is not None]
        self.terse.step(torch.stack(known).mean() if known else None, loss_scale)
        self.losses.clear()

    def logged_metrics(self) -> dict[str, float]:
        """``Terse.metrics()``, and ``time_fraction``: the fraction of time since the last log spent in ``Terse``."""
        now, spent = time.perf_counter(), self.terse.seconds
        fraction = (spent - self._clock[1]) / max(now - self._clock[0], 1e-9)
        self._clock = (now, spent)
        return self.terse.metrics() | {"time_fraction": fraction}

    def drawn_composites(self, images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]]) -> Any:
        """The first composites of the last batch with their labels drawn in, uint8 ``[H, W, 3]``, RGB."""
        return draw_batch(self.terse, images, targets)

    def saved(self) -> dict[str, Any]:
        """Seed and state for a checkpoint: tensors and numbers."""
        return {"seed": self.terse.seed, "terse": self.terse.state_dict()}

    def load(self, state: Mapping[str, Any] | None, logger: Any) -> None:
        """Load the state of a checkpoint that training is resumed from.

        Args:
            state: of :meth:`saved`; ``None``, where the checkpoint has none, is warned about.
            logger: of the framework.

        Raises:
            ValueError: it was saved with another policy or other settings.
        """
        if state is None:
            logger.warning("The checkpoint has no state of terse-aug: the policy starts untrained.")
            return
        self.terse.seed = int(state["seed"])
        try:
            self.terse.load_state_dict(state["terse"])
        except RuntimeError as error:
            raise ValueError(
                "the checkpoint's state of terse-aug does not fit: use the policy and settings that it was trained "
                f"with, or start from the detector's weights without resuming. {error}"
            ) from error


def is_due(iteration: int, period: int) -> bool:
    """Whether an iteration, counted from 0, is the last of a period; never for a period of 0."""
    return period > 0 and (iteration + 1) % period == 0


def common_foregrounds(found: Iterable[Any]) -> list[SampledForegrounds] | None:
    """The sampled foregrounds of a batch, if every image has them."""
    sampled = list(found)
    return sampled if all(isinstance(own, SampledForegrounds) for own in sampled) else None


def _settings(kind: type[Settings], value: Settings | Mapping[str, Any] | None) -> Settings | None:
    made = settings_from(kind, value) if isinstance(value, Mapping) else value
    return _checked(kind, kind.__name__, made)


def _checked(kind: type[Settings], name: str, value: Any) -> Settings | None:
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"{name}: expected a dictionary of its settings or a {kind.__name__}, got {value!r}")
    return value


def _replaced(value: Any, name: str, substitute: Any) -> Any:
    return {**value, name: substitute} if isinstance(value, Mapping) and name in value else value


def _made(kind: type[Settings], name: str, value: Settings | Mapping[str, Any] | None) -> Settings | None:
    if not isinstance(value, Mapping):
        return _checked(kind, name, value)
    try:
        return kind(**value)
    except TypeError as error:
        raise ValueError(f"{name}: {error}") from error
