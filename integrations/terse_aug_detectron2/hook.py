"""The hook: pastes on the batches between data loader and model, and updates the policy after each step."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.utils.hooks import RemovableHandle

from terse_aug import ForegroundBank
from terse_aug.hook_presence import add_hook
from terse_aug.integration import TerseSettings, TrainingHook, is_due
from terse_aug.structures.keypoints import keypoint_flip_order
from terse_aug_detectron2.batch import Item, Needs, from_samples, objects_of, sampled_foregrounds_of, to_samples
from terse_aug_detectron2.classes import LabelledBank, class_names, keypoint_flips, open_bank
from terse_aug_detectron2.config import chosen_seed, terse_node, terse_settings
from terse_aug_detectron2.iterator import iterator_name, unwrap_iterator, wrap_iterator
from terse_aug_detectron2.model import Detectron2Adapter, known_total
from terse_aug_detectron2.workers import WorkerComposites, records_of, without_records

_LOGGER = logging.getLogger("detectron2.terse_aug")
_LOGGED_IMAGE = "terse_aug/composites"
_NO_VISUALIZATION = (
    "VIS_PERIOD above 0 draws the images that enter the model with numpy, which fails for composites with a gradient: "
    "set VIS_PERIOD to 0 and use TERSE.IMAGE_PERIOD, which shows composites with all their boxes"
)
_NO_BATCH = (
    "TerseHook saw no batch on its way to the model: your trainer's run_step takes its data from elsewhere than "
    "SimpleTrainer's iterator (self._data_loader_iter), or does not call trainer.model. Call hook.paste(batch) on each "
    "batch, and the model that the trainer holds"
)


class TerseHook(TrainingHook, HookBase):
    """Pastes objects on every batch of a trainer, and updates the policy from its losses.

    ::

        trainer.register_hooks([TerseHook.from_config(cfg)])

    For ``DefaultTrainer``, ``SimpleTrainer``, ``AMPTrainer`` and their subclasses, registered at any time before
    ``train()``, before or after ``resume_or_load()``. It wraps the data loader's iterator; a ``run_step`` of your own
    that takes its batch from elsewhere calls :meth:`paste` on it. The policy's state is saved and loaded with that of
    the trainer, by the trainer's checkpointer; ``model`` in a checkpoint holds the detector's weights only.

    Args:
        bank: the foregrounds, or the path of a bank.
        classes: the data set's class names in the order of their labels, or a mapping from name to label: the bank's
            are matched by name. Without it the bank's labels are those of the data set; the names are compared where
            the trainer has a config with ``DATASETS.TRAIN``, and a path needs one of the two.
        policy: see :class:`terse_aug.integration.TerseSettings`.
        seed: of everything drawn, the same on every rank; by default a fresh one.
        input_format: of the images, ``"BGR"`` or ``"RGB"``; by default the model's own, else ``BGR``.
        keypoint_flips: see :class:`terse_aug.Terse`; :meth:`from_config` takes the data set's ``keypoint_flip_map``.
        loss_scale: factor of each loss before ``backward`` in your own loop; that of a ``GradScaler`` is added.
        log_period: iterations between two logs of the metrics under ``terse_aug/``; 0 for none.
        image_period: iterations between two images of composites; 0 for none.
        compose_ahead: make composites before the training process needs them: in the data loader's workers
            (``random``), or by a thread (``matched``, ``critic``). Else in the training loop, on the model's device.
        close_fraction: last fraction of the iterations in which nothing is pasted, 0 to 1. A ``run_step`` of your own
            that takes n batches in an iteration is expected to have loss_scale 1 / n.
        settings: ``paste``, ``sampler``, ``backgrounds``, ``distractors`` and ``robustness``, see
            :class:`terse_aug.integration.TerseSettings`.

    Attributes:
        bank: the foregrounds, with the data set's labels.

    Raises:
        ValueError: a value outside its range.
    """

    def __init__(
        self,
        bank: ForegroundBank | str,
        policy: Any = "random",
        *,
        classes: Sequence[str] | Mapping[str, int] | None = None,
        seed: int | None = None,
        input_format: str | None = None,
        keypoint_flips: Sequence[tuple[str, str]] | None = None,
        loss_scale: float = 1.0,
        log_period: int = 20,
        image_period: int = 500,
        compose_ahead: bool = True,
        close_fraction: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(
            TerseSettings(policy, **settings),
            input_format=input_format,
            seed=seed,
            log_period=log_period,
            image_period=image_period,
            close_fraction=close_fraction,
        )
        if not loss_scale > 0:
            raise ValueError(f"loss_scale: expected a number above 0, got {loss_scale}")
        self._labelled = LabelledBank(bank, classes)
        self.bank = self._labelled.bank
        keypoint_flip_order(self.bank.keypoint_names, keypoint_flips)  # a wrong name is an error before training
        self._keypoint_flips, self._own_loss_scale, self._loss_scale = keypoint_flips, loss_scale, loss_scale
        self._needs, self._workers = Needs(), WorkerComposites(self, compose_ahead)
        self._handle: RemovableHandle | None = None
        self._other_hooks: list[HookBase] = []
        self._logged_image: Any = None
        self._recording = False
        add_hook(self)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> TerseHook | None:
        """The hook for ``cfg.TERSE``; if that is not enabled ``None``, which ``register_hooks`` ignores.

        Raises:
            ValueError: a value outside its range, a bank that cannot be opened or does not fit the data set, or a
                model that is not supported.
        """
        node = terse_node(cfg)
        if not node.ENABLED:
            return None
        _check_supported(cfg)
        settings = terse_settings(cfg)
        if settings.distractors is not None:
            settings.distractors.check_classes(class_names(cfg.DATASETS.TRAIN) or ())
        return cls(
            open_bank(cfg),
            **vars(settings),
            seed=chosen_seed(cfg),
            input_format=cfg.INPUT.FORMAT,
            keypoint_flips=keypoint_flips(cfg),
            loss_scale=node.LOSS_SCALE,
            log_period=node.LOG_PERIOD,
            image_period=node.IMAGE_PERIOD,
            compose_ahead=node.COMPOSE_AHEAD,
            close_fraction=node.CLOSE_FRACTION,
        )

    def paste(self, batch: Sequence[Item]) -> list[Item]:
        """Composites of a batch, on the model's device; for a ``run_step`` that does not use the trainer's iterator.

        Args:
            batch: as the mapper returns it; left untouched.

        Raises:
            ValueError: the batch has annotations that pasting cannot correct.
        """
        self._recording = False
        inner, records = self._inner, records_of(batch)
        if records is not None:
            composed = without_records(batch)
            self.terse([item["image"] for item in batch], objects_of(batch), records)
        else:
            images, targets = to_samples(batch, self.device, self._needs)
            composites, corrected = self.paste_on(
                images,
                targets,
                sampled_foregrounds_of(batch),
                mixed_precision=hasattr(inner, "grad_scaler"),
                dtype=getattr(inner, "precision", None),
            )
            composed = from_samples(batch, composites, corrected)
        return self._entering(composed)

    def _entering(self, composed: list[Item]) -> list[Item]:
        """A batch of composites that enters the model next."""
        self._recording = True
        if is_due(self.trainer.iter, self.image_period) and comm.is_main_process():
            drawn = self.drawn_composites(*to_samples(composed, self.device, self._needs))
            self._logged_image = drawn.transpose(2, 0, 1)
        return composed

    def before_train(self) -> None:
        """Make ``Terse`` for the trainer's model, move before all other hooks, load a saved state."""
        inner = self._inner
        detector = Detectron2Adapter(inner.model)
        if getattr(detector.model, "vis_period", 0) > 0:
            raise ValueError(_NO_VISUALIZATION)
        self._labelled.check(self.trainer)
        if self.started and self.saved_state is None:
            self.saved_state = self.saved()  # training continues
        self._needs = detector.needs
        input_format = self.input_format or getattr(detector.model, "input_format", None) or "BGR"
        self.start(
            self.bank,
            detector,
            next(inner.model.parameters()).device,
            # Drawn without numpy's global state, which Detectron2's own function would change.
            seed=int(comm.all_gather(int.from_bytes(os.urandom(4), "little"))[0]) if self.seed is None else self.seed,
            bgr=input_format == "BGR",
            keypoint_flips=self._keypoint_flips,
        )
        self._move_first()
        if self.trainer.start_iter > 0 or self.saved_state is not None:
            self.load(self.saved_state or _state_in_checkpoint(self), _LOGGER)
            self.saved_state = None
        self.close(self.trainer.start_iter, self.trainer.max_iter, max(round(1 / self._own_loss_scale), 1))
        self.log_feedback(_LOGGER)
        self._handle = inner.model.register_forward_hook(_LossRecorder(self._record))
        self._workers.begin(getattr(inner, "data_loader", None), vars(inner).get(iterator_name(inner)), self._needs)
        if hasattr(inner, "reset_data_loader"):
            inner.reset_data_loader = self._reset_data_loader

    def before_step(self) -> None:
        """Make sure that the next batch is pasted on."""
        self._wrap_iterator()
        scaler = getattr(self._inner, "grad_scaler", None)
        self._loss_scale = self._own_loss_scale * (scaler.get_scale() if scaler is not None else 1.0)

    def after_step(self) -> None:
        """Update the policy."""
        self._recording = False
        if not self.losses:
            raise RuntimeError(_NO_BATCH)
        self.update(self._loss_scale)
        _write_log(self)

    def after_train(self) -> None:
        """Leave model, trainer and data loader as they were."""
        if self._handle is None:
            return
        self._handle.remove()
        self._handle = None
        inner = self._inner
        vars(inner).pop("reset_data_loader", None)
        unwrap_iterator(self._inner)
        self._workers.end()
        registered_since = [hook for hook in self.trainer._hooks if hook not in self._other_hooks]
        self.trainer._hooks = self._other_hooks + registered_since
        self._recording = False
        self.losses.clear()

    def state_dict(self) -> dict[str, Any]:
        """The policy's state, saved by the trainer with its own."""
        return self.saved() if self.started else dict(self.saved_state or {})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state of :meth:`state_dict`; before training it is kept until training begins."""
        if self.started:
            self.load(state_dict, _LOGGER)
        else:
            self.saved_state = state_dict

    @property
    def _inner(self) -> Any:
        """The trainer that runs the steps; a DefaultTrainer has it inside."""
        return getattr(self.trainer, "_trainer", self.trainer)

    def _move_first(self) -> None:
        """Move before the hooks that save checkpoints and write logs, which are to have this iteration's update."""
        others = [hook for hook in self.trainer._hooks if hook is not self]
        if any(isinstance(hook, TerseHook) for hook in others):
            raise RuntimeError("two TerseHooks are registered; Detectron2 saves the state of one of them only")
        # A new list: Detectron2 is iterating over this one.
        self._other_hooks = self.trainer._hooks
        self.trainer._hooks = [self, *others]

    def _wrap_iterator(self) -> None:
        terse = self.terse if self._workers.thread else None
        wrap_iterator(self._inner, terse, self._samples_of, self.paste if terse is None else self._entering)

    def _samples_of(self, batch: Sequence[Item]) -> tuple[Any, ...]:
        """The arguments of ``Terse.forward``, on the CPU."""
        return (*to_samples(batch, torch.device("cpu"), self._needs), sampled_foregrounds_of(batch))

    def _reset_data_loader(self, builder: Callable[[], Any]) -> None:
        """In place of the trainer's own, so that the batches of a new data loader are pasted on too."""
        inner = self._inner

        def built() -> Any:
            loader = builder()
            self._workers.begin(loader, None, self._needs)
            return loader

        unwrap_iterator(self._inner)
        inner.__class__.reset_data_loader(inner, built)
        self._wrap_iterator()

    def _record(self, module: nn.Module, output: Any) -> None:
        if self._recording and module.training:
            self.record_loss(known_total(output))


