"""Detectron2's hook in every kind of trainer, and in several processes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import tiny_bank
from frameworks import QUIET_DETECTRON2, need_detectron2
from processes import METHOD, fresh
from torch import nn

need_detectron2()
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, hooks, launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils.events import EventStorage
from detectron2_factories import (  # noqa: F401 - fixtures
    CLASSES,
    KeepStorage,
    Watched,
    bank,
    dataset,
    registered,
    tiny_cfg,
    trainer_with_hook,
)

from terse_aug import ForegroundBank, PasteConfig
from terse_aug.policies import Adversarial, Critic
from terse_aug_detectron2 import Detectron2Adapter, TerseHook

pytestmark = QUIET_DETECTRON2
TinyCfg = Callable[..., CfgNode]


@pytest.fixture
def faster(dataset: str, bank: ForegroundBank, tmp_path: Path) -> TinyCfg:
    """``faster(iterations, **terse)``: the config of a Faster R-CNN with terse-aug."""

    def config(iterations: int = 2, **terse: Any) -> CfgNode:
        cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, **terse)
        cfg.SOLVER.MAX_ITER = iterations
        return cfg

    return config


def hook_of(bank: ForegroundBank, policy: Any = None, **arguments: Any) -> TerseHook:
    """A hook without a config."""
    paste = PasteConfig(paste_probability=1.0)
    return TerseHook(bank.relabel(CLASSES), policy or Critic(update_interval=1), paste=paste, **arguments)


def test_a_custom_run_step_pastes_by_itself(faster: TinyCfg) -> None:
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

    trainer, _ = trainer_with_hook(faster(), Own)
    with pytest.raises(RuntimeError, match=r"saw no batch on its way to the model.*Call hook\.paste\(batch\)"):
        trainer.train()
    trainer, hook = trainer_with_hook(faster(), Own)
    trainer.hook = hook  # type: ignore[attr-defined]  # a test's own
    trainer.train()
    assert hook.terse.metrics()["updates"] == 2


def test_accumulated_batches_make_one_update_and_the_loss_scale_is_removed(faster: TinyCfg) -> None:
    """The policy's gradient is the same however the loss is scaled, by hand or by a GradScaler."""
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

        policy = {"type": "adversarial", "max_gradient_norm": 1e6}
        trainer, hook = trainer_with_hook(faster(2, policy=policy, loss_scale=scale), Accumulating)
        if scaler is not None:
            trainer._trainer.grad_scaler = scaler
        trainer.train()
        assert (hook.terse.metrics()["updates"], hook.terse.metrics()["calls"]) == (2, 4)
        states.append([value.clone() for value in hook.terse.policy.parameters()])
    for other in states[1:]:
        for own, value in zip(states[0], other, strict=True):
            torch.testing.assert_close(own, value, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_the_scale_of_an_amp_trainer_is_removed(faster: TinyCfg, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own step with a real scaler, on a CPU: there autocast for CUDA does nothing."""
    states = []
    for scale in (None, 2.0**20):
        trainer, hook = trainer_with_hook(faster(2, policy={"type": "adversarial", "max_gradient_norm": 1e6}))
        if scale is not None:
            inner = trainer._trainer
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            trainer._trainer = AMPTrainer(inner.model, inner.data_loader, inner.optimizer, grad_scaler=scaler)
            with_cuda = vars(torch) | {"cuda": SimpleNamespace(is_available=lambda: True)}  # which it asserts
            monkeypatch.setattr("detectron2.engine.train_loop.torch", SimpleNamespace(**with_cuda))
        trainer.train()
        assert hook.terse.metrics()["updates"] == 2
        states.append([value.clone() for value in hook.terse.policy.parameters()])
    for plain, scaled in zip(*states, strict=True):
        torch.testing.assert_close(plain, scaled, rtol=1e-3, atol=1e-5)


def test_gradient_steps_in_mixed_precision_run_as_the_training_step_does(faster: TinyCfg) -> None:
    trainer, hook = trainer_with_hook(faster(2, robustness={"enabled": True}), KeepStorage)
    inner = trainer._trainer
    inner.grad_scaler, inner.precision = torch.amp.GradScaler("cpu", init_scale=4.0), torch.bfloat16
    half: list[bool] = []
    bottom = inner.model.backbone.bottom_up.stem.conv1
    bottom.register_forward_hook(lambda _, inputs, output: half.append(output.dtype == torch.bfloat16))
    trainer.train()
    metrics = hook.terse.metrics()
    assert metrics["robustness/images"] == metrics["images"] > 0
    assert half == [True, False] * 2
    assert len(trainer.kept.history("rpn/num_pos_anchors").values()) == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("who", ["trainer", "before_step", "after_step"])
def test_a_data_loader_that_is_replaced_during_training_is_wrapped_again(faster: TinyCfg, who: str) -> None:
    """By the trainer, before all hooks, or by a hook after this one."""

    def replace(trainer: Any) -> None:
        if trainer.iter == 1:
            trainer._trainer.reset_data_loader(lambda: trainer.build_train_loader(trainer.cfg))

    class Replacing(DefaultTrainer):
        def before_step(self) -> None:
            replace(self)
            super().before_step()

    trainer, hook = trainer_with_hook(faster(3), Replacing if who == "trainer" else DefaultTrainer)
    replacing = hooks.HookBase()
    if who != "trainer":
        setattr(replacing, who, lambda: replace(replacing.trainer))
    trainer.register_hooks([replacing])
    trainer.train()
    assert hook.terse.metrics()["composites"] == 6


@pytest.mark.parametrize("names", [("left_eye", "right_eye"), ("this", "that")])
def test_flipped_keypoints_swap_by_the_data_sets_flip_map(
    tmp_path: Path, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped object that is not rotated has the first of a pair left of the second, like every object."""
    for module in ("factories", "detectron2_factories"):
        monkeypatch.setattr(f"{module}.KEYPOINTS", ("nose", *names))
    flips = [names, names[::-1], ("tail", "fin")]
    with registered(tmp_path, "flipped", keypoint_flip_map=flips) as dataset:
        bank = tiny_bank(tmp_path, keypoints=True)
        cfg = tiny_cfg("keypoint_fpn", dataset, tmp_path, bank, paste={"flip_probability": 1.0})
        cfg.SOLVER.MAX_ITER = 1
        trainer, _ = trainer_with_hook(cfg)
        seen = Watched(trainer.model)
        trainer.train()
    points = torch.cat([one["instances"].gt_keypoints.tensor for batch in seen.batches for one in batch])
    assert len(points) > len(seen.batches[0])
    assert (points[:, 1, 0] < points[:, 2, 0]).all()


def test_without_a_seed_a_fresh_one_is_drawn_and_numpys_state_is_left_alone(faster: TinyCfg) -> None:
    seeds = set()
    for _ in range(2):
        trainer, hook = trainer_with_hook(faster())
        hook.seed = None
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


def test_training_may_be_continued(faster: TinyCfg, bank: ForegroundBank) -> None:
    trainer, hook = simple_trainer(faster()), hook_of(bank, seed=0)
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    kept = [value.clone() for value in hook.terse.policy.buffers()]
    trainer.train(2, 2)
    assert all(map(torch.equal, kept, hook.terse.policy.buffers()))
    trainer.train(2, 3)
    assert hook.terse.metrics()["updates"] == 3


def test_a_trainer_of_the_release_0_6_is_wrapped_too(faster: TinyCfg, bank: ForegroundBank) -> None:
    """There the iterator is a plain attribute, made at once."""

    class Older(SimpleTrainer):
        _data_loader_iter = None  # type: ignore[assignment]  # as some trainers have it

        def __init__(self, model: nn.Module, loader: Any, optimizer: Any) -> None:
            super().__init__(model, loader, optimizer)
            del self._data_loader_iter_obj
            self._data_loader_iter = iter(loader)

    trainer, hook = simple_trainer(faster(), Older), hook_of(bank, seed=0)
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    assert hook.terse.metrics()["updates"] == 2


def test_the_model_can_be_copied_and_pickled_during_training(faster: TinyCfg, tmp_path: Path) -> None:
    class Copying(hooks.HookBase):
        def after_step(self) -> None:
            self.copy = copy.deepcopy(self.trainer.model)
            torch.save(self.trainer.model, tmp_path / "model.pt")

    trainer, hook = trainer_with_hook(faster())
    trainer.register_hooks([copying := Copying()])
    trainer.train()
    assert hook.terse.metrics()["updates"] == 2
    batch = next(trainer._trainer._data_loader_iter)
    with EventStorage(0):
        copying.copy(batch)
        torch.load(tmp_path / "model.pt", weights_only=False)(batch)


def test_wrong_arguments_and_models_are_refused(faster: TinyCfg, bank: ForegroundBank) -> None:
    for changes in ({"input_format": "GRAY"}, {"loss_scale": 0.0}, {"log_period": -1}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            TerseHook(bank, **changes)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="has not begun"):
        _ = TerseHook(bank).terse
    cfg = faster()
    trainer, _ = trainer_with_hook(cfg)
    trainer.register_hooks([TerseHook.from_config(cfg)])
    with pytest.raises(RuntimeError, match="two TerseHooks are registered"):
        trainer.train()
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    with pytest.raises(ValueError, match=r"ProposalNetwork .* boxes without classes"):
        Detectron2Adapter(DefaultTrainer.build_model(cfg))


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
        hook = hook_of(ForegroundBank.open(bank), Adversarial(update_interval=1))
        trainer.register_hooks([hook])
        seen = Watched(model)
        trainer.train(0, 2)
        result = {
            "seed": hook.terse.seed,
            "state": [value.detach().clone() for value in hook.terse.policy.parameters()],
            "updates": hook.terse.metrics()["updates"],
            "image": seen.batches[0][0]["image"].detach(),
            "model": list(model.module.state_dict().values()),
        }
        torch.save(result, Path(folder) / f"rank{rank}.pt")


def test_two_processes_have_one_policy_and_different_composites(
    tmp_path: Path, bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh()
    start = partial(torch.multiprocessing.start_processes, start_method=METHOD)
    monkeypatch.setattr(torch.multiprocessing, "start_processes", start)
    launch(_train_on_a_rank, 2, dist_url="auto", args=(str(tmp_path), str(bank.path)))
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert one["updates"] == two["updates"] == 2
    assert one["seed"] == two["seed"]
    assert all(map(torch.equal, one["state"], two["state"]))
    own = zip(one["model"], two["model"], strict=True)
    assert all(torch.allclose(a, b) for a, b in own if a.is_floating_point() and a.ndim > 1)
    assert one["image"].shape != two["image"].shape or not torch.equal(one["image"], two["image"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: AMPTrainer asserts one")
@pytest.mark.parametrize("policy", ["adversarial", "critic"])
def test_amp_on_cuda(dataset: str, bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank, policy=policy)
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED = "cuda", True
    trainer, hook = trainer_with_hook(cfg)
    assert isinstance(trainer._trainer, AMPTrainer)
    trainer.train()
    assert hook.terse.metrics()["updates"] > 0
