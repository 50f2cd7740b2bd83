"""The halves of a lock-step round: hunting hard examples, and training on real and kept ones. Imports torch only."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from terse_aug.evaluation.probe import MISSED_BELOW
from terse_aug.lockstep.cache import HardExampleCache
from terse_aug.models import GivesClassProbabilities, GivesInputGradients, ModelAdapter
from terse_aug.samplers import BalancedSampler
from terse_aug.structures.annotations import Target
from terse_aug.terse import Terse
from terse_aug.training.hardness import extra_forward_outcomes
from terse_aug.utils.random import generator_for

Batch = tuple[Sequence[Tensor] | Tensor, Sequence[Target]]

_ROUNDING = 1e-6
"""What is short of a whole image by less than this is one."""


@dataclass(frozen=True)
class MiningReport:
    """What a hunt brought.

    Attributes:
        found: hard examples added to the cache, by label.
        seen: pasted objects of whose hardness the target told.
        target_forwards: images passed through the target, also those by which a policy chose or learned.
        batches: batches of images pasted on.
        complete: whether every label has its wanted number; else the budget was spent or the batches ended.
    """

    found: dict[int, int] = field(default_factory=dict)
    seen: int = 0
    target_forwards: int = 0
    batches: int = 0
    complete: bool = False

    @property
    def yield_per_forward(self) -> float:
        """Hard examples per image passed through the target."""
        return sum(self.found.values()) / max(self.target_forwards, 1)


class HardExampleMining:
    """Train a policy against a frozen target until it has yielded enough hard examples.

    The target is asked once about every composite, which says what is hard; a policy that learns from hardness
    learns from that, one that learns from gradients costs a training pass of the batch besides where it moves. An
    example is hard
    where the target's probability of a pasted object is at most ``hard_below``; or, as the paper has it, where that of
    another class exceeds it by more than ``rival_margin``. Objects that were put behind a paste are not asked about,
    nor are those that the target tells nothing of: of an image, a classifier judges the object in front.

    Args:
        terse: its policy moves at its own ``move_every``.
        target: frozen: neither parameters nor statistics nor random state are touched.
        cache: where hard examples go.
        wanted: hard examples of each label.
        budget: no batch is begun after so many images have passed through the target in a hunt.
        hard_below: probability in (0, 1]; at 1 everything is kept.
        rival_margin: difference of probabilities in [0, 1), for a target that tells those of all classes; takes the
            place of ``hard_below``.

    Raises:
        ValueError: a number outside its range, more wanted than the cache can hold, a label that no cut-out has or
            whose weight is 0, a cache with another pixel format, ``Terse`` with robustness training or with a random
            biregular graph, or a ``rival_margin`` where the target does not tell.
    """

    def __init__(
        self,
        terse: Terse,
        target: ModelAdapter,
        cache: HardExampleCache,
        wanted: Mapping[int, int],
        budget: int,
        hard_below: float = MISSED_BELOW,
        rival_margin: float | None = None,
    ) -> None:
        if budget < 1:
            raise ValueError(f"budget: expected at least 1 image, got {budget}")
        if not 0 < hard_below <= 1:
            raise ValueError(f"hard_below: expected a probability in (0, 1], got {hard_below}")
        if rival_margin is not None and not 0 <= rival_margin < 1:
            raise ValueError(f"rival_margin: expected a difference of probabilities in [0, 1), got {rival_margin}")
        if rival_margin is not None and not isinstance(target, GivesClassProbabilities):
            raise ValueError(
                f"rival_margin: expected a target that tells the probabilities of all classes (class_probabilities), got "
                f"{type(target).__name__}; give hard_below"
            )
        if not wanted or min(wanted.values()) < 0:
            raise ValueError(f"wanted: expected a number of hard examples for each label, got {dict(wanted)}")
        if sum(wanted.values()) > cache.capacity:
            raise ValueError(
                f"wanted: {sum(wanted.values())} examples, more than the cache's capacity {cache.capacity}"
            )
        if unknown := sorted(set(wanted) - set(terse.bank.labels.tolist())):
            raise ValueError(f"wanted: no cut-out in the bank has the label(s) {unknown}")
        drawn = terse.sampler.snapshot().possible_labels()
        if drawn is not None and (never := sorted(set(wanted) - set(drawn))):
            raise ValueError(f"wanted: the sampler never draws the label(s) {never}, whose weight is 0")
        if terse.perturber is not None:
            raise ValueError(
                "expected Terse without robustness: a perturbed composite is hard for the weights of the moment only"
            )
        if isinstance(terse.sampler, BalancedSampler) and terse.planner.pool is not None:
            raise ValueError(
                "expected Terse without a pool of backgrounds, or another sampler than 'balanced', whose graph is of "
                "all cut-outs: a hunt pastes those of which examples are still short"
            )
        if cache.pixels != terse.pixel_format:
            raise ValueError(f"expected a cache with {terse.pixel_format}, as Terse has, got one with {cache.pixels}")
        self._terse, self._target, self._cache = terse, target, cache
        self._wanted, self._budget = dict(wanted), budget
        self._hard_below, self._rival_margin = hard_below, rival_margin

    @property
    def terse(self) -> Terse:
        """Whose policy hunts."""
        return self._terse

    @property
    def cache(self) -> HardExampleCache:
        """Where hard examples go."""
        return self._cache

    @property
    def wanted(self) -> dict[int, int]:
        """Hard examples of each label."""
        return dict(self._wanted)

    def run(
        self,
        batches: Iterable[Batch],
        begun: MiningReport | None = None,
        progress: Callable[[MiningReport], None] | None = None,
    ) -> MiningReport:
        """Hunt until every label has its number. Only cut-outs of labels that are still short are pasted.

        Args:
            batches: images and targets to paste on; the hunt ends with them.
            begun: the last report of a hunt that was interrupted, to go on with it.
            progress: told after every batch.

        Raises:
            ValueError: Terse is in evaluation mode.
        """
        if not self._terse.training:
            raise ValueError("expected Terse in training mode: terse.train()")
        report = begun or MiningReport()
        report = replace(report, complete=not self._short(report.found))
        restriction = self._terse.sampler.allowed_labels
        upcoming = iter(batches)
        try:
            while not report.complete and report.target_forwards < self._budget:
                batch = next(upcoming, None)
                if batch is None:
                    break
                report = self._hunt(batch, report)
                if progress is not None:
                    progress(report)
        finally:
            self._terse.restrict_labels(restriction)
        return report

    def _hunt(self, batch: Batch, before: MiningReport) -> MiningReport:
        """Paste on a batch and keep what is hard."""
        found, seen = Counter(before.found), before.seen
        asked_before = self._terse.metrics()["extra_forwards"]
        self._terse.restrict_labels(self._short(found))
        composites, labels = self._terse(*batch)
        pasted_on = self._terse.pastes
        hard, passed = self._ask(list(composites), labels)
        asked = int(self._terse.metrics()["extra_forwards"] - asked_before)
        for image, target, (known, own), pastes in zip(composites, labels, hard, pasted_on, strict=True):
            rows = [paste.row for paste in pastes if paste.row is not None and paste.number is not None]
            pasted = [row for row in rows if bool(known[row])]
            seen += len(pasted)
            missed = [int(target["labels"][row]) for row in pasted if bool(own[row])]
            short = [label for label in missed if label in self._short(found)]
            if short:
                self._cache.add(image, target, short[0])
                found[short[0]] += 1
        forwards = before.target_forwards + passed + asked
        return MiningReport(dict(found), seen, forwards, before.batches + 1, complete=not self._short(found))

    def _ask(self, images: list[Tensor], targets: Sequence[Target]) -> tuple[list[tuple[Tensor, Tensor]], int]:
        """Let the policy move; whether each object is known and hard, and how many images passed through the target.

        The loss that Terse logs is the mean hardness, the same for all policies and at every step.
        """
        policy, passed = self._terse.policy, len(images)
        outcomes = extra_forward_outcomes([image.detach() for image in images], targets, self._target)
        hardness = [own for own, _ in outcomes]
        known = torch.cat([own.float() for own in hardness])
        value = known.nanmean() if not bool(known.isnan().all()) else torch.zeros(())
        if policy.learns and policy.learns_from == "gradient" and any(image.requires_grad for image in images):
            self._go_backward(images, targets)
            passed *= 2
        if policy.learns_from == "hardness" or self._terse.sampler.learns:
            chances = [own for _, own in outcomes if own is not None]
            if self._terse.policy.classes is not None and len(chances) == len(images):
                self._terse.observe(class_probabilities=chances)
            else:
                self._terse.observe(hardness)
        self._terse.step(value)
        hard = [
            (~own.isnan(), self._is_hard(own, chances, target))
            for (own, chances), target in zip(outcomes, targets, strict=True)
        ]
        return hard, passed

    def _go_backward(self, images: list[Tensor], targets: Sequence[Target]) -> None:
        """Send the gradient of the target's loss to the policy, through composites that carry a graph."""
        if not isinstance(self._target, GivesInputGradients):
            loss = self._target.image_losses(images, targets, differentiable=True).mean()
            if loss.requires_grad:
                torch.autograd.backward(loss)
            return
        # Aside, for a target that recomputes its activations would do that after it had been let go of.
        _, gradients = self._target.input_gradients(images, targets)
        reached = [
            (image, gradient)
            for image, gradient in zip(images, gradients, strict=True)
            if image.requires_grad and bool(gradient.any())
        ]
        if reached:
            torch.autograd.backward([image for image, _ in reached], [gradient for _, gradient in reached])

    def _is_hard(self, hardness: Tensor, chances: Tensor | None, target: Target) -> Tensor:
        """Whether each object of an image is hard, bool ``[N]``."""
        if self._rival_margin is None:
            return hardness >= 1 - self._hard_below
        assert chances is not None
        # A label that is no class of the target's has no known hardness, and is not hard whatever stands there.
        column = target["labels"].long()[:, None].to(chances.device).clamp(0, chances.shape[1] - 1)
        rivals = chances.scatter(1, column, 0).amax(1)
        return rivals - (1 - hardness) > self._rival_margin

    def _short(self, found: Mapping[int, int]) -> set[int]:
        """Labels of which examples are still wanted."""
        return {label for label, wanted in self._wanted.items() if found.get(label, 0) < wanted}


def mixed(
    batches: Iterable[Batch], cache: HardExampleCache, share: float, seed: int, epoch: int = 0
) -> Iterator[tuple[list[Tensor], list[Target]]]:
    """Real batches, of which a share of the images is replaced by kept hard ones.

    Args:
        batches: real images and targets.
        cache: not empty.
        share: of the images, in [0, 1]; what is left over of a batch when whole images are replaced is carried on to
            the next.
        seed: what is drawn is a function of it, of the epoch and of the number of the batch.
        epoch: give another one in every pass, or the same examples are drawn again.

    Raises:
        ValueError: a share outside [0, 1], or an empty cache.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share: expected a fraction within [0, 1], got {share}")
    seen = replaced = 0
    for number, (images, targets) in enumerate(batches):
        seen += len(targets)
        count = math.floor(share * seen + _ROUNDING) - replaced
        replaced += count
        kept = len(targets) - count
        hard_images, hard_targets = (
            cache.sample(count, generator_for(seed, "mixed", epoch, number)) if count else ([], [])
        )
        device = images[0].device
        moved = [{name: value.to(device) for name, value in target.items()} for target in hard_targets]
        yield [*list(images)[:kept], *(image.to(device) for image in hard_images)], [*list(targets)[:kept], *moved]
