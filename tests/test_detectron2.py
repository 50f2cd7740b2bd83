"""Detectron2's adapter: its config, its mapper, its hook in every kind of trainer, and Detectron2's own models."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hosts import QUIET_DETECTRON2, need_detectron2
from torch import nn

need_detectron2()
from detectron2 import model_zoo
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, hooks, launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks, RotatedBoxes
from detectron2.utils.events import EventStorage, get_event_storage
from detectron2_factories import CLASSES, YAML, registered, tiny_bank, tiny_cfg

from terse_aug import ForegroundBank, Parcel, TerseConfig, TransformRanges
from terse_aug.cli import main as terse_aug_command
from terse_aug_detectron2 import (
    Detectron2Detector,
    TerseHook,
    TerseMapper,
    add_terse_config,
    build_from_detectron2,
    describe_config,
    terse_config,
)
from terse_aug_detectron2._batch import PARCEL, Needs, from_samples, to_samples

pytestmark = QUIET_DETECTRON2


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "data").mkdir()
    with registered(tmp_path / "data") as name:
        yield name


@pytest.fixture
def bank(tmp_path: Path) -> ForegroundBank:
    return tiny_bank(tmp_path)


class Watched(nn.Module):
    """Lets a test see what a model gets."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.batches: list[list[dict[str, Any]]] = []
        model.register_forward_pre_hook(lambda module, inputs: self.batches.append(inputs[0]))


# --- config ---------------------------------------------------------------------------------------------------------


def test_every_setting_has_a_key_which_is_off_by_default_and_explained() -> None:
    cfg = get_cfg()
    add_terse_config(cfg)
    assert cfg.TERSE.ENABLED is False
    assert terse_config(cfg) == TerseConfig()
    told = describe_config()
    for field in dataclasses.fields(TerseConfig):
        if field.name != "ranges":
            assert field.metadata["help"].replace("|", r"\|") in told
            assert f"`TERSE.{field.name.upper()}`" in told
    for field in dataclasses.fields(TransformRanges):
        assert f"`TERSE.RANGES.{field.name.upper()}`" in told
    assert set(cfg.TERSE) == {line.split("`")[1].split(".")[1] for line in told.splitlines()[2:]}
    page = (Path(__file__).parents[1] / "docs" / "detectron2.md").read_text()
    assert told in page


def test_a_config_file_is_read_and_wrong_keys_and_values_are_refused(tmp_path: Path) -> None:
    cfg = get_cfg()
    with pytest.raises(ValueError, match=r"no TERSE: call add_terse_config\(cfg\) before cfg\.merge_from_file"):
        terse_config(cfg)
    add_terse_config(cfg)
    text = "TERSE:\n  ENABLED: True\n  OBJECTS: [2, 5]\n  CRITIC_HELD: []\n  RANGES:\n    ROTATION: [-5.0, 5.0]\n"
    (tmp_path / "a.yaml").write_text(text)
    cfg.merge_from_file(str(tmp_path / "a.yaml"))
    assert terse_config(cfg) == TerseConfig(
        objects=(2, 5), critic_held=(), ranges=TransformRanges(rotation=(-5.0, 5.0))
    )
    with pytest.raises((KeyError, AssertionError), match="OBJEKTS"):
        cfg.merge_from_list(["TERSE.OBJEKTS", "(1, 2)"])
    cfg.TERSE.MOVE_EVERY = 0
    with pytest.raises(ValueError, match="move_every: expected at least 1, got 0"):
        terse_config(cfg)


def test_disabled_there_is_no_hook_and_the_mapper_is_the_one_that_was_there(dataset: str, tmp_path: Path) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path)
    assert TerseHook.from_config(cfg) is None
    mapper = DatasetMapper(cfg, is_train=True)
    assert TerseMapper.from_config(cfg, mapper) is mapper
    DefaultTrainer(cfg).register_hooks([TerseHook.from_config(cfg)])


def test_what_does_not_fit_the_data_set_is_refused(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)
    (tmp_path / "more").mkdir()
    for make in (TerseHook.from_config, TerseMapper.from_config):
        with registered(tmp_path / "more", "dogs_only", ("dog",)) as dogs:
            cfg.DATASETS.TRAIN = (dogs,)
            with pytest.raises(ValueError, match="the bank has categories that the detector lacks: cat"):
                make(cfg)
            cfg.TERSE.DROP_UNKNOWN_CLASSES = True
            assert make(cfg) is not None
            cfg.TERSE.DROP_UNKNOWN_CLASSES = False
            cfg.DATASETS.TRAIN = (dataset, dogs)
            with pytest.raises(ValueError, match="have different classes"):
                make(cfg)
        with registered(tmp_path / "more", "nameless", None) as nameless:
            cfg.DATASETS.TRAIN = (nameless,)
            with pytest.raises(ValueError, match=r"no class names, .*thing_classes"):
                make(cfg)
        cfg.DATASETS.TRAIN = (dataset,)
    for changes, message in (
        ({"VIS_PERIOD": 20}, "VIS_PERIOD above 0 draws the images"),
        ({"TERSE.POLICY": "critik"}, r"TERSE\.POLICY: expected one of .*critic.*, got 'critik'"),
        ({"TERSE.LOG_PERIOD": -1}, "log_period: expected a number of iterations"),
    ):
        other = cfg.clone()
        other.merge_from_list([part for pair in changes.items() for part in pair])
        with pytest.raises(ValueError, match=message):
            TerseHook.from_config(other)
    cfg.TERSE.BANK = ""
    with pytest.raises(ValueError, match=r"TERSE\.BANK is empty"):
        TerseHook.from_config(cfg)


