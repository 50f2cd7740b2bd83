"""MMDetection's adapter: its transform, its hook in every kind of training, checkpoints, logs, banks."""

from __future__ import annotations

import itertools
import json
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_foreground
from hosts import QUIET_MMDET, need_mmdet
from processes import METHOD, fresh

need_mmdet()
from mmdet.registry import HOOKS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet_factories import (
    CLASSES,
    by_epochs,
    parameters_of,
    pipeline,
    runner_config,
    shipped_config,
    tiny_bank,
    tiny_mask_rcnn,
    tiny_yolox,
    write_data,
)
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData

from terse_aug import ForegroundBank, SampledForegrounds
from terse_aug.bank import BankWriter
from terse_aug.cli import main as terse_aug_command
from terse_aug.training.metrics import COUNTERS
from terse_aug_mmdet import MMDetAdapter, TerseHook, TersePaste, build_from_mmdet
from terse_aug_mmdet.bank import class_names
from terse_aug_mmdet.batch import PathWithCutouts, put_back, sampled_foregrounds_of, to_samples
from terse_aug_mmdet.checkpoints import _method_of_a_buffer

pytestmark = QUIET_MMDET
_NUMBERS = itertools.count()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return write_data(tmp_path / "data")


@pytest.fixture
def bank(tmp_path: Path) -> ForegroundBank:
    return tiny_bank(tmp_path)


def settings(bank: ForegroundBank, **more: Any) -> dict[str, Any]:
    return {"bank": str(bank.path), "image_probability": 1.0, "move_every": 1} | more


def made(data: Path, out: Path, iterations: int, terse: dict[str, Any], **changes: Any) -> tuple[Runner, TerseHook]:
    """A runner and its hook."""
    hooks = [{"type": "TerseHook", **terse}, *changes.pop("hooks", [])]
    runner = bare(data, out, iterations, hooks=hooks, **changes)
    return runner, next(hook for hook in runner.hooks if isinstance(hook, TerseHook))


def bare(data: Path, out: Path, iterations: int, **changes: Any) -> Runner:
    """A runner, without terse-aug unless the hooks have it."""
    changes.setdefault("pipeline", pipeline())
    hooks, model = changes.pop("hooks", []), changes.pop("model", None) or tiny_mask_rcnn()
    name = f"tests{next(_NUMBERS)}"
    cfg = runner_config(model, data, out, iterations, hooks, experiment_name=name, **changes)
    torch.manual_seed(0)
    return Runner.from_cfg(cfg)


# --- robustness training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_it_trains_on_perturbed_composites(data: Path, bank: ForegroundBank, tmp_path: Path, robust: str) -> None:
    runner, hook = made(data, tmp_path, 3, settings(bank, robust=robust, robust_steps=2))
    start = torch.cat([value.flatten() for value in runner.model.state_dict().values()])
    runner.train()
    figures, robustness = hook.terse.metrics(), hook.terse.robustness
    assert robustness is not None
    assert figures["robustness/images"] == 6
    assert figures["robustness/passes"] == (12 if robust == "pgd" else 0)
    assert figures["robustness/not_finite"] == figures["robustness/no_gradient"] == 0
    if robust == "universal":
        first = type(robustness)(hook.terse.config, hook.terse.pixel_format, hook.terse.seed, None)
        assert not torch.equal(first.pattern, robustness.pattern)
    assert figures["hardness"] > 0
    assert not torch.equal(start, torch.cat([value.flatten() for value in runner.model.state_dict().values()]))


# --- transform ------------------------------------------------------------------------------------------------------


def loaded() -> dict[str, Any]:
    return {"img": np.zeros((40, 50, 3), np.uint8), "img_path": "a/b.png", "img_id": 3, "img_shape": (40, 50)}


