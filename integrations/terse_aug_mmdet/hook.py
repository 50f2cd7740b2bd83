"""The hook: composites on their way from the data loader to the model, and the adversary's move after the iteration."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import HOOKS
from mmengine.dist import broadcast
from mmengine.hooks import Hook
from torch import Tensor

from terse_aug import PixelFormat, Terse
from terse_aug.preview import draw_batch
from terse_aug_mmdet.bank import class_names, open_bank, open_distractors
from terse_aug_mmdet.batch import put_back, sampled_foregrounds_of, to_samples
from terse_aug_mmdet.model import MMDetAdapter
from terse_aug_mmdet.settings import checked_policy, terse_settings

KEY = "terse_aug"
"""Of the adversary's state in a checkpoint."""

_LOGGED = (
    *("hardness", "hardness_gain", "critic_correlation", "diversity", "skipped_moves"),
    *("robust/images", "robust/start", "robust/gain"),
)
_PICTURE = "terse_aug_composites"
"""Of the picture; no folder, which the local backend would not make."""


@HOOKS.register_module()
class TerseHook(Hook):
    """Pastes objects onto every batch of the training, and learns from its losses where to paste them.

    ::

        custom_hooks = [dict(type="TerseHook", bank="people.bank")]

    The classes of the bank are matched with the data set's by name. The adversary's state is saved with the optimizer's
    (``terse_aug`` in a checkpoint) and resumed with it; the weights under ``state_dict`` stay the detector's alone.

    Args:
        bank: path of the bank.
        policy: a name in ``terse_aug.policies.POLICIES``, or a policy.
        seed: of all that is drawn, the same on every rank; by default that of the first rank's runner.
        enabled: without it the hook does nothing.
        drop_unknown_classes: leave cut-outs out whose class the data set does not have, in place of refusing the bank.
        classes: the data set's class names, which ``TersePaste`` needs where unknown ones are dropped; the hook
            sees that they are the data set's.
        input_format: of the images as the pipeline loads them, ``"BGR"``, which is MMDetection's, or ``"RGB"``.
        backgrounds: folder of images that take the place of ``background_probability`` of those of the batches.
        distractor_bank: path of a bank of objects of none of the data set's classes, for ``distractors``.
        interval: iterations between two readings of the figures under ``train/terse_aug/``; 0 for none.
        image_interval: iterations between two pictures of composites for the visualizer; 0 for none.
        settings: of :class:`terse_aug.TerseConfig`.

    Raises:
        ValueError: a setting that there is not, or a value outside its range.
    """

    priority = "NORMAL"

    def __init__(
        self,
        bank: str | Path,
        policy: Any = "critic",
        seed: int | None = None,
        enabled: bool = True,
        drop_unknown_classes: bool = False,
        classes: Sequence[str] | None = None,
        input_format: str = "BGR",
        backgrounds: str | Path | None = None,
        distractor_bank: str | Path | None = None,
        interval: int = 50,
        image_interval: int = 500,
        **settings: Any,
    ) -> None:
        if input_format not in ("BGR", "RGB"):
            raise ValueError(f"input_format: expected BGR or RGB, got {input_format!r}")
        self._bank, self._policy, self._seed = bank, checked_policy(policy), seed
        self._enabled, self._drop_unknown = enabled, drop_unknown_classes
        self._classes = None if classes is None else tuple(classes)
        self._pixels = PixelFormat(scale=255.0, bgr=input_format == "BGR")
        self._interval, self._image_interval = interval, image_interval
        self._settings = terse_settings(settings)
        self._backgrounds, self._distractor_bank = backgrounds, distractor_bank
        self._terse: Terse | None = None
        self._saved: Mapping[str, Any] | None = None
        self._device = torch.device("cpu")
        self._losses: list[Tensor] = []
        self._scale, self._due = 1.0, False
        self._clock = (0.0, 0.0)

    @property
    def terse(self) -> Terse:
        """The pasting itself; made when training begins.

        Raises:
            RuntimeError: before that, or where it is not enabled.
        """
        if self._terse is None:
            raise RuntimeError("TerseHook has not begun, or is not enabled")
        return self._terse

    def before_train(self, runner: Any) -> None:
        """Make what is needed of the runner's model and data set, and load what was saved."""
        if not self._enabled:
            return
        classes = class_names(runner.train_dataloader.dataset.metainfo)
        if self._classes not in (None, classes):
            raise ValueError(f"classes: expected the data set's, {classes}, got {self._classes}")
        self._device = next(runner.model.parameters()).device
        target = MMDetAdapter(runner.model, len(classes))
        self._terse = Terse(
            open_bank(self._bank, classes, self._drop_unknown),
            self._policy,
            seed=_shared_seed(runner) if self._seed is None else self._seed,
            target=target,
            pixel_format=self._pixels,
            backgrounds=self._backgrounds,
            distractor_bank=open_distractors(self._distractor_bank, classes),
            **self._settings,
        ).to(self._device)
        policy = self._terse.policy
        if policy.needs_model or policy.learns_from == "hardness" or self._terse.config.robust == "pgd":
            target.check_input()
        if policy.needs_model and runner.distributed:
            raise ValueError(
                "policy 'hard-random' asks for the loss of single images, which many of MMDetection's heads average "
                "over all ranks: with several processes use critic, learned or random"
            )
        if runner.iter > 0:
            self._load(runner)
        self._saved = None  # of a checkpoint that only the weights were taken from
        self._clock = (time.perf_counter(), 0.0)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Composites in place of the images, in the host's own dictionary."""
        if self._terse is None:
            return
        images, targets = to_samples(data_batch, self._device)
        wrapper = runner.optim_wrapper
        # Gradient steps are to cost what the runner's own forward does.
        mixed = self._terse.config.robust == "pgd" and hasattr(wrapper, "cast_dtype")
        with torch.autocast(self._device.type, dtype=getattr(wrapper, "cast_dtype", None), enabled=mixed):
            composites, corrected = self._terse(images, targets, sampled_foregrounds_of(data_batch))
        put_back(data_batch, list(composites), corrected, self._terse.replaced)
        scaler = getattr(wrapper, "loss_scaler", None)
        # As mmengine.optim.OptimWrapper.scale_loss has it, before the batch is counted.
        self._scale = float(wrapper.scale_loss(torch.ones(()))) * (scaler.get_scale() if scaler is not None else 1.0)
        if self.every_n_train_iters(runner, self._image_interval):
            runner.visualizer.add_image(
                _PICTURE, draw_batch(self._terse, list(composites), corrected), step=runner.iter + 1
            )

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Mapping[str, Tensor] | None = None
    ) -> None:
        """The adversary's move, when the optimizer has made its own."""
        if self._terse is None:
            return
        assert outputs is not None
        self._losses.append(outputs["loss"].detach())
        self._due |= self.every_n_train_iters(runner, self._interval)
        if not runner.optim_wrapper.should_update():
            return
        self._terse.step(torch.stack(self._losses).mean(), self._scale)
        self._losses.clear()
        if self._due:
            self._due = False
            self._log(runner)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """The state goes where the optimizer's goes: not into a best model, for one."""
        if self._terse is not None and "optimizer" in checkpoint:
            checkpoint[KEY] = {"seed": self._terse.seed, "terse": self._terse.state_dict()}

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Keep the state until training begins."""
        self._saved = checkpoint.get(KEY)

    def _load(self, runner: Any) -> None:
        if self._saved is None:
            runner.logger.warning("The checkpoint has no state of terse-aug: the adversary begins anew.")
            return
        self.terse.seed = int(self._saved["seed"])
        try:
            self.terse.load_state_dict(self._saved["terse"])
        except RuntimeError as error:
            raise ValueError(
                "the checkpoint's adversary has another form than this one: use the policy and settings that it was "
                f"trained with, or start from the model's weights with load_from in place of resume. {error}"
            ) from error

    def _log(self, runner: Any) -> None:
        now, spent = time.perf_counter(), self.terse.seconds
        share = (spent - self._clock[1]) / max(now - self._clock[0], 1e-9)
        self._clock = (now, spent)
        figures = self.terse.metrics()
        chosen = {name: figures[name] for name in _LOGGED if name in figures} | {"share_of_time": share}
        for name, value in chosen.items():
            runner.message_hub.update_scalar(f"train/terse_aug/{name}", value)


def _shared_seed(runner: Any) -> int:
    """The first rank's: with ``diff_rank_seed`` every rank's runner has a seed of its own."""
    seed = torch.tensor(runner.seed)
    broadcast(seed)
    return int(seed)
