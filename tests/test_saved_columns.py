"""A policy proposes the columns that are switched on, and its state is loaded for the same ones only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import every_image, make_bank, make_batch, policy_with
from torch import Tensor

from terse_aug import PARAMETERS, ForegroundBank, PasteConfig, Photometric, Terse
from terse_aug.policies import Critic, Policy, PolicyContext, Proposal, make_policy
from terse_aug.preview.saved_policy import SavedPolicy
from terse_aug.utils.warnings import TerseWarning

HUE, BRIGHTNESS = Photometric(hue=(-9, 9)), Photometric(brightness=(0.5, 1.5))
LEARNING = ("critic", "adversarial", "paper")


@pytest.fixture
def bank(tmp_path: Path) -> ForegroundBank:
    return make_bank(tmp_path)


def made(bank: ForegroundBank, policy: str, photometric: Photometric | None = None, **settings: Any) -> Terse:
    paste = every_image(photometric=photometric or Photometric(), **settings)
    return Terse(bank, policy_with(policy, update_interval=1), paste=paste)


def without_names(terse: Terse) -> dict[str, Tensor]:
    """The state as it was before names of columns were saved."""
    return {name: value for name, value in terse.state_dict().items() if not name.endswith("columns")}


@pytest.mark.parametrize("policy", LEARNING)
def test_the_state_of_a_policy_with_other_columns_is_refused_by_their_names(
    bank: ForegroundBank, tmp_path: Path, policy: str
) -> None:
    bright, hued, plain = (made(bank, policy, own) for own in (BRIGHTNESS, HUE, None))
    text = "the policy's state was saved with brightness and was saved without hue, but transforms have the columns "
    with pytest.raises(ValueError, match=text + r"rotation, .*, hue here: give PasteConfig .* or leave the state out"):
        hued.load_state_dict(bright.state_dict())
    with pytest.raises(ValueError, match="the policy's state was saved without hue, but"):
        hued.load_state_dict(plain.state_dict())
    with pytest.raises(ValueError, match="the policy's state was saved with hue, but"):
        plain.load_state_dict(hued.state_dict())
    blended = made(bank, policy, HUE, blends=("alpha", "none"))
    with pytest.raises(ValueError, match="saved without blend, but"):
        blended.load_state_dict(hued.state_dict())
    torch.save(bright.state_dict(), tmp_path / "bright.pt")
    saved = SavedPolicy.read(tmp_path / "bright.pt")
    with pytest.raises(ValueError, match=r"bright\.pt: the policy's state was saved with brightness and"):
        saved.load_into(hued.policy)
    saved.load_into(made(bank, policy, BRIGHTNESS).policy)


@pytest.mark.parametrize("policy", LEARNING)
def test_a_state_without_names_is_that_of_the_affine_columns(bank: ForegroundBank, tmp_path: Path, policy: str) -> None:
    old, plain, hued = made(bank, policy), made(bank, policy), made(bank, policy, HUE)
    with torch.no_grad():
        next(old.policy.parameters()).add_(1)
    plain.load_state_dict(without_names(old))
    assert torch.equal(next(plain.policy.parameters()), next(old.policy.parameters()))
    with pytest.raises(ValueError, match="the policy's state was saved without hue, but"):
        hued.load_state_dict(without_names(old))
    torch.save(without_names(old), tmp_path / "old.pt")
    SavedPolicy.read(tmp_path / "old.pt").load_into(plain.policy)
    with pytest.raises(ValueError, match=r"old\.pt: the policy's state was saved without hue, but"):
        SavedPolicy.read(tmp_path / "old.pt").load_into(hued.policy)


def test_diversity_is_kept_by_name(bank: ForegroundBank) -> None:
    """A column that is new has none yet; the others keep theirs, without a warning."""
    old, new = made(bank, "random", BRIGHTNESS), made(bank, "random", HUE)
    for seed in range(4):
        old(*make_batch(seed))
    before = old.counters.std_ratios()
    new.load_state_dict(old.state_dict())
    after = new.counters.std_ratios()
    assert before.pop("brightness") != pytest.approx(before["translate_y"])
    assert after == before
    assert new.metrics()["diversity"] == pytest.approx(sum(before.values()) / len(PARAMETERS))
    new(*make_batch(4))
    assert list(new.counters.std_ratios()) == [*PARAMETERS, "hue"]
    plain, older = made(bank, "random"), made(bank, "random")
    older(*make_batch())
    plain.load_state_dict(without_names(older))
    assert plain.counters.std_ratios() == older.counters.std_ratios()
    with pytest.warns(TerseWarning, match=r"missing \['transform_moments'\]"):
        plain.load_state_dict(without_names(old))


class Narrow(Policy):
    """A policy of a user who knows the affine columns alone."""

    def propose(self, context: PolicyContext, generator: torch.Generator, learning: bool) -> Proposal:
        count = len(context.image_of)
        return Proposal(torch.full((count, len(PARAMETERS)), 0.5), torch.zeros(count))


class NarrowInWorkers(Narrow):
    in_workers = True


def test_a_proposal_with_too_few_columns_is_refused(bank: ForegroundBank) -> None:
    Terse(bank, Narrow(), paste=every_image())(*make_batch())
    terse = Terse(bank, Narrow(), paste=every_image(photometric=HUE))
    images, targets = make_batch()
    text = r"policy: Narrow.* proposes transforms of shape \[\d, 7\], expected \[pastes, 8\], .*, hue: let propose\(\)"
    with pytest.raises(ValueError, match=text):
        terse(images, targets)
    with pytest.raises(ValueError, match=text):
        terse.compose(images, targets)
    composer = Terse(bank, NarrowInWorkers(), paste=every_image(photometric=HUE)).composer()
    with pytest.raises(ValueError, match=text):
        composer(images[0], targets[0], 0)


def test_a_parameter_that_is_not_drawn_cannot_be_fixed(bank: ForegroundBank) -> None:
    settings = Critic(fixed_parameters=("scale", "hue", "noise"))
    with pytest.raises(ValueError, match=r"fixed_parameters: noise: not drawn .* which have rotation, .*, hue; leave"):
        Terse(bank, settings, paste=PasteConfig(photometric=HUE))
    make_policy(Critic(fixed_parameters=("scale", "hue")), 0, columns=PasteConfig(photometric=HUE).columns)