def test_the_transform_attaches_cut_outs_that_pass_the_packing(bank: ForegroundBank) -> None:
    paste = TRANSFORMS.build({"type": "TersePaste", **settings(bank, objects=(2, 2))})
    results = paste(loaded())
    assert results["img_path"] == "a/b.png"
    packed = TRANSFORMS.build({"type": "PackDetInputs"})(results)
    sampled = sampled_foregrounds_of({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})
    assert sampled is not None
    assert isinstance(sampled[0], SampledForegrounds)
    assert len(sampled[0].objects) == 2
    named = TRANSFORMS.build({"type": "PackDetInputs", "meta_keys": ("img_id", "terse_parcel")})(paste(loaded()))
    assert sampled_foregrounds_of({"inputs": [named["inputs"]], "data_samples": [named["data_samples"]]}) is not None
    without = TRANSFORMS.build({"type": "PackDetInputs", "meta_keys": ("img_id",)})(paste(loaded()))
    assert sampled_foregrounds_of({"inputs": [without["inputs"]], "data_samples": [without["data_samples"]]}) is None
    off = TRANSFORMS.build({"type": "TersePaste", "bank": "/nowhere", "enabled": False})(loaded())
    assert type(off["img_path"]) is str
    assert "TersePaste(bank=" in repr(paste)


def test_the_transform_says_where_it_belongs(bank: ForegroundBank) -> None:
    paste = TersePaste(str(bank.path))
    with pytest.raises(ValueError, match="TersePaste has to stand after LoadImageFromFile"):
        paste({"img_path": "a.png"})
    packed = TRANSFORMS.build({"type": "PackDetInputs"})(loaded())
    with pytest.raises(ValueError, match="TersePaste has to stand before PackDetInputs"):
        paste(packed)
    with pytest.raises(ValueError, match=r"unknown settings \['objekts'\]"):
        TersePaste(str(bank.path), objekts=(1, 2))
    with pytest.raises(ValueError, match="drop_unknown_classes: expected classes="):
        TersePaste(str(bank.path), drop_unknown_classes=True)


