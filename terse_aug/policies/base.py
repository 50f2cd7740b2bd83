"""The interface of a policy.

A policy decides how the foregrounds of a batch are transformed. A new one is one file with a subclass of
:class:`Policy`: hand an instance to ``Terse(policy=...)``, or add it to ``POLICIES`` to give it a name.
Shape letters: B images, M pastes, C candidates for each, P transform parameters, T = THUMBNAIL_SIDE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from terse_aug.policies.real_objects import RealObjects
from terse_aug.transforms import PARAMETERS, Placement, loaded_columns, saved_columns

VIEW_SIDE = 32
"""Side of a view, pixels."""
VIEWS = ("local", "global")
VIEW_CHANNELS = 6
VIEW_SHAPE = (len(VIEWS), VIEW_CHANNELS, VIEW_SIDE, VIEW_SIDE)
COLUMNS_KEY = "columns"
"""Name in the state of a policy under which the names of its columns are saved."""
BOX_NUMBERS = 4
"""Numbers of a view beside the transform."""


@dataclass(frozen=True)
class Views:
    """What candidates would look like; see :mod:`terse_aug.policies.views`.

    Attributes:
        images: float ``[C, M, *VIEW_SHAPE]`` in [0, 1]. Each of ``VIEWS``, a window around the paste and the whole
            image stretched to a square, has RGB with the paste on it, its alpha, a map of the objects that are there
            already, and where the image is.
        numbers: float ``[C, M, P + BOX_NUMBERS]`` on the device of the images, about [-1, 1]: the transform, and center
            and size of the object's bounding box relative to the image.
        placement: of the candidates, ``C * M`` rows, on the CPU.
    """

    images: Tensor
    numbers: Tensor
    placement: Placement | None = None


@dataclass(frozen=True)
class PolicyContext:
    """The input of a policy: M foregrounds and their backgrounds.

    For a policy that chooses among foregrounds (:attr:`Policy.foreground_candidates`), M counts all of them.

    Attributes:
        image_of: int64 ``[M]``, the background of each paste, ascending; on the CPU.
        image_count: B.
        labels: int64 ``[M]``, the class of each foreground; on the CPU.
        device: of the images and of thumbnails and views.
        columns: names of the P columns of a transform, see :attr:`terse_aug.PasteConfig.columns`.
        backgrounds: float ``[B, 4, T, T]``, RGB in [0, 1] and a map of where objects are already; only for policies
            with ``uses_thumbnails``, else ``None``.
        foregrounds: float ``[M, 4, T, T]``, RGB in [0, 1] and alpha, the longer side filling nine tenths; likewise.
        base_size: float ``[M, 2]``, width and height at scale 1 as fractions of the background's; likewise.
        views: from candidates, float ``[C, M, P]`` in the unit cube on the CPU, to their views; only for policies
            with ``uses_views``.
        boxes: from candidates, likewise, to their bounding boxes, float ``[C, M, 4]``, XYXY as fractions of the image
            and not clipped to it, on the CPU; only for policies with ``uses_boxes``.
        real: the real objects of the batch; likewise.
        detector_loss: composes the batch with float ``[M, P]`` transforms in the unit cube and returns the detector's
            loss of each image ``[B]``, without gradients: infinite where it is not finite, NaN where no paste is
            visible and there was no forward; only for policies with ``needs_model``.
    """

    image_of: Tensor
    image_count: int
    labels: Tensor
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    columns: tuple[str, ...] = PARAMETERS
    backgrounds: Tensor | None = None
    foregrounds: Tensor | None = None
    base_size: Tensor | None = None
    views: Callable[[Tensor], Views] | None = None
    boxes: Callable[[Tensor], Tensor] | None = None
    real: RealObjects | None = None
    detector_loss: Callable[[Tensor], Tensor] | None = None


@dataclass
class Proposal:
    """What a policy proposes.

    Attributes:
        unit: float ``[M, P]`` in [0, 1], on the CPU unless a network on a device gives it. With ``learning`` it carries
            a graph that ends at ``leaves``, of a policy that learns from gradients.
        log_density: float ``[M]``, log q(p) with respect to the uniform density on the unit cube; likewise.
        leaves: tensors at which the detector's backward leaves dLoss / d leaf, for :meth:`Policy.objective`.
        outputs: the tensors that the leaves are detached copies of, with the policy's own graph.
        replay_data: what goes into the replay buffer together with the hardness, once that is known; or what
            :meth:`Policy.add_boxes` takes.
        rows: int64, ascending, on the CPU: the rows of the context that are pasted, where there were several
            foregrounds for a paste or pastes are left out; M then counts the pastes.
        placement: of ``unit``, on the same device, where the policy has computed it.
        extra_forwards: detector forwards of one image each that the choice has cost.
        metrics: values for the log, numbers or scalars on the device.
    """

    unit: Tensor
    log_density: Tensor
    leaves: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    replay_data: tuple[Tensor, ...] = ()
    rows: Tensor | None = None
    placement: Placement | None = None
    extra_forwards: int = 0
    metrics: dict[str, Tensor | float] = field(default_factory=dict)


class Policy(nn.Module):
    """Base class: ``propose`` is all that a policy which does not learn has to define.

    One training iteration of a policy that learns from gradients::

        proposal = policy.propose(context, generator, learning)
        composites = compose(plan, proposal.unit)
        detector(composites).backward()            # the training loop's own; fills leaf.grad of a learning proposal
        policy.objective(proposal, gradients).backward()
        optimizer.step()                           # Terse's own

    and of one that learns from hardness::

        proposal = policy.propose(context, generator, learning)
        hardness = 1 - detector's score of each object in compose(plan, proposal.unit)
        policy.add_to_replay(proposal, hardness, class_probabilities)
        policy.replay_loss(generator).backward()   # replay_updates times
        optimizer.step()
    """

    learns = False
    """Whether it has parameters that are trained beside the detector."""
    learns_from: Literal["gradient", "hardness"] = "gradient"
    """What it learns from, if it learns."""
    update_interval = 4
    """Iterations between two updates."""
    learning_rate = 1e-3
    """Adam step size."""
    max_gradient_norm = 1.0
    """Gradients are clipped to this norm."""
    discriminator_weight = 0.0
    """Weight of realism in the objective of a policy that learns from gradients; 0 for no discriminator."""
    replay_updates = 1
    """Optimizer steps in an update, of a policy that learns from hardness."""
    classes: int | None = None
    """Classes whose probabilities it learns from, if it learns from hardness; ``None`` for hardness alone."""
    columns: tuple[str, ...] | None = None
    """The columns of the transforms that it proposes; ``None`` where it takes them from the context."""
    foreground_candidates = 1
    """Foregrounds that are drawn for each paste, from which ``propose`` chooses one."""
    mix_classes = False
    """Whether these may be of different classes."""
    uses_thumbnails = False
    """Whether ``propose`` uses the thumbnails in the context."""
    uses_views = False
    """Whether ``propose`` calls ``context.views``."""
    uses_boxes = False
    """Whether ``propose`` uses boxes of candidates and of real objects; :meth:`add_boxes` is then called with the
    proposal of each batch that is trained on."""
    needs_model = False
    """Whether ``propose`` calls ``context.detector_loss``."""
    in_workers = False
    """Whether ``propose`` is a function of its arguments alone, so that it can run in a data loader's workers."""
    ahead = False
    """Whether ``propose`` is a function of its arguments and :meth:`acting_state` alone, so that a copy can do it
    ahead; not for a policy that learns from gradients."""

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        """Propose transforms.

        Args:
            context: what is to be composed.
            generator: the only source of randomness, on the CPU.
            learning: whether the policy will learn from this proposal.
        """
        raise NotImplementedError

    def acting_state(self) -> list[Tensor]:
        """What ``propose`` depends on, of a policy with ``ahead``: the parameters, unless a subclass says otherwise."""
        return list(self.parameters())

    def add_boxes(self, proposal: Proposal) -> None:
        """Learn from the boxes that ``propose`` has put into ``replay_data``; only for a policy with ``uses_boxes``."""
        raise NotImplementedError

    def objective(self, proposal: Proposal, gradients: tuple[Tensor, ...]) -> Tensor:
        """A scalar whose gradient is the direction in which the policy has to descend.

        Args:
            proposal: one that was made with ``learning``.
            gradients: dLoss / d leaf for each of its leaves, for the loss of an image (not of the batch mean).
        """
        raise NotImplementedError

    def add_to_replay(self, proposal: Proposal, hardness: Tensor, class_probabilities: Tensor | None = None) -> None:
        """Put the pastes of a proposal into the replay buffer.

        Args:
            proposal: one that was made with ``learning``.
            hardness: float ``[M]`` in [0, 1], one minus the detector's score; NaN where not known; on the CPU.
            class_probabilities: float ``[M, K]``, the detector's probability of every class, rows of NaN where not
                known; ``None`` where it gives only that of the object's class. Only for a policy with ``classes``,
                which is K.
        """
        raise NotImplementedError

    def replay_loss(self, generator: torch.Generator) -> Tensor | None:
        """A scalar over a sample of the replay buffer, to descend; ``None`` where the buffer is empty.

        Args:
            generator: the only source of randomness, on the CPU.
        """
        raise NotImplementedError

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.columns is not None:
            destination[prefix + COLUMNS_KEY] = saved_columns(self.columns)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        saved = state_dict.pop(prefix + COLUMNS_KEY, None)
        if self.columns is not None and any(name.startswith(prefix) for name in state_dict):
            check_columns(loaded_columns(saved), self.columns)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def check_columns(saved: Sequence[str], own: Sequence[str]) -> None:
    """Refuse the state of a policy whose transforms have other columns, or the same in another order.

    Args:
        saved: names of the columns that the state was saved with.
        own: of the policy that it is for.

    Raises:
        ValueError: naming those that differ.
    """
    if tuple(saved) == tuple(own):
        return
    differences = {
        "was saved with": [name for name in saved if name not in own],
        "was saved without": [name for name in own if name not in saved],
    }
    texts = [f"{text} {', '.join(names)}" for text, names in differences.items() if names]
    raise ValueError(
        f"the policy's state {' and '.join(texts) or 'has the columns ' + ', '.join(saved) + ' in this order'}, but "
        f"transforms have the columns {', '.join(own)} here: give PasteConfig the photometric ranges and blends that "
        "the state was saved with, or leave the state out, so that the policy starts untrained"
    )


def uniform_proposal(
    count: int, generator: torch.Generator, rows: Tensor | None = None, columns: Sequence[str] = PARAMETERS
) -> Proposal:
    """Transforms drawn uniformly from the allowed ranges, on the CPU."""
    return Proposal(torch.rand(count, len(columns), generator=generator), torch.zeros(count), rows=rows)
