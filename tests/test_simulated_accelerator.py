"""The simulated accelerator refuses to mix devices, counts, and computes what the CPU does."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("simulated_accelerator", reason="this torch has no devices made in Python", exc_type=ImportError)
from simulated_accelerator import DEVICE, SimulatedEvent, SimulatedTensor, counted


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, device=DEVICE)


@pytest.mark.parametrize(
    "mix",
    [
        lambda: ones(3) + torch.ones(3),
        lambda: torch.ones(3).mul_(ones(3)),
        lambda: torch.ones(()).add_(ones()),
        lambda: torch.cat([ones(3), torch.ones(3)]),
        lambda: torch.stack([ones(), torch.ones(())]),
        lambda: torch.where(ones(3) > 0, torch.ones(3), ones(3)),
        lambda: torch.ones(3)[torch.zeros(1, dtype=torch.long, device=DEVICE)],
        lambda: torch.add(ones(3), ones(3), out=torch.ones(3)),
        lambda: nn.functional.linear(ones(2, 3), torch.ones(4, 3)),
        lambda: torch.rand(3, device=DEVICE, generator=torch.Generator()),
        lambda: ones(3).uniform_(generator=torch.Generator()),
    ],
)
def test_tensors_of_two_devices_are_not_mixed(mix: Callable[[], Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"same device|device type for generator"):
        mix()


@pytest.mark.parametrize(
    ("run", "expected"),
    [  # launches, synchronisations, copies to the device, blocking ones, reads that do not wait
        (lambda x: x.add(1).mul_(torch.tensor(2.0)), (2, 0, 0, 0, 0)),
        (lambda x: [part.detach() for part in x.view(3, 2).T[None, :1].expand(4, 1, 3).unbind()], (0, 0, 0, 0, 0)),
        (lambda x: x.clone().unsqueeze_(0).transpose_(1, 2) + ones(1, 3, 2), (3, 0, 0, 0, 0)),
        (lambda x: torch.stack([x.new_zeros(2, 3), torch.zeros(2, 3, device=DEVICE)]), (3, 0, 0, 0, 0)),
        (lambda x: torch.empty(3, device=DEVICE), (0, 0, 0, 0, 0)),
        (lambda x: x[:0] + 1, (0, 0, 0, 0, 0)),
        (lambda x: torch._foreach_mul([x, x, x], 2.0), (1, 0, 0, 0, 0)),
        (lambda x: x.cpu(), (0, 1, 0, 0, 0)),
        (lambda x: x.tolist(), (0, 1, 0, 0, 0)),
        (lambda x: float(x[0, 0]) + x[0, 1].item(), (0, 2, 0, 0, 0)),
        (lambda x: bool((x > 0).all()), (2, 1, 0, 0, 0)),
        (lambda x: torch.equal(x, x), (1, 1, 0, 0, 0)),
        (lambda x: x.nonzero(), (1, 1, 0, 0, 0)),
        (lambda x: x[x > 0], (2, 1, 0, 0, 0)),
        (lambda x: x.unique(), (1, 1, 0, 0, 0)),
        (lambda x: x.__setitem__(x > 0, 2.0), (2, 0, 0, 0, 0)),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2], device=DEVICE), 0), (2, 1, 1, 1, 0)),
        (lambda x: x.repeat_interleave(torch.tensor([1, 2], device=DEVICE), 0, output_size=3), (2, 0, 1, 1, 0)),
        (lambda x: torch.zeros(2, 3).copy_(x), (0, 1, 0, 0, 0)),
        (lambda x: torch.zeros(2, 3).copy_(x, non_blocking=True), (0, 1, 0, 0, 0)),
        (lambda x: torch.zeros(2, 3).pin_memory().copy_(x, non_blocking=True), (0, 0, 0, 0, 1)),
        (lambda x: x.to("cpu", non_blocking=True), (0, 0, 0, 0, 1)),
        (lambda x: x.new_tensor([1.0]), (0, 0, 1, 1, 0)),
        (lambda x: torch.as_tensor([1, 2], device=DEVICE), (0, 0, 1, 1, 0)),
        (lambda x: torch.zeros(3).pin_memory().to(DEVICE, non_blocking=True), (0, 0, 1, 0, 0)),
        (lambda x: torch.zeros(3).to(DEVICE, non_blocking=True), (0, 0, 1, 1, 0)),
        (lambda x: x[torch.tensor([1])], (1, 0, 1, 1, 0)),
        (lambda x: x[[1, 0]], (1, 0, 1, 1, 0)),
    ],
)
def test_what_is_counted(run: Callable[[Tensor], Any], expected: tuple[int, ...]) -> None:
    x = ones(2, 3)
    with counted() as counts:
        run(x)
    found = (counts.launches, counts.synchronisations, counts.copies, counts.blocking_copies, counts.reads)
    assert found == expected
    assert sum(counts.by_op.values()) == counts.launches


@pytest.mark.parametrize("delay", [0, 2])
def test_values_that_nobody_waits_for_arrive_with_an_event(delay: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedEvent, "delay", delay)
    early, numbers = ones(3).to("cpu", non_blocking=True), ones(3).long().to("cpu", non_blocking=True)
    event = torch.Event(DEVICE)
    event.record()
    late = ones(3).to("cpu", non_blocking=True)
    for _ in range(delay):
        assert not event.query()
    assert early.isnan().all()
    assert (numbers > 1).all()
    assert event.query()
    assert early.tolist() == numbers.tolist() == [1, 1, 1]
    assert late.isnan().all()
    ones(1).item()
    assert late.tolist() == [1, 1, 1]


def test_a_network_trains_as_on_the_cpu() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        on_cpu = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        batches = torch.rand(3, 2, 3, 8, 8)
    networks = [on_cpu, copy.deepcopy(on_cpu)]
    parameters = list(networks[1].parameters())
    optimizers = [torch.optim.Adam(network.parameters(), 1e-2) for network in networks]
    networks[1].to(DEVICE)
    assert all(own is before for own, before in zip(networks[1].parameters(), parameters, strict=True))
    for batch in batches:
        for network, optimizer, images in zip(networks, optimizers, (batch, batch.to(DEVICE)), strict=True):
            optimizer.zero_grad()
            grid = nn.functional.affine_grid(images.new_tensor([[[1.0, 0, 0.1], [0, 1, 0]]] * 2), [2, 3, 8, 8], False)
            network(nn.functional.grid_sample(images, grid, align_corners=False)).square().mean().backward()
            optimizer.step()
    file = io.BytesIO()
    torch.save(networks[1].state_dict(), file)
    file.seek(0)
    assert all(isinstance(value, SimulatedTensor) for value in networks[1].state_dict().values())
    loaded = copy.deepcopy(networks[1])
    loaded.load_state_dict(torch.load(file, weights_only=False))
    for own, other in zip(loaded.cpu().state_dict().values(), on_cpu.state_dict().values(), strict=True):
        torch.testing.assert_close(own, other)


def test_writing_to_a_view_is_differentiated() -> None:
    leaf = ones(4).requires_grad_()
    values = leaf * 2
    values[1:3].mul_(3)
    values[torch.tensor([0])] = 5 * leaf[3:]
    values.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0, 6, 6, 7]
    leaf.data = ones(2) * 7
    assert (leaf + 1).tolist() == [8, 8]
