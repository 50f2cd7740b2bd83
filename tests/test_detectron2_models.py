"""Detectron2's own models train with terse-aug, and are asked how hard a paste was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hosts import QUIET_DETECTRON2, need_detectron2
from torch import nn

need_detectron2()
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, instantiate
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from detectron2_factories import (  # noqa: F401 - fixtures
    CLASSES,
    YAML,
    Watched,
    bank,
    dataset,
    item,
    tiny_bank,
    tiny_cfg,
    trainer_with_hook,
)

from terse_aug import ForegroundBank
from terse_aug_detectron2 import Detectron2Adapter, TerseHook
from terse_aug_detectron2.batch import Needs, from_samples, to_samples

pytestmark = QUIET_DETECTRON2


@pytest.mark.parametrize("policy", ["critic", "adversarial", "best-of-n"])
@pytest.mark.parametrize("model", list(YAML))
def test_detectron2s_models_train_with_it(dataset: str, tmp_path: Path, model: str, policy: str) -> None:
    bank = tiny_bank(tmp_path, keypoints=model == "keypoint_fpn")
    cfg = tiny_cfg(model, dataset, tmp_path, bank, POLICY=policy)
    cfg.SOLVER.MAX_ITER = 2
    trainer = DefaultTrainer(cfg)
    hook = TerseHook.from_config(cfg)
    trainer.register_hooks([hook])
    seen = Watched(trainer.model)
    trainer.train()
    assert hook is not None
    figures = hook.terse.metrics()
    assert figures["iterations"] == 2
    assert figures["updates"] == (0 if policy == "best-of-n" else 2)
    assert figures["non_finite_losses"] == figures["dropped/graph"] == 0
    if policy == "critic":
        assert 0 <= figures["hardness"] <= 1
        assert (figures["extra_forwards"] == 0) is (model != "retinanet")  # the others have a second stage to hear
    trained = [one["instances"] for batch in seen.batches for one in batch if "instances" in one]
    assert all(len(instances) for instances in trained)
    assert all(instances.has("gt_keypoints") for instances in trained) or model != "keypoint_fpn"


@pytest.mark.parametrize("policy", ["critic", "best-of-n"])
def test_what_the_detector_is_asked_is_not_logged(
    dataset: str, bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    class Kept(DefaultTrainer):
        def after_train(self) -> None:
            self.kept = self.storage
            super().after_train()

    model = "retinanet" if policy == "critic" else "faster_fpn"  # which the critic hears, and does not ask
    trainer, hook = trainer_with_hook(tiny_cfg(model, dataset, tmp_path, bank, POLICY=policy), Kept)
    trainer.train()
    assert hook.terse.metrics()["extra_forwards"] > 0
    for name in ("num_pos_anchors",) if policy == "critic" else ("rpn/num_pos_anchors", "roi_head/num_fg_samples"):
        assert len(trainer.kept.history(name).values()) == 4  # type: ignore[attr-defined]  # kept by the test's trainer


def test_the_losses_of_the_step_are_those_of_the_training(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    """Not of the passes that hard-random makes while the second batch is accumulated."""
    seen: list[int] = []

    class Accumulating(DefaultTrainer):
        def run_step(self) -> None:
            inner = self._trainer
            for _ in range(2):
                sum(self.model(next(inner._data_loader_iter)).values()).backward()
            inner.optimizer.zero_grad()
            seen.append(len(hook._losses))

    trainer, hook = trainer_with_hook(tiny_cfg("faster_fpn", dataset, tmp_path, bank, POLICY="best-of-n"), Accumulating)
    trainer.train()
    assert seen == [2] * 4


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
    assert scores.tolist() == pytest.approx([0.6, 0.9, 0.0, 0.0])
    assert (detector.first_label, detector.label_limit) == (0, 3)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("name", ["faster_c4", "mask_fpn", "cascade_fpn"])
def test_what_is_heard_is_the_probability_of_the_object_s_class(
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
    listener = Detectron2Adapter(model, iou_threshold=1e-6).record_forward()
    assert listener is not None
    batch = [item(count, gt_masks=BitMasks(torch.ones(count, 40, 50).bool())) for count in (2, 1)]
    images, targets = to_samples(batch, torch.device("cpu"), Needs(masks=True))
    with EventStorage(0):
        model(from_samples(batch, images, targets))
    heard = listener.scores(images, targets)
    assert heard is not None
    for own, target in zip(heard, targets, strict=True):
        assert own.tolist() == pytest.approx([[0.7, 0.1][label] for label in target["labels"]], abs=1e-5)


def lazy_fcos() -> nn.Module:
    model = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py").model
    model.num_classes = len(CLASSES)
    model.backbone.bottom_up.stages.norm = model.backbone.bottom_up.stem.norm = "BN"
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


@pytest.mark.parametrize("policy", ["critic", "adversarial"])
@pytest.mark.parametrize("make", [lazy_fcos, lazy_vitdet])
def test_lazy_configs_and_a_simple_trainer_work(
    dataset: str, bank: ForegroundBank, tmp_path: Path, make: Any, policy: str
) -> None:
    torch.manual_seed(0)
    model = make().train()
    hook = instantiate(
        LazyCall(TerseHook)(
            bank=bank.relabel(CLASSES), policy=policy, seed=1, move_every=1, image_probability=1.0, log_period=1
        )
    )
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
    late = TerseHook(bank.relabel(CLASSES), policy, seed=99, move_every=1, image_probability=1.0)
    again.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2), late])
    again.train(again.iter + 1, 3)
    assert late.terse.seed == 1
    assert late.terse.metrics()["iterations"] == 3


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_asking_leaves_the_running_mean_of_the_loss_alone(
    dataset: str, bank: ForegroundBank, tmp_path: Path, name: str
) -> None:
    cfg = tiny_cfg("retinanet", dataset, tmp_path)
    model = DefaultTrainer.build_model(cfg).train() if name == "retinanet" else lazy_fcos().train()
    images, targets = to_samples([item(), item(1)], torch.device("cpu"), Needs())
    with EventStorage(0):
        for _ in range(2):
            before = vars(model).get("loss_normalizer")
            _check_asking(model, images, targets)
            assert vars(model).get("loss_normalizer") == before
            model(from_samples([item(), item(1)], images, targets))
    assert float(model.loss_normalizer) != before


def _check_asking(model: nn.Module, images: Any, targets: Any) -> None:
    detector = Detectron2Adapter(model)
    losses = [detector.image_losses(images, targets) for _ in range(2)]
    assert torch.equal(losses[0], losses[1])
    loss, gradients = detector.input_gradients(images, targets)
    assert torch.equal(loss, detector.input_gradients(images, targets)[0])
    assert all(bool(gradient.isfinite().all()) and bool(gradient.any()) for gradient in gradients)
