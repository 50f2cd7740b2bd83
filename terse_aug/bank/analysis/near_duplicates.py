"""Near duplicates among foregrounds. Pure functions.

Two foregrounds are near duplicates where their perceptual hashes, their thumbnails and the ratios of their sides are
close. Thumbnails are compared where one of them is visible: in a thin, slanted object most pixels are transparent, and
so equal to those of any other. Hash and thumbnail do not show the ratio of the sides.

The search goes by hashes: each is split into four bands of 16 bits, and hashes that differ in at most seven bits differ
in at most one in some band (two in each of four would be eight). So every pair within seven bits is found by looking up
each band, and each band with one bit flipped, in tables of all bands: in real banks up to one percent of all pairs is
compared. Pairs are linked to chains, and chains split into groups around their first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_HASH_DISTANCE = 7
"""Largest number of differing bits; all such pairs are found."""

_SIDE = 32
_THUMBNAIL = 8
_BANDS, _BAND_BITS = 4, 16
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
_FREQUENCIES = sorted((u + v, u, v) for u in range(12) for v in range(12))[1:65]
_ROWS, _COLUMNS = (np.array([frequency[axis] for frequency in _FREQUENCIES]) for axis in (1, 2))
_MAX_THUMBNAIL_DIFFERENCE = 16.0
_MAX_RATIO = 0.05
"""Largest difference of the logarithms of two ratios of sides, beside what rounding to whole pixels may do."""
_MAX_COMPARISONS = 1_000_000_000  # about a minute on one core
_PAIRS_AT_ONCE = 1 << 20
_BIT_COUNTS = np.array([bin(number).count("1") for number in range(1 << 16)], np.uint8)


@dataclass(frozen=True)
class Appearance:
    """A foreground at any size: a hash of 64 bits, and a thumbnail uint8 ``[8, 8, 4]``, RGB times alpha and alpha."""

    bits: np.uint64
    thumbnail: NDArray[np.uint8]


@dataclass(frozen=True)
class NearDuplicates:
    """Groups of foregrounds that look alike.

    Attributes:
        groups: for each group the positions of its members, ascending, int64 ``[at least 2]``; the largest group first.
        complete_distance: all pairs of hashes that differ in at most so many bits were compared; -1 where not even
            all equal ones were.
        comparisons: number of pairs that were compared.
    """

    groups: list[NDArray[np.int64]]
    complete_distance: int
    comparisons: int


def appearance_of(rgba: NDArray[np.uint8]) -> Appearance:
    """A perceptual hash and a thumbnail of a foreground, uint8 ``[h, w, 4]``, straight alpha.

    The hash resembles pHash (Zauner 2010): the foreground is scaled to 32 x 32 px; its brightness, from one half to 1,
    times alpha is cosine-transformed; each of the 64 lowest frequencies but the lowest gives one bit, whether it
    is above their median.
    """
    small = cv2.resize(rgba, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    alpha = small[:, :, 3]
    waves = cv2.dct(alpha * (0.5 + 0.5 * (small[:, :, :3] @ _LUMINANCE)))[_ROWS, _COLUMNS]
    bits = np.packbits(waves > np.median(waves)).view(np.uint64)[0]
    small[:, :, :3] *= alpha[:, :, None]
    tiny = cv2.resize(small, (_THUMBNAIL, _THUMBNAIL), interpolation=cv2.INTER_AREA)
    return Appearance(bits, np.rint(255 * tiny).astype(np.uint8))


def find_near_duplicates(
    bits: NDArray[np.uint64],
    thumbnails: NDArray[np.uint8],
    sizes: NDArray[np.int32] | None = None,
    *,
    difference: float = _MAX_THUMBNAIL_DIFFERENCE,
    comparisons: int = _MAX_COMPARISONS,
) -> NearDuplicates:
    """Groups of near duplicates; the same for the same input.

    The hashes of a pair differ in at most :data:`MAX_HASH_DISTANCE` bits and the thumbnails by at most
    ``difference`` in the mean where one of both is visible. All members of a group are near duplicates of its first:
    a chain, in which each is similar to the next only, is no group. Mirrored, rotated and stretched copies are not
    found.

    Args:
        bits: uint64 ``[n]``, hashes.
        thumbnails: uint8 ``[n, 8, 8, 4]``.
        sizes: int32 ``[n, 2]``, height and width in px; by default all have the same ratio.
        difference: largest mean difference of thumbnails, 0 to 255.
        comparisons: largest number of pairs that are compared. Where this does not suffice, pairs with an equal band
            are compared before those with a band of one bit's difference; see ``complete_distance`` of the result.
    """
    sizes = np.ones((len(bits), 2), np.int32) if sizes is None else np.ascontiguousarray(sizes, np.int32)
    parts = [bits[:, None].view(np.uint8), thumbnails.reshape(len(bits), -1), sizes.view(np.uint8)]
    _, first, which = np.unique(np.concatenate(parts, axis=1), axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)  # by their first occurrence, so that a group's first is the first of the bank
    rank = np.argsort(order)
    first = first[order]
    search = _Search(bits[first], thumbnails[first], sizes[first], difference, comparisons)
    complete_distance = search.run()
    groups = [group for group in _equal(search.roots[rank[which.reshape(-1)]]) if len(group) > 1]
    groups.sort(key=lambda group: (-len(group), group[0]))
    return NearDuplicates(groups, complete_distance, search.done)


class _Search:
    """Links near duplicates: ``roots`` are equal for the items of a group, and each is a near duplicate of its root."""

    def __init__(
        self,
        bits: NDArray[np.uint64],
        thumbnails: NDArray[np.uint8],
        sizes: NDArray[np.int32],
        difference: float,
        limit: int,
    ):
        self.roots = np.arange(len(bits))
        self.done = 0
        self._bits, self._thumbnails = bits, thumbnails.reshape(len(bits), -1)
        self._difference, self._limit = difference, limit
        sides = np.maximum(sizes, 1).astype(np.float64)
        self._ratios = np.log(sides[:, 0] / sides[:, 1])
        self._tolerances = _MAX_RATIO / 2 + (0.5 / sides).sum(1)

    def run(self) -> int:
        """Compare all pairs that share a band, then all with a band of one bit's difference; the distance completed."""
        complete_distance = self._search()
        for chain in _equal(self.roots):
            if len(chain) > 2:
                self._split(chain)
        return complete_distance

    def _search(self) -> int:
        bands = _bands(self._bits)
        complete_distance = -1
        for distance, flips in ((_BANDS - 1, [0]), (2 * _BANDS - 1, [1 << bit for bit in range(_BAND_BITS)])):
            for band in bands:
                for mask in flips:
                    for first, second in _sharing(band, mask):
                        if self.done + len(first) > self._limit:
                            return complete_distance
                        self.done += len(first)
                        self._link(first, second)
            complete_distance = distance
        return complete_distance

    def _split(self, chain: NDArray[np.int64]) -> None:
        """Group a chain anew: the first that is in no group, and its near duplicates that are in none."""
        while len(chain):
            root, chain = chain[0], chain[1:]
            self.roots[root] = root
            near = self._are_near(np.full(len(chain), root), chain)
            self.roots[chain[near]] = root
            chain = chain[~near]

    def _link(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        other = self.roots[first] != self.roots[second]
        first, second = first[other], second[other]
        near = self._are_near(first, second)
        self._unite(first[near], second[near])

    def _are_near(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which pairs are near duplicates."""
        near = _distances(self._bits[first], self._bits[second]) <= MAX_HASH_DISTANCE
        apart = np.abs(self._ratios[first] - self._ratios[second])
        near &= apart <= self._tolerances[first] + self._tolerances[second]
        (candidates,) = np.nonzero(near)
        for start in range(0, len(candidates), _PAIRS_AT_ONCE >> 6):
            part = candidates[start : start + (_PAIRS_AT_ONCE >> 6)]
            one, other = self._thumbnails[first[part]], self._thumbnails[second[part]]
            near[part] = _differences(one, other) <= self._difference
        return near

    def _unite(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        while (self.roots[first] != self.roots[second]).any():
            one, other = self.roots[first], self.roots[second]
            np.minimum.at(self.roots, np.maximum(one, other), np.minimum(one, other))
            while (self.roots != self.roots[self.roots]).any():
                self.roots = self.roots[self.roots]


def _bands(bits: NDArray[np.uint64]) -> NDArray[np.uint16]:
    """uint16 ``[4, n]``: neighbouring frequencies go to different bands, so that all bands are equally selective."""
    every = np.unpackbits(bits[:, None].view(np.uint8), axis=1).reshape(-1, _BAND_BITS, _BANDS)
    bands = np.ascontiguousarray(np.packbits(every.transpose(2, 0, 1), axis=2))
    return bands.view(np.uint16)[:, :, 0]


def _sharing(band: NDArray[np.uint16], mask: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of items whose bands differ in just the bits of ``mask``, each pair once, some at a time."""
    order = np.argsort(band, kind="stable")
    keys = band[order].astype(np.int64)
    ends = np.bincount(keys, minlength=1 << _BAND_BITS).cumsum()
    starts = np.concatenate([[0], ends[:-1]])
    partner = keys ^ mask
    begin = starts[partner] if mask else np.arange(len(keys)) + 1
    sizes = np.where(partner >= keys, ends[partner] - begin, 0)
    if not sizes.any():
        return
    total = sizes.cumsum()
    low = 0
    while low < len(keys):
        before = total[low - 1] if low else 0
        high = max(int(np.searchsorted(total, before + _PAIRS_AT_ONCE, "right")), low + 1)
        part = sizes[low:high]
        if part.any():
            within = np.arange(part.sum()) - np.repeat(part.cumsum() - part, part)
            yield order[np.repeat(np.arange(low, high), part)], order[np.repeat(begin[low:high], part) + within]
        low = high


def _equal(values: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The positions of each value, ascending."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)


def _differences(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean difference of thumbnails ``[m, 256]``, weighted by the larger alpha of both."""
    visible = np.maximum(one[:, 3::4], other[:, 3::4]).sum(1, dtype=np.uint32) / 255
    apart = np.asarray(cv2.absdiff(one, other)).sum(1, dtype=np.uint32)
    means: NDArray[np.float64] = apart / np.maximum(4 * visible, 1e-9)
    return means


def _distances(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of bits in which hashes differ."""
    distances: NDArray[np.uint8] = _BIT_COUNTS[(one ^ other)[:, None].view(np.uint16)].sum(1, dtype=np.uint8)
    return distances
