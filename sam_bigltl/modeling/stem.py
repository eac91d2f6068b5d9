"""Patch embeddings: SAM's projection, and a convolutional one for models trained on few images.

Convolutions at strides 2 to 16 learn edges and textures from far fewer photographs than one 16 x 16 projection does
(Xiao et al., "Early Convolutions Help Transformers See Better", arXiv 2106.14881).
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling.image_encoder import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from ..fast.native.ends import PackedProjection
from .kernels import Kernels, without_kernels


class PatchProjection(PatchEmbed):
    """`segment_anything`'s PatchEmbed; in bfloat16 on CPUs as one matrix product.

    oneDNN's bfloat16 convolution of such patches takes 10, 14 and 125 ms at 384, 768 and 1280 channels (1024 px, 2
    cores), the product 4, 8 and 13.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.kernels = Kernels()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, gh, gw, dim)"""
        if not self.kernels.dtype:
            return self._in_torch(x)
        packed = self.kernels.around(self, x, (nn.Conv2d,), PackedProjection)
        if packed is None:
            return without_kernels(self, lambda x, _: self._in_torch(x), x, None)
        return torch.stack([packed.tokens(image) for image in x])

    def _in_torch(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16 or x.device.type != "cpu":
            return super().forward(x)
        (batch, channels, height, width), side = x.shape, self.proj.stride[0]
        patches = x.view(batch, channels, height // side, side, width // side, side).permute(0, 2, 4, 1, 3, 5)
        return F.linear(patches.flatten(3), self.proj.weight.flatten(1), self.proj.bias)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that, once it does not learn, uses and keeps its running statistics in training as well.

    `model.train()` must not change what a frozen encoder computes, as it does not change SAM's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class ConvNormAct(nn.Sequential):
    """3 x 3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
            FrozenBatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualConv(nn.Module):
    """x + two 3 x 3 convolutions of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm = FrozenBatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.conv2(self.conv1(x)))


class ConvStem(nn.Module):
    """Image (B, 3, 16 gh, 16 gw) -> tokens (B, gh, gw, dim), as `segment_anything`'s PatchEmbed returns them.

    Args:
        channels: widths at strides 2, 4, 8 and 16.
        dim: width of the tokens.
    """

    def __init__(self, channels: tuple[int, ...], dim: int) -> None:
        super().__init__()
        c2, c4, c8, c16 = channels
        self.layers = nn.Sequential(
            ConvNormAct(3, c2, 2),
            ConvNormAct(c2, c4, 2),
            ConvNormAct(c4, c8, 2),
            ResidualConv(c8),
            ConvNormAct(c8, c16, 2),
        )
        self.proj = nn.Conv2d(c16, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.layers(x)).permute(0, 2, 3, 1)
