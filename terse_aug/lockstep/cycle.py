"""The lock-step schedule: rounds of mining and training, resumable after a kill at any point."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from terse_aug.lockstep.mining import Batch, HardExampleMiner, MiningReport
from terse_aug.utils.warnings import TerseWarning

_FORMAT = 2
_NOT_TRAINED = (
    "the discriminator was not trained in round {}: it is left as it is in mining, and trained beside the model on "
    "batches of mix_batches(..., terse=terse)"
)


class Stateful(Protocol):
    """What training changes: a model, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restore a state."""
        ...


class LockStep:
    """Rounds of two phases: hard examples are mined for the frozen model, then the model trains on real images and on
    these (TERSE, CVPR 2019).

    ::

        lockstep = LockStep(miner, "run/lockstep", {"model": model, "optimizer": optimizer})
        lockstep.run(6, backgrounds, train)

    A run is resumed from its folder: after a kill, build the same objects and call :meth:`run` again; it ends as it
    would have without. Mining loses at most ``save_every`` batches, training starts its round again. For a single
    process: ranks of a distributed run would overwrite each other's files.

    Args:
        miner: its cache has to be empty when the run starts, and its file kept with the folder.
        folder: for checkpoints; created if missing.
        learners: what :meth:`run`'s ``train`` changes, by name.
        save_every: mined batches from one checkpoint to the next.

    Raises:
        ValueError: ``save_every`` below 1.
    """

    def __init__(
        self, miner: HardExampleMiner, folder: str | Path, learners: Mapping[str, Stateful], save_every: int = 100
    ) -> None:
        if save_every < 1:
            raise ValueError(f"save_every: expected at least 1 batch, got {save_every}")
        self._miner, self._folder, self._learners = miner, Path(folder), dict(learners)
        self._save_every = save_every
        self._folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        rounds: int,
        backgrounds: Callable[[int], Iterable[Batch]],
        train: Callable[[int, list[MiningReport]], None],
        show: bool = True,
    ) -> list[MiningReport]:
        """Do the rounds that are not done yet.

        Args:
            rounds: in total; give more to continue a finished run.
            backgrounds: from the number of a round, from 0 on, to batches to paste on; the same ones in every call.
            train: trains the model in a round, given its number and the mining reports so far. Its draws have to come
                from torch's global generators or be a function of the number, or a resumed run ends differently. It
                changes nothing but the learners and, by :func:`mix_batches`, the discriminator.
            show: draw progress bars.

        Returns:
            The mining report of each round.

        Raises:
            ValueError: the checkpoint is of another version or has other learners, or the cache is another one.
        """
        state = self._resume()
        with _progress_bars(show) as bars:
            total = bars.add_task("rounds", total=rounds, completed=min(state["round"], rounds))
            for number in range(state["round"], rounds):
                if state["phase"] == "mine":
                    self._mine(state, backgrounds(number), bars)
                updater = self._miner.terse.trainer.updater
                steps = updater.discriminator_steps
                train(number, [MiningReport(**report) for report in state["reports"]])
                if updater.discriminator is not None and updater.discriminator_steps == steps:
                    warnings.warn(_NOT_TRAINED.format(number), TerseWarning, stacklevel=2)
                state |= {"round": number + 1, "phase": "mine", "partial": None, "generators": _global_generators()}
                self._save_learners(state)
                bars.advance(total)
        return [MiningReport(**report) for report in state["reports"]]

    def _mine(self, state: dict[str, Any], batches: Iterable[Batch], bars: Progress) -> None:
        """The mining phase of a round, from its last checkpoint on."""
        partial = MiningReport(**state["partial"]) if state["partial"] else None
        task = bars.add_task(f"mining {state['round'] + 1}", total=sum(self._miner.wanted.values()))

        def progress(report: MiningReport) -> None:
            bars.update(task, completed=sum(report.found.values()))
            if report.batches % self._save_every == 0:
                state["partial"] = asdict(report)
                self._save(state)

        report = self._miner.run(islice(batches, partial.batches if partial else 0, None), partial, progress)
        bars.remove_task(task)
        state |= {"phase": "train", "partial": None, "reports": [*state["reports"], asdict(report)]}
        state["generators"] = _global_generators()
        self._save(state)

    @property
    def _path(self) -> Path:
        return self._folder / "lockstep.pt"

    def _learners_path(self, number: int) -> Path:
        return self._folder / f"learners-{number}.pt"

    def _resume(self) -> dict[str, Any]:
        """Load the last checkpoint into all objects, or start; returns the progress."""
        cache = self._miner.cache
        if not self._path.exists():
            if cache.written:
                raise ValueError(
                    f"{cache.path} has examples but {self._folder} no checkpoint: expected an empty cache for a new "
                    "run, or the folder of the run that filled it"
                )
            state: dict[str, Any] = {"format": _FORMAT, "round": 0, "phase": "mine", "partial": None, "reports": []}
            state["generators"] = _global_generators()
            self._save_learners(state)
            return state
        state = torch.load(self._path, map_location="cpu", weights_only=True)
        if state.get("format") != _FORMAT:
            raise ValueError(f"{self._path}: expected a checkpoint of version {_FORMAT}, got {state.get('format')}")
        learners = self._load_learners(state["round"])
        if learners.keys() != self._learners.keys():
            raise ValueError(f"{self._folder}: expected the learners {sorted(learners)}, got {sorted(self._learners)}")
        if state.pop("cache") != cache.id:
            raise ValueError(f"{cache.path}: it is not the cache that the run in {self._folder} has filled")
        cache.rollback(state.pop("written"))
        self._miner.terse.load_state_dict(state.pop("terse"))
        for name, learner in learners.items():
            self._learners[name].load_state_dict(learner)
        self._remove_other_learners(state["round"])
        _restore_global_generators(state.get("generators", []))
        return state

    def _save_learners(self, state: dict[str, Any]) -> None:
        """Checkpoint between two rounds. The old learners are removed last: at any time there is a valid checkpoint."""
        number = state["round"]
        _write({name: learner.state_dict() for name, learner in self._learners.items()}, self._learners_path(number))
        self._load_learners(number)  # a state that cannot be loaded raises before anything is lost
        self._save(state)
        self._remove_other_learners(number)

    def _load_learners(self, number: int) -> dict[str, Any]:
        states: dict[str, Any] = torch.load(self._learners_path(number), map_location="cpu", weights_only=True)
        return states

    def _remove_other_learners(self, number: int) -> None:
        for path in self._folder.glob("learners-*.pt"):
            if path != self._learners_path(number):
                path.unlink()

    def _save(self, state: dict[str, Any]) -> None:
        cache = self._miner.cache
        cache.sync()
        own = {"written": cache.written, "cache": cache.id, "terse": self._miner.terse.state_dict()}
        _write(state | own, self._path)


def _global_generators() -> list[Tensor]:
    """States of torch's global generators, the CPU's first: torchvision's detectors draw their proposals from them."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def _restore_global_generators(states: Sequence[Tensor]) -> None:
    if states:
        torch.set_rng_state(states[0])
    if torch.cuda.is_available() and len(states) == 1 + torch.cuda.device_count():
        torch.cuda.set_rng_state_all(list(states[1:]))


def _write(content: dict[str, Any], path: Path) -> None:
    """Replace a file atomically and durably."""
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _progress_bars(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, disable=not show)
