"""The callback: pastes on the batches that enter the model, and updates the policy after each step."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback

from terse_aug import ForegroundBank, PixelFormat
from terse_aug.integration import TerseSettings, TrainingHook
from terse_aug.utils.modules import uncompiled
from terse_aug_transformers.batch import put_back, to_samples
from terse_aug_transformers.model import TransformersAdapter

_LOGGER = logging.getLogger("terse_aug.transformers")
_LOGGED = (
    *("hardness", "hardness_gain", "predicted_hardness_correlation", "diversity", "skipped_updates"),
    *("robustness/images", "robustness/loss", "robustness/loss_gain", "time_fraction"),
)
_NO_BATCH = (
    "TerseCallback saw no batch with labels on its way into the model: a compute_loss_func takes the labels out of the "
    "batch, which terse-aug does not support; let the model compute its loss"
)
_OTHER_RUN = (
    "%s belongs to another run than the checkpoint that training is resumed from: the policy starts untrained. The "
    "state is looked for in output_dir; for a checkpoint in another folder give TerseCallback(resume_from=folder)."
)


class TerseCallback(TrainingHook, TrainerCallback):
    """Pastes objects on every batch of a training by ``Trainer``, and updates the policy from its losses.

    ::

        Trainer(..., processing_class=image_processor, callbacks=[TerseCallback("people.bank")]).train()

    The bank's classes are matched by name with those of the model, ``id2label`` of its config. The policy's state is
    saved in each checkpoint, as ``terse_aug.pt``, and loaded when training is resumed from it.

    Args:
        bank: path of the bank.
        policy: see :class:`terse_aug.integration.TerseSettings`.
        image_processor: that made the batches, which says how pixels are normalized; or a
            :class:`terse_aug.PixelFormat`. By default the Trainer's ``processing_class``.
        seed: of everything drawn, the same on every rank; by default that of the training's arguments.
        enabled: without it the callback checks its settings and does nothing.
        drop_unknown_classes: leave out foregrounds of classes that the model does not have; else an error.
        resume_from: the checkpoint that training is resumed from, if it is not in ``output_dir``.
        close_fraction: last fraction of the training's iterations in which nothing is pasted, 0 to 1.
        settings: ``paste``, ``sampler``, ``backgrounds``, ``distractors`` and ``robustness``, see
            :class:`terse_aug.integration.TerseSettings`.

    Raises:
        ValueError: an unknown setting, or a value outside its range.
    """

    def __init__(
        self,
        bank: str | Path,
        policy: Any = "random",
        *,
        image_processor: Any = None,
        seed: int | None = None,
        enabled: bool = True,
        drop_unknown_classes: bool = False,
        resume_from: str | Path | None = None,
        close_fraction: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(
            TerseSettings(policy, **settings, open_files=enabled),
            input_format=None,
            seed=seed,
            log_period=0,
            image_period=0,
            close_fraction=close_fraction,
        )
        self._bank, self._image_processor, self._enabled = bank, image_processor, enabled
        self._drop_unknown, self._resume_from = drop_unknown_classes, resume_from
        self._handles: list[RemovableHandle] = []
        self._expected, self._pasted = False, False
        self._scale, self._precision = 1.0, (False, torch.float16)

    @property
    def adapter(self) -> TransformersAdapter:
        """Of the model under training."""
        model = self.terse.model
        assert isinstance(model, TransformersAdapter)
        return model

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **_: Any
    ) -> None:
        """Make ``Terse`` for the Trainer's model, and load a saved state.

        Raises:
            ValueError: bank, model, image processor or saved state do not fit.
        """
        self._remove_hooks()  # of a training that an error has ended
        if not self._enabled:
            return
        if args.n_gpu > 1:
            raise ValueError(
                f"{args.n_gpu} GPUs in one process (DataParallel) are not supported: start one process for each with "
                "torchrun or accelerate launch, or make one GPU visible (CUDA_VISIBLE_DEVICES=0)"
            )
        adapter = TransformersAdapter(model)
        if self.settings.distractors is not None:
            self.settings.distractors.check_classes(adapter.classes)
        unknown: Literal["drop", "error"] = "drop" if self._drop_unknown else "error"
        self.start(
            ForegroundBank.open(self._bank).relabel(list(adapter.classes), unknown=unknown),
            adapter,
            args.device,
            seed=args.seed,
            pixel_format=pixel_format_of(self._image_processor or processing_class),
        )
        self._precision = bool(args.bf16 or args.fp16), torch.bfloat16 if args.bf16 else torch.float16
        if state.global_step > 0:
            self.load(self._saved_state(args, state), _LOGGER)
        self.log_feedback(_LOGGER)
        self._handles = [
            adapter.model.register_forward_pre_hook(_ModelHook(self._enter), with_kwargs=True),
            adapter.model.register_forward_hook(_ModelHook(self._leave), with_kwargs=True),
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """A batch is about to enter the model."""
        self._expected = self.started
        if self.started:
            self.close(state.global_step, state.max_steps, args.gradient_accumulation_steps)
        scaler = getattr(optimizer, "scaler", None)
        self._scale = scaler.get_scale() if scaler is not None else 1.0

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Another batch is about to, whose gradients are accumulated."""
        self._expected = self.started

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Update the policy.

        Raises:
            RuntimeError: no batch has entered the model.
        """
        self._expected = False
        if not self.started:
            return
        if not self.losses:
            raise RuntimeError(_NO_BATCH)
        # As Trainer scales them, which counts no items in the labels of detectors.
        self.update(self._scale / len(self.losses))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add metrics to the training's log and its history."""
        if self.started and self._handles and logs is not None and "loss" in logs:
            metrics = self.logged_metrics()
            own = {f"terse_aug/{name}": metrics[name] for name in _LOGGED if name in metrics}
            logs.update(own)
            if state.log_history:
                state.log_history[-1].update(own)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Save the state beside that of the optimizer."""
        if not self.started or args.save_only_model:
            return
        folder = _checkpoint(args, state)
        if folder.is_dir():
            torch.save({"run": _identity(state), **self.saved()}, folder / _file_name(args.process_index))
        else:
            _LOGGER.warning("%s does not exist: the state of terse-aug is not saved.", folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leave the model as it was."""
        self._remove_hooks()

    def _enter(self, module: nn.Module, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """Replace the batch by composites, before the model's forward; extra forwards pass through."""
        self._pasted = False
        if not self._expected or not module.training or "labels" not in keywords or inputs:
            return None
        self._expected = False
        images, targets, layout = to_samples(keywords)
        mixed, dtype = self._precision
        composites, corrected = self.paste_on(images, targets, None, mixed_precision=mixed, dtype=dtype)
        composed = put_back(keywords, composites, corrected, layout)
        self.adapter.begin_record(composed, layout)
        self._pasted = True
        return inputs, composed

    def _leave(self, module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        """Record the loss."""
        if self._pasted:
            self._pasted = False
            loss = output[0] if isinstance(output, tuple) else output.loss
            self.record_loss(loss)

    def _saved_state(self, args: Any, state: Any) -> Mapping[str, Any] | None:
        """Of this rank; else of the first one."""
        folder = _checkpoint(args, state) if self._resume_from is None else Path(self._resume_from)
        files = [folder / _file_name(rank) for rank in (args.process_index, 0)]
        found = next((file for file in files if file.exists()), None)
        if found is None:
            return None
        saved: dict[str, Any] = torch.load(found, map_location="cpu", weights_only=True)
        if saved.pop("run") != _identity(state):
            _LOGGER.warning(_OTHER_RUN, found)
            return None
        return saved

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.losses.clear()


def pixel_format_of(image_processor: Any) -> PixelFormat:
    """How an image processor encodes pixels.

    Args:
        image_processor: or a processor that has one, or a :class:`terse_aug.PixelFormat`.

    Raises:
        ValueError: it does not say it.
    """
    if isinstance(image_processor, PixelFormat):
        return image_processor
    own = getattr(image_processor, "image_processor", image_processor)
    if not hasattr(own, "do_rescale") or not hasattr(own, "do_normalize"):
        raise ValueError(
            "expected the image processor that makes the batches, which says how pixels are normalized: "
            "Trainer(processing_class=image_processor), or TerseCallback(image_processor=...) with it or with a "
            f"terse_aug.PixelFormat; got {type(image_processor).__name__}"
        )
    scale = 255.0 * own.rescale_factor if own.do_rescale else 255.0
    if not own.do_normalize:
        return PixelFormat(scale=scale)
    return PixelFormat(scale=scale, mean=_channels(own.image_mean), std=_channels(own.image_std))


def _channels(values: float | Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = [values] * 3 if isinstance(values, int | float) else values
    return float(red), float(green), float(blue)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _file_name(rank: int) -> str:
    return f"terse_aug_{rank}.pt" if rank else "terse_aug.pt"


def _identity(state: Any) -> str:
    """Of the log of a run so far, which the Trainer saves and loads."""
    text = json.dumps(state.log_history, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class _ModelHook:
    """A hook of a model; in a copied or pickled model it does nothing."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    @uncompiled
    def __call__(self, *values: Any) -> Any:
        """With what the module was called with, and after it with its output."""
        return None if self._call is None else self._call(*values)

    def __reduce__(self) -> tuple[type[_ModelHook], tuple[()]]:
        return _ModelHook, ()
