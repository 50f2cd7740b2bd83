"""Files of weights and plain values, read without unpickling."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def save_weights_file(path: str | Path, kind: str, version: int, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all.

    Args:
        path: of the file.
        kind: what the file is.
        version: of its format.
        content: tensors, numbers, texts, and dictionaries and lists of them.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        torch.save({"kind": kind, "version": version, **content}, partial)
        os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()


def load_weights_file(path: str | Path, kind: str, version: int) -> dict[str, Any]:
    """Read what :func:`save_weights_file` wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, of another version, or holds more than weights and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # of damaged files, torch raises nearly anything
        # Not torch's own message: it proposes to unpickle the file.
        raise ValueError(
            f"{path}: expected a {kind} file; it is damaged, or holds objects that would have to be unpickled"
        ) from error
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ValueError(f"{path}: expected a {kind} file, found something else")
    if content.get("version") != version:
        raise ValueError(f"{path}: expected a {kind} file of version {version}, got {content.get('version')!r}")
    return content
