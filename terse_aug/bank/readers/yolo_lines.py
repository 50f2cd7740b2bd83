"""What the numbers on the lines of YOLO's label files are, as far as a data set says it. Pure functions.

After the class number a line holds a box (4 numbers) or a polygon (6 or more, an even number), and then, by the program
that wrote it, keypoints, a confidence, a track id, or both of these. A polygon with confidence and track id has as many
numbers as a polygon with one more point, so that a line alone does not say what it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from terse_aug.bank.inputs.repair import Malformed

Values = Sequence[float]
"""The numbers of a line after the class number."""

_EXTRA = "confidence or track id behind a polygon or box was left out"
_KEYPOINTS = "keypoints behind a box were left out, though the data set declares none (kpt_shape)"
_GIVE = "give extra_values (--extra-values)"
_UNCLEAR = f"line is a polygon, or ends with confidence and track id: {_GIVE}"
_NEITHER = "line is neither class and box nor class and polygon"
_LARGEST = 1.5
"""A coordinate may lie so far beyond the image, as a fraction of its side, and is clipped; larger ones are another
unit or no coordinates."""


@dataclass(frozen=True)
class LineLayout:
    """How the lines of a data set are read.

    Attributes:
        keypoint_values: how many numbers of keypoints follow each box; 0 for none.
        declared: whether the data set or the user says so, and not the lines only.
        extra: how many other numbers may end a line, in the order in which this is tried.
        odd_polygons: whether a polygon may be followed by one more number.
        unclear: whether lines that may be a polygon, or end with confidence and track id, are rejected.
    """

    keypoint_values: int = 0
    declared: bool = False
    extra: tuple[int, ...] = (0, 1)
    odd_polygons: bool = False
    unclear: bool = False

    @classmethod
    def of(cls, lines: Iterable[Values], keypoint_values: int | None, extra_values: int | None) -> LineLayout:
        """The layout of all lines of a data set.

        Args:
            lines: all of them.
            keypoint_values: as the data set declares it, or ``None``.
            extra_values: how many numbers at the end of each line are neither box nor polygon, or ``None`` for what the
                lines show: keypoints have a visibility of 0, 1 or 2 at their place in every line; track ids are whole
                in every line and above 1 in some.
        """
        if extra_values is not None:
            return cls(keypoint_values or 0, True, (extra_values,), odd_polygons=True)
        if keypoint_values is not None:
            return cls(keypoint_values, True, (0, 1, 2))
        longer = [values for values in lines if len(values) > 5]
        if shown := _shown_keypoints(longer):
            return cls(shown)
        odd = {len(values) for values in longer if len(values) % 2}
        even = [values for values in longer if not len(values) % 2]
        if even and all(_may_end_with_track(values) for values in even):
            if any(values[-1] > 1 for values in even):
                return cls(extra=(2, 1, 0), odd_polygons=True)
            return cls(unclear=True, odd_polygons=len(odd) > 1)
        # Keypoints with a confidence are as many in every line. Beside polygons an odd line lacks a coordinate.
        return cls(odd_polygons=len(odd) > 1 and not even)

    def shape(self, values: Values) -> tuple[Values, str | None]:
        """The four numbers of a box or the coordinates of a polygon, as fractions; and what is repaired.

        Raises:
            Malformed: the line is not what its data set says, or cannot be told.
        """
        if self.unclear and len(values) > 5 and not len(values) % 2:
            raise Malformed(_UNCLEAR)
        for extra in self.extra:
            count = len(values) - extra
            is_box = count in (4, 4 + self.keypoint_values)
            is_polygon = not self.keypoint_values and count >= 6 and count % 2 == 0
            if is_box or (is_polygon and (self.odd_polygons or not extra)):
                if extra == 2 and len(self.extra) > 1 and not _may_end_with_track(values):
                    continue
                shape = values[: 4 if is_box else count]
                if any(not 1 - _LARGEST <= value <= _LARGEST for value in shape):
                    raise Malformed("coordinates are no fractions of the image (0 to 1)")
                return shape, self._repair(len(values), is_box and count > 4)
        if self.keypoint_values:
            raise Malformed("line is not class, box and the keypoints of kpt_shape")
        raise Malformed(_NEITHER if len(values) < 7 else f"{_NEITHER}: {_GIVE} if it has others")

    def _repair(self, count: int, has_keypoints: bool) -> str | None:
        if self.declared or count <= 5:  # a confidence behind a box is usual
            return None
        if has_keypoints:
            return _KEYPOINTS
        return _EXTRA if self.extra[0] or count % 2 else None


def _shown_keypoints(lines: Sequence[Values]) -> int:
    """Number of values of keypoints (x, y, visibility) behind every box, 0 where the lines show no such thing."""
    counts = {len(values) - 4 for values in lines}
    if len(counts) != 1 or (count := counts.pop()) % 3:
        return 0
    return count if all(value in (0, 1, 2) for values in lines for value in values[6::3]) else 0


def _may_end_with_track(values: Values) -> bool:
    """Whether the last two numbers may be a confidence and a track id."""
    confidence, track = values[-2:]
    return 0 < confidence <= 1 and track >= 0 and track == int(track)
