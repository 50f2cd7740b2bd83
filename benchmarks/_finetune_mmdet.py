"""MMDetection's Faster R-CNN of :mod:`benchmarks.finetune`, and one training of it by MMEngine's ``Runner``."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn

from benchmarks._finetune_data import DATA_SETS
from benchmarks._finetune_frameworks import (
    ANCHORS,
    BETA,
    CHANNELS,
    DENSE,
    DEVIATION,
    MEAN,
    PROPOSALS,
    PROPOSALS_TEST,
    PYRAMID,
    ROIS,
    STRIDES,
    ArmSettings,
    MobileNetStages,
    SeededForward,
    arm_settings,
    pixels,
)
from benchmarks._finetune_training import BATCH, Progress, Training
from terse_aug_mmdet import TerseHook

_NUMBERS = itertools.count()
"""Of runners, which need names of their own."""
_NEVER = 10**9


def train(training: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of a training, and the detector's state."""
    register_all_modules(init_default_scope=False)
    with tempfile.TemporaryDirectory() as name:
        runner = Runner.from_cfg(_config(training, Path(name)))
        progress = Progress(training, Detector(runner.model))
        runner.register_hook(_Evaluation(progress, SeededForward(training.seed)))
        runner.train()
    hook = next((own for own in runner.hooks if isinstance(own, TerseHook)), None)
    forwards = 0 if hook is None else int(hook.terse.metrics()["extra_forwards"])
    return progress.result(forwards), runner.model.state_dict()


@MODELS.register_module(force=True)
class StagesOfMobileNetV2(MobileNetStages):
    """The layers below the feature pyramid."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See :class:`benchmarks._finetune_frameworks.MobileNetStages`; MMCV's RoIAlign misreads other layouts."""
        return tuple(own.contiguous() for own in super().forward(images))


class _Evaluation(Hook):
    """Evaluates on the way."""

    def __init__(self, progress: Progress, seeded: SeededForward) -> None:
        self._progress, self._seeded = progress, seeded

    def before_train(self, runner: Runner) -> None:
        runner.model.register_forward_pre_hook(self._seeded)
        self._progress.begin()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._seeded.iteration = runner.iter

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._progress.step(runner.iter)


