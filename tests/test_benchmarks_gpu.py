"""The benchmark on a GPU runs on a CPU at tiny sizes; parts that fail or take too long do not stop the others."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
NAMES = ["tests", "equality", "amp", "launches", "step", "composite", "bandwidth"]

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The module; unloaded afterwards, as other tests import a copy of the package."""
    path, modules = sys.path.copy(), set(sys.modules)
    sys.path.insert(0, str(REPOSITORY))
    import benchmarks.gpu as module

    yield module
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] == "benchmarks":
            del sys.modules[name]


@pytest.fixture
def run(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run(minutes, name=function, ...)``: the results with these parts instead, of equal weight."""

    def run_parts(minutes: float = 1.0, **parts: Callable[[Any], None]) -> dict[str, Any]:
        monkeypatch.setattr(gpu, "PARTS", {name: gpu.Part(part, 1) for name, part in parts.items()})
        monkeypatch.setattr(gpu, "_preload", lambda: None)
        gpu.main(["--out", str(tmp_path), "--device", "cpu", "--minutes", str(minutes)])
        return json.loads((tmp_path / "results.json").read_text())

    return run_parts


def quick(progress: Any) -> None:
    progress.table("numbers", [{"one": 1.5, "two": None}, {"one": True}])


def test_everything_runs_on_a_cpu(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--device", "cpu", "--cycles", "1"]
    finished = subprocess.run(
        command, cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    parts = results["parts"]
    assert list(parts) == NAMES
    for name in ("tests", "bandwidth"):
        assert (parts[name]["status"], parts[name]["reason"]) == ("not run", "needs CUDA")
    rows = {name: [row for table in parts[name]["tables"].values() for row in table] for name in NAMES[1:-1]}
    for name in rows:
        assert parts[name]["status"] == "complete", parts[name]
    kinds = ("levels", "objects", "boxes, px", "mask, px", "keypoints, px")
    assert all(row.get(kind, 0) == 0 for row in rows["equality"] for kind in kinds)
    assert {row["policy"] for row in rows["equality"]} == {"random", "critic", "adversarial", "paper"}
    assert all(row["pastes"] > 0 for row in rows["equality"])
    assert all(row["all losses finite"] and row["parameters finite"] for row in rows["amp"])
    assert any(row["updates"] for row in rows["amp"])
    assert {row["in"] for row in rows["launches"]} == {"forward", "detector", "step"}
    assert all(row["operators"] > 0 for row in rows["launches"])
    assert "needs CUDA" in next(iter(parts["launches"]["tables"]))
    assert [row["arm"] for row in rows["step"]] == ["none", "random", "critic_k4", "adversarial_k4"]
    assert all(row["steps"] == 4 and row["ratio, the clock"] > 0 for row in rows["step"])
    assert all(row["images/s"] > 0 for row in rows["composite"])
    assert results["surroundings"]["versions"]["torch"]
    report = (tmp_path / "report.md").read_text()
    assert all(f"## {name}\n" in report for name in NAMES)
    assert "| adversarial_k4 |" in report
    assert "| adversarial_k4 |" in finished.stdout


def test_a_part_that_fails_is_recorded_and_the_others_run(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    def fails(progress: Any) -> None:
        quick(progress)
        raise ValueError("no such kernel")

    def lacks(progress: Any) -> None:
        import not_there  # type: ignore[import-not-found]  # noqa: F401

    def dies(progress: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    parts = run(first=quick, fails=fails, lacks=lacks, dies=dies, last=quick)["parts"]
    outcomes = {name: (record["status"], record["reason"]) for name, record in parts.items()}
    assert outcomes == {
        "first": ("complete", ""),
        "fails": ("failed", "ValueError: no such kernel"),
        "lacks": ("not run", "ModuleNotFoundError: No module named 'not_there'"),
        "dies": ("failed", "its process ended with -9"),
        "last": ("complete", ""),
    }
    assert "in fails" in parts["fails"]["trace"]
    assert (
        parts["fails"]["tables"] == parts["last"]["tables"] == {"numbers": [{"one": 1.5, "two": None}, {"one": True}]}
    )
    printed = capfd.readouterr().out
    assert "no such kernel" in printed
    assert "| 1.5 |  |\n| yes |  |" in printed


def test_the_deadline_is_respected(run: Run, tmp_path: Path) -> None:
    def respects(progress: Any) -> None:
        while not progress.time_is_up():
            quick(progress)
            time.sleep(0.01)

    def hangs(progress: Any) -> None:
        quick(progress)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (tmp_path / "child").write_text(str(child.pid))
        time.sleep(60)

    results = run(0.1, respects=respects, hangs=hangs, last=quick)
    parts = results["parts"]
    assert results["seconds"] < 30
    assert parts["respects"]["status"] == parts["hangs"]["status"] == "cut short"
    assert parts["respects"]["reason"].startswith("its")
    assert parts["hangs"]["reason"].startswith("killed")
    assert parts["hangs"]["tables"] == parts["last"]["tables"]
    assert not alive(int((tmp_path / "child").read_text()))
    assert parts["last"]["status"] == "complete"


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may still be in the table, until its parent asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_starts_without_time(run: Run) -> None:
    parts = run(0.0, one=quick, other=quick)["parts"]
    assert [(record["status"], record["reason"]) for record in parts.values()] == [("not run", "no time was left")] * 2


def test_each_table_is_written_at_once(run: Run, tmp_path: Path) -> None:
    def looks(progress: Any) -> None:
        quick(progress)
        file = tmp_path / "results.json"
        while not (file.exists() and "numbers" in file.read_text()):
            time.sleep(0.01)

    assert run(looks=looks)["parts"]["looks"]["status"] == "complete"


@pytest.mark.filterwarnings("ignore::terse_aug.TerseWarning")
@pytest.mark.parametrize("module", ["_gpu_checks.equality", "_gpu_speed.step", "_gpu_speed.composite"])
def test_no_tensors_of_two_devices_are_mixed(gpu: Any, module: str) -> None:
    device = pytest.importorskip("simulated_accelerator", exc_type=ImportError).DEVICE
    seen: list[dict[str, Any]] = []
    progress = gpu.Progress(gpu._options(["--out", ".", "--small", "--cycles", "1"]), device, 600.0, seen.append)
    name, function = module.split(".")
    with torch.random.fork_rng(devices=[]):
        getattr(importlib.import_module(f"benchmarks.{name}"), function)(progress)
    rows = seen[-1]["table"][1]
    assert len(rows) >= 4
    assert all(row.get("levels", 0) <= 1.01 and row.get("objects", 0) == 0 for row in rows)


def test_differences_are_found(gpu: Any) -> None:
    from benchmarks._gpu_checks import largest_differences, make_batch

    one, other = (make_batch(64, 1, ("masks", "keypoints")) for _ in range(2))
    assert set(largest_differences(one, other).values()) == {0}
    image, target = other[0][0], other[1][0]
    image[0, 3, 4] = image[0, 3, 4] - 7 if image[0, 3, 4] > 100 else image[0, 3, 4] + 7
    target["boxes"][0, 1] += 1.5
    target["keypoints"][1, 2, 0] -= 2.5
    target["masks"][1, :1, :3] = 1 - target["masks"][1, :1, :3]
    found = largest_differences(one, other)
    assert found == {"levels": 7, "objects": 0, "boxes, px": 1.5, "keypoints, px": 2.5, "mask, px": 3}
    target["labels"] = 3 - target["labels"]
    assert largest_differences(one, other)["objects"] == 1
    floats = ([torch.zeros(3, 4, 4)], []), ([torch.full((3, 4, 4), 1 / 255)], [])
    assert largest_differences(*floats)["levels"] == pytest.approx(1)


def test_events_of_the_profiler_are_counted(gpu: Any) -> None:
    from benchmarks._gpu_speed import counts_of

    names = ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx"]
    names += ["cudaLaunchCooperativeKernel", "cudaStreamSynchronize", "cudaEventSynchronize", "cudaDeviceSynchronize"]
    names += ["Memcpy HtoD (Pinned -> Device)", "Memcpy HtoD (Pageable -> Device)", "Memcpy DtoH (Device -> Pageable)"]
    names += ["Memcpy DtoD (Device -> Device)", "cudaMemcpyAsync", "aten::add", "ampere_sgemm", "cudaMalloc"]
    assert counts_of(names) == {
        "launches": 5,
        "synchronisations": 2,
        "copies to device": 2,
        "copies to host": 1,
        "operators": 1,
    }
    assert set(counts_of(names, on_cuda=False)) == {"operators"}


@pytest.mark.filterwarnings("ignore")
def test_a_profiler_that_records_no_launches_is_an_error(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU whose counters may not be read: zeros would look like a result."""
    from benchmarks._gpu_speed import launches

    monkeypatch.setattr(gpu.Progress, "on_cuda", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    progress = gpu.Progress(gpu._options(["--out", ".", "--small"]), torch.device("cpu"), 600.0, lambda message: None)
    with torch.random.fork_rng(devices=[]), pytest.raises(RuntimeError, match="CUPTI"):
        launches(progress)


def test_copies_are_timed(gpu: Any) -> None:
    seen: list[dict[str, Any]] = []
    gpu.bandwidth(gpu.Progress(gpu._options(["--out", "."]), torch.device("cpu"), 60.0, seen.append))
    title, rows = seen[-1]["table"]
    assert title == "Copy bandwidth"
    assert [(row["direction"], row["MB"]) for row in rows] == [
        (direction, megabytes) for megabytes in (1, 64) for direction in ("to device", "to host")
    ]
    assert all(0 < row["GB/s, q25"] <= row["GB/s, median"] <= row["GB/s, q75"] for row in rows)


PRINTED = """\
tests/test_a.py::test_cuda[a b] PASSED [ 25%]
tests/test_a.py::test_on_cuda FAILED [ 50%]
tests/test_b.py::test_cuda SKIPPED (needs more) [ 75%]
tests/test_c.py::test_cuda ERROR [100%]
=== short test summary info ===
SKIPPED [1] tests/test_b.py:3: needs more
SKIPPED [1] tests/test_mmdet.py:9: mmdet is not installed
"""


def test_outcomes_of_tests_are_read_from_what_pytest_prints(gpu: Any) -> None:
    from benchmarks._gpu_checks import outcomes_of_tests

    counts, rows = outcomes_of_tests(PRINTED)
    assert counts == {"passed": 1, "failed": 1, "error": 1, "skipped": 1}
    assert [row["test"].partition(" ")[0] for row in rows] == [
        "tests/test_a.py::test_on_cuda",
        "tests/test_c.py::test_cuda",
        "tests/test_b.py:3:",
        "tests/test_mmdet.py:9:",
    ]


def test_tests_that_need_cuda_are_found_by_their_name(gpu: Any) -> None:
    from benchmarks._gpu_checks import NEEDS_CUDA

    pattern = re.compile(rf'{NEEDS_CUDA}[^"]*"\)\n(?:@.*\n)*def (\w+)')
    texts = {path.name: path.read_text() for path in (REPOSITORY / "tests").glob("test_*.py")}
    found = {(file, name) for file, text in texts.items() for name in pattern.findall(text)}
    assert len(found) >= 8
    assert not {(file, name) for file, name in found if "cuda" not in name}
