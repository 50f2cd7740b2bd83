"""Learned copy-paste augmentation for object detectors, trained live against the detector's own loss.

Names are imported when they are first asked for, so that what needs no torch, as :mod:`terse_aug.bank`, comes without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from terse_aug._version import __version__

if TYPE_CHECKING:
    from terse_aug import bank as bank
    from terse_aug import instruments as instruments
    from terse_aug import lockstep as lockstep
    from terse_aug import policies as policies
    from terse_aug import preview as preview
    from terse_aug import samplers as samplers
    from terse_aug import targets as targets
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
    "_compose": ("Composites", "Paste"),
    "_config": ("TerseConfig",),
    "_parcel": ("CutoutLoader", "Parcel"),
    "_pixels": ("PixelFormat",),
    "_probe": ("Probe", "probe"),
    "_remarks": ("TerseWarning",),
    "_terse": ("Terse",),
    "_transforms": ("PARAMETERS", "TransformRanges"),
    "bank": ("Foreground", "ForegroundBank"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_PARTS = ("bank", "instruments", "lockstep", "policies", "preview", "samplers", "targets")


if not TYPE_CHECKING:  # to a type checker it would mean that every name is there

    def __getattr__(name: str) -> Any:
        if name in _PARTS:
            return import_module(f"{__name__}.{name}")
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
