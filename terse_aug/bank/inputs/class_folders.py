"""Folders whose subfolders are classes. Imports the standard library only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def visible_files(root: Path) -> list[Path]:
    """All visible files, in an order that does not depend on the file system."""
    below = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    visible = [path for path in below if not any(part.startswith(".") for part in path.parts)]
    return [root / path for path in sorted(visible, key=lambda path: path.as_posix())]


def class_of(root: Path, path: Path, category: str) -> str:
    """Name of the subfolder that a file lies in, at any depth below it; ``category`` where it lies in none."""
    parts = path.relative_to(root).parts
    return parts[0] if len(parts) > 1 else category


def labels_of(root: Path, files: Iterable[Path], category: str) -> dict[str, int]:
    """Labels 1, 2, ... of the classes of files, in the order of their names."""
    names = sorted({class_of(root, path, category) for path in files})
    return {name: label for label, name in enumerate(names, 1)}
