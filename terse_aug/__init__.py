"""Learned copy-paste augmentation for object detectors, trained against the detector's own loss.

Names are imported on first use, so that what needs no torch (:mod:`terse_aug.bank`) starts without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from terse_aug._version import __version__

if TYPE_CHECKING:
    from terse_aug import bank as bank
    from terse_aug import evaluation as evaluation
    from terse_aug import export as export
    from terse_aug import lockstep as lockstep
    from terse_aug import models as models
    from terse_aug import policies as policies
    from terse_aug import preview as preview
    from terse_aug import samplers as samplers
    from terse_aug.bank import Foreground, ForegroundBank
    from terse_aug.composer import Composer, CompositeRecord
    from terse_aug.compositing.compose import Composites, Paste
    from terse_aug.config import PasteConfig, Robustness
    from terse_aug.data.auxiliary_objects import Distractors
    from terse_aug.data.background_pool import BackgroundPool
    from terse_aug.data.foreground_loader import ForegroundLoader, SampledForegrounds
    from terse_aug.data.numbered_sampler import NumberedSampler
    from terse_aug.evaluation.probe import Probe, probe
    from terse_aug.structures.pixel_format import PixelFormat
    from terse_aug.terse import Terse
    from terse_aug.transforms import PARAMETERS, Photometric, TransformRanges
    from terse_aug.utils.warnings import TerseWarning

__all__ = [
    "PARAMETERS",
    "BackgroundPool",
    "Composer",
    "CompositeRecord",
    "Composites",
    "Distractors",
    "Foreground",
    "ForegroundBank",
    "ForegroundLoader",
    "NumberedSampler",
    "Paste",
    "PasteConfig",
    "Photometric",
    "PixelFormat",
    "Probe",
    "Robustness",
    "SampledForegrounds",
    "Terse",
    "TerseWarning",
    "TransformRanges",
    "__version__",
    "probe",
]

_HOMES = {
    "bank": ("Foreground", "ForegroundBank"),
    "composer": ("Composer", "CompositeRecord"),
    "compositing.compose": ("Composites", "Paste"),
    "config": ("PasteConfig", "Robustness"),
    "data.auxiliary_objects": ("Distractors",),
    "data.background_pool": ("BackgroundPool",),
    "data.foreground_loader": ("ForegroundLoader", "SampledForegrounds"),
    "data.numbered_sampler": ("NumberedSampler",),
    "evaluation.probe": ("Probe", "probe"),
    "structures.pixel_format": ("PixelFormat",),
    "terse": ("Terse",),
    "transforms": ("PARAMETERS", "Photometric", "TransformRanges"),
    "utils.warnings": ("TerseWarning",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
_PARTS = ("bank", "evaluation", "export", "lockstep", "models", "policies", "preview", "samplers")


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
