"""The interface of a policy. Imports torch only.

A policy decides how the cut-outs of a batch are transformed. A new one is one file with a subclass of
:class:`Policy`; hand an instance to ``Terse(policy=...)``, or add it to ``POLICIES`` to give it a name.
Shape letters: B images, M pastes, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from terse_aug._transforms import PARAMETERS

THUMBNAIL = 32
"""Side of the pictures that a policy sees, pixels."""


@dataclass(frozen=True)
class Scene:
    """What a policy may look at: M cut-outs and the backgrounds that they go on.

    Attributes:
        image_of: int64 ``[M]``, the background of each paste, ascending.
        image_count: B.
        labels: int64 ``[M]``, the class of each cut-out.
        backgrounds: float ``[B, 4, THUMBNAIL, THUMBNAIL]``, RGB in [0, 1] and a map of where objects are
            already; only for policies with ``sees_pixels``, else ``None``.
        foregrounds: float ``[M, 4, THUMBNAIL, THUMBNAIL]``, RGB in [0, 1] and alpha, the larger side filling
            nine tenths; likewise.
        natural_size: float ``[M, 2]``, width and height at scale 1 as fractions of the background's; likewise.
        detector_loss: composes the scene with float ``[M, P]`` unit parameters and returns the detector's loss
            of each image ``[B]``, without gradients; ``None`` where Terse was given no target.
    """

    image_of: Tensor
    image_count: int
    labels: Tensor
    backgrounds: Tensor | None = None
    foregrounds: Tensor | None = None
    natural_size: Tensor | None = None
    detector_loss: Callable[[Tensor], Tensor] | None = None


@dataclass
class Proposal:
    """What a policy proposes.

    Attributes:
        unit: float ``[M, P]`` in [0, 1]. With ``learning`` it carries a graph that ends at ``leaves``.
        log_density: float ``[M]``, log q(p) with respect to the uniform density on the unit cube.
        leaves: tensors at which the detector's backward leaves dLoss / d leaf, for :meth:`Policy.objective`.
        outputs: the tensors that the leaves are detached copies of, with the policy's own graph.
        extra_forwards: detector forwards of one image each that the choice has cost.
    """

    unit: Tensor
    log_density: Tensor
    leaves: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    extra_forwards: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class Policy(nn.Module):
    """Base class: ``propose`` is all that a policy which does not learn has to write.

    The life of a policy in one training iteration::

        proposal = policy.propose(scene, generator, learning)
        composites = compose(scene, proposal.unit)
        detector(composites).backward()            # the host's; fills leaf.grad of a learning proposal
        policy.objective(proposal, gradients).backward()
        optimizer.step()                           # Terse's own
    """

    learns = False
    """Whether it has parameters that the detector's gradient moves."""
    sees_pixels = False
    """Whether ``propose`` looks at the pictures in the scene."""
    needs_target = False
    """Whether ``propose`` calls ``scene.detector_loss``."""

    def propose(self, scene: Scene, generator: torch.Generator, learning: bool) -> Proposal:
        """Propose transforms.

        Args:
            scene: what is to be composed.
            generator: the only source of randomness, on the CPU.
            learning: whether the detector's gradient for this proposal will be used.
        """
        raise NotImplementedError

    def objective(self, proposal: Proposal, gradients: tuple[Tensor, ...]) -> Tensor:
        """A scalar whose gradient is the direction in which the policy has to descend.

        Args:
            proposal: one that was made with ``learning``.
            gradients: dLoss / d leaf for each of its leaves, for the loss of an image (not of the batch mean).
        """
        raise NotImplementedError


def uniform_proposal(count: int, generator: torch.Generator, device: torch.device) -> Proposal:
    """Transforms drawn uniformly from the allowed ranges."""
    unit = torch.rand(count, len(PARAMETERS), generator=generator).to(device)
    return Proposal(unit, torch.zeros(count, device=device))
