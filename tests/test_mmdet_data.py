"""MMDetection's transform, batches there and back, backgrounds and distractors, banks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import bank_of
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
from mmdet.registry import HOOKS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet_factories import (  # noqa: F401 - fixtures
    CLASSES,
    bank,
    data,
    made,
    pipeline,
    runner_config,
    settings,
    tiny_mask_rcnn,
    write_data,
)
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData

from terse_aug import ForegroundBank, SampledForegrounds
from terse_aug.integration import SAMPLED_KEY
from terse_aug_mmdet import TerseHook, TersePaste, build_from_mmdet
from terse_aug_mmdet.bank import class_names
from terse_aug_mmdet.batch import PathWithForegrounds, put_back, sampled_foregrounds_of, to_samples

pytestmark = QUIET_MMDET


def loaded() -> dict[str, Any]:
    return {"img": np.zeros((40, 50, 3), np.uint8), "img_path": "a/b.png", "img_id": 3, "img_shape": (40, 50)}


@pytest.mark.filterwarnings("ignore:TersePaste samples foregrounds:terse_aug.TerseWarning")  # no hook here
def test_the_transform_attaches_foregrounds_that_pass_the_packing(bank: ForegroundBank) -> None:
    paste = TRANSFORMS.build({"type": "TersePaste", **settings(bank, paste={"objects": (2, 2)})})

    def packed(**packing: Any) -> list[SampledForegrounds] | None:
        results = TRANSFORMS.build({"type": "PackDetInputs", **packing})(paste(loaded()))
        return sampled_foregrounds_of({"inputs": [results["inputs"]], "data_samples": [results["data_samples"]]})

    assert paste(loaded())["img_path"] == "a/b.png"
    sampled = packed()
    assert sampled is not None
    assert len(sampled[0].objects) == 2
    assert packed(meta_keys=("img_id", SAMPLED_KEY)) is not None
    assert packed(meta_keys=("img_id",)) is None
    off = TRANSFORMS.build({"type": "TersePaste", "bank": "/nowhere", "enabled": False})(loaded())
    assert type(off["img_path"]) is str
    assert "TersePaste(bank=" in repr(paste)


@pytest.mark.filterwarnings("ignore:TersePaste samples foregrounds:terse_aug.TerseWarning")  # no hook here
def test_without_a_seed_the_transform_uses_that_of_torch(bank: ForegroundBank) -> None:
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        paste = TersePaste(str(bank.path), paste={"objects": (5, 5), "paste_probability": 1.0})
        drawn.append(paste(loaded())[SAMPLED_KEY].objects)
    assert drawn[0] == drawn[2] != drawn[1]


def test_a_wrong_place_and_wrong_settings_are_refused(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    paste = TersePaste(str(bank.path))
    with pytest.raises(ValueError, match="TersePaste has to be after LoadImageFromFile"):
        paste({"img_path": "a.png"})
    with pytest.raises(ValueError, match="TersePaste has to be before PackDetInputs"):
        paste(TRANSFORMS.build({"type": "PackDetInputs"})(loaded()))
    for own, message in (
        ({"paste": {"objekts": 1}}, r"unknown settings \['objekts'\] of PasteConfig"),
        ({"policy": "critik"}, "policy: expected one of .*, got 'critik'"),
        ({"sampler": "often"}, "sampler: expected one of uniform, rarity, hardness, balanced"),
        ({"backgrounds": {"folder": "x"}}, "backgrounds: .*folder"),
    ):
        for registry, kind in ((HOOKS, "TerseHook"), (TRANSFORMS, "TersePaste")):
            for off in ({}, {"enabled": False, "bank": "nowhere.bank"}):
                with pytest.raises(ValueError, match=message):
                    registry.build({"type": kind, "bank": str(bank.path), **own, **off})
    for enabled in (True, False):
        with pytest.raises(ValueError, match="drop_unknown_classes: expected classes="):
            TersePaste(str(bank.path), drop_unknown_classes=True, enabled=enabled)
        for name in ("hardness", "balanced"):
            with pytest.raises(ValueError, match="in MMDetection without TersePaste"):
                TersePaste(str(bank.path), sampler=name, enabled=enabled)
    for kind in (TerseHook, TersePaste):
        with pytest.raises((TypeError, ValueError), match="objekts"):
            kind(str(bank.path), objekts=1)
    with pytest.raises(ValueError, match="input_format: expected BGR or RGB"):
        TerseHook(str(bank.path), input_format="GRAY")
    with pytest.raises(RuntimeError, match="has not begun"):
        _ = TerseHook(str(bank.path)).terse
    runner, hook = made(data, tmp_path, 1, settings(bank, "best-of-n"))
    runner._distributed = True
    with pytest.raises(ValueError, match=r"'best-of-n' needs the loss of single images.* over all ranks"):
        hook.before_train(runner)


@pytest.mark.parametrize("workers", [0, 2])
def test_foregrounds_are_read_in_the_workers(
    data: Path, bank: ForegroundBank, tmp_path: Path, workers: int, reads: Counter[int]
) -> None:
    policy = {"type": "Critic", "foreground_candidates": 2, "update_interval": 1}
    terse = settings(bank, policy, paste={"ranges": {"rotation": [-5.0, 5.0]}, "objects": [1, 2]})
    steps = pipeline({"type": "TersePaste", **terse})
    runner, hook = made(data, tmp_path, 2, terse, pipeline=steps, workers=workers)
    reads.clear()
    runner.train()
    runner.train_loop.dataloader_iterator = None  # ends the workers; in a garbage collection they take ten seconds
    assert hook.terse.metrics()["objects_labelled"] > 1
    assert hook.terse.paste.ranges.rotation == (-5.0, 5.0)
    assert hook.terse.paste.objects == (1, 2)
    assert bool(reads) == (workers == 0)


def test_new_style_configs_hold_classes_in_place_of_names(bank: ForegroundBank, tmp_path: Path) -> None:
    path = tmp_path / "new_style.py"
    path.write_text(
        "from terse_aug_mmdet import TerseHook, TersePaste\n"
        f"terse = dict(bank={str(bank.path)!r})\n"
        "custom_hooks = [dict(type=TerseHook, **terse)]\n"
        "step = dict(type=TersePaste, **terse)\n"
    )
    cfg = Config.fromfile(path, lazy_import=True)
    assert isinstance(HOOKS.build(cfg.custom_hooks[0]), TerseHook)
    assert isinstance(TRANSFORMS.build(cfg.step), TersePaste)


def test_classes_have_to_be_those_of_the_data_set(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    assert class_names({"classes": ["a", "b"]}) == ("a", "b")
    assert class_names([{"classes": ("a",), "palette": [1]}, {"classes": ["a"]}]) == ("a",)
    for wrong in ({}, [], [{"classes": ("a",)}, {"classes": ("b",)}]):
        with pytest.raises(ValueError, match="expected a data set with class names"):
            class_names(wrong)
    with pytest.raises(ValueError, match=r"classes: expected the data set's, \('dog', 'cat'\), got \('cat', 'dog'\)"):
        made(data, tmp_path, 1, settings(bank, classes=["cat", "dog"]))[0].train()


def test_unknown_classes_are_dropped_by_both(data: Path, tmp_path: Path) -> None:
    """With the same dictionary for both, the workers sample from the hook's bank."""
    more = ForegroundBank.open(bank_of(tmp_path, "cat", "dog", "zebra"))
    terse = settings(more, drop_unknown_classes=True, classes=list(CLASSES))
    runner, hook = made(data, tmp_path, 2, terse, pipeline=pipeline({"type": "TersePaste", **terse}))
    runner.train()
    assert hook.terse.metrics()["objects_labelled"] > 0
    assert len(hook.terse.bank) == 6


