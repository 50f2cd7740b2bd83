"""The benchmark on a GPU: kernel launches and synchronisations, training steps, compositing."""

from __future__ import annotations

import itertools
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks._gpu_checks import Batch, as_float, drawn_bank, make_batch, make_detector, moved
from benchmarks._timing import Summary, interleaved
from benchmarks._training_steps import CYCLE, POLICIES, cycle_mean
from terse_aug import PasteConfig, Terse
from terse_aug.bank import ForegroundBank
from terse_aug.config import POLICY_SETTINGS

if TYPE_CHECKING:
    from benchmarks.gpu import Progress

ARMS = ("random", "critic_k4", "adversarial_k4")
"""Arms of the training step, beside ``none``."""

KINDS = {
    "launches": re.compile(r"cu(da)?Launch(Cooperative)?Kernel"),
    "synchronisations": re.compile(r"cuda(Stream|Event)Synchronize"),  # cudaDeviceSynchronize is this benchmark's own
    "copies to device": re.compile(r"Memcpy HtoD"),
    "copies to host": re.compile(r"Memcpy DtoH"),
}
"""What is counted, by names of the profiler's events."""


# Launches and synchronisations.


def launches(progress: Progress) -> None:
    """Count what each policy makes the device do, in an iteration with an update and in one without."""
    rows: list[dict[str, Any]] = []
    side, size = (64, 1) if progress.small else (512, 8)
    detector = make_detector("tiny" if progress.small else "resnet50", side, progress.device)
    cases: list[tuple[str, tuple[str, ...], int | None]] = [(policy, (), None) for policy in POLICY_SETTINGS]
    cases += itertools.product(("random", "critic", "adversarial"), [()], (2, 8))
    cases += [(policy, ("masks",), None) for policy in POLICY_SETTINGS]
    with drawn_bank() as bank:
        for policy, fields, pastes in cases[:: 5 if progress.small else 1]:
            if progress.time_is_up():
                return
            batch = moved(make_batch(side, size, fields), progress.device)
            number = {} if pastes is None else {"objects": (pastes, pastes), "decoys": (0, 0), "paste_probability": 1.0}
            terse = Terse(bank, policy, model=detector, paste=PasteConfig(**number)).to(progress.device)
            common = {"policy": policy, "fields": " ".join(("boxes", *fields)), "on an image": pastes or "default"}
            rows += [common | row for row in _counted_training(progress, terse, detector, batch)]
            title = "Counts of an iteration" if progress.on_cuda else "Counts (needs CUDA for all but operators)"
            progress.table(title, rows)


def _counted_training(progress: Progress, terse: Terse, detector: nn.Module, batch: Batch) -> list[dict[str, Any]]:
    """Counts of two iterations, of which the first has an update if the policy learns, after a cycle of warm-up."""
    rows = []
    warmup = 0 if progress.small else CYCLE
    for number in range(warmup + 2):
        seen: dict[str, Counter[str]] = {}
        before = terse.metrics()["updates"]
        count = _Counter(progress, seen if number >= warmup else None)
        images, targets = count("forward", lambda: terse(*batch))
        pastes = sum(map(len, terse.pastes))
        losses = count("detector", lambda images=images, targets=targets: _trained(detector, images, targets))
        count("step", lambda losses=losses: terse.step(losses))
        if progress.on_cuda and seen and not seen["detector"]["launches"]:
            raise RuntimeError("the profiler has recorded no kernel launch: CUPTI cannot be used on this machine")
        common = {"pastes": pastes, "update": terse.metrics()["updates"] > before}
        rows += [common | {"in": part} | dict(found) for part, found in seen.items()]
        detector.zero_grad()
    return rows


class _Counter:
    """Runs something under the profiler and stores the counts in ``seen``, unless that is ``None``."""

    def __init__(self, progress: Progress, seen: dict[str, Counter[str]] | None) -> None:
        self._progress, self._seen = progress, seen

    def __call__(self, part: str, work: Callable[[], Any]) -> Any:
        if self._seen is None:
            return work()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._progress.on_cuda
        self._progress.synchronize()
        with profile(activities=activities) as profiler:
            result = work()
            self._progress.synchronize()
        # profiler.events() has the same names, but takes 40 times as long.
        names = [event.name() for event in profiler.profiler.kineto_results.events()]
        self._seen[part] = counts_of(names, self._progress.on_cuda)
        return result


def counts_of(names: Sequence[str], on_cuda: bool = True) -> Counter[str]:
    """Counts of each of :data:`KINDS`, and of torch's operators, from the names of a profiler's events."""
    found = Counter({kind: sum(bool(own.match(name)) for name in names) for kind, own in KINDS.items() if on_cuda})
    found["operators"] = sum(name.startswith("aten::") for name in names)
    return found


