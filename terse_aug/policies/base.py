"""The interface of a policy. Imports torch only.

A policy decides how the cut-outs of a batch are transformed. A new one is one file with a subclass of
:class:`Policy`; hand an instance to ``Terse(policy=...)``, or add it to ``POLICIES`` to give it a name.
Shape letters: B images, M pastes, P transform parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from terse_aug.transforms import PARAMETERS

THUMBNAIL = 32
"""Side of the pictures that a policy sees, pixels."""
FOREGROUND_FILL = 0.9
"""Share of a cut-out's picture that its larger side fills."""
VIEW_SIDE = 32
"""Side of a glimpse, pixels."""
VIEWS = ("window", "image")
VIEW_CHANNELS = 6
VIEW_SHAPE = (len(VIEWS), VIEW_CHANNELS, VIEW_SIDE, VIEW_SIDE)
VIEW_NUMBERS = len(PARAMETERS) + 4


@dataclass(frozen=True)
class Views:
    """How candidates would look, small; see :mod:`terse_aug.policies.views`.

    Attributes:
        pictures: float ``[C, M, *VIEW_SHAPE]`` in [0, 1], for each of ``VIEWS``, which are a window
            around the paste and the whole image stretched to a square: RGB with the paste on it, its alpha, a map
            of the objects that are there already, and where the image is.
        figures: float ``[C, M, VIEW_NUMBERS]`` in [-1, 1] or a little more: the transform, and the middle and
            the extent of the object's bounding box relative to the image.
    """

    pictures: Tensor
    figures: Tensor


@dataclass(frozen=True)
class PolicyContext:
    """What a policy may look at: M cut-outs and the backgrounds that they go on.

    Of a policy that is offered several cut-outs for each paste (:attr:`Policy.foreground_candidates`), M counts all of them.

    Attributes:
        image_of: int64 ``[M]``, the background of each paste, ascending.
        image_count: B.
        labels: int64 ``[M]``, the class of each cut-out.
        backgrounds: float ``[B, 4, THUMBNAIL, THUMBNAIL]``, RGB in [0, 1] and a map of where objects are
            already; only for policies with ``uses_thumbnails``, else ``None``.
        foregrounds: float ``[M, 4, THUMBNAIL, THUMBNAIL]``, RGB in [0, 1] and alpha, the larger side filling
            nine tenths; likewise.
        natural_size: float ``[M, 2]``, width and height at scale 1 as fractions of the background's; likewise.
        glimpse: how candidates, float ``[C, M, P]`` unit parameters, would look; only for policies with
            ``uses_views``.
        detector_loss: composes the scene with float ``[M, P]`` unit parameters and returns the detector's loss
            of each image ``[B]``, without gradients: infinite where it is none, NaN where no paste shows and the
            detector was not asked; ``None`` where Terse was given no target.
    """

    image_of: Tensor
    image_count: int
    labels: Tensor
    backgrounds: Tensor | None = None
    foregrounds: Tensor | None = None
    natural_size: Tensor | None = None
    glimpse: Callable[[Tensor], Views] | None = None
    detector_loss: Callable[[Tensor], Tensor] | None = None


@dataclass
class Proposal:
    """What a policy proposes.

    Attributes:
        unit: float ``[M, P]`` in [0, 1]. With ``learning`` it carries a graph that ends at ``leaves``.
        log_density: float ``[M]``, log q(p) with respect to the uniform density on the unit cube.
        leaves: tensors at which the detector's backward leaves dLoss / d leaf, for :meth:`Policy.objective`.
        outputs: the tensors that the leaves are detached copies of, with the policy's own graph.
        replay_data: what a policy that learns from hardness wants back when the hardness is known.
        rows: int64, on the CPU: for each paste the row of the scene whose cut-out was taken, where several were
            offered; M then counts the pastes.
        extra_forwards: detector forwards of one image each that the choice has cost.
    """

    unit: Tensor
    log_density: Tensor
    leaves: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    replay_data: tuple[Tensor, ...] = ()
    rows: Tensor | None = None
    extra_forwards: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


class Policy(nn.Module):
    """Base class: ``propose`` is all that a policy which does not learn has to write.

    The life of a policy that learns from gradients, in one training iteration::

        proposal = policy.propose(scene, generator, learning)
        composites = compose(scene, proposal.unit)
        detector(composites).backward()            # the host's; fills leaf.grad of a learning proposal
        policy.objective(proposal, gradients).backward()
        optimizer.step()                           # Terse's own

    and of one that learns from hardness::

        proposal = policy.propose(scene, generator, learning)
        hardness = 1 - detector's probability of each object in compose(scene, proposal.unit)
        policy.remember(proposal, hardness, chances)
        policy.rehearse(generator).backward()      # some times
        optimizer.step()
    """

    learns = False
    """Whether it has parameters that move with the detector."""
    learns_from: Literal["gradient", "hardness"] = "gradient"
    """What it learns from, if it learns."""
    replay_updates = 1
    """Optimizer steps in a move of one that learns from hardness."""
    classes: int | None = None
    """Columns of the chances it learns from, for one that learns from hardness; ``None`` for hardness alone."""
    foreground_candidates = 1
    """Cut-outs that are drawn for each paste, of which ``propose`` takes one."""
    mix_classes = False
    """Whether the cut-outs of a paste may be of different classes; else all are of one, as frequent as it is."""
    uses_thumbnails = False
    """Whether ``propose`` looks at the pictures in the scene."""
    uses_views = False
    """Whether ``propose`` calls ``scene.glimpse``."""
    needs_model = False
    """Whether ``propose`` calls ``scene.detector_loss``."""

    def propose(self, scene: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
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

    def add_to_replay(self, proposal: Proposal, hardness: Tensor, chances: Tensor | None = None) -> None:
        """Take in how hard the pastes of a proposal turned out.

        Args:
            proposal: one that was made with ``learning``.
            hardness: float ``[M]`` in [0, 1], one minus the detector's probability; NaN where not known.
            chances: float ``[M, K]``, the detector's probability of every class, rows of NaN where not known; ``None``
                where it tells only that of the right one. Given only to a policy with ``classes``, which is K.
        """
        raise NotImplementedError

    def replay_loss(self, generator: torch.Generator) -> Tensor | None:
        """A scalar over what is remembered, whose gradient is the direction to descend; ``None`` with no memory.

        Args:
            generator: the only source of randomness, on the CPU.
        """
        raise NotImplementedError


def uniform_proposal(
    count: int, generator: torch.Generator, device: torch.device, rows: Tensor | None = None
) -> Proposal:
    """Transforms drawn uniformly from the allowed ranges."""
    unit = torch.rand(count, len(PARAMETERS), generator=generator).to(device)
    return Proposal(unit, torch.zeros(count, device=device), rows=rows)
