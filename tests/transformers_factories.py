"""A tiny data set and detectors of transformers with random weights, narrow enough to train on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from factories import ellipse
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from terse_aug_transformers import TerseCallback, collate_detection

CLASSES = ("dog", "cat")
"""In another order than the bank's: labels have to be matched by name."""
SIZES = ((64, 96), (96, 64), (64, 64), (96, 96))


def backbone() -> Any:
    """A ResNet of four stages with 8 channels."""
    return transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _small_transformer() -> dict[str, Any]:
    return {
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "num_queries": 12,
        "dropout": 0.0,
    }


def _real_time() -> dict[str, Any]:
    names = {"d_model", "encoder_layers", "decoder_layers", "encoder_ffn_dim", "decoder_ffn_dim", "num_queries"}
    return {name: value for name, value in _small_transformer().items() if name in names} | {
        "encoder_hidden_dim": 16,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_in_channels": [8, 8, 8],
        "decoder_in_channels": [16, 16, 16],
        "feat_strides": [8, 16, 32],
        "num_denoising": 8,
        "hidden_expansion": 0.5,
        "anchor_image_size": None,
    }


def make_detector(name: str, seed: int = 0) -> nn.Module:
    """A detector of two classes; the global random state is put back."""
    kind, config = _DETECTORS[name]
    names = {"id2label": dict(enumerate(CLASSES)), "label2id": {own: row for row, own in enumerate(CLASSES)}}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model: nn.Module = getattr(transformers, f"{kind}ForObjectDetection")(
            getattr(transformers, f"{kind}Config")(**config(), **names)
        )
    return model.train()


_PLAIN = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}


def _detr() -> dict[str, Any]:
    return _small_transformer() | _PLAIN | {"backbone_config": backbone()}


def _rt_detr() -> dict[str, Any]:
    return _real_time() | {
        "backbone_config": transformers.RTDetrResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 8, 8],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
    }


_DETECTORS = {
    "DETR": ("Detr", _detr),
    "RT-DETR": ("RTDetr", _rt_detr),
}


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


def padding_processor() -> Any:
    """DETR's: normalized images that keep their ratio; each has to be padded in a batch."""
    return transformers.DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 72}, do_pad=False)


class Watch(TrainerCallback):
    """Records losses, and what enters the model after all hooks of callbacks before."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.batches: list[dict[str, Any]] = []
        self._handle: Any = None

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        self._handle = model.register_forward_hook(self._seen, with_kwargs=True)

    def _seen(self, module: nn.Module, inputs: Any, keywords: Any, output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.losses.append(float(output.loss.detach()))
            self.batches.append(keywords)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self._handle.remove()


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
    out: Path, steps: int, terse: TerseCallback | None, model: str | nn.Module = "RT-DETR", **changes: Any
) -> tuple[Trainer, Watch]:
    """A Trainer and what watches it. Changes are of the arguments, except ``data`` and ``processor``."""
    watch, processor = Watch(), changes.pop("processor", None) or square_processor()
    data = changes.pop("data", None) or TinyData(processor)
    made = Trainer(
        make_detector(model) if isinstance(model, str) else model,
        arguments(out, steps, **changes),
        train_dataset=data,
        data_collator=collate_detection,
        processing_class=processor,
        callbacks=[*([] if terse is None else [terse]), watch],
    )
    return made, watch


def weights(model: Any) -> list[Tensor]:
    """Copies of a model's parameters and buffers."""
    return [value.detach().clone() for value in model.state_dict().values()]
