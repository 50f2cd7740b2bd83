"""Detectron2's own models train with terse-aug, and give the hardness of pastes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import tiny_bank
from frameworks import QUIET_DETECTRON2, need_detectron2
from torch import nn

need_detectron2()
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.layers import ShapeSpec
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from detectron2_factories import (  # noqa: F401 - fixtures
    CLASSES,
    YAML,
    KeepStorage,
    Watched,
    bank,
    dataset,
    item,
    tiny_cfg,
    trainer_with_hook,
)

from terse_aug import ForegroundBank
from terse_aug.policies import Adversarial, Critic
from terse_aug_detectron2 import Detectron2Adapter, TerseHook
from terse_aug_detectron2.batch import Needs, from_samples, to_samples

pytestmark = QUIET_DETECTRON2


CASES = [(model, policy) for model in YAML for policy in ("critic", "adversarial")]


@pytest.mark.parametrize(("model", "policy"), [*CASES, ("retinanet", "best-of-n"), ("keypoint_fpn", "best-of-n")])
def test_the_models_of_detectron2_train_with_it(dataset: str, tmp_path: Path, model: str, policy: str) -> None:
    bank = tiny_bank(tmp_path, keypoints=model == "keypoint_fpn")
    cfg = tiny_cfg(model, dataset, tmp_path, bank, policy=policy)
    cfg.SOLVER.MAX_ITER = 2
    trainer, hook = trainer_with_hook(cfg, KeepStorage)
    seen = Watched(trainer.model)
    trainer.train()
    metrics = hook.terse.metrics()
    assert metrics["iterations"] == 2
    assert metrics["updates"] == (0 if policy == "best-of-n" else 2)
    assert metrics["non_finite_losses"] == metrics["dropped/graph"] == 0
    if policy == "critic":
        assert 0 <= metrics["hardness"] <= 1
    assert (metrics["extra_forwards"] > 0) is (policy == "best-of-n")
    trained = [one["instances"] for batch in seen.batches for one in batch if "instances" in one]
    assert all(len(instances) for instances in trained)
    assert all(instances.has("gt_keypoints") for instances in trained) or model != "keypoint_fpn"
    # Extra forwards log nothing.
    for name in ("num_pos_anchors",) if model == "retinanet" else ("rpn/num_pos_anchors", "roi_head/num_fg_samples"):
        assert len(trainer.kept.history(name).values()) == 2  # type: ignore[attr-defined]


def test_the_recorded_losses_are_those_of_the_training(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    """Not those of the extra forwards of best-of-n while the second batch is accumulated."""
    seen: list[int] = []

    class Accumulating(DefaultTrainer):
        def run_step(self) -> None:
            inner = self._trainer
            for _ in range(2):
                sum(self.model(next(inner._data_loader_iter)).values()).backward()
            inner.optimizer.zero_grad()
            seen.append(len(hook.losses))

    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, policy="best-of-n")
    cfg.SOLVER.MAX_ITER = 2
    trainer, hook = trainer_with_hook(cfg, Accumulating)
    trainer.train()
    assert seen == [2] * 2


def test_a_score_is_that_of_a_detection_of_the_same_class_in_the_same_place() -> None:
    class Fixed(nn.Module):
        num_classes = 3

        def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
            boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [1, 1, 10, 10], [30, 30, 40, 40]]))
            scores, classes = torch.tensor([0.9, 0.4, 0.6, 0.8]), torch.tensor([1, 0, 0, 0])
            found = Instances((40, 50), pred_boxes=boxes, scores=scores, pred_classes=classes)
            return [{"instances": found} for _ in batch]

    detector = Detectron2Adapter(Fixed())
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1, 2, 0])}
    (scores,) = detector.object_scores([torch.zeros(3, 40, 50)], [target])
    assert scores.tolist() == pytest.approx([(7 * 0.6 + 3 * 0.4) / 10, 0.9, 0.0, 0.0])
    assert (detector.first_label, detector.label_limit) == (0, 3)


@pytest.mark.parametrize(
    ("name", "sigmoid"), [("faster_c4", False), ("mask_fpn", True), ("mask_fpn", False), ("cascade_fpn", True)]
)
def test_the_recorded_score_is_the_probability_of_the_object_s_class(
    dataset: str, tmp_path: Path, name: str, sigmoid: bool
) -> None:
    cfg = tiny_cfg(name, dataset, tmp_path)
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = sigmoid
    model = DefaultTrainer.build_model(cfg).train()
    predictor: Any = model.roi_heads.box_predictor
    layer = (predictor[0] if isinstance(predictor, nn.ModuleList) else predictor).cls_score
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.tensor([0.7, 0.1, 0.2]).logit() if sigmoid else torch.tensor([0.7, 0.1, 0.2]).log())
    recorder = Detectron2Adapter(model, iou_thresholds=(1e-6,)).record_forward()
    assert recorder is not None
    batch = [item(count, gt_masks=BitMasks(torch.ones(count, 40, 50).bool())) for count in (2, 1)]
    images, targets = to_samples(batch, torch.device("cpu"), Needs(masks=True))
    with EventStorage(0):
        model(from_samples(batch, images, targets))
    recorded = recorder.scores(images, targets)
    assert recorded is not None
    for own, target in zip(recorded, targets, strict=True):
        assert own.tolist() == pytest.approx([[0.7, 0.1][label] for label in target["labels"]], abs=1e-5)


def lazy_fcos() -> nn.Module:
    model = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
    model.num_classes = len(CLASSES)
    stages = model.backbone.bottom_up.stages
    stages.norm = model.backbone.bottom_up.stem.norm = "BN"
    stages.depth = 18
    stages.pop("stride_in_1x1", None)
    model.backbone.out_channels = model.backbone.top_block.in_channels = model.backbone.top_block.out_channels = 64
    model.head.input_shape, model.head.conv_dims = [ShapeSpec(channels=64)] * 5, [64, 64]
    detector: nn.Module = instantiate(model)
    return detector


def lazy_vitdet() -> nn.Module:
    pytest.importorskip("timm", reason="Detectron2's ViT needs timm")
    model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    net = model.backbone.net
    net.img_size, net.embed_dim, net.depth, net.num_heads, net.window_size = 128, 32, 2, 2, 4
    net.window_block_indexes = [0]
    model.backbone.square_pad = 128
    model.roi_heads.num_classes = len(CLASSES)
    model.backbone.out_channels = model.proposal_generator.head.in_channels = 16
    model.proposal_generator.pre_nms_topk = model.proposal_generator.post_nms_topk = (50, 50)
    model.roi_heads.batch_size_per_image = 16
    for head in (model.roi_heads.box_head, model.roi_heads.mask_head):
        head.input_shape.channels = 16
        head.conv_dims = [8, 8]
    model.roi_heads.box_head.fc_dims = [32]
    model.roi_heads.box_predictor.input_shape.channels = 32
    detector: nn.Module = instantiate(model)
    return detector


@pytest.mark.parametrize(
    ("make", "policy"), [(lazy_fcos, Critic(update_interval=1)), (lazy_vitdet, Adversarial(update_interval=1))]
)
def test_lazy_configs_and_a_simple_trainer_work(
    dataset: str, bank: ForegroundBank, tmp_path: Path, make: Any, policy: Any
) -> None:
    torch.manual_seed(0)
    model = make().train()
    arguments = {"bank": bank.relabel(CLASSES), "policy": policy, "paste": {"paste_probability": 1.0}}
    hook = instantiate(LazyCall(TerseHook)(**arguments, seed=1, log_period=1))
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path)
    loader = build_detection_train_loader(cfg)
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], 1e-3)
    trainer = SimpleTrainer(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=trainer)
    trainer.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2), hook])
    trainer.train(0, 2)
    assert hook.terse.metrics()["updates"] == 2
    assert hook.terse.pixel_format.bgr == (make is lazy_fcos)
    # As Detectron2's own script has it: resumed, and the hook registered after that.
    again = SimpleTrainer(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=again)
    checkpointer.resume_or_load("", resume=True)
    late = TerseHook(**arguments, seed=99)
    again.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2), late])
    again.train(again.iter + 1, 3)
    assert late.terse.seed == 1
    assert late.terse.metrics()["iterations"] == 3


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_extra_forwards_leave_the_running_mean_of_the_loss_alone(
    dataset: str, bank: ForegroundBank, tmp_path: Path, name: str
) -> None:
    cfg = tiny_cfg("retinanet", dataset, tmp_path)
    model = DefaultTrainer.build_model(cfg).train() if name == "retinanet" else lazy_fcos().train()
    images, targets = to_samples([item(), item(1)], torch.device("cpu"), Needs())
    images = [image.float() for image in images]
    with EventStorage(0):
        for _ in range(2):
            before = vars(model).get("loss_normalizer")
            _check_repeatable(model, images, targets)
            assert vars(model).get("loss_normalizer") == before
            model(from_samples([item(), item(1)], images, targets))
    assert float(model.loss_normalizer) != before


def _check_repeatable(model: nn.Module, images: Any, targets: Any) -> None:
    detector = Detectron2Adapter(model)
    losses = [detector.image_losses(images, targets) for _ in range(2)]
    assert torch.equal(losses[0], losses[1])
    loss, gradients = detector.input_gradients(images, targets)
    assert torch.equal(loss, detector.input_gradients(images, targets)[0])
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)
