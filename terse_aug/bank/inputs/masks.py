"""COCO segmentations to masks, with the checks that pycocotools lacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.inputs.images import read_color_mask, read_index_mask

BOX_ONLY = 'no mask: the annotation has a box only; boxes="grabcut" (--boxes grabcut) cuts such objects out'
NO_MASK = "no mask, and no box to make one of"
_DAMAGED_RLE = "RLE is damaged"
_DEGENERATE = "polygon is degenerate: fewer than 3 points or an odd number of coordinates"
# pycocotools traces a polygon's outline pixel by pixel: a wild coordinate would use all memory.
_MAX_COORDINATE_IN_SIDES = 4
_MAX_DIGITS = 7
"""Of a compressed number: 35 bits exceed the pixels of any image, and results stay within 64 bits."""
_JSON_TYPES = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class MaskInFile:
    """All pixels of one number in a file; numbers are colours, R + 256 G + 65536 B, or values of one channel."""

    path: Path
    number: int
    colors: bool = False

    def mask(self, height: int, width: int) -> NDArray[np.uint8]:
        """uint8 ``[height, width]``, 0 and 1; rejects a file without it, missing, damaged or of another size."""
        try:
            numbers = _read_numbers(self.path, self.colors, self.path.stat().st_mtime_ns)
        except OSError as error:
            raise RejectedObject("mask file is missing") from error
        except ValueError as error:
            raise RejectedObject("mask file cannot be read") from error
        if numbers.shape != (height, width):
            raise RejectedObject("mask file and image differ in size")
        mask: NDArray[np.uint8] = (numbers == self.number).astype(np.uint8)
        if not mask.any():
            raise RejectedObject("mask file does not show the object")
        return mask


@lru_cache(maxsize=1)
def _read_numbers(path: Path, colors: bool, modified: int) -> NDArray[np.int32]:
    """The last file is cached, since the objects of an image come one after the other, until it is modified."""
    return read_color_mask(path) if colors else read_index_mask(path)


def segmentation_to_mask(segmentation: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Rasterise a COCO segmentation as pycocotools does: uint8 ``[height, width]``, 0 and 1.

    Args:
        segmentation: polygons ``[[x, y, x, y, ...], ...]`` in px; or an RLE of ``size`` and ``counts``, the latter a
            list or compressed to text; or a list with RLEs among the parts of one object; or a :class:`MaskInFile`.
            Degenerate polygons beside valid ones are ignored.
        height: of the image in px.
        width: of the image in px.

    Raises:
        RejectedObject: there is no segmentation, or it is broken.
    """
    if not segmentation:
        raise RejectedObject(NO_MASK)
    if isinstance(segmentation, MaskInFile):
        return segmentation.mask(height, width)
    if isinstance(segmentation, dict):
        return _from_run_lengths(_checked_run_lengths(segmentation, height, width), height, width)
    if not isinstance(segmentation, list):
        raise RejectedObject("segmentation is neither polygons nor RLE")
    if any(isinstance(part, dict) for part in segmentation):
        parts = [
            segmentation_to_mask(part if isinstance(part, dict) else [part], height, width) for part in segmentation
        ]
        merged_parts: NDArray[np.uint8] = np.bitwise_or.reduce(parts)
        return merged_parts
    polygons = _valid_polygons(segmentation, height, width)
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    return _from_run_lengths(run_lengths(merged["counts"].decode("ascii")), height, width)


def has_mask(segmentation: Any) -> bool:
    """Whether a segmentation is not empty; some exports write empty polygons for boxes."""
    return bool(segmentation) and not (isinstance(segmentation, list) and not any(segmentation))


def as_json(value: Any) -> Any:
    """A value with JSON's types instead of numpy's numbers and arrays, tuples and bytes."""
    if isinstance(value, dict):
        return {key: as_json(own) for key, own in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode("ascii", errors="replace")
    if isinstance(value, list | tuple):
        return list(value) if all(type(own) in _JSON_TYPES for own in value) else [as_json(own) for own in value]
    return value


def segmentation_as_json(segmentation: Any) -> Any:
    """A segmentation as a COCO JSON can hold it, from one that a detection framework has in memory.

    Args:
        segmentation: polygons of any kind of sequences; an RLE whose counts may be bytes; or a bitmap, bool or uint8
            ``[height, width]``.

    Returns:
        Lists of numbers, or an RLE with its counts as text or a list; ``None`` if it is empty.
    """
    if segmentation is None or len(segmentation) == 0:
        return None
    if isinstance(segmentation, np.ndarray) and segmentation.ndim == 2 and segmentation.dtype in (bool, np.uint8):
        segmentation = coco_mask.encode(np.asfortranarray(segmentation, dtype=np.uint8))
    if isinstance(segmentation, Mapping):
        counts, size = segmentation["counts"], [int(side) for side in segmentation["size"]]
        return {"size": size, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts}
    return [[float(value) for value in polygon] for polygon in segmentation]


def _from_run_lengths(runs: list[int], height: int, width: int) -> NDArray[np.uint8]:
    """Mask of alternating runs of 0 and 1, column by column (pycocotools' own decoder warns with numpy 2)."""
    values = np.arange(len(runs), dtype=np.int64) % 2
    columns = np.repeat(values.astype(np.uint8), runs).reshape(width, height)
    return np.ascontiguousarray(columns.T)


def _valid_polygons(segmentation: list[Any], height: int, width: int) -> list[list[float]]:
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    if not all(_is_numbers(polygon) for polygon in polygons):
        raise RejectedObject("polygon is no list of finite numbers")
    valid = [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not valid:
        raise RejectedObject(_DEGENERATE)
    limit = _MAX_COORDINATE_IN_SIDES * max(height, width)
    if any(abs(number) > limit for polygon in valid for number in polygon):
        raise RejectedObject("polygon lies far outside its image")
    return valid


def _is_numbers(polygon: Any) -> bool:
    try:
        return isinstance(polygon, list) and all(
            isinstance(number, (int, float)) and math.isfinite(number) for number in polygon
        )
    except OverflowError:
        return False


def _checked_run_lengths(rle: dict[str, Any], height: int, width: int) -> list[int]:
    counts = rle.get("counts")
    if rle.get("size") != [height, width]:
        raise RejectedObject("RLE and image differ in size")
    if isinstance(counts, str):
        counts = run_lengths(counts)
    if not isinstance(counts, list) or not all(isinstance(run, int) and run >= 0 for run in counts):
        raise RejectedObject(_DAMAGED_RLE)
    if sum(counts) != height * width:
        raise RejectedObject(_DAMAGED_RLE)
    return counts


def run_lengths(text: str) -> list[int]:
    """Run lengths of COCO's compressed RLE (rleFrString in maskApi.c, which checks nothing).

    Every character holds five bits of a number, lowest first, and whether more follow; from the fourth run on,
    the number is the difference to the run before the last. Damaged text is rejected.
    """
    try:
        characters = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise RejectedObject(_DAMAGED_RLE) from error
    if ((characters < 0) | (characters >= 64)).any():
        raise RejectedObject(_DAMAGED_RLE)
    if not len(characters):
        return []
    (ends,) = np.nonzero(characters & 0x20 == 0)
    if not len(ends) or ends[-1] != len(characters) - 1:
        raise RejectedObject(_DAMAGED_RLE)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_DIGITS:
        raise RejectedObject(_DAMAGED_RLE)
    shifts = 5 * (np.arange(len(characters)) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((characters & 0x1F) << shifts, starts)
    numbers -= np.where(characters[ends] & 0x10, 1 << (5 * lengths), 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    runs: list[int] = numbers.tolist()
    return runs
