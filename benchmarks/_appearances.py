"""How pastes may look other than by default, for benchmarks that switch it on: settings of ``PasteConfig`` by name."""

from __future__ import annotations

from typing import Any

from terse_aug import Photometric
from terse_aug.transforms import BLENDS

APPEARANCES: dict[str, dict[str, Any]] = {
    "photometric": {
        "photometric": Photometric(
            brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.7, 1.3), hue=(-8, 8), blur=(0, 1), noise=(0, 0.03)
        )
    },
    "blends": {"blends": BLENDS},
}
