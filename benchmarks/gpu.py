"""Everything that is worth measuring on a GPU, in one command of 12 minutes at most that needs no data.

``python -m benchmarks.gpu --out DIR [--minutes 12] [--parts tests equality ...]``

Each part runs in a process of its own, so that a crash or an error of CUDA does not reach the next one, and gets its
share of the time that is left. ``DIR/results.json`` is written after each table, ``DIR/report.md`` at the end. Without
CUDA everything that can runs on the CPU at tiny sizes; these figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

GRACE = 10.0
"""Seconds at most between the end of a part's time, which it respects by itself, and its being killed."""

Row = Mapping[str, Any]
"""A row of a table, value by column."""


class Progress:
    """What a part is given: the device, the sizes, the time left, and where its tables go.

    Args:
        options: of the command line.
        device: to measure on.
        seconds: that the part may take.
        send: gets messages for the parent process.

    Attributes:
        small: whether to use sizes that only show that the code runs.
        stopped: whether the part was told that its time is up.
    """

    def __init__(
        self, options: argparse.Namespace, device: torch.device, seconds: float, send: Callable[[Any], None]
    ) -> None:
        self.options, self.device, self.stopped = options, device, False
        self.small = options.small or device.type == "cpu"
        self._until, self._send = time.monotonic() + seconds, send

    @property
    def on_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds left."""
        return max(self._until - time.monotonic(), 0.0)

    def time_is_up(self) -> bool:
        """Whether to do no more; call it only where there is more to do, as the part is then reported as cut short."""
        self.stopped = self.stopped or self.left() == 0
        return self.stopped

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Set a table of the results; again with more rows as they come."""
        self._send({"table": (title, list(rows))})

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_cuda:
            torch.cuda.synchronize()


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Attributes:
        run: does it.
        weight: its share of the time that is left, beside the weights of the parts after it.
        needs_cuda: whether it has nothing to do on a CPU.
    """

    run: Callable[[Progress], None]
    weight: float
    needs_cuda: bool = False


def bandwidth(progress: Progress) -> None:
    """Copies between host and device, in GB a second."""
    rows: list[Row] = []
    for megabytes in (1, 64):
        for pinned in (True, False) if progress.on_cuda else (False,):
            on_host = torch.ones(megabytes << 20, dtype=torch.uint8, pin_memory=pinned)
            on_device = torch.ones_like(on_host, device=progress.device)
            for direction, target, source in (("to device", on_device, on_host), ("to host", on_host, on_device)):
                if progress.time_is_up():
                    return
                speeds = np.percentile(_copy_speeds(progress, target, source), (25, 50, 75)).tolist()
                row = {"direction": direction, "memory": "pinned" if pinned else "pageable", "MB": megabytes}
                rows.append(row | dict(zip(("GB/s, q25", "GB/s, median", "GB/s, q75"), speeds, strict=True)))
                progress.table("Copy bandwidth", rows)


def _copy_speeds(progress: Progress, target: torch.Tensor, source: torch.Tensor, copies: int = 10) -> list[float]:
    speeds = []
    for _ in range(4 if progress.small else 12):
        progress.synchronize()
        started = time.perf_counter()
        for _ in range(copies):
            target.copy_(source, non_blocking=True)
        progress.synchronize()
        speeds.append(copies * source.nbytes / (time.perf_counter() - started) / 1e9)
    return speeds[2:]  # the first ones touch the memory


def _of(module: str, name: str) -> Callable[[Progress], None]:
    """A part that needs terse-aug: it is imported only then, so that a missing dependency is reported."""
    return lambda progress: getattr(import_module(f"benchmarks.{module}"), name)(progress)


PARTS: dict[str, Part] = {
    "tests": Part(_of("_gpu_checks", "cuda_tests"), 3, needs_cuda=True),
    "equality": Part(_of("_gpu_checks", "equality"), 2),
    "amp": Part(_of("_gpu_checks", "amp"), 1),
    "launches": Part(_of("_gpu_speed", "launches"), 2),
    "step": Part(_of("_gpu_speed", "step"), 3),
    "composite": Part(_of("_gpu_speed", "composite"), 2),
    "bandwidth": Part(bandwidth, 0.3, needs_cuda=True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the arguments of the command line."""
    options = _options(arguments)
    # Else a library that asks for CUDA when it is imported would spoil it for the forked processes.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    started = time.monotonic()
    total = 60 * options.minutes
    grace = min(GRACE, 0.1 * total)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"minutes": options.minutes, "small": options.small, "parts": {}}

    def left() -> float:
        return total - grace - (time.monotonic() - started)

    def save() -> None:
        results["seconds"] = round(time.monotonic() - started, 1)
        part = options.out / "results.json.part"
        part.write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")
        part.replace(options.out / "results.json")

    device, results["device"] = _find_device(options, grace)
    _preload()
    results["surroundings"] = _surroundings()
    for number, name in enumerate(options.parts):
        part, later = PARTS[name], options.parts[number:]
        seconds = left() * part.weight / sum(PARTS[own].weight for own in later)
        record = results["parts"][name] = {"status": "not run", "reason": "", "seconds": 0.0, "tables": {}}
        if part.needs_cuda and device.type != "cuda":
            record["reason"] = "needs CUDA"
        elif seconds < 0.1:
            record["reason"] = "no time was left"
        else:
            _run_apart(part, options, device, seconds, grace, record, save)
        save()
        print(_part_text(name, record), flush=True)
    (options.out / "report.md").write_text(_report(results), encoding="utf-8")
    print(_overview(results), flush=True)


