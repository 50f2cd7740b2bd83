"""The hook: pastes on the batches of a training, and updates the policy after each iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from torch import Tensor

from terse_aug.hook_presence import add_hook
from terse_aug.integration import TerseSettings, TrainingHook, is_due
from terse_aug.where_to_compose import thread_composes
from terse_aug_mmdet.ahead import LoopAhead
from terse_aug_mmdet.bank import class_names, open_bank
from terse_aug_mmdet.batch import objects_of, put_back, sampled_foregrounds_of, to_samples
from terse_aug_mmdet.checkpoints import allow_own_checkpoints
from terse_aug_mmdet.model import MMDetAdapter
from terse_aug_mmdet.workers import compose_in_workers, first_closed_sample, records_of

KEY = "terse_aug"
"""Key of the policy's state in a checkpoint."""

_LOGGED = (
    *("hardness", "hardness_gain", "predicted_hardness_correlation", "diversity", "skipped_updates"),
    *("robustness/images", "robustness/loss", "robustness/loss_gain", "time_fraction"),
)
_LOGGED_IMAGE = "terse_aug_composites"
"""Name of the image of composites; without a folder, which the local backend would not create."""


@HOOKS.register_module()
class TerseHook(TrainingHook, Hook):
    """Pastes objects on every batch of the training, and updates the policy from its losses.

    ::

        default_hooks = dict(terse=dict(type="terse_aug_mmdet.TerseHook", bank="people.bank"))

    Merged like this, a config keeps the ``custom_hooks`` and ``custom_imports`` of its base. There may be one only.
    The bank's classes are matched with those of the data set by name. The policy's state is saved and resumed with
    that of the optimizer (``terse_aug`` in a checkpoint); ``state_dict`` holds the detector's weights only.

    Args:
        bank: path of the bank.
        policy: see :class:`terse_aug.integration.TerseSettings`.
        seed: of everything drawn, the same on every rank; by default that of the first rank's runner.
        enabled: without it the hook checks its settings and does nothing.
        drop_unknown_classes: leave out foregrounds of classes that the data set does not have; else an error.
        classes: the data set's class names, which ``TersePaste`` needs with ``drop_unknown_classes``; the hook checks
            them.
        input_format: of the images as the pipeline loads them, ``"BGR"``, MMDetection's default, or ``"RGB"``.
        interval: iterations between two logs of the metrics under ``train/terse_aug/``; 0 for none.
        image_interval: iterations between two images of composites for the visualizer; 0 for none.
        compose_ahead: make composites before the training process needs them: in the data loader's workers
            (``random``), or by a thread (``matched``, ``critic``). Else in the training loop, on the model's device.
        close_fraction: last fraction of the training's iterations in which nothing is pasted, 0 to 1.
        settings: ``paste``, ``sampler``, ``backgrounds``, ``distractors`` and ``robustness``, see
            :class:`terse_aug.integration.TerseSettings`.

    Raises:
        ValueError: an unknown setting, or a value outside its range.
    """

    priority = "NORMAL"

    def __init__(
        self,
        bank: str | Path,
        policy: Any = "random",
        seed: int | None = None,
        enabled: bool = True,
        drop_unknown_classes: bool = False,
        classes: Sequence[str] | None = None,
        input_format: str = "BGR",
        interval: int = 50,
        image_interval: int = 500,
        compose_ahead: bool = True,
        close_fraction: float = 0.0,
        **settings: Any,
    ) -> None:
        super().__init__(
            TerseSettings(policy, **settings, open_files=enabled),
            input_format=input_format,
            seed=seed,
            log_period=interval,
            image_period=image_interval,
            close_fraction=close_fraction,
        )
        self._bank, self._enabled, self._drop_unknown = bank, enabled, drop_unknown_classes
        self._classes = None if classes is None else tuple(classes)
        self._loss_scale, self._log_due = 1.0, False
        self._compose_ahead = compose_ahead
        self._ahead: LoopAhead | None = None
        if enabled:
            add_hook(self)

    def before_run(self, runner: Any) -> None:
        """Allow the runner to resume: what importing this package allows, other libraries may withdraw."""
        allow_own_checkpoints()

    def before_train(self, runner: Any) -> None:
        """Make ``Terse`` for the runner's model and data set, and load a saved state."""
        if not self._enabled:
            return
        if any(isinstance(hook, TerseHook) and hook._enabled and hook is not self for hook in runner.hooks):
            raise ValueError("two TerseHooks are enabled, which would both paste on every batch: leave one of them out")
        classes = class_names(runner.train_dataloader.dataset.metainfo)
        if self._classes not in (None, classes):
            raise ValueError(f"classes: expected the data set's, {classes}, got {self._classes}")
        if self.settings.distractors is not None:
            self.settings.distractors.check_classes(classes)
        detector = MMDetAdapter(runner.model, len(classes))
        terse = self.start(
            open_bank(self._bank, classes, self._drop_unknown),
            detector,
            next(runner.model.parameters()).device,
            seed=_seed_of_first_rank(runner) if self.seed is None else self.seed,
            bgr=self.input_format == "BGR",
        )
        if terse.policy.needs_model or terse.policy.learns_from == "hardness" or terse.perturber is not None:
            detector.check_input()
        if terse.policy.needs_model and runner.distributed:
            raise ValueError(
                "policy 'best-of-n' needs the loss of single images, which many of MMDetection's heads average over "
                "all ranks: with several processes use matched, critic, adversarial or random"
            )
        if runner.iter > 0:
            self.load(self.saved_state, runner.logger)
        self.close(runner.iter, runner.max_iters)
        self.log_feedback(runner.logger)
        self.saved_state = None  # of a checkpoint that only the weights were loaded from
        if self._ahead is not None:
            self._ahead.end()  # of a training that an error has ended
        in_workers = partial(compose_in_workers, runner, terse)
        closes_at = first_closed_sample(runner, terse)
        by_thread = thread_composes(terse, self._compose_ahead, in_workers, runner.logger, closes_at)
        self._ahead = LoopAhead(runner.train_loop, terse) if by_thread else None

    def before_train_epoch(self, runner: Any) -> None:
        """Let a thread compose the batches of the epoch, if it can."""
        if self._ahead is not None:
            self._ahead.begin_epoch()

    def after_train(self, runner: Any) -> None:
        """Leave the training loop as it was."""
        if self._ahead is not None:
            self._ahead.end()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Replace the images by composites, in MMEngine's own dictionary, if a thread has not done it."""
        if not self.started:
            return
        wrapper = runner.optim_wrapper
        if self._ahead is not None and self._ahead.is_composed(data_batch):
            pass
        elif (records := records_of(data_batch)) is not None:
            self.terse(data_batch["inputs"], objects_of(data_batch), records)
        else:
            images, targets = to_samples(data_batch, self.device)
            composites, corrected = self.paste_on(
                images,
                targets,
                sampled_foregrounds_of(data_batch),
                mixed_precision=hasattr(wrapper, "cast_dtype"),
                dtype=getattr(wrapper, "cast_dtype", None),
            )
            put_back(data_batch, composites, corrected, self.terse.replaced)
        scaler = getattr(wrapper, "loss_scaler", None)
        # The factor of mmengine.optim.OptimWrapper.scale_loss, before it counts the batch.
        scale = scaler.get_scale() if scaler is not None else 1.0
        self._loss_scale = float(wrapper.scale_loss(torch.ones(()))) * scale
        if is_due(runner.iter, self.image_period):
            drawn = self.drawn_composites(*to_samples(data_batch, self.device))
            runner.visualizer.add_image(_LOGGED_IMAGE, drawn, step=runner.iter + 1)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Tensor] | None = None
    ) -> None:
        """Update the policy, if the optimizer has made a step."""
        if not self.started:
            return
        self.record_loss((outputs or {}).get("loss"))
        self._log_due |= is_due(runner.iter, self.log_period)
        if not runner.optim_wrapper.should_update():
            return
        self.update(self._loss_scale)
        if self._log_due:
            self._log_due = False
            metrics = self.logged_metrics()
            for name in _LOGGED:
                if name in metrics:
                    runner.message_hub.update_scalar(f"train/terse_aug/{name}", metrics[name])

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Save the state where the optimizer's is saved, so not in a checkpoint of the best weights."""
        if self.started and "optimizer" in checkpoint:
            checkpoint[KEY] = self.saved()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training begins."""
        self.saved_state = checkpoint.get(KEY)


def _seed_of_first_rank(runner: Any) -> int:
    """With ``diff_rank_seed`` every rank's runner has a seed of its own."""
    seed = torch.tensor(runner.seed)
    broadcast(seed)
    return int(seed)
