"""MMDetection's own models train with terse-aug: right labels, gradient to the policy, hardness.

``pytest tests/test_mmdet_models.py --write-table docs/mmdet-models.md`` writes the results as a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet.registry import MODELS as MODELS_OF_MMDET
from mmdet.structures.bbox import HorizontalBoxes
from mmdet_factories import (  # noqa: F401 - fixtures
    CLASSES,
    bank,
    data,
    made,
    narrowed,
    pipeline,
    settings,
    shipped,
    tiny_yolox,
)
from mmengine.hooks import Hook
from mmengine.logging import MessageHub
from mmengine.registry import DefaultScope

from terse_aug import ForegroundBank
from terse_aug.models import RoIHeadRecorder, isolated_forward
from terse_aug_mmdet import MMDetAdapter
from terse_aug_mmdet.batch import to_samples
from terse_aug_mmdet.boxes import as_tensor
from terse_aug_mmdet.model import _batch

pytestmark = QUIET_MMDET

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
NOT_RECORDED = ("SOLOv2", "Mask2Former (instance)")
NO_SUPPRESSION = {
    **{"score_thr": 0.0, "conf_thr": -1, "nms_pre": 100_000, "max_per_img": 100_000},
    "nms": {"type": "nms", "iou_threshold": 1.0},
}
WITH_MASKS = ("Mask R-CNN", "Cascade Mask R-CNN", "RTMDet-Ins", "SOLOv2", "Mask2Former (instance)")


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    rows: dict[str, str] = {}
    yield rows
    if path := request.config.getoption("--write-table"):
        head = "| model | config | labels | gradient to the policy | hardness |\n|---|---|---|---|---|\n"
        lines = [f"| {name} | `{MODELS[name]}` | {found} |\n" for name, found in rows.items()]
        Path(path).write_text(head + "".join(lines))


class Watching(Hook):
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
        head = model.roi_head
        head.update(num_stages=2, stage_loss_weights=[1, 1], bbox_head=head.bbox_head[:2])
        model.train_cfg.rcnn = model.train_cfg.rcnn[:2]
    if model.backbone.type == "SSDVGG":  # at 300 pixels it takes most of the time
        model.backbone = {"type": "MobileNetV2", "out_indices": (2, 4), "widen_factor": 0.25}
        model.neck.update(in_channels=(8, 24), out_channels=(8, 24, 32, 16, 16, 16))
        model.bbox_head.in_channels = (8, 24, 32, 16, 16, 16)
    if "num_queries" in model:
        model.num_queries = 20
    model.data_preprocessor.pop("batch_augments", None)
    return model


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_trains_with_it(
    name: str, data: Path, bank: ForegroundBank, tmp_path: Path, table: dict[str, str]
) -> None:
    terse = settings(bank, "adversarial", paste={"decoys": (0, 0)})
    masks = name in WITH_MASKS
    steps = pipeline({"type": "TersePaste", **terse}, masks=masks, side=SQUARE.get(name))
    runner, hook = made(data, tmp_path, 1, terse, model=_model(name), pipeline=steps)
    runner.register_hook(watching := Watching())
    runner.train()
    metrics = hook.terse.metrics()
    assert (metrics["updates"], metrics["skipped_updates"], metrics["non_finite_losses"]) == (1, 0, 0)
    assert metrics["gradient_norm"] > 0
    for sample in watching.batch["data_samples"]:
        instances = sample.gt_instances
        assert isinstance(instances.bboxes, HorizontalBoxes)
        assert len(instances.bboxes) == len(instances.labels) > 0
        assert set(instances.labels.tolist()) <= {0, 1}
        assert ("masks" in instances) == masks
    images, targets = to_samples(watching.batch, torch.device("cpu"))
    state = {key: value.clone() for key, value in runner.model.state_dict().items()}
    scores = MMDetAdapter(runner.model, len(CLASSES)).object_scores([image.detach() for image in images], targets)
    assert [len(own) for own in scores] == [len(target["boxes"]) for target in targets]
    assert all(bool((own >= 0).all() & (own <= 1).all()) for own in scores)
    _, gradients = MMDetAdapter(runner.model, len(CLASSES)).input_gradients(images, targets)
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)
    assert runner.model.training
    after = runner.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in state.items())
    table[name] = f"right | yes | {'recorded' if _records(runner.model, images, targets) else 'extra forward'}"
    assert (table[name].endswith("recorded")) is (name not in NOT_RECORDED)


def _records(model: Any, images: list[torch.Tensor], targets: list[Any]) -> bool:
    """Whether scores are recorded from a training forward; if they are, they have to be right."""
    # None of RTMDet's random boxes overlaps an object.
    adapter = MMDetAdapter(model, len(CLASSES), iou_thresholds=(0.0 if type(model).__name__ == "RTMDet" else 1e-6,))
    recorder = adapter.record_forward()
    if recorder is None:
        return False
    two_stages = isinstance(recorder, RoIHeadRecorder)
    queries = hasattr(model, "num_queries") or type(model).__name__ == "SparseRCNN"
    if two_stages:
        # The same class probabilities for every proposal.
        heads = model.roi_head.bbox_head
        layer = (heads[0] if isinstance(heads, torch.nn.ModuleList) else heads).fc_cls
        with torch.no_grad():
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([0.7, 0.1, 0.2]).log())
    elif not queries:
        model.bbox_head.test_cfg.update(NO_SUPPRESSION)
    with isolated_forward(model, True):
        model(**model.data_preprocessor(_batch(images, targets), True), mode="loss")
    recorded = recorder.scores(images, targets)
    recorder.close()
    assert recorded is not None
    if queries:  # what is predicted is compared in test_feedback_mmdet.py
        return all(bool(((own >= 0) & (own <= 1)).all()) for own in recorded)
    # An extra forward of a one-stage detector gives the same, if no detection suppresses another.
    predicted = [] if two_stages else adapter.object_scores(images, targets)
    for number, (own, its) in enumerate(zip(recorded, targets, strict=True)):
        expected = [[0.7, 0.1][label] for label in its["labels"]] if two_stages else predicted[number].tolist()
        assert own.tolist() == pytest.approx(expected, abs=1e-5)
        assert float(own.max()) > 0
    return True


def test_heads_that_would_be_recorded_wrong_need_an_extra_forward() -> None:
    """OHEM classifies candidates of its own before."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS_OF_MMDET.build(narrowed(shipped("faster_rcnn/faster-rcnn_r50_fpn_ohem_1x_coco.py")))
    assert MMDetAdapter(model, len(CLASSES)).record_forward() is None


