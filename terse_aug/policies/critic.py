"""Policy ``critic``: a small network predicts how hard a paste will be, and harder candidates are preferred.

Candidates are drawn uniformly, for one foreground or for several; one is chosen with probability ~ odds ** sharpness,
the odds being h / (1 - h) for the predicted hardness h. A ratio of odds means the same when everything is easy for the
detector, late in training, as when everything is hard; a difference of hardness does not.

The sharpness is the least that brings the mean predicted hardness to ``target_hardness``, and at most
1 / temperature: while most random pastes are hard, early in training, nothing is chosen, and diversity is given up
only where hardness has become rare. (Of all distributions with the same mean log odds, this is the one nearest to
uniform.) With C candidates no density can exceed C times the uniform one, so the policy cannot collapse. The network
learns from the detector's scores of earlier pastes: no gradient through the image, any detector.

Where the model gives the probabilities of all classes, the network predicts these, not only that of the right one:
they describe a paste in more detail than its hardness (Hinton et al., Distilling the Knowledge in a Neural Network,
2015). Else it predicts the hardness alone.
Shape letters: C candidates, M pastes, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from terse_aug.config import Critic
from terse_aug.policies.base import (
    BOX_NUMBERS,
    VIEW_CHANNELS,
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
from terse_aug.utils.transfer import to_device

_REPLAY_BATCH = 64
_BISECTIONS = 24


class CriticNetwork(nn.Module):
    """From the views of a paste to the log odds of its hardness, or to the logits of the classes.

    Args:
        outputs: 1 for the log odds, K for logits.
        width: channels of the first layer, for each view.
        columns: P.
    """

    def __init__(self, outputs: int = 1, width: int = 16, columns: int = len(PARAMETERS)) -> None:
        super().__init__()
        self.towers = nn.ModuleList(_tower(width) for _ in VIEWS)
        # On a CPU, channels_last saves a third of the time of layers as narrow as these.
        self.towers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        features = len(VIEWS) * 4 * width * (VIEW_SIDE // 8) ** 2
        first, last = nn.Linear(features + columns + BOX_NUMBERS, 64), nn.Linear(64, outputs)
        self.head = nn.Sequential(first, nn.ReLU(), last)
        # At the start every candidate is as good as any other, which is the random policy.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, views: Views) -> Tensor:
        """Float ``[C, M, outputs]`` for the views of C candidates of M pastes."""
        shape = views.numbers.shape[:2]
        weight = next(self.parameters())
        by_view = views.images.flatten(0, 1).unbind(1)
        features = [tower(view.to(weight.dtype) - 0.5) for tower, view in zip(self.towers, by_view, strict=True)]
        logits: Tensor = self.head(torch.cat([*features, views.numbers.flatten(0, 1).to(weight.dtype)], 1))
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
    """Chooses a hard one of several uniform candidates, by a network that learns what is hard.

    In a distributed run the network is the same on all ranks, while every rank has its own replay buffer: for a resumed
    run that is equal to the bit, each rank has to save and load its own state.

    Args:
        settings: see :class:`terse_aug.policies.Critic`.
        seed: of the network's initial weights.
        classes: K, at least 2, for a model that gives the probabilities of all classes; every label is below it.
            ``None`` to learn from hardness alone.
        capacity: pastes in the replay buffer, at least 1.
        columns: names of the columns of a transform, see :attr:`terse_aug.PasteConfig.columns`.

    Raises:
        ValueError: a number is outside its range, or ``fixed_parameters`` has one that is no column.
    """

    learns = True
    learns_from = "hardness"
    uses_views = True
    ahead = True
    columns: tuple[str, ...]

    def __init__(
        self,
        settings: Critic | None = None,
        seed: int = 0,
        classes: int | None = None,
        capacity: int = 1024,
        columns: Sequence[str] = PARAMETERS,
    ) -> None:
        super().__init__()
        settings = settings or Critic()
        for name, value, least in (("capacity", capacity, 1), ("classes", 2 if classes is None else classes, 2)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        self.columns = tuple(columns)
        if off := [name for name in settings.fixed_parameters if name not in self.columns]:
            raise ValueError(
                f"fixed_parameters: {', '.join(off)}: not drawn with these settings of pasting, which have "
                f"{', '.join(self.columns)}; leave it out, or switch it on in PasteConfig"
            )
        self._fixed = [self.columns.index(name) for name in settings.fixed_parameters]
        self.candidates, self.temperature = settings.candidates, settings.temperature
        self.target_hardness, self.replay_updates = settings.target_hardness, settings.replay_updates
        self.foreground_candidates, self.mix_classes = settings.foreground_candidates, settings.mix_classes
        self.update_interval, self.learning_rate = settings.update_interval, settings.learning_rate
        self.max_gradient_norm = settings.max_gradient_norm
        self.classes = classes
        with isolated_global_rng(seed):
            self.network = CriticNetwork(classes or 1, columns=len(self.columns))
        self._register_replay_buffer(capacity)

    def _register_replay_buffer(self, capacity: int) -> None:
        self.register_buffer("replay_images", torch.zeros(capacity, *VIEW_SHAPE, dtype=torch.uint8))
        self.register_buffer("replay_numbers", torch.zeros(capacity, len(self.columns) + BOX_NUMBERS))
        self.register_buffer("replay_hardness", torch.zeros(capacity))
        self.register_buffer("replay_labels", torch.zeros(capacity, dtype=torch.long))
        if self.classes is not None:
            # A row of zeros where only the hardness is known.
            self.register_buffer("replay_probabilities", torch.zeros(capacity, self.classes))
            self.replay_probabilities: Tensor
        self.register_buffer("replay_count", torch.zeros((), dtype=torch.long, device="cpu"))
        self.replay_images: Tensor
        self.replay_numbers: Tensor
        self.replay_hardness: Tensor
        self.replay_labels: Tensor
        self.replay_count: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CriticPolicy:
        """Move everything but the count, which is read in every update."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own has no types
        self.replay_count = self.replay_count.cpu()
        return self

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """See :meth:`Policy.propose`; the density is estimated from the candidates."""
        assert context.views is not None
        device, count = context.device, len(context.image_of) // self.foreground_candidates
        shape = (self.candidates, count, self.foreground_candidates, len(self.columns))
        units = torch.rand(shape, generator=generator)
        units[..., self._fixed] = units[:1, :, :1, self._fixed]
        draw = torch.rand(count, generator=generator)
        if count == 0:
            return Proposal(units[0, :, 0], draw)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            views = context.views(units.flatten(1, 2))
            # On the CPU from here on: choosing takes many small steps.
            log_odds = self._log_odds(self.network(views).cpu(), context.labels)
            # One column of all candidates for each paste.
            every = log_odds.view(shape[:3]).transpose(1, 2).flatten(0, 1)
            probabilities = torch.softmax(every * _sharpness(every, self.target_hardness, 1 / self.temperature), 0)
        chosen = _drawn(probabilities, draw)
        pastes = torch.arange(count)
        candidate, foreground = chosen // self.foreground_candidates, chosen % self.foreground_candidates
        rows = pastes * self.foreground_candidates + foreground
        proposal = Proposal(
            units[candidate, pastes, foreground],
            (probabilities[chosen, pastes] * len(probabilities)).log(),
            rows=rows if self.foreground_candidates > 1 else None,
            placement=views.placement and views.placement.rows(candidate * len(context.image_of) + rows),
        )
        if learning:
            predicted = log_odds[candidate, rows].sigmoid()
            labels = context.labels[rows]
            candidate, rows = to_device([candidate, rows], device)
            images = (views.images[candidate, rows] * 255).round().to(torch.uint8)
            proposal.replay_data = (images, views.numbers[candidate, rows], predicted, labels)
            proposal.metrics["hardness_gain"] = float(predicted.mean() - every.sigmoid().mean())
        return proposal

    def add_to_replay(self, proposal: Proposal, hardness: Tensor, class_probabilities: Tensor | None = None) -> None:
        """See :meth:`Policy.add_to_replay`; the oldest pastes are overwritten."""
        images, numbers, predicted, labels = proposal.replay_data
        if images.device.type == "cpu":  # composed ahead of a device
            images, numbers = to_device([images, numbers], self.replay_labels.device)
        known = (~hardness.isnan()).nonzero()[:, 0]
        proposal.metrics |= _prediction_metrics(predicted[known], hardness[known].to(predicted))
        start, capacity = int(self.replay_count), len(self.replay_labels)
        known = known[-capacity:]  # more than there is room for would overwrite one another
        self.replay_count += len(known)
        places = (torch.arange(len(known)) + start) % capacity
        arrays = [known, places, hardness[known].float(), labels[known]]
        known, places, hardness, labels = to_device(arrays, self.replay_labels.device)
        self.replay_images[places] = images[known]
        self.replay_numbers[places] = numbers[known].to(self.replay_numbers)
        self.replay_hardness[places] = hardness.to(self.replay_hardness)
        self.replay_labels[places] = labels
        if self.classes is not None:
            rows = torch.zeros(len(known), self.classes, device=known.device)
            if class_probabilities is not None:
                rows = class_probabilities[known]
            self.replay_probabilities[places] = rows.nan_to_num(nan=0.0).to(self.replay_probabilities)

    def replay_loss(self, generator: torch.Generator) -> Tensor | None:
        """Cross-entropy of the predictions over a sample of the replay buffer."""
        filled = min(int(self.replay_count), len(self.replay_labels))
        if filled == 0:
            return None
        drawn = torch.randint(filled, (_REPLAY_BATCH,), generator=generator)
        (sample,) = to_device([drawn], self.replay_labels.device)
        images, labels = self.replay_images[sample].float() / 255, self.replay_labels[sample]
        with torch.autocast(images.device.type, enabled=False):
            outputs = self.network(Views(images[None], self.replay_numbers[sample][None]))[0]
            of_hardness = F.binary_cross_entropy_with_logits(
                self._log_odds(outputs, labels), self.replay_hardness[sample].float(), reduction="none"
            )
            if self.classes is None:
                return of_hardness.mean()
            probabilities = self.replay_probabilities[sample].float()
            over_classes = -(probabilities * outputs.log_softmax(1)).sum(1)
            return torch.where(probabilities.sum(1) > 0, over_classes, of_hardness).mean()

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


