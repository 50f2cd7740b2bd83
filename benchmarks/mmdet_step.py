"""Cost of terse-aug in an MMDetection training step, and in loading an image, beside MMDetection's CopyPaste.

``python -m benchmarks.mmdet_step --json F [--detector faster-rcnn] [--cycles 4] [--side 320] [--batch 2]``

MMDetection's own config of Faster R-CNN R50-FPN or RTMDet-tiny, untrained, in its own runner. All arms train the same
detector with a learning rate of 0 and take turns step by step; batches are loaded before the clock starts, with
foregrounds by ``TersePaste``. Masks are read where ``CopyPaste`` needs them. Loading: the time of an
image in this process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import mmdet
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from torch import nn

from benchmarks._drawn_images import DrawnImage
from benchmarks._timing import interleaved
from benchmarks._training_steps import (
    CYCLE,
    IMAGES,
    OBJECTS,
    POLICIES,
    SOURCE_SIDE,
    framework_parser,
    report_framework,
    step_bank,
    time_loading,
    write_photographs,
)
from terse_aug import ForegroundBank, PixelFormat, Terse
from terse_aug_mmdet import TerseHook
from terse_aug_mmdet.workers import SampleComposer

CONFIGS = {
    "faster-rcnn": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "rtmdet-tiny": "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
}
_CLASSES = ("first", "second")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the arguments of the command line."""
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    register_all_modules(init_default_scope=True)
    torch.manual_seed(0)
    model = MODELS.build(_model_config(options.detector))
    with tempfile.TemporaryDirectory() as name:
        data, bank = _write_data(Path(name)), step_bank(Path(name))
        plain, pasting = _dataset(data, options.side), {"bank": str(bank.path), "seed": 0}
        datasets = {
            "none": plain,
            "TersePaste": _with(plain, {"type": "TersePaste", **pasting}),
            "CopyPaste": _with_copy_paste(plain),
        }
        arms = {} if options.loading_only else _arms(model, datasets, pasting, name, options)
        rounds = CYCLE * options.cycles
        steps = interleaved({name: (arm.load, arm.step) for name, arm in arms.items()}, rounds, CYCLE)
        loaders = {name: _loader(dataset) for name, dataset in datasets.items()}
        loaders["composed"] = _composing_loader(loaders["none"], bank)
        loading = interleaved(loaders, 40, 8)
        throughput = time_loading(loaders, options)
        inside = {name: arm.milliseconds_in_terse() for name, arm in arms.items()}
    report_framework(options.detector, steps, loading, throughput, inside, options, {"detector": options.detector})


def _arms(
    model: nn.Module,
    datasets: Mapping[str, dict[str, Any]],
    pasting: dict[str, Any],
    folder: str,
    options: argparse.Namespace,
) -> dict[str, _Arm]:
    arms = {name: _Arm(model, datasets[name], None, folder, options) for name in ("none", "CopyPaste")}
    for arm, policy in POLICIES.items():
        settings = pasting | {"policy": {"type": type(policy).__name__, **asdict(policy)}}
        dataset = _with(datasets["none"], {"type": "TersePaste", **settings})
        arms[arm] = _Arm(model, dataset, {"type": "TerseHook", **settings}, folder, options)
    return arms


@TRANSFORMS.register_module()
class WithoutMasks(BaseTransform):
    """Takes the masks away, which a detector of boxes does not expect."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """See :class:`WithoutMasks`."""
        del results["gt_masks"]
        return results


class _Arm:
    """A runner of its own on the model of all."""

    def __init__(
        self,
        model: nn.Module,
        dataset: dict[str, Any],
        hook: dict[str, Any] | None,
        folder: str,
        options: argparse.Namespace,
    ) -> None:
        self._batch = options.batch
        self._runner = Runner(
            model=model,
            work_dir=folder,
            train_dataloader={
                "batch_size": options.batch,
                "num_workers": 0,
                "sampler": {"type": "InfiniteSampler", "shuffle": False},
                "dataset": dataset,
            },
            train_cfg={"type": "IterBasedTrainLoop", "max_iters": 10**9, "val_interval": 10**9},
            optim_wrapper={"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.0}},
            default_hooks=dict.fromkeys(("logger", "checkpoint", "timer", "param_scheduler", "sampler_seed")),
            custom_hooks=[] if hook is None else [hook],
            default_scope="mmdet",
            randomness={"seed": 0},
            log_level="ERROR",
            experiment_name=f"step{id(self)}",
        )
        self._runner._train_loop = self._runner.build_train_loop(self._runner._train_loop)
        self._runner.optim_wrapper = self._runner.build_optim_wrapper(self._runner.optim_wrapper)
        self._runner.model.train()
        for moment in ("before_run", "before_train"):
            self._runner.call_hook(moment)
        self._calls = 0

    def load(self, turn: int) -> tuple[int, Any]:
        """The batch of a turn; the same photographs in every arm."""
        np.random.seed(turn)  # noqa: NPY002 - what MMDetection's transforms draw from
        dataset = self._runner.train_dataloader.dataset
        return turn, pseudo_collate([dataset[(turn * self._batch + row) % IMAGES] for row in range(self._batch)])

    def step(self, prepared: tuple[int, Any]) -> None:
        """An iteration of the runner."""
        turn, batch = prepared
        torch.manual_seed(turn)  # the detector's own sampling is then the same in every arm
        self._runner.train_loop.run_iter(batch)
        self._calls += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def milliseconds_in_terse(self) -> float:
        """Of a step, by Terse's own clock."""
        hook = next((hook for hook in self._runner.hooks if isinstance(hook, TerseHook)), None)
        return 0.0 if hook is None else 1e3 * hook.terse.seconds / self._calls


