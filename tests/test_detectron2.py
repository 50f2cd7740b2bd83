"""Detectron2's adapter: its hook in every kind of trainer, checkpoints, logs, several processes."""

from __future__ import annotations

import copy
import json
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import all_equal, parameters_of
from hosts import QUIET_DETECTRON2, need_detectron2
from processes import METHOD, fresh
from torch import nn

need_detectron2()
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, hooks, launch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils.events import EventStorage, get_event_storage
from detectron2_factories import (  # noqa: F401 - fixtures
    CLASSES,
    Watched,
    bank,
    dataset,
    registered,
    tiny_bank,
    tiny_cfg,
    trainer_with_hook,
)

from terse_aug import ForegroundBank
from terse_aug_detectron2 import (
    Detectron2Adapter,
    TerseHook,
    TerseMapper,
)

pytestmark = QUIET_DETECTRON2


# --- trainers -------------------------------------------------------------------------------------------------------


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
    trainer.hook = hook  # type: ignore[attr-defined]  # a test's own
    trainer.train()
    assert hook.terse.metrics()["updates"] == 4


@pytest.mark.parametrize("policy", ["adversarial", "critic"])
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
        assert (hook.terse.metrics()["updates"], hook.terse.metrics()["calls"]) == (2, 4)
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
        cfg = tiny_cfg("faster_fpn", dataset, tmp_path, bank, POLICY="adversarial", MAX_GRADIENT_NORM=1e6)
        cfg.SOLVER.MAX_ITER = 2
        trainer, hook = trainer_with_hook(cfg)
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


@pytest.mark.parametrize("robust", ["pgd", "universal"])
def test_it_trains_on_perturbed_composites(dataset: str, bank: ForegroundBank, tmp_path: Path, robust: str) -> None:
    """In mixed precision gradient steps run as the trainer's own step does."""
    seen: list[bool] = []

    class Kept(DefaultTrainer):
        def after_train(self) -> None:
            self.kept = self.storage
            super().after_train()

    trainer, hook = trainer_with_hook(tiny_cfg("faster_fpn", dataset, tmp_path, bank, ROBUST=robust), Kept)
    inner = trainer._trainer
    if robust == "pgd":
        inner.grad_scaler, inner.precision = torch.amp.GradScaler("cpu", init_scale=4.0), torch.bfloat16
        bottom = inner.model.backbone.bottom_up.stem.conv1
        bottom.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype == torch.bfloat16))
    start = parameters_of(inner.model)
    trainer.train()
    figures, robustness = hook.terse.metrics(), hook.terse.robustness
    assert robustness is not None
    assert figures["robustness/images"] == figures["images"] > 0
    assert figures["robustness/not_finite"] == figures["robustness/no_gradient"] == 0
    assert seen == [True, False] * 4 * (robust == "pgd")
    if robust == "universal":
        first = type(robustness)(hook.terse.config, hook.terse.pixel_format, hook.terse.seed, None)
        assert not torch.equal(first.pattern, robustness.pattern)
    assert figures["extra_forwards"] == 0  # what is heard is the training forward
    assert figures["hardness"] > 0
    assert len(trainer.kept.history("rpn/num_pos_anchors").values()) == 4  # type: ignore[attr-defined]  # a test's own
    assert not all_equal(start, parameters_of(inner.model))


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


