"""Mining hard examples."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from terse_aug.compositing.compose import Paste
from terse_aug.evaluation.probe import DETECTED_AT, MISSED_BELOW
from terse_aug.lockstep.cache import HardExampleCache
from terse_aug.models import DetectorAdapter, GivesClassProbabilities, GivesInputGradients, ModelAdapter
from terse_aug.samplers import BalancedSampler
from terse_aug.structures.annotations import Target
from terse_aug.terse import Terse
from terse_aug.training.hardness import extra_forward_outcomes

Batch = tuple[Sequence[Tensor] | Tensor, Sequence[Target]]


@dataclass(frozen=True)
class MiningReport:
    """The result of mining.

    Attributes:
        found: hard examples added to the cache, by label.
        seen: pasted objects of known hardness.
        model_forwards: images passed through the model, including those by which a policy chose or learned.
        batches: batches of images pasted on.
        complete: every label has its wanted number; otherwise the budget was spent or the batches ended.
    """

    found: dict[int, int] = field(default_factory=dict)
    seen: int = 0
    model_forwards: int = 0
    batches: int = 0
    complete: bool = False

    @property
    def yield_per_forward(self) -> float:
        """Hard examples per image passed through the model."""
        return sum(self.found.values()) / max(self.model_forwards, 1)


class HardExampleMiner:
    """Trains a policy against a frozen model until it has found enough hard examples.

    One forward of each composite gives the hardness of its pastes, from which a policy learns, too; a policy that
    learns from gradients needs a training pass of the batch besides, where it updates. An example is hard where the
    predicted probability of a pasted object is at most ``hard_below``, or, as in the paper, where that of another class
    exceeds it by more than ``rival_margin``. A detector predicts an object by a box of its class that overlaps it by
    ``iou_threshold``, whatever overlaps its adapter has. Occluded objects do not count, nor do those of unknown
    hardness: a classifier predicts the object in front only.

    An image is kept with all its corrected labels, and with ``ids``: those of pasted objects are negative. The
    discriminator, if there is one, is trained beside the model instead, see :func:`~terse_aug.lockstep.mix_batches`.

    Args:
        terse: its policy updates at its own interval.
        model: frozen: parameters, statistics and random state are left unchanged.
        cache: where hard examples are stored.
        wanted: number of hard examples of each label.
        budget: no batch is started after so many images have passed through the model in one run.
        hard_below: probability in (0, 1]; with 1 everything is hard.
        rival_margin: difference of probabilities in [0, 1), for a model that gives class probabilities; replaces
            ``hard_below``.
        iou_threshold: overlap in (0, 1], for a :class:`~terse_aug.models.DetectorAdapter`; other models have none.
        learning_batches: the first batches of a run, from which the policy learns and nothing is kept; from then on it
            is left as it is. By default it learns and examples are kept in all batches.

    Raises:
        ValueError: a number outside its range; more wanted than the cache can hold; a label that no foreground has,
            whose weight is 0 or that the model does not have; a cache with another pixel format; ``Terse`` with
            robustness, or with balanced sampling of a background pool; a ``rival_margin`` for a model without class
            probabilities.
    """

    def __init__(
        self,
        terse: Terse,
        model: ModelAdapter,
        cache: HardExampleCache,
        wanted: Mapping[int, int],
        budget: int,
        hard_below: float = MISSED_BELOW,
        rival_margin: float | None = None,
        iou_threshold: float = DETECTED_AT[0],
        learning_batches: int | None = None,
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget: expected at least 1 image, got {budget}")
        if not 0 < hard_below <= 1:
            raise ValueError(f"hard_below: expected a probability in (0, 1], got {hard_below}")
        if rival_margin is not None and not 0 <= rival_margin < 1:
            raise ValueError(f"rival_margin: expected a difference of probabilities in [0, 1), got {rival_margin}")
        if rival_margin is not None and not isinstance(model, GivesClassProbabilities):
            raise ValueError(
                f"rival_margin: expected a model with class_probabilities, got {type(model).__name__}; give hard_below"
            )
        if not 0 < iou_threshold <= 1:
            raise ValueError(f"iou_threshold: expected an overlap in (0, 1], got {iou_threshold}")
        if learning_batches is not None and learning_batches < 0:
            raise ValueError(f"learning_batches: expected at least 0, got {learning_batches}")
        _check_wanted(wanted, terse, model, cache)
        _check_terse(terse, cache)
        self._terse, self._model, self._cache = terse, _at_overlap(model, iou_threshold), cache
        self._wanted, self._budget = dict(wanted), budget
        self._hard_below, self._rival_margin = hard_below, rival_margin
        self._learning_batches = learning_batches

    @property
    def terse(self) -> Terse:
        """The ``Terse`` whose policy mines."""
        return self._terse

    @property
    def cache(self) -> HardExampleCache:
        """Where hard examples are stored."""
        return self._cache

    @property
    def wanted(self) -> dict[int, int]:
        """Number of hard examples of each label."""
        return dict(self._wanted)

    def run(
        self,
        batches: Iterable[Batch],
        resume_from: MiningReport | None = None,
        progress: Callable[[MiningReport], None] | None = None,
    ) -> MiningReport:
        """Mine until every label has its number. Only foregrounds of labels that still lack examples are pasted.

        Args:
            batches: images and targets to paste on; mining ends with them.
            resume_from: the last report of an interrupted run.
            progress: called with the report after every batch.

        Raises:
            ValueError: Terse is in evaluation mode.
        """
        if not self._terse.training:
            raise ValueError("expected Terse in training mode: terse.train()")
        report = resume_from or MiningReport()
        report = replace(report, complete=not self._lacking(report.found))
        restriction, updater = self._terse.sampler.allowed_labels, self._terse.trainer.updater
        updater.discriminator_fixed = True
        upcoming = iter(batches)
        try:
            while not report.complete and report.model_forwards < self._budget:
                batch = next(upcoming, None)
                if batch is None:
                    break
                updater.policy_fixed = self._learning_batches is not None and self._keeps(report)
                report = self._mine(batch, report)
                if progress is not None:
                    progress(report)
        finally:
            updater.policy_fixed = updater.discriminator_fixed = False
            self._terse.restrict_labels(restriction)
        return report

    def _mine(self, batch: Batch, before: MiningReport) -> MiningReport:
        """Paste on a batch and store what is hard."""
        found, seen = Counter(before.found), before.seen
        extra_before = self._terse.metrics()["extra_forwards"]
        self._terse.restrict_labels(self._lacking(found))
        composites, labels = self._terse(*batch)
        pastes_of_images = self._terse.pastes
        hard, forwards = self._judge(list(composites), labels)
        extra = int(self._terse.metrics()["extra_forwards"] - extra_before)
        for image, target, (known, own), pastes in zip(composites, labels, hard, pastes_of_images, strict=True):
            rows = [paste.row for paste in pastes if paste.row is not None and paste.number is not None]
            rows = [row for row in rows if bool(known[row])]
            seen += len(rows)
            hard_labels = [int(target["labels"][row]) for row in rows if bool(own[row])]
            lacking = [label for label in hard_labels if label in self._lacking(found)]
            if lacking and self._keeps(before):
                self._cache.add(image, _with_ids(target, pastes), lacking[0])
                found[lacking[0]] += 1
        forwards += before.model_forwards + extra
        return MiningReport(dict(found), seen, forwards, before.batches + 1, complete=not self._lacking(found))

    def _judge(self, images: list[Tensor], targets: Sequence[Target]) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """Update the policy.

        The loss given to Terse is the mean hardness, the same for all policies and at every step.

        Returns:
            For each image which objects have a known hardness and which are hard, bool ``[N]`` each; and the number of
            images passed through the model.
        """
        policy, forwards = self._terse.policy, len(images)
        images = self._terse.pixel_format.as_float(images)
        outcomes = extra_forward_outcomes([image.detach() for image in images], targets, self._model)
        hardness = [own for own, _ in outcomes]
        known = torch.cat([own.float() for own in hardness])
        loss = known.nanmean() if not bool(known.isnan().all()) else torch.zeros(())
        if policy.learns and policy.learns_from == "gradient" and any(image.requires_grad for image in images):
            self._backward(images, targets)
            forwards *= 2
        if policy.learns_from == "hardness" or self._terse.sampler.learns:
            probabilities = [own for _, own in outcomes if own is not None]
            if policy.classes is not None and len(probabilities) == len(images):
                self._terse.observe(class_probabilities=probabilities)
            else:
                self._terse.observe(hardness)
        self._terse.step(loss)
        hard = [
            (~own.isnan(), self._is_hard(own, probabilities, target))
            for (own, probabilities), target in zip(outcomes, targets, strict=True)
        ]
        return hard, forwards

    def _backward(self, images: list[Tensor], targets: Sequence[Target]) -> None:
        """Backpropagate the model's loss to the policy, through the graph of the composites."""
        if not isinstance(self._model, GivesInputGradients):
            loss = self._model.image_losses(images, targets, differentiable=True).mean()
            if loss.requires_grad:
                torch.autograd.backward(loss)
            return
        # In two steps: with gradient checkpointing the model has to be frozen in the backward, too.
        _, gradients = self._model.input_gradients(images, targets)
        reached = [
            (image, gradient)
            for image, gradient in zip(images, gradients, strict=True)
            if image.requires_grad and bool(gradient.any())
        ]
        if reached:
            torch.autograd.backward([image for image, _ in reached], [gradient for _, gradient in reached])

    def _is_hard(self, hardness: Tensor, probabilities: Tensor | None, target: Target) -> Tensor:
        """Bool ``[N]``."""
        if self._rival_margin is None:
            return hardness >= 1 - self._hard_below
        assert probabilities is not None
        # The hardness of a label that the model does not have is unknown, and the object not hard.
        column = target["labels"].long()[:, None].to(probabilities.device).clamp(0, probabilities.shape[1] - 1)
        rivals = probabilities.scatter(1, column, 0).amax(1)
        return rivals - (1 - hardness) > self._rival_margin

    def _keeps(self, report: MiningReport) -> bool:
        """Whether hard examples of the batch after a report are kept."""
        return report.batches >= (self._learning_batches or 0)

    def _lacking(self, found: Mapping[int, int]) -> set[int]:
        """Labels that still lack examples."""
        return {label for label, wanted in self._wanted.items() if found.get(label, 0) < wanted}


