"""How hard the pastes of a batch were: recorded from the training forward, from an extra forward, or supplied.

Shape letters: N objects of an image, M pastes of a batch, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from terse_aug.compositing.compose import Composites
from terse_aug.models import GivesClassProbabilities, ModelAdapter, Recorder
from terse_aug.policies import Proposal
from terse_aug.structures.annotations import Target
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.utils.transfer import to_device

_SLACK = 1e-3  # rounding of low precision
_SUM_SLACK = 0.05  # of many roundings

Outcomes = Mapping[int, tuple[Tensor, Tensor | None]]
"""By image: the hardness of its objects ``[N]`` and, if known, the class probabilities ``[N, K]``."""


@dataclass(eq=False)
class PendingBatch:
    """One batch of composites that the policy or the sampler will learn from after the detector's backward.

    Attributes:
        proposal: made with ``learning``.
        image_count: of the batch, to turn the gradient of its mean loss into that of an image.
        realism_gradients: d(-log D) / d leaf, or empty without discriminator.
        real: crops of real objects ``[R, 3, CROP, CROP]``, or ``None``.
        composite: crops of pasted objects, detached, likewise.
        composites: the batch as the detector is trained on it, kept while the hardness is not known.
        recorder: of the training forward, while it runs.
        hardness: float ``[M]`` in [0, 1], NaN where not known; ``None`` as long as nothing is known. On the device
            until :class:`~terse_aug.training.policy_trainer.PolicyTrainer` has read it.
        foregrounds: index in the bank, by row in the proposal, of the pastes with a label; known together with the
            hardness.
        sure: whether an extra forward would find no more.
        class_probabilities: float ``[M, K]``, NaN where not known; ``None`` if the model does not give them.
        loss: of the iteration in which the detector was trained on it, a scalar.
    """

    proposal: Proposal
    image_count: int
    realism_gradients: tuple[Tensor, ...] = ()
    real: Tensor | None = None
    composite: Tensor | None = None
    composites: Composites | None = None
    recorder: Recorder | None = None
    hardness: Tensor | None = None
    class_probabilities: Tensor | None = None
    loss: Tensor | None = None
    foregrounds: dict[int, int] = field(default_factory=dict)
    sure: bool = True

    def store(self, outcomes: Outcomes, classes: int | None) -> None:
        """Take the outcomes of the proposal's pastes; NaN for those without a label.

        Args:
            outcomes: at least for the images with a labelled paste; class probabilities for all of these or for none.
            classes: columns that the policy learns from; ``None`` if it learns from hardness alone.
        """
        assert self.composites is not None
        count, device = len(self.proposal.unit), self.composites.images[0].device
        self.hardness = torch.full((count,), torch.nan, device=device)
        self.class_probabilities = None
        with_pastes = [image for image in range(len(self.composites.pastes)) if self.composites.labelled(image)]
        if not with_pastes:
            return
        rows, first = [], 0
        self.foregrounds = {}
        for image in with_pastes:
            for paste in self.composites.labelled(image):
                rows.append(first + (paste.row or 0))
                self.foregrounds[paste.number or 0] = paste.index
            first += len(outcomes[image][0])
        # Of the whole batch at once: each copy of indices to a device costs as much as a launch.
        (index,) = to_device([torch.tensor([rows, list(self.foregrounds)])], device)
        known = torch.cat([outcomes[image][0].detach().to(self.hardness) for image in with_pastes])
        self.hardness[index[1]] = known[index[0]].clamp(0, 1)
        given = [own for own in (outcomes[image][1] for image in with_pastes) if own is not None]
        if given and classes is not None:
            every = torch.cat([own.detach().to(known) for own in given])
            self.class_probabilities = torch.full((count, every.shape[1]), torch.nan, device=device)
            self.class_probabilities[index[1]] = every[index[0]].clamp(0, 1)

    def check_recorded(self) -> None:
        """Find out whether anything was recorded; waits for the device if the hardness is there."""
        if self.hardness is not None and not self.sure:
            self.sure = not bool(self.hardness.isnan().all())
            self.hardness = self.hardness if self.sure else None

    def by_foreground(self) -> tuple[list[int], list[float]]:
        """Index in the bank and hardness of the pastes whose hardness is known."""
        hardness = [] if self.hardness is None else self.hardness.tolist()
        known = [number for number in self.foregrounds if hardness and not math.isnan(hardness[number])]
        return [self.foregrounds[number] for number in known], [hardness[number] for number in known]


def supplied_outcomes(
    hardness: Sequence[Tensor] | None,
    class_probabilities: Sequence[Tensor] | None,
    targets: Sequence[Target],
    classes: int | None,
) -> Outcomes:
    """Outcomes from what a training loop supplies.

    Args:
        hardness: see :meth:`terse_aug.Terse.observe`.
        class_probabilities: likewise.
        targets: of the batch.
        classes: columns that the policy learns from; ``None`` if it learns from hardness alone.

    Raises:
        ValueError: naming the image, what was expected and what came.
    """
    if (hardness is None) == (class_probabilities is None):
        got = "neither" if hardness is None else "both"
        raise ValueError(f"observe: expected either hardness or class_probabilities, got {got}")
    if hardness is not None:
        _check_values("hardness", hardness, targets)
        return {number: (own, None) for number, own in enumerate(hardness)}
    assert class_probabilities is not None
    _check_rows("class_probabilities", class_probabilities, targets, classes)
    return dict(
        enumerate(_of_probabilities(own, target) for own, target in zip(class_probabilities, targets, strict=True))
    )


def recorded_hardness(pending: PendingBatch) -> Exception | None:
    """Give a batch what its recorder has recorded, unless the hardness is known already; release the model.

    Returns:
        The error, if recording has failed; the hardness is not known then.
    """
    recorder, pending.recorder = pending.recorder, None
    if recorder is None:
        return None
    try:
        composites = pending.composites
        if pending.hardness is None and composites is not None:
            rows = [
                [paste.row for paste in composites.labelled(number) if paste.row is not None]
                for number in range(len(composites.pastes))
            ]
            scores = recorder.scores(composites.images, composites.targets, rows)
            if scores is not None:
                pending.store({number: (1 - own, None) for number, own in enumerate(scores)}, None)
                pending.sure = getattr(recorder, "complete", False)
    except Exception as error:
        pending.hardness = None
        return error
    finally:
        hook_error: Exception | None = getattr(recorder, "error", None)
        recorder.close()
    return hook_error


def extra_forward_hardness(
    pending: PendingBatch, model: ModelAdapter, classes: int | None, pixel_format: PixelFormat
) -> int:
    """Run an extra forward for a batch's pastes, if their hardness is not known; returns the number of images."""
    composites = pending.composites
    if pending.hardness is not None or composites is None:
        return 0
    images = [number for number in range(len(composites.pastes)) if composites.labelled(number)]
    if not images:
        return 0
    composed = pixel_format.as_float([composites.images[number] for number in images])
    outcomes = extra_forward_outcomes(composed, [composites.targets[number] for number in images], model)
    pending.store(dict(zip(images, outcomes, strict=True)), classes)
    return len(images)