@pytest.mark.parametrize("named", [("left_eye", "right_eye"), ("this", "that")])
def test_mirrored_keypoints_swap_as_the_data_set_says(
    dataset: str, tmp_path: Path, named: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object that is mirrored and not turned has the first of a pair left of the second, as every object has."""
    names = ("nose", *named)
    monkeypatch.setattr("detectron2_factories.KEYPOINTS", names)
    metadata = MetadataCatalog.get(dataset)
    metadata.keypoint_names[:] = names
    metadata.keypoint_flip_map[:] = [named, named[::-1], ("tail", "fin")]
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
    assert hook.terse.metrics()["updates"] == 5


def test_a_trainer_of_the_release_is_wrapped_too(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    """In v0.6 the iterator is a plain attribute, made at once."""

    class Older(SimpleTrainer):
        _data_loader_iter = None  # type: ignore[assignment]  # as some trainers have it

        def __init__(self, model: nn.Module, loader: Any, optimizer: Any) -> None:
            super().__init__(model, loader, optimizer)
            del self._data_loader_iter_obj
            self._data_loader_iter = iter(loader)

    trainer = simple_trainer(tiny_cfg("faster_fpn", dataset, tmp_path), Older)
    hook = TerseHook(bank.relabel(CLASSES), move_every=1, image_probability=1.0, seed=0)
    trainer.register_hooks([hook])
    trainer.train(0, 2)
    assert hook.terse.metrics()["updates"] == 2


def test_the_model_can_be_copied_and_pickled_meanwhile(dataset: str, bank: ForegroundBank, tmp_path: Path) -> None:
    class Copying(hooks.HookBase):
        def after_step(self) -> None:
            self.copy = copy.deepcopy(self.trainer.model)
            torch.save(self.trainer.model, tmp_path / "model.pt")

    trainer, hook = trainer_with_hook(tiny_cfg("faster_fpn", dataset, tmp_path, bank))
    trainer.register_hooks([copying := Copying()])
    trainer.train()
    assert hook.terse.metrics()["updates"] == 4
    batch = next(trainer._trainer._data_loader_iter)
    with EventStorage(0):
        copying.copy(batch)  # a deaf copy
        torch.load(tmp_path / "model.pt", weights_only=False)(batch)


def test_what_only_proposes_is_refused(dataset: str, tmp_path: Path) -> None:
    cfg = tiny_cfg("faster_fpn", dataset, tmp_path)
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    with pytest.raises(ValueError, match=r"ProposalNetwork .* boxes without classes"):
        Detectron2Adapter(DefaultTrainer.build_model(cfg))


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
    cfg.SOLVER.MAX_ITER, cfg.TERSE.POLICY = 5, "adversarial"
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
    for name in ("hardness", "diversity", "skipped_updates", "share_of_time", "hardness_gain"):
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
    assert trainer.pending == ["terse_aug/composites"]  # type: ignore[attr-defined]  # a test's own


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
        hook = TerseHook(own_bank, "adversarial", move_every=1, image_probability=1.0)
        trainer.register_hooks([hook])
        seen = Watched(model)
        trainer.train(0, 3)
        result = {
            "seed": hook.terse.seed,
            "state": [value.detach().clone() for value in hook.terse.policy.parameters()],
            "updates": hook.terse.metrics()["updates"],
            "image": seen.batches[0][0]["image"].detach(),
            "model": list(model.module.state_dict().values()),
        }
        torch.save(result, Path(folder) / f"rank{rank}.pt")


def test_two_processes_have_one_adversary_and_different_composites(
    tmp_path: Path, bank: ForegroundBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh()
    start = partial(torch.multiprocessing.start_processes, start_method=METHOD)
    monkeypatch.setattr(torch.multiprocessing, "start_processes", start)
    folder = tmp_path / "data"
    folder.mkdir()
    launch(_train_on_a_rank, 2, dist_url="auto", args=(str(folder), str(bank.path)))
    one, two = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    assert one["updates"] == two["updates"] == 3
    assert one["seed"] == two["seed"]
    assert all(map(torch.equal, one["state"], two["state"]))
    own = zip(one["model"], two["model"], strict=True)
    assert all(torch.allclose(a, b) for a, b in own if a.is_floating_point() and a.ndim > 1)
    assert one["image"].shape != two["image"].shape or not torch.equal(one["image"], two["image"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: AMPTrainer asserts one")
@pytest.mark.parametrize("policy", ["adversarial", "critic"])
def test_amp(dataset: str, bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    cfg = tiny_cfg("mask_fpn", dataset, tmp_path, bank, POLICY=policy)
    cfg.MODEL.DEVICE, cfg.SOLVER.AMP.ENABLED = "cuda", True
    trainer, hook = trainer_with_hook(cfg)
    assert isinstance(trainer._trainer, AMPTrainer)
    trainer.train()
    assert hook.terse.metrics()["updates"] > 0
