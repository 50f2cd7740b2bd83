"""MMDetection's hook in every kind of training, mixed precision, several processes."""

from __future__ import annotations

import itertools
import socket
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import QUIET_MMDET, need_mmdet
from processes import METHOD, fresh

need_mmdet()
from mmdet_factories import (  # noqa: F401 - fixtures
    bank,
    bare,
    by_epochs,
    data,
    made,
    pipeline,
    settings,
    shipped_config,
    tiny_yolox,
)
from mmengine.hooks import Hook
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import Runner

from terse_aug import ForegroundBank
from terse_aug_mmdet import MMDetAdapter, TerseHook

pytestmark = QUIET_MMDET


def test_accumulated_batches_make_one_update_and_the_loss_scale_is_removed(
    data: Path, bank: ForegroundBank, tmp_path: Path
) -> None:
    """The last step of three batches, two by two, has one alone; MMEngine scales it by its own count."""
    terse = settings(bank, "adversarial")
    runner, hook = made(data, tmp_path, 3, terse, optim_wrapper={"accumulative_counts": 2})
    scales = []
    step = hook.__class__.after_train_iter

    def after(self: TerseHook, *args: Any, **kwargs: Any) -> None:
        scales.append(self._loss_scale)
        step(self, *args, **kwargs)

    hook.after_train_iter = after.__get__(hook)  # type: ignore[method-assign]  # a spy
    runner.train()
    metrics = hook.terse.metrics()
    assert (metrics["calls"], metrics["updates"], metrics["iterations"]) == (3, 2, 2)
    assert scales == [0.5, 0.5, 1.0]