def extra_forward_outcomes(
    images: Sequence[Tensor], targets: Sequence[Target], model: ModelAdapter
) -> list[tuple[Tensor, Tensor | None]]:
    """Outcomes of each image from one forward of the model."""
    if isinstance(model, GivesClassProbabilities):
        every = model.class_probabilities(images, targets)
        _check_rows("class_probabilities", every, targets, model.label_limit)
        return [_of_probabilities(own, target) for own, target in zip(every, targets, strict=True)]
    return [(1 - own, None) for own in model.object_scores(images, targets)]


def _of_probabilities(probabilities: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """One minus the probability of each object's own class, NaN where that is no column; and the probabilities."""
    labels = target["labels"].long().to(probabilities.device)
    known = (labels >= 0) & (labels < probabilities.shape[1])
    own = probabilities.gather(1, labels.clamp(0, probabilities.shape[1] - 1)[:, None])[:, 0]
    return torch.where(known, 1 - own, torch.nan), probabilities


def _check_values(name: str, values: Sequence[Tensor], targets: Sequence[Target]) -> None:
    """Refuse what is not a value in [0, 1], or NaN, for each object of each image."""
    for where, own, count in _by_image(name, values, targets):
        if not isinstance(own, Tensor) or own.shape != (count,):
            raise ValueError(
                f"{where}: expected a tensor [{count}], one value for each object of its target, got {_shape(own)}"
            )
        _check_range(where, own)


def _check_rows(name: str, values: Sequence[Tensor], targets: Sequence[Target], classes: int | None) -> None:
    """Refuse what is not a row of probabilities that sum to 1, or of NaN, for each object of each image.

    Args:
        name: of what is checked.
        values: by image.
        targets: by image.
        classes: columns; ``None`` for any number.
    """
    for where, own, count in _by_image(name, values, targets):
        if not isinstance(own, Tensor) or own.ndim != 2 or own.shape != (count, classes or own.shape[1]):
            raise ValueError(
                f"{where}: expected a tensor [{count}, {classes or 'classes'}], the probabilities of all classes for "
                f"each object of its target, got {_shape(own)}"
            )
        _check_range(where, own)
        sums = own.detach().float().sum(1)
        if bool(((sums - 1).abs() > _SUM_SLACK).any()):
            raise ValueError(f"{where}: expected rows that sum to 1, got sums {sums.tolist()[:3]}")


def _by_image(name: str, values: Sequence[Tensor], targets: Sequence[Target]) -> Iterator[tuple[str, Tensor, int]]:
    """For each image its name in messages, its values, and the number of its objects."""
    if len(values) != len(targets):
        raise ValueError(f"{name}: expected a tensor for each of {len(targets)} images, got {len(values)}")
    for number, (own, target) in enumerate(zip(values, targets, strict=True)):
        yield f"{name} of image {number}", own, len(target["boxes"])


def _check_range(where: str, own: Tensor) -> None:
    known = own.detach()[~own.isnan()]
    if len(known) and not (float(known.min()) >= -_SLACK and float(known.max()) <= 1 + _SLACK):
        raise ValueError(f"{where}: expected values in [0, 1], got {float(known.min())} to {float(known.max())}")


def _shape(own: object) -> object:
    return list(own.shape) if isinstance(own, Tensor) else type(own).__name__