def test_the_classes_of_a_coco_json_are_known_before_it_is_read(bank: ForegroundBank, tmp_path: Path) -> None:
    """Detectron2 learns their names when the data set is loaded, which is after the mapper is made."""
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]}
    (tmp_path / "empty.json").write_text(json.dumps(content))
    register_coco_instances("from_json", {}, str(tmp_path / "empty.json"), str(tmp_path))
    try:
        cfg = tiny_cfg("faster_fpn", "from_json", tmp_path, bank)
        hook = TerseHook.from_config(cfg)
        assert hook is not None
        assert hook.bank.categories == {0: "dog", 1: "cat"}
    finally:
        DatasetCatalog.remove("from_json")
        MetadataCatalog.remove("from_json")
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN: 'from_json' is not registered"):
        TerseHook.from_config(cfg)


@pytest.mark.parametrize("name", ["PanopticFPN", "SemanticSegmentor", "PanopticDeepLab"])
def test_panoptic_and_semantic_models_are_refused(
    dataset: str, bank: ForegroundBank, tmp_path: Path, name: str
) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)
    cfg.MODEL.META_ARCHITECTURE = name
    with pytest.raises(ValueError, match=rf"{name}: it learns from semantic maps"):
        TerseHook.from_config(cfg)
    model = type(name, (nn.Module,), {})()
    if name == "PanopticDeepLab":
        with pytest.raises(ValueError, match="PanopticDeepLab learns from semantic maps"):
            Detectron2Detector(model)


# --- batches --------------------------------------------------------------------------------------------------------


def item(count: int = 2, size: tuple[int, int] = (40, 50), **fields: Any) -> dict[str, Any]:
    corner = torch.arange(count)[:, None].float() * 5
    boxes = torch.cat([corner.expand(-1, 2), corner.expand(-1, 2) + 10], 1)
    values = {"gt_boxes": Boxes(boxes), "gt_classes": torch.arange(count) % 2} | fields
    image = torch.arange(3 * size[0] * size[1]).view(3, *size) % 256
    return {"image": image.to(torch.uint8), "height": 80, "width": 100, "instances": Instances(size, **values)}


def test_a_batch_comes_back_as_it_was() -> None:
    masks = torch.rand(2, 40, 50) > 0.5
    one, two = item(gt_masks=BitMasks(masks), gt_iscrowd=torch.tensor([0, 1])), item(0, (30, 60))
    images, targets = to_samples([one, two], torch.device("cpu"), Needs(masks=True, keypoints=3))
    assert [image.dtype for image in images] == [torch.float32] * 2
    assert torch.equal(images[0], one["image"].float())
    assert torch.equal(targets[0]["masks"], masks)
    assert targets[0]["iscrowd"].tolist() == [0, 1]
    assert targets[1]["masks"].shape == (0, 30, 60)
    assert targets[1]["keypoints"].shape == (0, 3, 3)
    back = from_samples([one, two], images, targets)
    assert (back[0]["height"], back[0]["width"]) == (80, 100)
    assert torch.equal(back[0]["instances"].gt_boxes.tensor, one["instances"].gt_boxes.tensor)
    assert torch.equal(back[0]["instances"].gt_classes, one["instances"].gt_classes)
    assert torch.equal(back[0]["instances"].gt_masks.tensor, masks)
    assert back[0]["instances"].gt_iscrowd.tolist() == [0, 1]
    assert len(back[1]["instances"]) == 0
    assert one["image"].dtype == torch.uint8


