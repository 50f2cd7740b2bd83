"""Frames of a video: what moves in front of a fixed camera, and masks of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from terse_aug.bank import ForegroundBank, build_from_video
from terse_aug.bank.build.report import BuildLog
from terse_aug.bank.extract import RejectedObject
from terse_aug.bank.readers.video import Frames, estimate_background
from terse_aug.bank.segmenters.motion import median_background, moving_object_alphas
from terse_aug.cli import main

HEIGHT, WIDTH, COUNT = 96, 160, 24


def frame(number: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A red disc that moves to the right in front of a textured wall with noise; and its mask."""
    wall = np.random.default_rng(9).normal(110, 6, (HEIGHT // 8, WIDTH // 8, 3)).repeat(8, 0).repeat(8, 1)
    image = wall + np.random.default_rng(number + seed).normal(0, 2, wall.shape)
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    mask = np.hypot(rows - 48, columns - 20 - 5 * number) <= 14
    image[mask] = (200, 40, 40)
    return image.clip(0, 255).astype(np.uint8), mask


def frames_in(folder: Path, count: int = COUNT) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(frame(number)[0]).save(folder / f"{number:03d}.png")
    return folder


def video_at(path: Path) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (WIDTH, HEIGHT))
    for number in range(COUNT):
        writer.write(np.ascontiguousarray(frame(number)[0][..., ::-1]))
    writer.release()
    return path


def iou(first: NDArray[Any], second: NDArray[Any]) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_the_background_is_what_stays_and_the_object_what_moves() -> None:
    background = median_background([frame(number)[0] for number in range(COUNT)])
    empty = frame(999)[0]  # the disc has left
    assert np.abs(background.astype(int) - empty).mean() < 4
    for number in (3, 15):
        image, mask = frame(number)
        (alpha,) = moving_object_alphas(image, background, 100)
        assert iou(alpha > 127, mask) > 0.9
    with pytest.raises(RejectedObject, match="nothing moves"):
        moving_object_alphas(empty, background, 100)
    with pytest.raises(RejectedObject, match="most of the frame"):
        moving_object_alphas(np.roll(image, 90, 2) // 3, background, 100)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_every_nth_frame_is_used_and_the_rest_counted(tmp_path: Path, kind: str) -> None:
    place = video_at(tmp_path / "a.avi") if kind == "file" else frames_in(tmp_path / "frames")
    progress: list[tuple[int, int]] = []
    report = build_from_video(
        place, tmp_path / "out.bank", every=4, category="ball", progress=lambda *done: progress.append(done)
    )
    assert report.mask_sources == {"motion": 6}
    assert progress == [(number, 6) for number in range(1, 7)]
    names = [f"{4 * number:06d}#1" if kind == "file" else f"{4 * number:03d}.png#1" for number in range(6)]
    with ForegroundBank.open(report.path) as bank:
        assert bank.categories == {1: "ball"}
        assert [foreground.source for foreground in bank] == names
        for foreground in bank:
            assert np.abs(np.subtract(foreground.size, 29)).max() <= 4
            middle = foreground.rgba[12:-12, 12:-12].reshape(-1, 4).mean(0)
            assert np.abs(middle - (200, 40, 40, 255)).max() < 15
        assert bank.info()["built"]["every"] == 4
    again = build_from_video(place, tmp_path / "again.bank", every=4, category="ball")
    with ForegroundBank.open(again.path) as bank, ForegroundBank.open(report.path) as first:
        assert bank.fingerprint == first.fingerprint


def test_masks_of_frames(tmp_path: Path) -> None:
    place = frames_in(tmp_path / "frames", 4)
    (tmp_path / "masks").mkdir()
    for number in (0, 1):
        Image.fromarray(3 * frame(number)[1].astype(np.uint8)).save(tmp_path / "masks" / f"{number:03d}.png")
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "masks" / "002.png")
    report = build_from_video(place, tmp_path / "out.bank", every=1, masks=tmp_path / "masks")
    assert report.mask_sources == {"mask": 2}
    assert report.rejected == {"frame without a mask of its name": 1, "mask file and frame differ in size": 1}


def test_masks_of_frames_in_subfolders(tmp_path: Path) -> None:
    place, masks = frames_in(tmp_path / "frames", 0), tmp_path / "frames" / "masks"
    for folder in (place / "one", place / "two", masks / "one"):
        folder.mkdir(parents=True)
    for name in ("one/0.png", "two/0.png", "two/1.png"):
        Image.fromarray(frame(0)[0]).save(place / name)
    for name in ("one/0.png", "0.png", "1.png"):
        Image.fromarray(frame(0)[1].astype(np.uint8)).save(masks / name)
    report = build_from_video(place, tmp_path / "out.bank", every=1, masks=masks)
    assert report.rejected == {"mask of the frame's name, but several frames have it": 1}
    with ForegroundBank.open(report.path) as bank:
        assert [foreground.source for foreground in bank] == ["one/0.png#1", "two/1.png#1"]


def test_odd_frames_are_counted(tmp_path: Path) -> None:
    place = frames_in(tmp_path / "frames")
    (place / "003.png").write_bytes(b"no image")
    Image.fromarray(frame(1)[0][:50]).save(place / "007.png")
    report = build_from_video(place, tmp_path / "out.bank", every=1)
    assert report.rejected["frame cannot be read"] == 1
    assert report.rejected["frame has another size than the first"] == 1
    log = BuildLog()
    assert len(list(Frames(place, 1).read(log))) == COUNT - 1
    assert log.rejected.counts == {"frame cannot be read": 1}


def test_a_damaged_video_is_read_to_its_end(tmp_path: Path) -> None:
    whole = video_at(tmp_path / "a.avi").read_bytes()
    start = whole.find(b"00dc", len(whole) // 2)
    length = int.from_bytes(whole[start + 4 : start + 8], "little")
    (tmp_path / "zeroed.avi").write_bytes(whole[: start + 8] + bytes(length) + whole[start + 8 + length :])
    for every in (1, 2):
        log, frames = BuildLog(), Frames(tmp_path / "zeroed.avi", every)
        assert len(list(frames.read(log))) + log.rejected.counts.total() == COUNT // every
        assert len(list(frames.read(BuildLog()))) >= COUNT // every - 1


def test_large_frames_leave_enough_for_the_background(tmp_path: Path) -> None:
    for count in (6, 8, 9, 20):
        place = frames_in(tmp_path / str(count), count)
        assert estimate_background(Frames(place, 1), count, max_bytes=1).shape == (HEIGHT, WIDTH, 3)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.avi").write_text("no video")
    out = tmp_path / "out.bank"
    for place, error, message in (
        ("text.avi", ValueError, "video that OpenCV can read"),
        ("nowhere", FileNotFoundError, "found none"),
    ):
        with pytest.raises(error, match=message):
            build_from_video(tmp_path / place, out)
    frames = frames_in(tmp_path / "frames", 6)
    with pytest.raises(ValueError, match="every of at least 1"):
        build_from_video(frames, out, every=0)
    with pytest.raises(ValueError, match="at least 5 frames to estimate the background, got 2"):
        build_from_video(frames, out, every=4)
    with pytest.raises(FileNotFoundError, match="folder of masks"):
        build_from_video(frames, out, masks=tmp_path / "nowhere")
    assert not list(tmp_path.glob("*out.bank*"))


def test_the_command_builds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = frames_in(tmp_path / "frames")
    arguments = ["bank", "build", "video", "--video", str(place), "--every", "3", "--category", "ball"]
    assert main([*arguments, "--out", str(tmp_path / "out.bank"), "--min-area", "200"]) == 0
    printed = capsys.readouterr().out
    assert "8  ball" in printed
    assert "8  motion" in printed
