"""What every host's adapter has to show, whatever the host: each adapter's tests inherit :class:`Conformance`.

A host trains real models of its own on a tiny data set; what came of it is told in a form that knows no host.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import random
import resource
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_bank, white_disc
from torch import Tensor

from terse_aug import Terse

WRITTEN_DOWN = 10
"""So many batches of a run are kept."""


@dataclass(frozen=True)
class Seen:
    """An image as the model got it, or as the data loader gave it: RGB float ``[3, H, W]`` in [0, 1], labels from 0."""

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None


@dataclass
class Run:
    """A training.

    Attributes:
        losses: of every iteration, in all.
        weights: of the detector at the end.
        loaded: the first batches as the data loader gave them.
        entered: the first batches as the model got them.
        terse: the pasting, if it was on.
        resident: megabytes of memory in use, at every iteration.
        draws: what the global generators would draw next, before and after the adapter's part of an iteration: pasting,
            and the adversary's move.
        said: what the host's log has of terse-aug.
    """

    losses: list[float] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    loaded: list[list[Seen]] = field(default_factory=list)
    entered: list[list[Seen]] = field(default_factory=list)
    terse: Terse | None = None
    resident: list[float] = field(default_factory=list)
    draws: list[tuple[str, str]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


class Host(ABC):
    """A host with a tiny data set of two classes: images of several sizes, some without objects."""

    classes: tuple[str, ...]
    """Names of the labels from 0 on, in another order than the bank's."""

    def train(self, out: Path, iterations: int = 4, start: int = 0, **options: Any) -> Run:
        """Train, see :meth:`run`; and see that something was written down."""
        run = self.run(out, iterations, start=start, **options)
        count = iterations - start
        assert len(run.losses) == len(run.resident) == count
        assert len(run.loaded) == len(run.entered) == min(count, WRITTEN_DOWN)
        return run

    @abstractmethod
    def run(
        self,
        out: Path,
        iterations: int,
        *,
        start: int,
        terse: dict[str, Any] | None = None,
        save_at: int | None = None,
        not_finite_at: int | None = None,
        model: str = "masks",
    ) -> Run:
        """Train a model of the host's own; everything that is drawn, but by terse-aug, is a function of the iteration.

        Args:
            out: folder for checkpoints.
            iterations: where training ends.
            start: resume from the checkpoint that was saved there; 0 for none.
            terse: settings of terse-aug, ``policy`` and ``seed`` among them; ``None`` trains without it, and without
                the adapter having any part in it.
            save_at: save a checkpoint after so many iterations, and go on.
            not_finite_at: the loss of this iteration is infinite, without a gradient.
            model: ``masks``, one that learns from masks; ``plain``, the cheapest that a trainer accepts.
        """


def settings(policy: str = "random", **more: Any) -> dict[str, Any]:
    """Settings under which every image gets a paste and the adversary moves in every iteration."""
    return {"policy": policy, "seed": 0, "image_probability": 1.0, "move_every": 1, "objects": (1, 2)} | more