def test_polygons_become_bitmaps() -> None:
    polygons = PolygonMasks([[[5, 5, 15, 5, 15, 15, 5, 15]], [[0, 0, 8, 0, 8, 8, 0, 8], [20, 20, 30, 20, 30, 30]]])
    _, targets = to_samples([item(gt_masks=polygons)], torch.device("cpu"), Needs(masks=True))
    assert targets[0]["masks"].shape == (2, 40, 50)
    assert targets[0]["masks"].sum((1, 2)).tolist() == pytest.approx([100, 64 + 50], abs=12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sem_seg": torch.zeros(40, 50)}, r"image 0 of the batch has a semantic map \(sem_seg\)"),
        ({"proposals": Instances((40, 50))}, "image 0 of the batch has precomputed proposals"),
        ({"instances": None}, r"image 0 of the batch has no 'instances', only \['height', 'image', 'width'\]"),
        ({"gt_attributes": torch.zeros(2)}, r"image 0 .* have \['gt_attributes'\], .* cannot give to a pasted object"),
        ({"gt_boxes": RotatedBoxes(torch.ones(2, 5))}, r"expected upright boxes \(Boxes\), got RotatedBoxes"),
        ({"gt_masks": torch.zeros(2, 4)}, "expected gt_masks as BitMasks or PolygonMasks, got Tensor"),
    ],
)
def test_what_pasting_cannot_follow_is_refused(changes: dict[str, Any], message: str) -> None:
    fields = {name: value for name, value in changes.items() if name.startswith("gt_")}
    broken = item(**fields) | {name: value for name, value in changes.items() if name not in fields}
    broken = {name: value for name, value in broken.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        to_samples([broken], torch.device("cpu"), Needs())


# --- mapper ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_the_mapper_fetches_cut_outs_in_the_workers(
    dataset: str, bank: ForegroundBank, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank, CRITIC_CUTOUTS=2)
    cfg.DATALOADER.NUM_WORKERS = workers

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return build_detection_train_loader(cfg, mapper=TerseMapper.from_config(cfg))

    trainer = Trainer(cfg)
    hook = TerseHook.from_config(cfg)
    trainer.register_hooks([hook])
    read = ForegroundBank.__getitem__
    reads: list[int] = []
    monkeypatch.setattr(ForegroundBank, "__getitem__", lambda own, index: reads.append(index) or read(own, index))
    seen = Watched(trainer.model)
    trainer.train()
    assert hook is not None
    assert hook.terse.metrics()["objects_labelled"] > 4
    # In the process itself nothing is read: the workers are others, or the mapper, which does all of it.
    assert bool(reads) == (workers == 0)
    for batch in seen.batches:
        assert all(PARCEL not in one for one in batch)
        assert all(isinstance(one["instances"].gt_masks, BitMasks) for one in batch if "instances" in one)


def test_the_mapper_hands_on_what_the_other_gives(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank)
    assert TerseMapper.from_config(cfg, lambda record: None)({}) is None
    polygons = PolygonMasks([[[5, 5, 15, 5, 15, 15]], [[0, 0, 8, 0, 8, 8]]])
    mapped = TerseMapper.from_config(cfg, lambda record: item(gt_masks=polygons) | {"name": record["name"]})(
        {"name": "x"}
    )
    assert mapped is not None
    assert mapped["name"] == "x"
    assert isinstance(mapped["instances"].gt_masks, BitMasks)
    assert isinstance(mapped[PARCEL], Parcel)
    assert mapped["instances"].gt_masks.tensor.shape == (2, 40, 50)


# --- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["critic", "learned", "hard-random"])
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
    assert figures["moves"] == (0 if policy == "hard-random" else 2)
    assert figures["losses_not_finite"] == figures["dropped/graph"] == 0
    if policy == "critic":
        assert 0 <= figures["hardness"] <= 1
    trained = [one["instances"] for batch in seen.batches for one in batch if "instances" in one]
    assert all(len(instances) for instances in trained)
    assert all(instances.has("gt_keypoints") for instances in trained) or model != "keypoint_fpn"


@pytest.mark.parametrize("policy", ["critic", "hard-random"])
def test_what_the_detector_is_asked_is_not_logged(
    dataset: str, bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    class Kept(DefaultTrainer):
        def after_train(self) -> None:
            self.kept = self.storage
            super().after_train()

    trainer, hook = trainer_with_hook(tiny_cfg("faster_fpn", dataset, tmp_path, bank, POLICY=policy), Kept)
    trainer.train()
    assert hook.terse.metrics()["extra_forwards"] > 0
    for name in ("rpn/num_pos_anchors", "roi_head/num_fg_samples"):
        assert len(trainer.kept.history(name).values()) == 4  # type: ignore[attr-defined]


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

    trainer, hook = trainer_with_hook(
        tiny_cfg("faster_fpn", dataset, tmp_path, bank, POLICY="hard-random"), Accumulating
    )
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

    detector = Detectron2Detector(Fixed())
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1, 2, 0])}
    (scores,) = detector.object_scores([torch.zeros(3, 40, 50)], [target])
    assert scores.tolist() == pytest.approx([0.6, 0.9, 0.0, 0.0])
    assert (detector.first_label, detector.label_limit) == (0, 3)


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


