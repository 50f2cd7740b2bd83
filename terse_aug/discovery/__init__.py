"""Learn to cut out foregrounds from photographs without masks, after improved layered GANs (Yang et al.)."""

from terse_aug.discovery.cutter import Cutter
from terse_aug.discovery.generator import LayeredGenerator, Layers
from terse_aug.discovery.settings import PRESETS, DiscoverySettings

__all__ = ["PRESETS", "Cutter", "DiscoverySettings", "LayeredGenerator", "Layers"]