def _sharpness(log_odds: Tensor, target_hardness: float, most: float) -> Tensor:
    """The least exponent at which the mean predicted hardness of the chosen reaches the target; by bisection.

    Args:
        log_odds: float ``[n, M]``, of n candidates for each paste.
        target_hardness: in [0, 1].
        most: the largest exponent, above 0.
    """
    hardness = log_odds.sigmoid()
    low, high = log_odds.new_zeros(()), log_odds.new_full((), most)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        short = (torch.softmax(log_odds * middle, 0) * hardness).sum(0).mean() < target_hardness
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return torch.where(hardness.mean() < target_hardness, high, torch.zeros_like(high))


def _drawn(probabilities: Tensor, draw: Tensor) -> Tensor:
    """The candidate of each paste, ``[M]``, for probabilities ``[C, M]`` and uniform draws ``[M]``.

    The same on all devices, and allowed under deterministic algorithms, unlike torch.multinomial and cumsum.
    """
    chosen = torch.zeros_like(draw, dtype=torch.long)
    cumulated = torch.zeros_like(draw)
    for probability in probabilities[:-1]:
        cumulated = cumulated + probability
        chosen += cumulated < draw
    return chosen


def _prediction_metrics(predicted: Tensor, hardness: Tensor) -> dict[str, float]:
    """Mean hardness, and its correlation with what was predicted."""
    if len(hardness) == 0:
        return {}
    metrics = {"hardness": float(hardness.mean())}
    if len(hardness) > 2:
        correlation = float(torch.corrcoef(torch.stack([predicted, hardness]))[0, 1])
        if math.isfinite(correlation):
            metrics["predicted_hardness_correlation"] = correlation
    return metrics
