"""The hook: composites on their way from the data loader to the model, and the adversary's move after the step."""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from terse_aug import ForegroundBank, PixelFormat, Terse, TerseConfig
from terse_aug.config import replaced
from terse_aug.preview import draw_batch
from terse_aug.structures.keypoints import keypoint_flip_order
from terse_aug_detectron2.batch import Item, Needs, from_samples, sampled_foregrounds_of, to_samples
from terse_aug_detectron2.classes import keypoint_flips, open_bank, open_distractors
from terse_aug_detectron2.config import chosen_policy, chosen_seed, terse_config, terse_node
from terse_aug_detectron2.model import Detectron2Adapter, total

_LOGGER = logging.getLogger("detectron2.terse_aug")
_PICTURE = "terse_aug/composites"
_NO_VISUALIZATION = (
    "VIS_PERIOD above 0 draws the images that enter the model with numpy, which composites with a gradient do not "
    "allow: set VIS_PERIOD to 0 and use TERSE.IMAGE_PERIOD, which shows composites with all their boxes"
)


class TerseHook(HookBase):
    """Pastes objects onto every batch that a trainer takes, and learns from its losses where to paste them.

    ::

        trainer.register_hooks([TerseHook.from_config(cfg)])

    For ``DefaultTrainer``, ``SimpleTrainer``, ``AMPTrainer`` and what is derived from them, registered at any time
    before ``train()``, before or after ``resume_or_load()``. It wraps the data loader's iterator; a ``run_step`` of
    your own that takes its batch from elsewhere calls :meth:`paste` on it. The adversary's state is saved and loaded
    with the trainer's, by the trainer's checkpointer; the weights under ``model`` stay the detector's alone.

    Args:
        bank: the cut-outs, with the data set's labels (``bank.relabel(thing_classes)``); or the path of a bank
            whose category ids are these labels.
        policy: a name in ``terse_aug.policies.POLICIES``, or a policy.
        seed: of all that is drawn, the same on every rank; by default a fresh one.
        input_format: of the images, ``"BGR"`` or ``"RGB"``; by default the model's own, ``BGR`` where it does not say.
        keypoint_flips: see :class:`terse_aug.Terse`; :meth:`from_config` takes the data set's ``keypoint_flip_map``.
        sampler: see :class:`terse_aug.Terse`, as are the next two.
        backgrounds: a pool of backgrounds.
        distractor_bank: cut-outs of none of the data set's classes.
        config: settings; by default ``TerseConfig()``.
        loss_scale: what your own loop multiplies each loss by before ``backward``; that of a ``GradScaler`` is known.
        log_period: iterations between two readings of the figures under ``terse_aug/``; 0 for none.
        image_period: iterations between two pictures of composites; 0 for none.
        settings: single settings that replace those of ``config``.

    Attributes:
        bank: the cut-outs, with the data set's labels.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        bank: ForegroundBank | str,
        policy: Any = "critic",
        *,
        seed: int | None = None,
        input_format: str | None = None,
        keypoint_flips: Sequence[tuple[str, str]] | None = None,
        sampler: Any = None,
        backgrounds: Any = None,
        distractor_bank: ForegroundBank | None = None,
        config: TerseConfig | None = None,
        loss_scale: float = 1.0,
        log_period: int = 20,
        image_period: int = 500,
        **settings: Any,
    ) -> None:
        if input_format not in (None, "BGR", "RGB"):
            raise ValueError(f"input_format: expected BGR or RGB, got {input_format!r}")
        if not loss_scale > 0:
            raise ValueError(f"loss_scale: expected a number above 0, got {loss_scale}")
        for name, period in (("log_period", log_period), ("image_period", image_period)):
            if period < 0:
                raise ValueError(f"{name}: expected a number of iterations, or 0 for none, got {period}")
        self.bank = bank if isinstance(bank, ForegroundBank) else ForegroundBank.open(bank)
        # What is wrong is said now, not when training begins.
        replaced(config or TerseConfig(), settings)
        keypoint_flip_order(self.bank.keypoint_names, keypoint_flips)
        self._policy, self._seed, self._config, self._settings = policy, seed, config, settings
        self._input_format, self._keypoint_flips = input_format, keypoint_flips
        self._pairing = {"sampler": sampler, "backgrounds": backgrounds, "distractor_bank": distractor_bank}
        self._loss_scale, self._log_period, self._image_period = loss_scale, log_period, image_period
        self._terse: Terse | None = None
        self._device, self._needs = torch.device("cpu"), Needs()
        self._handle: RemovableHandle | None = None
        self._others: list[HookBase] = []
        self._picture: NDArray[np.uint8] | None = None
        self._saved: Mapping[str, Any] | None = None
        self._losses: list[Tensor] = []
        self._listening = False
        self._scale = 1.0
        self._clock = (0.0, 0.0)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TerseHook | None:
        """The hook that ``cfg.TERSE`` describes; if it is not enabled ``None``, which ``register_hooks`` passes over.

        Raises:
            ValueError: a value outside its range, a bank that cannot be opened or does not fit the data set, or a
                model that pasting does not work for.
        """
        node = terse_node(cfg)
        if not node.ENABLED:
            return None
        if "Panoptic" in cfg.MODEL.META_ARCHITECTURE or cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor":
            raise ValueError(
                f"TERSE.ENABLED with {cfg.MODEL.META_ARCHITECTURE}: it learns from semantic maps, which pasting does "
                "not correct; panoptic and semantic segmentation are not supported"
            )
        if cfg.VIS_PERIOD > 0:
            raise ValueError(_NO_VISUALIZATION)
        return cls(
            open_bank(cfg),
            chosen_policy(cfg),
            seed=chosen_seed(cfg),
            input_format=cfg.INPUT.FORMAT,
            keypoint_flips=keypoint_flips(cfg),
            backgrounds=node.BACKGROUNDS or None,
            distractor_bank=open_distractors(cfg),
            config=terse_config(cfg),
            loss_scale=node.LOSS_SCALE,
            log_period=node.LOG_PERIOD,
            image_period=node.IMAGE_PERIOD,
        )

    @property
    def terse(self) -> Terse:
        """The pasting itself; made when training begins.

        Raises:
            RuntimeError: before that.
        """
        if self._terse is None:
            raise RuntimeError("TerseHook has not begun: register it with a trainer and call train()")
        return self._terse

    def paste(self, batch: Sequence[Item]) -> list[Item]:
        """Composites for a batch, on the model's device; for a ``run_step`` that does not use the trainer's iterator.

        Args:
            batch: as the mapper makes it; left untouched.

        Raises:
            ValueError: the batch has what pasting cannot follow.
        """
        self._listening = False
        images, targets = to_samples(batch, self._device, self._needs)
        with self._precision():
            composites, corrected = self.terse(images, targets, sampled_foregrounds_of(batch))
        self._listening = True
        if self._is_due(self._image_period) and comm.is_main_process():
            self._picture = draw_batch(self.terse, list(composites), corrected).transpose(2, 0, 1)
        return from_samples(batch, list(composites), corrected)

    def before_train(self) -> None:
        """Make what is needed of the trainer's model, take its place before all other hooks, load what was saved."""
        inner = self._inner
        detector = Detectron2Adapter(inner.model)
        if getattr(detector.model, "vis_period", 0) > 0:
            raise ValueError(_NO_VISUALIZATION)
        if self._terse is not None and self._saved is None:
            self._saved = self.state_dict()  # training goes on
        self._needs = detector.needs
        self._device = next(inner.model.parameters()).device
        bgr = (self._input_format or getattr(detector.model, "input_format", None) or "BGR") == "BGR"
        self._terse = Terse(
            self.bank,
            self._policy,
            seed=_shared_seed() if self._seed is None else self._seed,
            target=detector,
            pixel_format=PixelFormat(scale=255.0, bgr=bgr),
            keypoint_flips=self._keypoint_flips,
            # A sampler is bound to one Terse, and training may go on with another.
            **(self._pairing | {"sampler": copy.deepcopy(self._pairing["sampler"])}),
            config=self._config,
            **self._settings,
        ).to(self._device)
        self._go_first()
        self._load()
        self._handle = inner.model.register_forward_hook(_Listener(self._listen))
        if hasattr(inner, "reset_data_loader"):
            inner.reset_data_loader = self._reset_data_loader
        self._clock = (time.perf_counter(), 0.0)

    def before_step(self) -> None:
        """See that the next batch passes through here."""
        self._wrap()
        scaler = getattr(self._inner, "grad_scaler", None)
        self._scale = self._loss_scale * (scaler.get_scale() if scaler is not None else 1.0)

    def after_step(self) -> None:
        """The adversary's move."""
        self._listening = False
        if not self._losses:
            raise RuntimeError(
                "TerseHook saw no batch on its way to the model: your trainer's run_step takes its data from elsewhere "
                "than SimpleTrainer's iterator (self._data_loader_iter), or does not call trainer.model. Call "
                "hook.paste(batch) on each batch, and the model that the trainer holds"
            )
        self.terse.step(torch.stack(self._losses).mean(), self._scale)
        self._losses.clear()
        self._log()

    def after_train(self) -> None:
        """Let go of the model and the data loader."""
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        inner = self._inner
        vars(inner).pop("reset_data_loader", None)
        name = _iterator_name(inner)
        if isinstance(wrapped := vars(inner).get(name), _Pasting):
            setattr(inner, name, wrapped.source)
        since = [hook for hook in self.trainer._hooks if hook not in self._others]
        self.trainer._hooks = self._others + since
        self._listening = False
        self._losses.clear()

    def state_dict(self) -> dict[str, Any]:
        """The adversary's state, plain tensors; part of the trainer's."""
        if self._terse is None:
            return dict(self._saved or {})
        return {"seed": self._terse.seed, "terse": self._terse.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take a state of :meth:`state_dict`; before training begins it is kept until then."""
        self._saved = state_dict
        if self._terse is not None:
            self._load()

    @property
    def _inner(self) -> Any:
        """The trainer that runs the steps; a DefaultTrainer has it inside."""
        return getattr(self.trainer, "_trainer", self.trainer)

    def _precision(self) -> torch.autocast:
        """Mixed, as an AMPTrainer's step has it, where gradient steps are to cost what its own forward does."""
        dtype = getattr(self._inner, "precision", torch.float16)
        mixed = self.terse.config.robust == "pgd" and hasattr(self._inner, "grad_scaler")
        return torch.autocast(self._device.type, dtype=dtype, enabled=mixed)

    def _go_first(self) -> None:
        """Before the hooks that save checkpoints and write logs: both are to have this iteration's move."""
        others = [hook for hook in self.trainer._hooks if hook is not self]
        if any(isinstance(hook, TerseHook) for hook in others):
            raise RuntimeError("two TerseHooks are registered; Detectron2 saves the state of one of them only")
        # Another list: Detectron2 is walking through this one.
        self._others = self.trainer._hooks
        self.trainer._hooks = [self, *others]

    def _wrap(self) -> None:
        inner = self._inner
        name = _iterator_name(inner)
        if name in vars(inner) and not isinstance(vars(inner)[name], _Pasting):
            setattr(inner, name, _Pasting(inner._data_loader_iter, self))

    def _reset_data_loader(self, builder: Callable[[], Any]) -> None:
        """In place of the trainer's own: whoever changes the loader, and whenever, its batches pass through here."""
        inner = self._inner
        inner.__class__.reset_data_loader(inner, builder)
        self._wrap()

    def _load(self) -> None:
        if self._saved is None:
            self._saved = self._from_checkpoint()
        if self._saved is not None:
            self.terse.seed = int(self._saved["seed"])
            try:
                self.terse.load_state_dict(self._saved["terse"])
            except RuntimeError as error:
                raise ValueError(
                    "the checkpoint's adversary has another form than this one: use the policy and settings that it "
                    f"was trained with, or start from the model's weights without --resume. {error}"
                ) from error
            self._saved = None
        elif self.trainer.start_iter > 0:
            _LOGGER.warning("The checkpoint has no state of terse-aug: the adversary begins anew.")

    def _from_checkpoint(self) -> Mapping[str, Any] | None:
        """The state in the checkpoint that the trainer was resumed from before this hook was registered."""
        if self.trainer.start_iter == 0:
            return None
        # Where the trainer does not have it, as with a lazy config, a hook of the main process does.
        owners = [self.trainer, *self.trainer._hooks]
        checkpointer = next((owner.checkpointer for owner in owners if hasattr(owner, "checkpointer")), None)
        state: Mapping[str, Any] | None = None
        if comm.is_main_process() and checkpointer is not None and checkpointer.has_checkpoint():
            path = checkpointer.path_manager.get_local_path(checkpointer.get_checkpoint_file())
            trainer = torch.load(path, map_location="cpu").get("trainer", {})
            if trainer.get("iteration") == self.trainer.start_iter - 1:
                state = trainer.get("hooks", {}).get(type(self).__qualname__)
        found: Mapping[str, Any] | None = comm.all_gather(state)[0]
        if found is not None:
            _LOGGER.info("The adversary's state was found in the checkpoint; it goes on.")
        return found

    def _listen(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._listening and module.training:
            self._losses.append(total(output).detach())

    def _is_due(self, period: int) -> bool:
        """Whether the iteration that runs is the last of a period."""
        return period > 0 and (self.trainer.iter + 1) % period == 0

    def _log(self) -> None:
        storage = self.trainer.storage
        if self._is_due(self._log_period):
            now, spent = time.perf_counter(), self.terse.seconds
            share = (spent - self._clock[1]) / max(now - self._clock[0], 1e-9)
            self._clock = (now, spent)
            figures = self.terse.metrics() | {"share_of_time": share}
            # Detectron2 prints whatever has "loss" in its name among the detector's own.
            figures["not_finite"] = figures.pop("losses_not_finite")
            figures.pop("loss", None)
            storage.put_scalars(smoothing_hint=False, **{f"terse_aug/{name}": value for name, value in figures.items()})
        if self._picture is not None:
            # One at a time: without a writer for pictures nobody takes them away.
            storage._vis_data = [entry for entry in storage._vis_data if entry[0] != _PICTURE]
            storage.put_image(_PICTURE, self._picture)
            self._picture = None


class _Listener:
    """A forward hook that hears of losses; a copy of the model, or one that was pickled, has a deaf one."""

    def __init__(self, hear: Callable[[nn.Module, Any, Any], None] | None = None) -> None:
        self._hear = hear

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._hear is not None:
            self._hear(module, inputs, output)

    def __reduce__(self) -> tuple[type[_Listener], tuple[()]]:
        return _Listener, ()


def _iterator_name(trainer: Any) -> str:
    """Where a trainer keeps the iterator of its loader: made when it is first used; in the release v0.6 at once."""
    return "_data_loader_iter_obj" if "_data_loader_iter_obj" in vars(trainer) else "_data_loader_iter"


def _shared_seed() -> int:
    """A fresh seed, the same on all ranks; numpy's global state, which Detectron2's own would move, is left alone."""
    return int(comm.all_gather(int.from_bytes(os.urandom(4), "little"))[0])


class _Pasting(Iterator[list[Item]]):
    """A data loader's iterator, of which composites come."""

    def __init__(self, source: Iterator[list[Item]], hook: TerseHook) -> None:
        self.source, self._hook = source, hook

    def __next__(self) -> list[Item]:
        return self._hook.paste(next(self.source))
