"""What happens around an iteration of the detector: feedback is collected, policy and sampler are updated."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.compositing.compose import Composites, full_precision
from terse_aug.models import ModelAdapter
from terse_aug.policies import Policy, Proposal
from terse_aug.samplers import Sampler
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.structures.validation import ValidatedBatch
from terse_aug.training.acting import ActingPolicy, Turn
from terse_aug.training.feedback import FeedbackBuffer
from terse_aug.training.hardness import PendingBatch
from terse_aug.training.metrics import Metrics
from terse_aug.training.updates import PolicyUpdater, UpdateResult
from terse_aug.utils.distributed import rank
from terse_aug.utils.random import generator_for
from terse_aug.utils.transfer import to_cpu
from terse_aug.utils.warnings import WarnOnce

_MOST_UNREAD = 64
"""Losses or batches that are left on a device at most before they are read."""
_RANDOM_FALLBACK = "the policy is not updated, and pastes are random until an update succeeds"
_NO_GRADIENT = (
    "no gradient reached the composites, so the policy is not updated: call backward() on the detector's loss before "
    "step(), call Terse outside torch.no_grad(), and pass the images on as Terse returned them"
)


class PolicyTrainer(nn.Module):
    """Trains policy and sampler beside the detector.

    Args:
        policy: in use.
        sampler: in use, bound to the bank.
        model: the detector, if there is one.
        pixel_format: of the images.
        seed: of what is drawn.
        metrics: counters and averages.
        warn: warns once.
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        model: ModelAdapter | None,
        pixel_format: PixelFormat,
        seed: int,
        metrics: Metrics,
        warn: WarnOnce,
    ) -> None:
        super().__init__()
        self.updater = PolicyUpdater(policy, seed, pixel_format)
        self.acting = ActingPolicy(policy)
        self.sampler = sampler
        self.feedback = FeedbackBuffer(model, policy, sampler, metrics, warn, pixel_format)
        # In a tuple, so that nn.Module does not register it: Terse saves it.
        self._shared, self._warn = (metrics,), warn
        # What has not been read yet, and what ``random_fallback`` becomes in the next iteration in which it is.
        self._losses: list[Tensor] = []
        self._results: list[UpdateResult] = []
        self._fallback: int | None = None

    @property
    def _metrics(self) -> Metrics:
        return self._shared[0]

    @property
    def policy(self) -> Policy:
        """The policy in use."""
        return self.updater.policy

    def learns_from_batch(self) -> bool:
        """Whether the policy will learn from the batch of this iteration; warns where gradients are switched off."""
        if self.policy.learns_from == "hardness":
            return self.updater.learns
        if self._policy_is_due() and not torch.is_grad_enabled():
            self._metrics.counts["dropped/graph"] += 1
            self._warn.warn("no_gradient", _NO_GRADIENT)
        return self._policy_is_due() and torch.is_grad_enabled()

    def turn(self, seed: int) -> Turn:
        """How the next batch is composed; ``seed`` of what is drawn."""
        return self._turn(self.policy, self.sampler, seed, self._is_random())

    def turn_ahead(self, seed: int) -> Turn:
        """How the next batch is composed while the detector trains on the one before; ``seed`` of what is drawn."""
        if self.acting.is_behind(self._metrics.counts["iterations"]):
            self.advance()
        acting, random = self.acting.policy(), self.acting.random(self._is_random())
        return self._turn(acting, copy.copy(self.sampler), seed, random)

    def advance(self) -> None:
        """A batch that was composed ahead is trained on: bring the policy that composes the next one up to date."""
        self.acting.advance(self._metrics.counts["iterations"], self._is_random())

    def _turn(self, policy: Policy, sampler: Sampler, seed: int, random: bool) -> Turn:
        call = self._metrics.counts["calls"]
        generator = generator_for(seed, rank(), "paste", call)
        return Turn(call, policy, sampler, seed, generator, self.learns_from_batch(), random)

    def _is_random(self) -> bool:
        """Where feedback is missing, and, in an iteration without an update, during the fallback."""
        fallback = self._metrics.counts["random_fallback"] and self.policy.learns and not self._policy_is_due()
        return bool(fallback) or self.feedback.is_missing()

    def watch(
        self, batch: ValidatedBatch, proposal: Proposal, composites: Composites, shown: Composites, learning: bool
    ) -> None:
        """Keep what policy and next update need of a batch, and record the detector's forward on it.

        Args:
            batch: before pasting.
            proposal: of the policy.
            composites: made from it, with their graph.
            shown: what the detector is trained on: the same, or perturbed. Hardness is that of the perturbed
                composites, realism that of the others.
            learning: see :meth:`learns_from_batch`.
        """
        if self.policy.uses_boxes:
            self.policy.add_boxes(proposal)
            self.acting.updated(self._metrics.counts["iterations"])
        if not any(composites.pastes):
            return
        if learning and (proposal.leaves or proposal.replay_data):
            with full_precision(batch.images[0].device):
                pending = self.updater.pending_batch(proposal, composites, batch.images, batch.targets)
            self.feedback.add(pending)
            self.feedback.watch(pending, shown)
        elif self.sampler.learns:
            self.feedback.watch(PendingBatch(proposal, len(composites.images)), shown)

    def end_batch(self) -> None:
        """The detector has been trained on the last batch."""
        self.feedback.end_batch(self._policy_is_due(), self._sampler_is_due())

    def step(
        self, losses: Mapping[str, Tensor] | Tensor | float | None, loss_scale: float, seed: int, device: torch.device
    ) -> None:
        """Update what is due. Arguments as in :meth:`terse_aug.Terse.step`; ``seed`` of what is drawn."""
        if losses is not None:
            self._losses.append(_total(losses))
        self.end_batch()
        for pending in self.feedback.waiting() if losses is not None else ():
            pending.loss = self._losses[-1] if pending.loss is None else pending.loss
        policy_is_due, sampler_is_due = self._policy_is_due(), self._sampler_is_due()
        on_device = bool(self._losses) and self._losses[-1].device.type != "cpu"
        reads = policy_is_due or sampler_is_due or not on_device or self._has_many()
        finite = True
        if reads:
            finite = self._read() or losses is None
            self._settle_fallback()
            self.feedback.check_recorded(policy_is_due)
            self.feedback.record_for_sampler()
        if policy_is_due and finite and self.policy.learns_from == "hardness":
            self.feedback.run_extra_forwards(type(self.policy).__name__)
        if sampler_is_due:
            self.feedback.update_sampler(finite, device)
        with full_precision(device):
            if reads and self.policy.learns_from == "hardness":
                self._add_to_replay(self.feedback.batches)
            if policy_is_due:
                generator = generator_for(seed, rank(), "update", self._metrics.counts["iterations"])
                result = self.updater.update(self.feedback.batches, finite, loss_scale, device, generator)
                self._track_update(result, finite)
                if device.type == "cpu":
                    self._read()
                    self._settle_fallback()
        self.feedback.end_iteration(keep_batches=not reads and self.policy.learns_from == "hardness")
        self._metrics.counts["iterations"] += 1

    def read_values(self) -> None:
        """Read losses, hardness and gradients that are still on the device: before metrics or a state are given."""
        unread = [*self._losses, *(result.norms for result in self._results)]
        if not unread:
            return
        self._read()
        self.feedback.record_for_sampler()
        if self.policy.learns_from == "hardness":
            batches = self.feedback.batches
            with full_precision(unread[-1].device):
                self._add_to_replay([pending for pending in batches if pending.loss is not None])
            batches[:] = [pending for pending in batches if pending.loss is None]

    def _has_many(self) -> bool:
        """Whether much is waiting to be read from a device."""
        return max(len(self._losses), len(self.feedback.waiting())) >= _MOST_UNREAD

    def _add_to_replay(self, batches: Sequence[PendingBatch]) -> None:
        for values in self.updater.add_to_replay(batches):
            self._track_averages(values)

    def _read(self) -> bool:
        """Bring all that is still on the device to the CPU, by one synchronization; whether the last loss is finite.

        Losses and updates are tracked. Batches whose loss is not finite are dropped, if the policy learns from
        hardness.
        """
        losses, results = self._losses, self._results
        self._losses, self._results = [], []
        batches = [pending for pending in self.feedback.waiting() if pending.hardness is not None]
        values = [torch.as_tensor(value) for result in results for value in result.values.values()]
        parts = [*losses, *(result.norms for result in results), *values]
        read = iter(to_cpu([*parts, *(own.hardness for own in batches if own.hardness is not None)]))
        read_losses = [float(next(read)) for _ in losses]
        finite = [bool(next(read).isfinite().all()) for _ in results]
        for result, own_finite in zip(results, finite, strict=True):
            self._track_steps({name: float(next(read)) for name in result.values}, own_finite)
        for pending in batches:
            pending.hardness = next(read)
        bad = [loss for loss, value in zip(losses, read_losses, strict=True) if not self._track_loss(value)]
        if self.policy.learns_from == "hardness":
            kept = [own for own in self.feedback.batches if all(own.loss is not loss for loss in bad)]
            self.feedback.batches[:] = kept
        return not losses or math.isfinite(read_losses[-1])

    def _settle_fallback(self) -> None:
        """Switch to random pastes or back, not whenever values happen to be read."""
        if self._fallback is not None:
            self._metrics.counts["random_fallback"], self._fallback = self._fallback, None

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._fallback is not None:
            destination[prefix + "fallback"] = torch.tensor(self._fallback)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        self.feedback.reset()
        fallback = state_dict.pop(prefix + "fallback", None)
        self._losses, self._results, self._fallback = [], [], None if fallback is None else int(fallback)
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _policy_is_due(self) -> bool:
        return self.updater.learns and self._metrics.counts["iterations"] % self.policy.update_interval == 0

    def _sampler_is_due(self) -> bool:
        return self.sampler.learns and self._metrics.counts["iterations"] % self.sampler.update_interval == 0

    def _track_loss(self, loss: float) -> bool:
        """Whether the loss is finite."""
        if math.isfinite(loss):
            self._metrics.average("loss", loss)
            return True
        self._metrics.counts["non_finite_losses"] += 1
        self._fallback = int(self.policy.learns)
        self._warn.warn("loss", f"the loss is {loss}; {_RANDOM_FALLBACK if self.policy.learns else 'it is left out'}")
        return False

    def _track_averages(self, values: Mapping[str, Tensor | float]) -> None:
        for name, value in values.items():
            self._metrics.average(name, float(value))

    def _track_update(self, result: UpdateResult, loss_finite: bool) -> None:
        counts = self._metrics.counts
        if not result.reason:
            self.acting.updated(counts["iterations"])
            self._results.append(result)
        elif result.reason == "no_gradient":
            counts["skipped_updates"] += 1
            self._warn.warn("no_gradient", _NO_GRADIENT)
        elif result.reason == "not_finite":
            self._track_skipped(loss_finite)
            self._settle_fallback()

    def _track_steps(self, values: Mapping[str, float], finite: bool) -> None:
        """Track an update whose gradients have been read."""
        if not finite:
            self._track_skipped(True)
            return
        self._fallback = 0
        self._metrics.counts["updates"] += 1
        self._track_averages(values)

    def _track_skipped(self, loss_finite: bool) -> None:
        self._metrics.counts["skipped_updates"] += 1
        self._fallback = 1
        if loss_finite:
            self._warn.warn("gradient", f"a loss or gradient is not finite on some rank; {_RANDOM_FALLBACK}")


def _total(losses: Mapping[str, Tensor] | Tensor | float) -> Tensor:
    parts: Sequence[Tensor | float] = list(losses.values()) if isinstance(losses, Mapping) else [losses]
    for part in parts:
        if isinstance(part, Tensor) and part.numel() != 1:
            raise ValueError(f"losses: expected each to be one number, got {list(part.shape)}; reduce it first")
    return torch.as_tensor(sum(part.detach().float() if isinstance(part, Tensor) else part for part in parts)).view(())
