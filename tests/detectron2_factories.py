"""A tiny data set and Detectron2's own models, narrow enough to train on two cores. Needs Detectron2."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.structures import Boxes, BoxMode, Instances
from factories import KEYPOINTS, ellipse, tiny_bank
from torch import nn

from terse_aug import ForegroundBank
from terse_aug_detectron2 import TerseHook, add_terse_config

CLASSES = ("dog", "cat")
"""In another order than the bank's: labels have to be matched by name."""
SIZES = ((96, 128), (112, 96), (96, 96), (120, 104))
YAML = {
    "faster_fpn": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "faster_c4": "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "mask_fpn": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint_fpn": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "cascade_fpn": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
}


@contextlib.contextmanager
def registered(
    folder: Path,
    name: str = "terse_tiny",
    classes: tuple[str, ...] | None = CLASSES,
    masks: bool = True,
    **metadata: Any,
) -> Iterator[str]:
    """A registered data set of four noise images with one or two ellipses each, and one without any."""
    records = [_record(folder, number, size) for number, size in enumerate(SIZES)]
    records.append(_record(folder, len(SIZES), (96, 128)) | {"annotations": []})
    for annotation in (own for record in records for own in record["annotations"] if not masks):
        del annotation["segmentation"]
    DatasetCatalog.register(name, lambda: records)
    metadata = {
        "keypoint_names": list(KEYPOINTS),
        "keypoint_flip_map": [("left_eye", "right_eye")],
        **({"thing_classes": list(classes)} if classes else {}),
        **metadata,
    }
    MetadataCatalog.get(name).set(**metadata)
    try:
        yield name
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def tiny_cfg(model: str, dataset: str, out: Path, bank: ForegroundBank | None = None, /, **terse: Any) -> CfgNode:
    """Detectron2's own config of a model, shrunk.

    With a bank terse-aug is enabled, pastes on every image, and updates the policy in every iteration.

    Args:
        model: a name in ``YAML``.
        dataset: registered.
        out: folder for checkpoints and logs.
        bank: see above.
        terse: keys of ``cfg.TERSE`` in small letters, nested dictionaries; ``policy`` and ``sampler`` may be names.
    """
    cfg = get_cfg()
    add_terse_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file(YAML[model]))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.NORM = "BN"  # with random weights a frozen one lets activations grow without bound
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (8, 8)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = len(KEYPOINTS)
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 0
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = len(CLASSES)
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 50
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.05] * len(KEYPOINTS)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (dataset,), ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64, 80), 128
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 128
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER = 2, 0.002, 4
    cfg.SOLVER.CHECKPOINT_PERIOD = 10_000
    cfg.SEED = 3
    cfg.OUTPUT_DIR = str(out)
    if bank is not None:
        cfg.TERSE.ENABLED, cfg.TERSE.BANK = True, str(bank.path)
        terse = {"policy": "critic", **terse, "paste": {"paste_probability": 1.0, **terse.get("paste", {})}}
        for node in ("CRITIC", "ADVERSARIAL", "PAPER"):
            cfg.TERSE.POLICY[node].UPDATE_INTERVAL = 1
    set_terse(cfg, **terse)
    return cfg


def set_terse(cfg: CfgNode, **terse: Any) -> None:
    """Set keys of ``cfg.TERSE``, see :func:`tiny_cfg`; a policy may be a dictionary with ``type``."""
    for name in ("policy", "sampler"):
        if isinstance(terse.get(name), str):
            terse[name] = {"name": terse[name]}
    if "type" in (policy := dict(terse.get("policy", {}))):
        terse["policy"] = {"name": (name := policy.pop("type")), **({name.replace("-", "_"): policy} if policy else {})}
    cfg.merge_from_list([part for pair in _flat("TERSE", terse) for part in pair])


def _flat(node: str, values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{node}.{name.upper()}"
        yield from _flat(key, value) if isinstance(value, dict) else [(key, value)]


def _record(folder: Path, number: int, size: tuple[int, int]) -> dict[str, Any]:
    generator = np.random.default_rng(number)
    height, width = size
    path = folder / f"{number}.png"
    cv2.imwrite(str(path), generator.integers(0, 128, (height, width, 3), dtype=np.uint8))
    annotations = [_annotation(generator, height, width, own % len(CLASSES)) for own in range(1 + number % 2)]
    return {
        "file_name": str(path),
        "image_id": number,
        "height": height,
        "width": width,
        "annotations": annotations,
    }


def _annotation(generator: np.random.Generator, height: int, width: int, label: int) -> dict[str, Any]:
    centre, radii, outline = ellipse(generator, height, width)
    eyes = centre + radii * np.array([[0, 0], [-0.4, -0.3], [0.4, -0.3]])
    return {
        "bbox": [*(centre - radii).tolist(), *(centre + radii).tolist()],
        "bbox_mode": BoxMode.XYXY_ABS,
        "category_id": label,
        "segmentation": [outline.flatten().tolist()],
        "keypoints": np.concatenate([eyes, np.full((3, 1), 2)], 1).flatten().tolist(),
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registered(tmp_path_factory.mktemp("data")) as name:
        yield name


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ForegroundBank:
    return tiny_bank(tmp_path_factory.mktemp("bank"))


class KeepStorage(DefaultTrainer):
    """Keeps the event storage, which exists only during training."""

    def after_train(self) -> None:
        self.kept = self.storage
        super().after_train()


class Watched(nn.Module):
    """Lets a test see what a model gets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.batches: list[list[dict[str, Any]]] = []
        model.register_forward_pre_hook(lambda module, inputs: self.batches.append(inputs[0]))


def trainer_with_hook(cfg: CfgNode, kind: type[DefaultTrainer] = DefaultTrainer) -> tuple[DefaultTrainer, TerseHook]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what Detectron2's sampler and augmentations draw from
    trainer = kind(cfg)
    hook = TerseHook.from_config(cfg)
    assert hook is not None
    trainer.register_hooks([hook])
    return trainer, hook


def item(count: int = 2, size: tuple[int, int] = (40, 50), **fields: Any) -> dict[str, Any]:
    corner = torch.arange(count)[:, None].float() * 5
    boxes = torch.cat([corner.expand(-1, 2), corner.expand(-1, 2) + 10], 1)
    values = {"gt_boxes": Boxes(boxes), "gt_classes": torch.arange(count) % 2} | fields
    image = torch.arange(3 * size[0] * size[1]).view(3, *size) % 256
    return {"image": image.to(torch.uint8), "height": 80, "width": 100, "instances": Instances(size, **values)}


@contextlib.contextmanager
def coco_registered(name: str, folder: Path, content: dict[str, Any]) -> Iterator[None]:
    (folder / f"{name}.json").write_text(json.dumps(content))
    register_coco_instances(name, {}, str(folder / f"{name}.json"), str(folder))
    try:
        yield
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
