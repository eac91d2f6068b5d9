"""The big.LITTLE image encoder: SAM's ViT in which only the most important tokens pay for the big blocks.

arXiv 2410.10267, applied to the image encoder of Segment Anything (arXiv 2304.02643). Its layers run in
`sam_bigltl.trunk`; here are what comes before them, what comes after, and the windows.

Shapes: B images, N = gh * gw tokens, C big width, C_E little width, K = round(keep_ratio * N).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from ..errors import InputError
from ..fast.native.ends import PackedNeck
from ..fast.native.ends import fits as neck_fits
from .calls import is_plain
from .kernels import Kernels, without_kernels
from .mobile_stem import MobileStem
from .routing import Geometry, Route, kept_for_training
from .stem import ConvStem, PatchProjection
from .trunk import Trunk, init_layers


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of an encoder.

    Attributes:
        img_size: side of the square input, pixels.
        patch_size: side of a token, pixels.
        dim, depth, num_heads: of the big path.
        mlp_ratio: hidden width over width, in both paths.
        out_chans: channels of the image embedding.
        window: side of the windows of the big path, tokens.
        global_layers: layers that attend to the whole image; each ends a stage.
        stem: channels of a convolutional stem at strides 2, 4, 8 and 16; "mobile" is the pretrained one of
            `sam_bigltl.mobile_stem`; None is SAM's patch projection.
        little_dim: width of the little path; 0 makes a dense model without router and E-blocks.
        route_every: layers that share one selection; None is one selection a stage. A group never spans two stages.
        little_stream: "per_group" projects the C-wide tokens into a new little stream at each selection, and tokens
            keep their C-wide state where they are not selected; "continuous" is the paper's Algorithm 1 with
            `route_every` 1: one little stream from the patch embedding to the end, and nothing else for the tokens
            that are not selected. Measured against each other in docs/study.md.
    """

    img_size: int
    dim: int
    depth: int
    num_heads: int
    global_layers: tuple[int, ...]
    window: int
    patch_size: int = 16
    mlp_ratio: float = 4.0
    out_chans: int = 256
    stem: tuple[int, ...] | Literal["mobile"] | None = None
    little_dim: int = 0
    route_every: int | None = None
    little_stream: Literal["per_group", "continuous"] = "per_group"

    @property
    def side(self) -> int:
        """Tokens a side."""
        return self.img_size // self.patch_size

    @property
    def little_window(self) -> int:
        """Side of the windows of the E-blocks: a divisor of the grid where there is one, since padding is work."""
        divisors = [window for window in (8, 7, 6, 5) if self.side % window == 0]  # torch 2.6 cannot trace next()
        return divisors[0] if divisors else 8

    @property
    def stages(self) -> list[range]:
        """Layers of each stage."""
        ends = sorted({*self.global_layers, self.depth - 1})
        starts = [0] + [end + 1 for end in ends[:-1]]
        return [range(start, end + 1) for start, end in zip(starts, ends)]

    @property
    def groups(self) -> list[tuple[int, range]]:
        """(stage, layers) of each selection."""
        groups = []
        for stage, layers in enumerate(self.stages):
            step = self.route_every or len(layers)
            groups += [(stage, layers[start : start + step]) for start in range(0, len(layers), step)]
        return groups


