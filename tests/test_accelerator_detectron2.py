"""Detectron2's trainings on a simulated accelerator: no tensors of two devices are mixed, and the policy learns."""

from __future__ import annotations

from pathlib import Path

import pytest
from frameworks import QUIET_DETECTRON2, need_detectron2

need_detectron2()
pytest.importorskip("simulated_accelerator", reason="this torch has no devices made in Python", exc_type=ImportError)
from detectron2_factories import (  # noqa: F401 - fixtures
    KeepStorage,
    Watched,
    dataset,
    tiny_bank,
    tiny_cfg,
    trainer_with_hook,
)
from simulated_accelerator import DEVICE, SimulatedTensor

pytestmark = QUIET_DETECTRON2


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("mask_fpn", "random"),
        ("mask_fpn", "best-of-n"),
        ("mask_fpn", "adversarial"),
        ("cascade_fpn", "critic"),
        ("keypoint_fpn", "critic"),
        ("retinanet", "critic"),
    ],
)
def test_detectron2_trains_on_a_device(
    dataset: str, tmp_path: Path, composing_threads: set[str], model: str, policy: str
) -> None:
    cfg = tiny_cfg(model, dataset, tmp_path, tiny_bank(tmp_path, keypoints=model == "keypoint_fpn"), policy=policy)
    cfg.SOLVER.MAX_ITER, cfg.MODEL.DEVICE = 2, str(DEVICE)
    trainer, hook = trainer_with_hook(cfg, KeepStorage)
    seen = Watched(trainer.model)
    trainer.train()
    metrics = hook.terse.metrics()
    assert metrics["iterations"] == 2
    assert metrics["updates"] == (2 if hook.terse.policy.learns else 0)
    assert metrics["dropped/graph"] == metrics["non_finite_losses"] == 0
    for module in (trainer.model, hook.terse.policy):
        assert all(isinstance(parameter, SimulatedTensor) for parameter in module.parameters())
    entered = [one for batch in seen.batches for one in batch if "instances" in one]
    assert any(len(one["instances"]) for one in entered)
    if policy == "critic":
        assert composing_threads == {"terse_aug_0"}
        for one in entered:
            fields = (getattr(own, "tensor", own) for own in one["instances"].get_fields().values())
            assert all(own.device == DEVICE for own in (one["image"], *fields))