@pytest.mark.parametrize("policy", ["critic", "learned"])
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
    assert hook.terse.metrics()["moves"] == 2
    assert hook.terse.pixels.bgr == (make is lazy_fcos)
    # As Detectron2's own script has it: resumed, and the hook registered after that.
    again = SimpleTrainer(model, loader, optimizer)
    checkpointer = DetectionCheckpointer(model, str(tmp_path), trainer=again)
    checkpointer.resume_or_load("", resume=True)
    late = TerseHook(bank.relabel(CLASSES), policy, seed=99, move_every=1, image_probability=1.0)
    again.register_hooks([hooks.PeriodicCheckpointer(checkpointer, 2), late])
    again.train(again.iter + 1, 3)
    assert late.terse.seed == 1
    assert late.terse.metrics()["iterations"] == 3


# --- trainers -------------------------------------------------------------------------------------------------------


def trainer_with_hook(cfg: CfgNode, kind: type[DefaultTrainer] = DefaultTrainer) -> tuple[DefaultTrainer, TerseHook]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what Detectron2's sampler and augmentations draw from
    trainer = kind(cfg)
    hook = TerseHook.from_config(cfg)
    assert hook is not None
    trainer.register_hooks([hook])
    return trainer, hook


def test_a_run_step_of_ones_own_hands_its_batch_over(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)

    class Own(DefaultTrainer):
        hook: TerseHook | None = None

        def run_step(self) -> None:
            if not hasattr(self, "own"):
                self.own = iter(self._trainer.data_loader)
            batch = next(self.own)
            losses = self.model(batch if self.hook is None else self.hook.paste(batch))
            self._trainer.optimizer.zero_grad()
            sum(losses.values()).backward()
            self._trainer.optimizer.step()

    trainer, _ = trainer_with_hook(cfg, Own)
    with pytest.raises(RuntimeError, match=r"saw no batch on its way to the model.*Call\s+hook\.paste\(batch\)"):
        trainer.train()
    trainer, hook = trainer_with_hook(cfg, Own)
    trainer.hook = hook  # type: ignore[attr-defined]
    trainer.train()
    assert hook.terse.metrics()["moves"] == 4


