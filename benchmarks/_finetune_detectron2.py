"""Detectron2's Faster R-CNN of :mod:`benchmarks.finetune`, and one training of it by ``DefaultTrainer``."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.utils.env import seed_all_rng
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
from terse_aug_detectron2 import TerseHook, add_terse_config

_ZOO = "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"
_NAMES = ("res2", "res3", "res4", "res5")
_DATA_SET = "terse_finetune"


def train(training: Training) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of a training, and the detector's state."""
    with tempfile.TemporaryDirectory() as name, _quiet(), _registered(training):
        cfg = _config(training, Path(name))
        seed_all_rng(cfg.SEED)
        trainer = _Trainer(cfg)
        hook = TerseHook.from_config(cfg)
        progress = Progress(training, Detector(trainer.model))
        trainer.register_hooks([hook, _Evaluation(progress, SeededForward(training.seed))])
        trainer.resume_or_load(resume=False)
        trainer.train()
        forwards = 0 if hook is None else int(hook.terse.metrics()["extra_forwards"])
        return progress.result(forwards), trainer.model.state_dict()


class _Stages(Backbone):
    """The layers below the feature pyramid."""

    def __init__(self, weights: str) -> None:
        super().__init__()
        self.body = MobileNetStages(weights)
        self._out_features = list(_NAMES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return dict(zip(_NAMES, self.body(images), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        shapes = zip(_NAMES, CHANNELS, STRIDES, strict=True)
        return {name: ShapeSpec(channels=channels, stride=stride) for name, channels, stride in shapes}


def build_mobilenet_v2_fpn(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
    """MobileNetV2 with a feature pyramid; ``cfg.MODEL.MOBILENET_WEIGHTS`` is the file of its first weights."""
    bottom_up = _Stages(cfg.MODEL.MOBILENET_WEIGHTS)
    return FPN(bottom_up, list(_NAMES), cfg.MODEL.FPN.OUT_CHANNELS, top_block=LastLevelMaxPool())


if build_mobilenet_v2_fpn.__name__ not in BACKBONE_REGISTRY:
    BACKBONE_REGISTRY.register(build_mobilenet_v2_fpn)


class _Trainer(DefaultTrainer):
    """Trains in the order that the config's seed gives, by the benchmark's learning rates; writes no logs."""

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
        # Masks are for pasting alone: boxes become those of what stays visible.
        mapper = DatasetMapper(cfg, is_train=True, use_instance_mask=True, instance_mask_format="bitmask")
        sampler = TrainingSampler(len(records), seed=cfg.SEED)
        return build_detection_train_loader(
            records, mapper=mapper, sampler=sampler, total_batch_size=BATCH, aspect_ratio_grouping=False, num_workers=0
        )

    def build_writers(self) -> list[Any]:
        return []


class _Evaluation(HookBase):
    """Evaluates on the way."""

    def __init__(self, progress: Progress, seeded: SeededForward) -> None:
        self._progress, self._seeded = progress, seeded

    def before_train(self) -> None:
        self.trainer.model.register_forward_pre_hook(self._seeded)
        self._progress.begin()

    def before_step(self) -> None:
        self._seeded.iteration = self.trainer.iter

    def after_step(self) -> None:
        self._progress.step(self.trainer.iter)


class Detector(nn.Module):
    """Detectron2's model as torchvision's are called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, images: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        sizes = [{"height": image.shape[1], "width": image.shape[2]} for image in images]
        items = [{"image": pixels(image)} | size for image, size in zip(images, sizes, strict=True)]
        found = [own["instances"] for own in self._model(items)]
        return [{"boxes": own.pred_boxes.tensor, "scores": own.scores, "labels": own.pred_classes + 1} for own in found]


def build(training: Training, folder: Path) -> nn.Module:
    """The detector, with ImageNet weights in its backbone.

    Args:
        training: of the detector.
        folder: for files of the training, empty.
    """
    model: nn.Module = build_model(_config(training, folder))
    return model


def _config(training: Training, folder: Path) -> CfgNode:
    setup, kind = training.setup, DATA_SETS[training.setup.data_set]
    cfg = get_cfg()
    add_terse_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(_ZOO))
    cfg.OUTPUT_DIR, cfg.SEED = str(folder), training.seed
    _set_model(cfg.MODEL, len(kind.classes))
    cfg.MODEL.MOBILENET_WEIGHTS = str(setup.weights)
    cfg.MODEL.WEIGHTS = str(training.weights or "")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (_DATA_SET,), ()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (setup.side,), 2 * setup.side
    cfg.INPUT.RANDOM_FLIP = "horizontal" if kind.flip else "none"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = BATCH, training.iterations
    cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 0.9, 1e-4
    cfg.SOLVER.LR_SCHEDULER_NAME, cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR_END = "WarmupCosineLR", training.peak, 0.0
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = training.warmup, 1 / (training.warmup + 1)
    cfg.SOLVER.RESCALE_INTERVAL = True
    own = arm_settings(training, folder)
    if own is not None:
        _set_terse(cfg.TERSE, own)
    return cfg


def _set_model(model: CfgNode, classes: int) -> None:
    """Of the zoo's config what differs in torchvision's detector."""
    model.DEVICE, model.BACKBONE.NAME = "cpu", build_mobilenet_v2_fpn.__name__
    model.PIXEL_MEAN, model.PIXEL_STD = list(MEAN), list(DEVIATION)
    model.FPN.OUT_CHANNELS = PYRAMID
    model.ANCHOR_GENERATOR.SIZES = [[side] for side in ANCHORS]
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.PRE_NMS_TOPK_TEST = PROPOSALS
    model.RPN.POST_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TEST = PROPOSALS, PROPOSALS_TEST
    model.RPN.SMOOTH_L1_BETA = model.ROI_BOX_HEAD.SMOOTH_L1_BETA = BETA
    model.ROI_HEADS.NUM_CLASSES, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = classes, ROIS
    model.ROI_BOX_HEAD.FC_DIM = DENSE
    model.ROI_BOX_HEAD.POOLER_TYPE, model.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = "ROIAlign", 2


def _set_terse(terse: CfgNode, own: ArmSettings) -> None:
    """Settings of an arm."""
    terse.ENABLED, terse.BANK, terse.SEED, terse.CLOSE_FRACTION = True, own.bank, own.seed, own.close_fraction
    terse.POLICY.NAME, terse.SAMPLER.NAME, terse.BACKGROUNDS.FOLDER = own.policy, own.sampler, own.backgrounds
    _fill(terse.PASTE, asdict(own.paste))


def _fill(node: CfgNode, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict):
            _fill(node[name.upper()], value)
        else:
            node[name.upper()] = value


@contextlib.contextmanager
def _registered(training: Training) -> Iterator[None]:
    """The training images, registered."""
    folder = training.setup.folder
    register_coco_instances(_DATA_SET, {}, str(folder / "train.json"), str(folder / "images"))
    try:
        yield
    finally:
        DatasetCatalog.remove(_DATA_SET)
        MetadataCatalog.remove(_DATA_SET)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing below a warning is printed. Detectron2 sets its logger up only where that is not enabled for INFO."""
    logger = logging.getLogger("detectron2")
    before, quiet = (logger.level, logger.propagate), logging.NullHandler()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(quiet)
    try:
        yield
    finally:
        logger.removeHandler(quiet)
        logger.setLevel(before[0])
        logger.propagate = before[1]
