"""Opens a feature network of the user's, which needs torch: only where one is given."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

FLAG = "--features"


def open_features(text: str) -> Any:
    """The network that is meant by a TorchScript file, or by ``MODULE:FACTORY``, a function without arguments.

    Raises:
        ValueError: there is no such file, module or function, or it gives no network.
    """
    from torch import nn

    network = _scripted(Path(text)) if Path(text).is_file() else _made(text)
    if not isinstance(network, nn.Module):
        raise ValueError(f"{FLAG} {text}: expected a torch.nn.Module, got {type(network).__name__}")
    return network


def _scripted(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # feature networks for FID are common in this format
            return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]  # torch has no types
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{FLAG} {path}: expected a TorchScript file (torch.jit.save); for anything else give MODULE:FACTORY"
        ) from error


def _made(text: str) -> Any:
    if ":" not in text:
        raise ValueError(f"{FLAG}: expected a TorchScript file or MODULE:FACTORY, got {text!r} and no such file")
    from terse_aug.generators.load import imported

    factory = imported(text, FLAG)
    try:
        return factory()
    except Exception as error:  # whatever a user's function raises
        raise ValueError(f"{FLAG} {text}: {type(error).__name__}: {error}") from error