@pytest.mark.parametrize("policy", ["learned", "critic"])
def test_accumulated_batches_make_one_move_and_the_loss_scale_is_taken_out(
    dataset: str, bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    """A learned policy sees the same gradient however the loss is scaled, by hand or by a GradScaler."""
    states = []
    for scale, scaler in ((1.0, None), (0.25, None), (1.0, torch.amp.GradScaler("cpu", init_scale=64.0))):

        class Accumulating(DefaultTrainer):
            def run_step(self, scale: float = scale, scaler: Any = scaler) -> None:
                inner = self._trainer
                for _ in range(2):
                    torch.manual_seed(self.iter)
                    loss = sum(self.model(next(inner._data_loader_iter)).values()) * scale
                    (loss if scaler is None else scaler.scale(loss)).backward()
                inner.optimizer.zero_grad()

        cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, POLICY=policy, LOSS_SCALE=scale)
        cfg.TERSE.MAX_GRADIENT_NORM = 1e6
        cfg.SOLVER.MAX_ITER = 2
        trainer, hook = trainer_with_hook(cfg, Accumulating)
        if scaler is not None:
            trainer._trainer.grad_scaler = scaler
        trainer.train()
        assert (hook.terse.metrics()["moves"], hook.terse.metrics()["calls"]) == (2, 4)
        states.append([value.clone() for value in hook.terse.policy.parameters()])
    for other in states[1:]:
        for own, value in zip(states[0], other, strict=True):
            torch.testing.assert_close(own, value, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_amp_trainers_scale_is_taken_out(
    dataset: str, bank: ForegroundBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own step with a real scaler, on a CPU: there autocast for CUDA does nothing."""
    states = []
    for scale in (None, 2.0**20):
        cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, POLICY="learned", MAX_GRADIENT_NORM=1e6)
        cfg.SOLVER.MAX_ITER = 2
        trainer, hook = trainer_with_hook(cfg)
        if scale is not None:
            inner = trainer._trainer
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            trainer._trainer = AMPTrainer(inner.model, inner.data_loader, inner.optimizer, grad_scaler=scaler)
            with_cuda = vars(torch) | {"cuda": SimpleNamespace(is_available=lambda: True)}  # which it asserts
            monkeypatch.setattr("detectron2.engine.train_loop.torch", SimpleNamespace(**with_cuda))
        trainer.train()
        assert hook.terse.metrics()["moves"] == 2
        states.append([value.clone() for value in hook.terse.policy.parameters()])
    for plain, scaled in zip(*states, strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("when", ["before_step", "after_step"])
def test_a_data_loader_that_is_changed_on_the_way_is_wrapped_again(
    dataset: str, bank: ForegroundBank, tmp_path: Path, when: str
) -> None:
    """By a hook, which comes after ours, or by the trainer, before all hooks."""

    def change(trainer: Any) -> None:
        if trainer.iter == 2:
            trainer._trainer.reset_data_loader(lambda: trainer.build_train_loader(trainer.cfg))

    class Changing(DefaultTrainer):
        def before_step(self) -> None:
            change(self)
            super().before_step()

    for own in (True, False):
        trainer, hook = trainer_with_hook(
            tiny_cfg("faster_fpn", dataset, tmp_path, bank), Changing if own else DefaultTrainer
        )
        changing = hooks.HookBase()
        if not own:
            setattr(changing, when, lambda changing=changing: change(changing.trainer))
        trainer.register_hooks([changing])
        trainer.train()
        assert hook.terse.metrics()["composites"] == 8


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("in_workers", [True, False])
def test_both_forms_of_masks_are_trained_on(
    dataset: str, bank: ForegroundBank, tmp_path: Path, mask_format: str, in_workers: bool
) -> None:
    class Mapping(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            mapper = TerseMapper.from_config(cfg) if in_workers else None
            return build_detection_train_loader(cfg, mapper=mapper)

    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank)
    cfg.INPUT.MASK_FORMAT = mask_format
    trainer, _ = trainer_with_hook(cfg, Mapping)
    seen = Watched(trainer.model)
    trainer.train()
    for one in (one for batch in seen.batches for one in batch if "instances" in one):
        instances = one["instances"]
        assert len(instances) > 0
        assert torch.allclose(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor, atol=2.5)


def test_keypoints_have_to_be_the_data_sets_by_name(dataset: str, tmp_path: Path) -> None:
    cfg = tiny_cfg("keypoint_fpn", dataset, tmp_path, tiny_bank(tmp_path, keypoints=True))
    assert TerseHook.from_config(cfg) is not None
    MetadataCatalog.get(dataset).keypoint_names.reverse()
    with pytest.raises(ValueError, match=r"the bank's keypoints are \('nose', .*, the data set's \('right_eye', "):
        TerseHook.from_config(cfg)


@pytest.mark.parametrize("named", [("left_eye", "right_eye"), ("this", "that")])
def test_mirrored_keypoints_swap_as_the_data_set_says(
    dataset: str, tmp_path: Path, named: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that is mirrored and not turned has the first of a pair left of the second, as every object has."""
    names = ("nose", *named)
    monkeypatch.setattr("detectron2_factories.KEYPOINTS", names)
    metadata = MetadataCatalog.get(dataset)
    metadata.keypoint_names[:] = names
    metadata.keypoint_flip_map[:] = [named]
    bank = tiny_bank(tmp_path, keypoints=True)
    cfg = tiny_cfg("keypoint_fpn", dataset, tmp_path, bank, MIRROR_PROBABILITY=1.0)
    cfg.SOLVER.MAX_ITER = 1
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([TerseHook.from_config(cfg)])
    seen = Watched(trainer.model)
    trainer.train()
    points = torch.cat([one["instances"].gt_keypoints.tensor for batch in seen.batches for one in batch])
    assert len(points) > len(seen.batches[0])
    assert (points[:, 1, 0] < points[:, 2, 0]).all()


def test_lazy_settings_may_be_lists(bank: ForegroundBank) -> None:
    ranges = LazyCall(TransformRanges)(rotation=(-5.0, 5.0))
    call = LazyCall(TerseHook)(bank=str(bank.path), objects=(2, 3), critic_held=["scale"], ranges=ranges)
    hook = instantiate(call)
    config = LazyCall(TerseConfig)(objects=(2, 3), ranges=LazyCall(TransformRanges)(rotation=(-5.0, 5.0)))
    assert isinstance(hook, TerseHook)
    assert instantiate(config) == TerseConfig(objects=(2, 3), ranges=TransformRanges(rotation=(-5.0, 5.0)))
    with pytest.raises(ValueError, match="objects: expected whole numbers"):
        instantiate(LazyCall(TerseHook)(bank=str(bank.path), objects=(3, 2)))


def test_without_a_seed_a_fresh_one_is_drawn_and_numpys_state_is_left_alone(
    dataset: str, bank: ForegroundBank, tmp_path: Path
) -> None:
    seeds = set()
    for _ in range(2):
        cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)
        trainer, hook = trainer_with_hook(cfg)
        hook._seed = None
        trainer.start_iter = trainer.iter = 0
        before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
        hook.before_train()
        assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002
        seeds.add(hook.terse.seed)
    assert len(seeds) == 2


def simple_trainer(cfg: CfgNode, kind: type[SimpleTrainer] = SimpleTrainer) -> SimpleTrainer:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    model = DefaultTrainer.build_model(cfg)
    return kind(model, build_detection_train_loader(cfg), DefaultTrainer.build_optimizer(cfg, model))


def test_training_may_be_gone_on_with(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    trainer = simple_trainer(tiny_cfg("faster_fpn", dataset, tmp_path))
    hook = TerseHook(bank.relabel(CLASSES), move_every=1, image_probability=1.0, seed=0)
    trainer.register_hooks([hook])
    trainer.train(0, 3)
    kept = [value.clone() for value in hook.terse.policy.buffers()]
    trainer.train(3, 3)
    assert all(map(torch.equal, kept, hook.terse.policy.buffers()))
    trainer.train(3, 5)
    assert hook.terse.metrics()["moves"] == 5


def test_a_trainer_of_the_release_is_wrapped_too(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    """In v0.6 the iterator is a plain attribute, made at once."""

    class Older(SimpleTrainer):
        _data_loader_iter = None  # type: ignore[assignment]

        def __init__(self, model: nn.Module, loader: Any, optimizer: Any) -> None:
            super().__init__(model, loader, optimizer)
            del self._data_loader_iter_obj
            self._data_loader_iter = iter(loader)

    trainer = simple_trainer(tiny_cfg("faster_fpn", dataset, tmp_path), Older)
    hook = TerseHook(bank.relabel(CLASSES), move_every=1, image_probability=1.0, seed=0)
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    assert hook.terse.metrics()["moves"] == 2


def test_the_model_can_be_copied_and_pickled_meanwhile(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    class Copying(hooks.HookBase):
        def after_step(self) -> None:
            self.copy = copy.deepcopy(self.trainer.model)
            torch.save(self.trainer.model, tmp_path / "model.pt")

    trainer, hook = trainer_with_hook(tiny_cfg("faster_fpn", dataset, tmp_path, bank))
    trainer.register_hooks([copying := Copying()])
    trainer.train()
    assert hook.terse.metrics()["moves"] == 4
    batch = next(trainer._trainer._data_loader_iter)
    with EventStorage(0):
        copying.copy(batch)  # a deaf copy
        torch.load(tmp_path / "model.pt", weights_only=False)(batch)


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
    detector = Detectron2Detector(model)
    losses = [detector.image_losses(images, targets) for _ in range(2)]
    assert torch.equal(losses[0], losses[1])


def test_what_only_proposes_is_refused(dataset: str, tmp_path: Path) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    with pytest.raises(ValueError, match=r"ProposalNetwork .* boxes without classes"):
        Detectron2Detector(DefaultTrainer.build_model(cfg))


def test_after_training_the_trainer_is_as_it_was(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    trainer, _ = trainer_with_hook(tiny_cfg("faster_fpn", dataset, tmp_path, bank))
    order = list(trainer._hooks)
    trainer.train()
    assert trainer._hooks == order
    assert "reset_data_loader" not in vars(trainer._trainer)
    assert not trainer.model._forward_hooks
    batch = next(trainer._trainer._data_loader_iter)
    assert all(one["image"].dtype == torch.uint8 for one in batch)
    assert all("gt_masks" not in one["instances"].get_fields() for one in batch)


def test_two_hooks_are_refused(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    trainer, _ = trainer_with_hook(cfg := tiny_cfg("faster_fpn", dataset, tmp_path, bank))
    trainer.register_hooks([TerseHook.from_config(cfg)])
    with pytest.raises(RuntimeError, match="two TerseHooks are registered"):
        trainer.train()


@pytest.mark.parametrize("changes", [{"input_format": "GRAY"}, {"loss_scale": 0.0}])
def test_a_hook_refuses_values_outside_their_range(bank: ForegroundBank, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        TerseHook(bank, **changes)


def test_before_training_there_is_nothing_to_look_at(bank: ForegroundBank) -> None:
    with pytest.raises(RuntimeError, match="has not begun"):
        _ = TerseHook(bank).terse


# --- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("register_first", [True, False])
def test_the_state_is_found_whatever_was_first_registering_or_resuming(
    dataset: str, bank: ForegroundBank, tmp_path: Path, register_first: bool
) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    trainer, first = trainer_with_hook(cfg)
    trainer.train()
    cfg.SOLVER.MAX_ITER = 5
    resumed = DefaultTrainer(cfg)
    hook = TerseHook.from_config(cfg)
    assert hook is not None
    if register_first:
        resumed.register_hooks([hook])
    resumed.resume_or_load(resume=True)
    if not register_first:
        resumed.register_hooks([hook])
    assert resumed.start_iter == 4
    resumed.train()
    assert hook.terse.metrics()["iterations"] == 5
    assert first.terse.metrics()["iterations"] == 4


def test_the_models_weights_in_a_checkpoint_are_the_detectors_alone(
    dataset: str, bank: ForegroundBank, tmp_path: Path
) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)
    trainer, _ = trainer_with_hook(cfg)
    trainer.train()
    saved = torch.load(tmp_path / "model_final.pth", map_location="cpu")
    plain = tiny_cfg("faster_fpn", dataset, tmp_path)
    assert set(saved["model"]) == set(DefaultTrainer.build_model(plain).state_dict())
    assert set(saved["trainer"]["hooks"]["TerseHook"]) == {"seed", "terse"}
    # A training without terse-aug goes on from it.
    plain.SOLVER.MAX_ITER = 5
    without = DefaultTrainer(plain)
    without.resume_or_load(resume=True)
    without.train()


def test_a_state_of_another_form_says_what_to_do(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank)
    trainer_with_hook(cfg)[0].train()
    cfg.SOLVER.MAX_ITER, cfg.TERSE.POLICY = 5, "learned"
    other, _ = trainer_with_hook(cfg)
    other.resume_or_load(resume=True)
    with pytest.raises(ValueError, match="adversary has another form than this one: use the policy and settings"):
        other.train()


# --- logs -----------------------------------------------------------------------------------------------------------


def test_figures_and_pictures_are_written_with_the_iteration_that_they_are_of(
    dataset: str, bank: ForegroundBank, tmp_path: Path
) -> None:
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank, LOG_PERIOD=2, IMAGE_PERIOD=4)
    pictures: list[Any] = []

    class Looking(DefaultTrainer):
        def build_hooks(self) -> list[Any]:
            every = super().build_hooks()
            return [*every[:-1], hooks.PeriodicWriter(self.build_writers(), period=2)]

        def after_step(self) -> None:
            super().after_step()
            pictures.append(len(get_event_storage()._vis_data))

    trainer, hook = trainer_with_hook(cfg, Looking)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 3]
    assert [line["terse_aug/iterations"] for line in lines] == [2, 4]
    for name in ("hardness", "diversity", "skipped_moves", "share_of_time", "hardness_gain"):
        assert f"terse_aug/{name}" in lines[-1], name
    assert 0 < lines[-1]["terse_aug/share_of_time"] < 1
    assert not [name for name in lines[-1] if name.startswith("terse_aug/") and "loss" in name]
    events = tensorboard.EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Images("terse_aug/composites")] == [3]
    assert not any(pictures)
    assert hook.terse.metrics()["iterations"] == 4


def test_a_picture_that_nobody_takes_is_not_piled_up(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    class Silent(DefaultTrainer):
        def build_writers(self) -> list[Any]:
            return []

        def after_train(self) -> None:
            self.pending = [name for name, *_ in self.storage._vis_data]
            super().after_train()

    trainer, _ = trainer_with_hook(tiny_cfg("faster_fpn", dataset, tmp_path, bank, IMAGE_PERIOD=1), Silent)
    trainer.train()
    assert trainer.pending == ["terse_aug/composites"]  # type: ignore[attr-defined]


# --- several processes, mixed precision ---------------------------------------------------------------------------


def _train_on_a_rank(folder: str, bank: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    with registered(Path(folder)) as dataset:
        cfg = tiny_cfg("faster_fpn", dataset, Path(folder))
        cfg.SOLVER.IMS_PER_BATCH = 4
        # DefaultTrainer wraps a model for GPUs only.
        model = create_ddp_model(DefaultTrainer.build_model(cfg), device_ids=None, broadcast_buffers=False)
        loader = build_detection_train_loader(cfg)
        trainer = SimpleTrainer(model, loader, DefaultTrainer.build_optimizer(cfg, model))
        own_bank = ForegroundBank.open(bank).relabel(CLASSES)
        hook = TerseHook(own_bank, "learned", move_every=1, image_probability=1.0)
        trainer.register_hooks([hook])
        seen = Watched(model)
        trainer.train(0, 3)
        result = {
            "seed": hook.terse.seed,
            "state": [value.detach().clone() for value in hook.terse.policy.parameters()],
            "moves": hook.terse.metrics()["moves"],
            "image": seen.batches[0][0]["image"].detach(),
            "model": list(model.module.state_dict().values()),
        }
        torch.save(result, Path(folder) / f"rank{rank}.pt")


def test_two_processes_have_one_adversary_and_different_composites(tmp_path: Path, bank: ForegroundBank) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    launch(_train_on_a_rank, 2, dist_url="auto", args=(str(folder), str(bank.path)))
    one, two = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    assert one["moves"] == two["moves"] == 3
    assert one["seed"] == two["seed"]
    assert all(map(torch.equal, one["state"], two["state"]))
    own = zip(one["model"], two["model"], strict=True)
    assert all(torch.allclose(a, b) for a, b in own if a.is_floating_point() and a.ndim > 1)
    assert one["image"].shape != two["image"].shape or not torch.equal(one["image"], two["image"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: AMPTrainer asserts one")
@pytest.mark.parametrize("policy", ["learned", "critic"])
def test_amp(dataset: str, bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank, POLICY=policy)
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED = "cuda", True
    trainer, hook = trainer_with_hook(cfg)
    assert isinstance(trainer._trainer, AMPTrainer)
    trainer.train()
    assert hook.terse.metrics()["moves"] > 0


# --- banks ----------------------------------------------------------------------------------------------------------


def test_a_bank_is_built_from_what_register_coco_instances_made(tmp_path: Path) -> None:
    """Its names and keypoints are known once the JSON was read; file names come as the JSON has them."""
    (tmp_path / "images").mkdir()
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), image)
    own = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0}
    own["segmentation"] = [[10, 10, 40, 10, 40, 40, 10, 40]]
    images = [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}]
    content = {"images": images, "annotations": [own], "categories": [{"id": 7, "name": "cat"}]}
    (tmp_path / "own.json").write_text(json.dumps(content))
    register_coco_instances("own_train", {}, str(tmp_path / "own.json"), str(tmp_path / "images"))
    try:
        build_from_detectron2("own_train", tmp_path / "own.bank", include=["a.png"])
    finally:
        DatasetCatalog.remove("own_train")
        MetadataCatalog.remove("own_train")
    bank = ForegroundBank.open(tmp_path / "own.bank")
    assert [(foreground.label, foreground.source) for foreground in bank] == [(0, "a.png#0")]
    assert bank.info()["built"]["annotations"] == "Detectron2: own_train"


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"segmentation": "bitmap"}, 1),
        ({"keypoints": np.ones((3, 3))}, 1),
        ({"bbox": None}, 1),
        ({"segmentation": []}, 0),
        ({"bbox": [1.0, 2, 3, 4, 5], "bbox_mode": BoxMode.XYWHA_ABS}, "not in Detectron2's form"),
        ({"category_id": None}, "not in Detectron2's form"),
    ],
)
def test_annotations_of_every_form_are_read_or_named(tmp_path: Path, changes: dict[str, Any], kept: Any) -> None:
    with registered(tmp_path, "forms") as name:
        record = dict(DatasetCatalog.get(name)[0])
    mask = np.zeros((record["height"], record["width"]), bool)
    mask[20:50, 30:60] = True
    changes = {key: mask if isinstance(value, str) else value for key, value in changes.items()}
    annotation = {key: value for key, value in (record["annotations"][0] | changes).items() if value is not None}
    if "bbox" in annotation and "segmentation" in changes:
        annotation["bbox"] = [30.0, 20, 60, 50]
    DatasetCatalog.register("formed", lambda: [record | {"annotations": [annotation]}])
    MetadataCatalog.get("formed").set(thing_classes=["dog"], keypoint_names=["a", "b", "c"])
    try:
        if isinstance(kept, str):
            with pytest.raises(ValueError, match=rf"data set formed, .*0\.png: an annotation is {kept}"):
                build_from_detectron2("formed", tmp_path / "own.bank")
        elif kept:
            assert sum(build_from_detectron2("formed", tmp_path / "own.bank").kept.values()) == kept
        else:
            with pytest.raises(ValueError, match="no mask"):
                build_from_detectron2("formed", tmp_path / "own.bank")
    finally:
        DatasetCatalog.remove("formed")
        MetadataCatalog.remove("formed")


