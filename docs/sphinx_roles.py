"""Griffe extension: shows the Sphinx roles and literal blocks of docstrings as Markdown in the API reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|obj|exc):`~?([^`]+)`")
_SHORT = re.compile(r":(?:class|func|meth|mod|data|attr|obj|exc):`~[\w.]*\.(\w+)`")
_LITERAL = re.compile(r"^(\s*)(.*?)::$", re.MULTILINE)


class SphinxRoles(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace roles by code and the ``::`` of literal blocks by a colon."""
        if obj.docstring is None:
            return
        text = _ROLE.sub(r"`\1`", _SHORT.sub(r"`\1`", obj.docstring.value))
        obj.docstring.value = _LITERAL.sub(lambda mark: f"{mark[1]}{mark[2]}:" if mark[2] else "", text)
