"""On a simulated accelerator, what pastes look like is that of the CPU, and costs no launch for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("simulated_accelerator", reason="this torch has no devices made in Python", exc_type=ImportError)
from factories import make_batch
from simulated_accelerator import DEVICE, counted
from test_accelerator import coloured_bank

from terse_aug import PasteConfig, Photometric, PixelFormat, Terse

PHOTOMETRIC = Photometric((0.6, 1.4), (0.6, 1.4), (0.5, 1.5), (-30, 30), (0, 1), (0, 0.1))
SETTINGS = {"photometric": {"photometric": PHOTOMETRIC}, "blends": {"blends": ("gaussian", "alpha")}}
"""By name, settings of :class:`PasteConfig`."""
ERROR = 4.5 / 255
"""The CPU rounds each layer to 8 bits."""


def composed(folder: Path, device: torch.device, name: str, pastes: int, **settings: Any) -> tuple[Terse, list, list]:
    paste = PasteConfig(objects=(pastes, pastes), paste_probability=1.0, decoys=(1, 1), **SETTINGS[name])
    terse = Terse(coloured_bank(folder), paste=paste, seed=1, **settings).to(device)
    images, targets = make_batch(0, ((128, 160), (144, 128)), 2, masks=True)
    return terse, [image.to(device) for image in images], targets


@pytest.mark.parametrize("name", SETTINGS)
def test_composites_are_those_of_the_cpu(tmp_path: Path, name: str) -> None:
    results = []
    for device in (torch.device("cpu"), DEVICE):
        terse, images, targets = composed(tmp_path, device, name, 3)
        results.append(terse(images, targets))
    (expected, expected_targets), (images, targets) = results
    for image, other in zip(images, expected, strict=True):
        assert float((image.cpu() - other).abs().max()) < ERROR
    for target, other in zip(targets, expected_targets, strict=True):
        torch.testing.assert_close(target["boxes"].cpu(), other["boxes"], rtol=0, atol=1)


def test_poisson_is_refused_on_a_device(tmp_path: Path) -> None:
    paste = PasteConfig(blends=("poisson",), paste_probability=1.0)
    terse = Terse(coloured_bank(tmp_path), paste=paste).to(DEVICE)
    images, targets = make_batch()
    with pytest.raises(ValueError, match="blends: poisson is computed on the CPU"):
        terse([image.to(DEVICE) for image in images], targets)


@pytest.mark.parametrize("name", SETTINGS)
def test_launches_and_waits_do_not_grow_with_the_pastes(tmp_path: Path, name: str) -> None:
    found = []
    for pastes in (2, 8):
        terse, images, targets = composed(tmp_path, DEVICE, name, pastes)
        with counted() as counts:
            terse(images, targets)
        assert len(terse.pastes[0]) == pastes
        found.append(counts)
    few, many = found
    assert many.launches <= few.launches
    assert many.synchronisations <= few.synchronisations == 1
    assert not many.blocking_copies


@pytest.mark.parametrize("name", SETTINGS)
def test_constants_are_sent_to_the_device_once(tmp_path: Path, name: str) -> None:
    """What a normalized format and the photometric parameters are computed with stays there."""
    copies = []
    for pixel_format in (PixelFormat(), PixelFormat(1.0, (0.49, 0.46, 0.41), (0.23, 0.22, 0.24))):
        terse, images, targets = composed(tmp_path, DEVICE, name, 3, pixel_format=pixel_format)
        images = [pixel_format.encode(image) for image in images]
        terse(images, targets)
        with counted() as counts:
            terse(images, targets)
        copies.append(counts.copies)
        assert not counts.blocking_copies
    # The plan, and what the pastes look like; targets go back.
    assert copies == [3 if name == "photometric" else 2] * 2