def test_a_bank_is_built_from_a_registered_data_set(dataset: str, tmp_path: Path, monkeypatch: Any) -> None:
    report = build_from_detectron2(dataset, tmp_path / "own.bank")
    bank = ForegroundBank.open(tmp_path / "own.bank")
    assert bank.categories == dict(enumerate(CLASSES))
    assert len(bank) == sum(report.kept.values()) == 6
    assert bank.keypoint_names == ("nose", "left_eye", "right_eye")
    with pytest.raises(ValueError, match=r"no such data sets: nothing; .* Known: .*terse_tiny"):
        build_from_detectron2(["nothing"], tmp_path / "other.bank")
    flags = ["bank", "build", "detectron2", "--datasets", dataset, "--out", str(tmp_path / "cli.bank")]
    assert terse_aug_command(flags) == 0
    assert ForegroundBank.open(tmp_path / "cli.bank").fingerprint == bank.fingerprint
    module = tmp_path / "my_sets.py"
    module.write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "DatasetCatalog.register('mine', lambda: DatasetCatalog.get('terse_tiny'))\n"
        "MetadataCatalog.get('mine').set(thing_classes=['dog', 'cat'])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    mine = [*flags[:4], "mine", "--import", "my_sets", "--category", "cat", "--out", str(tmp_path / "mine.bank")]
    assert terse_aug_command(mine) == 0
    assert set(ForegroundBank.open(tmp_path / "mine.bank").categories.values()) == {"cat"}
    assert terse_aug_command([*mine[:6], "no_such_module", "--out", str(tmp_path / "x.bank")]) == 2
