"""Cost of terse-aug in a Detectron2 training step, and in loading an image.

``python -m benchmarks.detectron2_step --json F [--cycles 4] [--side 320] [--batch 2] [--device cpu]``

Detectron2's own Faster R-CNN R50-FPN in its own SimpleTrainer, untrained. All arms train the same detector with a
learning rate of 0 and take turns step by step; batches are mapped before the clock starts, with foregrounds by
``TerseMapper``. Loading: the time of ``DatasetMapper`` alone, inside ``TerseMapper``, and with the composing of policy
``random``, in this process.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks._timing import interleaved
from benchmarks._training_steps import (
    CYCLE,
    IMAGES,
    POLICIES,
    SOURCE_SIDE,
    framework_parser,
    report_framework,
    step_bank,
    time_loading,
    write_photographs,
)
from terse_aug import ForegroundBank, PixelFormat, Terse
from terse_aug.config import PolicySettings
from terse_aug_detectron2 import TerseHook, TerseMapper, add_terse_config
from terse_aug_detectron2.batch import Needs
from terse_aug_detectron2.workers import ItemComposer

ARMS: dict[str, PolicySettings | None] = {"none": None, **POLICIES}

Record = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the arguments of the command line."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    cfg = get_cfg()
    add_terse_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = "", options.device, 2
    cfg.MODEL.RESNETS.NORM = "BN"  # with random weights a frozen one lets activations grow without bound
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (options.side,), 2 * options.side
    model = build_model(cfg).train()
    with tempfile.TemporaryDirectory() as name:
        records, bank = _records(Path(name)), step_bank(Path(name)).relabel({"first": 0, "second": 1})
        mappers = {"DatasetMapper": DatasetMapper(cfg, is_train=True)}
        mappers["TerseMapper"] = TerseMapper(mappers["DatasetMapper"], bank)
        chosen = {} if options.loading_only else ARMS
        arms = {name: _Arm(model, bank, records, mappers, policy, options) for name, policy in chosen.items()}
        steps = interleaved({name: arm.pair() for name, arm in arms.items()}, CYCLE * options.cycles, CYCLE)
        terse = Terse(bank, classes={"first": 0, "second": 1}, pixel_format=PixelFormat(scale=255.0, bgr=True))
        composer = ItemComposer(terse.composer(), Needs())
        numbers, plain = itertools.count(), mappers["DatasetMapper"]
        loaders = mappers | {"composed": lambda record: composer(plain(record), next(numbers))}
        loads = {name: _loader(mapper, records) for name, mapper in loaders.items()}
        loading = interleaved(loads, 40, 8)
        throughput = time_loading(loads, options)
    inside = {name: arm.milliseconds_in_terse() for name, arm in arms.items()}
    report_framework("R50-FPN", steps, loading, throughput, inside, options, {})


class _Arm:
    """A trainer of its own on the model of all."""

    def __init__(
        self,
        model: nn.Module,
        bank: ForegroundBank,
        records: list[Record],
        mappers: dict[str, Any],
        policy: PolicySettings | None,
        options: argparse.Namespace,
    ) -> None:
        mapper = mappers["DatasetMapper" if policy is None else "TerseMapper"]
        batches = [
            [mapper(records[(number * options.batch + place) % len(records)]) for place in range(options.batch)]
            for number in range(IMAGES)
        ]
        self._trainer = SimpleTrainer(model, _Endless(batches), torch.optim.SGD(model.parameters(), lr=0.0))
        # In the loop: a thread would compose during the steps of other arms.
        self._hook = None if policy is None else TerseHook(bank, policy, seed=0, compose_ahead=False)
        self._trainer.register_hooks([self._hook])
        self._trainer.iter = self._trainer.start_iter = 0
        self._trainer.storage = EventStorage(0)
        self._model, self._calls = model, 0

    def pair(self) -> tuple[Callable[[int], int], Callable[[int], None]]:
        """What makes the input of a round, and what is timed."""
        if self._hook is not None:
            self._hook.before_train()
        return self._prepare, self._step

    def _prepare(self, turn: int) -> int:
        return turn

    def _step(self, turn: int) -> None:
        torch.manual_seed(turn)  # the detector's own sampling is then the same in every arm
        trainer = self._trainer
        trainer.iter = turn
        with trainer.storage:
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
        self._calls += 1
        if self._model.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds_in_terse(self) -> float:
        """Of a step, by Terse's own clock."""
        return 0.0 if self._hook is None else 1e3 * self._hook.terse.seconds / self._calls


class _Endless:
    """Batches, over and over."""

    def __init__(self, batches: list[list[Record]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Record]]:
        while True:
            yield from self._batches


def _loader(mapper: Any, records: list[Record]) -> tuple[Callable[[int], Record], Callable[[Record], Any]]:
    return (lambda turn: records[turn % len(records)]), mapper


def _records(folder: Path) -> list[Record]:
    records = []
    for number, (file, drawn) in enumerate(write_photographs(folder)):
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label - 1}
            for box, label in zip(drawn.boxes.tolist(), drawn.labels.tolist(), strict=True)
        ]
        size = {"height": SOURCE_SIDE, "width": SOURCE_SIDE}
        records.append({"file_name": str(file), "image_id": number, "annotations": annotations, **size})
    return records


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = framework_parser(__doc__)
    made.add_argument("--device", default="cpu", help="cpu, cuda")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
