"""The adversary: policy and discriminator, and how they move. Imports torch only.

The game, one line a player (L the detector's loss on the composite, D the discriminator)::

    policy         ascends   E_q[L] - tau KL(q || uniform) + w E log D(composite)
    discriminator  descends  -(E log D(real) + E log(1 - D(composite)))
    detector       descends  L                                            (the host's own step, not here)

A policy that learns from hardness plays by itself: it descends its own error in foretelling the detector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from terse_aug.compositing.compose import Composites, Paste
from terse_aug.config import TerseConfig
from terse_aug.models import Recorder
from terse_aug.policies import Policy, Proposal
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.training.discriminator import PatchDiscriminator, discriminator_loss, object_crops, realism_loss
from terse_aug.utils.distributed import sum_over_ranks, sum_tensors_over_ranks
from terse_aug.utils.optimizer import BufferedAdam

_GAN_BETAS = (0.5, 0.999)


@dataclass(eq=False)
class PendingBatch:
    """One batch of composites that the adversary will learn from once the detector has gone backward.

    Attributes:
        proposal: made with ``learning``.
        image_count: of the batch, to turn the gradient of its mean loss into that of an image.
        realism_gradients: d(-log D) / d leaf, or empty without discriminator.
        real: crops of real objects ``[R, 3, CROP, CROP]``, or ``None``.
        composite: crops of pasted objects, detached, likewise.
        composites: the batch, kept only for a policy that learns from hardness.
        listener: hears what the detector makes of them, while it is trained on them.
        hardness: float ``[M]`` in [0, 1], NaN where not known; ``None`` until somebody has said.
        chances: float ``[M, K]``, the probability of every class, NaN where not known; ``None`` if nobody tells.
    """

    proposal: Proposal
    image_count: int
    realism_gradients: tuple[Tensor, ...] = ()
    real: Tensor | None = None
    composite: Tensor | None = None
    composites: Composites | None = None
    listener: Recorder | None = None
    hardness: Tensor | None = None
    chances: Tensor | None = None


@dataclass
class UpdateResult:
    """What became of a move: whether it was made, why not, and figures for the log."""

    made: bool
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class PolicyUpdater(nn.Module):
    """Owns the parameters that play against the detector; none of them belongs in the host's optimizer.

    Args:
        policy: decides the transforms.
        config: learning rates and weights.
        seed: of the discriminator's initial weights.
        pixels: format of the host's images.
    """

    def __init__(self, policy: Policy, config: TerseConfig, seed: int, pixels: PixelFormat) -> None:
        super().__init__()
        self.policy = policy
        self._config = config
        self._pixels = pixels
        self.policy_optimizer: BufferedAdam | None = None
        self.discriminator: PatchDiscriminator | None = None
        self.discriminator_optimizer: BufferedAdam | None = None
        if policy.learns:
            self.policy_optimizer = BufferedAdam(policy.parameters(), config.learning_rate)
            if config.discriminator_weight > 0 and policy.learns_from == "gradient":
                self.discriminator = PatchDiscriminator(seed)
                self.discriminator_optimizer = BufferedAdam(
                    self.discriminator.parameters(), config.learning_rate, _GAN_BETAS
                )

    def begin(
        self, proposal: Proposal, composites: Composites, images: Sequence[Tensor], targets: Sequence[Target]
    ) -> PendingBatch:
        """Keep what the move will need, before the host's backward frees the graph.

        Args:
            proposal: made with ``learning``.
            composites: made from it, with their graph.
            images: the batch before pasting.
            targets: likewise.
        """
        if self.policy.learns_from == "hardness":
            return PendingBatch(proposal, len(images), composites=composites)
        turn = PendingBatch(proposal, len(images))
        if self.discriminator is None or not composites.images:
            return turn
        boxes = [
            _pasted_boxes(target, pastes) for target, pastes in zip(composites.targets, composites.pastes, strict=True)
        ]
        shown = object_crops([self._pixels.decode(image) for image in composites.images], boxes)
        if len(shown) == 0 or not shown.requires_grad:
            return turn
        with torch.autocast(shown.device.type, enabled=False):
            loss = realism_loss(self.discriminator(shown))
        gradients = torch.autograd.grad(loss, proposal.leaves, retain_graph=True, allow_unused=True)
        turn.realism_gradients = tuple(
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(proposal.leaves, gradients, strict=True)
        )
        proposal.metrics["realism"] = -float(loss.detach())
        real = [target["boxes"] for target in targets]
        crops = object_crops([self._pixels.decode(image.detach()) for image in images], real)
        turn.real = crops[crops.isfinite().flatten(1).all(1)]
        turn.composite = shown.detach()
        return turn

    def move(
        self,
        turns: Sequence[PendingBatch],
        loss_finite: bool,
        loss_scale: float,
        device: torch.device,
        generator: torch.Generator,
    ) -> UpdateResult:
        """Learn from the turns since the last move; every rank has to call it.

        A step is taken on all ranks or on none; none is taken with anything that is not finite.

        Args:
            turns: since the last move; may be empty on some ranks. A policy that learns from hardness goes by what it
                remembers (:meth:`add_to_replay`) instead.
            loss_finite: whether this rank's loss was finite.
            loss_scale: factor by which the backward's loss was scaled (a GradScaler's).
            device: of the parameters.
            generator: of what a policy draws to learn.
        """
        if self.policy.learns_from == "hardness":
            return self._replay(loss_finite, device, generator)
        return self._ascend(turns, loss_finite, loss_scale, device)

    def add_to_replay(self, turns: Sequence[PendingBatch]) -> dict[str, float]:
        """Let a policy that learns from hardness have what is known of its pastes.

        Args:
            turns: those of which nobody has said anything are passed over.

        Returns:
            Figures for the log.
        """
        figures: dict[str, float] = {}
        for turn in turns:
            if turn.hardness is not None and not bool(turn.hardness.isnan().all()):
                self.policy.add_to_replay(turn.proposal, turn.hardness, turn.chances)
                figures |= turn.proposal.metrics
        return figures

    def _replay(self, loss_finite: bool, device: torch.device, generator: torch.Generator) -> UpdateResult:
        """Let the policy go over what it remembers of how hard its pastes were."""
        assert self.policy_optimizer is not None
        (ranks_failed,) = sum_over_ranks([float(not loss_finite)], device)
        if ranks_failed:
            return UpdateResult(False, "not_finite")
        figures: dict[str, float] = {}
        for _ in range(self.policy.replay_updates):
            self._forget()
            objective = self.policy.replay_loss(generator)
            if objective is not None:
                torch.autograd.backward(objective)
            (ranks,) = sum_over_ranks([float(objective is not None)], device)
            if not ranks:
                self._forget()
                return UpdateResult(False, "nothing_pasted", figures)
            if not self._descend(self.policy, self.policy_optimizer, ranks, figures):
                return UpdateResult(False, "not_finite", figures)
        return UpdateResult(True, figures=figures)

    def _ascend(
        self, turns: Sequence[PendingBatch], loss_finite: bool, loss_scale: float, device: torch.device
    ) -> UpdateResult:
        """Ascend the detector's loss along the gradient that its backward left."""
        assert self.policy_optimizer is not None
        figures: dict[str, float] = {}
        reached, finite = self._accumulate(turns, loss_finite, loss_scale, figures)
        ranks_reached, ranks_failed = sum_over_ranks([float(reached), float(not finite)], device)
        if ranks_failed:
            self._forget()
            return UpdateResult(False, "not_finite", figures)
        if not ranks_reached:
            self._forget()
            return UpdateResult(False, "no_gradient" if turns else "nothing_pasted", figures)
        if not self._descend(self.policy, self.policy_optimizer, ranks_reached, figures):
            return UpdateResult(False, "not_finite", figures)
        if self.discriminator is not None and self.discriminator_optimizer is not None:
            self._train_discriminator(turns, self.discriminator, self.discriminator_optimizer, figures, device)
        return UpdateResult(True, figures=figures)

    def _accumulate(
        self, turns: Sequence[PendingBatch], loss_finite: bool, loss_scale: float, figures: dict[str, float]
    ) -> tuple[bool, bool]:
        """Fill the policy's gradients; whether the detector's reached it, and whether all is finite."""
        reached, finite = False, loss_finite
        for turn in turns:
            if any(leaf.grad is None for leaf in turn.proposal.leaves) or not finite:
                continue
            scale = turn.image_count / loss_scale
            gradients = [leaf.grad * scale for leaf in turn.proposal.leaves if leaf.grad is not None]
            finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
            if not finite:
                break
            if turn.realism_gradients:
                weight = self._config.discriminator_weight * len(turn.proposal.unit)
                gradients = [g - weight * r for g, r in zip(gradients, turn.realism_gradients, strict=True)]
            torch.autograd.backward(self.policy.objective(turn.proposal, tuple(gradients)) / len(turns))
            figures.update(turn.proposal.metrics)
            reached = True
        return reached, finite

    def _descend(
        self,
        module: nn.Module,
        optimizer: BufferedAdam,
        ranks: float,
        figures: dict[str, float] | None = None,
    ) -> bool:
        """Average the gradients over the ranks that have any, clip them and step; false if they are not finite."""
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        sum_tensors_over_ranks(gradients)
        for gradient in gradients:
            gradient.div_(ranks)
        norm = float(nn.utils.clip_grad_norm_(parameters, self._config.max_gradient_norm))
        if not math.isfinite(norm):
            self._forget()
            return False
        if figures is not None:
            figures["gradient_norm"] = norm
        optimizer.step()
        return True

    def _train_discriminator(
        self,
        turns: Sequence[PendingBatch],
        discriminator: PatchDiscriminator,
        optimizer: BufferedAdam,
        figures: dict[str, float],
        device: torch.device,
    ) -> None:
        discriminator.zero_grad(set_to_none=True)
        seen = False
        for turn in turns:
            if turn.real is None or turn.composite is None or len(turn.real) == 0:
                continue
            with torch.autocast(device.type, enabled=False):
                loss = discriminator_loss(discriminator(turn.real), discriminator(turn.composite))
            torch.autograd.backward(loss)
            figures["discriminator_loss"] = float(loss.detach())
            seen = True
        (ranks,) = sum_over_ranks([float(seen)], device)
        if ranks:
            self._descend(discriminator, optimizer, ranks)

    def _forget(self) -> None:
        self.zero_grad(set_to_none=True)


def _pasted_boxes(target: Target, pastes: Sequence[Paste]) -> Tensor:
    boxes: Tensor = target["boxes"].detach()
    return boxes[[paste.row for paste in pastes if paste.row is not None]]
