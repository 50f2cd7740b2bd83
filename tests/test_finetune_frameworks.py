"""The fine-tuning benchmark through the adapters for Detectron2 and MMDetection: short runs, and the detectors."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from example_modules import importable
from frameworks import QUIET_DETECTRON2, QUIET_MMDET, need_detectron2, need_mmdet
from torch import Tensor
from torchvision.ops import box_iou

from terse_aug.integration import TerseSettings

QUIET_MASKS = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
Batches = list[list[tuple[int, int]]]
"""Image id and number of objects of what a detector was trained on, by batch."""


def watch_detectron2(patch: pytest.MonkeyPatch, seen: Batches) -> None:
    from detectron2.modeling import GeneralizedRCNN

    forward = GeneralizedRCNN.forward

    def watched(self: Any, items: list[dict[str, Any]]) -> Any:
        if self.training:
            seen.append([(own["image_id"], len(own["instances"])) for own in items])
        return forward(self, items)

    patch.setattr(GeneralizedRCNN, "forward", watched)


def watch_mmdet(patch: pytest.MonkeyPatch, seen: Batches) -> None:
    from mmdet.models import FasterRCNN

    loss = FasterRCNN.loss

    def watched(self: Any, inputs: Tensor, samples: list[Any]) -> Any:
        seen.append([(own.img_id, len(own.gt_instances)) for own in samples])
        return loss(self, inputs, samples)

    patch.setattr(FasterRCNN, "loss", watched)


NEED = {"detectron2": need_detectron2, "mmdet": need_mmdet}
WATCH: dict[str, Callable[[pytest.MonkeyPatch, Batches], None]] = {"detectron2": watch_detectron2, "mmdet": watch_mmdet}
PARAMS = [
    pytest.param("detectron2", marks=[*QUIET_DETECTRON2, QUIET_MASKS]),
    pytest.param("mmdet", marks=QUIET_MMDET),
]


@pytest.fixture(scope="module", params=PARAMS)
def run(request: pytest.FixtureRequest, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A short run of two arms, one after the other, and what their detectors were trained on."""
    NEED[request.param]()
    out = tmp_path_factory.mktemp("runs")
    flags = ["--framework", request.param, "--data", str(data_root), "--data-set", "mnist-coco", "--out", str(out)]
    flags += ["--side", "64", "--images", "10", "4", "--baseline-iterations", "2", "--evaluations", "1"]
    flags += ["--baselines", "0", "--iterations", "3"]
    seen: Batches = []
    with importable(Path(__file__).parents[1], "benchmarks", "detection"), pytest.MonkeyPatch.context() as patch:
        finetune = import_module("benchmarks.finetune")
        WATCH[request.param](patch, seen)
        finetune.main([*flags, "--arms", "none", "--seeds", "0", "1"])
        none, count = seen[2:], len(seen)
        finetune.main([*flags, "--arms", "random", "--seeds", "0", "1"])
        yield SimpleNamespace(
            **{name: import_module(f"benchmarks._finetune_{name}") for name in ("data", "pasting", "training")},
            module=import_module(f"benchmarks._finetune_{request.param}"),
            framework=request.param,
            main=finetune.main,
            flags=flags,
            out=out,
            setup=finetune._setup(finetune._parser().parse_args(flags)),
            seen={"none": none, "random": seen[count:]},
        )


def test_a_short_run_has_results_and_leaves_no_other_files(run: SimpleNamespace) -> None:
    for name in ("none/none-baseline0-seed0", "right/random-baseline0-seed1"):
        found = json.loads((run.out / "runs" / f"{name}.json").read_text())
        assert 0 <= found["AP"] <= 100
        assert [point["iteration"] for point in found["curve"]] == [3]
        assert found["extra forwards"] == 0 < found["CPU seconds"]
        assert found["arguments"]["framework"] == run.framework
    names = {path.name for path in run.out.iterdir()}
    assert names == {"baselines", "runs", run.setup.folder.name, "summary.json", "summary.md"}
    assert {path.name for path in (run.out / "baselines").iterdir()} == {"baseline0.json", "baseline0.pt"}


def test_arms_have_the_same_order_which_is_that_of_the_seed(run: SimpleNamespace) -> None:
    none, random = ([[number for number, _ in batch] for batch in run.seen[arm]] for arm in ("none", "random"))
    assert len(none) == 6  # of two seeds
    assert all(len(batch) == 4 for batch in none)
    assert none == random
    assert none[:3] != none[3:]