def _trained(detector: nn.Module, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = detector(as_float(images), targets)
    torch.stack(list(losses.values())).sum().backward()
    return losses


# A training step.


def step(progress: Progress) -> None:
    """Time steps of a Faster R-CNN with each policy beside those without, in turns."""
    options, small = progress.options, progress.small
    side, size = options.side or (64 if small else 800), options.batch or (1 if small else 16)
    name, cycles = options.detector or ("tiny" if small else "resnet50"), options.cycles or (1 if small else 30)
    warmup = 0 if small else CYCLE
    batches = [_pinned(make_batch(side, size, seed=seed), progress) for seed in range(2)]
    detector = make_detector(name, side, progress.device)
    title = f"Faster R-CNN {name}, {side} px, batch {size}, random weights"
    with drawn_bank() as bank:
        steps = {"none": _Step(progress, detector, None)}
        for arm in ARMS:
            steps[arm] = _Step(progress, detector, Terse(bank, POLICIES[arm], model=detector).to(progress.device))

        def stop(turn: int) -> bool:
            whole, rest = divmod(turn - warmup, CYCLE)
            if rest:
                return False
            if whole > 0:
                progress.table(title, [own.row(arm, steps["none"], warmup) for arm, own in steps.items()])
            return whole < cycles and progress.time_is_up()

        def arm_of(own: _Step) -> tuple[Callable[[int], Any], Callable[[Any], Any]]:
            return (lambda turn: (turn, moved(batches[turn % len(batches)], progress.device))), own

        interleaved({arm: arm_of(own) for arm, own in steps.items()}, CYCLE * cycles, warmup, stop=stop)
        stop(warmup + CYCLE * cycles)


@dataclass
class _Step:
    """A training step with or without Terse, and what its calls took.

    Attributes:
        on_device: seconds by CUDA's events, which do not count what the host does before and after.
        by_clock: seconds, to the end of the work on the device.
        in_terse: seconds that the host spent in Terse.
        megabytes: peak of the memory on the device.
    """

    progress: Progress
    detector: nn.Module
    terse: Terse | None
    on_device: list[float] = field(default_factory=list)
    by_clock: list[float] = field(default_factory=list)
    in_terse: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # So that the same work is left for all arms, which train the same detector.
        self._optimizer = torch.optim.SGD(self.detector.parameters(), lr=0.0, momentum=0.9)

    def __call__(self, prepared: tuple[int, Batch]) -> None:
        turn, (images, targets) = prepared
        torch.manual_seed(turn)
        self.progress.synchronize()
        before = 0.0 if self.terse is None else self.terse.seconds
        if self.progress.on_cuda:
            torch.cuda.reset_peak_memory_stats()
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
        started = time.perf_counter()
        if self.terse is not None:
            images, targets = self.terse(images, targets)
        losses = _trained(self.detector, images, targets)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self.terse is not None:
            self.terse.step(losses)
        if self.progress.on_cuda:
            last.record()
        self.progress.synchronize()
        self.by_clock.append(time.perf_counter() - started)
        self.in_terse.append(0.0 if self.terse is None else self.terse.seconds - before)
        if self.progress.on_cuda:
            self.on_device.append(first.elapsed_time(last) / 1e3)
            self.megabytes.append(torch.cuda.max_memory_allocated() / 1e6)

    def row(self, arm: str, none: _Step, warmup: int) -> dict[str, Any]:
        """The row of this arm, beside the arm without Terse."""
        found: dict[str, Any] = {"arm": arm, "steps": len(self.by_clock) - warmup}
        for kind in ("by_clock", "on_device"):
            own, base = (getattr(step, kind)[warmup:] for step in (self, none))
            title = {"by_clock": "ms by the clock", "on_device": "ms by CUDA events"}[kind]
            if own:
                summary = Summary.of(own)
                found |= {title: summary.median, f"{title}, q25": summary.low, f"{title}, q75": summary.high}
                found[f"ratio, {title.partition(' by ')[2]}"] = cycle_mean(own) / cycle_mean(base)
        found["host ms in Terse, mean"] = 1e3 * float(np.mean(self.in_terse[warmup:]))
        return found | ({"peak memory, MB": max(self.megabytes)} if self.megabytes else {})


# Compositing.


def composite(progress: Progress) -> None:
    """Images a second, upload included: composed on the device after it, and on the CPU before it."""
    rows: list[dict[str, Any]] = []
    cases = ((64, 2),) if progress.small else ((512, 3), (1024, 5))
    size = 2 if progress.small else 8
    with drawn_bank() as bank:
        for (side, pastes), masks in itertools.product(cases, (False, True)):
            drawn = make_batch(side, size, ("masks",) if masks else (), objects=pastes)
            for eight_bit in (True, False):
                if progress.time_is_up():
                    return
                batch = _pinned(drawn if eight_bit else (as_float(drawn[0]), drawn[1]), progress)
                common = {"px": side, "pastes": pastes, "fields": "boxes masks" if masks else "boxes"}
                common["images"] = "uint8" if eight_bit else "float"
                rows += [common | row for row in _throughput(progress, bank, batch, pastes)]
                progress.table(f"Images a second, random, batch {size}", rows)


def _throughput(progress: Progress, bank: ForegroundBank, batch: Batch, pastes: int) -> list[dict[str, Any]]:
    paste = PasteConfig(objects=(pastes, pastes), paste_probability=1.0, decoys=(0, 0))
    on_device, on_host = (Terse(bank, paste=paste).to(own) for own in (progress.device, "cpu"))

    def finish(result: Batch) -> Batch:
        progress.synchronize()
        return result

    arms: dict[str, Callable[[Any], Any]] = {
        "device, after the upload": lambda _: finish(on_device(*moved(batch, progress.device))),
        "CPU, before the upload": lambda _: finish(moved(on_host(*batch), progress.device)),
        "nowhere, upload alone": lambda _: finish(moved(batch, progress.device)),
    }
    rounds, warmup = (2, 0) if progress.small else (20, 3)
    times = interleaved({name: (lambda turn: None, work) for name, work in arms.items()}, rounds, warmup)
    rows = []
    for name, own in times.items():
        low, median, high = np.percentile(len(batch[0]) / np.array(own.wall), (25, 50, 75)).tolist()
        rows.append({"composed on": name, "images/s": median, "q25": low, "q75": high})
    return rows


def _pinned(batch: Batch, progress: Progress) -> Batch:
    if not progress.on_cuda:
        return batch
    images, targets = batch
    return [own.pin_memory() for own in images], [{k: v.pin_memory() for k, v in own.items()} for own in targets]
