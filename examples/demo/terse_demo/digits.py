"""Real photographs and real handwriting, as scikit-image and scikit-learn carry them, and the ink between them.

Nothing here is downloaded: every file named below is part of the installed packages.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data as photographs
from sklearn.datasets import load_digits, load_sample_image

TRAIN_PHOTOGRAPHS = ("coffee", "chelsea", "flower")
"""What the training images, and so the backgrounds of all composites, are cropped from."""
TEST_PHOTOGRAPHS = ("astronaut", "rocket", "china", "motorcycle")
"""What the test images are cropped from; none of them is seen in training."""

Pixels = NDArray[np.uint8]

_LEAST_CONTRAST = 70.0
_SUPERSAMPLING = 12


@dataclass(frozen=True)
class Pose:
    """Where a digit lies in an image: centre and height of its 8 x 8 grid in px, degrees clockwise, shear."""

    x: float
    y: float
    height: float
    rotation: float = 0.0
    shear: float = 0.0


@dataclass(frozen=True)
class Handwriting:
    """Digits as they were written: ``images`` float ``[N, 8, 8]`` in [0, 1], ``values`` int ``[N]``, and the row
    of each in scikit-learn's set, ``rows`` int ``[N]``."""

    images: NDArray[np.float32]
    values: NDArray[np.int64]
    rows: NDArray[np.int64]

    def of(self, value: int) -> NDArray[np.int64]:
        """Positions of the digits of this value."""
        return np.flatnonzero(self.values == value)


def handwriting(test: bool) -> Handwriting:
    """The first half of scikit-learn's 1,797 digits for training, the second half for the test."""
    bunch = load_digits()
    half = len(bunch.target) // 2
    rows = np.arange(half, len(bunch.target)) if test else np.arange(half)
    images = (bunch.images[rows] / 16).astype(np.float32)
    return Handwriting(images, bunch.target[rows].astype(np.int64), rows)


def photograph(name: str) -> Pixels:
    """A photograph, RGB uint8 ``[H, W, 3]``."""
    if name in ("china", "flower"):
        return np.asarray(load_sample_image(f"{name}.jpg"))
    if name == "motorcycle":
        return np.asarray(photographs.stereo_motorcycle()[0])
    return np.asarray(getattr(photographs, name)())


def crop(photograph: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """A random square of a photograph, reduced to ``size`` px; at least ``size`` px of it, at most all."""
    side = int(rng.integers(size, min(photograph.shape[:2]) + 1))
    top = int(rng.integers(photograph.shape[0] - side + 1))
    left = int(rng.integers(photograph.shape[1] - side + 1))
    return cv2.resize(photograph[top : top + side, left : left + side], (size, size), interpolation=cv2.INTER_AREA)


def ink(digit: NDArray[np.float32], pose: Pose, size: int) -> NDArray[np.float32]:
    """Coverage of an image by a digit's strokes, float ``[size, size]`` in [0, 1].

    The 8 x 8 grey values are enlarged by cubic interpolation, placed by one affine map, and cut at half the ink
    with a soft threshold, which gives the strokes a smooth outline.
    """
    large = cv2.resize(np.pad(digit, 1), None, fx=_SUPERSAMPLING, fy=_SUPERSAMPLING, interpolation=cv2.INTER_CUBIC)
    middle = large.shape[0] / 2
    factor = pose.height / (8 * _SUPERSAMPLING)
    angle = np.deg2rad(pose.rotation)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = factor * rotation @ np.array([[1.0, pose.shear], [0.0, 1.0]])
    offset = np.array([pose.x, pose.y]) - linear @ np.array([middle, middle])
    placed = cv2.warpAffine(large, np.column_stack([linear, offset]), (size, size), flags=cv2.INTER_AREA)
    rise = np.clip((placed - 0.3) / 0.3, 0, 1)
    return (rise * rise * (3 - 2 * rise)).astype(np.float32)


def write_digit(image: Pixels, coverage: NDArray[np.float32], rng: np.random.Generator) -> Pixels:
    """The image with a digit in a colour that stands out from what lies under it."""
    under = image[coverage > 0.5].mean(0) if (coverage > 0.5).any() else image.mean((0, 1))
    colour = _ink_colour(_luminance(under), rng)
    blended = image + coverage[..., None] * (colour - image)
    return np.rint(blended).clip(0, 255).astype(np.uint8)


def _ink_colour(background: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A random RGB colour whose luminance differs from the background's."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(_luminance(colour) - background) >= _LEAST_CONTRAST:
            return colour


def _luminance(colour: NDArray[np.float64]) -> float:
    return float(np.asarray(colour) @ np.array([0.299, 0.587, 0.114]))
