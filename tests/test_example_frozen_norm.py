"""BatchNorm that convolutions of the torchvision example compute: the same function, gradients, names and numbers."""

import copy
from pathlib import Path

import pytest
import torch
from example_modules import importable
from torch import nn
from torchvision.models import mobilenet_v2, resnet18
from torchvision.ops import FrozenBatchNorm2d

EXAMPLE = Path(__file__).parents[1] / "examples" / "torchvision"


@pytest.fixture(scope="module")
def freeze_batch_norm():
    with importable(EXAMPLE, "detection"):
        from detection.frozen_norm import freeze_batch_norm

        yield freeze_batch_norm


def plain(module):
    """The reference: every BatchNorm becomes torchvision's frozen one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            plain(child)


@pytest.fixture(params=[mobilenet_v2, resnet18], ids=["mobilenet_v2", "resnet18"])
def twins(request, freeze_batch_norm):
    """The same network with BatchNorm that is not at its start values, folded and frozen as torchvision does."""
    torch.manual_seed(0)
    network = request.param()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    folded, slow = copy.deepcopy(network), copy.deepcopy(network)
    freeze_batch_norm(folded)
    plain(slow)
    return folded.eval(), slow.eval()  # dropout off


def test_every_norm_is_folded_and_the_function_and_its_gradients_are_the_same(twins):
    folded, slow = twins
    assert not any(type(module) is FrozenBatchNorm2d for module in folded.modules())
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    for network in twins:
        network(images).square().mean().backward()
        network.of_images, images.grad = images.grad, None
    torch.testing.assert_close(folded(images), slow(images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(folded.of_images, slow.of_images, rtol=1e-3, atol=1e-3 * slow.of_images.abs().max())
    for (name, own), (_, other) in zip(folded.named_parameters(), slow.named_parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3 * other.grad.abs().max(), msg=name)


def test_it_is_the_network_that_it_was(twins):
    folded, slow = twins
    unfrozen = resnet18() if hasattr(slow, "fc") else mobilenet_v2()
    unfrozen.load_state_dict(slow.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(folded(images), unfrozen.eval()(images), rtol=1e-4, atol=1e-5)


def test_names_and_values_of_the_state_are_the_same(twins):
    folded, slow = (network.state_dict() for network in twins)
    assert list(folded) == list(slow)
    assert all(torch.equal(folded[name], slow[name]) for name in slow)


def test_a_copy_has_norms_of_its_own(twins):
    folded = twins[0]
    images = torch.rand(1, 3, 64, 64)
    before = folded(images)
    copied = copy.deepcopy(folded)
    for module in copied.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.bias.fill_(0.0)
    assert torch.equal(folded(images), before)
    assert not torch.allclose(copied(images), before)


def test_nothing_is_drawn(freeze_batch_norm):
    network = resnet18()
    state = torch.get_rng_state()
    freeze_batch_norm(network)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_norm_of_something_else_is_frozen_as_it_is(freeze_batch_norm):
    network = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 2, 1, bias=False),
        nn.ReLU(),
        nn.BatchNorm2d(2),
    )
    freeze_batch_norm(network)
    assert [type(network[place]) for place in (0, 2, 5)] == [FrozenBatchNorm2d] * 3
    assert type(network[3]) is nn.Conv2d
