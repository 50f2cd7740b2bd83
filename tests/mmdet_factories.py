"""A tiny data set and MMDetection's own models, narrow enough to train on two cores. Needs MMDetection."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import mmdet
import numpy as np
import pytest
import torch
from factories import ellipse, tiny_bank
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import Runner

from terse_aug import ForegroundBank
from terse_aug_mmdet import TerseHook

register_all_modules(init_default_scope=False)

CLASSES = ("dog", "cat")
"""In another order than the bank's: labels have to be matched by name."""
SIZES = ((96, 128), (112, 96), (96, 96), (120, 104), (96, 128))


def write_data(folder: Path, boxes_only: bool = False) -> Path:
    """A COCO JSON of four noise images with one or two ellipses each, and one without any; its path."""
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES):
        cv2.imwrite(str(folder / f"{number}.png"), generator.integers(0, 128, (height, width, 3), dtype=np.uint8))
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for own in range((1 + number % 2) * (number < len(SIZES) - 1)):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 5 + own % 2, "iscrowd": 0}
            entry |= _annotation(generator, height, width)
            annotations.append({key: value for key, value in entry.items() if key != "segmentation" or not boxes_only})
    categories = [{"id": 5, "name": "dog"}, {"id": 6, "name": "cat"}]
    path = folder / "data.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def _annotation(generator: np.random.Generator, height: int, width: int) -> dict[str, Any]:
    centre, radii, outline = ellipse(generator, height, width)
    box = [*(centre - radii).tolist(), *(2 * radii).tolist()]
    return {"bbox": box, "segmentation": [outline.flatten().tolist()], "area": float(np.pi * radii.prod())}


def pipeline(*more: dict[str, Any], masks: bool = True, side: int | None = None) -> list[dict[str, Any]]:
    """Loading, resizing to one of two sizes or to a square, flipping, and more steps."""
    some = {"type": "RandomChoiceResize", "scales": [(80, 80), (64, 64)], "keep_ratio": True}
    resize = some if side is None else {"type": "Resize", "scale": (side, side), "keep_ratio": False}
    return [
        {"type": "LoadImageFromFile", "backend_args": None},
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": masks},
        resize,
        {"type": "RandomFlip", "prob": 0.5},
        *more,
        {"type": "PackDetInputs"},
    ]


def runner_config(
    model: dict[str, Any], data: Path, out: Path, iterations: int, hooks: list[dict[str, Any]], **changes: Any
) -> Config:
    """A config of a runner for a tiny training by iterations, without evaluation.

    Changes are of the config itself, except ``pipeline``, ``mixed`` (the pipeline of a ``MultiImageMixDataset`` around
    the data set), ``workers``, ``persistent_workers``, ``sampler``, ``batch_sampler`` (its type) and ``optim_wrapper``,
    which belong elsewhere.
    """
    dataset = {
        "type": "CocoDataset",
        "data_root": str(data.parent),
        "ann_file": data.name,
        "data_prefix": {"img": ""},
        "metainfo": {"classes": CLASSES},
        "filter_cfg": None,
        "pipeline": changes.pop("pipeline", pipeline()),
        "backend_args": None,
    }
    if mixed := changes.pop("mixed", None):
        dataset = {"type": "MultiImageMixDataset", "dataset": dataset, "pipeline": mixed}
    return Config(
        {
            "default_scope": "mmdet",
            "work_dir": str(out),
            "model": model,
            "train_dataloader": {
                "batch_size": 2,
                "num_workers": changes.pop("workers", 0),
                "persistent_workers": changes.pop("persistent_workers", False),
                "sampler": changes.pop("sampler", {"type": "InfiniteSampler", "shuffle": False}),
                "dataset": dataset,
                "batch_sampler": {"type": changes.pop("batch_sampler")} if "batch_sampler" in changes else None,
            },
            "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": 10**9},
            "optim_wrapper": {"type": "OptimWrapper", "optimizer": {"type": "SGD", "lr": 0.002}}
            | changes.pop("optim_wrapper", {}),
            "default_hooks": {
                "timer": {"type": "IterTimerHook"},
                "logger": {"type": "LoggerHook", "interval": 1},
                "checkpoint": {"type": "CheckpointHook", "interval": 10**9, "by_epoch": False},
                "sampler_seed": {"type": "DistSamplerSeedHook"},
                "runtime_info": {"type": "RuntimeInfoHook"},
            },
            "custom_hooks": hooks,
            "randomness": {"seed": 0},
            "log_level": "WARNING",
            "visualizer": {"type": "DetLocalVisualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
            "log_processor": {"by_epoch": False},
            "experiment_name": f"tiny{len(list(out.parent.iterdir()))}",
            **changes,
        },
        format_python_code=False,  # which takes as long as the training
    )


