"""What recorded hardness is compared with: scores by definition, and a training without recording."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import box_iou


def best_scores(
    boxes: Tensor, scores: Tensor, objects: Tensor, labels: Tensor, iou_thresholds: tuple[float, ...]
) -> list[float]:
    """For each object the best score of its class among the boxes that overlap it, averaged over least overlaps.

    Args:
        boxes: ``[Q, 4]``.
        scores: ``[Q, K]``.
        objects: ``[N, 4]``.
        labels: ``[N]``.
        iou_thresholds: least overlaps.
    """
    found = []
    for own, label in zip(objects.double(), labels.tolist(), strict=True):
        overlap, own_class = box_iou(own[None], boxes.double())[0], scores[:, label]
        best = [max([0.0, *own_class[overlap >= least].tolist()]) for least in iou_thresholds]
        found.append(sum(best) / len(best))
    return found


def decoded_deltas(anchors: Tensor, deltas: Tensor, weights: Any = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes ``[Q, 4]`` of R-CNN's regressions (Ren et al. 2015, equation 2)."""
    dx, dy, dw, dh = (deltas / deltas.new_tensor(weights)).unbind(1)
    size = anchors[:, 2:] - anchors[:, :2]
    center = anchors[:, :2] + size / 2
    limit = math.log(1000 / 16)
    center = center + torch.stack([dx, dy], 1) * size
    size = size * torch.stack([dw, dh], 1).clamp(max=limit).exp()
    return torch.cat([center - size / 2, center + size / 2], 1)


def refined_scores(
    proposals: Tensor,
    probabilities: Tensor,
    regression: Tensor,
    objects: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    iou_thresholds: tuple[float, ...],
) -> list[float]:
    """As :func:`best_scores`, of the proposals as an RoI head refines them; annotated boxes among them do not count.

    Args:
        proposals: ``[P, 4]``.
        probabilities: ``[P, K]``.
        regression: ``[P, 4]``, or ``[P, 4 * K]`` for each class.
        objects: ``[N, 4]``.
        labels: ``[N]``.
        size: (height, width) of the image in the model.
        iou_thresholds: least overlaps.
    """
    other = box_iou(proposals, objects).amax(1) < 0.99
    proposals, probabilities, regression = proposals[other], probabilities[other], regression[other]
    scores = []
    for own, label in zip(objects, labels, strict=True):
        column = 4 * int(label) if regression.shape[1] > 4 else 0
        refined = decoded_deltas(proposals, regression[:, column : column + 4], (10.0, 10.0, 5.0, 5.0))
        refined = torch.minimum(refined.clamp(min=0), torch.tensor([size[1], size[0]] * 2))
        scores += best_scores(refined, probabilities, own[None], label[None], iou_thresholds)
    return scores


def decoded_distances(anchors: Tensor, distances: Tensor) -> Tensor:
    """Boxes ``[Q, 4]`` from the distances of their sides in units of the anchors' size (FCOS)."""
    size = anchors[:, 2:] - anchors[:, :2]
    center, distances = anchors[:, :2] + size / 2, distances.clamp(min=0)
    return torch.cat([center - distances[:, :2] * size, center + distances[:, 2:] * size], 1)


@contextlib.contextmanager
def counted_reads() -> Iterator[list[str]]:
    """The operations that would wait for a device."""
    with _Reads() as mode:
        yield mode.found


class _Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            self.found.append(name)
        elif name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1]):
            self.found.append("index by a mask")
        return func(*args, **(kwargs or {}))


def trained(model: Any, losses_of: Callable[[], Any], record: Callable[[], Any] | None) -> dict[str, Any]:
    """Losses, gradients and random state after a forward and backward, with or without a recorder."""
    torch.manual_seed(5)
    model.zero_grad()
    recorder = record() if record is not None else None
    losses = losses_of()
    total = sum(torch.as_tensor(value).sum() for value in losses)
    total.backward()
    after = {
        "losses": [torch.as_tensor(value).detach().clone() for value in losses],
        "gradients": [None if one.grad is None else one.grad.clone() for one in model.parameters()],
        "random": torch.get_rng_state(),
    }
    if recorder is not None:
        after["recorder"] = recorder
    return after


def assert_same_training(plain: dict[str, Any], recorded: dict[str, Any]) -> None:
    """Recording has changed neither losses nor gradients nor the random state."""
    assert any(one is not None and bool(one.any()) for one in plain["gradients"])
    for name in ("losses", "gradients"):
        for own, other in zip(plain[name], recorded[name], strict=True):
            assert (own is None and other is None) or torch.equal(own, other)
    assert torch.equal(plain["random"], recorded["random"])
