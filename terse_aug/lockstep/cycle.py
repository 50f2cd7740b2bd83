"""The whole lock-step: rounds of hunting and training, resumable after a kill at any point. Imports torch and rich."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from terse_aug.lockstep.mining import Batch, HardExampleMining, MiningReport

_FORMAT = 1


class Stateful(Protocol):
    """What training moves: a model, an optimizer, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Its state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Back to a state."""
        ...


class LockStep:
    """Rounds of: the target frozen, a hunt; then the target trained on real and kept images (TERSE, CVPR 2019).

    ::

        lockstep = LockStep(hunt, "run/lockstep", {"model": model, "optimizer": optimizer})
        lockstep.run(6, backgrounds, train)

    All that a run needs to go on lies in its folder: after a kill, build the same objects, call :meth:`run` again, and
    it ends as it would have without. A hunt loses at most ``save_every`` batches, training begins its round again. For
    one process: ranks of a distributed run would write over one another.

    Args:
        hunt: of each round; its cache has to be empty where the run begins, and its file kept with the folder.
        folder: for checkpoints; made if need be.
        learners: what :meth:`run`'s ``train`` moves, by name.
        save_every: batches of a hunt from one checkpoint to the next.

    Raises:
        ValueError: ``save_every`` below 1.
    """

    def __init__(
        self, hunt: HardExampleMining, folder: str | Path, learners: Mapping[str, Stateful], save_every: int = 100
    ) -> None:
        if save_every < 1:
            raise ValueError(f"save_every: expected at least 1 batch, got {save_every}")
        self._hunt, self._folder, self._learners = hunt, Path(folder), dict(learners)
        self._save_every = save_every
        self._folder.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        rounds: int,
        backgrounds: Callable[[int], Iterable[Batch]],
        train: Callable[[int, list[MiningReport]], None],
        show: bool = True,
    ) -> list[MiningReport]:
        """Do the rounds that are not done.

        Args:
            rounds: in all; a run that ended may be gone on with by giving more.
            backgrounds: for the number of a round, from 0 on, batches to paste on; the same ones each time it is
                asked.
            train: trains the target in a round, given its number and the reports of the hunts so far. What it draws
                has to be a function of the number, or a resumed run ends differently. It moves nothing but the
                learners.
            show: draw progress bars.

        Returns:
            The report of each hunt.

        Raises:
            ValueError: the checkpoint is of another version, has other learners, or its cache is not the one at hand.
        """
        place = self._resume()
        with _bars(show) as bars:
            total = bars.add_task("rounds", total=rounds, completed=min(place["round"], rounds))
            for number in range(place["round"], rounds):
                if place["phase"] == "hunt":
                    self._go_hunting(place, backgrounds(number), bars)
                train(number, [MiningReport(**report) for report in place["reports"]])
                place |= {"round": number + 1, "phase": "hunt", "begun": None}
                self._save_learners(place)
                bars.advance(total)
        return [MiningReport(**report) for report in place["reports"]]

    def _go_hunting(self, place: dict[str, Any], batches: Iterable[Batch], bars: Progress) -> None:
        """The hunt of a round, from where it was left, and its checkpoints."""
        hunt = self._hunt
        begun = MiningReport(**place["begun"]) if place["begun"] else None
        task = bars.add_task(f"hunt {place['round'] + 1}", total=sum(hunt.wanted.values()))

        def note(report: MiningReport) -> None:
            bars.update(task, completed=sum(report.found.values()))
            if report.batches % self._save_every == 0:
                place["begun"] = asdict(report)
                self._save(place)

        report = hunt.run(islice(batches, begun.batches if begun else 0, None), begun, note)
        bars.remove_task(task)
        place |= {"phase": "train", "begun": None, "reports": [*place["reports"], asdict(report)]}
        self._save(place)

    @property
    def _path(self) -> Path:
        return self._folder / "lockstep.pt"

    def _learners_path(self, number: int) -> Path:
        return self._folder / f"learners-{number}.pt"

    def _resume(self) -> dict[str, Any]:
        """Where the run is; everything brought to that state."""
        if not self._path.exists():
            if self._hunt.cache.written:
                raise ValueError(
                    f"{self._hunt.cache.path} has examples but {self._folder} no checkpoint: expected an empty cache "
                    "for a new run, or the folder of the run that filled it"
                )
            place: dict[str, Any] = {"format": _FORMAT, "round": 0, "phase": "hunt", "begun": None, "reports": []}
            self._save_learners(place)
            return place
        place = torch.load(self._path, map_location="cpu", weights_only=True)
        if place.get("format") != _FORMAT:
            raise ValueError(f"{self._path}: expected a checkpoint of version {_FORMAT}, got {place.get('format')}")
        states = self._load_learners(place["round"])
        if states.keys() != self._learners.keys():
            raise ValueError(
                f"{self._folder}: expected the learners {sorted(states)}, got {sorted(self._learners)}: give those "
                "that the run began with"
            )
        if place.pop("cache") != self._hunt.cache.id:
            raise ValueError(
                f"{self._hunt.cache.path}: it is not the cache that the run in {self._folder} has filled; give that one"
            )
        self._hunt.cache.rollback(place.pop("written"))
        self._hunt.terse.load_state_dict(place.pop("terse"))
        for name, state in states.items():
            self._learners[name].load_state_dict(state)
        self._clear(place["round"])
        return place

    def _save_learners(self, place: dict[str, Any]) -> None:
        """Checkpoint between two rounds. The old learners go last, so that there is never a moment without."""
        number = place["round"]
        _write({name: learner.state_dict() for name, learner in self._learners.items()}, self._learners_path(number))
        self._load_learners(number)  # what cannot be loaded has to be noticed now, not after a kill
        self._save(place)
        self._clear(number)

    def _load_learners(self, number: int) -> dict[str, Any]:
        states: dict[str, Any] = torch.load(self._learners_path(number), map_location="cpu", weights_only=True)
        return states

    def _clear(self, number: int) -> None:
        """Remove the learners of other rounds."""
        for path in self._folder.glob("learners-*.pt"):
            if path != self._learners_path(number):
                path.unlink()

    def _save(self, place: dict[str, Any]) -> None:
        cache = self._hunt.cache
        cache.sync()
        now = {"written": cache.written, "cache": cache.id, "terse": self._hunt.terse.state_dict()}
        _write(place | now, self._path)


def _write(content: dict[str, Any], path: Path) -> None:
    """The whole file or what was there before."""
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


def _bars(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, disable=not show)
