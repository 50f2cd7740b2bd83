"""Optional packages."""

from __future__ import annotations

import importlib
from typing import Any


class MissingPackageError(ImportError, ValueError):
    """A package of an extra is not installed; a ``ValueError``, too, so that commands report it in one line."""


def optional_module(name: str, extra: str) -> Any:
    """Import a module of an optional package.

    Args:
        name: of the module, ``package.module``.
        extra: of terse-aug, which installs it.

    Raises:
        MissingPackageError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingPackageError(f"{package} cannot be imported ({error}): pip install terse-aug[{extra}]") from error
