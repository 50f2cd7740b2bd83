"""Batches between pasting and the policy's update, and where their hardness comes from.

In the order of preference: supplied by the training loop (``observe``), recorded by hooks in the detector's own
training forward, or from an extra forward in the iterations in which the policy is updated.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch

from terse_aug.compositing.compose import Composites
from terse_aug.models import ModelAdapter, Recorder, RecordsTrainingForward
from terse_aug.policies import Policy
from terse_aug.samplers import Sampler
from terse_aug.training.hardness import Outcomes, PendingBatch, extra_forward_hardness, recorded_hardness
from terse_aug.training.metrics import Metrics
from terse_aug.utils.warnings import WarnOnce

_MOST = 64
_MOST_WITH_IMAGES = 16
"""Batches whose composites are kept, because they may need an extra forward."""

_STILL_FAILED = (
    "in the run that this one resumes, hooks on the detector have failed; hardness comes from an extra forward every "
    "update_interval iterations, so that the run ends as if it had not been stopped; a new Terse would use hooks again"
)
_FAILED = (
    "the hardness of the pastes could not be recorded from the detector's training forward ({}); from now on it comes "
    "from an extra forward every update_interval iterations"
)
_NO_SOURCE = "{} learns from hardness: give Terse(model=detector), or call observe() before step()"


class FeedbackBuffer:
    """The batches since the last step that policy and sampler can learn from, the newest last.

    Args:
        model: the detector, if there is one.
        policy: learns from ``batches``.
        sampler: gets the hardness of each class, if it learns.
        metrics: counts extra forwards.
        warn: warns once.

    Attributes:
        batches: for the policy.
    """

    def __init__(
        self, model: ModelAdapter | None, policy: Policy, sampler: Sampler, metrics: Metrics, warn: WarnOnce
    ) -> None:
        self._model, self._policy, self._sampler = model, policy, sampler
        self._metrics, self._warn = metrics, warn
        self.batches: list[PendingBatch] = []
        self._last: PendingBatch | None = None
        self._for_sampler: list[PendingBatch] = []
        self._supplied = False
        # In a list, so that a batch that was not trained on to the end releases the model's hooks too.
        self._recorders: list[Recorder] = []
        weakref.finalize(self, _close, self._recorders)

    def add(self, pending: PendingBatch) -> None:
        """Keep a batch for the policy's next update; the oldest are dropped if ``step`` is not called."""
        self.batches.append(pending)
        with_images = [kept for kept in self.batches if kept.composites is not None]
        for kept, most in ((self.batches, _MOST), (with_images, _MOST_WITH_IMAGES)):
            if len(kept) > most:
                self.batches.remove(kept[0])
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
        """The detector has been trained on the last batch: read what was recorded, release the model.

        Args:
            policy_is_due: whether the policy is updated in this iteration, with extra forwards for what is not known.
            sampler_is_due: likewise.
        """
        pending, self._last = self._last, None
        if pending is not None:
            if (error := recorded_hardness(pending)) is not None:
                self._hooks_failed(repr(error))
            if self._sampler.learns and pending.hardness is not None:
                self._sampler.record(*pending.by_class())
            elif sampler_is_due:
                self._for_sampler.append(pending)
                if len(self._for_sampler) > _MOST_WITH_IMAGES:
                    del self._for_sampler[0]
                    self._count_dropped(_MOST_WITH_IMAGES)
            if pending.hardness is not None:
                pending.composites = None
            elif not policy_is_due and self._policy.learns_from == "hardness" and self.batches[-1:] == [pending]:
                self.batches.pop()  # there will be no extra forward for it
        self._recorders.clear()

    def run_extra_forwards(self, policy_name: str) -> None:
        """Get the hardness that is not known from extra forwards, for the policy.

        Raises:
            ValueError: there is no model, and nothing was supplied since the last step.
        """
        self._check_source(f"policy {policy_name}")
        if self._model is not None:
            self._count_forwards(extra_forward_hardness(self.batches, self._model, self._policy.classes))

    def update_sampler(self, run_forwards: bool, device: torch.device) -> None:
        """Update the sampler with the hardness of the classes.

        Args:
            run_forwards: whether to run extra forwards for what is not known.
            device: for communication between ranks.

        Raises:
            ValueError: as :meth:`run_extra_forwards`.
        """
        self._check_source(f"sampler {type(self._sampler).__name__}")
        batches, self._for_sampler = self._for_sampler, []
        if run_forwards and self._model is not None:
            self._count_forwards(extra_forward_hardness(batches, self._model, self._policy.classes))
            for pending in batches:
                self._sampler.record(*pending.by_class())
        self._sampler.update(device)

    def end_iteration(self, keep_batches: bool) -> None:
        """Drop the batches, unless the policy has not learned from them yet."""
        if not keep_batches:
            self.batches.clear()
        self._supplied = False

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

    def _record(self, pending: PendingBatch) -> None:
        if not isinstance(self._model, RecordsTrainingForward):
            return
        # A counter, so that a resumed run does not use hooks where the run before had stopped using them.
        if self._metrics.counts["hooks_failed"]:
            self._warn.warn("hooks", _STILL_FAILED)
            return
        try:
            pending.recorder = self._model.record_forward()
        except Exception as error:
            self._hooks_failed(str(error))
        if pending.recorder is not None:
            self._recorders.append(pending.recorder)

    def _hooks_failed(self, why: str) -> None:
        self._metrics.counts["hooks_failed"] = 1
        self._warn.warn("hooks", _FAILED.format(why))

    def _count_dropped(self, most: int) -> None:
        self._metrics.counts["dropped/graph"] += 1
        self._warn.warn(
            "step",
            f"Terse was called more than {most} times since the last step(), and the oldest batches are not "
            f"learned from: call step() after backward(), at the latest every {most} batches",
        )

    def _count_forwards(self, forwards: int) -> None:
        self._metrics.counts["extra_forwards"] += forwards


def _close(recorders: Sequence[Recorder]) -> None:
    for recorder in recorders:
        recorder.close()
