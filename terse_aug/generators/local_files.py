"""Files of generators in a local folder: weights, class names. Nothing is unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

_CLASS_NAMES = "class_names.txt"


def state_dict_of(path: Path) -> dict[str, Any]:
    """The weights of a file of ``torch.save(model.state_dict())``, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds more than weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; download the generator's weights, and give their folder")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: expected a file of weights only ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dictionary of weights, got {type(content).__name__}")
    return content


def class_names_of(folder: Path, count: int, of_imagenet: Callable[[], Sequence[str]] | None = None) -> Sequence[str]:
    """The lines of ``class_names.txt``; without it ImageNet's if there are 1,000, or else ``class 0`` and so on.

    Raises:
        ValueError: the file has another number of names.
    """
    path = folder / _CLASS_NAMES
    if path.is_file():
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(names) != count:
            raise ValueError(f"{path}: expected {count} names, one a line, got {len(names)}")
        return names
    if of_imagenet is not None and len(known := of_imagenet()) == count:
        return known
    return [f"class {number}" for number in range(count)]