def test_it_continues_with_an_ema_and_a_pipeline_switch(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    """The second pipeline has no TersePaste: the hook reads the foregrounds itself."""
    terse = settings(bank)
    beside = [{"type": "EMAHook"}, {"type": "PipelineSwitchHook", "switch_epoch": 1, "switch_pipeline": pipeline()}]
    steps = pipeline({"type": "TersePaste", **terse})
    runner, hook = made(data, tmp_path, 0, terse, hooks=beside, pipeline=steps, **by_epochs(2))
    runner.train()
    assert hook.terse.metrics()["updates"] == 6


def watch_epochs(runner: Runner, hook: TerseHook) -> list[dict[str, torch.Tensor]]:
    """The policy's state at the begin of every epoch."""
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
    torch.serialization.clear_safe_globals()  # as the end of another library's context of safe globals may
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
        metrics = own.terse.metrics()
        assert (metrics["iterations"], metrics["updates"], metrics["skipped_updates"]) == (6, 6, 0)


def test_it_continues_through_the_mode_switch_of_yolox(
    data: Path, bank: ForegroundBank, tmp_path: Path, reads: Counter[int]
) -> None:
    """Its pipeline and its hooks as its config has them, at a tenth of the size; the second epoch of three switches,
    and has its workers started anew."""
    own = shipped_config("yolox/yolox_s_8xb8-300e_coco.py")
    own.custom_hooks[0].num_last_epochs = 1
    for step in own.train_pipeline:
        step.update({key: (64, 64) for key in ("img_scale", "scale") if key in step})
        step.update({"border": (-32, -32)} if "border" in step else {})
    terse = settings(bank)
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
        priority = "LOWEST"

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            # Mosaic's images have the size already that single ones are resized to.
            mixed.append({sample.scale_factor for sample in data_batch["data_samples"]} == {(1.0, 1.0)})
            drawn.append([own.index for pastes in hook.terse.pastes for own in pastes])

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            pasted.append(hook.terse.metrics()["objects_pasted"])
            resized.add(runner.model.data_preprocessor.batch_augments[0]._input_size)

    runner.register_hook(Watch())
    reads.clear()
    runner.train()
    runner.train_dataloader._iterator = None  # ends the workers
    assert not reads
    assert mixed == [True] * 3 + [False] * 6
    assert runner.model.bbox_head.use_l1 is True
    assert all(drawn)
    assert drawn[:3] != drawn[3:6] != drawn[6:]
    assert all(before < after for before, after in itertools.pairwise([0, *pasted]))
    assert len(resized) > 1
    metrics = hook.terse.metrics()
    assert (metrics["updates"], metrics["skipped_updates"], metrics["non_finite_losses"]) == (9, 0, 0)


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
def test_the_scale_of_a_scaler_is_removed(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    """It doubles after every step; the second step has one batch in place of two."""
    logged, weights = [], []
    for scale in ({"enabled": False}, {"init_scale": 2.0**14, "growth_interval": 1}):
        runner, hook = mixed_precision(
            data, tmp_path, settings(bank, "adversarial"), loss_scale=scale, accumulative_counts=2
        )
        runner.train()
        metrics = hook.terse.metrics()
        assert (metrics["updates"], metrics["skipped_updates"], metrics["non_finite_losses"]) == (2, 0, 0)
        logged.append((metrics["loss"], metrics["gradient_norm"]))
        weights.append([value.detach() for value in hook.terse.policy.parameters()])
    assert runner.optim_wrapper.loss_scaler.get_scale() == 2.0**16
    assert logged[0] == pytest.approx(logged[1], rel=1e-3)
    torch.testing.assert_close(*weights)


@pytest.mark.usefixtures("amp_on_cpu")
def test_gradient_steps_have_the_precision_of_the_wrapper(
    data: Path, bank: ForegroundBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``AmpOptimWrapper`` has no ``dtype`` by default: that of the device, on the CPU bfloat16."""
    runner, _ = mixed_precision(data, tmp_path, settings(bank, robustness={}))
    used: set[tuple[bool, torch.dtype]] = set()
    losses = MMDetAdapter.losses

    def watched(*inputs: Any) -> torch.Tensor:
        used.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return losses(*inputs)

    monkeypatch.setattr(MMDetAdapter, "losses", watched)
    runner.train()
    assert used == {(True, torch.bfloat16)}


@pytest.mark.usefixtures("amp_on_cpu")
def test_an_overflow_skips_the_update(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    overflowing = {"init_scale": 2.0**127, "backoff_factor": 2.0**-110}
    runner, hook = mixed_precision(data, tmp_path, settings(bank, "adversarial"), loss_scale=overflowing)
    entered: list[list[torch.Tensor]] = []

    class Watch(Hook):
        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            parameters = itertools.chain(runner.model.parameters(), hook.terse.policy.parameters())
            entered.append([value.detach().clone() for value in parameters])

    runner.register_hook(Watch())
    with pytest.warns(UserWarning, match="gradient is not finite"):
        runner.train()
    metrics = hook.terse.metrics()
    assert (metrics["updates"], metrics["skipped_updates"], metrics["non_finite_losses"]) == (2, 1, 0)
    assert all(map(torch.equal, entered[0], entered[1]))
    assert not all(map(torch.equal, entered[1], entered[2]))
    assert all(bool(value.isfinite().all()) for value in entered[2])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: AmpOptimWrapper asserts one")
@pytest.mark.parametrize("policy", ["adversarial", "critic"])
def test_amp_on_cuda(data: Path, bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    runner, hook = mixed_precision(data, tmp_path, settings(bank, policy), loss_scale={"init_scale": 256.0})
    runner.train()
    metrics = hook.terse.metrics()
    assert next(runner.model.parameters()).is_cuda
    assert metrics["updates"] > 0
    assert metrics["updates"] + metrics["skipped_updates"] == 3
    assert metrics["non_finite_losses"] == 0


def _train_on_a_rank(rank: int, port: int, folder: str, data: str, bank: str) -> None:
    import os

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)  # MMEngine's own requires a GPU
    terse = settings(ForegroundBank.open(bank), "adversarial")
    runner, hook = made(
        Path(data),
        Path(folder) / "out",
        2,
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


def test_two_processes_have_one_policy(data: Path, bank: ForegroundBank, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "out").mkdir()
    fresh()
    ranks = (port, str(tmp_path), str(data), str(bank.path))
    torch.multiprocessing.start_processes(_train_on_a_rank, ranks, nprocs=2, start_method=METHOD)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert one["updates"] == two["updates"] == 2
    assert one["seed"] == two["seed"]
    assert all(map(torch.equal, one["state"], two["state"]))
    assert all(torch.allclose(a, b) for a, b in zip(one["model"], two["model"], strict=True) if a.ndim > 1)
