"""MMDetection's own models train with terse-aug: labels right, gradient to the policy, hardness asked and told.

``pytest tests/test_mmdet_models.py --write-table docs/mmdet-models.md`` writes what was seen as a table.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet.structures.bbox import HorizontalBoxes
from mmdet_factories import CLASSES, narrowed, pipeline, runner_config, shipped, tiny_bank, write_data
from mmengine.hooks import Hook
from mmengine.runner import Runner

from terse_aug_mmdet import MMDetDetector, TerseHook
from terse_aug_mmdet._batch import to_samples
from terse_aug_mmdet._model import _batch

pytestmark = QUIET_MMDET
_NUMBERS = itertools.count()

MODELS = {
    "Faster R-CNN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "Mask R-CNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "Cascade Mask R-CNN": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "ATSS": "atss/atss_r50_fpn_1x_coco.py",
    "GFL": "gfl/gfl_r50_fpn_1x_coco.py",
    "SSD300": "ssd/ssd300_coco.py",
    "YOLOv3": "yolo/yolov3_d53_8xb8-ms-608-273e_coco.py",
    "YOLOX": "yolox/yolox_tiny_8xb8-300e_coco.py",
    "RTMDet": "rtmdet/rtmdet_tiny_8xb32-300e_coco.py",
    "RTMDet-Ins": "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",
    "TOOD": "tood/tood_r50_fpn_1x_coco.py",
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
    "Deformable DETR": "deformable_detr/deformable-detr_r50_16xb2-50e_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "Sparse R-CNN": "sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py",
    "SOLOv2": "solov2/solov2_r50_fpn_1x_coco.py",
    "Mask2Former (instance)": "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
}
SQUARE = {"SSD300": 300, "RTMDet": 96, "RTMDet-Ins": 96}
"""Models that take images of one size only; the others get a batch of two."""
WITH_SECOND_STAGE = ("Faster R-CNN", "Mask R-CNN", "Cascade Mask R-CNN")
WITH_MASKS = ("Mask R-CNN", "Cascade Mask R-CNN", "RTMDet-Ins", "SOLOv2", "Mask2Former (instance)")


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    rows: dict[str, str] = {}
    yield rows
    if path := request.config.getoption("--write-table"):
        head = "| model | config | labels | gradient to the policy | hardness |\n|---|---|---|---|---|\n"
        lines = [f"| {name} | `{MODELS[name]}` | {found} |\n" for name, found in rows.items()]
        Path(path).write_text(head + "".join(lines))


class Look(Hook):
    """Keeps the batch as it enters the model."""

    priority = "LOWEST"
    batch: dict[str, Any]

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.batch = dict(data_batch)


def _model(name: str) -> Any:
    model = narrowed(shipped(MODELS[name]))
    if "panoptic_head" in model:
        for part in (model.panoptic_head, model.panoptic_fusion_head):
            part.update(num_things_classes=len(CLASSES), num_stuff_classes=0)
        model.panoptic_head.update(num_queries=10)
        model.panoptic_head.loss_cls.class_weight = [1.0] * len(CLASSES) + [0.1]
        model.test_cfg.max_per_image = 10
    if "num_grids" in model.get("mask_head", {}):
        model.mask_head.update(num_grids=[8, 6, 4, 3, 2], feat_channels=32)
    if "num_proposals" in model.get("rpn_head", {}):
        model.rpn_head.num_proposals = 10
    if "num_queries" in model:
        model.num_queries = 20
    model.data_preprocessor.pop("batch_augments", None)
    return model


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_trains_with_it(name: str, tmp_path: Path, table: dict[str, str]) -> None:
    (tmp_path / "data").mkdir()
    data, bank = write_data(tmp_path / "data"), tiny_bank(tmp_path)
    terse = {"bank": str(bank.path), "policy": "learned", "image_probability": 1.0, "move_every": 1, "decoys": (0, 0)}
    masks = name in WITH_MASKS
    steps = pipeline({"type": "TersePaste", **terse}, masks=masks, side=SQUARE.get(name))
    cfg = runner_config(
        _model(name),
        data,
        tmp_path,
        1,
        [{"type": "TerseHook", **terse}],
        pipeline=steps,
        experiment_name=f"models{next(_NUMBERS)}",
    )
    torch.manual_seed(0)
    runner = Runner.from_cfg(cfg)
    runner.register_hook(look := Look())
    hook = next(hook for hook in runner.hooks if isinstance(hook, TerseHook))
    runner.train()
    figures = hook.terse.metrics()
    assert (figures["moves"], figures["skipped_moves"], figures["losses_not_finite"]) == (1, 0, 0)
    assert figures["gradient_norm"] > 0
    for sample in look.batch["data_samples"]:
        instances = sample.gt_instances
        assert isinstance(instances.bboxes, HorizontalBoxes)
        assert len(instances.bboxes) == len(instances.labels) > 0
        assert set(instances.labels.tolist()) <= {0, 1}
        assert ("masks" in instances) == masks
    images, targets = to_samples(look.batch, torch.device("cpu"))
    state = {key: value.clone() for key, value in runner.model.state_dict().items()}
    scores = MMDetDetector(runner.model, len(CLASSES)).object_scores([image.detach() for image in images], targets)
    assert [len(own) for own in scores] == [len(target["boxes"]) for target in targets]
    assert all(bool((own >= 0).all() & (own <= 1).all()) for own in scores)
    assert runner.model.training
    after = runner.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in state.items())
    table[name] = f"right | yes | {'heard' if _hears(runner.model, images, targets) else 'asked'}"
    assert (table[name].endswith("heard")) is (name in WITH_SECOND_STAGE)


def _hears(model: Any, images: list[torch.Tensor], targets: list[Any]) -> bool:
    """Whether what is heard in a training forward is the probability that the second stage gives every proposal."""
    listener = MMDetDetector(model, len(CLASSES), iou_threshold=1e-6).listen()
    if listener is None:
        return False
    heads = model.roi_head.bbox_head
    layer = (heads[0] if isinstance(heads, torch.nn.ModuleList) else heads).fc_cls
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.7, 0.1, 0.2]).log())
        model(**model.data_preprocessor(_batch(images, targets), True), mode="loss")
    heard = listener.scores(images, targets)
    listener.close()
    assert heard is not None
    for own, target in zip(heard, targets, strict=True):
        assert own.tolist() == pytest.approx([[0.7, 0.1][label] for label in target["labels"]], abs=1e-5)
    return True