def _check_supported(cfg: CfgNode) -> None:
    architecture = cfg.MODEL.META_ARCHITECTURE
    if "Panoptic" in architecture or architecture == "SemanticSegmentor":
        raise ValueError(
            f"TERSE.ENABLED with {architecture}: it learns from semantic maps, which pasting does not correct; "
            "panoptic and semantic segmentation are not supported"
        )
    if cfg.VIS_PERIOD > 0:
        raise ValueError(_NO_VISUALIZATION)


def _write_log(hook: TerseHook) -> None:
    """Metrics, and the image of composites if there is one."""
    storage = hook.trainer.storage
    if is_due(hook.trainer.iter, hook.log_period):
        storage.put_scalars(smoothing_hint=False, **_renamed(hook.logged_metrics()))
    if hook._logged_image is not None:
        # One at a time: without a writer for images they would pile up.
        storage._vis_data = [entry for entry in storage._vis_data if entry[0] != _LOGGED_IMAGE]
        storage.put_image(_LOGGED_IMAGE, hook._logged_image)
        hook._logged_image = None


def _renamed(metrics: Mapping[str, float]) -> dict[str, float]:
    """For the log, without ``loss`` in the names: Detectron2 prints whatever has it among the detector's own."""
    names = {name: re.sub("_loss(es)?", "", name).replace("/loss_", "/").replace("/loss", "/start") for name in metrics}
    return {f"terse_aug/{names[name]}": value for name, value in metrics.items() if name != "loss"}


