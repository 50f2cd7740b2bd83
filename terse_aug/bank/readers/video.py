"""Frames of a video, with masks or of moving objects in front of a fixed camera."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from terse_aug.bank.build.pipeline import build
from terse_aug.bank.build.report import BY_MASK, BuildLog, BuildReport, Progress
from terse_aug.bank.extract import DEFAULT_RULES, Annotation, ExtractionRules, RejectedObject, extract_from_image
from terse_aug.bank.inputs.deep_images import FULL_RANGE, Levels
from terse_aug.bank.inputs.folders import check_folders, outside, visible_files
from terse_aug.bank.inputs.image_endings import is_image_name
from terse_aug.bank.inputs.images import read_image, read_index_mask, why_unreadable
from terse_aug.bank.inputs.repair import Repairs
from terse_aug.bank.readers.other_formats import names_other_formats
from terse_aug.bank.segmenters.motion import median_background, moving_object_alphas
from terse_aug.bank.storage.writer import BankWriter
from terse_aug.structures.foreground import Foreground

_LABEL = 1
_BY_MOTION = "motion"
_MAX_BYTES = 2**29
_MAX_FRAMES = 51
_MIN_FRAMES = 5
_MAX_FAILURES = 30
_UNREADABLE = "frame cannot be read"

Frame = tuple[str, NDArray[np.uint8]]
"""The name of a frame, and its pixels, uint8 ``[H, W, 3]`` RGB."""


@names_other_formats
def build_from_video(
    video: str | Path,
    out: str | Path,
    *,
    every: int = 30,
    masks: str | Path | None = None,
    category: str = "object",
    rules: ExtractionRules = DEFAULT_RULES,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildReport:
    """Build a bank from every n-th frame of a video: what moves in front of a fixed camera, or by masks.

    Without masks, what differs from the background, the median of up to 51 frames spread over the video, is an object,
    one for each part that does not touch another. Shadows are part of their object. One process reads the frames in
    order, and a build that was stopped starts anew. ``rules.min_box_agreement`` has no effect.

    Args:
        video: a file that OpenCV can read, or a folder of images, used in the order of their names.
        out: the bank to write.
        every: use each n-th frame.
        masks: folder of instance masks, 0 for background and another number for each object: NAME.png for the image
            NAME, in the same subfolders, or in none if only one frame has that name; or 000030.png for frame 30 of a
            file, counted from 0. By default objects are found by motion.
        category: class of all objects; its label is 1.
        rules: which objects are kept, see :class:`ExtractionRules`.
        overwrite: replace an existing bank.
        progress: called with the number of frames done and in total; the total of a file is that of its header.

    Raises:
        FileNotFoundError: there is no such file or folder.
        FileExistsError: ``out`` exists and ``overwrite`` is false.
        ValueError: ``every`` is below 1, the file is no video, there are too few frames to estimate the background, or
            nothing was kept.
        OSError: the disk is full or cannot be written.
    """
    if every < 1:
        raise ValueError(f"expected every of at least 1 frame, got {every}")
    mask_folder = None if masks is None else Path(masks)
    frames = Frames(Path(video), every, mask_folder, rules.levels)
    total = frames.count()
    check_folders(mask_folder, content="masks")
    writer = BankWriter(out, {_LABEL: category}, overwrite=overwrite)

    def fill(log: BuildLog) -> None:
        by_mask = mask_folder is not None
        segment = _by_masks(frames) if by_mask else _by_motion(frames, total, rules.min_area)
        done = 0
        for done, (name, pixels) in enumerate(frames.read(log), 1):
            for foreground in _extract(name, pixels, segment, rules, log):
                writer.add(foreground)
                log.mask_sources[BY_MASK if by_mask else _BY_MOTION] += 1
            if progress is not None:
                progress(done, max(total, done))
        log.images = done

    record = {"from": "video", "video": Path(video).name, "every": every, "masks": mask_folder and mask_folder.name}
    return build(writer, fill, record | vars(rules))


Segmenter = Callable[[str, NDArray[np.uint8]], list[NDArray[np.uint8]]]
"""From the name and the pixels of a frame to the alpha of each object."""


def _extract(
    name: str, pixels: NDArray[np.uint8], segment: Segmenter, rules: ExtractionRules, log: BuildLog
) -> Iterator[Foreground]:
    """The foregrounds of a frame."""
    try:
        alphas = segment(name, pixels)
    except RejectedObject as reason:
        log.drop(str(reason), name)
        return
    for number, alpha in enumerate(alphas, 1):
        annotation = Annotation(_LABEL, f"{name}#{number}")
        try:
            yield extract_from_image(pixels, alpha, annotation, rules, soft=True)
        except RejectedObject as reason:
            log.drop(str(reason), annotation.source)


def _by_motion(frames: Frames, total: int, min_area: int) -> Segmenter:
    background = estimate_background(frames, total)

    def alphas(name: str, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        if pixels.shape != background.shape:
            raise RejectedObject("frame has another size than the first")
        return moving_object_alphas(pixels, background, min_area)

    return alphas


def _by_masks(frames: Frames) -> Segmenter:
    def alphas(name: str, pixels: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        try:
            numbers = read_index_mask(frames.mask_path(name))
        except FileNotFoundError as error:
            raise RejectedObject("frame without a mask of its name") from error
        except ValueError as error:
            raise RejectedObject("mask file cannot be read") from error
        if numbers.shape != pixels.shape[:2]:
            raise RejectedObject("mask file and frame differ in size")
        return [np.where(numbers == own, np.uint8(255), np.uint8(0)) for own in np.unique(numbers).tolist() if own]

    return alphas


def estimate_background(frames: Frames, total: int, max_bytes: int = _MAX_BYTES) -> NDArray[np.uint8]:
    """Median of up to 51 frames spread over the video, of about ``max_bytes``; ``ValueError`` for fewer than five."""
    held: list[NDArray[np.uint8]] = []
    step = max(1, math.ceil(total / _MAX_FRAMES))
    for number, (_, pixels) in enumerate(frames.read(BuildLog())):
        if held and pixels.shape != held[0].shape:
            continue
        if number % step == 0:
            held.append(pixels)
        is_full = len(held) > _MAX_FRAMES or len(held) * pixels.nbytes > max_bytes
        if is_full and len(held) >= 2 * _MIN_FRAMES - 1:
            held, step = held[::2], 2 * step
    if len(held) < _MIN_FRAMES:
        raise ValueError(
            f"{frames.place}: expected at least {_MIN_FRAMES} frames to estimate the background, got {len(held)}; "
            "use more of them (every, --every), or give masks"
        )
    return median_background(held)


@dataclass(frozen=True)
class Frames:
    """Every n-th frame of a video file or of a folder of images without that of masks, one at a time."""

    place: Path
    every: int
    masks: Path | None = None
    levels: Levels = FULL_RANGE

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
            notes: Repairs = set()
            try:
                yield name, read_image(path, self.levels, notes)
                log.repair(notes, name)
            except ValueError as error:
                log.drop(why_unreadable(error, _UNREADABLE), name)

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
        images = [path for path in visible_files(self.place) if is_image_name(path)]
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
