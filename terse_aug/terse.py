"""``Terse``: the module that stands between a data loader and a detector. Imports torch only, no host."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.bank import Foreground, ForegroundBank
from terse_aug.compositing.compose import Composites, Paste, compose_exactly, full_precision
from terse_aug.compositing.plan import PastePlan
from terse_aug.config import TerseConfig, replaced
from terse_aug.data.background_pool import BackgroundPool, Source, check_pools
from terse_aug.data.class_mapping import check_classes, check_distractors, check_labels, probability_columns, translated
from terse_aug.data.foreground_cache import ForegroundCache
from terse_aug.data.foreground_loader import SampledForegrounds
from terse_aug.data.planner import PastePlanner, PlannedBatch
from terse_aug.models import ModelAdapter, as_model
from terse_aug.policies import Policy, PolicyContext, Proposal, make_policy, uniform_proposal
from terse_aug.samplers import ForegroundIndex, Sampler, make_sampler
from terse_aug.structures.annotations import Target
from terse_aug.structures.keypoints import Flips, mirror_order
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.structures.validation import ValidatedBatch, validate_batch
from terse_aug.training.feedback import FeedbackBuffer
from terse_aug.training.hardness import supplied_outcomes
from terse_aug.training.metrics import Ledger
from terse_aug.training.robustness import make_robustness
from terse_aug.training.updates import PendingBatch, PolicyUpdater
from terse_aug.utils.distributed import rank
from terse_aug.utils.random import generator_for
from terse_aug.utils.warnings import WarnOnce


class Terse(nn.Module):
    """Pastes objects onto a batch and learns from the detector's loss where to paste them.

    ::

        terse = Terse(ForegroundBank.open("people.bank"), target=detector, seed=0).to(device)
        for images, targets in loader:
            images, targets = terse(images, targets)
            losses = detector(images, targets)
            sum(losses.values()).backward()
            optimizer.step(); optimizer.zero_grad()
            terse.step(losses)

    In evaluation mode (``terse.eval()``) batches pass through unchanged.

    Args:
        bank: the cut-outs.
        policy: a name in :data:`terse_aug.policies.POLICIES`, or a :class:`~terse_aug.policies.Policy`. The default
            hears from the target's training forward what it made of the pastes; a target that cannot be heard is
            asked every ``move_every``-th iteration.
        seed: of everything drawn; what is drawn is a function of (seed, rank, number of calls) and the global
            random state is left alone. The same seed gives the same adversary on every rank.
        classes: the detector's class names, from label 1 on, or a mapping from name to label; the bank's
            categories are translated by name. Without it the bank's category ids are the labels.
        target: the detector (a torchvision model, or a :class:`~terse_aug.models.ModelAdapter`); needed by
            ``hard-random``, by ``critic`` unless :meth:`observe` is called, and by ``robust="pgd"``. It does not become
            a part of this module.
        pixels: format of the host's images; by default RGB in [0, 1].
        keypoint_flips: pairs of names of keypoints that change places in a mirrored object; by default those that
            differ in "left" and "right".
        sampler: which cut-outs are drawn: a name or weights of classes as ``config.sampler``, whose place it takes,
            or a :class:`~terse_aug.samplers.Sampler`.
        backgrounds: images that take the place of those of the batch with ``background_probability``: a folder, or a
            sequence of paths and RGB tensors ``[3, H, W]``, uint8 or float in [0, 1]. They should show no object of
            the detector's classes, for nothing on them is labelled but what is pasted.
        distractor_bank: cut-outs of none of the detector's classes, pasted without a label if ``distractors`` says so.
        config: settings; by default ``TerseConfig()``.
        settings: single settings that replace those of ``config``, e.g. ``objects=(1, 5)``.

    Raises:
        ValueError: an unknown policy or setting, a value outside its range, a class in the bank that the
            detector does not have, one in the distractor bank that it has, keypoint flips of other keypoints than the
            bank's, no backgrounds or distractors where a setting wants some, or the reverse.
    """

    def __init__(
        self,
        bank: ForegroundBank,
        policy: str | Policy = "critic",
        *,
        seed: int = 0,
        classes: Sequence[str] | Mapping[str, int] | None = None,
        target: nn.Module | ModelAdapter | None = None,
        pixels: PixelFormat | None = None,
        keypoint_flips: Flips | None = None,
        sampler: str | Sampler | None = None,
        backgrounds: Source | None = None,
        distractor_bank: ForegroundBank | None = None,
        config: TerseConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.config = replaced(config or TerseConfig(), settings)
        self.bank = translated(bank, classes)
        self.seed = seed
        self.pixels = pixels or PixelFormat()
        # In a tuple, so that nn.Module does not take the detector for a part of the adversary.
        self._target = (as_model(target),) if target is not None else ()
        check_labels(self.bank, self._detector)
        chosen = make_policy(policy, self.config, seed, probability_columns(self._detector))
        self._policy_name = policy if isinstance(policy, str) else None
        if chosen.needs_model and not self._target:
            raise ValueError(f"policy {policy!r} asks the detector: give Terse(target=detector)")
        check_classes(chosen, self.bank, probability_columns(self._detector))
        self.adversary = PolicyUpdater(chosen, self.config, seed, self.pixels)
        self.robustness = make_robustness(self.config, self.pixels, seed, self._detector)
        self.ledger = Ledger()
        pool = None if backgrounds is None else BackgroundPool(backgrounds)
        distractors = None if distractor_bank is None else ForegroundCache(distractor_bank)
        check_pools(self.config, pool, distractors, self.bank)
        if distractor_bank is not None:
            check_distractors(distractor_bank, [*self.bank.categories.values(), *(classes or ())])
        self.sampler = make_sampler(self.config.sampler_settings(sampler))
        if chosen.foreground_candidates > 1 and not self.sampler.allows_candidates:
            raise ValueError(
                f"sampler {type(self.sampler).__name__} with critic_cutouts {chosen.foreground_candidates}: the policy would choose "
                "among cut-outs, and they would not be equally frequent; set critic_cutouts to 1"
            )
        pool_size = 0 if pool is None else len(pool)
        self.sampler.bind(ForegroundIndex(self.bank.labels, self.bank.categories), seed, pool_size)
        order = mirror_order(self.bank.keypoint_names, keypoint_flips)
        self.pasting = PastePlanner(
            self.config, self.pixels, ForegroundCache(self.bank), pool, distractors, order, self._detector
        )
        self._remarks = WarnOnce()
        self._turns = FeedbackBuffer(self._detector, chosen, self.sampler, self.ledger, self._remarks)
        # Of the last batch.
        self._pastes: list[list[Paste]] = []
        self._targets: list[Target] | None = None
        self._replaced: dict[int, int] = {}
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        self._anchor: Tensor
        self.seconds = 0.0

    @property
    def policy(self) -> Policy:
        """The policy in use."""
        return self.adversary.policy

    @property
    def pastes(self) -> list[list[Paste]]:
        """The pastes of each image of the last :meth:`forward` in training mode, until :meth:`step`."""
        return self._pastes

    @property
    def replaced(self) -> dict[int, int]:
        """By image of the last :meth:`forward` that a background took the place of, its place in the pool; until
        :meth:`step`."""
        return self._replaced

    def forward(
        self,
        images: Sequence[Tensor] | Tensor,
        targets: Sequence[Target],
        sampled: Sequence[SampledForegrounds] | None = None,
    ) -> tuple[list[Tensor] | Tensor, list[Target]]:
        """Paste objects onto a batch.

        Args:
            images: B float tensors ``[3, H, W]`` of any sizes, or one ``[B, 3, H, W]``; left untouched.
            targets: B dictionaries: ``boxes`` float ``[N, 4]`` XYXY pixels, ``labels`` int ``[N]``, optionally
                ``masks``, ``keypoints``, ``ids``, ``area``, ``iscrowd``; left untouched.
            parcels: B parcels of a :class:`~terse_aug.ForegroundLoader`, which has drawn and decoded the cut-outs in the
                data loader's workers; without them that is done here.

        Returns:
            Composites and their corrected targets, in the form that came. Every ``move_every``-th iteration the
            composites of a policy that learns from gradients (``learned``, ``deterministic``) carry a graph, so that
            the detector's backward reaches it; with ``robust="universal"`` those of every iteration do.

        Raises:
            ValueError: the batch does not keep to the contract above; parcels of another bank or made with other
                settings, or together with :meth:`paste_only`.
        """
        self._end_batch()
        if not self.training:
            return list(images) if not isinstance(images, Tensor) else images, list(targets)
        started = time.perf_counter()
        composites = self._composites(images, targets, sampled)
        self._pastes, self._targets = composites.pastes, composites.targets
        self._replaced = composites.backgrounds
        self.seconds += time.perf_counter() - started
        stacked = isinstance(images, Tensor)
        return torch.stack(composites.images) if stacked else composites.images, composites.targets

    def step(self, losses: Mapping[str, Tensor] | Tensor | float, loss_scale: float = 1.0) -> None:
        """The adversary's move; call it once per iteration, after the detector's ``backward``.

        A loss or gradient that is not finite skips the move, on all ranks; composites are then random until a
        move succeeds again.

        Args:
            losses: the detector's losses of this iteration, summed if a mapping; or their sum.
            loss_scale: what the loss was multiplied by before ``backward``: ``scaler.get_scale()`` of a
                GradScaler, taken before ``scaler.update()``; ``1 / n`` where the loss is divided by the n
                batches that a step accumulates.

        Raises:
            ValueError: a loss that is not one number, or the policy learns from hardness and there is neither a target
                nor a call of :meth:`observe`.
        """
        started = time.perf_counter()
        value = _total(losses)
        finite = abs(value) < float("inf")
        if finite:
            self.ledger.average("loss", value)
        else:
            self.ledger.counts["losses_not_finite"] += 1
            self.ledger.counts["suspended"] = int(self.policy.learns)
            self._remarks.warn("loss", f"the loss is {value}; {_SUSPENDED if self.policy.learns else 'it is left out'}")
        self._end_batch()
        if self.policy.learns_from == "hardness" and finite:
            self._learn_hardness()
        if self.sampler.learns and self._moving():
            self._turns.teach_sampler(finite, self._anchor.device)
        if self._moves_now():
            self._move(finite, loss_scale)
        if self.robustness is not None and not self.robustness.step():
            self._remarks.warn("robust", _NO_PATTERN)
        self._turns.end_iteration()
        self.ledger.counts["iterations"] += 1
        self.seconds += time.perf_counter() - started

    def observe(self, hardness: Sequence[Tensor] | None = None, *, chances: Sequence[Tensor] | None = None) -> None:
        """Say how hard the objects of the last batch were, where the training says so for nothing.

        For a policy that learns from hardness; without it, what the target's training forward said is taken, or else
        :meth:`step` asks the target, which costs a forward. Called in any iteration, it is learned from.
        A classifier, for one, knows its probabilities from the training step itself. Call it between ``forward``
        and ``step``. Give one of the two; chances teach more.

        Args:
            hardness: for each image of the batch float ``[N]`` in [0, 1], one minus the model's probability of
                each object in the targets that :meth:`forward` returned; NaN where it is not known, as of what is
                behind the last object of a classifier's image.
            chances: for each image float ``[N, K]`` in [0, 1], rows that sum to 1: the model's probability of every
                class, label k in column k, for the same objects; a row of NaN where it is not known. All of it is
                learned from if the target tells chances too (:class:`~terse_aug.models.GivesClassProbabilities`; K is then its
                ``label_limit``), else only the column of the object's label.

        Raises:
            ValueError: no batch was pasted on, both or neither are given, not one value (row) for each object, values
                outside [0, 1], or rows that do not sum to 1.
        """
        if self._targets is None:
            raise ValueError("observe: expected a call of Terse in training mode before, whose objects these are")
        outcomes = supplied_outcomes(hardness, chances, self._targets, self.policy.classes)
        self._turns.tell(outcomes)

    @property
    def pasted_labels(self) -> list[int] | None:
        """What :meth:`paste_only` has said; ``None`` for all."""
        return self.sampler.allowed_labels

    def paste_only(self, labels: Iterable[int] | None) -> None:
        """From now on paste only cut-outs with some labels.

        A matter of the training loop: not a part of the state, and :meth:`compose` draws from all.

        Args:
            labels: the bank's, or the detector's where ``classes`` was given; ``None`` for all.

        Raises:
            ValueError: no cut-out has any of them.
        """
        self.sampler.restrict(labels)

    def compose(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target],
        policy: str | Policy | None = None,
        seed: int = 0,
    ) -> Composites:
        """Composites for looking at or measuring with: no state moves and nothing is learned.

        Args:
            images: as in :meth:`forward`.
            targets: as in :meth:`forward`.
            policy: another policy than the one in use; the name of the one in use is that one.
            seed: what is drawn is a function of it alone.

        Returns:
            Composites with a record of every paste.

        Raises:
            ValueError: ``policy`` is the name of one that learns and is not in use: it would be an untrained one.
        """
        chosen = self._another(policy)
        batch = self._admit(images, targets)
        generator = generator_for(self.seed, "compose", seed)
        with torch.no_grad():
            offer = self._offer(batch, chosen, generator, self.sampler.snapshot())
            proposal = chosen.propose(offer.scene, generator, learning=False)
            return self._composed(offer, proposal)[0]

    def metrics(self) -> dict[str, float]:
        """Figures for a log, by name: counters, running averages, and the spread of the transforms.

        ``diversity`` is the mean over the transform parameters of their standard deviation relative to uniform
        (1 random, 0 collapsed); ``loss`` the running mean of the detector's loss; ``hardness`` that of one minus
        the detector's probability of a pasted object, ``critic_correlation`` how well it was foretold, and
        ``hardness_gain`` how much harder the chosen are foretold to be than random ones, for a policy that learns from
        it; ``hearing_failed`` is 1 once it is asked because it could not be heard; ``robust/...`` are of robustness
        training; ``moves`` and ``skipped_moves`` count the adversary's moves;
        ``dropped/...`` count what was left out or cut off, by reason; ``backgrounds``, ``distractors`` and
        ``superimposed`` count images of the pool, distractors, and objects behind others. They are a function of the
        run alone: time is kept apart, in ``seconds``.
        """
        return self.ledger.summary() | ({} if self.robustness is None else self.robustness.figures())

    def _load_from_state_dict(self, *arguments: Any, **more: Any) -> None:
        self._turns.forget()  # they are of the run before
        super()._load_from_state_dict(*arguments, **more)

    def _another(self, policy: str | Policy | None) -> Policy:
        if policy is None or policy == self._policy_name:
            return self.policy
        chosen = make_policy(policy, self.config, self.seed, probability_columns(self._detector))
        if chosen.learns and not isinstance(policy, Policy):
            raise ValueError(f"policy {policy!r} has learned nothing here: hand over a trained Policy, or None")
        return chosen.to(self._anchor.device)

    def _composites(
        self, images: Sequence[Tensor] | Tensor, targets: Sequence[Target], sampled: Sequence[SampledForegrounds] | None
    ) -> Composites:
        batch = self._admit(images, targets)
        counts = self.ledger.counts
        generator = generator_for(self.seed, rank(), "paste", counts["calls"])
        by_hardness = self.policy.learns_from == "hardness"
        learning = self.policy.learns if by_hardness else self._moves_now() and torch.is_grad_enabled()
        if self._moves_now() and not learning:
            counts["dropped/graph"] += 1
            self._remarks.warn("no_gradient", _NO_GRADIENT)
        with torch.no_grad():
            offer = self._offer(batch, self.policy, generator, self.sampler, sampled)
        proposal = self._propose(offer.scene, generator, learning)
        with torch.set_grad_enabled(bool(proposal.leaves)):
            composites, layout = self._composed(offer, proposal)
        # Before anybody listens to the detector. Hardness is that of the perturbed; realism is judged without.
        shown = composites
        if self.robustness is not None:
            shown = self.robustness.perturbed(composites, offer.batch.usable, self.seed, counts["calls"])
        if learning and any(composites.pastes) and (proposal.leaves or proposal.replay_data):
            with full_precision(offer.batch.images[0].device):
                turn = self.adversary.begin(proposal, composites, offer.batch.images, offer.batch.targets)
            self._turns.keep(turn)
            self._turns.follow(turn, shown)
        elif self.sampler.learns and any(composites.pastes):
            self._turns.follow(PendingBatch(proposal, len(composites.images)), shown)
        self._record(layout, proposal, composites)
        return shown

    def _propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """The policy's proposal, or a random one while it is suspended, but for the batches that it moves by."""
        if self.ledger.counts["suspended"] and self.policy.learns and not self._moves_now():
            first = torch.arange(0, len(scene.image_of), self.policy.foreground_candidates)
            return uniform_proposal(len(first), generator, scene.image_of.device, first)
        return self.policy.propose(scene, generator, learning)

    @property
    def _detector(self) -> ModelAdapter | None:
        return self._target[0] if self._target else None

    def _admit(self, images: Sequence[Tensor] | Tensor, targets: Sequence[Target]) -> ValidatedBatch:
        batch = validate_batch(images, targets, len(self.bank.keypoint_names))
        self._remark(batch)
        return batch

    def _offer(
        self,
        batch: ValidatedBatch,
        policy: Policy,
        generator: torch.Generator,
        sampler: Sampler,
        sampled: Sequence[SampledForegrounds] | None = None,
    ) -> PlannedBatch:
        offer = self.pasting.offer(batch, policy, generator, sampler, sampled)
        self._remark(offer.batch)
        return offer

    def _remark(self, batch: ValidatedBatch) -> None:
        for kind, text in batch.remarks.items():
            self._remarks.warn(kind, text)

    def _composed(self, offer: PlannedBatch, proposal: Proposal) -> tuple[Composites, PastePlan[Foreground]]:
        """Composites of what a policy has taken, and what that is."""
        batch = offer.batch
        layout = offer.layout.taken(self.pasting.shelf, proposal.rows)
        surface = self.pasting.surface(batch.images)
        composites = compose_exactly(batch.images, batch.targets, layout, proposal.unit, surface)
        composites.dropped.update(batch.dropped)
        composites.backgrounds.update(offer.backgrounds)
        return composites, layout

    def _record(self, layout: PastePlan[Foreground], proposal: Proposal, composites: Composites) -> None:
        counts = self.ledger.counts
        counts["calls"] += 1
        counts["images"] += len(composites.images)
        counts["composites"] += sum(bool(pastes) for pastes in composites.pastes)
        counts["objects_pasted"] += sum(len(pastes) for pastes in composites.pastes)
        counts["objects_labelled"] += sum(paste.row is not None for pastes in composites.pastes for paste in pastes)
        counts["decoys"] += len(layout.decoys) - composites.dropped["decoy_without_background"]
        counts["backgrounds"] += len(composites.backgrounds)
        counts["superimposed"] += sum(paste.number is None for pastes in composites.pastes for paste in pastes)
        counts["distractors"] += len(layout.distractors) - composites.dropped["distractor_not_shown"]
        counts["extra_forwards"] += proposal.extra_forwards
        for reason, count in composites.dropped.items():
            counts[f"dropped/{reason}"] += count
        if composites.dropped["paste_too_small"]:
            self._remarks.warn(
                "paste_too_small",
                f"pastes below min_side = {self.config.min_side} pixels are left out: the images are small or "
                "the scale range is low",
            )
        if len(proposal.unit):
            self.ledger.see_transforms(proposal.unit.detach().cpu())

    def _moving(self) -> bool:
        """Whether this is an iteration in which what learns moves, and targets are asked."""
        return self.ledger.counts["iterations"] % self.config.move_every == 0

    def _moves_now(self) -> bool:
        return self.policy.learns and self._moving()

    def _learn_hardness(self) -> None:
        """Let the policy remember what was told and heard; ask the target about the rest where the policy moves."""
        if self._moves_now():
            self._turns.ask(repr(self._policy_name or self.policy))
        with full_precision(self._anchor.device):
            for name, value in self.adversary.add_to_replay(self._turns).items():
                self.ledger.average(name, value)

    def _end_batch(self) -> None:
        self._turns.end_batch(self._moving())
        self._pastes, self._targets, self._replaced = [], None, {}

    def _move(self, loss_finite: bool, loss_scale: float) -> None:
        counts = self.ledger.counts
        with full_precision(self._anchor.device):
            generator = generator_for(self.seed, rank(), "move", counts["iterations"])
            move = self.adversary.move(self._turns, loss_finite, loss_scale, self._anchor.device, generator)
        if move.made:
            counts["moves"] += 1
            counts["suspended"] = 0
            for name, value in move.figures.items():
                self.ledger.average(name, value)
            return
        if move.reason == "nothing_pasted":
            return
        counts["skipped_moves"] += 1
        if move.reason == "not_finite":
            counts["suspended"] = 1
            if loss_finite:
                self._remarks.warn("gradient", f"a loss or gradient is not finite on some rank; {_SUSPENDED}")
        else:
            self._remarks.warn("no_gradient", _NO_GRADIENT)


_SUSPENDED = "the adversary does not move and pastes at random until a move succeeds"

_NO_GRADIENT = (
    "no gradient reached the composites, so the adversary does not move: call backward() on the detector's loss "
    "before step(), call Terse outside torch.no_grad(), and hand the images on as Terse returned them"
)

_NO_PATTERN = (
    "robust='universal': no gradient reached the composites, so the pattern does not move: call backward() on the "
    "detector's loss before step(), and hand the images on as Terse returned them"
)


def _total(losses: Mapping[str, Tensor] | Tensor | float) -> float:
    parts = list(losses.values()) if isinstance(losses, Mapping) else [losses]
    for part in parts:
        if isinstance(part, Tensor) and part.numel() != 1:
            raise ValueError(f"losses: expected each to be one number, got {list(part.shape)}; reduce it first")
    # Added up before they are read: one wait for the device, however many losses.
    total = sum(part.detach().float() if isinstance(part, Tensor) else part for part in parts)
    return float(total)
