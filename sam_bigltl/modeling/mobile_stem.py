"""A pretrained patch embedding: EfficientNet-Lite0 up to stride 16, as plain convolutions.

Few photographs teach edges, textures and parts slowly; a network that saw ImageNet knows them. The layers are those of
"EfficientNet" (arXiv 1905.11946) in its Lite form (ReLU6, no squeeze-and-excitation), with the batch norms folded into
the convolutions. `sam_bigltl.training.pretrained` fills it from published weights; nothing but torch is needed to run
it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..fast.native.stem import PackedStem
from .kernels import Kernels, without_kernels

# Stages: blocks, kernel, stride of the first block, factor of expansion, output channels: EfficientNet-Lite0's seven.
STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
FIRST = 32  # channels of the first convolution
# Stages whose output reaches the tokens, and the cells a side that a token gathers there; 0 where a cell spans four
# tokens.
TAPS = {1: 4, 2: 2, 4: 1, 6: 0}
# The network was trained on (pixel - 127) / 128; Sam.preprocess gives (pixel - _MEAN) / _STD.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class SameConv(nn.Conv2d):
    """Convolution that pads as TensorFlow's "same": where padding is odd, more of it goes to the right and below."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, 0 if stride > 1 else kernel // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            (left, right), (top, bottom) = (self._padding(size) for size in (x.shape[3], x.shape[2]))
            x = F.pad(x, (left, right, top, bottom))
        return super().forward(x)

    def _padding(self, size: int) -> tuple[int, int]:
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expansion by a 1 x 1 convolution, a depthwise one, and a linear 1 x 1 one; the input is added where it fits."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = SameConv(in_channels, hidden, 1) if expansion > 1 else None
        self.depthwise = SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = SameConv(hidden, out_channels, 1)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class MobileStem(nn.Module):
    """Image (B, 3, 16 gh, 16 gw), as `Sam.preprocess` returns it -> tokens (B, gh, gw, dim).

    A token is the sum of linear maps of the features at strides 4 (4 x 4 cells), 8 (2 x 2 cells), 16 and 32
    (interpolated): detail for borders, and what the deepest layers know of whole objects.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.kernels = Kernels()
        self.first = SameConv(3, FIRST, 3, 2)
        stages, channels = [], FIRST
        for blocks, kernel, stride, expansion, out_channels in STAGES:
            layers = []
            for number in range(blocks):
                layers.append(InvertedResidual(channels, out_channels, kernel, stride if number == 0 else 1, expansion))
                channels = out_channels
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)
        self.taps = nn.ModuleDict(
            {
                str(stage): nn.Conv2d(STAGES[stage][-1], dim, side or 1, side or 1, bias=side == 1)
                for stage, side in TAPS.items()
            }
        )
        scale, shift = torch.tensor(_STD) / 128, (torch.tensor(_MEAN) - 127) / 128
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.kernels.dtype:
            return self._in_torch(x)
        packed = self.kernels.around(self, x, _LAYERS, PackedStem)
        if packed is None:
            return without_kernels(self, lambda x, _: self._in_torch(x), x, None)
        return torch.stack([packed.tokens(image) for image in x])

    def _in_torch(self, x: Tensor) -> Tensor:
        device = x.device.type
        grid = (x.shape[2] // 16, x.shape[3] // 16)
        # On CPUs autocast would convert every thin layer's input and weights: twice the time of float32 in training.
        with torch.autocast(device, enabled=device != "cpu" and torch.is_autocast_enabled(device)):
            x = (x * self.scale + self.shift).to(memory_format=torch.channels_last)
            x = F.relu6(self.first(x))
            tokens: Any = 0.0
            for number, stage in enumerate(self.stages):
                x = stage(x)
                if number in TAPS:
                    part = self.taps[str(number)](x)
                    if TAPS[number] == 0:
                        part = F.interpolate(part, scale_factor=2.0, mode="bilinear")[:, :, : grid[0], : grid[1]]
                    tokens = tokens + part
        return tokens.permute(0, 2, 3, 1)


_LAYERS = (SameConv, InvertedResidual, nn.Conv2d, nn.Sequential, nn.ModuleList, nn.ModuleDict)
