"""What comes before and after the blocks of an encoder, in the native kernels: SAM's patch projection and its neck."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from . import ops


class PackedProjection:
    """The weights of SAM's `PatchEmbed` in the layout of the kernels.

    Args:
        embed: the patch embedding.
        dtype: of the products, "float32" or "int16".
    """

    def __init__(self, embed: Any, dtype: str) -> None:
        self._side = embed.proj.kernel_size[0]
        self._projection = ops.pack(embed.proj.weight.flatten(1), embed.proj.bias, dtype)

    def tokens(self, image: Tensor) -> Tensor:
        """Image (3, H, W), float32 -> tokens (gh, gw, dim)."""
        side, (channels, height, width) = self._side, image.shape
        patches = image.reshape(channels, height // side, side, width // side, side).permute(1, 3, 0, 2, 4)
        grid = patches.shape[:2]
        return ops.linear(self._projection, patches.flatten(0, 1).flatten(1)).view(*grid, -1)


class PackedNeck:
    """The weights of SAM's neck in the layout of the kernels: 1 x 1 and 3 x 3 convolutions, each with a LayerNorm2d.

    Args:
        neck: the four layers.
        dtype: of the products, "float32" or "int16".
    """

    def __init__(self, neck: Any, dtype: str) -> None:
        first, norm, second, last_norm = neck
        self._first = ops.pack(first.weight.flatten(1), first.bias, dtype)
        # One for each of the kernel's rows, whose three pixels lie together.
        lines = second.weight.detach().float().permute(2, 0, 3, 1).flatten(2)  # (3, out, 3 * in)
        self._lines = [ops.pack(line, second.bias if index == 0 else None, dtype) for index, line in enumerate(lines)]
        self._norms = [
            (len(layer.weight), layer.weight.detach().float(), layer.bias.detach().float(), layer.eps)
            for layer in (norm, last_norm)
        ]

    def embedding(self, tokens: Tensor) -> Tensor:
        """Tokens (gh, gw, C), float32 and contiguous -> (out, gh, gw)."""
        (gh, gw), (first, last) = tokens.shape[:2], self._norms
        x = ops.linear(self._first, tokens.flatten(0, 1))
        x = F.layer_norm(x, first[:1], *first[1:]).view(gh, gw, -1)
        # With a pixel of padding on every side, a pixel and its two neighbours are one row of 3 * channels, which
        # begins where the one before has its second pixel. Rows across two lines of pixels are computed for nothing.
        width, channels = gw + 2, x.shape[-1]
        x = F.pad(x, (0, 0, 1, 1, 1, 1))
        rows, memory = gh * width - 2, x.new_empty(gh * width, self._lines[0].outputs)
        out = memory[:rows]
        for index, line in enumerate(self._lines):
            neighbours = x.as_strided((rows, 3 * channels), (channels, 1), index * width * channels)
            ops.linear(line, neighbours, residual=out if index else None, out=out)
        x = memory.view(gh, width, -1)[:, :gw]
        return F.layer_norm(x, last[:1], *last[1:]).permute(2, 0, 1).contiguous()
