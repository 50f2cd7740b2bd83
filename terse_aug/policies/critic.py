"""Policy ``critic``: a small network foretells how hard a paste will be, and the harder candidates are preferred.

Candidates are drawn from the uniform prior, for one cut-out or for several of a class; one is taken with probability
~ odds ** sharpness, the odds being h / (1 - h) for the foretold hardness h. A ratio of odds means the same when
everything is easy for the detector, late in training, as when everything is hard; a difference of hardness would not.

The sharpness is the least that brings the mean foretold hardness to a goal, and at most 1 / temperature: while most of
what is pasted at random is hard, early in training, nothing is chosen, and diversity is given up only where hardness
has become rare. (Of all distributions with the same mean log odds, this is the one nearest to the prior.) With C
candidates no density can exceed C times the prior's, so the policy cannot collapse. The network learns from what the
detector made of earlier pastes: no gradient through the image, any detector.

Where the target tells the probabilities of all classes, the network foretells these, not only that of the right one:
what a target takes a paste for says more about it than that it is mistaken (Hinton et al., Distilling the Knowledge in
a Neural Network, 2015). Else it foretells the hardness alone.
Shape letters: C candidates, M pastes, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.policies.base import (
    VIEW_CHANNELS,
    VIEW_NUMBERS,
    VIEW_SHAPE,
    VIEW_SIDE,
    VIEWS,
    Policy,
    PolicyContext,
    Proposal,
    Views,
)
from terse_aug.transforms import PARAMETERS
from terse_aug.utils.random import isolated_global_rng


class Critic(nn.Module):
    """From a glimpse to the log odds of its hardness, or to the logits of what the target will take it for.

    Args:
        outputs: 1 for the log odds, K for logits.
        width: channels of the first layer, for each view.
    """

    def __init__(self, outputs: int = 1, width: int = 16) -> None:
        super().__init__()
        self.towers = nn.ModuleList(_tower(width) for _ in VIEWS)
        # On a CPU, channels_last saves a third of the time of layers as narrow as these.
        self.towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        seen = len(VIEWS) * 4 * width * (VIEW_SIDE // 8) ** 2
        self.judge = nn.Sequential(nn.Linear(seen + VIEW_NUMBERS, 64), nn.ReLU(), nn.Linear(64, outputs))
        # At the start every candidate is as good as any other, which is the random policy.
        last = self.judge[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, glimpses: Views) -> Tensor:
        """Float ``[C, M, outputs]`` for the glimpses of :class:`Views`."""
        shape = glimpses.figures.shape[:2]
        weight = next(self.parameters())
        views = glimpses.pictures.flatten(0, 1).unbind(1)
        seen = [tower(view.to(weight.dtype) - 0.5) for tower, view in zip(self.towers, views, strict=True)]
        logits: Tensor = self.judge(torch.cat([*seen, glimpses.figures.flatten(0, 1).to(weight.dtype)], 1))
        return logits.view(*shape, -1).float()


def _tower(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(VIEW_CHANNELS, width, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
    )


class CriticPolicy(Policy):
    """Of some uniform candidates, a hard one by the word of a network that learns what is hard.

    In a distributed run the network is the same on all ranks, while every rank remembers its own pastes: for a resumed
    run that is equal to the bit, each rank has to save and load its own state.

    Args:
        seed: of the network's initial weights.
        candidates: C, at least 1; 1 is the random policy.
        temperature: above 0; at the sharpest, 1 picks in proportion to the odds of being missed, high is random
            pasting, near 0 takes the candidate that is foretold to be the hardest.
        held: names of transform parameters that all candidates of a paste share, so that they stay exactly as
            spread out as random ones.
        rehearsals: optimizer steps in a move.
        capacity: pastes remembered.
        classes: K, at least 2, for a target that tells the probabilities of all classes; every label is below it.
            ``None`` to learn from hardness alone.
        offers: cut-outs among which one is chosen for each paste, at least 1; each has candidates of its own.
        mix_classes: whether the cut-outs of a paste may be of different classes.
        goal: in [0, 1], the mean foretold hardness aimed at; 1 always chooses as sharply as the temperature allows, 0
            is random pasting.

    Raises:
        ValueError: ``held`` names something that is no transform parameter, or a number is outside its range.
    """

    learns = True
    learns_from = "hardness"
    uses_views = True

    def __init__(
        self,
        seed: int = 0,
        candidates: int = 8,
        temperature: float = 0.5,
        held: Sequence[str] = (),
        replay_updates: int = 4,
        capacity: int = 1024,
        classes: int | None = None,
        foreground_candidates: int = 1,
        goal: float = 0.7,
        mix_classes: bool = False,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("candidates", candidates, 1),
            ("replay_updates", replay_updates, 1),
            ("capacity", capacity, 1),
            ("classes", 2 if classes is None else classes, 2),
            ("foreground_candidates", foreground_candidates, 1),
        ):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if not 0 <= goal <= 1:
            raise ValueError(f"goal: expected a hardness in [0, 1], got {goal}")
        if not temperature > 0:
            raise ValueError(f"temperature: expected a value above 0, got {temperature}")
        if unknown := sorted(set(held) - set(PARAMETERS)):
            raise ValueError(f"held: expected some of {', '.join(PARAMETERS)}, got {', '.join(unknown)}")
        self._held = [PARAMETERS.index(name) for name in held]
        self.candidates = candidates
        self.temperature = temperature
        self.replay_updates = replay_updates
        self.foreground_candidates = foreground_candidates
        self.mix_classes = mix_classes
        self.classes = classes
        self.goal = goal
        with isolated_global_rng(seed):
            self.critic = Critic(classes or 1)
        self.register_buffer("_pictures", torch.zeros(capacity, *VIEW_SHAPE, dtype=torch.uint8))
        self.register_buffer("_figures", torch.zeros(capacity, VIEW_NUMBERS))
        self.register_buffer("_hardness", torch.zeros(capacity))
        self.register_buffer("_labels", torch.zeros(capacity, dtype=torch.long))
        if classes is not None:
            # A row of zeros where only the hardness was told.
            self.register_buffer("_chances", torch.zeros(capacity, classes))
            self._chances: Tensor
        self.register_buffer("_written", torch.zeros((), dtype=torch.long, device="cpu"))
        self._pictures: Tensor
        self._figures: Tensor
        self._hardness: Tensor
        self._labels: Tensor
        self._written: Tensor

    def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`; the density is estimated from the candidates at hand."""
        assert scene.glimpse is not None
        device, count = scene.image_of.device, len(scene.image_of) // self.foreground_candidates
        shape = (self.candidates, count, self.foreground_candidates, len(PARAMETERS))
        units = torch.rand(shape, generator=generator).to(device)
        units[..., self._held] = units[:1, :, :1, self._held]
        draw = torch.rand(count, generator=generator).to(device)
        if count == 0:
            return Proposal(units[0, :, 0], draw)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            glimpses = scene.glimpse(units.flatten(1, 2))
            log_odds = self._log_odds(self.critic(glimpses), scene.labels)
            # One column of all candidates for each paste, candidate by candidate, offer by offer.
            every = log_odds.view(shape[:3]).transpose(1, 2).flatten(0, 1)
            chances = torch.softmax(every * _sharpness(every, self.goal, 1 / self.temperature), 0)
        chosen = _drawn(chances, draw)
        pastes = torch.arange(count, device=device)
        candidate, offer = chosen // self.foreground_candidates, chosen % self.foreground_candidates
        rows = pastes * self.foreground_candidates + offer
        log_density = (chances[chosen, pastes] * len(chances)).log()
        proposal = Proposal(
            units[candidate, pastes, offer], log_density, rows=rows.cpu() if self.foreground_candidates > 1 else None
        )
        if learning:
            pictures = (glimpses.pictures[candidate, rows] * 255).round().to(torch.uint8)
            foretold = log_odds[candidate, rows].sigmoid()
            proposal.replay_data = (pictures, glimpses.figures[candidate, rows], foretold, scene.labels[rows])
            proposal.metrics["hardness_gain"] = float(foretold.mean() - every.sigmoid().mean())
        return proposal

    def add_to_replay(self, proposal: Proposal, hardness: Tensor, chances: Tensor | None = None) -> None:
        """See :meth:`Policy.add_to_replay`; the oldest pastes are forgotten."""
        pictures, figures, foretold, labels = proposal.replay_data
        known = (~hardness.isnan()).nonzero()[:, 0]
        proposal.metrics |= _figures_of_merit(foretold[known], hardness[known].to(foretold))
        start, capacity = int(self._written), len(self._labels)
        known = known[-capacity:]  # more than there is room for would be written over one another
        places = (torch.arange(len(known), device=known.device) + start) % capacity
        self._pictures[places] = pictures[known]
        self._figures[places] = figures[known].to(self._figures)
        self._hardness[places] = hardness[known].to(self._hardness)
        self._labels[places] = labels[known]
        if self.classes is not None:
            told = chances[known] if chances is not None else torch.zeros(len(known), self.classes, device=known.device)
            self._chances[places] = told.nan_to_num(nan=0.0).to(self._chances)
        self._written += len(known)

    def replay_loss(self, generator: torch.Generator) -> Tensor | None:
        """Cross-entropy of what was foretold against what came, over a sample of the memory."""
        filled = min(int(self._written), len(self._labels))
        if filled == 0:
            return None
        sample = torch.randint(filled, (_REHEARSED,), generator=generator).to(self._labels.device)
        pictures, labels = self._pictures[sample].float() / 255, self._labels[sample]
        with torch.autocast(pictures.device.type, enabled=False):
            outputs = self.critic(Views(pictures[None], self._figures[sample][None]))[0]
            of_hardness = F.binary_cross_entropy_with_logits(
                self._log_odds(outputs, labels), self._hardness[sample].float(), reduction="none"
            )
            if self.classes is None:
                return of_hardness.mean()
            chances = self._chances[sample].float()
            over_classes = -(chances * outputs.log_softmax(1)).sum(1)
            return torch.where(chances.sum(1) > 0, over_classes, of_hardness).mean()

    def _log_odds(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return outputs[..., 0] if self.classes is None else hardness_log_odds(outputs, labels)


def hardness_log_odds(logits: Tensor, labels: Tensor) -> Tensor:
    """Log odds ``log(h / (1 - h))`` of the hardness h, one minus the softmax at the label.

    Args:
        logits: float ``[..., M, K]``.
        labels: int64 ``[M]`` in [0, K).

    Returns:
        float ``[..., M]``.
    """
    column = labels.expand(logits.shape[:-1])[..., None]
    others = logits.scatter(-1, column, -torch.inf).logsumexp(-1)
    return others - logits.gather(-1, column)[..., 0]


def _sharpness(log_odds: Tensor, goal: float, most: float) -> Tensor:
    """The least exponent at which the mean foretold hardness of the chosen reaches the goal, or ``most``; by bisection.

    Args:
        log_odds: float ``[n, M]``, of n candidates for each paste.
        goal: in [0, 1].
        most: above 0.
    """
    hardness = log_odds.sigmoid()
    low, high = log_odds.new_zeros(()), log_odds.new_full((), most)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        short = (torch.softmax(log_odds * middle, 0) * hardness).sum(0).mean() < goal
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return torch.where(hardness.mean() < goal, high, torch.zeros_like(high))


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


_REHEARSED = 64
_BISECTIONS = 24


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