def _state_in_checkpoint(hook: HookBase) -> Mapping[str, Any] | None:
    """The state in the checkpoint that the trainer was resumed from before the hook was registered."""
    # With a lazy config the trainer has no checkpointer, but a hook of the main process does.
    owners = [hook.trainer, *hook.trainer._hooks]
    checkpointer = next((owner.checkpointer for owner in owners if hasattr(owner, "checkpointer")), None)
    state: Mapping[str, Any] | None = None
    if comm.is_main_process() and checkpointer is not None and checkpointer.has_checkpoint():
        path = checkpointer.path_manager.get_local_path(checkpointer.get_checkpoint_file())
        trainer = torch.load(path, map_location="cpu").get("trainer", {})
        if trainer.get("iteration") == hook.trainer.start_iter - 1:
            state = trainer.get("hooks", {}).get(type(hook).__qualname__)
    found: Mapping[str, Any] | None = comm.all_gather(state)[0]
    return found


class _LossRecorder:
    """A forward hook that records losses; in a copied or pickled model it does nothing."""

    def __init__(self, record: Callable[[nn.Module, Any], None] | None = None) -> None:
        self._record = record

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._record is not None:
            self._record(module, output)

    def __reduce__(self) -> tuple[type[_LossRecorder], tuple[()]]:
        return _LossRecorder, ()
