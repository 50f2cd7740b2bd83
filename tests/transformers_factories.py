"""A tiny data set and detectors of transformers with random weights, narrow enough to train on one core."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from factories import ellipse
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from terse_aug_transformers import TerseCallback, collate_detection

CLASSES = ("dog", "cat")
"""In another order than the bank's: labels have to be matched by name."""
SIZES = ((64, 96), (96, 64), (64, 64), (96, 96))


_STAGES: dict[str, Any] = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "embedding_size": 8}
_OUT = {"out_features": ["stage2", "stage3", "stage4"]}
_NAMES = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: label for label, name in enumerate(CLASSES)}}
_SMALL = {"d_model": 16, "decoder_layers": 2, "decoder_ffn_dim": 16, "num_queries": 12}
_ENCODER = {"encoder_layers": 1, "encoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2}


def _resnet(kind: Any = transformers.ResNetConfig) -> dict[str, Any]:
    """A ResNet of four stages with 8 channels."""
    return {"backbone_config": kind(**_STAGES, **_OUT, layer_type="basic")}


def _detr() -> dict[str, Any]:
    return _SMALL | _ENCODER | _resnet() | {"dropout": 0.0}


def _dab_detr() -> dict[str, Any]:
    return {"hidden_size" if name == "d_model" else name: value for name, value in _detr().items()}


def _deformable_detr() -> dict[str, Any]:
    return _detr() | {"d_model": 32, "num_feature_levels": 3, "encoder_n_points": 2, "decoder_n_points": 2}


def _yolos() -> dict[str, Any]:
    sizes = {"image_size": [64, 64], "patch_size": 16, "hidden_size": 16, "intermediate_size": 16}
    return sizes | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_detection_tokens": 12}


def _real_time(backbone: dict[str, Any]) -> dict[str, Any]:
    channels = {"encoder_in_channels": [8] * 3, "decoder_in_channels": [16] * 3, "encoder_hidden_dim": 16}
    own = {"feat_strides": [8, 16, 32], "num_denoising": 8, "hidden_expansion": 0.5, "anchor_image_size": None}
    return _SMALL | _ENCODER | channels | own | backbone


def _hgnet() -> dict[str, Any]:
    names = ("stage_in_channels", "stage_mid_channels", "stage_out_channels")
    stages = {name: [8] * 4 for name in names} | {"stage_num_blocks": [1] * 4, "stage_numb_of_layers": [1] * 4}
    return {"backbone_config": transformers.HGNetV2Config(**_STAGES, **_OUT, **stages, stem_channels=[3, 8, 8])}


_VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16}
_GROUPS = {"group_detr": 2, "decoder_n_points": 2}


def _lw_detr() -> dict[str, Any]:
    windows = {"window_block_indices": [0], "num_windows": 4, "pretrain_image_size": 64}
    vit = transformers.LwDetrViTConfig(**_VIT, **windows, out_indices=[1, 2])
    heads = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2}
    return (
        _SMALL | _GROUPS | heads | {"backbone_config": vit, "projector_scale_factors": [1.0], "hidden_expansion": 0.5}
    )


def _rf_detr() -> dict[str, Any]:
    kind = type(transformers.RfDetrConfig().backbone_config)
    vit = kind(**_VIT, mlp_ratio=1, num_windows=2, out_indices=[1, 2], window_block_indexes=[0])
    heads = {"decoder_self_attention_heads": 2, "decoder_cross_attention_heads": 2, "num_feature_levels": 1}
    return _SMALL | _GROUPS | heads | {"backbone_config": vit}


_FOR_DETECTION = "ForObjectDetection"
_MODELS: dict[str, tuple[str, str, Callable[[], dict[str, Any]]]] = {
    "DETR": ("Detr", _FOR_DETECTION, _detr),
    "Conditional DETR": ("ConditionalDetr", _FOR_DETECTION, _detr),
    "DAB-DETR": ("DabDetr", _FOR_DETECTION, _dab_detr),
    "Deformable DETR": ("DeformableDetr", _FOR_DETECTION, _deformable_detr),
    "Table Transformer": ("TableTransformer", _FOR_DETECTION, _detr),
    "YOLOS": ("Yolos", _FOR_DETECTION, _yolos),
    "RT-DETR": ("RTDetr", _FOR_DETECTION, lambda: _real_time(_resnet(transformers.RTDetrResNetConfig))),
    "RT-DETRv2": ("RTDetrV2", _FOR_DETECTION, lambda: _real_time(_resnet(transformers.RTDetrResNetConfig))),
    "D-FINE": ("DFine", _FOR_DETECTION, lambda: _real_time(_hgnet())),
    "DEIMv2": ("Deimv2", _FOR_DETECTION, lambda: _real_time(_hgnet())),
    "LW-DETR": ("LwDetr", _FOR_DETECTION, _lw_detr),
    "RF-DETR": ("RfDetr", _FOR_DETECTION, _rf_detr),
    "RF-DETR with masks": ("RfDetr", "ForInstanceSegmentation", _rf_detr),
}
MODELS = tuple(_MODELS)


