"""The big.LITTLE image encoder: SAM's ViT in which only the most important tokens pay for the big blocks.

arXiv 2410.10267, applied to the image encoder of Segment Anything (arXiv 2304.02643). The layers are grouped; each
group starts by projecting the C-wide tokens to the little width, selects K tokens from that little stream, runs its
P-blocks on them and its E-blocks on all tokens, and ends by writing both back to C-wide tokens.

Shapes: B images, N = gh * gw tokens, C big width, C_E little width, K = round(keep_ratio * N).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .blocks import EBlock, PBlock
from .errors import InputError
from .memory import keep_freed_memory
from .native import build
from .routing import Geometry, Route, RouteGroup, Router, Selection, straight_through_gate, top_tokens
from .stem import ConvStem, PatchProjection

KeepRatio = float | Sequence[float] | str


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
        stem: channels of a convolutional stem at strides 2, 4, 8 and 16; None is SAM's patch projection.
        little_dim: width of the little path; 0 makes a dense model without router and E-blocks.
        route_every: layers that share one selection; None is one selection a stage. A group never spans two stages.
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
    stem: tuple[int, int, int, int] | None = None
    little_dim: int = 0
    route_every: int | None = None

    @property
    def side(self) -> int:
        """Tokens a side."""
        return self.img_size // self.patch_size

    @property
    def little_heads(self) -> int:
        """Heads of the E-blocks: of 64 channels as in SAM where that divides the width, else of 32 or 16, else one."""
        return next((self.little_dim // size for size in (64, 32, 16) if self.little_dim % size == 0), 1)

    @property
    def little_window(self) -> int:
        """Side of the windows of the E-blocks: a divisor of the grid where there is one, since padding is work."""
        return next((window for window in (8, 7, 6, 5) if self.side % window == 0), 8)

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


@dataclass
class Taps:
    """What a forward pass leaves for distillation in the `taps` of an encoder, by layer.

    Attributes:
        layers: C-wide tokens (B, N, C) after a layer: after every layer that ran on all tokens, else after the last of
            those that shared a selection.
        little: after the last layer that shared a selection, the little path's estimate of these tokens (B, N, C) and
            the router's scores (B, N).
    """

    layers: dict[int, Tensor] = field(default_factory=dict)
    little: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Transition(nn.Module):
    """What one group of layers adds to the blocks: into the little stream, the router, and back to C-wide tokens."""

    def __init__(self, dim: int, little_dim: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, little_dim)
        self.router = Router(little_dim)
        self.up = nn.Linear(little_dim, dim)


class BigLittleEncoder(nn.Module):
    """Drop-in for `segment_anything`'s ImageEncoderViT, with its parameter names for everything big.

    `keep_ratio` is the run-time setting: a float in (0, 1] (the share of tokens on the big path), a sequence with one
    float a stage, or "auto" (each image takes the fewest tokens whose importance adds up to `auto_mass`).
    At 1.0 it computes exactly the dense ViT. `last_route` says what the last forward pass selected; where `taps` is a
    `Taps`, it is filled. `gradient_checkpointing` trades time for memory in training.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.img_size = config.img_size
        self.patch_size = config.patch_size
        side, dim, little = config.side, config.dim, config.little_dim
        if config.stem:
            self.patch_embed = ConvStem(config.stem, dim)
        else:
            patch = (config.patch_size, config.patch_size)
            self.patch_embed = PatchProjection(kernel_size=patch, stride=patch, embed_dim=dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, dim))
        self.blocks = nn.ModuleList()
        for layer in range(config.depth):
            window = 0 if layer in config.global_layers else config.window
            self.blocks.append(PBlock(dim, config.num_heads, config.mlp_ratio, window or side, window, little))
        self.neck = nn.Sequential(
            nn.Conv2d(dim, config.out_chans, kernel_size=1, bias=False),
            LayerNorm2d(config.out_chans),
            nn.Conv2d(config.out_chans, config.out_chans, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(config.out_chans),
        )
        if little:
            self.little_blocks = nn.ModuleList(
                EBlock(little, config.little_heads, config.mlp_ratio) for _ in range(config.depth)
            )
            self.transitions = nn.ModuleList(Transition(dim, little) for _ in config.groups)
        self.auto_mass = 0.9
        self.last_route: Route | None = None
        self.taps: Taps | None = None
        self.gradient_checkpointing = False
        self._keep_ratio: KeepRatio = 1.0
        self._geometries: dict[tuple, Geometry] = {}

    @property
    def is_dense(self) -> bool:
        """Whether the model has no little path."""
        return self.config.little_dim == 0

    @property
    def keep_ratio(self) -> KeepRatio:
        """Share of the tokens on the big path: float, tuple with one float a stage, or "auto"."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: KeepRatio) -> None:
        self._keep_ratio = self._checked(value)

    def optimize(self, dtype: str = "bfloat16", compile: bool = False, native: bool = False) -> BigLittleEncoder:
        """Make inference faster, in place, with the same calls after it; returns the encoder.

        The whole process keeps its freed memory from then on (`sam_bigltl.memory`).

        Args:
            dtype: "bfloat16", "int8" (linear layers; CPU only, cannot be undone) or "float32".
            compile: let `torch.compile` generate the kernels, one graph for each shape of input and each `keep_ratio` at
                its first call, which takes minutes on a CPU; one that had its turn never compiles again. "auto" stays
                as it is. Not for int8.
            native: run attention and rounding in this project's C++ kernels (`sam_bigltl.native`), for bfloat16 and int8
                on CPUs with AVX512-BF16. They are compiled here and now if they were not before: a second or two.

        Raises:
            InputError: a dtype that there is not, or what cannot run on this machine.
        """
        from .precision import set_precision  # which imports this module

        if compile and dtype == "int8":
            raise InputError("int8 layers cannot be compiled: choose dtype='bfloat16' or compile=False")
        if native:
            if dtype == "float32" or self.pos_embed.device.type != "cpu":
                raise InputError(
                    "native kernels compute in bfloat16 and int8 on the CPU: choose one of them (--dtype) or leave native out"
                )
            build.load()
        set_precision(self, dtype)
        for module in self.modules():
            if hasattr(module, "native"):
                module.native = native
        keep_freed_memory()
        if compile:
            # The limit counts the graphs of all encoders together, and what is beyond it would run uncompiled in silence.
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
            for window in {
                self.config.window,
                self.config.little_window,
            }:  # made during a call, they would cost a graph
                self._geometry((self.config.side, self.config.side), window, self.pos_embed.device)
            self.compile(dynamic=False)
        return self

    def _checked(self, value: KeepRatio) -> KeepRatio:
        if isinstance(value, str):
            if value != "auto":
                raise InputError(f"keep_ratio is a number in (0, 1], one number a stage, or 'auto', not {value!r}")
        elif isinstance(value, Sequence):
            if len(value) != len(self.config.stages):
                stages = len(self.config.stages)
                raise InputError(f"keep_ratio has {len(value)} values, but the encoder has {stages} stages")
            value = tuple(self._checked(float(v)) for v in value)
        else:
            value = float(value)
            if not 0.0 < value <= 1.0:
                raise InputError(f"keep_ratio is in (0, 1], not {value:g}")
        if self.is_dense and value != 1.0:
            raise InputError("this model is dense: it has no little path, and keep_ratio can only be 1.0")
        return value

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: normalised images (B, 3, H, W), H and W multiples of the patch size and at most `img_size`. Smaller
                than `img_size` is the top left part of a full input.

        Returns:
            image embeddings (B, out_chans, gh, gw), in the dtype of `images` whatever the encoder computes in.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or max(height, width) > self.img_size:
            size = f"a multiple of {self.patch_size} up to {self.img_size} on each side"
            raise InputError(f"the encoder takes images of {size}, not {height} x {width}")
        return self._encode_each(images) if self.keep_ratio == "auto" else self._encode(images)

    @torch.compiler.disable  # the number of tokens is another one for every image
    def _encode_each(self, images: Tensor) -> Tensor:
        embeddings, routes = [], []
        for image in images.split(1):
            embeddings.append(self._encode(image))
            routes.append(self.last_route)
        self.last_route = Route.merge(routes) if len(routes) > 1 else routes[0]
        return torch.cat(embeddings)

    def _encode(self, images: Tensor) -> Tensor:
        tokens = self.patch_embed(images.to(self.neck[0].weight.dtype))  # (B, gh, gw, C)
        gh, gw = tokens.shape[1:3]
        return self.encode_tokens(tokens + self.pos_embed[:, :gh, :gw]).to(images.dtype)

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Everything after patch and position embedding: (B, gh, gw, C) -> (B, out_chans, gh, gw)."""
        batch, gh, gw, dim = tokens.shape
        big = self._geometry((gh, gw), self.config.window, tokens.device)
        x = tokens.reshape(batch, gh * gw, dim).contiguous()  # a convolution leaves channels first
        route = []
        for index, (stage, layers) in enumerate(self.config.groups):
            ratio = self.keep_ratio[stage] if isinstance(self.keep_ratio, tuple) else self.keep_ratio
            if ratio == 1.0:
                for layer in layers:
                    x = self._run(self.blocks[layer], x, big)
                    if self.taps is not None:
                        self.taps.layers[layer] = x
                every = torch.arange(gh * gw, device=x.device).expand(batch, -1)
                route.append(RouteGroup(tuple(layers), every, None))
            else:
                x, group = self._run_group(x, self.transitions[index], layers, ratio, big)
                route.append(group)
        self.last_route = Route((gh, gw), tuple(route))
        return self.neck(x.view(batch, gh, gw, dim).permute(0, 3, 1, 2))

    def _run_group(
        self, x: Tensor, transition: Transition, layers: range, ratio: float | str, big: Geometry
    ) -> tuple[Tensor, RouteGroup]:
        """x (B, N, C) -> (B, N, C), and what was selected."""
        little = transition.down(x)  # (B, N, C_E)
        scores = transition.router(little)  # (B, N)
        indices = top_tokens(scores.detach(), self._count(scores, ratio))
        selection = Selection(indices, big)
        gate = straight_through_gate(scores, selection) if torch.is_grad_enabled() else None
        small = self._geometry(big.grid, self.config.little_window, x.device)
        selected = selection.gather(x)  # (B, K, C)
        for layer in layers:
            selected = self._run(self.blocks[layer].routed, selected, little, selection, big, gate)
            little = self._run(self.little_blocks[layer], little, small)
        # Residual: a token keeps what big blocks of earlier stages gave it (measured in docs/design_notes.md).
        estimate = x + transition.up(little)
        if self.taps is None and not torch.is_grad_enabled():
            return selection.scatter_(estimate, selected), RouteGroup(tuple(layers), indices, scores)
        x = selection.scatter(estimate, selected)
        if self.taps is not None:
            self.taps.layers[layers[-1]] = x
            self.taps.little[layers[-1]] = (estimate, scores)
        return x, RouteGroup(tuple(layers), indices, scores.detach())

    def _run(self, block: Callable[..., Tensor], *inputs: object) -> Tensor:
        """A block; with `gradient_checkpointing` it is computed again in the backward pass instead of stored."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _count(self, scores: Tensor, ratio: float | str) -> int:
        tokens = scores.shape[1]
        if ratio != "auto":
            return min(tokens, max(1, round(ratio * tokens)))
        mass = scores.detach().sort(dim=1, descending=True).values.cumsum(dim=1)
        return min(tokens, int((mass < self.auto_mass).sum()) + 1)

    def _geometry(self, grid: tuple[int, int], window: int, device: torch.device) -> Geometry:
        key = (grid, window, device)
        if key not in self._geometries:
            self._geometries[key] = Geometry(grid, window or max(grid), device)
        return self._geometries[key]

    def _apply(self, fn, recurse=True):  # noqa: ANN001 - nn.Module's signature
        self._geometries.clear()  # index maps of another device
        return super()._apply(fn, recurse)


def init_weights(encoder: BigLittleEncoder) -> None:
    """Initialise an encoder that starts from nothing, in place (truncated normal 0.02 as in ViT, zero biases)."""
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)
