"""The synthesizer network: background and foreground in, a distribution over transforms out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from terse_aug.data.foreground_cache import THUMBNAIL_SIDE
from terse_aug.transforms import PARAMETERS

_MAX_LOCATION = 3.0
_MAX_LOG_SPREAD = 1.5


class Synthesizer(nn.Module):
    """Location and spread of a logit-logistic distribution for every transform parameter.

    After TERSE (CVPR 2019, section 3.2): low-level layers shared by background and foreground, a branch of its
    own for each, concatenation, convolution and a fully connected regressor. Here the low-level layers are a
    small network trained from scratch, because thumbnails of 32 pixels are what is affordable online; GroupNorm
    replaces BatchNorm, because ranks of a distributed run have to stay equal and batches are small; and there
    are two outputs per parameter, location and spread, because a deterministic synthesizer collapses.

    Args:
        dropout: fraction of the regressor's features that are dropped in learning proposals.
        width: channels of the low-level layers.
        columns: P.
    """

    def __init__(self, dropout: float = 0.1, width: int = 16, columns: int = len(PARAMETERS)) -> None:
        super().__init__()
        self.dropout = dropout
        self.low_level = nn.Sequential(_block(4, width), _block(width, 2 * width))
        self.background_branch = _block(2 * width, 2 * width)
        self.foreground_branch = _block(2 * width, 2 * width)
        side = THUMBNAIL_SIDE // 8
        self.merge = nn.Sequential(nn.Conv2d(4 * width, 2 * width, 3, padding=1), nn.ReLU())
        self.hidden = nn.Linear(2 * width * side * side + 2, 128)
        self.regressor = nn.Linear(128, 2 * columns)
        nn.init.zeros_(self.regressor.weight)
        nn.init.zeros_(self.regressor.bias)

    def forward(
        self,
        backgrounds: Tensor,
        image_of: Tensor,
        foregrounds: Tensor,
        base_size: Tensor,
        dropout_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Distribution of the transform of each paste.

        Args:
            backgrounds: float ``[B, 4, THUMBNAIL_SIDE, THUMBNAIL_SIDE]``.
            image_of: int64 ``[M]``.
            foregrounds: float ``[M, 4, THUMBNAIL_SIDE, THUMBNAIL_SIDE]``.
            base_size: float ``[M, 2]``.
            dropout_mask: ``[M, 128]``, factors for the hidden features, or ``None``.

        Returns:
            ``location`` and ``log_spread``, float ``[M, P]``, bounded; both zero at the start, which is exactly
            the uniform distribution.
        """
        dtype = self.regressor.weight.dtype
        behind = self.background_branch(self.low_level(backgrounds.to(dtype) - 0.5))[image_of]
        front = self.foreground_branch(self.low_level(foregrounds.to(dtype) - 0.5))
        merged = self.merge(torch.cat([behind, front], 1)).flatten(1)
        hidden = torch.relu(self.hidden(torch.cat([merged, base_size.to(dtype)], 1)))
        if dropout_mask is not None:
            hidden = hidden * dropout_mask.to(dtype)
        location, log_spread = self.regressor(hidden).float().chunk(2, 1)
        return _bounded(location, _MAX_LOCATION), _bounded(log_spread, _MAX_LOG_SPREAD)


def _bounded(value: Tensor, limit: float) -> Tensor:
    """Identity near zero, never beyond the limit: the distribution keeps a density everywhere."""
    return limit * torch.tanh(value / limit)


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    """Convolution, normalisation, ReLU, and half the resolution."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.GroupNorm(4, channels_out),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