class BigLittleEncoder(Trunk):
    """Drop-in for `segment_anything`'s ImageEncoderViT, with its parameter names for everything big.

    `keep_ratio` is the run-time setting: a float in (0, 1] (the share of tokens on the big path), a sequence with one
    float a stage, or "auto" (each image takes the fewest tokens whose importance adds up to `auto_mass`).
    At 1.0 it computes exactly the dense ViT. `last_route` says what the last forward pass selected; where `taps` is a
    `Taps`, it is filled. `gradient_checkpointing` trades time for memory in training.
    """

    patch_embed: MobileStem | ConvStem | PatchProjection

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self._set_up(config)
        self.continuous = config.little_stream == "continuous"
        self.img_size = config.img_size
        self.patch_size = config.patch_size
        side, dim = config.side, config.dim
        if config.stem == "mobile":
            self.patch_embed = MobileStem(dim)
        elif config.stem:
            self.patch_embed = ConvStem(config.stem, dim)
        else:
            patch = (config.patch_size, config.patch_size)
            self.patch_embed = PatchProjection(kernel_size=patch, stride=patch, embed_dim=dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, dim))
        windows = [0 if layer in config.global_layers else config.window for layer in range(config.depth)]
        self._add_blocks(lambda layer: (windows[layer] or side, windows[layer]))
        self.neck = nn.Sequential(
            nn.Conv2d(dim, config.out_chans, kernel_size=1, bias=False),
            LayerNorm2d(config.out_chans),
            nn.Conv2d(config.out_chans, config.out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(config.out_chans),
        )
        self.kernels = Kernels()  # of the neck
        self._add_little_path()
        self._geometries: dict[tuple, Geometry] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: normalised images (B, 3, H, W), H and W multiples of the patch size and at most `img_size`. Smaller
                than `img_size` is the top left part of a full input.

        Returns:
            image embeddings (B, out_chans, gh, gw), in the dtype of `images` whatever the encoder computes in.
        """
        if not images.is_floating_point():
            raise InputError(f"the encoder takes normalised images, floating point numbers, not {images.dtype}")
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or max(height, width) > self.img_size:
            size = f"a multiple of {self.patch_size} up to {self.img_size} on each side"
            raise InputError(f"the encoder takes images of {size}, not {height} x {width}")
        return self._one_by_one(images, self._encode) if self.keep_ratio == "auto" else self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        return self.encode_tokens(self.embed_patches(images)).to(images.dtype)

    def embed_patches(self, images: Tensor) -> Tensor:
        """Patch and position embedding: (B, 3, H, W) -> (B, gh, gw, C)."""
        tokens = self.project_patches(images)
        gh, gw = tokens.shape[1:3]
        return tokens + self.pos_embed[:, :gh, :gw]

    def project_patches(self, images: Tensor) -> Tensor:
        """Patch embedding alone: (B, 3, H, W) -> (B, gh, gw, C)."""
        # C++ kernels take float32, whatever the weights are kept in. Not a layer's dtype: clients wrap layers.
        in_kernels = self.kernels_dtype and isinstance(self.patch_embed, (MobileStem, PatchProjection))
        return self.patch_embed(images.float().contiguous() if in_kernels else images.to(self.pos_embed.dtype))

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Everything after `embed_patches`: (B, gh, gw, C) -> (B, out_chans, gh, gw)."""
        embeddings, self.last_route = self.routed(tokens)
        return embeddings

    def routed(self, tokens: Tensor) -> tuple[Tensor, Route]:
        """`encode_tokens` and the route, which is not kept: what can be traced must have no side effects."""
        batch, dim = tokens.shape[0], tokens.shape[3]
        gh, gw = int(tokens.shape[1]), int(tokens.shape[2])  # torch.jit.trace makes tensors of shapes
        big = self._geometry((gh, gw), self.config.window, tokens.device)
        x = tokens.reshape(batch, gh * gw, dim).contiguous()  # a convolution leaves channels first
        x, route = self._run_layers(x, big, self._geometry((gh, gw), self.config.little_window, tokens.device))
        return self._neck(x.view(batch, gh, gw, dim)), Route((gh, gw), route)

    def _neck(self, x: Tensor) -> Tensor:
        """(B, gh, gw, C) -> (B, out_chans, gh, gw)"""
        if not self.kernels_dtype:
            return self.neck(x.permute(0, 3, 1, 2))
        plain = is_plain(self.neck, nn.Sequential) and neck_fits(self.neck)
        packed = self.kernels.around(self.neck, x, (nn.Conv2d, LayerNorm2d), PackedNeck) if plain else None
        if packed is None:
            return without_kernels(self.neck, lambda x, _: self.neck(x), x.permute(0, 3, 1, 2), None)
        return torch.stack([packed.embedding(tokens) for tokens in x])

    def _prepare(self) -> None:
        side = self.config.side
        for window in {self.config.window, self.config.little_window}:
            self._geometry((side, side), window, self.pos_embed.device)

    def _geometry(self, grid: tuple[int, int], window: int, device: torch.device) -> Geometry:
        key = (grid, window, device)
        if key in self._geometries:
            return self._geometries[key]
        geometry = kept_for_training(lambda: Geometry(grid, window or max(grid), device))
        if not torch.jit.is_tracing():  # a trace is checked by tracing again, with the same steps
            self._geometries[key] = geometry
        return geometry

    def _apply(self, fn, recurse=True):  # nn.Module's signature
        self._geometries.clear()  # index maps of another device
        return super()._apply(fn, recurse)


def init_weights(encoder: BigLittleEncoder) -> None:
    """Initialise an encoder that starts from nothing, in place (truncated normal 0.02 as in ViT, zero biases)."""
    init_layers(encoder)
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
