"""Learned copy-paste augmentation for object detectors, trained live against the detector's own loss.

Names are imported when they are first used, so that :mod:`terse_aug.bank` does not load torch, nor do the processes
that build a bank.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from terse_aug._version import __version__

if TYPE_CHECKING:
    from terse_aug._compose import Composites, Paste
    from terse_aug._config import TerseConfig
    from terse_aug._parcel import CutoutLoader, Parcel
    from terse_aug._pixels import PixelFormat
    from terse_aug._probe import Probe, probe
    from terse_aug._remarks import TerseWarning
    from terse_aug._terse import Terse
    from terse_aug._transforms import PARAMETERS, TransformRanges
    from terse_aug.bank import Foreground, ForegroundBank

__all__ = [
    "PARAMETERS",
    "Composites",
    "CutoutLoader",
    "Foreground",
    "ForegroundBank",
    "Parcel",
    "Paste",
    "PixelFormat",
    "Probe",
    "Terse",
    "TerseConfig",
    "TerseWarning",
    "TransformRanges",
    "__version__",
    "probe",
]

_HOMES = {
    "PARAMETERS": "_transforms",
    "Composites": "_compose",
    "CutoutLoader": "_parcel",
    "Foreground": "bank",
    "ForegroundBank": "bank",
    "Parcel": "_parcel",
    "Paste": "_compose",
    "PixelFormat": "_pixels",
    "Probe": "_probe",
    "Terse": "_terse",
    "TerseConfig": "_config",
    "TerseWarning": "_remarks",
    "TransformRanges": "_transforms",
    "probe": "_probe",
}
_PARTS = ("bank", "instruments", "lockstep", "policies", "preview", "samplers", "targets")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
