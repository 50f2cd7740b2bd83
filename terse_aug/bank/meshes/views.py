"""From where a model is seen, and how it is lit: a function of seed, name of the model and number of the view."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields

import numpy as np

Range = tuple[float, float]
"""Lowest and highest value."""

MIN_SIZE, MAX_SIZE = 16, 2048
_LIMITS = {
    "azimuth": (-360, 360),
    "elevation": (-90, 90),
    "roll": (-360, 360),
    "field_of_view": (1, 120),
    "light_azimuth": (-360, 360),
    "light_elevation": (-90, 90),
    "light_intensity": (0, 10),
    "ambient": (0, 10),
}
_DECIMALS = 2
UP_AXES = ("auto", "y", "z")


@dataclass(frozen=True)
class ViewSettings:
    """Which views of a model are drawn. Angles are in degrees, and every view draws its own values from the ranges.

    Attributes:
        views: number of views of each model.
        seed: of all views.
        size: side of the square that a model's bounding sphere fills, in px, 16 to 2048.
        azimuth: direction of the camera around the model's upright axis; 0 is the front of a glTF model.
        elevation: height of the camera above the model's horizontal plane, -90 to 90.
        roll: turn of the camera around its line of sight.
        field_of_view: opening angle of the camera, 1 to 120; large angles distort as near cameras do.
        light_azimuth: direction of the light, from that of the camera.
        light_elevation: height of the light above the model's horizontal plane, -90 to 90.
        light_intensity: brightness that a surface facing the light gains, as a factor of its colour, 0 to 10.
        ambient: brightness of every surface, likewise.
        up: upright axis of the models, y or z; auto is y for OBJ and glTF, z for PLY, STL and OFF.

    Raises:
        ValueError: a number is out of range, or a range is empty.
    """

    views: int = 24
    seed: int = 0
    size: int = 256
    azimuth: Range = (0.0, 360.0)
    elevation: Range = (-10.0, 60.0)
    roll: Range = (-10.0, 10.0)
    field_of_view: Range = (25.0, 50.0)
    light_azimuth: Range = (-60.0, 60.0)
    light_elevation: Range = (20.0, 80.0)
    light_intensity: Range = (0.4, 0.8)
    ambient: Range = (0.3, 0.5)
    up: str = "auto"

    def __post_init__(self) -> None:
        if self.views < 1:
            raise ValueError(f"expected at least 1 view of each model, got {self.views}")
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ValueError(f"expected a size of {MIN_SIZE} to {MAX_SIZE} px, got {self.size}")
        if self.up not in UP_AXES:
            raise ValueError(f"expected one of {', '.join(UP_AXES)} as up, got {self.up!r}")
        for name, (low, high) in _LIMITS.items():
            given = getattr(self, name)
            if len(given) != 2 or not low <= given[0] <= given[1] <= high:
                raise ValueError(f"expected {name} as lowest and highest value within {low} to {high}, got {given}")


@dataclass(frozen=True)
class View:
    """One view of a model; see :class:`ViewSettings`."""

    azimuth: float
    elevation: float
    roll: float
    field_of_view: float
    light_azimuth: float
    light_elevation: float
    light_intensity: float
    ambient: float

    def text(self) -> str:
        """All of it, exactly."""
        return ", ".join(f"{own.name.replace('_', ' ')} {getattr(self, own.name):g}" for own in fields(self))

    @property
    def toward_camera(self) -> tuple[float, float, float]:
        """Unit vector from the model to the camera, z upright."""
        return _direction(self.azimuth, self.elevation)

    @property
    def camera_up(self) -> tuple[float, float, float]:
        """Unit vector that is upright in the image before the roll; defined from straight above, too."""
        x, y, z = _direction(self.azimuth, self.elevation + 90)
        return x, y, z

    @property
    def toward_light(self) -> tuple[float, float, float]:
        """Unit vector from the model to the light."""
        return _direction(self.azimuth + self.light_azimuth, self.light_elevation)


def draw_view(settings: ViewSettings, model: str, number: int) -> View:
    """The view of this number of a model of this name. Its values have two decimals, so that its text is exact."""
    key = hashlib.blake2b(repr((int(settings.seed), model, number)).encode(errors="surrogateescape"), digest_size=16)
    generator = np.random.default_rng(int.from_bytes(key.digest(), "little"))
    drawn = {own.name: generator.uniform(*getattr(settings, own.name)) for own in fields(View)}
    return View(**{name: round(float(value), _DECIMALS) for name, value in drawn.items()})


def _direction(azimuth: float, elevation: float) -> tuple[float, float, float]:
    around, above = math.radians(azimuth), math.radians(elevation)
    return math.cos(above) * math.sin(around), -math.cos(above) * math.cos(around), math.sin(above)
