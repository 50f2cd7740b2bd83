"""Reads a trained policy out of a saved ``Terse`` or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terse_aug.policies import Policy
from terse_aug.policies.base import COLUMNS_KEY, check_columns
from terse_aug.transforms import loaded_columns

STATE_KEY = "terse"
"""Name under which a checkpoint holds ``terse.state_dict()``, at its top level or in its ``objects``."""

_POLICY = "trainer.updater.policy."
_COUNTERS = "counters."


@dataclass(frozen=True)
class SavedPolicy:
    """The policy's part of a saved :class:`terse_aug.Terse`.

    Attributes:
        path: the file it is from.
        state: its ``state_dict()``.
    """

    path: Path
    state: Mapping[str, Tensor]

    @classmethod
    def read(cls, path: str | Path) -> SavedPolicy:
        """Read a file of ``torch.save(terse.state_dict(), path)``, or a checkpoint with it under :data:`STATE_KEY`.

        The file is read with ``weights_only=True``: a file from a stranger runs no code.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is none of the above, or its policy has no parameters.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"expected a saved state at {path}, found none")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file makes torch.load raise errors of many types
            raise ValueError(
                f"{path}: expected a file of torch.save(terse.state_dict()) that weights_only=True can read "
                f"({type(error).__name__})"
            ) from error
        state = _terse_state(content, path)
        own = {name.removeprefix(_POLICY): value for name, value in state.items() if name.startswith(_POLICY)}
        if not own:
            raise ValueError(f"{path}: the policy saved in it does not learn, so it has no parameters to load")
        return cls(path, own)

    @property
    def name(self) -> str:
        """Of the policy; ``adversarial`` for ``paper`` too, whose state has the same names."""
        if "real.features" in self.state:
            return "matched"
        return "critic" if any(name.startswith("network.") for name in self.state) else "adversarial"

    @property
    def classes(self) -> int | None:
        """Number of classes whose probabilities a critic predicts; ``None`` if it predicts the hardness alone."""
        probabilities = self.state.get("replay_probabilities")
        return None if probabilities is None else int(probabilities.shape[1])

    def load_into(self, policy: Policy) -> None:
        """Load it into a policy of the same kind.

        Raises:
            ValueError: the policy is of another kind, or its transforms have other columns.
        """
        expected = policy.state_dict()
        names = expected.keys() - {COLUMNS_KEY}
        wrong = sorted((self.state.keys() - {COLUMNS_KEY}) ^ names)
        if not wrong and policy.columns is not None:
            try:
                check_columns(loaded_columns(self.state.get(COLUMNS_KEY)), policy.columns)
            except ValueError as error:
                raise ValueError(f"{self.path}: {error}") from error
        wrong = wrong or [
            name for name in sorted(names) if getattr(self.state[name], "shape", None) != expected[name].shape
        ]
        if wrong:
            raise ValueError(
                f"{self.path}: expected the state of a {type(policy).__name__}, got one that differs in {len(wrong)} "
                f"entries, such as {wrong[0]}"
            )
        policy.load_state_dict(dict(self.state))


def _terse_state(content: Any, path: Path) -> Mapping[str, Any]:
    """The state of ``Terse`` in what a file holds."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: expected terse.state_dict() or a checkpoint, found {type(content).__name__}")
    objects = content.get("objects")
    nested = objects.get(STATE_KEY) if isinstance(objects, Mapping) else None
    for state in (content, content.get(STATE_KEY), nested):
        if isinstance(state, Mapping) and any(str(name).startswith(_COUNTERS) for name in state):
            return {str(name): value for name, value in state.items()}
    raise ValueError(
        f"{path}: expected terse.state_dict(), or a checkpoint with it under {STATE_KEY!r}; found the entries "
        f"{sorted(map(str, content))[:5]}"
    )
