"""Labelled samples from a generator: latents, the branch, its filters, and what is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_generator import ToyGenerator, annotated_samples

from terse_aug.cli import main
from terse_aug.generators import (
    BranchEnsemble,
    BranchSettings,
    Rendered,
    SampleKey,
    Truncation,
    draw_noise,
    jensen_shannon,
    learn_branch,
    load_generator,
    uncertainty,
)
from terse_aug.generators.branch import FeatureSize, feature_groups
from terse_aug.generators.filtering import highest, mode_mask
from terse_aug.generators.protocol import check_generator, render_sample, sample_latent

SMALL = BranchSettings(width=16, heads=2, steps=60, learning_rate=3e-3)


def weights(branch: BranchEnsemble) -> list[torch.Tensor]:
    return [value for head in branch.heads for value in head.state_dict().values()]


@pytest.mark.parametrize("variant", ["supplement", "release"])
def test_the_branch_learns_masks_from_five_samples(variant: str) -> None:
    generator = ToyGenerator()
    settings = BranchSettings(variant=variant, width=16, heads=2, steps=60, learning_rate=3e-3)
    branch = learn_branch(generator, annotated_samples(generator), settings)
    overlaps = []
    for number in range(100, 130):
        key = SampleKey(number % 2, number)
        found = mode_mask(branch.probabilities(render_sample(generator, generator.latent(key), key), key.label), 5)
        true = generator.mask(key)
        overlaps.append((found & true).sum() / (found | true).sum())
    assert np.mean(overlaps) > 0.9


@pytest.mark.parametrize("stop_at", [30, 60, 75])
def test_a_stopped_run_resumes_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    monkeypatch.setattr("terse_aug.generators.training._SAVE_INTERVAL", 15)
    generator, partial = ToyGenerator(), tmp_path / "partial"
    settings = BranchSettings(width=8, heads=2, steps=50)
    whole = learn_branch(generator, annotated_samples(generator), settings)

    def stop(done: int, total: int) -> None:
        if done == stop_at + 4:  # after the last save
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=f"{stop_at} of 100 steps are kept"):
        learn_branch(generator, annotated_samples(generator), settings, partial, stop)
    steps: list[int] = []
    resumed = learn_branch(
        generator, annotated_samples(generator), settings, partial, lambda done, _: steps.append(done)
    )
    assert steps == list(range(stop_at + 1, 101))
    assert not partial.exists()
    assert all(map(torch.equal, weights(whole), weights(resumed)))
    assert whole.fingerprint == resumed.fingerprint
    first, second = (head.levels.heads[0].weight for head in whole.heads)
    assert (first - second).abs().mean() > 0.01  # heads that start alike differ by rounding only


def test_an_unfinished_run_of_other_settings_or_samples_is_refused(tmp_path: Path) -> None:
    generator, partial = ToyGenerator(), tmp_path / "partial"
    settings = BranchSettings(width=8, heads=1, steps=300)

    def stop(done: int, total: int) -> None:
        if done == 251:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn_branch(generator, annotated_samples(generator), settings, partial, stop)
    for samples, own in (
        (annotated_samples(generator), BranchSettings(width=8, heads=1, steps=301)),
        (annotated_samples(generator, 4), settings),
    ):
        with pytest.raises(ValueError, match="partial keeps an unfinished run of other"):
            learn_branch(generator, samples, own, partial)
    torch.save({"run": Path}, partial)  # a class: unpickling it would run code
    with pytest.raises(ValueError, match="partial: expected"):
        learn_branch(generator, annotated_samples(generator), settings, partial)


def test_latents_are_a_function_of_the_key_and_truncated_as_named() -> None:
    keys = [SampleKey(0, 0), SampleKey(0, 1), SampleKey(1, 0), SampleKey(0, 0, seed=1)]
    drawn = [draw_noise(key, 8) for key in keys]
    assert torch.equal(drawn[0], draw_noise(keys[0], 8))
    assert len({tuple(noise.tolist()) for noise in drawn}) == 4
    scaled = draw_noise(SampleKey(0, 0, 0, Truncation(0.5)), 20_000)
    truncated = draw_noise(SampleKey(0, 0, 0, Truncation(0.5, "truncated-normal")), 20_000)
    assert scaled.std().item() == pytest.approx(0.5, abs=0.02)
    assert scaled.abs().max() > 1.3
    assert truncated.abs().max() <= 1
    assert truncated.std().item() == pytest.approx(0.5 * 0.88, abs=0.02)  # deviation of a normal truncated at 2
    for wrong in (Truncation(0), Truncation(1.1, "truncated-normal"), Truncation(1, "clipped")):
        with pytest.raises(ValueError, match="truncation"):
            wrong.checked()


def test_the_source_of_a_sample_says_what_it_is_made_of() -> None:
    key = SampleKey(3, 17, 5, Truncation(0.7, "truncated-normal"))
    assert SampleKey.from_source(key.source("biggan 01234567", "class 1, number 2, seed 9: crane")) == key
    with pytest.raises(ValueError, match="source of a generated foreground"):
        SampleKey.from_source("a.png#2")


def test_uncertainty_is_the_jensen_shannon_divergence_of_the_heads() -> None:
    agree = torch.full((4, 1, 2, 2), 0.3)
    assert jensen_shannon(agree).max() < 1e-6
    split = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    assert jensen_shannon(split).numpy() == pytest.approx(np.log(2))
    one_pixel = torch.zeros(2, 1, 2, 5)
    one_pixel[0, 0, 0, 0] = 1
    assert uncertainty(one_pixel).item() == pytest.approx(np.log(2) / 10)
    assert uncertainty(one_pixel, pixels=0.1).item() == pytest.approx(np.log(2))


def test_masks_are_the_mode_of_the_heads_without_small_regions() -> None:
    heads = torch.zeros(3, 8, 8)
    heads[:2, 1:5, 1:5] = 0.9
    heads[:, 7, 7] = 1
    heads[2, 0] = 1
    expected = np.zeros((8, 8), bool)
    expected[1:5, 1:5] = True
    assert (mode_mask(heads, 2) == expected).all()
    assert not mode_mask(heads, 17).any()


def test_the_highest_fraction() -> None:
    assert highest([0.1, 0.9, 0.5, 0.7], 0.5) == {1, 3}
    assert highest([0.1, 0.9], 0) == set()
    assert len(highest(range(50), 0.1)) == 5
    assert highest([0.1, 0.9], 0.9) == {1}  # never all
    assert highest([0.5], 0.99) == highest([], 0.5) == set()


def test_groups_of_features_are_the_papers_for_biggan_512() -> None:
    sides = [8, 16, 32, 64, 64, 128, 256, 512]
    groups = feature_groups([FeatureSize(1, side, side) for side in sides], 3)
    assert [[sides[number] for number in group] for group in groups] == [[8, 16, 32], [64, 64, 128], [256, 512]]
    assert feature_groups([FeatureSize(1, 8, 8)] * 2, 3) == [[0, 1]]


def with_image(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Rendered], Rendered]:
    return lambda made: Rendered(change(made.images), made.features)


def with_feature(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Rendered], Rendered]:
    return lambda made: Rendered(made.images, [made.features[0], change(made.features[1]), made.features[2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_image(lambda image: image * torch.nan), "toy, class 1, number 4: the image has NaN"),
        (with_image(lambda image: image[:, :1]), "3 channels"),
        (with_feature(lambda feature: feature / 0), "feature 1 has NaN or infinite"),
        (with_feature(lambda feature: feature.mean((2, 3))), r"feature 1 as 4-D \[1, C, h, w\], got \[1, 10\]"),
        (lambda made: Rendered(made.images, []), "at least one feature"),
    ],
)
def test_results_of_a_generator_that_cannot_be_used_are_refused(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Rendered], Rendered], message: str
) -> None:
    generator, key = ToyGenerator(), SampleKey(1, 4)
    made = generator.render(generator.latent(key)[None], torch.tensor([1]), key.truncation)
    monkeypatch.setattr(generator, "render", lambda *_: change(made))
    with pytest.raises(ValueError, match=message):
        render_sample(generator, generator.latent(key), key)


def test_a_generator_that_lacks_something_is_refused() -> None:
    class WithoutLatent:
        name, class_names, fingerprint = "mine", ("a",), "0"
        render = ToyGenerator.render

    with pytest.raises(ValueError, match=r"my:factory: .*WithoutLatent has no latent, a method"):
        check_generator(WithoutLatent(), "my:factory")
    with pytest.raises(ValueError, match="class_names"):
        check_generator(ToyGenerator(class_names=()), "my:factory")
    for spec, message in (
        ("biggan", "MODULE:FUNCTION"),
        ("no_such_module:make", "no_such_module"),
        ("toy_generator:no_such", "no_such"),
        ("toy_generator:SIDE", "expected a function"),
    ):
        with pytest.raises(ValueError, match=message):
            load_generator(spec)
    assert load_generator("toy_generator:make_toy").name == "toy"


@pytest.mark.parametrize("code", ["1 / 0", "def make(): return 1 / 0"])
def test_code_of_the_users_that_fails_is_reported_in_one_line(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "user_code.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "user_code", raising=False)
    assert main(["learn", "samples", "--generator", "user_code:make", "--out", str(tmp_path / "samples")]) == 2
    assert capsys.readouterr().err == "error: generator user_code:make: ZeroDivisionError: division by zero\n"


@pytest.mark.parametrize("key", [SampleKey(2, 0), SampleKey(-1, 0), SampleKey(0, -1), SampleKey(0, 0, -1)])
def test_samples_that_do_not_exist_are_refused(key: SampleKey) -> None:
    with pytest.raises(ValueError, match=r"toy: expected a (class below 2|number and a seed from 0 on)"):
        sample_latent(ToyGenerator(), key)


class LevelGenerator(ToyGenerator):
    """Its first feature has a channel that hardly differs within and between samples, only by its level."""

    level = 1.0

    def render(self, latents: torch.Tensor, labels: torch.Tensor, truncation: Truncation) -> Rendered:
        made = super().render(latents, labels, truncation)
        channel = self.level + 1e-5 * made.features[0].mean(1, keepdim=True)
        return Rendered(made.images, [torch.cat([made.features[0], channel], 1), *made.features[1:]])


def test_a_channel_that_is_constant_in_the_annotated_samples_is_left_out() -> None:
    generator = LevelGenerator()
    branch = learn_branch(generator, annotated_samples(generator), SMALL)
    key = SampleKey(1, 20)
    before = branch.probabilities(render_sample(generator, generator.latent(key), key), 1)
    generator.level = 2.0
    after = branch.probabilities(render_sample(generator, generator.latent(key), key), 1)
    assert torch.equal(before, after)
    assert after.isfinite().all()


def test_features_of_other_sizes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, key = ToyGenerator(), SampleKey(0, 9)
    samples = annotated_samples(generator)
    branch = learn_branch(generator, samples, BranchSettings(width=8, heads=1, steps=1))
    render = generator.render
    for change in (lambda own: own[:2], lambda own: [*own[:2], own[2][..., :16, :16]], lambda own: own[::-1]):

        def changed(*arguments: Any, change: Callable[[Any], Any] = change) -> Rendered:
            made = render(*arguments)
            return Rendered(made.images, change(made.features))

        monkeypatch.setattr(generator, "render", changed)
        with pytest.raises(ValueError, match="learned on features of other sizes"):
            branch.probabilities(render_sample(generator, generator.latent(key), key), 0)
    first = [render, *[changed] * 4]
    monkeypatch.setattr(generator, "render", lambda *arguments: (first.pop(0) if first else changed)(*arguments))
    with pytest.raises(ValueError, match="features of annotated samples are of different sizes"):
        learn_branch(generator, samples, SMALL)


def test_fewer_than_three_samples_are_too_few() -> None:
    generator = ToyGenerator()
    with pytest.raises(ValueError, match="at least 3 annotated samples, got 2"):
        learn_branch(generator, annotated_samples(generator, 2), SMALL)
