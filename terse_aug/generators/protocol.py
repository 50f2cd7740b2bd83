"""What is asked of a generator of images, and one sample of it.

Shape letters: B samples, C channels, H and W of the image, h and w of a feature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terse_aug.generators.latents import SampleKey, Truncation

_ATTRIBUTES = ("name", "class_names", "fingerprint")
_METHODS = ("latent", "render")


class Rendered(NamedTuple):
    """Images float ``[B, 3, H, W]``, RGB in [0, 1], and the features they were made of, each ``[B, C, h, w]``."""

    images: Tensor
    features: Sequence[Tensor]


class FeatureGenerator(Protocol):
    """A generator of images that shows its features.

    Both methods are deterministic: the same arguments give the same result, on each call and in each process.

    Attributes:
        name: short, of the kind of generator.
        class_names: name of each class.
        fingerprint: text that differs between generators of other weights.
    """

    name: str
    class_names: Sequence[str]
    fingerprint: str

    def latent(self, key: SampleKey) -> Tensor:
        """The latent of a sample, of any one shape, on the CPU; :func:`~terse_aug.generators.draw_noise` helps."""

    def render(self, latents: Tensor, labels: Tensor, truncation: Truncation) -> Rendered:
        """Images and features of latents ``[B, ...]`` and class numbers int64 ``[B]``, on any device."""


class Sample(NamedTuple):
    """A sample as rendered: uint8 ``[H, W, 3]``, RGB, and its features, each ``[1, C, h, w]``."""

    image: NDArray[np.uint8]
    features: tuple[Tensor, ...]


def check_generator(generator: Any, where: str) -> FeatureGenerator:
    """The generator, if it has all that :class:`FeatureGenerator` asks for.

    Args:
        generator: whatever the user gives.
        where: what it is, for the error.

    Raises:
        ValueError: an attribute or a method is missing; it is named.
    """
    for name in (*_ATTRIBUTES, *_METHODS):
        found = getattr(generator, name, None)
        if found is None or (name in _METHODS and not callable(found)):
            kind = "a method" if name in _METHODS else "an attribute"
            raise ValueError(
                f"{where}: expected a FeatureGenerator, but {type(generator).__name__} has no {name}, {kind}"
            )
    names = generator.class_names
    if isinstance(names, str) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where}: expected class_names as a list of one or more texts, got {names!r}")
    checked: FeatureGenerator = generator
    return checked


def sample_latent(generator: FeatureGenerator, key: SampleKey) -> Tensor:
    """The latent of a sample, or ``ValueError`` if there is no such class or number, or it is not finite."""
    check_key(generator, key)
    latent = generator.latent(key)
    if latent.is_floating_point() and not latent.isfinite().all():
        raise ValueError(f"{generator.name}: the latent of class {key.label}, number {key.number} is not finite")
    return latent


def check_key(generator: FeatureGenerator, key: SampleKey) -> None:
    """Raise ``ValueError`` if there is no such class, number or seed."""
    if not 0 <= key.label < len(generator.class_names):
        raise ValueError(f"{generator.name}: expected a class below {len(generator.class_names)}, got {key.label}")
    if key.number < 0 or key.seed < 0:
        raise ValueError(f"{generator.name}: expected a number and a seed from 0 on, got {key.number}, {key.seed}")


@torch.no_grad()
def render_sample(generator: FeatureGenerator, latent: Tensor, key: SampleKey) -> Sample:
    """Render one sample; alone, so that it does not depend on others in a batch.

    Raises:
        ValueError: the image or a feature is not 4-D, has another number of images, or is not finite.
    """
    rendered = generator.render(latent[None], torch.tensor([key.label]), key.truncation)
    where = f"{generator.name}, class {key.label}, number {key.number}"
    images, features = rendered
    _check("the image", images, where)
    if images.shape[1] != 3:
        raise ValueError(f"{where}: expected images of 3 channels, RGB, got {images.shape[1]}")
    if not features:
        raise ValueError(f"{where}: expected at least one feature, got none")
    for number, feature in enumerate(features):
        _check(f"feature {number}", feature, where)
    image = (images[0].float().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
    return Sample(np.ascontiguousarray(image.cpu().numpy()), tuple(feature.detach().float() for feature in features))


def _check(what: str, tensor: Tensor, where: str) -> None:
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise ValueError(f"{where}: expected {what} as 4-D [1, C, h, w], got {list(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{where}: {what} has NaN or infinite values")


def recorded_outputs(model: nn.Module, names: Collection[str], forward: Callable[[], Tensor]) -> Rendered:
    """Run a model and record the outputs of some of its modules by hooks.

    Args:
        model: the model.
        names: of modules, as in ``model.named_modules()``.
        forward: runs it; returns the images.
    """
    recorded: list[Tensor] = []
    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name in names:
            handle = modules[name].register_forward_hook(lambda _module, _inputs, output: recorded.append(output))
            hooks.callback(handle.remove)
        images = forward()
    return Rendered(images, recorded)


def last_of_each_size(features: Sequence[Tensor], smallest: int) -> list[Tensor]:
    """Of consecutive features of one size the last; those with sides below ``smallest`` px are left out."""
    following = [*features[1:], None]
    last = [
        own for own, after in zip(features, following, strict=True) if after is None or own.shape[2:] != after.shape[2:]
    ]
    return [feature for feature in last if min(feature.shape[2:]) >= smallest]


def weights_digest(model: nn.Module, *settings: object) -> str:
    """Hex digest of a model's weights, buffers and settings."""
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=16)
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def short_name(generator: FeatureGenerator) -> str:
    """Kind and weights of a generator, for the sources of foregrounds."""
    return f"{generator.name} {generator.fingerprint[:8]}"