def _at_overlap(model: ModelAdapter, iou_threshold: float) -> ModelAdapter:
    """The model, or for a detector a shallow copy of its adapter by which that overlap counts."""
    if isinstance(model, DetectorAdapter):
        model = copy.copy(model)
        model.iou_thresholds = (iou_threshold,)
    return model


def _with_ids(target: Target, pastes: Sequence[Paste]) -> Target:
    """The target of a composite with ``ids``, as Terse gives them to images that have this field."""
    if "ids" in target:
        return target
    rows = [paste.row for paste in pastes if paste.row is not None]
    ids = torch.arange(len(target["labels"]), device=target["labels"].device)
    ids[rows] = -1 - torch.arange(len(rows), device=ids.device)
    return target | {"ids": ids}


def _check_wanted(wanted: Mapping[int, int], terse: Terse, model: ModelAdapter, cache: HardExampleCache) -> None:
    if not wanted or min(wanted.values()) < 0:
        raise ValueError(f"wanted: expected a number of hard examples for each label, got {dict(wanted)}")
    if sum(wanted.values()) > cache.capacity:
        raise ValueError(f"wanted: {sum(wanted.values())} examples, more than the cache's capacity {cache.capacity}")
    if unknown := sorted(set(wanted) - set(terse.bank.labels.tolist())):
        raise ValueError(f"wanted: no foreground in the bank has the label(s) {unknown}")
    limit = max(wanted) + 1 if model.label_limit is None else model.label_limit
    if foreign := sorted(label for label in wanted if not model.first_label <= label < limit):
        raise ValueError(
            f"wanted: the model's labels are {model.first_label} to {limit - 1}, got {foreign}; give Terse(model=..., "
            "classes=...), which matches the bank's classes to the model's by name"
        )
    drawn = terse.sampler.snapshot().possible_labels()
    if drawn is not None and (never := sorted(set(wanted) - set(drawn))):
        raise ValueError(f"wanted: the sampler never draws the label(s) {never}, whose weight is 0")


def _check_terse(terse: Terse, cache: HardExampleCache) -> None:
    if terse.perturber is not None:
        raise ValueError("expected Terse without robustness: perturbations are of the model's current weights")
    if isinstance(terse.sampler, BalancedSampler) and terse.planner.pool is not None:
        raise ValueError(
            "expected Terse without background pool, or another sampler than 'balanced', whose graph has all "
            "foregrounds: mining pastes those that still lack examples"
        )
    if cache.pixel_format != terse.pixel_format:
        raise ValueError(f"expected a cache with {terse.pixel_format}, as Terse has, got one with {cache.pixel_format}")