class Conformance:
    """The properties. A host's tests give the fixture ``host``."""

    def test_off_means_off(self, host: Host, tmp_path: Path) -> None:
        without, off = host.train(tmp_path / "a"), host.train(tmp_path / "b", terse=settings(enabled=False))
        assert off.terse is None
        assert without.losses == off.losses
        assert all(map(torch.equal, without.weights, off.weights))

    def test_what_enters_the_model_is_labelled_right(self, host: Host, tmp_path: Path) -> None:
        run = host.train(tmp_path, 6, terse=settings(objects=(2, 2), decoys=(0, 0), edge_sigma=0.0))
        pairs = list(zip(chain(*run.loaded), chain(*run.entered), strict=True))
        assert len({tuple(after.image.shape) for _, after in pairs}) > 1
        assert any(len(before.boxes) == 0 for before, _ in pairs)
        for before, after in pairs:
            assert after.masks is not None
            height, width = after.image.shape[1:]
            assert after.image.shape == before.image.shape
            assert len(after.labels) == len(after.boxes) == len(after.masks) > 0
            assert 0 <= int(after.labels.min()) <= int(after.labels.max()) < len(host.classes)
            assert bool((after.boxes >= 0).all() & (after.boxes[:, [0, 2]] <= width).all())
            assert bool((after.boxes[:, [1, 3]] <= height).all())
            pasted = self._pasted(before, after)
            assert len(pasted) in (1, 2)
            # All that changed is a paste's, and a paste's mask is where the picture changed.
            changed = ((after.image - before.image).abs().amax(0) > 0.02).cpu()
            covered = after.masks[pasted].any(0).cpu()
            assert float((changed & ~covered).sum()) <= 0.15 * float(covered.sum())
            assert float((covered & ~changed).sum()) <= 0.1 * float(covered.sum())
            for row in pasted:
                rows, columns = after.masks[row].nonzero(as_tuple=True)
                box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert torch.allclose(after.boxes[row].cpu(), torch.stack(box).float().cpu(), atol=1.5)

    @staticmethod
    def _pasted(before: Seen, after: Seen) -> list[int]:
        """Rows of the objects that were not there: they come last, after what is left of the old ones."""
        assert before.masks is not None
        assert after.masks is not None
        old = sum(
            bool((own & mask).sum() > 0.2 * mask.sum() and bool((own & ~mask).sum() == 0))
            for mask in before.masks
            for own in after.masks[: len(before.masks)]
        )
        return list(range(old, len(after.masks)))

    def test_colours_arrive_as_they_are(self, host: Host, tmp_path: Path) -> None:
        """Red discs, on pictures of noise up to half as bright."""
        disc = white_disc(side=20, relative_size=0.35)
        disc.rgba[..., 1:3] = 0
        red = make_bank(tmp_path, [dataclasses.replace(disc, label=label) for label in (1, 2)])
        run = host.train(tmp_path / "out", 2, terse=settings(bank=str(red.path), decoys=(0, 0)))
        for before, after in zip(chain(*run.loaded), chain(*run.entered), strict=True):
            new = ((after.image - before.image).abs().amax(0) > 0.4).cpu()
            colour = after.image[:, new].mean(1)
            assert int(new.sum()) > 30
            assert colour[0] > 0.8
            assert colour[1:].max() < 0.2

    def test_classes_are_matched_by_name(self, host: Host, tmp_path: Path) -> None:
        run = host.train(tmp_path, 3, terse=settings())
        assert run.terse is not None
        assert run.terse.bank.categories == dict(enumerate(host.classes))

    @pytest.mark.parametrize("policy", ["adversarial", "critic"])
    def test_the_adversary_learns_from_the_loss(self, host: Host, tmp_path: Path, policy: str) -> None:
        first = host.train(tmp_path / "a", 1, terse=settings(policy)).terse
        last = host.train(tmp_path / "b", 4, terse=settings(policy)).terse
        assert first is not None
        assert last is not None
        assert (first.metrics()["updates"], last.metrics()["updates"]) == (1, 4)
        pairs = zip(first.policy.parameters(), last.policy.parameters(), strict=True)
        assert any(not torch.equal(own, other) for own, other in pairs)

    @pytest.mark.parametrize("policy", ["random", "critic"])
    def test_a_seed_gives_the_same_run_and_no_other_does(self, host: Host, tmp_path: Path, policy: str) -> None:
        runs = [host.train(tmp_path / str(n), 3, terse=settings(policy, seed=seed)) for n, seed in enumerate((5, 5, 6))]
        assert runs[0].losses == runs[1].losses
        assert all(map(torch.equal, runs[0].weights, runs[1].weights))
        assert runs[0].losses != runs[2].losses

    @pytest.mark.parametrize("policy", ["critic", "adversarial", "best-of-n"])
    def test_the_hosts_own_draws_are_left_alone(self, host: Host, tmp_path: Path, policy: str) -> None:
        run = host.train(tmp_path, terse=settings(policy))
        assert run.terse is not None
        assert run.terse.metrics()["objects_pasted"] > 0
        assert len(run.draws) == 2 * len(run.losses)
        assert all(before == after for before, after in run.draws)

    @pytest.mark.parametrize("policy", ["critic", "adversarial"])
    def test_a_resumed_run_equals_one_that_was_never_stopped(self, host: Host, tmp_path: Path, policy: str) -> None:
        whole = host.train(tmp_path, 6, terse=settings(policy), save_at=3)
        rest = host.train(tmp_path, 6, terse=settings(policy), start=3)
        assert rest.losses == whole.losses[3:]
        assert all(map(torch.equal, whole.weights, rest.weights))
        assert whole.terse is not None
        assert rest.terse is not None
        state = rest.terse.state_dict()
        for name, value in whole.terse.state_dict().items():
            torch.testing.assert_close(state[name], value, rtol=0, atol=0, equal_nan=True, msg=name)

    def test_a_checkpoint_from_before_is_taken_with_one_warning(self, host: Host, tmp_path: Path) -> None:
        host.train(tmp_path, 2, save_at=2)
        run = host.train(tmp_path, 4, terse=settings("critic"), start=2)
        assert run.terse is not None
        assert run.terse.metrics()["iterations"] == 2
        assert len([text for text in run.said if "no state of terse-aug" in text]) == 1

    @pytest.mark.parametrize("policy", ["critic", "adversarial"])
    def test_a_loss_that_is_not_finite_skips_the_move(self, host: Host, tmp_path: Path, policy: str) -> None:
        with pytest.warns(UserWarning, match="the loss is inf"):
            run = host.train(tmp_path, 3, terse=settings(policy), not_finite_at=1, model="plain")
        assert run.terse is not None
        figures = run.terse.metrics()
        assert (figures["iterations"], figures["updates"], figures["skipped_updates"]) == (3, 2, 1)
        assert all(bool(parameter.isfinite().all()) for parameter in run.terse.parameters())

    def test_memory_does_not_grow(self, host: Host, tmp_path: Path) -> None:
        if not Path("/proc/self/statm").exists():
            pytest.skip("memory in use is read from /proc")
        run = host.train(tmp_path, 150, terse=settings("critic", move_every=10), model="plain")
        # What one iteration needs comes and goes; 70 kB that each leaves behind would be seen.
        early, late = min(run.resident[30:60]), min(run.resident[-30:])
        assert late - early < 6, run.resident[::10]


class Listener(logging.Handler):
    """Writes down what a logger is told."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.texts = texts

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def next_draws() -> str:
    """What torch, numpy and Python would draw next from their global generators."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - what the hosts draw from
    state = (torch.get_rng_state().tolist(), kind, np.asarray(keys).tolist(), rest, random.getstate())
    return hashlib.blake2b(repr(state).encode()).hexdigest()


def resident_megabytes() -> float:
    """Memory that this process holds now, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
