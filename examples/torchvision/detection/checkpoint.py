"""Checkpoints: the iteration, the history of evaluations, and the state of any number of named objects.

A file is `{"iteration": int, "notes": plain data, "objects": {name: state dict}}`, readable with
`weights_only=True`. Either training script reads the checkpoints of the other: names that only one of them has are
reported and ignored.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch


class Stateful(Protocol):
    """Anything with a state: modules, optimizers, gradient scalers, Terse."""

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain data."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Restore the state."""
        ...


def save(path: Path, objects: dict[str, Stateful], iteration: int, notes: dict[str, Any]) -> None:
    """Write a checkpoint; an interrupted write leaves the previous file intact.

    Args:
        path: The file.
        objects: What to save, by name.
        iteration: Number of finished iterations.
        notes: Plain data (numbers, strings, lists, dictionaries) for the resumed run.
    """
    states = {name: thing.state_dict() for name, thing in objects.items()}
    partial = path.with_name(path.name + ".partial")
    torch.save({"iteration": iteration, "notes": notes, "objects": states}, partial)
    os.replace(partial, path)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read from its file.

    Attributes:
        path: The file.
        iteration: Number of finished iterations.
        notes: The argument of `save`.
        states: The state dicts by name.
    """

    path: Path
    iteration: int
    notes: dict[str, Any]
    states: dict[str, dict[str, Any]]

    def restore(self, objects: dict[str, Stateful], required: tuple[str, ...] = ("detector", "optimizer")) -> None:
        """Restore the named objects; a name without a counterpart is printed.

        Raises:
            ValueError: If a required name is not in the file.
        """
        missing = [name for name in required if name not in self.states]
        if missing:
            raise ValueError(f"{self.path}: has no {', '.join(missing)}; it has {', '.join(self.states)}")
        for name, thing in objects.items():
            if name in self.states:
                thing.load_state_dict(self.states[name])
        for name in sorted(objects.keys() - self.states.keys()):
            print(f"{self.path}: has no state for '{name}', which starts from scratch")
        for name in sorted(self.states.keys() - objects.keys()):
            print(f"{self.path}: the state of '{name}' is not used here")


def load(path: Path) -> Checkpoint:
    """Read what `save` wrote, from either script.

    Raises:
        ValueError: If the file is not a checkpoint of this trainer.
    """
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict) or not {"iteration", "notes", "objects"} <= content.keys():
        raise ValueError(f"{path}: expected a checkpoint of this trainer; for plain weights, use --weights")
    return Checkpoint(path, content["iteration"], content["notes"], content["objects"])