def batch(boxes: Any = None, **fields: Any) -> dict[str, Any]:
    corners = torch.tensor([[5.0, 5, 15, 15], [20, 10, 30, 25]])
    own = {"bboxes": HorizontalBoxes(corners) if boxes is None else boxes, "labels": torch.tensor([0, 1])} | fields
    sample = DetDataSample(metainfo={"img_path": "a.png", "img_shape": (40, 50)})
    sample.gt_instances = InstanceData(**own)
    return {"inputs": [torch.zeros(3, 40, 50, dtype=torch.uint8)], "data_samples": [sample]}


def test_a_batch_comes_back_in_its_own_dictionary() -> None:
    masks = BitmapMasks(np.random.default_rng(0).integers(0, 2, (2, 40, 50)).astype(np.uint8), 40, 50)
    own = batch(masks=masks)
    own["data_samples"][0].set_metainfo({"img_path": PathWithForegrounds("a.png")})
    images, targets = to_samples(own, torch.device("cpu"))
    assert images[0].dtype == torch.uint8
    assert torch.equal(targets[0]["masks"], torch.from_numpy(masks.masks).bool())
    before = own["data_samples"][0]
    put_back(own, [images[0] + 1], targets)
    after = own["data_samples"][0]
    assert after is not before
    assert float(own["inputs"][0].min()) == 1
    assert torch.equal(after.gt_instances.bboxes.tensor, before.gt_instances.bboxes.tensor)
    assert np.array_equal(after.gt_instances.masks.masks, masks.masks)
    assert type(after.img_path) is str
    stacked = batch() | {"inputs": torch.zeros(1, 3, 40, 50)}
    put_back(stacked, *to_samples(stacked, torch.device("cpu")))
    assert isinstance(stacked["inputs"], torch.Tensor)