@pytest.mark.parametrize("workers", [0, 2])
def test_cut_outs_are_read_in_the_workers(
    data: Path, bank: ForegroundBank, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    terse = settings(bank, critic_cutouts=2, ranges={"rotation": [-5.0, 5.0]}, objects=[1, 2])
    steps = pipeline({"type": "TersePaste", **terse})
    runner, hook = made(data, tmp_path, 3, terse, pipeline=steps, workers=workers)
    reads: Counter[int] = Counter()
    read = ForegroundBank.__getitem__

    def counted(own: ForegroundBank, index: Any) -> Any:
        reads[int(index)] += 1
        return read(own, index)

    monkeypatch.setattr(ForegroundBank, "__getitem__", counted)
    runner.train()
    runner.train_loop.dataloader_iterator = None  # ends the workers; in a garbage collection they take ten seconds
    assert hook.terse.metrics()["objects_labelled"] > 2
    assert hook.terse.config.ranges.rotation == (-5.0, 5.0)
    assert hook.terse.config.objects == (1, 2)
    assert bool(reads) == (workers == 0)


# --- batches --------------------------------------------------------------------------------------------------------


def batch(boxes: Any = None, **fields: Any) -> dict[str, Any]:
    corners = torch.tensor([[5.0, 5, 15, 15], [20, 10, 30, 25]])
    own = {"bboxes": HorizontalBoxes(corners) if boxes is None else boxes, "labels": torch.tensor([0, 1])} | fields
    sample = DetDataSample(metainfo={"img_path": "a.png", "img_shape": (40, 50)})
    sample.gt_instances = InstanceData(**own)
    return {"inputs": [torch.zeros(3, 40, 50, dtype=torch.uint8)], "data_samples": [sample]}


def test_a_batch_comes_back_in_its_own_dictionary() -> None:
    masks = BitmapMasks(np.random.default_rng(0).integers(0, 2, (2, 40, 50)).astype(np.uint8), 40, 50)
    own = batch(masks=masks)
    own["data_samples"][0].set_metainfo({"img_path": PathWithCutouts("a.png")})
    images, targets = to_samples(own, torch.device("cpu"))
    assert images[0].dtype == torch.float32
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


def test_polygons_become_bitmaps_and_plain_boxes_stay_plain() -> None:
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


def test_what_pasting_cannot_follow_is_refused() -> None:
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
        to_samples({"inputs": {"sup": []}, "data_samples": {"sup": []}}, torch.device("cpu"))


# --- hook -----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown settings \['objekts'\]"):
        HOOKS.build({"type": "TerseHook", **settings(bank, objekts=1)})
    with pytest.raises(ValueError, match="input_format: expected BGR or RGB"):
        HOOKS.build({"type": "TerseHook", **settings(bank, input_format="GRAY")})
    with pytest.raises(ValueError, match="objects: expected whole numbers"):
        HOOKS.build({"type": "TerseHook", **settings(bank, objects=[5, 1])})
    for kind in ("TerseHook", "TersePaste"):
        with pytest.raises(ValueError, match=r"policy: expected one of .*, got 'critik'"):
            (HOOKS if kind == "TerseHook" else TRANSFORMS).build({"type": kind, **settings(bank, policy="critik")})
    with pytest.raises(RuntimeError, match="has not begun"):
        _ = TerseHook(str(bank.path)).terse
    runner, hook = made(data, tmp_path, 1, settings(bank, policy="best-of-n"))
    runner._distributed = True
    with pytest.raises(ValueError, match=r"'hard-random' asks for the loss of single images.* over all ranks"):
        hook.before_train(runner)
    runner, _ = made(data, tmp_path, 1, settings(bank))
    runner.train_dataloader.dataset._metainfo["classes"] = ("dog",)
    with pytest.raises(ValueError, match="the bank has categories that the detector lacks: cat"):
        runner.train()


def test_unknown_classes_are_dropped_in_both(data: Path, tmp_path: Path) -> None:
    """The same dictionary for both, and the workers' cut-outs are those of the hook's bank."""
    with BankWriter(tmp_path / "more.bank", {1: "cat", 2: "dog", 3: "zebra"}) as out:
        for seed in range(9):
            out.add(make_foreground(seed, label=1 + seed % 3))
    bank = ForegroundBank.open(tmp_path / "more.bank")
    terse = settings(bank, drop_unknown_classes=True, classes=list(CLASSES))
    runner, hook = made(data, tmp_path, 2, terse, pipeline=pipeline({"type": "TersePaste", **terse}))
    runner.train()
    assert hook.terse.metrics()["objects_labelled"] > 0
    assert len(hook.terse.bank) == 6
    other, _ = made(data, tmp_path, 2, terse | {"classes": ["cat", "dog"]})
    with pytest.raises(ValueError, match=r"classes: expected the data set's, \('dog', 'cat'\), got \('cat', 'dog'\)"):
        other.train()


def test_accumulated_batches_make_one_move_and_the_loss_scale_is_taken_out(
    data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    """The last step of five batches, two by two, has one alone; MMEngine scales it by its own count."""
    terse = settings(bank, policy="adversarial")
    runner, hook = made(data, tmp_path, 5, terse, optim_wrapper={"accumulative_counts": 2})
    scales = []
    step = hook.__class__.after_train_iter

    def after(self: TerseHook, *args: Any, **kwargs: Any) -> None:
        scales.append(self._scale)
        step(self, *args, **kwargs)

    hook.after_train_iter = after.__get__(hook)  # type: ignore[method-assign]  # a spy
    runner.train()
    figures = hook.terse.metrics()
    assert (figures["calls"], figures["updates"], figures["iterations"]) == (5, 3, 3)
    assert scales == [0.5, 0.5, 0.5, 0.5, 1.0]


def test_figures_reach_the_log_and_composites_the_visualizer(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    runner, hook = made(data, tmp_path, 4, settings(bank, interval=2, image_interval=4))
    runner.train()
    written = next(tmp_path.rglob("scalars.json")).read_text().splitlines()
    lines = [json.loads(line) for line in written]
    told = [line for line in lines if "terse_aug/hardness" in line]
    assert told
    for name in ("hardness", "hardness_gain", "diversity", "skipped_updates", "share_of_time"):
        assert f"terse_aug/{name}" in told[-1], name
    assert 0 < told[-1]["terse_aug/share_of_time"] < 1
    assert [path.name for path in tmp_path.rglob("vis_image/**/*.png")] == ["terse_aug_composites_4.png"]
    assert hook.terse.metrics()["iterations"] == 4


def test_beside_an_ema_and_a_pipeline_switch_it_goes_on(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    """The second pipeline has no TersePaste: the hook reads the cut-outs itself."""
    terse = settings(bank)
    beside = [{"type": "EMAHook"}, {"type": "PipelineSwitchHook", "switch_epoch": 1, "switch_pipeline": pipeline()}]
    steps = pipeline({"type": "TersePaste", **terse})
    runner, hook = made(data, tmp_path, 0, terse, hooks=beside, pipeline=steps, **by_epochs(2))
    runner.train()
    assert hook.terse.metrics()["updates"] == 6


def watch_epochs(runner: Runner, hook: TerseHook) -> list[dict[str, torch.Tensor]]:
    """The adversary's state at the begin of every epoch."""
    begun: list[dict[str, torch.Tensor]] = []

    class Watch(Hook):
        def before_train_epoch(self, runner: Any) -> None:
            begun.append({name: value.clone() for name, value in hook.terse.state_dict().items()})

    runner.register_hook(Watch())
    return begun


def test_with_epochs_a_resumed_run_begins_with_the_state_that_was_saved(
    data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    terse = settings(bank)
    changes = {"model": tiny_yolox(), "pipeline": pipeline({"type": "TersePaste", **terse}, masks=False)}
    saving = [{"type": "CheckpointHook", "interval": 1, "by_epoch": True}]
    runner, hook = made(data, tmp_path, 0, terse, hooks=saving, **changes, **by_epochs(2))
    whole = watch_epochs(runner, hook)
    runner.train()
    again, other = made(
        data, tmp_path, 0, terse, **changes, **by_epochs(2), load_from=str(tmp_path / "epoch_1.pth"), resume=True
    )
    rest = watch_epochs(again, other)
    again.train()
    assert (len(whole), len(rest)) == (2, 1)
    assert set(whole[1]) == set(rest[0])
    for name, value in whole[1].items():
        torch.testing.assert_close(rest[0][name], value, rtol=0, atol=0, equal_nan=True, msg=name)
    for own in (hook, other):
        figures = own.terse.metrics()
        assert (figures["iterations"], figures["updates"], figures["skipped_updates"]) == (6, 6, 0)


def test_with_epochs_off_means_off(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    terse = settings(bank, enabled=False)
    beside = {
        "hooks": [{"type": "TerseHook", **terse}],
        "pipeline": pipeline({"type": "TersePaste", **terse}, masks=False),
    }
    weights = []
    for off in ({"pipeline": pipeline(masks=False)}, beside):
        runner = bare(data, tmp_path, 0, model=tiny_yolox(), **off, **by_epochs(2))
        runner.train()
        assert runner.iter == 6
        weights.append(parameters_of(runner.model))
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize("policy", ["critic", "adversarial"])
def test_it_goes_on_through_yoloxs_mode_switch(
    data: Path, bank: ForegroundBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """Its pipeline and its hooks as its config has them, at a tenth of the size; the second epoch of three switches,
    and has its workers started anew."""
    own = shipped_config("yolox/yolox_s_8xb8-300e_coco.py")
    own.custom_hooks[0].num_last_epochs = 1
    for step in own.train_pipeline:
        step.update({key: (64, 64) for key in ("img_scale", "scale") if key in step})
        step.update({"border": (-32, -32)} if "border" in step else {})
    terse = settings(bank, policy=policy)
    runner, hook = made(
        data,
        tmp_path,
        0,
        terse,
        model=tiny_yolox(),
        hooks=own.custom_hooks,
        pipeline=pipeline(masks=False)[:2],
        mixed=[*own.train_pipeline[:-1], {"type": "TersePaste", **terse}, own.train_pipeline[-1]],
        workers=2,
        persistent_workers=True,
        **by_epochs(3),
    )
    mixed: list[bool] = []
    drawn: list[list[int]] = []
    pasted: list[float] = []
    resized: set[tuple[int, int]] = set()

    class Watch(Hook):
        priority = "VERY_HIGH"

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            # Mosaic's images have the size already that single ones are resized to.
            mixed.append({sample.scale_factor for sample in data_batch["data_samples"]} == {(1.0, 1.0)})
            drawn.append([index for sample in sampled_foregrounds_of(data_batch) or () for index in sample.objects])

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            pasted.append(hook.terse.metrics()["objects_pasted"])
            resized.add(runner.model.data_preprocessor.batch_augments[0]._input_size)

    read, read_here = ForegroundBank.__getitem__, []

    def noted(own: ForegroundBank, index: Any) -> Any:
        read_here.append(index)
        return read(own, index)

    runner.register_hook(Watch())
    monkeypatch.setattr(ForegroundBank, "__getitem__", noted)
    runner.train()
    runner.train_dataloader._iterator = None  # ends the workers
    assert not read_here
    assert mixed == [True] * 3 + [False] * 6
    assert runner.model.bbox_head.use_l1 is True
    assert all(drawn)
    assert drawn[:3] != drawn[3:6] != drawn[6:]
    assert all(before < after for before, after in itertools.pairwise([0, *pasted]))
    assert len(resized) > 1
    figures = hook.terse.metrics()
    assert (figures["updates"], figures["skipped_updates"], figures["non_finite_losses"]) == (9, 0, 0)


# --- mixed precision ------------------------------------------------------------------------------------------------


@pytest.fixture
def amp_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """``AmpOptimWrapper`` with torch's scaler for the CPU, and without its assertion that there is a GPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))


def mixed_precision(data: Path, out: Path, terse: dict[str, Any], **wrapper: Any) -> tuple[Runner, TerseHook]:
    """Three iterations of a YOLOX with ``AmpOptimWrapper``."""
    optim_wrapper = {"type": "AmpOptimWrapper", **wrapper}
    changes = {"model": tiny_yolox(), "pipeline": pipeline(masks=False), "optim_wrapper": optim_wrapper}
    return made(data, out, 3, terse, **changes)


@pytest.mark.usefixtures("amp_on_cpu")
def test_a_scalers_scale_is_taken_out(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    """It doubles after every step; the second step has one batch in place of two."""
    told, weights = [], []
    for scale in ({"enabled": False}, {"init_scale": 2.0**14, "growth_interval": 1}):
        runner, hook = mixed_precision(
            data, tmp_path, settings(bank, policy="adversarial"), loss_scale=scale, accumulative_counts=2
        )
        runner.train()
        figures = hook.terse.metrics()
        assert (figures["updates"], figures["skipped_updates"], figures["non_finite_losses"]) == (2, 0, 0)
        told.append((figures["loss"], figures["gradient_norm"]))
        weights.append([value.detach() for value in hook.terse.policy.parameters()])
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**16
    assert told[0] == pytest.approx(told[1], rel=1e-3)
    torch.testing.assert_close(*weights)


@pytest.mark.usefixtures("amp_on_cpu")
def test_an_overflow_that_the_scaler_skips_skips_the_move(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    overflowing = {"init_scale": 2.0**127, "backoff_factor": 2.0**-110}
    runner, hook = mixed_precision(data, tmp_path, settings(bank, policy="adversarial"), loss_scale=overflowing)
    entered: list[list[torch.Tensor]] = []

    class Watch(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            parameters = itertools.chain(runner.model.parameters(), hook.terse.policy.parameters())
            entered.append([value.detach().clone() for value in parameters])

    runner.register_hook(Watch())
    with pytest.warns(UserWarning, match="gradient is not finite"):
        runner.train()
    figures = hook.terse.metrics()
    assert (figures["updates"], figures["skipped_updates"], figures["non_finite_losses"]) == (2, 1, 0)
    assert all(map(torch.equal, entered[0], entered[1]))
    assert not all(map(torch.equal, entered[1], entered[2]))
    assert all(bool(value.isfinite().all()) for value in entered[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: AmpOptimWrapper asserts one")
@pytest.mark.parametrize("policy", ["adversarial", "critic"])
def test_amp_on_cuda(data: Path, bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    runner, hook = mixed_precision(data, tmp_path, settings(bank, policy=policy), loss_scale={"init_scale": 256.0})
    runner.train()
    figures = hook.terse.metrics()
    assert next(runner.model.parameters()).is_cuda
    assert figures["updates"] > 0
    assert figures["updates"] + figures["skipped_updates"] == 3
    assert figures["non_finite_losses"] == 0


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_the_state_goes_where_the_optimizers_goes(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    runner, _ = made(data, tmp_path, 2, settings(bank))
    runner.train()
    runner.save_checkpoint(str(tmp_path), "whole.pth", by_epoch=False)
    runner.save_checkpoint(str(tmp_path), "best.pth", save_optimizer=False, by_epoch=False)
    whole, best = (torch.load(tmp_path / name, weights_only=False) for name in ("whole.pth", "best.pth"))
    assert set(whole["terse_aug"]) == {"seed", "terse"}
    assert "terse_aug" not in best
    assert set(whole["state_dict"]) == set(runner.model.state_dict())
    # Loaded as weights to start from, it does not go on with the adversary.
    again, hook = made(data, tmp_path, 1, settings(bank), load_from=str(tmp_path / "whole.pth"))
    again.train()
    assert hook.terse.metrics()["iterations"] == 1
    other, _ = made(
        data, tmp_path, 4, settings(bank, policy="adversarial"), load_from=str(tmp_path / "whole.pth"), resume=True
    )
    with pytest.raises(ValueError, match="adversary has another form than this one"):
        other.train()


def test_a_checkpoint_has_the_move_of_its_own_iteration(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    saving = [{"type": "CheckpointHook", "interval": 2, "by_epoch": False}]
    made(data, tmp_path, 3, settings(bank), hooks=saving)[0].train()
    saved = torch.load(tmp_path / "iter_2.pth", weights_only=False)["terse_aug"]["terse"]
    counts = dict(zip(COUNTERS, saved["ledger.counts"].tolist(), strict=True))
    assert (counts["iterations"], counts["updates"]) == (2, 2)


def test_nothing_but_a_logs_statistics_is_let_in(tmp_path: Path) -> None:
    from mmengine.logging import HistoryBuffer

    assert _method_of_a_buffer(HistoryBuffer, "mean") is HistoryBuffer.mean
    wrong = ((HistoryBuffer, "__reduce__"), (HistoryBuffer, "register_statistics"), (Path, "cwd"), (warnings, "warn"))
    for owner, name in wrong:
        with pytest.raises(ValueError, match="no statistic of MMEngine's log"):
            _method_of_a_buffer(owner, name)
    evil = tmp_path / "evil.pt"

    class Evil:
        def __reduce__(self) -> Any:
            return getattr, (HistoryBuffer, "register_statistics")

    torch.save({"a": Evil()}, evil)
    with pytest.raises(Exception, match="no statistic"):
        torch.load(evil, weights_only=True)


# --- several processes ----------------------------------------------------------------------------------------------


def _train_on_a_rank(rank: int, port: int, folder: str, data: str, bank: str) -> None:
    import os

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)  # MMEngine's own asks for a GPU
    terse = {"bank": bank, "policy": "adversarial", "image_probability": 1.0, "move_every": 1}
    runner, hook = made(
        Path(data),
        Path(folder) / "out",
        3,
        terse,
        launcher="pytorch",
        randomness={"seed": 0, "diff_rank_seed": True},
        model_wrapper_cfg={
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,  # as MMEngine has it by default
            "find_unused_parameters": True,
        },
    )
    runner.train()
    state = [value.detach().clone() for value in hook.terse.policy.parameters()]
    result = {"state": state, "updates": hook.terse.metrics()["updates"], "seed": hook.terse.seed}
    result["model"] = [value.detach().clone() for value in runner.model.module.parameters()]
    torch.save(result, Path(folder) / f"rank{rank}.pt")


def test_two_processes_have_one_adversary(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "out").mkdir()
    fresh()
    ranks = (port, str(tmp_path), str(data), str(bank.path))
    torch.multiprocessing.start_processes(_train_on_a_rank, ranks, nprocs=2, start_method=METHOD)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert one["updates"] == two["updates"] == 3
    assert one["seed"] == two["seed"]
    assert all(map(torch.equal, one["state"], two["state"]))
    assert all(torch.allclose(a, b) for a, b in zip(one["model"], two["model"], strict=True) if a.ndim > 1)


# --- what the model is asked, banks ---------------------------------------------------------------------------------


def test_the_class_names_of_several_data_sets_have_to_be_the_same() -> None:
    assert class_names({"classes": ["a", "b"]}) == ("a", "b")
    assert class_names([{"classes": ("a",), "palette": [1]}, {"classes": ["a"]}]) == ("a",)
    for wrong in ({}, [], [{"classes": ("a",)}, {"classes": ("b",)}]):
        with pytest.raises(ValueError, match="expected a data set with class names"):
            class_names(wrong)


def test_a_run_that_was_resumed_by_hand_goes_on(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    runner, _ = made(data, tmp_path, 2, settings(bank))
    runner.train()
    runner.save_checkpoint(str(tmp_path), "two.pth", by_epoch=False)
    again, hook = made(data, tmp_path, 4, settings(bank))
    again.optim_wrapper = again.build_optim_wrapper(again.optim_wrapper)
    again._train_loop = again.build_train_loop(again._train_loop)
    again.resume(str(tmp_path / "two.pth"))
    assert again.iter == 3  # as MMEngine counts the one that would come next
    again.train()
    assert hook.terse.metrics()["iterations"] == 3


def test_without_a_seed_the_transform_draws_by_torchs(bank: ForegroundBank) -> None:
    drawn = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        paste = TersePaste(str(bank.path), objects=(5, 5), image_probability=1.0)
        drawn.append(paste(loaded())["terse_parcel"].objects)
    assert drawn[0] == drawn[2] != drawn[1]


def test_asking_for_losses_leaves_what_modules_note_and_batch_augmentations_alone() -> None:
    class Noting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.history: list[float] = []
            self.data_preprocessor = Preprocessor()

        def forward(self, mode: str, **data: Any) -> dict[str, Any]:
            self.history.append(1.0)
            self.seen = 3
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

    model = Noting()
    target = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([0])}
    assert MMDetAdapter(model, 3).image_losses([torch.zeros(3, 20, 20)], [target]).tolist() == [1.0]
    assert model.history == []
    assert not hasattr(model, "seen")
    assert len(model.data_preprocessor.batch_augments) == 1


def test_a_score_is_that_of_a_detection_of_the_same_class_in_the_same_place() -> None:
    class Fixed(torch.nn.Module):
        def data_preprocessor(self, batch: Any, training: bool) -> Any:
            return batch

        def predict(self, inputs: Any, samples: Any, rescale: bool) -> Any:
            boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [1, 1, 10, 10], [30, 30, 40, 40]])
            for sample in samples:
                scores, labels = torch.tensor([0.9, 0.4, 0.6, 0.8]), torch.tensor([1, 0, 0, 0])
                sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
            return samples

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
    target = {"boxes": boxes, "labels": torch.tensor([0, 1, 2, 0])}
    (scores,) = MMDetAdapter(Fixed(), 3).object_scores([torch.zeros(3, 40, 50)], [target])
    assert scores.tolist() == pytest.approx([0.6, 0.9, 0.0, 0.0])


def test_a_bank_is_built_from_a_config(data: Path, tmp_path: Path) -> None:
    cfg = runner_config(tiny_mask_rcnn(), data, tmp_path, 1, [], experiment_name="bank")
    report = build_from_mmdet(cfg, tmp_path / "own.bank")
    bank = ForegroundBank.open(tmp_path / "own.bank")
    assert bank.categories == dict(enumerate(CLASSES))
    assert len(bank) == sum(report.kept.values()) == 6
    inner = cfg.train_dataloader.dataset.to_dict()
    wrapped = {"type": "RepeatDataset", "times": 3, "dataset": inner}
    build_from_mmdet({"train_dataloader": {"dataset": wrapped}}, tmp_path / "repeated.bank")
    assert len(ForegroundBank.open(tmp_path / "repeated.bank")) == 6
    cfg.dump(str(tmp_path / "config.py"))
    flags = ["bank", "build", "mmdet", "--config", str(tmp_path / "config.py"), "--out", str(tmp_path / "cli.bank")]
    assert terse_aug_command(flags) == 0
    assert ForegroundBank.open(tmp_path / "cli.bank").fingerprint == bank.fingerprint
    both = {"type": "ConcatDataset", "datasets": [inner, wrapped]}
    build_from_mmdet({"train_dataloader": {"dataset": both}, "default_scope": None}, tmp_path / "both.bank")
    assert len(ForegroundBank.open(tmp_path / "both.bank")) == 12
    with pytest.raises(ValueError, match=r"no train_dataloader\.dataset"):
        build_from_mmdet({"model": {}}, tmp_path / "none.bank")


def test_a_bank_is_built_from_boxes_only_where_a_way_is_given(data: Path, tmp_path: Path) -> None:
    content = json.loads(data.read_text())
    for entry in content["annotations"]:
        del entry["segmentation"]
    data.write_text(json.dumps(content))
    cfg = runner_config(tiny_mask_rcnn(), data, tmp_path, 1, [], experiment_name="boxes")
    cfg.dump(str(tmp_path / "config.py"))

    def whole_box(image: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
        left, top, right, bottom = (round(edge) for edge in (*box[:2], box[0] + box[2], box[1] + box[3]))
        mask = np.zeros(image.shape[:2], bool)
        mask[top:bottom, left:right] = True
        return mask

    with pytest.raises(ValueError, match="a box cannot be cut out"):
        build_from_mmdet(cfg, tmp_path / "none.bank", rejected_sheet=tmp_path / "drops.png")
    assert (tmp_path / "drops.png").stat().st_size > 1000
    report = build_from_mmdet(cfg, tmp_path / "ellipses.bank", boxes="ellipse")
    own_way = build_from_mmdet(cfg, tmp_path / "boxes.bank", boxes=whole_box)
    flags = ["bank", "build", "mmdet", "--config", str(tmp_path / "config.py"), "--out", str(tmp_path / "cli.bank")]
    assert terse_aug_command([*flags, "--boxes", "ellipse"]) == 0
    assert (report.mask_sources, own_way.mask_sources) == ({"ellipse": 6}, {"function whole_box": 6})
    ellipses, boxes, cli = (ForegroundBank.open(tmp_path / f"{name}.bank") for name in ("ellipses", "boxes", "cli"))
    assert cli.fingerprint == ellipses.fingerprint
    for ellipse, box, entry in zip(ellipses, boxes, content["annotations"], strict=True):
        assert (box.rgba[..., 3] == 255).all()
        assert np.abs(np.subtract(box.size, entry["bbox"][2:])).max() <= 1
        assert ellipse.rgba[0, 0, 3] == 0


def test_the_python_configs_work(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    """New-style configs hold classes in place of names."""
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
