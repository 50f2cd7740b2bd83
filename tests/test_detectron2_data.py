"""Detectron2's adapter: its config, its mapper, batches there and back, banks."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hosts import QUIET_DETECTRON2, need_detectron2
from torch import nn

need_detectron2()
from detectron2.config import CfgNode, LazyCall, get_cfg, instantiate
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks, RotatedBoxes
from detectron2_factories import CLASSES, Watched, bank, dataset, item, registered, tiny_bank, tiny_cfg  # noqa: F401 - fixtures

from terse_aug import ForegroundBank, SampledForegrounds, TerseConfig, TransformRanges
from terse_aug.bank import BoxMasks
from terse_aug.cli import main as terse_aug_command
from terse_aug_detectron2 import (
    Detectron2Adapter,
    TerseHook,
    TerseMapper,
    add_terse_config,
    build_from_detectron2,
    describe_config,
    terse_config,
)
from terse_aug_detectron2.batch import PARCEL, Needs, from_samples, to_samples

pytestmark = QUIET_DETECTRON2


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
            Detectron2Adapter(model)


def test_keypoints_have_to_be_the_data_sets_by_name(dataset: str, tmp_path: Path) -> None:
    cfg = tiny_cfg("keypoint_fpn", dataset, tmp_path, tiny_bank(tmp_path, keypoints=True))
    assert TerseHook.from_config(cfg) is not None
    MetadataCatalog.get(dataset).keypoint_names.reverse()
    with pytest.raises(ValueError, match=r"the bank's keypoints are \('nose', .*, the data set's \('right_eye', "):
        TerseHook.from_config(cfg)


def test_lazy_settings_may_be_lists(bank: ForegroundBank) -> None:
    ranges = LazyCall(TransformRanges)(rotation=(-5.0, 5.0))
    call = LazyCall(TerseHook)(bank=str(bank.path), objects=(2, 3), critic_held=["scale"], ranges=ranges)
    hook = instantiate(call)
    config = LazyCall(TerseConfig)(objects=(2, 3), ranges=LazyCall(TransformRanges)(rotation=(-5.0, 5.0)))
    assert isinstance(hook, TerseHook)
    assert instantiate(config) == TerseConfig(objects=(2, 3), ranges=TransformRanges(rotation=(-5.0, 5.0)))
    with pytest.raises(ValueError, match="objects: expected whole numbers"):
        instantiate(LazyCall(TerseHook)(bank=str(bank.path), objects=(3, 2)))


# --- batches --------------------------------------------------------------------------------------------------------


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
    assert isinstance(mapped[PARCEL], SampledForegrounds)
    assert mapped["instances"].gt_masks.tensor.shape == (2, 40, 50)


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
        build_from_detectron2("own_train", tmp_path / "own.bank", image_list=["a.png"])
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


def test_a_bank_is_built_from_boxes_only_where_a_way_is_given(tmp_path: Path) -> None:
    """As ``register_coco_instances`` reads a JSON of a detection data set; the command takes the same."""
    image = np.random.default_rng(0).integers(0, 60, (90, 120, 3), dtype=np.uint8)
    image[20:60, 30:80] = (40, 60, 220)  # BGR
    cv2.imwrite(str(tmp_path / "a.png"), image)
    own = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [30, 20, 50, 40], "area": 2000, "iscrowd": 0}
    images = [{"id": 1, "file_name": "a.png", "height": 90, "width": 120}]
    content = {"images": images, "annotations": [own], "categories": [{"id": 7, "name": "cat"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    register_coco_instances("boxes_only", {}, str(tmp_path / "boxes.json"), str(tmp_path))

    def left_half(image: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
        mask = np.zeros(image.shape[:2], bool)
        mask[20:60, 30:55] = True
        return mask

    try:
        with pytest.raises(ValueError, match="a box cannot be cut out"):
            build_from_detectron2("boxes_only", tmp_path / "none.bank", rejected_sheet=tmp_path / "drops.png")
        report = build_from_detectron2("boxes_only", tmp_path / "cut.bank", boxes=BoxMasks("grabcut", 0.6))
        own_way = build_from_detectron2("boxes_only", tmp_path / "half.bank", boxes=left_half)
        flags = ["bank", "build", "detectron2", "--datasets", "boxes_only", "--out", str(tmp_path / "cli.bank")]
        assert terse_aug_command([*flags, "--boxes", "grabcut", "--min-quality", "0.6"]) == 0
    finally:
        DatasetCatalog.remove("boxes_only")
        MetadataCatalog.remove("boxes_only")
    assert (tmp_path / "drops.png").stat().st_size > 1000
    assert (report.mask_sources, own_way.mask_sources) == ({"grabcut": 1}, {"function left_half": 1})
    cut, half, cli = (ForegroundBank.open(tmp_path / f"{name}.bank") for name in ("cut", "half", "cli"))
    assert np.abs(np.subtract(cut[0].size, (50, 40))).max() <= 2
    assert (cut[0].rgba[10:-10, 10:-10] == (220, 60, 40, 255)).all()
    assert half[0].size == (25, 40)
    assert cli.fingerprint == cut.fingerprint
    assert (cut.info()["built"]["boxes"], cut.info()["built"]["min_quality"]) == ("grabcut", 0.6)
