"""Opens the files of cutters, which need torch: only where one is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_cutter(flag: str, path: Path) -> Any:
    """A :class:`terse_aug.discovery.Cutter`.

    Raises:
        ValueError: there is no such file, it is no cutter, or a package is missing.
    """
    if not path.is_file():
        raise ValueError(f"{flag}: there is no file {path}")
    try:
        from terse_aug.discovery import Cutter

        return Cutter.load(path)
    except ImportError as error:
        advice = "" if "pip install" in str(error) else "; pip install terse-aug[learn]"
        raise ValueError(f"{flag}: {error}{advice}") from error
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from error
