"""The learning rate as a pure function of the iteration, so that resuming needs no scheduler state."""

import math

from torch.optim import Optimizer

DECAYS = ("cosine", "step", "none")


def learning_rate(iteration: int, iterations: int, peak: float, warmup: int, decay: str) -> float:
    """The learning rate of one iteration, counted from 0.

    Args:
        iteration: Which one.
        iterations: How many the whole run has.
        peak: The rate after the warm-up.
        warmup: Iterations over which the rate rises linearly to `peak`.
        decay: `cosine` to zero, `step` (a tenth after two thirds, a hundredth after eight ninths), `none`.
    """
    if iteration < warmup:
        return peak * (iteration + 1) / (warmup + 1)
    progress = (iteration - warmup) / max(1, iterations - warmup)
    if decay == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    if decay == "step":
        passed = sum(iteration >= iterations * fraction for fraction in (2 / 3, 8 / 9))
        return peak * 0.1**passed
    return peak


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    """Give all of the optimizer's parameters one learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
