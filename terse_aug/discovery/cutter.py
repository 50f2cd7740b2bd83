"""A learned way to cut out foregrounds, on disk without pickle."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terse_aug.discovery.segmentation import SegmentationNetwork
from terse_aug.discovery.weights_file import load_weights_file, save_weights_file

_KIND, _VERSION = "terse-aug cutter", 1
_CONTEXT = 1.3
"""Side of the square around a box that is segmented, in larger sides of the box."""
_MAX_ASPECT = 8
_MAX_SIDE = 4096
"""Of such a square in px; of a larger one, about a long box, every so many rows and columns are used."""


class Cutter:
    """Cuts out foregrounds: ``cutter(image, box) -> alpha`` of one object, ``cutter.cut(image)`` of a photograph.

    Args:
        network: the segmentation network; it is set to evaluation.
        size: side in px of the images that it was trained on; images are segmented at about this size.
        collapsed: names of the health checks that its training failed.
        source: how it was learned: plain values for JSON.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        size: int,
        collapsed: Sequence[str] = (),
        source: Mapping[str, Any] | None = None,
    ) -> None:
        self._network = network.eval().requires_grad_(False).cpu()
        self.size = size
        self.collapsed = tuple(collapsed)
        self.source = dict(source or {})
        self.fingerprint = self._digest()

    @property
    def __name__(self) -> str:
        """For reports of a bank."""
        return f"cutter {self.fingerprint[:12]}"

    def __call__(self, image: NDArray[np.uint8], box: tuple[float, float, float, float]) -> NDArray[np.uint8]:
        """Cut out the object in a box.

        A square around the box is segmented; beyond the edges of the image its border pixels are repeated.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.
            box: x, y, width, height in px.

        Returns:
            Alpha uint8 ``[H, W]``, 0 outside the box.
        """
        x, y, width, height = box
        x0, y0, x1, y1 = math.floor(x), math.floor(y), math.ceil(x + width), math.ceil(y + height)
        side = max(round(max(width, height) * _CONTEXT), x1 - x0, y1 - y0, 2)
        left = min(max(round(x + width / 2 - side / 2), x1 - side), x0)
        top = min(max(round(y + height / 2 - side / 2), y1 - side), y0)
        used = min(side, _MAX_SIDE)
        places = (2 * np.arange(used) + 1) * side // (2 * used)
        rows, columns = (
            np.clip(start + places, 0, end - 1) for start, end in zip((top, left), image.shape, strict=False)
        )
        square = self.cut(image[rows[:, None], columns[None, :]])
        alpha = np.zeros(image.shape[:2], np.uint8)
        x0, x1 = (min(max(value, 0), image.shape[1]) for value in (x0, x1))
        y0, y1 = (min(max(value, 0), image.shape[0]) for value in (y0, y1))
        down, across = (np.arange(*ends) * used // side for ends in ((y0 - top, y1 - top), (x0 - left, x1 - left)))
        alpha[y0:y1, x0:x1] = square[down[:, None], across[None, :]]
        return alpha

    def cut(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cut out what is in the foreground of a whole photograph.

        Args:
            image: uint8 ``[H, W, 3]``, RGB.

        Returns:
            Alpha uint8 ``[H, W]``.
        """
        height, width = image.shape[:2]
        scale = self.size / min(height, width)
        rows, columns = (self._rounded(side * scale) for side in (height, width))
        small = cv2.resize(image, (columns, rows), interpolation=_interpolation(scale))
        logits = self.logits(torch.from_numpy(small).permute(2, 0, 1)[None])[0, 0]
        alpha = cv2.resize(logits.sigmoid().numpy(), (width, height), interpolation=_interpolation(1 / scale))
        return np.rint(alpha * 255).clip(0, 255).astype(np.uint8)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Logits ``[B, 1, h, w]`` of images uint8 ``[B, 3, h, w]``, sides multiples of the network's stride.

        It is computed in one thread: more round differently, and a bank would depend on the number of processes.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            result: Tensor = self._network(images.float() / 127.5 - 1)
        finally:
            torch.set_num_threads(threads)
        return result

    def save(self, path: str | Path) -> None:
        """Write it to a file, whole or not at all."""
        save_weights_file(path, _KIND, _VERSION, {**self._settings(), "weights": self._network.state_dict()})

    @classmethod
    def load(cls, path: str | Path) -> Cutter:
        """Read a cutter; nothing is unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            MissingPackageError: segmentation-models-pytorch is not installed.
            ValueError: it is no cutter, or a damaged one; the message names the file.
        """
        content = load_weights_file(path, _KIND, _VERSION)
        try:
            network = SegmentationNetwork(int(content["width"]))
            network.load_state_dict(content["weights"])
            return cls(network, int(content["size"]), content["collapsed"], content["source"])
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{path}: a damaged cutter ({type(error).__name__}: {reason})") from error

    def _settings(self) -> dict[str, Any]:
        width = self._network.head.in_channels
        return {"width": width, "size": self.size, "collapsed": list(self.collapsed), "source": self.source}

    def _digest(self) -> str:
        named = {name: value for name, value in self._settings().items() if name != "source"}
        digest = hashlib.blake2b(json.dumps(named, sort_keys=True).encode(), digest_size=16)
        for name, value in self._network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _rounded(self, side: float) -> int:
        stride = self._network.STRIDE
        return int(min(max(round(side / stride), 1), _MAX_ASPECT * max(self.size // stride, 1)) * stride)


def _interpolation(scale: float) -> int:
    return cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