class Detector(nn.Module):
    """MMDetection's model as torchvision's are called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        samples = [
            DetDataSample(metainfo={"img_shape": image.shape[1:], "ori_shape": image.shape[1:], "scale_factor": (1, 1)})
            for image in images
        ]
        inputs = [pixels(image).flip(0) for image in images]
        found = [own.pred_instances for own in self._model.test_step({"inputs": inputs, "data_samples": samples})]
        return [{"boxes": own.bboxes, "scores": own.scores, "labels": own.labels + 1} for own in found]


def build(training: Training, folder: Path) -> nn.Module:
    """The detector, with ImageNet weights in its backbone.

    Args:
        training: of the detector.
        folder: for files of the training, empty.
    """
    model: nn.Module = MODELS.build(_config(training, folder).model)
    return model


def _config(training: Training, folder: Path) -> Config:
    setup, kind = training.setup, DATA_SETS[training.setup.data_set]
    own = arm_settings(training, folder)
    settings = {
        "default_scope": "mmdet",
        "work_dir": str(folder),
        "model": _model(len(kind.classes), setup.weights),
        "load_from": str(training.weights) if training.weights else None,
        "train_dataloader": {
            "batch_size": BATCH,
            "num_workers": 0,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": {
                "type": "CocoDataset",
                "ann_file": str(setup.folder / "train.json"),
                "data_prefix": {"img": f"{setup.folder / 'images'}/"},
                "metainfo": {"classes": tuple(kind.classes)},
                "filter_cfg": None,
                "pipeline": _pipeline(setup.side, kind.flip),
            },
        },
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": training.iterations, "val_interval": _NEVER},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {"type": "SGD", "lr": training.peak, "momentum": 0.9, "weight_decay": 1e-4},
        },
        "param_scheduler": _schedule(training),
        "default_hooks": dict.fromkeys(("logger", "checkpoint", "timer")),
        "custom_hooks": [] if own is None else [_hook(own)],
        "randomness": {"seed": training.seed},
        "log_level": "WARNING",
        "log_processor": {"by_epoch": False},
        "visualizer": {"type": "DetLocalVisualizer"},
        "experiment_name": f"terse_finetune{next(_NUMBERS)}",
    }
    return Config(settings, format_python_code=False)  # formatting takes as long as a hundred iterations


def _hook(own: ArmSettings) -> dict[str, Any]:
    """Settings of an arm."""
    backgrounds = {"source": own.backgrounds, "probability": 0.5} if own.backgrounds else None
    names = {"bank": own.bank, "policy": own.policy, "sampler": own.sampler, "seed": own.seed}
    names["close_fraction"] = own.close_fraction
    return {"type": "TerseHook", **names, "paste": asdict(own.paste), "backgrounds": backgrounds}


def _pipeline(side: int, flip: bool) -> list[dict[str, Any]]:
    return [
        {"type": "LoadImageFromFile"},
        # Masks are for pasting alone: boxes become those of what stays visible.
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
        {"type": "Resize", "scale": (2 * side, side), "keep_ratio": True},
        *([{"type": "RandomFlip", "prob": 0.5}] if flip else []),
        {"type": "PackDetInputs"},
    ]


def _schedule(training: Training) -> list[dict[str, Any]]:
    """The learning rates of :meth:`benchmarks._finetune_training.Training.rate`."""
    warmup, end = training.warmup, training.iterations
    rise = {"type": "LinearLR", "start_factor": 1 / (warmup + 1), "by_epoch": False, "begin": 0, "end": warmup + 1}
    fall = {"type": "CosineAnnealingLR", "T_max": end - warmup, "by_epoch": False, "begin": warmup, "end": end}
    return [*([rise] if warmup else []), fall]


def _model(classes: int, weights: Path) -> dict[str, Any]:
    """MMDetection's ``faster-rcnn_r50_fpn`` with the settings of torchvision's small detector."""
    loss = {"type": "SmoothL1Loss", "beta": BETA}
    anchors = {
        "type": "AnchorGenerator",
        "scales": [ANCHORS[0] // STRIDES[0]],
        "ratios": [0.5, 1.0, 2.0],
        "strides": [*STRIDES, 2 * STRIDES[-1]],
    }
    align = {"type": "RoIAlign", "output_size": 7, "sampling_ratio": 2, "aligned": False}
    coder = {"type": "DeltaXYWHBBoxCoder", "target_means": [0.0] * 4}
    return {
        "type": "FasterRCNN",
        "data_preprocessor": {
            "type": "DetDataPreprocessor",
            "mean": list(MEAN),
            "std": list(DEVIATION),
            "bgr_to_rgb": True,
            "pad_size_divisor": 32,
        },
        "backbone": {"type": "StagesOfMobileNetV2", "weights": str(weights)},
        "neck": {"type": "FPN", "in_channels": list(CHANNELS), "out_channels": PYRAMID, "num_outs": len(ANCHORS)},
        "rpn_head": {
            "type": "RPNHead",
            "in_channels": PYRAMID,
            "feat_channels": PYRAMID,
            "anchor_generator": anchors,
            "bbox_coder": coder | {"target_stds": [1.0] * 4},
            "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": True},
            "loss_bbox": loss,
        },
        "roi_head": {
            "type": "StandardRoIHead",
            "bbox_roi_extractor": {
                "type": "SingleRoIExtractor",
                "roi_layer": align,
                "out_channels": PYRAMID,
                "featmap_strides": list(STRIDES),
            },
            "bbox_head": {
                "type": "Shared2FCBBoxHead",
                "in_channels": PYRAMID,
                "fc_out_channels": DENSE,
                "roi_feat_size": 7,
                "num_classes": classes,
                "bbox_coder": coder | {"target_stds": [0.1, 0.1, 0.2, 0.2]},
                "reg_class_agnostic": False,
                "loss_cls": {"type": "CrossEntropyLoss", "use_sigmoid": False},
                "loss_bbox": loss,
            },
        },
        "train_cfg": _training_of_heads(),
        "test_cfg": {
            "rpn": _proposals(PROPOSALS_TEST),
            "rcnn": {"score_thr": 0.05, "nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
        },
    }


def _proposals(count: int) -> dict[str, Any]:
    nms = {"type": "nms", "iou_threshold": 0.7}
    return {"nms_pre": PROPOSALS, "max_per_img": count, "nms": nms, "min_bbox_size": 0}


def _training_of_heads() -> dict[str, Any]:
    def part(high: float, low: float, closest: bool, count: int, fraction: float) -> dict[str, Any]:
        """Objects and samples; ``closest``: the anchors closest to an object are positive in any case."""
        overlaps = {"pos_iou_thr": high, "neg_iou_thr": low, "min_pos_iou": 0.0, "match_low_quality": closest}
        sampler = {"type": "RandomSampler", "num": count, "pos_fraction": fraction, "add_gt_as_proposals": not closest}
        assigner = {"type": "MaxIoUAssigner", "ignore_iof_thr": -1, **overlaps}
        return {"assigner": assigner, "sampler": sampler, "pos_weight": -1, "allowed_border": -1, "debug": False}

    return {
        "rpn": part(0.7, 0.3, True, 256, 0.5),
        "rpn_proposal": _proposals(PROPOSALS),
        "rcnn": part(0.5, 0.5, False, ROIS, 0.25),
    }
