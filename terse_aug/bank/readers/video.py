"""Builds a bank from the frames of a video. Imports numpy and opencv, beside the parts of this package."""

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

from terse_aug.bank.build.pipeline import build
from terse_aug.bank.build.report import BY_MASK, BuildLog, BuildReport, Progress
from terse_aug.bank.extract import Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.class_folders import visible_files
from terse_aug.bank.inputs.file_names import IMAGE_SUFFIXES
from terse_aug.bank.inputs.images import read_image, read_index_mask
from terse_aug.bank.inputs.mask_pairing import outside
from terse_aug.bank.segmenters.motion import background_of, moving_alphas
from terse_aug.bank.storage.writer import BankWriter

_LABEL = 1
_BY_MOTION = "motion"
_MOST_BYTES = 2**29
_MOST_FRAMES = 51
_LEAST_FRAMES = 5
_MOST_FAILURES = 30

Frame = tuple[str, NDArray[np.uint8]]
"""The name of a frame, and its pixels, uint8 ``[H, W, 3]`` RGB."""


def build_from_video(
    video: str | Path,
    out: str | Path,
    *,
    every: int = 30,
    masks: str | Path | None = None,
    category: str = "object",
    rules: ExtractionRules | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build a bank from every n-th frame of a video, or of a folder of frames.

    With masks, objects are cut out by them. Without, the camera has to stand still: what is not as the background, the
    median of up to 51 frames spread over the video, is an object of the one category, one for each part that does
    not touch another. Shadows move with their objects and stay with them; what stands still is background. One process
    does it all, from the beginning: frames of a file can only be read one after the other.

    Args:
        video: a file that OpenCV can read, or a folder of images, which are taken in the order of their names.
        out: the bank to write.
        every: frames from one that is used to the next.
        masks: folder of instance masks, 0 for background and another number for each object; ``NAME.png`` for the
            image NAME, in the same subfolders, or in none where only one frame has that name; or ``000030.png`` for
            frame 30 of a file, counted from 0. What lies in it is no frame.
        category: name of all objects; their label is 1.
        rules: what is kept, see :class:`ExtractionRules`; ``min_box_agreement`` means nothing here.
        overwrite: replace an existing bank.
        progress: called with frames done and in total; the total of a file is what its head says.

    Raises:
        FileNotFoundError: there is no such file or folder.
        FileExistsError: ``out`` exists and ``overwrite`` is false.
        ValueError: ``every`` is below 1, the file is no video, there are too few frames to know the background by, or
            nothing was kept.
        OSError: the disk is full or cannot be written.
    """
    if every < 1:
        raise ValueError(f"expected every of at least 1 frame, got {every}")
    mask_folder = None if masks is None else Path(masks)
    source = _Frames(Path(video), every, mask_folder)
    if mask_folder is not None and not mask_folder.is_dir():
        raise FileNotFoundError(f"expected a folder of masks at {mask_folder}, found none")
    rules = rules or ExtractionRules()
    writer = BankWriter(out, {_LABEL: category}, overwrite=overwrite)
    total = source.count()

    def fill(ledger: BuildLog) -> None:
        done = 0
        background = _background(source, total) if mask_folder is None else None
        for done, (name, pixels) in enumerate(source.read(ledger), 1):
            try:
                if mask_folder is None:
                    assert background is not None
                    masks_of, way = _moving(pixels, background, rules.min_area), _BY_MOTION
                else:
                    masks_of, way = _annotated(source.mask_of(name), pixels), BY_MASK
            except RejectedObject as reason:
                ledger.drop(str(reason), name)
                masks_of = []
            for number, alpha in enumerate(masks_of, 1):
                annotation = Annotation(_LABEL, f"{name}#{number}")
                try:
                    writer.add(extract_from_image(pixels, alpha, annotation, rules, soft=True))
                    ledger.mask_sources[way] += 1
                except RejectedObject as reason:
                    ledger.drop(str(reason), annotation.source)
            if progress is not None:
                progress(done, max(total, done))
        ledger.images = done

    built = {"from": "video", "video": Path(video).name, "every": every, "masks": mask_folder and mask_folder.name}
    return build(writer, fill, built | vars(rules))


@dataclass(frozen=True)
class _Frames:
    """Every n-th frame of a file or a folder, one at a time."""

    place: Path
    every: int
    masks: Path | None = None

    def count(self) -> int:
        """How many there are; of a file what its head says, which may be wrong.

        Raises:
            FileNotFoundError: there is nothing at the place.
            ValueError: it is no video.
        """
        if self.place.is_dir():
            return len(self._files())
        if not self.place.is_file():
            raise FileNotFoundError(f"expected a video or a folder of frames at {self.place}, found none")
        capture = cv2.VideoCapture(str(self.place))
        try:
            if not capture.isOpened():
                raise ValueError(f"expected a video that OpenCV can read, got {self.place}")
            return math.ceil(max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0) / self.every)
        finally:
            capture.release()

    def read(self, ledger: BuildLog | None = None) -> Iterator[Frame]:
        """The frames; those that cannot be read are counted."""
        if not self.place.is_dir():
            yield from self._of_file(ledger)
            return
        for path in self._files():
            name = path.relative_to(self.place).as_posix()
            try:
                yield name, read_image(path)
            except ValueError:
                if ledger is not None:
                    ledger.drop("frame cannot be read", name)

    def mask_of(self, name: str) -> Path:
        """Where the mask of a frame is: in the same subfolder; or in none, if no other frame has that name.

        Raises:
            Unusable: the mask may be of another frame as well.
        """
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

    def _files(self) -> list[Path]:
        return self._images[:: self.every]

    def _of_file(self, ledger: BuildLog | None) -> Iterator[Frame]:
        capture, number, failed = cv2.VideoCapture(str(self.place)), 0, 0
        try:
            while failed < _MOST_FAILURES:  # a damaged frame is passed over; after the end nothing more comes
                if not capture.grab():  # frames in between are not converted
                    failed += 1
                    continue
                damaged = range(number, number + failed)
                number, failed = number + failed, 0
                unread = [at for at in damaged if at % self.every == 0]
                if number % self.every == 0:
                    read, pixels = capture.retrieve()
                    if read:
                        yield f"{number:06d}", np.ascontiguousarray(np.asarray(pixels, dtype=np.uint8)[..., ::-1])
                    else:
                        unread.append(number)
                if ledger is not None:
                    for at in unread:
                        ledger.drop("frame cannot be read", f"{at:06d}")
                number += 1
            missing = self.count() - math.ceil(number / self.every)
            if ledger is not None and missing > 0:
                ledger.drop("frame is not there, though the file's head counts it", f"{number:06d}", missing)
        finally:
            capture.release()


def _background(source: _Frames, total: int) -> NDArray[np.uint8]:
    """Of frames that are spread over all, of at most half a GiB, but eight however large they are.

    Raises:
        ValueError: there are too few.
    """
    held: list[NDArray[np.uint8]] = []
    step = max(1, math.ceil(total / _MOST_FRAMES))
    for number, (_, pixels) in enumerate(source.read()):
        if held and pixels.shape != held[0].shape:
            continue
        if number % step == 0:
            held.append(pixels)
        if len(held) >= 2 * _LEAST_FRAMES - 1 and (len(held) > _MOST_FRAMES or len(held) * pixels.nbytes > _MOST_BYTES):
            held, step = held[::2], 2 * step
    if len(held) < _LEAST_FRAMES:
        raise ValueError(
            f"{source.place}: expected at least {_LEAST_FRAMES} frames to know the background by, got {len(held)}; "
            "take more of them (every, --every), or give masks"
        )
    return background_of(held)


def _moving(pixels: NDArray[np.uint8], background: NDArray[np.uint8], min_area: int) -> list[NDArray[np.uint8]]:
    if pixels.shape != background.shape:
        raise RejectedObject("frame has another size than the first")
    return moving_alphas(pixels, background, min_area)


def _annotated(path: Path, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    try:
        numbers = read_index_mask(path)
    except FileNotFoundError as error:
        raise RejectedObject("frame without a mask of its name") from error
    except ValueError as error:
        raise RejectedObject("mask file cannot be read") from error
    if numbers.shape != pixels.shape[:2]:
        raise RejectedObject("mask file and frame differ in size")
    return [np.where(numbers == own, np.uint8(255), np.uint8(0)) for own in np.unique(numbers).tolist() if own]
