"""Detectron2: mappers without the hook, own RoI heads, and batches that are no batches of images."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import QUIET_DETECTRON2, need_detectron2

need_detectron2()
from detectron2.config import CfgNode, get_cfg
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.modeling.roi_heads import Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, RotatedBoxes
from detectron2_factories import bank, dataset, item, tiny_cfg, trainer_with_hook  # noqa: F401 - fixtures

from terse_aug import ForegroundBank, Terse, TerseWarning
from terse_aug_detectron2 import Detectron2Adapter, TerseHook, TerseMapper, add_terse_config
from terse_aug_detectron2.batch import Needs, sampled_foregrounds_of, to_samples
from terse_aug_detectron2.workers import records_of

pytestmark = QUIET_DETECTRON2
CPU = torch.device("cpu")


def with_mapper(cfg: CfgNode, **mapped: Any) -> type[DefaultTrainer]:
    """A trainer whose mapper has settings of its own."""

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            other = cfg.clone()
            other.TERSE.PASTE.OBJECTS = mapped.get("objects", other.TERSE.PASTE.OBJECTS)
            return build_detection_train_loader(cfg, mapper=TerseMapper.from_config(other))

    return Trainer


def test_a_mapper_without_a_hook_warns_once(bank: ForegroundBank) -> None:
    gc.collect()  # hooks of other trainings
    mapper = TerseMapper(lambda record: item(), bank)
    with pytest.warns(TerseWarning, match="TerseMapper samples foregrounds, but no TerseHook was made so far") as given:
        mapper({})
    mapper({})
    assert len(given) == 1
    hook = TerseHook(bank)
    TerseMapper(lambda record: item(), bank)({})
    assert not hook.started


@pytest.mark.parametrize("policy", ["random", "adversarial"])
def test_a_mapper_with_other_settings_than_the_hooks_is_refused(
    policy: str, dataset: str, bank: ForegroundBank, tmp_path: Path
) -> None:
    cfg = tiny_cfg("retinanet", dataset, tmp_path, bank, policy=policy)
    trainer, _ = trainer_with_hook(cfg, with_mapper(cfg, objects=(5, 5)))
    with pytest.raises(ValueError, match=r"paste_probability, objects, decoys: expected .* got \(1.0, \(5, 5\)"):
        trainer.train()


class ContextHeads(StandardROIHeads):
    """Pools the surroundings of each proposal first."""

    def _forward_box(self, features: Any, proposals: Any) -> Any:
        self.box_pooler(
            [features[name] for name in self.box_in_features],
            [Boxes(own.proposal_boxes.tensor + 9) for own in proposals],
        )
        return super()._forward_box(features, proposals)


class ContextRes5Heads(Res5ROIHeads):
    """Likewise."""

    def _shared_roi_transform(self, features: Any, boxes: Any) -> Any:
        self.pooler(features, [Boxes(own.tensor + 9) for own in boxes])
        return super()._shared_roi_transform(features, boxes)


class OtherMasks(StandardROIHeads):
    """Proposals are pooled as ever."""

    def _forward_mask(self, features: Any, instances: Any) -> Any:
        return super()._forward_mask(features, instances)


@pytest.mark.parametrize(
    ("model", "heads", "recorded"),
    [
        ("faster_fpn", StandardROIHeads, True),
        ("faster_fpn", ContextHeads, False),
        ("faster_fpn", OtherMasks, True),
        ("faster_c4", Res5ROIHeads, True),
        ("faster_c4", ContextRes5Heads, False),
    ],
)
def test_own_roi_heads_are_recorded_only_if_they_pool_their_proposals_alone(
    model: str, heads: type, recorded: bool, dataset: str, tmp_path: Path
) -> None:
    detector: Any = DefaultTrainer.build_model(tiny_cfg(model, dataset, tmp_path))
    assert isinstance(detector.roi_heads, heads.__mro__[1] if heads not in (StandardROIHeads, Res5ROIHeads) else heads)
    detector.roi_heads.__class__ = heads
    assert (Detectron2Adapter(detector).record_forward() is not None) == recorded


def test_batches_of_several_views_are_refused(bank: ForegroundBank) -> None:
    views = ([item()], [item()])
    for read in (records_of, sampled_foregrounds_of, lambda batch: to_samples(batch, CPU, Needs())):
        with pytest.raises(ValueError, match=r"batch of dictionaries, .* got tuple of list: .* semi-supervised"):
            read(views)
    with pytest.raises(ValueError, match="semi-supervised"):
        TerseMapper(lambda record: views, bank)({})  # type: ignore[arg-type, return-value]  # wrong on purpose


def test_rotated_boxes_and_gray_images_are_refused(bank: ForegroundBank) -> None:
    rotated = item(1, gt_boxes=RotatedBoxes(torch.tensor([[20.0, 20, 10, 10, 30]])))
    with pytest.raises(ValueError, match=r"\(Boxes\), got RotatedBoxes: rotated boxes are not supported"):
        to_samples([rotated], CPU, Needs())
    gray = item(1)
    gray["image"] = gray["image"][:1]
    with pytest.raises(ValueError, match=r"got \[1, 40, 50\]: one channel; a gray image becomes RGB by"):
        Terse(bank)(*to_samples([gray], CPU, Needs()))


def test_the_config_that_a_training_leaves_is_read_with_the_node(
    dataset: str, bank: ForegroundBank, tmp_path: Path
) -> None:
    """As docs/detectron2.md says, with the error that Detectron2 gives otherwise."""
    (tmp_path / "config.yaml").write_text(tiny_cfg("retinanet", dataset, tmp_path, bank).dump())
    with pytest.raises(KeyError, match="Non-existent config key: TERSE"):
        get_cfg().merge_from_file(str(tmp_path / "config.yaml"))
    cfg = get_cfg()
    add_terse_config(cfg)
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    assert str(bank.path) == cfg.TERSE.BANK
