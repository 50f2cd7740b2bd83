"""Folders of files, whose subfolders may be classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def check_folders(*folders: Path | None, content: str = "files") -> None:
    """Raise ``FileNotFoundError`` unless all folders exist; ``None`` is ignored."""
    for folder in folders:
        if folder is not None and not folder.is_dir():
            raise FileNotFoundError(f"expected a folder of {content} at {folder}, found none")


def visible_files(root: Path) -> list[Path]:
    """All visible files, at any depth, in the order of their names."""
    relative = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    visible = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
    return [root / path for path in sorted(visible, key=lambda path: path.as_posix())]


def class_labels(root: Path, files: Iterable[Path], category: str) -> tuple[dict[Path, int], dict[int, str]]:
    """Labels of files, and names of the labels 1, 2, ..., in the order of the names.

    A file's class is the subfolder of ``root`` that it lies in, at any depth, or ``category`` for a file in no
    subfolder.
    """
    class_of = {path: (*path.relative_to(root).parts[:-1], category)[0] for path in files}
    label_of = {name: label for label, name in enumerate(sorted(set(class_of.values())), 1)}
    return {path: label_of[name] for path, name in class_of.items()}, {label: name for name, label in label_of.items()}
