"""What the frameworks' adapters share: sampled foregrounds of a batch, policies as objects, settings that are off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_batch
from torch import Tensor, nn

from terse_aug import ForegroundBank, ForegroundLoader, PasteConfig, Robustness, Terse
from terse_aug.integration import TerseSettings, TrainingHook, common_foregrounds
from terse_aug.models import BaseAdapter
from terse_aug.policies import Critic, make_policy

EVERY_IMAGE = PasteConfig(paste_probability=1.0)


class Brightness(BaseAdapter):
    """A model whose loss is an image's mean; it records the type of its numbers under autocast."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(1, 1))
        self.first_label, self.label_limit = 0, None
        self.dtypes: list[torch.dtype] = []

    def losses(self, images: Any, targets: Any) -> Tensor:
        means = torch.stack([image.mean() for image in images])[:, None]
        out: Tensor = self.model(means)
        self.dtypes.append(out.dtype)
        return out.float().sum()

    def object_scores(self, images: Any, targets: Any) -> list[Tensor]:
        return [torch.ones(len(target["boxes"])) for target in targets]


def started(bank: ForegroundBank, model: BaseAdapter, **settings: Any) -> TrainingHook:
    own = TerseSettings(paste=EVERY_IMAGE, **settings)
    hook = TrainingHook(own, input_format="RGB", seed=0, log_period=0, image_period=0, close_fraction=0)
    hook.start(bank, model, torch.device("cpu"), seed=0, bgr=False)
    return hook


def batch_of_bytes() -> tuple[list[Tensor], Any]:
    images, targets = make_batch()
    return [image * 255 for image in images], targets


def test_a_batch_in_which_some_images_lack_sampled_foregrounds_is_pasted_on_from_the_bank(
    tiny_bank: ForegroundBank,
) -> None:
    loader = ForegroundLoader(tiny_bank, paste=EVERY_IMAGE)
    images, targets = batch_of_bytes()
    whole = [loader() for _ in images]
    assert common_foregrounds(iter(whole)) == whole
    for lacking in range(len(images)):
        mixed = [None if number == lacking else own for number, own in enumerate(whole)]
        assert common_foregrounds(iter(mixed)) is None
        hook = started(tiny_bank, Brightness())
        hook.paste_on(images, targets, common_foregrounds(mixed), mixed_precision=False)
        assert all(hook.terse.pastes)


@pytest.mark.parametrize("settings", ["random", "adversarial", Critic(foreground_candidates=3, mix_classes=True)])
def test_a_policy_object_may_be_given_to_the_loader_of_the_workers(tiny_bank: ForegroundBank, settings: Any) -> None:
    policy = make_policy(settings, seed=0)
    from_object = TerseSettings(policy, paste=EVERY_IMAGE).foreground_loader(tiny_bank, seed=1)
    from_settings = TerseSettings(settings, paste=EVERY_IMAGE).foreground_loader(tiny_bank, seed=1)
    images, targets = make_batch()
    sampled = [from_object() for _ in images]
    assert [own.objects for own in sampled] == [from_settings().objects for _ in images]
    assert all(own.foreground_candidates == policy.foreground_candidates for own in sampled)
    terse = Terse(tiny_bank, policy, paste=EVERY_IMAGE)
    terse(images, targets, sampled)
    assert all(terse.pastes)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("mixed_precision", [True, False])
def test_gradient_steps_of_robustness_have_the_precision_of_the_training(
    tiny_bank: ForegroundBank, mixed_precision: bool, dtype: torch.dtype | None
) -> None:
    """Without a type the device's default counts, on the CPU bfloat16."""
    model = Brightness()
    hook = started(tiny_bank, model, robustness=Robustness())
    hook.paste_on(*batch_of_bytes(), None, mixed_precision=mixed_precision, dtype=dtype)
    assert set(model.dtypes) == {torch.bfloat16 if mixed_precision else torch.float32}


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "critik"},
        {"paste": {"objects": (5, 1)}},
        {"sampler": "often"},
        {"backgrounds": {"folder": "x"}},
        {"backgrounds": {"source": "nowhere", "probability": 2.0}},
        {"distractors": {"count": (1, 2)}},
        {"distractors": {"bank": "nowhere.bank", "count": (5, 1)}},
        {"robustness": {"steps": 0}},
    ],
)
def test_settings_are_checked_without_opening_files(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))[:6] + "|objects|probability|count|steps"):
        TerseSettings(**settings, open_files=False)
    missing = {"backgrounds": {"source": str(tmp_path / "no")}, "distractors": {"bank": str(tmp_path / "no.bank")}}
    TerseSettings(**missing, open_files=False)
    for name, value in missing.items():
        with pytest.raises((ValueError, OSError)):
            TerseSettings(**{name: value})
