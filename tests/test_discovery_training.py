"""Steps of learning to cut out: which weights they change, and what is read from whose layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from discovery_samples import TINY, disks
from torch import Tensor, nn

from terse_aug.discovery import DiscoverySettings
from terse_aug.discovery.generator import draw_codes, draw_perturbation
from terse_aug.discovery.health import CODE_AT_RANDOM
from terse_aug.discovery.learn import generator_health
from terse_aug.discovery.training import CHUNK, DiscoveryTraining
from terse_aug.utils.random import generator_for

pytest.importorskip("segmentation_models_pytorch")
IMAGES = torch.from_numpy(np.stack(disks(32))).permute(0, 3, 1, 2)
FAST = dataclasses.replace(TINY, learning_rate=0.02)


def training_of(settings: DiscoverySettings = TINY, steps: int = 0) -> DiscoveryTraining:
    training = DiscoveryTraining(IMAGES, settings)
    for _ in range(steps):
        training.step()
    return training


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: own.detach().clone() for name, own in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, own in module.named_parameters() if not torch.equal(own, before[name])}


@contextmanager
def inputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a network is given."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()


def test_a_step_changes_all_weights_of_its_networks_and_no_others() -> None:
    training = training_of()
    generating = {"generator": training.generator, "discriminator": training.discriminator}
    generating |= {"mask_classifier": training.mask_classifier, "average": training.average}
    segmenting = {"segmenter": training.segmenter}
    for own, others in ((generating, segmenting), (segmenting, generating)):
        while training.done < (3 if own is segmenting else 0):
            training.step()
        before = {name: weights(module) for name, module in (own | others).items()}
        training.step()
        for name, module in own.items():
            # The hinge loss is indifferent to an offset of all realness while none is beyond -1 to 1.
            assert changed(module, before[name]) | {"realness.3.bias"} >= before[name].keys(), name
        assert not any(changed(module, before[name]) for name, module in others.items())


def test_the_average_follows_the_weights_by_its_decay() -> None:
    training = training_of(dataclasses.replace(TINY, ema=0.15))
    expected = weights(training.generator)
    for done in range(3):
        training.step()
        decay = min(0.15, (1 + done) / (10 + done))
        expected = {
            name: decay * expected[name] + (1 - decay) * own for name, own in weights(training.generator).items()
        }
    assert training.settings.generator_steps == training.done
    for name, own in weights(training.average).items():
        torch.testing.assert_close(own, expected[name])
        assert not torch.equal(own, weights(training.generator)[name])


@pytest.mark.parametrize("resumed", [False, True])
def test_batch_statistics_of_the_average_are_those_of_its_own_weights(resumed: bool) -> None:
    settings = dataclasses.replace(FAST, generator_steps=8)
    training = training_of(settings, 2)
    training.sample(1, "any")
    for _ in range(6):
        training.step()
    if resumed:
        state, training = training.state(), training_of(settings)
        training.sample(1, "any")
        training.load_state(state)
    training.sample(1, "any")
    linear, norm = training.average.background.features.start[:2]
    variance = linear.weight.square().sum(1)  # z is standard normal
    assert float((norm.running_var / variance).log().abs().mean()) < 0.1
    z, category = draw_codes(TINY, 512, generator_for(9))
    with torch.no_grad():
        found = training.average(z, category)
        expected = training.average.train()(z, category)
    for own, other in zip(found[:4], expected[:4], strict=True):
        assert float((own - other).abs().mean()) < 0.1 * float(other.std())


def test_the_loss_of_the_generator_is_the_weighted_sum_of_its_parts() -> None:
    settings = dataclasses.replace(
        FAST, gamma_mi=0.7, gamma_bg=1.3, mask_area_weight=2.5, min_mask_area=0.9, mask_binary_weight=1.7
    )
    training = training_of(settings, 5)
    metrics = training.step()
    parts = {"realism": 1.0, "code_of_composite": 0.7, "code_of_mask": 0.7, "background": 1.3}
    parts |= {"mask_area": 2.5, "mask_softness": 1.7}
    assert all(abs(metrics[name]) > 1e-4 for name in parts)
    assert metrics["generator"] == pytest.approx(
        sum(weight * metrics[name] for name, weight in parts.items()), rel=1e-5
    )


@pytest.mark.parametrize("setting", ["gamma_bg", "mask_area_weight", "mask_binary_weight"])
def test_the_generator_descends_what_a_weight_is_given_to(setting: str) -> None:
    name = {"gamma_bg": "background", "mask_area_weight": "mask_area", "mask_binary_weight": "mask_softness"}[setting]
    settings = dataclasses.replace(TINY, gamma_mi=0, gamma_bg=0, min_mask_area=0.9, learning_rate=0.01)
    training = training_of(dataclasses.replace(settings, generator_steps=15, **{setting: 1e3}))
    if setting == "gamma_bg":
        training.done = 17  # round 2
        training.chosen.head.weight.mul_(100)  # a network that was not trained hardly sees any image
    values = [training.step()[name] for _ in range(15)]
    assert np.mean(values[-3:]) < 0.9 * np.mean(values[:3])


def test_the_discriminator_judges_real_and_generated_images() -> None:
    """The hinge loss is linear where no realness is beyond -1 to 1, as at the start."""
    metrics = training_of().step()
    assert abs(metrics["realness_generated"]) > 1e-3
    linear = 2 - metrics["realness_real"] + metrics["realness_generated"]
    assert metrics["discriminator"] == pytest.approx(linear, rel=1e-5)


def test_health_and_training_read_masks_with_the_same_noise() -> None:
    training = training_of(dataclasses.replace(TINY, mask_noise=50.0))
    with inputs_of(training.mask_classifier) as in_training:
        training.step()
    with inputs_of(training.mask_classifier) as in_health:
        health = generator_health(training)
    for seen in (in_training, in_health):
        assert 45 < float(torch.cat(seen).std()) < 55
    assert CODE_AT_RANDOM in health.collapsed
    assert generator_health(training) == health


def test_many_masks_are_read_in_chunks() -> None:
    training = training_of()
    with inputs_of(training.mask_classifier) as read, inputs_of(training.average) as generated:
        generator_health(training)
    assert sum(map(len, read)) == 512
    assert max(map(len, read + generated)) <= CHUNK


def test_samples_do_not_depend_on_their_chunks() -> None:
    training = training_of(steps=1)
    layers, categories = training.sample(CHUNK + 8, "x")
    draw = generator_for(training.seed, "x")
    z, category = draw_codes(TINY, CHUNK + 8, draw)
    with torch.no_grad():
        whole = training.average(z, category, draw_perturbation(TINY, CHUNK + 8, draw))
    assert torch.equal(categories, category)
    for own, other in zip(layers, whole, strict=True):
        torch.testing.assert_close(own, other)
