"""Batches between pasting and the policy's update, and where their hardness comes from.

In the order of preference: supplied by the training loop (``observe``), recorded by hooks in the detector's own
training forward, or from an extra forward in the iterations in which the policy is updated.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence

import torch

from terse_aug.compositing.compose import Composites
from terse_aug.models import ModelAdapter, Recorder, RecordsTrainingForward
from terse_aug.policies import Policy
from terse_aug.samplers import Sampler
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.training.feedback_source import describe_feedback, reason_of, why_not_recorded
from terse_aug.training.hardness import Outcomes, PendingBatch, extra_forward_hardness, recorded_hardness
from terse_aug.training.metrics import Metrics
from terse_aug.utils.warnings import WarnOnce

_MOST = 64
_MOST_WITH_IMAGES = 16
"""Batches whose composites are kept, because they may need an extra forward."""

_LOGGER = logging.getLogger("terse_aug")

_STILL_EXTRA = (
    "in the run that this one resumes, hooks on the detector have failed; hardness comes from an extra forward every "
    "update_interval iterations, so that the run ends as if it had not been stopped; a new Terse would use hooks again"
)
_EXTRA = (
    "the hardness of the pastes could not be recorded from the detector's training forward ({}); from now on it comes "
    "from an extra forward every update_interval iterations"
)
_NO_MORE = "an extra forward of the detector failed ({}); from now on there are none, and {}"
_STILL_NO_MORE = "in the run that this one resumes, an extra forward of the detector has failed; there are none, and {}"
_RANDOM = "pastes are random"
_RECORDED = "batches whose hardness is not recorded from the training forward are not learned from"
_NO_SOURCE = "{} learns from hardness: give Terse(model=detector), or call observe() before step()"


class FeedbackBuffer:
    """The batches since the last step that policy and sampler can learn from, the newest last.

    Args:
        model: the detector, if there is one.
        policy: learns from ``batches``.
        sampler: gets the hardness of what it drew, if it learns.
        metrics: counts extra forwards.
        warn: warns once.
        pixel_format: of what the detector takes.

    Attributes:
        batches: for the policy.
    """

    def __init__(
        self,
        model: ModelAdapter | None,
        policy: Policy,
        sampler: Sampler,
        metrics: Metrics,
        warn: WarnOnce,
        pixel_format: PixelFormat,
    ) -> None:
        self._model, self._policy, self._sampler = model, policy, sampler
        self._metrics, self._warn, self._pixel_format = metrics, warn, pixel_format
        self.batches: list[PendingBatch] = []
        self._last: PendingBatch | None = None
        self._for_sampler: list[PendingBatch] = []  # that it has not recorded yet
        self._supplied = self._was_supplied = self._logged = False
        # In a list, so that a batch that was not trained on to the end releases the model's hooks too.
        self._recorders: list[Recorder] = []
        weakref.finalize(self, _close, self._recorders)

    def add(self, pending: PendingBatch) -> None:
        """Keep a batch for the policy's next update; the oldest are dropped if ``step`` is not called."""
        self._append(self.batches, pending)

    def _append(self, batches: list[PendingBatch], pending: PendingBatch) -> None:
        batches.append(pending)
        waiting = [kept for kept in batches if kept.loss is None]
        with_images = [kept for kept in batches if kept.composites is not None]
        for kept, most in ((waiting, _MOST), (with_images, _MOST_WITH_IMAGES)):
            if len(kept) > most:
                batches.remove(kept[0])
                self._count_dropped(most)

    def watch(self, pending: PendingBatch, composites: Composites) -> None:
        """Record the training forward of a batch until :meth:`end_batch`, if policy or sampler need its hardness.

        Args:
            pending: added or not.
            composites: what the detector is trained on.
        """
        self._last = pending
        if self._policy.learns_from == "hardness" or self._sampler.learns:
            pending.composites = composites
            self._record(pending)

    def supply(self, outcomes: Outcomes) -> None:
        """Outcomes of the last batch from the training loop."""
        self._supplied = True
        if self._last is not None and self._last.composites is not None:
            self._last.store(outcomes, self._policy.classes)

    def end_batch(self, policy_is_due: bool, sampler_is_due: bool) -> None:
        """The detector has been trained on the last batch: take what was recorded, release the model.

        Args:
            policy_is_due: whether the policy is updated in this iteration, with extra forwards for what is not known.
            sampler_is_due: likewise.
        """
        pending, self._last = self._last, None
        if pending is not None:
            if (error := recorded_hardness(pending)) is not None:
                self._hooks_failed(error)
            due = policy_is_due or sampler_is_due
            if due and pending.hardness is not None and pending.hardness.device.type == "cpu":
                pending.check_recorded()
            if pending.hardness is None:
                if not policy_is_due and self._policy.learns_from == "hardness" and self.batches[-1:] == [pending]:
                    self.batches.pop()  # there will be no extra forward for it
            elif pending.sure or not due:
                pending.composites = None
            if sampler_is_due or (self._sampler.learns and pending.hardness is not None):
                self._append(self._for_sampler, pending)
        self._recorders.clear()

    def waiting(self) -> list[PendingBatch]:
        """The batches that policy or sampler have not learned from yet."""
        return list(dict.fromkeys([*self.batches, *self._for_sampler]))

    def check_recorded(self, policy_is_due: bool) -> None:
        """Find out of which batches nothing was recorded, after their hardness was read: they need an extra forward.

        Args:
            policy_is_due: see :meth:`end_batch`.
        """
        for pending in self.waiting():
            pending.check_recorded()
            if pending.hardness is not None:
                pending.composites = None
        if not policy_is_due and self._policy.learns_from == "hardness":
            self.batches[:] = [pending for pending in self.batches if pending.hardness is not None]

    def record_for_sampler(self) -> None:
        """Give the sampler the hardness that was read."""
        batches, self._for_sampler = self._for_sampler, []
        for pending in batches:
            if pending.composites is not None:
                self._for_sampler.append(pending)  # it may need an extra forward
            else:
                self._sampler.record(*pending.by_foreground())

    def run_extra_forwards(self, policy_name: str) -> None:
        """Get the hardness that is not known from extra forwards, for the policy.

        Raises:
            ValueError: there is no model, and nothing was supplied since the last step.
        """
        self._check_source(f"policy {policy_name}")
        self._run_extra_forwards(self.batches)

    def update_sampler(self, run_forwards: bool, device: torch.device) -> None:
        """Update the sampler with the hardness of what it drew.

        Args:
            run_forwards: whether to run extra forwards for what is not known.
            device: for communication between ranks.

        Raises:
            ValueError: as :meth:`run_extra_forwards`.
        """
        self._check_source(f"sampler {type(self._sampler).__name__}")
        batches, self._for_sampler = self._for_sampler, []
        if run_forwards:
            self._run_extra_forwards(batches)
        for pending in batches:
            self._sampler.record(*pending.by_foreground())
        self._sampler.update(device)

    def extra_forward_failed(self, error: Exception) -> None:
        """Count the failure of an extra forward, and warn once. Feedback never ends a training."""
        self._metrics.counts["feedback_failed"] += 1
        _LOGGER.debug("an extra forward failed", exc_info=error)
        self._warn.warn("extra_forward", _NO_MORE.format(reason_of(error), self._consequence()))

    def is_missing(self) -> bool:
        """Whether the policy needs feedback that there is none of, because extra forwards have failed."""
        needed = self._policy.needs_model or (self._policy.learns and self._policy.learns_from == "hardness")
        if not (needed and self._failed) or (self._was_supplied and not self._policy.needs_model):
            return False
        self._warn.warn("extra_forward", _STILL_NO_MORE.format(self._consequence()))
        return self._policy.needs_model or not self._is_recorded()

    def log_sources(self, logger: logging.Logger = _LOGGER) -> None:
        """Log once where feedback comes from and what it costs.

        Args:
            logger: of a framework; by default ``logging.getLogger("terse_aug")``.
        """
        if self._logged:
            return
        self._logged = True
        needs_hardness = self._policy.learns_from == "hardness" or self._sampler.learns
        why = why_not_recorded(self._model) if needs_hardness else None
        for line in describe_feedback(self._model, self._policy, self._sampler, self._metrics.counts, why):
            logger.info("%s", line)

    def end_iteration(self, keep_batches: bool) -> None:
        """Drop the batches, unless the policy has not learned from them yet."""
        if not keep_batches:
            self.batches.clear()
        self._was_supplied, self._supplied = self._supplied, False

    def reset(self) -> None:
        """Drop everything, before another state is loaded."""
        if self._last is not None:
            recorded_hardness(self._last)
        self._last = None
        self.batches.clear()
        self._for_sampler = []

    def _check_source(self, learner: str) -> None:
        # Whatever was pasted on this rank: all ranks have to raise, or none.
        if self._model is None and not self._supplied:
            raise ValueError(_NO_SOURCE.format(learner))

    @property
    def _failed(self) -> bool:
        """Whether an extra forward has failed, which is counted together with hooks that have."""
        return self._metrics.counts["feedback_failed"] > self._metrics.counts["hooks_failed"]

    def _is_recorded(self) -> bool:
        return not self._metrics.counts["hooks_failed"] and why_not_recorded(self._model) is None

    def _consequence(self) -> str:
        return _RECORDED if self._is_recorded() and not self._policy.needs_model else _RANDOM

    def _run_extra_forwards(self, batches: Sequence[PendingBatch]) -> None:
        if self._model is None:
            return
        for pending in batches:
            if self._failed:
                return
            try:
                forwards = extra_forward_hardness(pending, self._model, self._policy.classes, self._pixel_format)
                self._metrics.counts["extra_forwards"] += forwards
            except Exception as error:
                pending.hardness = None
                self.extra_forward_failed(error)

    def _record(self, pending: PendingBatch) -> None:
        if not isinstance(self._model, RecordsTrainingForward):
            return
        # A counter, so that a resumed run does not use hooks where the run before had stopped using them.
        if self._metrics.counts["hooks_failed"]:
            self._warn.warn("hooks", _STILL_EXTRA)
            return
        try:
            pending.recorder = self._model.record_forward()
        except Exception as error:
            self._hooks_failed(error)
        if pending.recorder is not None:
            self._recorders.append(pending.recorder)

    def _hooks_failed(self, error: Exception) -> None:
        if not self._metrics.counts["hooks_failed"]:
            self._metrics.counts["hooks_failed"] = 1
            self._metrics.counts["feedback_failed"] += 1
        _LOGGER.debug("recording the training forward failed", exc_info=error)
        self._warn.warn("hooks", _EXTRA.format(reason_of(error)))

    def _count_dropped(self, most: int) -> None:
        self._metrics.counts["dropped/graph"] += 1
        self._warn.warn(
            "step",
            f"Terse was called more than {most} times since the last step(), and the oldest batches are not "
            f"learned from: call step() after backward(), at the latest every {most} batches",
        )


def _close(recorders: Sequence[Recorder]) -> None:
    for recorder in recorders:
        recorder.close()
