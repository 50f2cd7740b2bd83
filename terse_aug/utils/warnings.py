"""Warnings that are given once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping


class TerseWarning(UserWarning):
    """Something was left out so that training could continue; given once per kind and :class:`terse_aug.Terse`."""


class WarnOnce:
    """Gives each kind of warning once."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def warn(self, kind: str, text: str) -> None:
        """Give a :class:`TerseWarning`, unless this kind was given before."""
        if kind not in self._given:
            self._given.add(kind)
            warnings.warn(text, TerseWarning, stacklevel=4)

    def warn_all(self, texts: Mapping[str, str]) -> None:
        """Give several kinds, each unless it was given before."""
        for kind, text in texts.items():
            self.warn(kind, text)