def by_epochs(count: int) -> dict[str, Any]:
    """Changes to :func:`runner_config` that make it a training by epochs, of three shuffled batches each."""
    return {
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": count, "val_interval": 10**9},
        "log_processor": {"by_epoch": True},
        "sampler": {"type": "DefaultSampler", "shuffle": True},
    }


def shipped_config(name: str) -> Config:
    """One of MMDetection's own config files."""
    return Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / name)


def shipped(name: str) -> Any:
    """The model of one of MMDetection's own config files."""
    return shipped_config(name).model


def tiny_mask_rcnn() -> Any:
    """MMDetection's Mask R-CNN on a ResNet18 of 8 channels."""
    model = narrowed(shipped("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"))
    model.backbone.norm_eval = False
    model.neck.out_channels = 16
    model.rpn_head.update(in_channels=16, feat_channels=16)
    for part in ("bbox", "mask"):
        model.roi_head[f"{part}_roi_extractor"].out_channels = 16
        model.roi_head[f"{part}_head"].in_channels = 16
    return model


def tiny_yolox() -> Any:
    """MMDetection's YOLOX-tiny with a third of its channels, resizing every other batch to 64 to 128 pixels.

    What it learns by needs none of MMCV's compiled operators.
    """
    model = narrowed(shipped("yolox/yolox_tiny_8xb8-300e_coco.py"))
    model.data_preprocessor.batch_augments[0].update(random_size_range=(64, 128), interval=2)
    model.backbone.widen_factor = 0.125
    model.neck.update(in_channels=[32, 64, 128], out_channels=32)
    model.bbox_head.update(in_channels=32, feat_channels=32)
    return model


def narrowed(model: Any) -> Any:
    """A model's config with few channels, classes, layers and proposals, wherever these are named."""
    names = {
        "num_layers": 2,
        "num_classes": len(CLASSES),
        "fc_out_channels": 32,
        "conv_out_channels": 16,
        "nms_pre": 50,
        "max_per_img": 20,
    }
    _visit(model, names)
    model["backbone"]["init_cfg"] = None
    if model["backbone"]["type"] == "ResNet":
        fewer = 8 if model["backbone"]["depth"] == 18 else 32
        model["backbone"].update(depth=18, base_channels=8)
        for part in ("neck", "panoptic_head"):
            if part in model:
                first = model[part][0] if isinstance(model[part], list) else model[part]
                channels = first["in_channels"]
                one = isinstance(channels, int)
                first["in_channels"] = channels // fewer if one else [own // fewer for own in channels]
    return model


def _visit(node: Any, names: dict[str, Any]) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in names:
                node[key] = names[key]
            _visit(value, names)
    elif isinstance(node, list | tuple):
        for entry in node:
            _visit(entry, names)


def settings(bank: ForegroundBank, policy: Any = "critic", **more: Any) -> dict[str, Any]:
    """Arguments of hook and transform with which every image gets a paste and the policy is updated every iteration."""
    if policy in ("critic", "adversarial"):
        policy = {"type": policy, "update_interval": 1}
    paste = {"paste_probability": 1.0, **more.pop("paste", {})}
    return {"bank": str(bank.path), "policy": policy, "paste": paste, **more}


_NUMBERS = itertools.count()


def bare(data: Path, out: Path, iterations: int, **changes: Any) -> Runner:
    """A runner, without terse-aug unless the hooks have it."""
    hooks, model = changes.pop("hooks", []), changes.pop("model", None) or tiny_mask_rcnn()
    name = f"tests{next(_NUMBERS)}"
    cfg = runner_config(model, data, out, iterations, hooks, experiment_name=name, **changes)
    torch.manual_seed(0)
    return Runner.from_cfg(cfg)


def made(data: Path, out: Path, iterations: int, terse: dict[str, Any], **changes: Any) -> tuple[Runner, TerseHook]:
    """A runner and its hook."""
    hooks = [{"type": "TerseHook", **terse}, *changes.pop("hooks", [])]
    runner = bare(data, out, iterations, hooks=hooks, **changes)
    return runner, next(hook for hook in runner.hooks if isinstance(hook, TerseHook))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> ForegroundBank:
    return tiny_bank(tmp_path_factory.mktemp("bank"))
