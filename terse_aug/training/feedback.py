"""Batches on their way from pasting to the adversary's move: how hard their pastes were is heard, told or asked.

Imports torch only.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import overload

import torch

from terse_aug.compositing.compose import Composites
from terse_aug.models import ModelAdapter, Recorder, RecordsTrainingForward
from terse_aug.policies import Policy
from terse_aug.samplers import Sampler
from terse_aug.training.hardness import (
    Outcomes,
    extra_forward_hardness,
    outcomes_by_class,
    recorded_hardness,
    take_outcomes,
)
from terse_aug.training.metrics import Ledger
from terse_aug.training.updates import PendingBatch
from terse_aug.utils.warnings import WarnOnce

_MOST = 64
_MOST_WITH_IMAGES = 16
"""Of those whose composites are kept, since the target will have to be asked about them."""


class FeedbackBuffer(Sequence[PendingBatch]):
    """The batches since the last step that the policy can learn from, the newest last.

    Args:
        target: the detector, if there is one.
        policy: learns from them.
        sampler: hears of the classes of their pastes, if it learns.
        ledger: counts forwards that were asked for.
        remarks: says what could not be heard.
    """

    def __init__(
        self, target: ModelAdapter | None, policy: Policy, sampler: Sampler, ledger: Ledger, remarks: WarnOnce
    ) -> None:
        self._target, self._policy, self._sampler = target, policy, sampler
        self._ledger, self._remarks = ledger, remarks
        self._kept: list[PendingBatch] = []
        self._last: PendingBatch | None = None
        # Of which the sampler wants to hear, and has not.
        self._unheard: list[PendingBatch] = []
        self._told = False
        # Of a batch that was not trained on to the end.
        self._listeners: list[Recorder] = []
        weakref.finalize(self, _close, self._listeners)

    @overload
    def __getitem__(self, index: int) -> PendingBatch: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[PendingBatch]: ...

    def __getitem__(self, index: int | slice) -> PendingBatch | Sequence[PendingBatch]:
        return self._kept[index]

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, turn: PendingBatch) -> None:
        """Remember a batch for the next step, but not without end if nobody calls it."""
        self._kept.append(turn)
        with_images = [kept for kept in self._kept if kept.composites is not None]
        for turns, most in ((self._kept, _MOST), (with_images, _MOST_WITH_IMAGES)):
            if len(turns) > most:
                self._kept.remove(turns[0])
                self._count_too_many(most)

    def follow(self, turn: PendingBatch, shown: Composites) -> None:
        """Listen to what the detector makes of a batch, until :meth:`end_batch`, if anybody wants to know.

        Args:
            turn: kept or not.
            shown: what the detector is trained on.
        """
        self._last = turn
        if self._policy.learns_from == "hardness" or self._sampler.learns:
            turn.composites = shown
            self._listen(turn)

    def tell(self, outcomes: Outcomes) -> None:
        """Of the last batch, by one who knows."""
        self._told = True
        if self._last is not None and self._last.composites is not None:
            take_outcomes(self._last, outcomes, self._policy.classes)

    def end_batch(self, moving: bool) -> None:
        """The last batch has been trained on: hear of it, and let go of it.

        Args:
            moving: whether this is an iteration in which policies move and targets are asked.
        """
        turn, self._last = self._last, None
        if turn is not None:
            if (trouble := recorded_hardness(turn)) is not None:
                self._stop_listening(repr(trouble))
            if self._sampler.learns and turn.hardness is not None:
                self._sampler.record(*outcomes_by_class(turn))
            elif self._sampler.learns and moving:
                self._unheard.append(turn)
                if len(self._unheard) > _MOST_WITH_IMAGES:
                    del self._unheard[0]
                    self._count_too_many(_MOST_WITH_IMAGES)
            if turn.hardness is not None:
                turn.composites = None
            elif not moving and self._policy.learns_from == "hardness" and self._kept[-1:] == [turn]:
                self._kept.pop()  # nobody will ask
        self._listeners.clear()

    def ask(self, policy_name: str) -> None:
        """Ask the target how hard the pastes are of which nobody has told and nothing was heard.

        Raises:
            ValueError: there is no target, and nobody has told anything since the last step.
        """
        # Whatever was pasted on this rank: all ranks have to raise, or none.
        if self._target is None and not self._told:
            raise ValueError(
                f"policy {policy_name} learns from hardness: give Terse(target=detector), or call observe() before "
                "step()"
            )
        if self._target is not None:
            self._count(extra_forward_hardness(self._kept, self._target, self._policy.classes))

    def teach_sampler(self, ask: bool, device: torch.device) -> None:
        """Let the sampler learn how hard the classes are, from what was heard and told, and asked of the rest.

        Args:
            ask: whether to ask the target.
            device: for what ranks tell each other.

        Raises:
            ValueError: as :meth:`ask`.
        """
        if self._target is None and not self._told:
            raise ValueError(
                "sampler 'hardness' learns from hardness: give Terse(target=detector), or call observe() before step()"
            )
        turns, self._unheard = self._unheard, []
        if ask and self._target is not None:
            self._count(extra_forward_hardness(turns, self._target, self._policy.classes))
            for turn in turns:
                self._sampler.record(*outcomes_by_class(turn))
        self._sampler.update(device)

    def end_iteration(self) -> None:
        """All has been learned from."""
        self._kept.clear()
        self._told = False

    def forget(self) -> None:
        """Let go of everything: another state is loaded."""
        if self._last is not None:
            recorded_hardness(self._last)
        self._last = None
        self._kept.clear()
        self._unheard = []

    def _listen(self, turn: PendingBatch) -> None:
        if not isinstance(self._target, RecordsTrainingForward):
            return
        # A counter, so that a resumed run does not listen where the one before had stopped to.
        if self._ledger.counts["hearing_failed"]:
            self._remarks.warn("hearing", _NOT_LISTENED)
            return
        try:
            turn.listener = self._target.record_forward()
        except Exception as error:
            self._stop_listening(str(error))
        if turn.listener is not None:
            self._listeners.append(turn.listener)

    def _stop_listening(self, why: str) -> None:
        self._ledger.counts["hearing_failed"] = 1
        self._remarks.warn("hearing", _NOT_HEARD.format(why))

    def _count_too_many(self, most: int) -> None:
        self._ledger.counts["dropped/graph"] += 1
        self._remarks.warn(
            "step",
            f"Terse was called more than {most} times since the last step(), and the oldest batches are not "
            f"learned from: call step() after backward(), at the latest every {most} batches",
        )

    def _count(self, forwards: int) -> None:
        self._ledger.counts["extra_forwards"] += forwards


def _close(listeners: list[Recorder]) -> None:
    for listener in listeners:
        listener.close()


_NOT_LISTENED = (
    "in the run that this one resumes, the detector could not be heard; it is asked every move_every-th iteration, "
    "which costs a forward, so that the run ends as if it had not been stopped; a new Terse would listen again"
)
_NOT_HEARD = (
    "how hard the pastes were could not be heard in the detector's training forward ({}); it is asked every "
    "move_every-th iteration from now on, which costs a forward"
)