def make_model(name: str, seed: int = 0) -> Any:
    """A detector of two classes in training mode; the global random state is put back."""
    kind, task, config = _MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = getattr(transformers, f"{kind}{task}")(getattr(transformers, f"{kind}Config")(**config(), **_NAMES))
    return made.train()


class TinyData(Dataset[Any]):
    """Noise images of several sizes with one or two ellipses, each through an image processor.

    Args:
        processor: of images.
        masks: give masks too.
        count: of images.
    """

    def __init__(self, processor: Any, masks: bool = False, count: int = 8) -> None:
        self._processor, self._count, self._masks = processor, count, masks

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = np.random.default_rng(index)
        height, width = SIZES[index % len(SIZES)]
        image = generator.integers(0, 128, (height, width, 3), dtype=np.uint8)
        annotations = []
        for own in range(1 + index % 2):
            centre, radii, outline = ellipse(generator, height, width)
            box = [*(centre - radii).tolist(), *(2 * radii).tolist()]
            entry = {"bbox": box, "category_id": own, "area": box[2] * box[3], "iscrowd": 0}
            annotations.append(entry | {"segmentation": [outline.flatten().tolist()]})
        made = self._processor(
            images=image,
            annotations={"image_id": index, "annotations": annotations},
            return_segmentation_masks=self._masks,
            return_tensors="pt",
        )
        return {name: values[0] for name, values in made.items()}


def square_processor() -> Any:
    """RT-DETR's: images of one size in [0, 1]."""
    return transformers.RTDetrImageProcessor(size={"height": 64, "width": 64})


def padding_processor(**changes: Any) -> Any:
    """DETR's: normalized images that keep their ratio; each has to be padded in a batch."""
    return transformers.DetrImageProcessor(
        **{"size": {"shortest_edge": 64, "longest_edge": 96}, "do_pad": False} | changes
    )


class Watch(TrainerCallback):
    """Records the losses of a training, and the batches as they come and as the model gets them.

    It stands before other callbacks, whose hooks on the model run after its own.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.loaded: list[dict[str, Any]] = []
        self.entered: list[dict[str, Any]] = []
        self._handles: list[Any] = []

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        self._handles = [
            model.register_forward_pre_hook(self._before, with_kwargs=True),
            model.register_forward_hook(self._after, with_kwargs=True),
        ]

    def _before(self, module: nn.Module, inputs: Any, keywords: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.loaded.append(keywords)

    def _after(self, module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.losses.append(float(output.loss.detach()))
            self.entered.append(keywords)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        for handle in self._handles:
            handle.remove()


def arguments(out: Path, steps: int, **changes: Any) -> TrainingArguments:
    """Of a short training on the CPU that saves nothing."""
    own = {
        "output_dir": str(out),
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": 0,
        "dataloader_pin_memory": False,
    }
    return TrainingArguments(**(own | changes))


def trainer(
    out: Path, steps: int, terse: TerseCallback | None, model: str | nn.Module = "DETR", **changes: Any
) -> tuple[Trainer, Watch]:
    """A Trainer and what watches it. Changes are of the arguments, except ``data``, ``evaluated`` and ``processor``."""
    watch, processor = Watch(), changes.pop("processor", None) or square_processor()
    data, evaluated = changes.pop("data", None) or TinyData(processor), changes.pop("evaluated", None)
    made = Trainer(
        make_model(model) if isinstance(model, str) else model,
        arguments(out, steps, **changes),
        train_dataset=data,
        eval_dataset=evaluated,
        data_collator=collate_detection,
        processing_class=processor,
        callbacks=[watch, *([] if terse is None else [terse])],
    )
    return made, watch
