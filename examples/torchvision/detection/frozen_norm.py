"""Frozen BatchNorm, folded into the convolution before it.

A frozen BatchNorm multiplies and shifts each channel. Multiplying the convolution's weights instead, and giving it the
shift as its bias, is the same function with the same gradients, without two more passes over every feature map. Under
autocast the maps then stay in 16 bits, where torchvision's frozen BatchNorm would make them 32 again: faster, and
with other rounding. Parameters and state dicts are those of torchvision's ``FrozenBatchNorm2d``.
"""

from typing import TypeVar

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

Frozen = TypeVar("Frozen", bound=FrozenBatchNorm2d)


class FoldedNorm(FrozenBatchNorm2d):
    """Statistics and affine map of a BatchNorm that the convolution before it computes."""

    def affine(self) -> tuple[Tensor, Tensor]:
        """Factor and shift ``[C]`` of each channel."""
        factor = self.weight * (self.running_var + self.eps).rsqrt()
        return factor, self.bias - self.running_mean * factor

    def forward(self, features: Tensor) -> Tensor:
        """The features unchanged: the convolution has applied the norm."""
        return features


class FoldingConv2d(nn.Conv2d):
    """A convolution without bias that computes the BatchNorm after it as well."""

    norm: FoldedNorm

    def forward(self, features: Tensor) -> Tensor:
        """See ``nn.Conv2d``."""
        factor, shift = self.norm.affine()
        return self._conv_forward(features, self.weight * factor[:, None, None, None], shift)


def freeze_batch_norm(module: nn.Module) -> None:
    """Freeze every BatchNorm in a module, in place; one that follows a convolution without bias is folded into it.

    "Follows" is the order in which a module's children were assigned, which in torchvision's backbones is the order in
    which they are called.
    """
    children = list(module.named_children())
    for (name_before, before), (name, child) in zip([("", None), *children], children, strict=False):
        if not isinstance(child, nn.BatchNorm2d):
            freeze_batch_norm(child)
        elif isinstance(before, nn.Conv2d) and before.bias is None and before.out_channels == child.num_features:
            norm = _frozen(child, FoldedNorm)
            setattr(module, name_before, _folding(before, norm))
            setattr(module, name, norm)
        else:
            setattr(module, name, _frozen(child, FrozenBatchNorm2d))


def _frozen(norm: nn.BatchNorm2d, kind: type[Frozen]) -> Frozen:
    frozen = kind(norm.num_features, norm.eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen


def _folding(conv: nn.Conv2d, norm: FoldedNorm) -> FoldingConv2d:
    folding = nn.utils.skip_init(
        FoldingConv2d,
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        padding_mode=conv.padding_mode,
        bias=False,
    )
    folding.weight = conv.weight
    # Not a submodule, or a state dict would have it twice.
    object.__setattr__(folding, "norm", norm)
    return folding