def _loader(dataset: Mapping[str, Any]) -> tuple[Callable[[int], int], Callable[[int], Any]]:
    built = DATASETS.build(dataset)
    return (lambda turn: turn % IMAGES), (lambda index: built[index])


def _composing_loader(
    plain: tuple[Callable[[int], int], Callable[[int], Any]], bank: ForegroundBank
) -> tuple[Callable[[int], int], Callable[[int], Any]]:
    """With the composing of policy ``random``."""
    labels = {name: label for label, name in enumerate(_CLASSES)}
    terse = Terse(bank, classes=labels, pixel_format=PixelFormat(scale=255.0, bgr=True))
    composer, numbers = SampleComposer(terse.composer(), 0), itertools.count()
    turn, load = plain
    return turn, lambda index: composer(load(index), next(numbers))


def _model_config(detector: str) -> Any:
    model = Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / CONFIGS[detector]).model
    head = model.roi_head.bbox_head if detector == "faster-rcnn" else model.bbox_head
    head.num_classes = len(_CLASSES)
    model.backbone.init_cfg = None
    if detector == "faster-rcnn":
        model.backbone.norm_eval = False  # with random weights a frozen one lets activations grow without bound
    return model


def _dataset(annotations: Path, side: int) -> dict[str, Any]:
    return {
        "type": "CocoDataset",
        "data_root": str(annotations.parent),
        "ann_file": annotations.name,
        "data_prefix": {"img": ""},
        "metainfo": {"classes": _CLASSES},
        "pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True},
            {"type": "Resize", "scale": (side, side), "keep_ratio": True},
            {"type": "RandomFlip", "prob": 0.5},
            {"type": "PackDetInputs"},
        ],
    }


def _with(dataset: dict[str, Any], transform: dict[str, Any]) -> dict[str, Any]:
    """The same with a transform before the packing."""
    *steps, packing = dataset["pipeline"]
    return dataset | {"pipeline": [*steps, transform, packing]}


def _with_copy_paste(dataset: dict[str, Any]) -> dict[str, Any]:
    """The same with up to three objects of another image, as many as terse-aug pastes, which takes masks."""
    reading, annotations, *steps, packing = dataset["pipeline"]
    loading = [reading, annotations | {"with_mask": True}, *steps]
    mixing = [{"type": "CopyPaste", "max_num_pasted": 4}, {"type": "WithoutMasks"}, packing]
    return {"type": "MultiImageMixDataset", "dataset": dataset | {"pipeline": loading}, "pipeline": mixing}


def _write_data(folder: Path) -> Path:
    """Images and their annotations in COCO's form; the path of the JSON."""
    images, annotations = [], []
    for number, (file, drawn) in enumerate(write_photographs(folder)):
        images.append({"id": number, "file_name": file.name, "height": SOURCE_SIDE, "width": SOURCE_SIDE})
        annotations += [
            {"id": 10 * number + row + 1, "image_id": number} | _annotation(drawn, row) for row in range(OBJECTS)
        ]
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(_CLASSES)]
    path = folder / "data.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def _annotation(drawn: DrawnImage, row: int) -> dict[str, Any]:
    left, top, right, bottom = drawn.boxes[row].tolist()
    outlines, _ = cv2.findContours(drawn.masks[row], cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return {
        "bbox": [left, top, right - left, bottom - top],
        "category_id": int(drawn.labels[row]),
        "iscrowd": 0,
        "area": float(drawn.masks[row].sum()),
        "segmentation": [outline.flatten().tolist() for outline in outlines if len(outline) > 2],
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = framework_parser(__doc__)
    made.add_argument("--detector", choices=list(CONFIGS), default="faster-rcnn")
    return made.parse_args(arguments)


if __name__ == "__main__":
    main()
