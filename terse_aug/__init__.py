"""Learned copy-paste augmentation for object detectors, trained live against the detector's own loss."""

from terse_aug._compose import Composites, Paste
from terse_aug._config import TerseConfig
from terse_aug._parcel import CutoutLoader, Parcel
from terse_aug._pixels import PixelFormat
from terse_aug._probe import Probe, probe
from terse_aug._remarks import TerseWarning
from terse_aug._terse import Terse
from terse_aug._transforms import PARAMETERS, TransformRanges
from terse_aug._version import __version__
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
