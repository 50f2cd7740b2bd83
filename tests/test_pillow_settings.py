"""Processes that build a bank decode images as the process that started them; large images on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bank_samples import CocoSample, gradient
from build_samples import outcome
from PIL import Image, ImageFile, PngImagePlugin

from terse_aug.bank import build_from_rgba
from terse_aug.bank.build.chunks import identity_of
from terse_aug.bank.inputs.images import TOO_LARGE
from terse_aug.cli import main


def rgba(height: int, width: int) -> np.ndarray:
    return np.dstack([gradient(height, width), np.full((height, width), 200, np.uint8)])


@pytest.fixture
def own_format() -> Iterator[str]:
    """The ending of a format that only a plug-in opens: a PNG behind five bytes."""

    class Plugin(PngImagePlugin.PngImageFile):
        format = "OWN"

        def _open(self) -> None:
            assert self.fp.read(5) == b"OWN1\n"
            super()._open()

    def accept(prefix: bytes) -> bool:
        return prefix.startswith(b"OWN1\n")

    Image.init()
    Plugin.__module__ = accept.__module__ = "__main__"  # sent by value, as no module can be imported for it
    Image.register_open("OWN", Plugin, accept)
    Image.register_extension("OWN", ".own")
    yield ".own"
    del Image.OPEN["OWN"], Image.EXTENSION[".own"]
    Image.ID.remove("OWN")


def test_workers_decode_as_their_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_format: str) -> None:
    folder = tmp_path / "objects"
    folder.mkdir()
    Image.fromarray(rgba(30, 40)).save(folder / "a.png")
    (folder / f"b{own_format}").write_bytes(b"OWN1\n" + (folder / "a.png").read_bytes())
    Image.fromarray(rgba(60, 60)).save(folder / "c.tga")
    (folder / "c.tga").write_bytes((folder / "c.tga").read_bytes()[:-2000])  # truncated
    Image.fromarray(rgba(300, 300)).save(folder / "d.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20_000)
    one, two = (build_from_rgba(folder, tmp_path / f"{jobs}.bank", jobs=jobs) for jobs in (1, 2))
    assert (one.kept, one.rejected) == ({"object": 3}, {TOO_LARGE: 1})
    assert outcome(two) == outcome(one)


@pytest.mark.parametrize(
    ("module", "name", "value"), [(ImageFile, "LOAD_TRUNCATED_IMAGES", True), (Image, "MAX_IMAGE_PIXELS", 123_456)]
)
def test_a_build_with_other_settings_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, value: Any
) -> None:
    before = identity_of({}, ["a"], [])
    assert before == identity_of({}, ["a"], [])
    monkeypatch.setattr(module, name, value)
    assert identity_of({}, ["a"], []) != before


@pytest.mark.parametrize(
    ("pillows", "given", "is_read"), [(100, "0", True), (100, "19200", True), (10**6, "4000", False)]
)
def test_the_command_line_sets_the_largest_image(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pillows: int,
    given: str,
    is_read: bool,
) -> None:
    sample = CocoSample(tmp_path)  # 80 x 120
    sample.write()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
    source = ["--annotations", str(sample.json), "--images", str(sample.images), "--out", str(tmp_path / "out.bank")]
    assert main(["bank", "build", "coco", *source, "--max-image-pixels", given]) == (0 if is_read else 2)
    assert (TOO_LARGE in capsys.readouterr().err) is not is_read
    assert pillows == Image.MAX_IMAGE_PIXELS