def test_objects_are_pasted_in_random_alone(run: SimpleNamespace) -> None:
    annotations = json.loads((run.setup.folder / "train.json").read_text())["annotations"]
    numbers = [own["image_id"] for own in annotations]
    pasted = {
        arm: [count - numbers.count(image) for batch in run.seen[arm] for image, count in batch] for arm in run.seen
    }
    assert set(pasted["none"]) == {0}
    assert sum(pasted["random"]) > len(pasted["random"]) / 2  # up to three on three quarters of the images
    assert max(pasted["random"]) <= 3


def test_without_pastes_arms_train_the_same_detector(run: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = run.data.DATA_SETS["mnist-coco"]
    changed = replace(kind, flip=True, paste=replace(kind.paste, paste_probability=0))
    monkeypatch.setitem(run.data.DATA_SETS, "mnist-coco", changed)
    weights = run.out / "baselines" / "baseline0.pt"

    def trained(arm: str) -> dict[str, Tensor]:
        found = run.training.Training(run.setup, 5, 3, 0.002, 0, 1, weights=weights, settings="right", arm=arm)
        state: dict[str, Tensor] = run.module.train(found)[1]
        return state

    none = trained("none")
    assert any(not torch.equal(value, none[name]) for name, value in torch.load(weights, weights_only=True).items())
    for arm in ("random", "critic"):
        own = trained(arm)
        assert all(torch.equal(value, own[name]) for name, value in none.items())


def test_arms_and_settings_that_cannot_be_are_refused(run: SimpleNamespace) -> None:
    for arm in ("agree", "loss@backgrounds"):
        with pytest.raises(SystemExit, match=f"'{arm}' is an oracle, which torchvision alone has"):
            run.main([*run.flags, "--arms", "none", arm])
    with pytest.raises(SystemExit, match="has fasterrcnn_mobilenet_v2_small alone"):
        run.main([*run.flags, "--detector", "fasterrcnn_mobilenet_v2_fpn"])
    other = {"detectron2": "mmdet", "mmdet": "detectron2"}[run.framework]
    for own in ("torchvision", other):
        flags = [own if flag == run.framework else flag for flag in run.flags]
        for more in ([], ["--report"]):
            with pytest.raises(SystemExit, match="was run with"):
                run.main([*flags, *more])


def test_the_hook_has_the_settings_of_the_core(run: SimpleNamespace, tmp_path: Path) -> None:
    kind = run.data.DATA_SETS["mnist-coco"]
    for settings, arm, policy in (("wide", "matched-closed", "Matched"), ("unrelated", "random-again", "Random")):
        training = run.training.Training(run.setup, 5, 3, 0.002, 0, 1, settings=settings, arm=arm)
        folder = tmp_path / settings
        folder.mkdir()
        own, seed, close_fraction = settings_of(run.module._config(training, folder), run.framework)
        assert close_fraction == (0.25 if arm == "matched-closed" else 0)
        assert own.paste == run.pasting.paste_settings(settings, kind)
        assert type(own.policy).__name__ == policy
        assert seed == run.pasting.seed_of_pasting(arm, 5)
        if settings == "unrelated":
            assert own.backgrounds.probability == 0.5
            assert len(own.backgrounds) == len(kind.backgrounds(run.setup.data))
        else:
            assert own.backgrounds is None


def settings_of(cfg: Any, framework: str) -> tuple[TerseSettings, int, float]:
    """The settings in a config, as the hook reads them, its seed, and the fraction without pasting."""
    if framework == "detectron2":
        from terse_aug_detectron2.config import chosen_seed, terse_settings

        return terse_settings(cfg), chosen_seed(cfg) or 0, cfg.TERSE.CLOSE_FRACTION
    (hook,) = cfg.custom_hooks
    others = {name: value for name, value in hook.items() if name not in ("type", "bank", "seed", "close_fraction")}
    return TerseSettings(**others), hook.seed, hook.close_fraction


def test_with_the_same_weights_the_detector_finds_what_torchvisions_does(run: SimpleNamespace, tmp_path: Path) -> None:
    training = run.training.Training(run.setup, 0, 3, 0.002, 0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        reference = run.setup.build().eval()
        with torch.no_grad():
            reference.roi_heads.box_predictor.cls_score.weight.mul_(8)  # scores that differ
        other = run.module.build(training, tmp_path)
    anchors = reference.rpn.anchor_generator
    sides = ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,))
    anchors.cell_anchors = [unrounded_anchors(side, anchors.aspect_ratios[0]) for (side,) in sides]
    missing = other.load_state_dict(renamed(reference.state_dict(), RENAMED[run.framework]), strict=False)
    assert not missing.unexpected_keys
    assert all("anchor" in name or "pixel" in name for name in missing.missing_keys)
    trained = [sum(own.numel() for own in model.parameters() if own.requires_grad) for model in (reference, other)]
    assert trained[0] - trained[1] == 4 * 257  # torchvision has a box for the background, too
    images = [run.setup.split("test")[number][0] for number in range(4)]
    with torch.inference_mode():
        wanted, found = reference(images), run.module.Detector(other.eval())(images)
    for one, two in zip(wanted, found, strict=True):
        assert len(one["boxes"]) > 10
        same = (box_iou(one["boxes"], two["boxes"]) > 0.98) & (one["labels"][:, None] == two["labels"])
        same &= (one["scores"][:, None] - two["scores"]).abs() < 0.01
        assert same.any(1).float().mean() > 0.95


