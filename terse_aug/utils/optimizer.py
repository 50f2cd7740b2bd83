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
        self._adam = torch.optim.Adam(list(parameters), lr=learning_rate, betas=betas)
        for index, parameter in enumerate(self._parameters_in_order):
            for name in _MOMENTS:
                self.register_buffer(f"{name}_{index}", torch.zeros_like(parameter))
        # An integer, which module.to(torch.bfloat16) leaves as it is: bfloat16 cannot count beyond 256.
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def _parameters_in_order(self) -> list[nn.Parameter]:
        return list(self._adam.param_groups[0]["params"])

    def step(self) -> None:
        """Update the parameters that have a gradient, and clear the gradients."""
        steps = self.steps.cpu().float()
        for index, parameter in enumerate(self._parameters_in_order):
            moments = {name: getattr(self, f"{name}_{index}") for name in _MOMENTS}
            self._adam.state[parameter] = {"step": steps.clone(), **moments}
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.steps += 1
