"""Warnings that are said once. Imports nothing."""

from __future__ import annotations

import warnings


class TerseWarning(UserWarning):
    """Something was left out so that training could go on; each kind is said once per :class:`terse_aug.Terse`."""


class WarnOnce:
    """What a :class:`terse_aug.Terse` has to say, each kind once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def once(self, kind: str, text: str) -> None:
        """Warn, unless this kind has been said."""
        if kind not in self._said:
            self._said.add(kind)
            warnings.warn(text, TerseWarning, stacklevel=4)
