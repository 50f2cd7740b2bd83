"""How the example of each framework is trained on Penn-Fudan, and where its results are."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
POLICIES = ("random", "matched", "best-of-n", "critic", "adversarial")


@dataclass(frozen=True)
class Run:
    """One training: how many images, which arm, which seed."""

    images: int
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"train{self.images}-{self.arm}-seed{self.seed}"


class Framework(ABC):
    """A training script and its conventions.

    Args:
        args: the arguments of :mod:`benchmarks.penn_fudan`.
    """

    arms: Sequence[str] = ("none", *POLICIES)
    amp_needs_gpu = True

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.data, self.weights, self.out = (path.resolve() for path in (args.data, args.weights, args.out))

    @abstractmethod
    def prepare(self, images: Sequence[int]) -> None:
        """Create the files that runs with these numbers of training images read."""

    @abstractmethod
    def command(self, run: Run) -> list[str]:
        """The command line of the training."""

    @abstractmethod
    def results(self, folder: Path) -> dict[str, Any]:
        """``AP``, ``AP50``, ``AP75`` in per cent, and other columns of the table, of a finished run."""

    def train(self, run: Run) -> float | None:
        """Train in a separate process; its output goes to a log beside its folder.

        Returns:
            CPU seconds of the process; ``None`` if it failed.
        """
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": self._path()} | self._environment()
        with open(f"{self.out / run.name}.log", "w") as log:
            process = subprocess.Popen(
                self.command(run), stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self._folder()
            )
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        return usage.ru_utime + usage.ru_stime if process.returncode == 0 else None

    def _path(self) -> str:
        own = [str(ROOT), str(ROOT / "integrations")]
        return os.pathsep.join([*own, *filter(None, [os.environ.get("PYTHONPATH")])])

    def _environment(self) -> Mapping[str, str]:
        return {}

    def _folder(self) -> Path | None:
        return None

    def _make(self, out: Path, *arguments: str) -> None:
        """Let a tool of the example write a file or folder; the argument ``OUT`` is replaced by its path."""
        part = out.with_name(f"{out.name}.part")
        _remove(part)
        environment = os.environ | {"PYTHONPATH": self._path()} | self._environment()
        command = [sys.executable, *(str(part) if argument == "OUT" else argument for argument in arguments)]
        subprocess.run(command, check=True, env=environment, cwd=self._folder())
        _remove(out)
        os.replace(part, out)

    def _make_bank(self, images: int, *source: str) -> None:
        build = "from terse_aug.cli import main; raise SystemExit(main())"
        self._make(self._bank(images), "-c", build, "bank", "build", *source, "--out", "OUT")

    def _bank(self, images: int) -> Path:
        path: Path = self.out / f"people-{images}.bank"
        return path


class Torchvision(Framework):
    """examples/torchvision."""

    amp_needs_gpu = False

    def prepare(self, images: Sequence[int]) -> None:
        """See :class:`Framework`; the example builds its banks itself."""

    def command(self, run: Run) -> list[str]:
        """See :class:`Framework`."""
        script = "train.py" if run.arm == "none" else "train_with_terse.py"
        command = [sys.executable, str(ROOT / "examples" / "torchvision" / script)]
        command += ["--penn-fudan", str(self.data), "--weights", str(self.weights)]
        command += [
            "--split",
            str(ROOT / "benchmarks" / "penn_fudan_split.json"),
            "--train-part",
            f"train_{run.images}",
        ]
        command += ["--iterations", str(self.args.iterations), "--seed", str(run.seed), "--threads", "1"]
        command += ["--out", str(self.out / run.name), "--device", self.args.device]
        command += ["--amp"] if self.args.amp else []
        if run.arm != "none":
            command += ["--policy", run.arm, "--probe-images", str(self.args.probe_images)]
            command += self.args.options
        return command

    def train(self, run: Run) -> float | None:
        """See :class:`Framework`; the checkpoint of 85 MB is removed."""
        seconds = super().train(run)
        if seconds is not None:
            (self.out / run.name / "checkpoint.pt").unlink(missing_ok=True)
        return seconds

    def results(self, folder: Path) -> dict[str, Any]:
        """See :class:`Framework`; with the probe of the composites."""
        results = json.loads((folder / "results.json").read_text())
        last = results["evaluations"][-1]
        found = {name: last["box"][name] for name in ("AP", "AP50", "AP75")}
        return found | {kind: last[kind] for kind in ("composites", "random composites") if kind in last}


class Detectron2(Framework):
    """examples/detectron2, its config pedestrians_mobilenet.yaml."""

    def prepare(self, images: Sequence[int]) -> None:
        """See :class:`Framework`; the bank."""
        for count in images:
            source = "--import", "pedestrians.datasets", "--datasets", f"penn_fudan_train_{count}"
            self._make_bank(count, "detectron2", *source)

    def command(self, run: Run) -> list[str]:
        """See :class:`Framework`; the learning rate falls after three quarters of the iterations."""
        script = "train_net.py" if run.arm == "none" else "train_net_with_terse.py"
        iterations = self.args.iterations
        command = [sys.executable, script, "--config-file", "configs/pedestrians_mobilenet.yaml", "--threads", "1"]
        command += ["OUTPUT_DIR", str(self.out / run.name), "SEED", str(run.seed), "MODEL.DEVICE", self.args.device]
        command += ["DATASETS.TRAIN", f"('penn_fudan_train_{run.images}',)", "SOLVER.MAX_ITER", str(iterations)]
        command += ["SOLVER.STEPS", f"({iterations * 3 // 4},)", "SOLVER.AMP.ENABLED", str(self.args.amp)]
        if run.arm != "none":
            command += ["TERSE.ENABLED", "True", "TERSE.BANK", str(self._bank(run.images))]
            command += ["TERSE.POLICY.NAME", run.arm, *self.args.options]
        return command

    def results(self, folder: Path) -> dict[str, Any]:
        """See :class:`Framework`."""
        lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
        last = [line for line in lines if "bbox/AP" in line][-1]
        return {name: last[f"bbox/{name}"] for name in ("AP", "AP50", "AP75")}

    def _environment(self) -> Mapping[str, str]:
        return {"PENN_FUDAN": str(self.data), "MOBILENET_V2": str(self.weights)}

    def _folder(self) -> Path:
        return ROOT / "examples" / "detectron2"


class MMDetection(Framework):
    """examples/mmdet, its configs pedestrians_mobilenet*.py."""

    arms = (*Framework.arms, "copypaste")

    def prepare(self, images: Sequence[int]) -> None:
        """See :class:`Framework`; annotations, weights under MMDetection's names, and the bank."""
        photographs = self.out / "PennFudanPed"
        photographs.unlink(missing_ok=True)
        photographs.symlink_to(self.data)
        self._make(self.out / "data", self._script("penn_fudan_to_coco.py"), str(self.data), "--out", "OUT")
        weights = self.out / "data" / "mobilenet_v2.pth"
        self._make(weights, self._script("mobilenet_weights.py"), str(self.weights), "--out", "OUT")
        for count in images:
            source = "--annotations", f"data/train_{count}.json", "--images", "PennFudanPed/PNGImages"
            self._make_bank(count, "coco", *source)

    def command(self, run: Run) -> list[str]:
        """See :class:`Framework`; the learning rate falls after three quarters of the iterations."""
        iterations, folder = self.args.iterations, str(self.out / run.name)
        source = "dataset.dataset" if run.arm == "copypaste" else "dataset"
        options = [f"train_cfg.max_iters={iterations}", f"train_cfg.val_interval={iterations}"]
        options += [f"param_scheduler.1.milestones=[{iterations * 3 // 4}]", f"randomness.seed={run.seed}"]
        options += [f"train_dataloader.{source}.ann_file=data/train_{run.images}.json"]
        options += ["default_hooks.checkpoint.interval=1000000"]
        options += ["optim_wrapper.type=AmpOptimWrapper"] if self.args.amp else []
        if run.arm in POLICIES:
            for part in ("default_hooks.terse", "train_dataloader.dataset.pipeline.4"):
                options += [f"{part}.policy.type={run.arm}", f"{part}.bank={self._bank(run.images)}"]
            options += self.args.options
        train = [sys.executable, self._script("train.py"), self._config(run.arm)]
        return [*train, "--work-dir", folder, "--cfg-options", *options]

    def results(self, folder: Path) -> dict[str, Any]:
        """See :class:`Framework`."""
        newest = max(folder.glob("*/vis_data/scalars.json"))
        lines = [json.loads(line) for line in newest.read_text().splitlines()]
        last = [line for line in lines if "coco/bbox_mAP" in line][-1]
        names = {"AP": "coco/bbox_mAP", "AP50": "coco/bbox_mAP_50", "AP75": "coco/bbox_mAP_75"}
        return {name: 100 * last[own] for name, own in names.items()}

    def _environment(self) -> Mapping[str, str]:
        return {"CUDA_VISIBLE_DEVICES": ""} if self.args.device == "cpu" else {}

    def _folder(self) -> Path:
        return self.out

    def _script(self, name: str) -> str:
        return str(ROOT / "examples" / "mmdet" / name)

    def _config(self, arm: str) -> str:
        ending = {"none": "", "copypaste": "_copypaste"}.get(arm, "_terse")
        return self._script(f"configs/pedestrians_mobilenet{ending}.py")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


FRAMEWORKS: dict[str, type[Framework]] = {"torchvision": Torchvision, "detectron2": Detectron2, "mmdet": MMDetection}
