"""MMDetection's trainings on a simulated accelerator: no tensors of two devices are mixed, and the policy learns."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from frameworks import QUIET_MMDET, need_mmdet

need_mmdet()
pytest.importorskip("simulated_accelerator", reason="this torch has no devices made in Python", exc_type=ImportError)
from mmdet_factories import bank, data, made, narrowed, pipeline, settings, shipped  # noqa: F401 - fixtures
from mmengine.hooks import Hook
from simulated_accelerator import DEVICE, NAME, SimulatedTensor
from torch import Tensor

from terse_aug import ForegroundBank

pytestmark = QUIET_MMDET

CONFIGS = {
    "Mask R-CNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
}


class OnHeldData:
    """Compiled operators of mmcv, which know no such device."""

    def __init__(self, operators: Any) -> None:
        self._operators = operators

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operator = getattr(self._operators, name)

        def run(*args: Any, **kwargs: Any) -> Any:
            held = [value.held if isinstance(value, SimulatedTensor) else value for value in args]
            named = {key: value.held if isinstance(value, SimulatedTensor) else value for key, value in kwargs.items()}
            result = operator(*held, **named)
            return SimulatedTensor(result) if isinstance(result, Tensor) else result

        return run


class Devices(Hook):
    """Where images and boxes are when they enter the model."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.found: set[torch.device] = set()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.found |= {image.device for image in data_batch["inputs"]}
        self.found |= {sample.gt_instances.bboxes.tensor.device for sample in data_batch["data_samples"]}


@pytest.mark.parametrize(
    ("model", "policy"),
    [
        ("Mask R-CNN", "random"),
        ("Mask R-CNN", "critic"),
        ("Mask R-CNN", "adversarial"),
        ("FCOS", "critic"),
        ("DETR", "critic"),
    ],
)
def test_mmdet_trains_on_a_device(
    data: Path,
    bank: ForegroundBank,
    tmp_path: Path,
    composing_threads: set[str],
    model: str,
    policy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mmengine.runner.runner.get_device", lambda: NAME)
    structures = sys.modules["mmengine.structures.instance_data"]  # it lists the types of an index
    monkeypatch.setattr(structures, "IndexType", structures.IndexType | SimulatedTensor)
    for name in ("mmcv.ops.nms", "mmcv.ops.roi_align"):
        operators = sys.modules[name]
        monkeypatch.setattr(operators, "ext_module", OnHeldData(operators.ext_module))
    terse = settings(bank, policy)
    steps = pipeline({"type": "TersePaste", **terse}, masks=model == "Mask R-CNN")
    runner, hook = made(data, tmp_path, 2, terse, model=narrowed(shipped(CONFIGS[model])), pipeline=steps)
    runner.register_hook(watch := Devices())
    runner.train()
    metrics = hook.terse.metrics()
    assert metrics["iterations"] == 2
    assert metrics["updates"] == (2 if hook.terse.policy.learns else 0)
    assert metrics["dropped/graph"] == metrics["non_finite_losses"] == 0
    for module in (runner.model, hook.terse.policy):
        assert all(isinstance(parameter, SimulatedTensor) for parameter in module.parameters())
    if policy == "critic":
        assert composing_threads == {"terse_aug_0"}
        assert watch.found == {DEVICE}
