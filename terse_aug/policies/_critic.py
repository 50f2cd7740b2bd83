"""Policy ``critic``: a small network foretells how hard a paste will be, and the harder candidates are preferred.

Candidates are drawn from the uniform prior; one is taken with probability ~ odds ** (1 / temperature), the odds being
h / (1 - h) for the foretold hardness h. A ratio of odds means the same when everything is easy for the detector, late
in training, as when everything is hard; a difference of hardness would not. With C candidates no density can exceed
C times the prior's, so the policy cannot collapse. The network learns from what the detector made of earlier pastes:
no gradient through the image, any detector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug._random import isolated_global_rng
from terse_aug._transforms import PARAMETERS
from terse_aug.policies._base import (
    GLIMPSE,
    GLIMPSE_CHANNELS,
    GLIMPSE_FIGURES,
    Glimpses,
    Policy,
    Proposal,
    Scene,
)


class Critic(nn.Module):
    """From a glimpse to a logit of hardness.

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.look = nn.Sequential(
            nn.Conv2d(GLIMPSE_CHANNELS, width, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.judge = nn.Sequential(
            nn.Linear(4 * width * (GLIMPSE // 8) ** 2 + GLIMPSE_FIGURES, 64), nn.ReLU(), nn.Linear(64, 1)
        )
        # At the start every candidate is as good as any other, which is the random policy.
        last = self.judge[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, glimpses: Glimpses) -> Tensor:
        """The logit of each glimpse's hardness, ``[C, M]`` for those of :class:`Glimpses`."""
        shape = glimpses.figures.shape[:2]
        weight = next(self.parameters())
        seen = self.look(glimpses.pictures.flatten(0, 1).to(weight.dtype) - 0.5)
        logits: Tensor = self.judge(torch.cat([seen, glimpses.figures.flatten(0, 1).to(weight.dtype)], 1))
        return logits.view(shape).float()


class CriticPolicy(Policy):
    """Of some uniform candidates, a hard one by the word of a network that learns what is hard.

    In a distributed run the network is the same on all ranks, while every rank remembers its own pastes: for a resumed
    run that is equal to the bit, each rank has to save and load its own state.

    Args:
        seed: of the network's initial weights.
        candidates: C, at least 1; 1 is the random policy.
        temperature: above 0; 1 picks in proportion to the odds of being missed, high is random pasting, near 0
            always takes the candidate that is foretold to be the hardest.
        held: names of transform parameters that all candidates of a paste share, so that they stay exactly as
            spread out as random ones.
        rehearsals: optimizer steps in a move.
        capacity: pastes remembered.

    Raises:
        ValueError: ``held`` names something that is no transform parameter, or a number is outside its range.
    """

    learns = True
    learns_from = "hardness"
    sees_glimpses = True

    def __init__(
        self,
        seed: int = 0,
        candidates: int = 8,
        temperature: float = 0.5,
        held: Sequence[str] = (),
        rehearsals: int = 4,
        capacity: int = 1024,
    ) -> None:
        super().__init__()
        for name, value in (("candidates", candidates), ("rehearsals", rehearsals), ("capacity", capacity)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a value above 0, got {temperature}")
        if unknown := sorted(set(held) - set(PARAMETERS)):
            raise ValueError(f"held: expected some of {', '.join(PARAMETERS)}, got {', '.join(unknown)}")
        self._held = [PARAMETERS.index(name) for name in held]
        self.candidates = candidates
        self.temperature = temperature
        self.rehearsals = rehearsals
        with isolated_global_rng(seed):
            self.critic = Critic()
        self.register_buffer("_pictures", torch.zeros(capacity, *_PICTURE, dtype=torch.uint8))
        self.register_buffer("_figures", torch.zeros(capacity, GLIMPSE_FIGURES))
        self.register_buffer("_hardness", torch.zeros(capacity))
        self.register_buffer("_written", torch.zeros((), dtype=torch.long, device="cpu"))
        self._pictures: Tensor
        self._figures: Tensor
        self._hardness: Tensor
        self._written: Tensor

    def propose(self, scene: Scene, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`; the density is estimated from the candidates at hand."""
        assert scene.glimpse is not None
        device, count = scene.image_of.device, len(scene.image_of)
        units = torch.rand(self.candidates, count, len(PARAMETERS), generator=generator).to(device)
        units[:, :, self._held] = units[:1, :, self._held]
        draw = torch.rand(count, generator=generator).to(device)
        if count == 0:
            return Proposal(units[0], draw)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            glimpses = scene.glimpse(units)
            logits = self.critic(glimpses)
            chances = torch.softmax(logits / self.temperature, 0)
        chosen = _drawn(chances, draw)
        rows = torch.arange(count, device=device)
        proposal = Proposal(units[chosen, rows], (chances[chosen, rows] * self.candidates).log())
        if learning:
            pictures = (glimpses.pictures[chosen, rows] * 255).round().to(torch.uint8)
            proposal.memory = (pictures, glimpses.figures[chosen, rows], logits[chosen, rows].sigmoid())
        return proposal

    def remember(self, proposal: Proposal, hardness: Tensor) -> None:
        """See :meth:`Policy.remember`; the oldest pastes are forgotten."""
        pictures, figures, foretold = proposal.memory
        known = (~hardness.isnan()).nonzero()[:, 0]
        proposal.metrics |= _figures_of_merit(foretold[known], hardness[known].to(foretold))
        start, capacity = int(self._written), len(self._hardness)
        known = known[-capacity:]  # more than there is room for would be written over one another
        hardness = hardness[known]
        places = (torch.arange(len(hardness), device=hardness.device) + start) % capacity
        self._pictures[places] = pictures[known]
        self._figures[places] = figures[known].to(self._figures)
        self._hardness[places] = hardness.to(self._hardness)
        self._written += len(hardness)

    def rehearse(self, generator: torch.Generator) -> Tensor | None:
        """Cross-entropy of the foretold hardness against what came, over a sample of the memory."""
        filled = min(int(self._written), len(self._hardness))
        if filled == 0:
            return None
        sample = torch.randint(filled, (_REHEARSED,), generator=generator).to(self._hardness.device)
        pictures = self._pictures[sample].float() / 255
        with torch.autocast(pictures.device.type, enabled=False):
            logits = self.critic(Glimpses(pictures[None], self._figures[sample][None]))[0]
            return F.binary_cross_entropy_with_logits(logits, self._hardness[sample])


def _drawn(chances: Tensor, draw: Tensor) -> Tensor:
    """The candidate of each paste, ``[M]``, for chances ``[C, M]`` and uniform draws ``[M]``.

    The same on all devices, and allowed under deterministic algorithms, unlike torch.multinomial and cumsum.
    """
    chosen = torch.zeros_like(draw, dtype=torch.long)
    passed = torch.zeros_like(draw)
    for chance in chances[:-1]:
        passed = passed + chance
        chosen += passed < draw
    return chosen


_PICTURE = (GLIMPSE_CHANNELS, GLIMPSE, GLIMPSE)
_REHEARSED = 64


def _figures_of_merit(foretold: Tensor, hardness: Tensor) -> dict[str, float]:
    """What the log shows: mean hardness, and how well it was foretold before it came."""
    if len(hardness) == 0:
        return {}
    figures = {"hardness": float(hardness.mean())}
    if len(hardness) > 2:
        correlation = float(torch.corrcoef(torch.stack([foretold, hardness]))[0, 1])
        if math.isfinite(correlation):
            figures["critic_correlation"] = correlation
    return figures
