"""The callback: pastes on the batches of the training step, and updates the policy after each step of the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from terse_aug import Terse
from terse_aug.batch_composer import Join, Split, join_batch, split_batch


class TerseCallback(Callback):
    """Pastes objects on every batch of ``training_step``, and updates the policy from its loss.

    The state is saved in Lightning's checkpoints with that of the callback, and loaded from them.

    Args:
        terse: pastes; made for the detector in the module, and no part of the module.
        split, join: for batches that are not ``(images, targets)``: the arguments of :meth:`terse_aug.Terse.forward`
            of a batch, and a batch of its results; see :meth:`terse_aug.Terse.ahead`.
    """

    def __init__(self, terse: Terse, split: Split = split_batch, join: Join = join_batch) -> None:
        super().__init__()
        self.terse, self._split, self._join = terse, split, join
        self._losses: list[Tensor] = []
        self._steps, self._updates, self._scale = 0, 0, 1.0
        self._installed: Callable[..., Any] | None = None
        self._previous: Callable[..., Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Move Terse to the module's device, and put it before the module's training step."""
        self.terse.to(pl_module.device)
        self._restore(pl_module)  # after a training that an error has ended
        self._losses, self._steps = [], trainer.global_step
        step = pl_module.training_step

        @wraps(step)
        def training_step(batch: Any, *arguments: Any, **keywords: Any) -> Any:
            images, targets = self.terse(*self._split(batch))
            return step(self._join(batch, list(images), targets), *arguments, **keywords)

        # Lightning keeps the step of a compiled module as an attribute, too.
        self._previous, self._installed = vars(pl_module).get("training_step"), training_step
        vars(pl_module)["training_step"] = training_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Take the factor of the loss before the scaler of mixed precision changes it."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._scale = (scaler.get_scale() if scaler is not None else 1.0) / trainer.accumulate_grad_batches

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the policy, if the optimizer has made a step, and log metrics when Lightning does."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        self.terse.step(torch.stack(self._losses).mean() if self._losses else None, self._scale)
        self._losses.clear()
        # Not global_step: it counts each of several optimizers.
        self._updates += 1
        if self._updates % trainer.log_every_n_steps == 0:
            metrics = {f"terse_aug/{name}": value for name, value in self.terse.metrics().items()}
            pl_module.log_dict(metrics, batch_size=1)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the module as it was."""
        self._restore(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Likewise."""
        self._restore(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Seed and state of Terse, and the number of updates."""
        return {"seed": self.terse.seed, "terse": self.terse.state_dict(), "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of :meth:`state_dict`."""
        self.terse.seed = int(state_dict["seed"])
        self.terse.load_state_dict(state_dict["terse"])
        self._updates = int(state_dict.get("updates", 0))

    def _restore(self, pl_module: Any) -> None:
        own = vars(pl_module)
        if self._installed is not None and own.get("training_step") is self._installed:
            if self._previous is None:
                del own["training_step"]
            else:
                own["training_step"] = self._previous
        self._installed = self._previous = None
