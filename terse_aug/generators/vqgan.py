"""The decoder of a VQGAN through diffusers' VQModel, from a local folder."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from terse_aug.generators.latents import SampleKey, Truncation
from terse_aug.generators.local_files import class_names_of
from terse_aug.generators.protocol import Rendered, recorded_outputs, weights_digest
from terse_aug.utils.packages import optional_module
from terse_aug.utils.random import generator_for

_CODES = "codes.npz"


class VQGANGenerator:
    """The decoder of a VQGAN; what samples its codes, such as a transformer, is the user's.

    Features are those of the decoder: of its first convolution, its middle and each of its upsampling blocks. The
    number of a sample is a place in a random order of its class's codes, which the seed chooses.

    Args:
        folder: as written by ``VQModel.save_pretrained``, and ``codes.npz``: ``codes`` int ``[N, h, w]``, the code
            maps that were sampled, and ``labels`` int ``[N]``, their classes from 0 on. ``class_names.txt`` (a name a
            line) is optional.
        device: to render on.

    Raises:
        FileNotFoundError: a file is missing.
        MissingPackageError: diffusers is not installed.
        ValueError: a file is damaged, weights are missing, or a code is not in the codebook.
    """

    name = "vqgan"

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        package = optional_module("diffusers", "generators")
        root = Path(folder)
        self._codes, self._labels = _read_codes(root / _CODES)
        try:
            model, loaded = package.VQModel.from_pretrained(
                str(root), local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{root}: diffusers cannot read a VQModel in safetensors there ({error})") from error
        if missing := sorted(loaded["missing_keys"]):  # diffusers leaves them as they are
            raise ValueError(f"{root}: {len(missing)} weights are missing, such as {missing[0]}")
        codebook = model.quantize.n_e
        if self._codes.min() < 0 or self._codes.max() >= codebook:
            raise ValueError(f"{root / _CODES}: expected codes from 0 to {codebook - 1}")
        self._model, self._device = model.eval().requires_grad_(False).to(device), device
        blocks = [f"decoder.up_blocks.{number}" for number in range(len(model.decoder.up_blocks))]
        self._recorded = ["decoder.conv_in", "decoder.mid_block", *blocks]
        self.class_names: Sequence[str] = class_names_of(root, int(self._labels.max()) + 1)
        self.fingerprint = weights_digest(model, sha256(self._codes.tobytes() + self._labels.tobytes()).hexdigest())

    def latent(self, key: SampleKey) -> Tensor:
        """Codes int64 ``[h, w]``, or ``ValueError`` if the class has too few, or truncation is wanted."""
        if key.truncation.value != 1:
            raise ValueError("vqgan: codes are given, so they cannot be truncated; use a truncation of 1")
        own = np.flatnonzero(self._labels == key.label)
        if key.number >= len(own):
            raise ValueError(
                f"vqgan: {_CODES} has {len(own)} code maps of class {key.label}, so there is no number {key.number}"
            )
        order = torch.randperm(len(own), generator=generator_for(key.seed, "vqgan codes", key.label))
        return torch.from_numpy(self._codes[own[int(order[key.number])]].astype(np.int64))

    def render(self, latents: Tensor, labels: Tensor, truncation: Truncation) -> Rendered:
        """See :class:`FeatureGenerator`."""
        codes = latents.to(self._device)
        size = (*codes.shape, self._model.quantize.vq_embed_dim)

        def forward() -> Tensor:
            embedded = self._model.quantize.get_codebook_entry(codes.flatten(), size)
            images: Tensor = self._model.decode(embedded, force_not_quantize=True).sample / 2 + 0.5
            return images

        return recorded_outputs(self._model, self._recorded, forward)


def _read_codes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}; put the codes there that a transformer or other prior has sampled: "
            "np.savez('codes.npz', codes=[N, h, w], labels=[N])"
        )
    try:
        with np.load(path, allow_pickle=False) as content:
            codes, labels = content["codes"], content["labels"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"{path}: expected arrays codes and labels ({error})") from error
    whole = np.issubdtype(codes.dtype, np.integer) and np.issubdtype(labels.dtype, np.integer)
    if not whole or codes.ndim != 3 or labels.shape != codes.shape[:1] or not len(codes) or labels.min() < 0:
        raise ValueError(
            f"{path}: expected whole numbers, codes [N, h, w] and labels [N] from 0 on, got {codes.dtype} "
            f"{list(codes.shape)} and {labels.dtype} {list(labels.shape)}"
        )
    return codes, labels