def unrounded_anchors(side: float, ratios: tuple[float, ...]) -> Tensor:
    """Anchors ``[A, 4]`` as Detectron2 and MMDetection have them; torchvision's sides are whole pixels."""
    heights = side * torch.tensor(ratios).sqrt()
    widths = side / torch.tensor(ratios).sqrt()
    return torch.stack([-widths, -heights, widths, heights], 1) / 2


RENAMED = {
    "detectron2": {
        "backbone.body": "backbone.bottom_up.body.features",
        **{f"backbone.fpn.inner_blocks.{level}.0": f"backbone.fpn_lateral{level + 2}" for level in range(4)},
        **{f"backbone.fpn.layer_blocks.{level}.0": f"backbone.fpn_output{level + 2}" for level in range(4)},
        "rpn.head.conv.0.0": "proposal_generator.rpn_head.conv",
        "rpn.head.cls_logits": "proposal_generator.rpn_head.objectness_logits",
        "rpn.head.bbox_pred": "proposal_generator.rpn_head.anchor_deltas",
        "roi_heads.box_head.fc6": "roi_heads.box_head.fc1",
        "roi_heads.box_head.fc7": "roi_heads.box_head.fc2",
        "roi_heads.box_predictor.cls_score": "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred": "roi_heads.box_predictor.bbox_pred",
    },
    "mmdet": {
        "backbone.body": "backbone.features",
        **{f"backbone.fpn.inner_blocks.{level}.0": f"neck.lateral_convs.{level}.conv" for level in range(4)},
        **{f"backbone.fpn.layer_blocks.{level}.0": f"neck.fpn_convs.{level}.conv" for level in range(4)},
        "rpn.head.conv.0.0": "rpn_head.rpn_conv",
        "rpn.head.cls_logits": "rpn_head.rpn_cls",
        "rpn.head.bbox_pred": "rpn_head.rpn_reg",
        "roi_heads.box_head.fc6": "roi_head.bbox_head.shared_fcs.0",
        "roi_heads.box_head.fc7": "roi_head.bbox_head.shared_fcs.1",
        "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
        "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
    },
}
"""Names of layers, by those in torchvision's detector."""


def renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The state for another framework, where the background is the last class, not the first."""
    found = {}
    for key, value in state.items():
        own = next(name for name in names if key.startswith(f"{name}."))
        if own.endswith("cls_score"):
            value = value.roll(-1, 0)
        elif own.endswith("box_predictor.bbox_pred"):
            value = value[4:]
        found[names[own] + key.removeprefix(own)] = value
    return found


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
def test_copy_paste_is_that_of_mmdet(size: tuple[int, int]) -> None:
    """Objects of the other image, bright here, keep their place and their mask; mmdet pastes none, some or all."""
    need_mmdet()
    height, width = size

    def sample(value: float, corner: int, shape: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        masks = torch.zeros(1, *shape, dtype=torch.uint8)
        masks[:, corner : corner + 12, corner : corner + 12] = 1
        box = torch.tensor([[corner, corner, corner + 12, corner + 12]], dtype=torch.float32)
        image = torch.zeros(3, *shape) + value * masks
        return image, {"boxes": box, "labels": torch.tensor([round(value * 10)]), "masks": masks, "image_id": corner}

    with importable(Path(__file__).parents[1], "benchmarks", "detection"):
        module = import_module("benchmarks._finetune_copy_paste")
    pasting = module.CopyPastePasting([sample(0.9, 40, (64, 64))], 0, False)
    before, counts = np.random.get_state()[1].tolist(), []  # noqa: NPY002 - mmdet draws from it
    for _ in range(12):
        (image,), (target,) = pasting(*([own] for own in sample(0.3, 4, (height, width))))
        assert image.shape[1:] == target["masks"].shape[1:] == (height, width)
        counts.append(len(target["labels"]))
        assert target["labels"].tolist() == [3, 9][: counts[-1]]
        if counts[-1] == 2:
            bottom = min(52, height)  # cut off with the image that it is from
            assert target["boxes"][1].tolist() == [40, 40, 52, bottom]
            torch.testing.assert_close(image[:, target["masks"][1].bool()], torch.full((3, 12 * (bottom - 40)), 0.9))
    assert set(counts) == {1, 2}
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