def _find_device(options: argparse.Namespace, grace: float) -> tuple[torch.device, dict[str, Any]]:
    """The device, and what it is. A process of its own finds out: this one must not use CUDA, as it is forked."""
    record: dict[str, Any] = {"tables": {}}
    if options.device != "cpu":
        part = Part(_describe_cuda, 1)
        _run_apart(part, options, torch.device("cpu"), max(6 * grace, 1.0), grace, record, lambda: None)
    found = record["tables"].get("device", [])
    if found:
        return torch.device("cuda"), found[0]
    if options.device == "cuda":
        raise SystemExit(f"--device cuda: no CUDA device can be used: {record.get('reason') or 'torch sees none'}")
    return torch.device("cpu"), {"name": "cpu", "reason": record.get("reason", "")}


def _describe_cuda(progress: Progress) -> None:
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda").add_(1).item()
        own = torch.cuda.get_device_properties(0)
        values = {"name": own.name, "memory_gb": own.total_memory / 1e9, "processors": own.multi_processor_count}
        progress.table("device", [values | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}])


def _preload() -> None:
    """Import what the parts need once, for all processes; a part that fails to import it reports that."""
    with contextlib.suppress(Exception):
        import_module("benchmarks._gpu_speed")


def _surroundings() -> dict[str, Any]:
    try:
        return import_module("benchmarks._timing").surroundings()
    except ImportError as error:
        return {"reason": str(error)}


def _run_apart(
    part: Part,
    options: argparse.Namespace,
    device: torch.device,
    seconds: float,
    grace: float,
    record: dict[str, Any],
    save: Callable[[], None],
) -> None:
    """Run a part in a process of its own; its tables and how it ended are stored in ``record`` as they come."""
    context, started = multiprocessing.get_context("fork"), time.monotonic()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(part, options, device, seconds, sender), daemon=True)
    process.start()
    sender.close()
    record |= {"status": "running", "reason": ""}
    try:
        while record["status"] == "running" and receiver.poll(max(started + seconds + grace - time.monotonic(), 0)):
            message = receiver.recv()
            if "table" in message:
                title, rows = message["table"]
                record["tables"][title] = rows
            else:
                record |= message
            record["seconds"] = round(time.monotonic() - started, 2)
            save()
        if record["status"] == "running":
            record |= {"status": "cut short", "reason": f"killed {grace:.0f} s after its {seconds:.0f} s were over"}
    except EOFError:
        process.join()
        record |= {"status": "failed", "reason": f"its process ended with {process.exitcode}"}
    finally:
        process.join(2 if record["status"] == "complete" else 0)
        _kill(process)
        record["seconds"] = round(time.monotonic() - started, 2)


def _work(
    part: Part, options: argparse.Namespace, device: torch.device, seconds: float, connection: Connection
) -> None:
    os.setsid()  # what it starts is then killed with it
    progress = Progress(options, device, seconds, connection.send)
    try:
        part.run(progress)
        message = {"status": "complete"}
        if progress.stopped:
            message = {"status": "cut short", "reason": f"its {seconds:.0f} s were over"}
    except ImportError as error:
        message = {"status": "not run", "reason": f"{type(error).__name__}: {error}"}
    except BaseException as error:
        message = {"status": "failed", "reason": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    connection.send(message)


def _kill(process: Any) -> None:
    """End a process and all that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _report(results: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    around = results["surroundings"]
    lines = ["# Benchmark on a GPU", "", _overview(results), ""]
    lines += [f"- {name}: {value}" for name, value in results["device"].items()]
    lines += [f"- {name}: {value}" for name, value in (around.get("machine", {}) | around.get("versions", {})).items()]
    return "\n".join(lines) + "\n\n" + "\n".join(_part_text(name, own) for name, own in results["parts"].items())


def _overview(results: Mapping[str, Any]) -> str:
    rows = [{"part": name} | _outcome(record) for name, record in results["parts"].items()]
    return f"{results['device']['name']}, {results['seconds']} s in all\n\n{_table(rows)}"


def _outcome(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("status", "seconds", "reason")}


def _part_text(name: str, record: Mapping[str, Any]) -> str:
    """A part of the report."""
    lines = [f"## {name}", "", ", ".join(str(value) for value in _outcome(record).values() if value != ""), ""]
    for title, rows in record["tables"].items():
        lines += [f"### {title}", "", _table(rows), ""]
    if "trace" in record:
        lines += ["```", record["trace"].rstrip(), "```", ""]
    return "\n".join(lines)


def _table(rows: Sequence[Row]) -> str:
    """Rows in Markdown."""
    if not rows:
        return "none"
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return " ".join(str(value).replace("|", "/").split())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results.json and report.md")
    made.add_argument("--minutes", type=float, default=12.0, help="in all; default 12")
    made.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="some of them, in order")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if it is there")
    made.add_argument("--small", action="store_true", help="tiny sizes, as on a CPU")
    made.add_argument("--side", type=int, help="part step: of the images, pixels; default 800")
    made.add_argument("--batch", type=int, help="part step: images; default 16")
    made.add_argument(
        "--detector", choices=("resnet50", "mobilenet", "tiny"), help="part step: backbone; default resnet50"
    )
    made.add_argument("--cycles", type=int, help="part step: cycles of 4 steps at most; default 30")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
