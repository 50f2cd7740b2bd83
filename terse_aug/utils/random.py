"""Randomness as a function of keys, such as (seed, rank, worker, call); the global random state is left alone."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(*keys: int | str) -> int:
    """Mix any number of keys into one seed.

    Args:
        keys: for example ``(seed, rank, worker, call)``; the order matters.

    Returns:
        An integer in ``[0, 2**63)``, the same on every machine and in every Python process.
    """
    # Integers of all types are the same key; numpy's have another repr.
    plain = tuple(key if isinstance(key, str) else operator.index(key) for key in keys)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*keys: int | str) -> torch.Generator:
    """A generator seeded from the keys (see :func:`derived_seed`).

    It is on the CPU whatever the device of the images, so that CPU and CUDA runs draw the same numbers.
    """
    return torch.Generator().manual_seed(derived_seed(*keys))


@contextmanager
def isolated_global_rng(seed: int, devices: list[torch.device] | None = None) -> Iterator[None]:
    """Run code that draws from the global generators (layer initialisers, a detector's samplers) reproducibly.

    Args:
        seed: of the global generators inside the block.
        devices: devices besides the CPU whose generators the block uses. All generators are restored afterwards.
    """
    cuda = [device for device in devices or [] if device.type == "cuda"]
    with torch.random.fork_rng(devices=cuda):
        # Not torch.manual_seed, which also seeds CUDA devices that are not restored.
        torch.default_generator.manual_seed(seed)
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
