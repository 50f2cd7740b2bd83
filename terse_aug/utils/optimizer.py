"""Adam whose state is buffers, so that a module's ``state_dict`` holds all of it as plain tensors."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


class BufferedAdam(nn.Module):
    """``torch.optim.Adam`` whose moments are saved and moved with the module that owns it.

    The parameters are not registered here: another module has them.

    Args:
        parameters: what is optimised.
        learning_rate: step size.
        betas: decay rates of the moments.
    """

    steps: torch.Tensor

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__()
        # Fused: the only kind that can leave out a step without asking the device first.
        self._adam = torch.optim.Adam(list(parameters), lr=learning_rate, betas=betas, fused=True)
        for index, parameter in enumerate(self._parameters_in_order):
            for name in _MOMENTS:
                self.register_buffer(f"{name}_{index}", torch.zeros_like(parameter))
        # An integer, which module.to(torch.bfloat16) leaves as it is: bfloat16 cannot count beyond 256.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def _parameters_in_order(self) -> list[nn.Parameter]:
        return list(self._adam.param_groups[0]["params"])

    def step(self, skip: torch.Tensor | None = None) -> None:
        """Update the parameters that have a gradient, and clear the gradients.

        Args:
            skip: bool scalar on the device of the parameters; where it is true nothing changes. It is not waited for.
        """
        parameters = self._parameters_in_order
        steps = self.steps.float().repeat(len(parameters))
        for index, (parameter, step) in enumerate(zip(parameters, steps.unbind(), strict=True)):
            moments = {name: getattr(self, f"{name}_{index}") for name in _MOMENTS}
            self._adam.state[parameter] = {"step": step, **moments}
        self._adam.found_inf = None if skip is None else skip.float()  # type: ignore[attr-defined]  # a GradScaler's
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.steps += 1 if skip is None else ~skip
