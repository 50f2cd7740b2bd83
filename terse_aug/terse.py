"""``Terse``: the module between a data loader and a detector."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terse_aug.bank import ForegroundBank
from terse_aug.batch_composer import BatchComposer, ComposedAhead, Join, Split, join_batch, split_batch
from terse_aug.composer import ComposedBatches, Composer, CompositeRecord, check_ahead
from terse_aug.compositing.compose import Composites, Paste
from terse_aug.compositing.layers import RenderSettings
from terse_aug.config import PasteConfig, PolicySettings, Robustness, policy_settings
from terse_aug.data.auxiliary_objects import Distractors
from terse_aug.data.background_pool import BackgroundPool
from terse_aug.data.class_mapping import check_classes, class_count, relabelled_bank
from terse_aug.data.foreground_cache import ForegroundCache
from terse_aug.data.planner import PastePlanner, bound_sampler
from terse_aug.models import ModelAdapter, as_model
from terse_aug.policies import Policy, make_policy
from terse_aug.samplers import Sampler
from terse_aug.structures.annotations import Target
from terse_aug.structures.keypoints import Flips, keypoint_flip_order
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.training.closing import Closing
from terse_aug.training.hardness import supplied_outcomes
from terse_aug.training.metrics import COUNTERS, ROBUSTNESS_COUNTERS, Metrics
from terse_aug.training.policy_trainer import PolicyTrainer
from terse_aug.training.robustness import Perturber
from terse_aug.utils.modules import SelfContainedModule, uncompiled
from terse_aug.utils.random import generator_for
from terse_aug.utils.warnings import WarnOnce


class Terse(SelfContainedModule):
    """Pastes foregrounds onto a batch; its policy can learn from the detector's loss where to paste them.

    ::

        terse = Terse(ForegroundBank.open("people.bank"), model=detector, seed=0).to(device)
        for images, targets in loader:
            images, targets = terse(images, targets)
            losses = detector(images, targets)
            sum(losses.values()).backward()
            optimizer.step(); optimizer.zero_grad(); terse.step(losses)

    In evaluation mode batches pass through unchanged. In a compiled function a call is a break of the graph. A module
    that holds it has its state, but none of its parameters. The state of rank 0 resumes a distributed run; equal to the
    bit with ``matched``, ``critic`` or a learning sampler it is if each rank saves and loads its own.

    Args:
        bank: the foregrounds.
        policy: a name, settings such as :class:`terse_aug.policies.Critic`, or a :class:`~terse_aug.policies.Policy`.
        model: the detector (a torchvision model, or a :class:`~terse_aug.models.ModelAdapter`); needed by ``best-of-n``
            and robustness, and by ``critic`` and sampler ``hardness`` unless :meth:`observe` is called. No submodule.
        classes: the detector's class names, from label 1 on, or a mapping from name to label, to match the bank's by
            name; without it the bank's category ids are the labels, which begin at 1 unless there is a ``model``.
        seed: what is drawn is a function of (seed, rank, number of calls); the global random state is left alone.
        paste: what is pasted and how it is blended.
        sampler: name in ``SAMPLERS``, class weights as ``"dog=3,cat=0.5"``, or a :class:`~terse_aug.samplers.Sampler`.
        backgrounds: images that replace some of the batch.
        distractors: foregrounds of none of the detector's classes, pasted without a label.
        robustness: composites are perturbed before the detector is trained on them.
        pixel_format: of what the model takes and of float images; by default RGB in [0, 1].
        keypoint_flips: pairs of keypoint names that are swapped in a flipped object; by default left and right.

    Raises:
        ValueError: a value outside its range, or classes, keypoints or policy do not fit bank and model.
    """

    def __init__(
        self,
        bank: ForegroundBank,
        policy: str | PolicySettings | Mapping[str, Any] | Policy = "random",
        *,
        model: nn.Module | ModelAdapter | None = None,
        classes: Sequence[str] | Mapping[str, int] | None = None,
        seed: int = 0,
        paste: PasteConfig | None = None,
        sampler: str | Sampler | Mapping[str, Any] = "uniform",
        backgrounds: BackgroundPool | None = None,
        distractors: Distractors | None = None,
        robustness: Robustness | None = None,
        pixel_format: PixelFormat | None = None,
        keypoint_flips: Flips | None = None,
    ) -> None:
        super().__init__()
        self.seed, self.seconds, self._warn = seed, 0.0, WarnOnce()
        self._settings = None if isinstance(policy, Policy) else policy_settings(policy)
        self.paste, self.pixel_format = paste or PasteConfig(), pixel_format or PixelFormat()
        self.bank = relabelled_bank(bank, classes, model is not None)
        # In a tuple, so that nn.Module does not register the detector.
        self._model = (None if model is None else as_model(model),)
        chosen = make_policy(policy, seed, class_count(self.model), self.paste.columns)
        if chosen.needs_model and self.model is None:
            raise ValueError(f"policy {policy!r} needs forwards of the detector: give Terse(model=detector)")
        check_classes(self.bank, self.model, chosen.classes, self.paste)
        if distractors is not None:
            distractors.check_classes([*self.bank.categories.values(), *(classes or ())])
        cache, several, mixed = ForegroundCache(self.bank), chosen.foreground_candidates, chosen.mix_classes
        self.planner = PastePlanner(self.paste, self.pixel_format, cache, several, mixed, backgrounds, distractors)
        flip_order = keypoint_flip_order(self.bank.keypoint_names, keypoint_flips)
        self._rendering = RenderSettings(self.paste, self.pixel_format, flip_order)
        self.counters = Metrics((*COUNTERS, *(ROBUSTNESS_COUNTERS if robustness else ())), self.paste.columns)
        bound = bound_sampler(sampler, self.bank, seed, chosen.foreground_candidates, backgrounds)
        self.trainer = PolicyTrainer(chosen, bound, self.model, self.pixel_format, seed, self.counters, self._warn)
        self._composed = ComposedBatches(self.planner, bound, self.counters, self._warn)
        self.perturber = Perturber(robustness, self.pixel_format, self.model, self.counters) if robustness else None
        composed = self.trainer, self.planner, self._rendering, self.model, self.perturber, self.counters
        self.closing = Closing(self.counters)
        self._composer = BatchComposer(*composed, self._warn, self.closing)
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)
        self.register_state_dict_pre_hook(_read_values)  # type: ignore[no-untyped-call]  # torch's own
        self._anchor: Tensor

    @property
    def policy(self) -> Policy:
        """The policy in use."""
        return self.trainer.policy

    @property
    def sampler(self) -> Sampler:
        """The sampler in use."""
        return self.trainer.sampler

    @property
    def model(self) -> ModelAdapter | None:
        """The model under training."""
        return self._model[0]

    @property
    def image_count(self) -> int:
        """Images that were composed on this rank, counted over all epochs and resumed runs."""
        return self.counters.counts["images"]

    @property
    def pastes(self) -> list[list[Paste]]:
        """The pastes of each image of the last :meth:`forward` in training mode, until :meth:`step`."""
        return self._composer.last.pastes if self._composer.last else []

    @property
    def replaced(self) -> dict[int, int]:
        """Index in the background pool of the images of the last :meth:`forward` that were replaced."""
        return self._composer.last.backgrounds if self._composer.last else {}

    @uncompiled
    def forward(
        self, images: Sequence[Tensor] | Tensor, targets: Sequence[Target], from_workers: Sequence[Any] | None = None
    ) -> tuple[list[Tensor] | Tensor, list[Target]]:
        """Paste foregrounds onto a batch.

        Args:
            images: B tensors ``[3, H, W]`` of any sizes, or one ``[B, 3, H, W]``, uint8 or float; left untouched.
            targets: B dictionaries, best on the CPU: ``boxes`` float ``[N, 4]`` XYXY pixels, ``labels`` int ``[N]``,
                optionally ``masks``, ``keypoints``, ``ids``, ``area``, ``iscrowd``; left untouched.
            from_workers: B results of a :class:`~terse_aug.ForegroundLoader` in the data loader's workers; or B records
                of :meth:`composer`, if the batch was composed there: it is counted and passed on as it is.

        Returns:
            Composites and corrected targets in the form of the input, on the device of the images; float with
            robustness, and where a policy learns from gradients (``adversarial``, ``paper``), whose composites carry a
            graph in an iteration with an update.

        Raises:
            ValueError: the batch does not keep to the contract above, or what the workers gave does not fit.
        """
        self.trainer.end_batch()
        self._composer.last = None
        if not self.training:
            return images if isinstance(images, Tensor) else list(images), list(targets)
        self.trainer.feedback.log_sources()
        started = time.perf_counter()
        found: Any = images
        if from_workers and isinstance(from_workers[0], CompositeRecord):
            self._composer.last = self._composed.batch(from_workers, targets, self.seed)
        else:
            found = self._composer.compose(images, targets, from_workers, self.trainer.turn(self.seed))
        self.seconds += time.perf_counter() - started
        return found, self._composer.targets()

    @uncompiled
    def step(self, losses: Mapping[str, Tensor] | Tensor | float | None, loss_scale: float = 1.0) -> None:
        """Update policy and sampler; call it once per iteration, after the detector's ``backward``. A loss or gradient
        that is not finite skips the update, on all ranks; pastes are random until one succeeds.

        Args:
            losses: the detector's in this iteration, summed if a mapping; or their sum; ``None`` if unknown.
            loss_scale: factor of the loss before ``backward``: ``scaler.get_scale()`` of a GradScaler, taken before
                ``scaler.update()``; ``1 / n`` where the loss is divided by the n batches that a step accumulates.

        Raises:
            ValueError: a loss that is not one number, or hardness is needed without model or :meth:`observe`.
        """
        started = time.perf_counter()
        self.trainer.step(losses, loss_scale, self.seed, self._anchor.device)
        self._composer.last = None
        self.seconds += time.perf_counter() - started

    @uncompiled
    def observe(
        self, hardness: Sequence[Tensor] | None = None, *, class_probabilities: Sequence[Tensor] | None = None
    ) -> None:
        """Supply the hardness of the last batch's objects, between ``forward`` and ``step``, by one of two arguments.

        Args:
            hardness: for each image float ``[N]`` in [0, 1], one minus the model's score of each object in the
                targets that :meth:`forward` returned; NaN where it is not known.
            class_probabilities: for each image float ``[N, K]``, rows that sum to 1: the model's probability of every
                class, label k in column k; NaN where unknown. For a :class:`~terse_aug.models.GivesClassProbabilities`.

        Raises:
            ValueError: no batch was pasted on, both or neither are given, or wrong shapes or values.
        """
        if self._composer.last is None:
            raise ValueError("observe: expected a call of Terse in training mode before, whose objects these are")
        outcomes = supplied_outcomes(hardness, class_probabilities, self._composer.targets(), self.policy.classes)
        self.trainer.feedback.supply(outcomes)

    def close_after(self, batches: int | None) -> None:
        """Paste on so many more batches and then on none; ``None`` for all. Not a part of the state."""
        self.closing.after(batches)

    def composer(self, closes_at: int | None = None) -> Composer:
        """Composes in the data loader's workers, see :class:`~terse_aug.NumberedSampler`; made after a state is loaded.

        Raises:
            ValueError: another policy than ``random``, sampler ``hardness`` or ``balanced``, robustness; or without
                ``closes_at``, the first sample that nothing is pasted on, after :meth:`close_after`.
        """
        parts = self.planner, self.sampler, self.policy, self._rendering, self.seed, self.perturber is not None
        return Composer(*parts, self.closing.checked(closes_at))

    def ahead(
        self, loader: Iterable[Any], split: Split = split_batch, join: Join = join_batch, on_cpu: Collection[str] = ()
    ) -> ComposedAhead:
        """A data loader composed ahead by ``random``, ``matched`` or ``critic``, in place of :meth:`forward`::

            for images, targets in terse.ahead(loader):

        While the detector trains on a batch, a thread composes the next one on the CPU; it comes out on Terse's device.

        Args:
            loader: of batches ``(images, targets)`` or ``(images, targets, from_workers)`` on the CPU.
            split, join: for other batches: arguments of :meth:`forward`, in the thread; a batch of the composites.
            on_cpu: fields of the targets that stay on the CPU.

        Raises:
            ValueError: another policy, sampler ``hardness`` or ``balanced``, or robustness.
        """
        check_ahead(self.policy, self.sampler, self.perturber is not None)
        return ComposedAhead(self, self._composer, self._anchor.device, loader, split, join, on_cpu)

    def restrict_labels(self, labels: Iterable[int] | None) -> None:
        """Paste only foregrounds with some labels, ``None`` for all; not a part of the state.

        Raises:
            ValueError: no foreground has any of them.
        """
        self.sampler.restrict(labels)

    def compose(
        self,
        images: Sequence[Tensor],
        targets: Sequence[Target],
        policy: str | PolicySettings | Policy | None = None,
        seed: int = 0,
    ) -> Composites:
        """Composites for inspection or evaluation: no state changes and nothing is learned.

        Args:
            images, targets: as in :meth:`forward`.
            policy: another one than that in use.
            seed: what is drawn is a function of it alone.

        Raises:
            ValueError: ``policy`` is the name of one that learns and is not in use: it would be untrained.
        """
        chosen = _requested_policy(self, policy, self._settings).to(self._anchor.device)
        return self._composer.inspect(images, targets, chosen, generator_for(self.seed, "compose", seed))

    def metrics(self) -> dict[str, float]:
        """Counters, running averages and diversity, by name."""
        self.trainer.read_values()
        return self.counters.summary()


def _read_values(terse: nn.Module, prefix: str, keep_vars: bool) -> None:
    """Read what is still on the device, before a state is saved."""
    assert isinstance(terse, Terse)
    terse.trainer.read_values()


def _requested_policy(
    terse: Terse, policy: str | PolicySettings | Policy | None, in_use: PolicySettings | None
) -> Policy:
    """The policy in use, or another one that is given or needs no training."""
    if policy is None or policy is terse.policy:
        return terse.policy
    if not isinstance(policy, Policy):
        settings = policy_settings(policy)
        if settings == in_use or (isinstance(policy, str) and type(settings) is type(in_use)):
            return terse.policy
    chosen = make_policy(policy, terse.seed, class_count(terse.model), terse.paste.columns)
    if chosen.state_dict() and not isinstance(policy, Policy):
        raise ValueError(f"policy {policy!r} has learned nothing here: pass a trained Policy, or None")
    return chosen