def test_polygons_are_rasterized_and_plain_boxes_stay_plain() -> None:
    square = [np.array([5, 5, 15, 5, 15, 15, 5, 15.0])]
    own = batch(torch.tensor([[5.0, 5, 15, 15], [5, 5, 15, 15]]), masks=PolygonMasks([square, square], 40, 50))
    images, targets = to_samples(own, torch.device("cpu"))
    assert targets[0]["masks"].sum((1, 2)).tolist() == pytest.approx([100, 100], abs=12)
    put_back(own, images, targets)
    instances = own["data_samples"][0].gt_instances
    assert isinstance(instances.bboxes, torch.Tensor)
    instances.bboxes *= 2  # as BatchSyncRandomResize does
    assert torch.equal(targets[0]["boxes"], torch.tensor([[5.0, 5, 15, 15], [5, 5, 15, 15]]))
    assert isinstance(instances.masks, BitmapMasks)


def test_annotations_that_pasting_cannot_correct_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image 0 of the batch: its instances have \['texts'\]"):
        to_samples(batch(texts=torch.zeros(2)), torch.device("cpu"))
    panoptic = batch()
    panoptic["data_samples"][0].gt_sem_seg = PixelData(sem_seg=torch.zeros(1, 40, 50))
    with pytest.raises(ValueError, match=r"image 0 of the batch has a semantic map \(gt_sem_seg\)"):
        to_samples(panoptic, torch.device("cpu"))
    proposed = batch()
    proposed["data_samples"][0].proposals = InstanceData(bboxes=torch.zeros(1, 4))
    with pytest.raises(ValueError, match="image 0 of the batch has precomputed proposals"):
        to_samples(proposed, torch.device("cpu"))
    bare = batch()
    del bare["data_samples"][0].gt_instances
    with pytest.raises(ValueError, match="image 0 of the batch has no boxes"):
        to_samples(bare, torch.device("cpu"))
    with pytest.raises(ValueError, match="expected a batch with lists of inputs and data_samples"):
        to_samples({"inputs": [], "data_samples": {}}, torch.device("cpu"))


def test_ignored_regions_go_with_a_replaced_background() -> None:
    samples = []
    for _ in range(2):
        boxes = HorizontalBoxes(torch.tensor([[0.0, 0.0, 5.0, 5.0]]))
        masks = BitmapMasks(np.ones((1, 20, 30), np.uint8), 20, 30)
        parts = InstanceData(bboxes=boxes, labels=torch.tensor([0]), masks=masks)
        samples.append(DetDataSample(metainfo={"img_path": "a"}, gt_instances=parts, ignored_instances=parts.clone()))
    batch: dict[str, Any] = {"inputs": [torch.zeros(3, 20, 30)] * 2, "data_samples": samples}
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": torch.zeros(0, 20, 30)}
    put_back(batch, batch["inputs"], [target, target], {1: 0})
    after = [sample.ignored_instances for sample in batch["data_samples"]]
    assert [len(own) for own in after] == [1, 0]
    assert len(after[1].bboxes) == len(after[1].labels) == len(after[1].masks) == 0
    assert len(samples[1].ignored_instances) == 1


def test_a_bank_is_built_from_wrapped_data_sets(data: Path, tmp_path: Path) -> None:
    cfg = runner_config(tiny_mask_rcnn(), data, tmp_path, 1, [], experiment_name="bank")
    inner = cfg.train_dataloader.dataset.to_dict()
    wrapped = {"type": "RepeatDataset", "times": 3, "dataset": inner}
    both = {"type": "ConcatDataset", "datasets": [inner, wrapped]}
    for number, (dataset, count) in enumerate(((wrapped, 6), (both, 12))):
        path = tmp_path / f"{number}.bank"
        build_from_mmdet({"train_dataloader": {"dataset": dataset}, "default_scope": None}, path)
        assert len(ForegroundBank.open(path)) == count
    with pytest.raises(ValueError, match=r"no train_dataloader\.dataset"):
        build_from_mmdet({"model": {}}, tmp_path / "none.bank")
