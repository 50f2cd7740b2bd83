"""Which cut-outs go on which images, and how they look at the size they will have. Imports torch, numpy, OpenCV.

Shape letters: B images, M pastes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.bank import Foreground
from terse_aug.config import TerseConfig
from terse_aug.data.auxiliary_objects import AuxiliaryObjects, draw_distractors, draw_occludees
from terse_aug.data.foreground_cache import ForegroundCache, ForegroundLike
from terse_aug.data.foreground_loader import SampledForegrounds
from terse_aug.policies import Policy
from terse_aug.samplers import DrawRequest, Sampler
from terse_aug.structures.pixel_format import PixelFormat
from terse_aug.transforms import PARAMETERS, PasteGeometry
from terse_aug.utils.distributed import rank, rank_count

_DECOY_TRIES = 8

CutOut = TypeVar("CutOut", bound=ForegroundLike, covariant=True)


@dataclass(frozen=True)
class PastePlan(Generic[CutOut]):
    """What is pasted where, before a policy has said how; or what is offered to it, of which it takes some.

    Attributes:
        image_of: the image of each paste, ascending; M entries.
        indices: the bank's index of each cut-out.
        foregrounds: the cut-outs; of those that are offered the looks.
        mirrored: whether each is mirrored left to right.
        decoys: decoys, to be pasted before the objects.
        distractors: distractors, likewise.
        behind: objects of other classes behind pastes, likewise.
    """

    image_of: list[int]
    indices: list[int]
    foregrounds: Sequence[CutOut]
    mirrored: list[bool]
    decoys: list[Decoy]
    distractors: AuxiliaryObjects = field(default_factory=AuxiliaryObjects.none)
    behind: AuxiliaryObjects = field(default_factory=AuxiliaryObjects.none)

    def taken(self, shelf: ForegroundCache, chosen: Tensor | None = None) -> PastePlan[Foreground]:
        """The same with whole cut-outs, and of the entries only the chosen rows, where these are given."""
        rows: list[int] = list(range(len(self.indices))) if chosen is None else chosen.tolist()
        shown = [self.foregrounds[row] for row in rows]
        indices = [self.indices[row] for row in rows]
        whole = [
            own if isinstance(own, Foreground) else shelf.foreground(index)
            for index, own in zip(indices, shown, strict=True)
        ]
        shelf.put_back()
        image_of, mirrored = [self.image_of[row] for row in rows], [self.mirrored[row] for row in rows]
        return PastePlan(image_of, indices, whole, mirrored, self.decoys, self.distractors, self.behind)


@dataclass(frozen=True)
class Decoy:
    """A piece of background in the shape of an object: teaches that a pasted edge is not an object.

    After TERSE (CVPR 2019, section 3.1, blending artefacts).

    Attributes:
        image: the image it goes on.
        source: the image its pixels come from.
        foreground: the cut-out whose shape it has.
        units: float ``[n, P]``, transforms in the unit cube in the order of preference, always uniform.
        corners: float pairs in [0, 1], where in the source its pixels may lie, in the order of preference.
    """

    image: int
    source: int
    foreground: Foreground
    units: Tensor
    corners: list[tuple[float, float]]


def plan_pastes(
    shelf: ForegroundCache,
    usable: Sequence[bool],
    config: TerseConfig,
    generator: torch.Generator,
    sampler: Sampler,
    policy: Policy,
    sampled: Sequence[SampledForegrounds] | None = None,
    background_draws: Mapping[int, Sequence[int]] | None = None,
    distractors: ForegroundCache | None = None,
) -> PastePlan[ForegroundLike]:
    """Draw numbers of objects and cut-outs for a batch.

    Args:
        shelf: of a bank that is not empty.
        usable: for each image whether it may be pasted on.
        config: ``objects``, ``image_probability``, ``mirror_probability``, ``decoys``, ``distractors`` and
            ``superimpose_probability``.
        generator: the only source of randomness.
        sampler: of the bank's cut-outs.
        policy: says how many cut-outs are offered for each paste; the entries of the layout that belong to one follow
            one another.
        parcels: for each image how many and which cut-outs were drawn already; the shelf has them at hand.
        visits: by image the cut-outs of those for which they were drawn with their background.
        distractors: of the bank of distractors.
    """
    background_draws = background_draws or {}
    pasted = torch.rand(len(usable), generator=generator) < config.image_probability
    counts = torch.randint(config.objects[0], config.objects[1] + 1, (len(usable),), generator=generator)
    decoy_counts = torch.randint(config.decoys[0], config.decoys[1] + 1, (len(usable),), generator=generator)
    if sampled is not None:
        pasted = counts = torch.tensor([len(sample.objects) // sample.foreground_candidates for sample in sampled])
        decoy_counts = torch.tensor([len(sample.decoys) for sample in sampled])
    foreground_candidates = policy.foreground_candidates
    numbers = {
        image: len(background_draws[image]) // foreground_candidates
        if image in background_draws
        else int(counts[image])
        for image, usable_here in enumerate(usable)
        if image in background_draws or (usable_here and bool(pasted[image]) and int(counts[image]))
    }
    decoys: list[Decoy] = []
    sources = [index for index, other in enumerate(usable) if other]
    for image in numbers:
        for number in range(int(decoy_counts[image])):
            known = None if sampled is None else sampled[image].decoys[number]
            decoys.append(_draw_decoy(shelf, image, sources, generator, known))
    own = [image for image in numbers if image not in background_draws and sampled is None]
    demand = DrawRequest(
        [numbers[image] for image in own], foreground_candidates, policy.mix_classes, rank(), rank_count()
    )
    drawn = iter(sampler.draw(demand, generator))
    indices: list[int] = []
    for image, number in numbers.items():
        given = background_draws.get(image, None if sampled is None else sampled[image].objects)
        indices += [next(drawn) for _ in range(number * foreground_candidates)] if given is None else given
    image_of = [image for image, number in numbers.items() for _ in range(number * foreground_candidates)]
    mirrored = (torch.rand(len(image_of), generator=generator) < config.mirror_probability).tolist()
    shown: Sequence[ForegroundLike] = list(map(shelf.foreground if foreground_candidates == 1 else shelf.look, indices))
    layout = PastePlan(image_of, indices, shown, mirrored, decoys)
    if distractors is not None:
        layout = replace(layout, distractors=draw_distractors(distractors, list(numbers), config, generator))
    if config.superimpose_probability > 0:
        labels = [
            {each.label for each in shown[first : first + foreground_candidates]}
            for first in range(0, len(shown), foreground_candidates)
        ]
        layout = replace(
            layout,
            behind=draw_occludees(
                shelf,
                sampler.foregrounds,
                image_of[::foreground_candidates],
                labels,
                sampler.possible_labels(),
                config,
                generator,
            ),
        )
    return layout


def _draw_decoy(
    shelf: ForegroundCache, image: int, sources: Sequence[int], generator: torch.Generator, known: int | None
) -> Decoy:
    index = int(torch.randint(len(shelf), (1,), generator=generator)) if known is None else known
    source = sources[int(torch.randint(len(sources), (1,), generator=generator))]
    units = torch.rand(_DECOY_TRIES, len(PARAMETERS), generator=generator)
    corners = [(x, y) for x, y in torch.rand(_DECOY_TRIES, 2, generator=generator).tolist()]
    return Decoy(image, source, shelf.foreground(index), units, corners)


def paste_geometry(
    foregrounds: Sequence[ForegroundLike],
    mirrored: Sequence[bool],
    frames: Sequence[tuple[int, int]],
    like: Tensor,
) -> PasteGeometry:
    """Sizes, natural scales and outlines of M pastes.

    Args:
        foregrounds: M cut-outs.
        mirrored: M flags.
        frames: (H, W) of each paste's background.
        like: gives dtype and device.
    """
    sizes = [foreground.size for foreground in foregrounds]
    natural = [
        foreground.relative_size * math.sqrt(height * width) / max(size)
        for foreground, size, (height, width) in zip(foregrounds, sizes, frames, strict=True)
    ]
    return PasteGeometry(
        like.new_tensor(sizes).view(-1, 2),
        like.new_tensor([(width, height) for height, width in frames]).view(-1, 2),
        like.new_tensor(natural),
        like.new_tensor([-1.0 if flag else 1.0 for flag in mirrored]),
        _padded([foreground.outline for foreground in foregrounds], like),
    )


def _padded(outlines: Sequence[NDArray[np.float32]], like: Tensor) -> Tensor | None:
    """Outlines ``[n_i, 2]`` as one tensor ``[M, n, 2]``: the last point of the shorter ones is repeated."""
    if not outlines:
        return None
    filled = np.empty((len(outlines), max(map(len, outlines)), 2), np.float32)
    for own, outline in zip(filled, outlines, strict=True):
        own[: len(outline)] = outline
        own[len(outline) :] = outline[-1]
    return torch.from_numpy(filled).to(like)


def reduced_cutout(foreground: Foreground, shrink: float) -> NDArray[np.uint8]:
    """A cut-out at a size from which a bilinear warp takes it to its last.

    Args:
        foreground: the cut-out.
        shrink: largest factor by which it will be scaled; below one half it is first reduced by area averaging,
            or the bilinear warp would skip pixels.

    Returns:
        uint8 ``[h', w', 4]``, RGBA.
    """
    rgba = foreground.rgba
    if shrink > 0.5:
        return rgba
    height, width = rgba.shape[:2]
    factor = 2.0 ** math.floor(math.log2(1 / max(shrink, 1e-6)))
    return _area_averaged(rgba, (max(round(width / factor), 1), max(round(height / factor), 1)))


def cutout_tensor(rgba: NDArray[np.uint8], pixels: PixelFormat, like: Tensor) -> Tensor:
    """A cut-out uint8 ``[h, w, 4]`` as the compositor wants it.

    Args:
        rgba: the cut-out.
        pixels: format of its colours.
        like: gives dtype and device.

    Returns:
        float ``[4, h, w]``.
    """
    planes = torch.from_numpy(np.array(rgba.transpose(2, 0, 1), order="C")).to(like.device)
    scaled = planes.to(like.dtype).mul_(1 / 255)
    if pixels.identity:
        return scaled
    return torch.cat([pixels.encode(scaled[:3]), scaled[3:]])


def _area_averaged(rgba: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Reduce to ``size`` (width, height); colour is weighted by alpha, or what surrounds the object would bleed in."""
    plain = cv2.resize(rgba, size, interpolation=cv2.INTER_AREA).reshape(size[1], size[0], 4)
    if plain[..., 3].min() == 255:
        return np.asarray(plain, dtype=np.uint8)
    weighted = cv2.resize(cv2.cvtColor(rgba, cv2.COLOR_RGBA2mRGBA), size, interpolation=cv2.INTER_AREA)
    straight = cv2.cvtColor(weighted.reshape(size[1], size[0], 4), cv2.COLOR_mRGBA2RGBA)
    return np.where(plain[..., 3:] > 0, straight, plain).astype(np.uint8)
