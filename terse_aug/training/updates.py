"""How the policy and the discriminator are updated.

The game, one line a player (L the detector's loss on the composite, D the discriminator)::

    policy         ascends   E_q[L] - kl_weight * KL(q || uniform) + w * E log D(composite)
    discriminator  descends  -(E log D(real) + E log(1 - D(composite)))
    detector       descends  L                                            (the training loop's own step, not here)

A policy that learns from hardness descends its own prediction error instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from terse_aug.compositing.compose import Composites, Paste
from terse_aug.policies import Policy, Proposal
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.training.discriminator import PatchDiscriminator, discriminator_loss, object_crops, realism_loss
from terse_aug.training.hardness import PendingBatch
from terse_aug.utils.distributed import sum_over_ranks, sum_tensors_over_ranks
from terse_aug.utils.optimizer import BufferedAdam
from terse_aug.utils.transfer import to_cpu

_GAN_BETAS = (0.5, 0.999)


@dataclass
class UpdateResult:
    """What came of an update.

    Attributes:
        reason: why no update was made; empty if one was, unless a gradient was not finite.
        values: for the log, by name: numbers and scalars on the device.
        norms: of the policy's gradients in all its steps, ``[n]``, on the device; steps whose norm is not finite were
            not made.
    """

    reason: str = ""
    values: dict[str, Tensor | float] = field(default_factory=dict)
    norms: Tensor = field(default_factory=lambda: torch.zeros(0))


class PolicyUpdater(nn.Module):
    """Owns policy and discriminator with their optimizers; their parameters do not belong in the detector's optimizer.

    Args:
        policy: proposes the transforms, and has the settings of its updates.
        seed: of the discriminator's initial weights.
        pixel_format: of the images.

    Attributes:
        policy_fixed: whether the policy composes without learning. Not a part of the state.
        discriminator_fixed: whether :meth:`update` leaves the discriminator as it is. Not a part of the state.
        discriminator_steps: made by :meth:`train_discriminator`. Not a part of the state.
    """

    def __init__(self, policy: Policy, seed: int, pixel_format: PixelFormat) -> None:
        super().__init__()
        self.policy = policy
        self._pixel_format = pixel_format
        self.policy_optimizer: BufferedAdam | None = None
        self.discriminator: PatchDiscriminator | None = None
        self.discriminator_optimizer: BufferedAdam | None = None
        self.policy_fixed, self.discriminator_fixed, self.discriminator_steps = False, False, 0
        if policy.learns:
            self.policy_optimizer = BufferedAdam(policy.parameters(), policy.learning_rate)
            if policy.discriminator_weight > 0 and policy.learns_from == "gradient":
                self.discriminator = PatchDiscriminator(seed)
                parameters = self.discriminator.parameters()
                self.discriminator_optimizer = BufferedAdam(parameters, policy.learning_rate, _GAN_BETAS)

    @property
    def learns(self) -> bool:
        """Whether the policy learns from the batches that it composes."""
        return self.policy.learns and not self.policy_fixed

    def pending_batch(
        self, proposal: Proposal, composites: Composites, images: Sequence[Tensor], targets: Sequence[Target]
    ) -> PendingBatch:
        """Keep what the update will need, before the detector's backward frees the graph.

        Args:
            proposal: made with ``learning``.
            composites: made from it, with their graph.
            images: the batch before pasting.
            targets: likewise.
        """
        if self.policy.learns_from == "hardness":
            return PendingBatch(proposal, len(images), composites=composites)
        pending = PendingBatch(proposal, len(images))
        if self.discriminator is None or not composites.images:
            return pending
        boxes = [
            _pasted_boxes(target, pastes) for target, pastes in zip(composites.targets, composites.pastes, strict=True)
        ]
        crops_pasted = object_crops([self._pixel_format.decode(image) for image in composites.images], boxes)
        if len(crops_pasted) == 0 or not crops_pasted.requires_grad:
            return pending
        with torch.autocast(crops_pasted.device.type, enabled=False):
            loss = realism_loss(self.discriminator(crops_pasted))
        gradients = torch.autograd.grad(loss, proposal.leaves, retain_graph=True, allow_unused=True)
        pending.realism_gradients = tuple(
            torch.zeros_like(leaf) if gradient is None else gradient
            for leaf, gradient in zip(proposal.leaves, gradients, strict=True)
        )
        proposal.metrics["realism"] = -loss.detach()
        pending.real = self._real_crops(images, targets)
        pending.composite = crops_pasted.detach()
        return pending

    def update(
        self,
        pending_batches: Sequence[PendingBatch],
        loss_finite: bool,
        loss_scale: float,
        device: torch.device,
        generator: torch.Generator,
    ) -> UpdateResult:
        """Update the policy; every rank has to call it.

        A step is taken on all ranks or on none; none is taken with anything that is not finite.

        Args:
            pending_batches: since the last update; may be empty on some ranks. A policy that learns from hardness uses
                its replay buffer (:meth:`add_to_replay`) instead.
            loss_finite: whether this rank's loss was finite.
            loss_scale: factor by which the backward's loss was scaled (a GradScaler's).
            device: of the parameters.
            generator: of the samples from the replay buffer.
        """
        if self.policy.learns_from == "hardness":
            return self._replay(loss_finite, device, generator)
        return self._ascend(pending_batches, loss_finite, loss_scale, device)

    def add_to_replay(self, pending_batches: Sequence[PendingBatch]) -> list[dict[str, Tensor | float]]:
        """Add the batches whose hardness is known to the policy's replay buffer.

        Returns:
            Values for the log, of each batch.
        """
        values: list[dict[str, Tensor | float]] = []
        known = [pending for pending in pending_batches if pending.hardness is not None]
        read = to_cpu([pending.hardness for pending in known if pending.hardness is not None])
        for pending, hardness in zip(known, read, strict=True):
            if not bool(hardness.isnan().all()):
                self.policy.add_to_replay(pending.proposal, hardness, pending.class_probabilities)
                values.append(pending.proposal.metrics)
        return values

    def _replay(self, loss_finite: bool, device: torch.device, generator: torch.Generator) -> UpdateResult:
        """Update a policy that learns from hardness on its replay buffer."""
        assert self.policy_optimizer is not None
        objective = self.policy.replay_loss(generator)
        ranks_failed, ranks = sum_over_ranks([float(not loss_finite), float(objective is not None)], device)
        if ranks_failed or not ranks:
            return UpdateResult("not_finite" if ranks_failed else "nothing_pasted")
        norms: list[Tensor] = []
        for _ in range(self.policy.replay_updates):
            self.zero_grad(set_to_none=True)
            if norms:
                objective = self.policy.replay_loss(generator)
            if objective is not None:
                torch.autograd.backward(objective)
            norms.append(self._descend(self.policy, self.policy_optimizer, ranks))
        return UpdateResult("", {"gradient_norm": norms[-1]}, torch.stack(norms))

    def _ascend(
        self, pending_batches: Sequence[PendingBatch], loss_finite: bool, loss_scale: float, device: torch.device
    ) -> UpdateResult:
        """Ascend the detector's loss along the gradient that its backward left."""
        assert self.policy_optimizer is not None
        values: dict[str, Tensor | float] = {}
        reached = loss_finite and self._accumulate(pending_batches, loss_scale, values)
        ranks_reached, ranks_failed = sum_over_ranks([float(reached), float(not loss_finite)], device)
        if ranks_failed or not ranks_reached:
            self.zero_grad(set_to_none=True)
            missing = "no_gradient" if pending_batches else "nothing_pasted"
            return UpdateResult("not_finite" if ranks_failed else missing, values)
        norm = self._descend(self.policy, self.policy_optimizer, ranks_reached)
        if self.discriminator is not None and not self.discriminator_fixed:
            known = [(own.real, own.composite) for own in pending_batches]
            crops = [(real, made) for real, made in known if real is not None and made is not None and len(real)]
            values.update(self._train_discriminator(crops, ~norm.isfinite(), device))
        return UpdateResult("", values | {"gradient_norm": norm}, norm[None])

    def _accumulate(
        self, pending_batches: Sequence[PendingBatch], loss_scale: float, values: dict[str, Tensor | float]
    ) -> bool:
        """Fill the policy's gradients; whether the detector's reached it.

        One that is not finite makes the policy's norm so, on all ranks.
        """
        reached = False
        for pending in pending_batches:
            if any(leaf.grad is None for leaf in pending.proposal.leaves):
                continue
            scale = pending.image_count / loss_scale
            gradients = [leaf.grad * scale for leaf in pending.proposal.leaves if leaf.grad is not None]
            if pending.realism_gradients:
                weight = self.policy.discriminator_weight * len(pending.proposal.unit)
                gradients = [g - weight * r for g, r in zip(gradients, pending.realism_gradients, strict=True)]
            torch.autograd.backward(self.policy.objective(pending.proposal, tuple(gradients)) / len(pending_batches))
            values.update(pending.proposal.metrics)
            reached = True
        return reached

    def _descend(self, module: nn.Module, optimizer: BufferedAdam, ranks: float, skip: Tensor | None = None) -> Tensor:
        """Average the gradients over the ranks that have any, clip them and step, unless they are not finite or
        ``skip`` is true.

        Returns:
            Their norm, which is not waited for.
        """
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        sum_tensors_over_ranks(gradients)
        if ranks != 1:
            torch._foreach_div_(gradients, ranks)
        norm: Tensor = nn.utils.clip_grad_norm_(parameters, self.policy.max_gradient_norm)
        failed = ~norm.isfinite()
        optimizer.step(skip=failed if skip is None else failed | skip)
        return norm

    def train_discriminator(self, images: Sequence[Tensor], targets: Sequence[Target]) -> dict[str, Tensor | float]:
        """Train the discriminator on real objects and on kept composites, beside the detector.

        Args:
            images: float or uint8; composites are those with objects of negative ``ids``, which are the pasted ones.
            targets: theirs. The objects of an image without pastes are real ones.

        Returns:
            Values for the log.
        """
        pasted = [target["ids"] < 0 if "ids" in target else None for target in targets]
        composites = [own is not None and bool(own.any()) for own in pasted]
        real = [number for number, composite in enumerate(composites) if not composite]
        crops_real = self._real_crops([images[number] for number in real], [targets[number] for number in real])
        made = [number for number, composite in enumerate(composites) if composite]
        boxes = [targets[number]["boxes"][pasted[number]] for number in made]
        crops = object_crops([self._pixel_format.decode(images[number].detach()) for number in made], boxes)
        device = images[0].device
        values = self._train_discriminator([(crops_real, crops)], torch.zeros((), dtype=torch.bool), device)
        self.discriminator_steps += bool(values)
        return values

    def _real_crops(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """Crops of the annotated objects that are inside their images and have finite pixels."""
        boxes = [_inside(target["boxes"].detach(), image) for target, image in zip(targets, images, strict=True)]
        crops = object_crops([self._pixel_format.decode(image.detach()) for image in images], boxes)
        return crops[crops.isfinite().flatten(1).all(1)]

    def _train_discriminator(
        self, crops: Sequence[tuple[Tensor, Tensor]], skip: Tensor, device: torch.device
    ) -> dict[str, Tensor | float]:
        """One step on crops of real and of pasted objects; the values for the log."""
        values: dict[str, Tensor | float] = {}
        if self.discriminator is None or self.discriminator_optimizer is None:
            return values
        self.discriminator.zero_grad(set_to_none=True)
        for sides in crops:
            if not any(map(len, sides)):
                continue
            with torch.autocast(device.type, enabled=False):
                real, composite = (self.discriminator(own) if len(own) else own for own in sides)
                loss = discriminator_loss(real, composite)
            torch.autograd.backward(loss)
            values["discriminator_loss"] = loss.detach()
        (ranks,) = sum_over_ranks([float(bool(values))], device)
        if ranks:
            self._descend(self.discriminator, self.discriminator_optimizer, ranks, skip.to(device))
        return values


def _inside(boxes: Tensor, image: Tensor) -> Tensor:
    """The boxes with an area inside the image: those on a device have not been repaired."""
    frame = boxes.new_tensor([image.shape[-1], image.shape[-2]])
    shown = torch.minimum(boxes[:, 2:], frame) - boxes[:, :2].clamp(min=0)
    return boxes[(shown > 0).all(1)]


def _pasted_boxes(target: Target, pastes: Sequence[Paste]) -> Tensor:
    boxes: Tensor = target["boxes"].detach()
    return boxes[[paste.row for paste in pastes if paste.row is not None]]
