"""Detectron2's batches there and back, its mapper and its data sets as banks."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from frameworks import QUIET_DETECTRON2, need_detectron2

need_detectron2()
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import DefaultTrainer
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks, RotatedBoxes
from detectron2_factories import (  # noqa: F401 - fixtures
    CLASSES,
    Watched,
    bank,
    coco_registered,
    dataset,
    item,
    registered,
    set_terse,
    tiny_cfg,
    trainer_with_hook,
)

from terse_aug import ForegroundBank, SampledForegrounds
from terse_aug.cli import main as terse_aug_command
from terse_aug.integration import SAMPLED_KEY
from terse_aug_detectron2 import (
    TerseMapper,
    build_from_detectron2,
)
from terse_aug_detectron2.batch import Needs, from_samples, to_samples

pytestmark = QUIET_DETECTRON2


def test_a_batch_is_converted_there_and_back() -> None:
    masks = torch.rand(2, 40, 50) > 0.5
    one, two = item(gt_masks=BitMasks(masks), gt_iscrowd=torch.tensor([0, 1])), item(0, (30, 60))
    images, targets = to_samples([one, two], torch.device("cpu"), Needs(masks=True, keypoints=3))
    assert [image.dtype for image in images] == [torch.uint8] * 2
    assert torch.equal(images[0], one["image"])
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


def test_polygons_are_rasterized() -> None:
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
def test_annotations_that_pasting_cannot_correct_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = {name: value for name, value in changes.items() if name.startswith("gt_")}
    broken = item(**fields) | {name: value for name, value in changes.items() if name not in fields}
    broken = {name: value for name, value in broken.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        to_samples([broken], torch.device("cpu"), Needs())


@pytest.mark.parametrize(("mask_format", "workers"), [("polygon", 0), ("polygon", 2), ("bitmask", 0)])
def test_the_mapper_samples_foregrounds_in_the_workers(
    dataset: str,
    bank: ForegroundBank,
    tmp_path: Path,
    mask_format: str,
    workers: int,
    reads: Counter[int],
) -> None:
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank, policy={"type": "critic", "foreground_candidates": 2})
    cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.MASK_FORMAT = workers, mask_format

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg: CfgNode) -> Any:
            return build_detection_train_loader(cfg, mapper=TerseMapper.from_config(cfg))

    trainer, hook = trainer_with_hook(cfg, Trainer)
    reads.clear()
    seen = Watched(trainer.model)
    trainer.train()
    assert hook.terse.metrics()["objects_labelled"] > 4
    # With workers this process reads nothing; without, the mapper reads everything here.
    assert bool(reads) == (workers == 0)
    for one in (one for batch in seen.batches for one in batch):
        assert SAMPLED_KEY not in one
        instances = one["instances"]
        assert len(instances) > 0
        assert isinstance(instances.gt_masks, BitMasks)
        assert torch.allclose(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor, atol=2.5)


def test_the_mapper_keeps_what_the_wrapped_one_returns(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank)
    assert TerseMapper.from_config(cfg, lambda record: None)({}) is None
    polygons = PolygonMasks([[[5, 5, 15, 5, 15, 15]], [[0, 0, 8, 0, 8, 8]]])
    mapper = TerseMapper.from_config(cfg, lambda record: item(gt_masks=polygons) | record)
    mapped = mapper({"name": "x"})
    assert mapped is not None
    assert mapped["name"] == "x"
    assert isinstance(mapped["instances"].gt_masks, BitMasks)
    assert isinstance(mapped[SAMPLED_KEY], SampledForegrounds)
    assert mapped["instances"].gt_masks.tensor.shape == (2, 40, 50)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"segmentation": "bitmap"}, 1),
        ({"keypoints": np.ones((3, 3))}, 1),
        ({"bbox": None}, 1),
        ({"segmentation": []}, 0),
        ({"bbox": [1.0, 2, 3, 4, 5], "bbox_mode": BoxMode.XYWHA_ABS}, "not in Detectron2's format"),
        ({"category_id": None}, "not in Detectron2's format"),
    ],
)
def test_annotations_of_every_format_are_read_or_named(tmp_path: Path, changes: dict[str, Any], kept: Any) -> None:
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


def test_data_sets_that_a_module_registers_are_built_by_name(dataset: str, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ValueError, match=r"no such data sets: nothing; .* Known: .*terse_tiny"):
        build_from_detectron2(["nothing"], tmp_path / "other.bank")
    (tmp_path / "my_sets.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "DatasetCatalog.register('mine', lambda: DatasetCatalog.get('terse_tiny'))\n"
        "MetadataCatalog.get('mine').set(thing_classes=['dog', 'cat'], keypoint_names=['nose', 'left', 'right'])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    flags = ["bank", "build", "detectron2", "--datasets", "mine", "--category", "cat", "--import"]
    assert terse_aug_command([*flags, "my_sets", "--out", "mine.bank"]) == 0
    bank = ForegroundBank.open(tmp_path / "mine.bank")
    assert set(bank.categories.values()) == {"cat"}
    assert bank.keypoint_names == ("nose", "left", "right")
    assert terse_aug_command([*flags, "no_such_module", "--out", "x.bank"]) == 2


def test_a_bank_is_built_from_a_coco_json_with_masks_or_boxes_alone(tmp_path: Path) -> None:
    """As ``register_coco_instances`` reads it: class names are known after it was read."""
    image = np.random.default_rng(0).integers(0, 60, (90, 120, 3), dtype=np.uint8)
    image[20:60, 30:80] = (40, 60, 220)  # BGR
    cv2.imwrite(str(tmp_path / "a.png"), image)
    own = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [30, 20, 50, 40], "area": 2000, "iscrowd": 0}
    images = [{"id": 1, "file_name": "a.png", "height": 90, "width": 120}]
    content = {"images": images, "annotations": [own], "categories": [{"id": 7, "name": "cat"}]}
    with coco_registered("boxes_alone", tmp_path, content):
        flags = ["bank", "build", "detectron2", "--datasets", "boxes_alone", "--out", str(tmp_path / "cut.bank")]
        assert terse_aug_command([*flags, "--boxes", "grabcut", "--min-quality", "0.6"]) == 0
    cut = ForegroundBank.open(tmp_path / "cut.bank")
    assert np.abs(np.subtract(cut[0].size, (50, 40))).max() <= 2
    assert (cut[0].rgba[10:-10, 10:-10] == (220, 60, 40, 255)).all()
    assert (cut.info()["built"]["boxes"], cut.info()["built"]["min_quality"]) == ("grabcut", 0.6)
    content["annotations"] = [own | {"segmentation": [[30, 20, 80, 20, 80, 60, 30, 60]]}]
    with coco_registered("with_masks", tmp_path, content):
        build_from_detectron2("with_masks", tmp_path / "own.bank", image_list=["a.png"])
    bank = ForegroundBank.open(tmp_path / "own.bank")
    assert [(foreground.label, foreground.source) for foreground in bank] == [(0, "a.png#0")]
    assert bank.info()["built"]["annotations"] == "Detectron2: with_masks"
