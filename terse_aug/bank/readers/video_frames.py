"""Reads the frames of a video file or of a folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.inputs.file_names import IMAGE_SUFFIXES
from terse_aug.bank.inputs.folders import visible_files
from terse_aug.bank.inputs.images import read_image
from terse_aug.bank.inputs.mask_pairing import outside

_MAX_FAILURES = 30
_UNREADABLE = "frame cannot be read"

Frame = tuple[str, NDArray[np.uint8]]
"""The name of a frame, and its pixels, uint8 ``[H, W, 3]`` RGB."""


@dataclass(frozen=True)
class Frames:
    """Every n-th frame of a video file or of a folder of images without that of masks, one at a time."""

    place: Path
    every: int
    masks: Path | None = None

    def count(self) -> int:
        """Number of frames; of a file according to its header, which may be wrong.

        Raises:
            FileNotFoundError: there is nothing at the place.
            ValueError: it is no video.
        """
        if self.place.is_dir():
            return len(self._images[:: self.every])
        if not self.place.is_file():
            raise FileNotFoundError(f"expected a video or a folder of frames at {self.place}, found none")
        capture = cv2.VideoCapture(str(self.place))
        try:
            if not capture.isOpened():
                raise ValueError(f"expected a video that OpenCV can read, got {self.place}")
            return math.ceil(max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) / self.every)
        finally:
            capture.release()

    def read(self, log: BuildLog) -> Iterator[Frame]:
        """The frames; those that cannot be read are counted."""
        if not self.place.is_dir():
            yield from self._read_file(log)
            return
        for path in self._images[:: self.every]:
            name = path.relative_to(self.place).as_posix()
            try:
                yield name, read_image(path)
            except ValueError:
                log.drop(_UNREADABLE, name)

    def mask_path(self, name: str) -> Path:
        """Path of a frame's mask: in the same subfolder, or in none; rejects one that may belong to another frame."""
        assert self.masks is not None
        own = (self.masks / name).with_suffix(".png")
        flat = self.masks / own.name
        if own.is_file() or not flat.is_file():
            return own
        if self._stems[own.stem] > 1:
            raise RejectedObject("mask of the frame's name, but several frames have it")
        return flat

    @cached_property
    def _stems(self) -> Counter[str]:
        return Counter(path.stem for path in self._images)

    @cached_property
    def _images(self) -> list[Path]:
        images = [path for path in visible_files(self.place) if path.suffix.lower() in IMAGE_SUFFIXES]
        return images if self.masks is None else outside(self.place, images, self.masks)

    def _read_file(self, log: BuildLog) -> Iterator[Frame]:
        capture, number, failed = cv2.VideoCapture(str(self.place)), 0, 0
        try:
            while failed < _MAX_FAILURES:  # damaged frames are skipped; after the end nothing more comes
                if not capture.grab():  # frames in between are not converted
                    failed += 1
                    continue
                unread = [at for at in range(number, number + failed) if at % self.every == 0]
                number, failed = number + failed, 0
                if number % self.every == 0:
                    is_read, pixels = capture.retrieve()
                    if is_read:
                        yield f"{number:06d}", np.ascontiguousarray(np.asarray(pixels, dtype=np.uint8)[..., ::-1])
                    else:
                        unread.append(number)
                for at in unread:
                    log.drop(_UNREADABLE, f"{at:06d}")
                number += 1
            missing = self.count() - math.ceil(number / self.every)
            if missing > 0:
                log.drop("frame is missing, though the file's header counts it", f"{number:06d}", missing)
        finally:
            capture.release()
