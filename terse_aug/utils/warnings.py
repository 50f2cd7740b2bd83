"""Warnings that are given once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping


class TerseWarning(UserWarning):
    """Something was left out so that training could go on; each kind is warned of once per :class:`terse_aug.Terse`."""


class WarnOnce:
    """Warns of each kind once."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def once(self, kind: str, text: str) -> None:
        """Warn, unless this kind was warned of before."""
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(text, TerseWarning, stacklevel=3)

    def all(self, texts: Mapping[str, str]) -> None:
        """Warn of several kinds."""
        for kind, text in texts.items():
            self.once(kind, text)