def test_extra_forwards_leave_the_thresholds_that_a_model_adapts_in_training() -> None:
    """Dynamic R-CNN's, which are its assigner's."""
    torch.manual_seed(0)
    cfg = narrowed(shipped("dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py"))
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS_OF_MMDET.build(cfg).train()
    model.roi_head.train_cfg.dynamic_rcnn.update_iter_interval = 1
    images = [torch.rand(3, 96, 96)]
    targets = [{"boxes": torch.tensor([[10.0, 20, 50, 60]]), "labels": torch.tensor([0])}]
    before = model.roi_head.bbox_assigner.pos_iou_thr
    MMDetAdapter(model, len(CLASSES)).image_losses(images, targets)
    assert model.roi_head.bbox_assigner.pos_iou_thr == before
    model(**model.data_preprocessor(_batch(images, targets), True), mode="loss")
    assert model.roi_head.bbox_assigner.pos_iou_thr != before


def test_models_without_extra_forwards_are_refused() -> None:
    with DefaultScope.overwrite_default_scope("mmdet"):
        rpn = MODELS_OF_MMDET.build(narrowed(shipped("rpn/rpn_r50_fpn_1x_coco.py")))
        model: Any = MODELS_OF_MMDET.build(narrowed(shipped("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py")))
    with pytest.raises(ValueError, match="RPN proposes boxes without classes"):
        MMDetAdapter(rpn)
    model.language_model = torch.nn.Identity()  # as GroundingDINO and GLIP have one
    adapter = MMDetAdapter(model, len(CLASSES))
    images, targets = [torch.rand(3, 96, 96)], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long()}]
    for method in (adapter.image_losses, adapter.object_scores, adapter.input_gradients):
        with pytest.raises(ValueError, match="FasterRCNN takes a text with every image"):
            method(images, targets)


def test_scores_of_a_model_that_resizes_its_batches_are_in_pixels_of_the_composites() -> None:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model: Any = MODELS_OF_MMDET.build(tiny_yolox()).train()
    model.init_weights()
    model.bbox_head.test_cfg.update(NO_SUPPRESSION)
    MessageHub.get_current_instance().update_info("iter", 0)
    resize = model.data_preprocessor.batch_augments[0]
    images = [torch.rand(3, 96, 128), torch.rand(3, 96, 96)]
    boxes = torch.tensor([[10.0, 20, 50, 60], [40, 30, 90, 80]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 1])}, {"boxes": boxes[:1], "labels": torch.tensor([1])}]
    for size in ((64, 96), (160, 192)):
        resize._input_size = size
        adapter = MMDetAdapter(model, len(CLASSES), iou_thresholds=(0.01,))
        recorder = adapter.record_forward()
        assert recorder is not None
        batch = model.data_preprocessor(_batch(images, targets), True)
        shown = [image.detach().clone() for image in batch["inputs"]]
        assert shown[0].shape[1:] == size
        resized = [
            {"boxes": as_tensor(sample.gt_instances.bboxes).clone(), "labels": sample.gt_instances.labels}
            for sample in batch["data_samples"]
        ]
        with isolated_forward(model, True):
            model(**batch, mode="loss")
        recorded = recorder.scores(images, targets)
        others = [{**one, "boxes": one["boxes"] + 20} for one in targets]
        assert recorder.scores(images, others) is None
        recorder.close()
        assert recorded is not None
        resize._input_size = size
        predicted = adapter.object_scores(shown, resized)
        assert torch.cat(recorded).tolist() == pytest.approx(torch.cat(predicted).tolist(), abs=1e-4)
        assert float(torch.cat(recorded).min()) > 0


def test_extra_forwards_leave_attributes_and_batch_augmentations_alone() -> None:
    class Stateful(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.history: list[float] = []
            self.data_preprocessor = Preprocessor()

        def forward(self, mode: str, **data: Any) -> dict[str, Any]:
            self.history.append(1.0)
            self.count = 3
            assert self.data_preprocessor.batch_augments is None
            return {"loss": torch.ones(())}

        def parse_losses(self, losses: Any) -> Any:
            return losses["loss"], losses

    class Preprocessor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.batch_augments = torch.nn.ModuleList([torch.nn.Identity()])

        def forward(self, batch: Any, training: bool) -> Any:
            return batch

    model = Stateful()
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([0])}
    assert MMDetAdapter(model, 3).image_losses([torch.zeros(3, 20, 20)], [target]).tolist() == [1.0]
    assert model.history == []
    assert not hasattr(model, "count")
    assert len(model.data_preprocessor.batch_augments) == 1
