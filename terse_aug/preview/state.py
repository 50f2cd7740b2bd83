"""Gives a policy the parameters that it learned in training. Imports torch only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from terse_aug.terse import Terse

STATE_KEY = "terse"
"""Name under which a checkpoint keeps ``terse.state_dict()``, at its top or among its ``objects``."""

_POLICY = "adversary.policy."


def saved_policy(path: str | Path) -> str:
    """Name of the policy in a saved state: ``critic``, or else ``learned``, whose state ``deterministic``'s looks like.

    Args:
        path: as for :func:`load_policy_state`, which see for the errors raised.

    Raises:
        ValueError: the saved policy is one that does not learn.
    """
    learned = [name.removeprefix(_POLICY) for name in _read(path) if name.startswith(_POLICY)]
    if not learned:
        raise ValueError(f"{path}: the policy saved in it has learned nothing, so there is nothing to show of it")
    return "critic" if any(name.startswith("critic.") for name in learned) else "learned"


def saved_classes(path: str | Path) -> int | None:
    """Number of classes whose chances the policy in a saved state has learned; ``None`` if it learned hardness alone.

    Args:
        path: as for :func:`load_policy_state`, which see for the errors raised.
    """
    chances = _read(path).get(_POLICY + "_chances")
    return None if chances is None else int(chances.shape[1])


def load_policy_state(terse: Terse, path: str | Path) -> None:
    """Load the policy's part of a saved :class:`terse_aug.Terse`; optimizers, discriminator and counters stay.

    The file is ``torch.save(terse.state_dict(), path)``, or a checkpoint: a dictionary that holds the state
    under :data:`STATE_KEY`, itself or in a dictionary ``objects`` (as the example trainers write it). It is read
    with ``weights_only=True``, so a file from a stranger runs no code.

    Args:
        terse: its policy is that of the saved one.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is none of the above, or the state is of another policy.
    """
    state = _read(path)
    learned = {name.removeprefix(_POLICY): value for name, value in state.items() if name.startswith(_POLICY)}
    expected = terse.policy.state_dict()
    wrong = sorted(learned.keys() ^ expected.keys()) or [
        name for name in expected if getattr(learned[name], "shape", None) != expected[name].shape
    ]
    if wrong or not learned:
        found = f"differs in {len(wrong)} entries, such as {wrong[0]}" if learned and wrong else "has no parameters"
        raise ValueError(f"{path}: the policy saved in it is another than the one to load ({found})")
    terse.policy.load_state_dict(learned)


def _read(path: str | Path) -> Mapping[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a saved state at {path}, found none")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever a damaged file leads its decoders to
        raise ValueError(
            f"{path}: expected a file of torch.save(terse.state_dict()) that weights_only=True can read "
            f"({type(error).__name__})"
        ) from error
    return _terse_state(content, path)


def _terse_state(content: Any, path: str | Path) -> Mapping[str, Any]:
    nested = content.get("objects") if isinstance(content, Mapping) else None
    for place in (content, nested):
        if isinstance(place, Mapping) and isinstance(place.get(STATE_KEY), Mapping):
            content = place[STATE_KEY]
            break
    if isinstance(content, Mapping) and any(str(name).startswith(("adversary.", "ledger.")) for name in content):
        return {str(name): value for name, value in content.items()}
    raise ValueError(
        f"{path}: expected terse.state_dict(), or a checkpoint with it under {STATE_KEY!r}; found "
        + (f"the entries {sorted(map(str, content))[:5]}" if isinstance(content, Mapping) else type(content).__name__)
    )
