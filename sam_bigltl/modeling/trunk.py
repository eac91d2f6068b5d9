"""What every big.LITTLE ViT does between its patch embedding and its head: layers in groups, each with its selection.

arXiv 2410.10267. Each group starts by projecting the C-wide tokens to the little width, selects K tokens from that
little stream, runs its P-blocks on them and its E-blocks on all tokens, and ends by writing both back to C-wide tokens.

Shapes: B images, N tokens, C big width, C_E little width, K = round(keep_ratio * N).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from ..errors import InputError
from ..fast.choice import Native, choose
from ..fast.precision import set_precision
from ..fast.quantize import Int8Linear
from ..memory import keep_freed_memory
from .blocks import LITTLE, EBlock, PBlock
from .calls import Routed, call
from .kernels import Kernels
from .routing import Geometry, Route, RouteGroup, Selection, straight_through_gate, top_tokens
from .transition import Transition

KeepRatio = float | Sequence[float] | str
_Kept = float | tuple[float, ...] | str  # as it is kept: checked


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


def heads_of(little_dim: int) -> int:
    """Heads of the E-blocks: of 64 channels as in SAM where that divides the width, else of 32 or 16, else one."""
    return next((little_dim // size for size in (64, 32, 16) if little_dim % size == 0), 1)


def init_layers(parent: nn.Module) -> None:
    """Initialise linear layers (truncated normal 0.02, as in ViT) and convolutions inside `parent`, in place."""
    for module in parent.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Trunk(nn.Module):
    """Blocks, routing and the run-time setting of a big.LITTLE ViT; a base of `BigLittleEncoder` and of the classifier,
    which call `_set_up` once they are a module.

    Attributes:
        config: its shape; has `dim`, `depth`, `num_heads`, `mlp_ratio`, `little_dim`, `stages`, `groups`.
        prefix: tokens at the start that are always big and never scored, such as a class token.
        continuous: whether one little stream runs from the first layer to the last, and is all that unselected tokens
            have, as in the paper's Algorithm 1; else it starts anew from C-wide tokens in each group.
        last_route: what the last forward pass selected.
        taps: filled by a forward pass where it is a `Taps`.
        focus: factors on the importance of tokens for the next passes, (B, N), or None; see `sam_bigltl.focus`.
        gradient_checkpointing: trade time for memory in training.
    """

    prefix = 0
    continuous = False
    blocks: nn.ModuleList | nn.Sequential  # of P-blocks

    def _set_up(self, config: Any) -> None:
        self.config = config
        self.auto_mass = 0.9
        self.last_route: Route | None = None
        self.taps: Taps | None = None
        self.focus: Tensor | None = None
        self.gradient_checkpointing = False
        self.precision = "float32"
        self.kernels_dtype = ""
        self._keep_ratio: _Kept = 1.0

    def _add_blocks(self, shape: Callable[[int], tuple[int, int]]) -> None:
        """The P-blocks; `shape` gives the table size and the window of a layer, see `SemiCrossAttention`."""
        config = self.config
        self.blocks = nn.ModuleList(
            PBlock(config.dim, config.num_heads, config.mlp_ratio, *shape(layer), config.little_dim)
            for layer in range(config.depth)
        )

    def _add_little_path(self) -> None:
        """E-blocks and transitions, as torch initialises them."""
        config = self.config
        if config.little_dim:
            self.little_blocks = nn.ModuleList(
                EBlock(config.little_dim, heads_of(config.little_dim), config.mlp_ratio) for _ in range(config.depth)
            )
            self.transitions = nn.ModuleList(
                Transition(config.dim, config.little_dim, enters=not self.continuous or group == 0)
                for group in range(len(config.groups))
            )

    @property
    def is_dense(self) -> bool:
        """Whether the model has no little path."""
        return self.config.little_dim == 0

    @property
    def keep_ratio(self) -> float | tuple[float, ...] | str:
        """Share of the tokens on the big path: float, tuple with one float a stage, or "auto"."""
        return self._keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: KeepRatio) -> None:
        self._keep_ratio = self._checked(value)

    def optimize(self, dtype: str = "auto", compile: bool = False, native: Native = "auto") -> Self:
        """Make inference faster, in place, with the same calls after it; returns the encoder.

        The whole process keeps its freed memory from then on (`sam_bigltl.memory`).

        Args:
            dtype: "auto" is the fastest that keeps masks on this machine, with what was chosen and why printed
                to stderr, once (`sam_bigltl.fast.choice`); or "float32", "bfloat16", "int8" (linear layers; CPU only,
                cannot be undone).
            compile: let `torch.compile` generate the kernels, one graph for each shape of input and each `keep_ratio`
                at its first call, which takes minutes on a CPU; one that had its turn never compiles again. "auto"
                stays as it is. Not for int8.
            native: run this project's C++ kernels (CPU only). "auto": where they can be had, but neither beside
                `compile` nor for a "float32" that is asked for by name, which is torch's own.

        Raises:
            InputError: a dtype that there is not, what cannot run on this machine, int8 where it would take minutes.

        Warns:
            SlowFormat: bfloat16 on a processor that does not multiply it.
        """
        if compile and dtype == "int8":
            raise InputError("int8 layers cannot be compiled: choose dtype='bfloat16' or compile=False")
        if compile and native is True:
            raise InputError("what the C++ kernels compute cannot be compiled: choose native=True or compile=True")
        kernels = False if compile and native == "auto" else native
        chosen = choose(cast(torch.device, self.pos_embed.device), dtype, kernels, self.training)
        chosen.say()
        self.compute_in(chosen.dtype, chosen.native)
        if compile:
            # The limit counts the graphs of all encoders together; what is beyond it would run uncompiled in silence.
            config = torch._dynamo.config
            limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # torch 2.6
            setattr(config, limit, max(getattr(config, limit), 64))
            self._prepare()  # index maps made during a call would cost a graph
            self.compile(dynamic=False)
        return self

    def compute_in(self, dtype: str, native: bool) -> None:
        """What `optimize` does once it is decided: a format of `PRECISIONS`, and whether the C++ kernels run it."""
        set_precision(self, dtype)
        use_kernels(self, native)
        keep_freed_memory()

    def _prepare(self) -> None:
        """Make what calls keep for the next ones."""

    def _checked(self, value: KeepRatio) -> _Kept:
        checked: _Kept
        if isinstance(value, str):
            if value != "auto":
                raise InputError(f"keep_ratio is a number in (0, 1], one number a stage, or 'auto', not {value!r}")
            checked = value
        elif isinstance(value, Sequence):
            if len(value) != len(self.config.stages):
                stages = len(self.config.stages)
                raise InputError(f"keep_ratio has {len(value)} values, but the encoder has {stages} stages")
            checked = tuple(cast(float, self._checked(_number(each))) for each in value)
        else:
            checked = _number(value)
            if not 0.0 < checked <= 1.0:
                raise InputError(f"keep_ratio is in (0, 1], not {checked:g}")
        if self.is_dense and checked != 1.0:
            raise InputError("this model is dense: it has no little path, and keep_ratio can only be 1.0")
        return checked

    @torch.compiler.disable  # the number of tokens is another one for every image
    def _one_by_one(self, images: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode` of each image, for keep_ratio "auto", and the route of all of them."""
        results: list[Tensor] = []
        routes: list[Route] = []
        for image in images.split(1):
            results.append(encode(image))
            assert self.last_route is not None  # `encode` has set it
            routes.append(self.last_route)
        self.last_route = Route.merge(routes) if len(routes) > 1 else routes[0]
        return torch.cat(results)

    def _run_layers(self, x: Tensor, big: Geometry, small: Geometry) -> tuple[Tensor, tuple[RouteGroup, ...]]:
        """All layers, x (B, N, C) -> (B, N, C), and what each group selected."""
        route, given = [], x.dtype
        if self.kernels_dtype:
            x = x.float()  # what the kernels keep between them
        groups = self.config.groups
        ratios = [self.keep_ratio[stage] if isinstance(self.keep_ratio, tuple) else self.keep_ratio
                  for stage, _ in groups]  # fmt: skip
        little: Tensor | None = None
        for index, ((_, layers), ratio) in enumerate(zip(groups, ratios)):
            # A stream that later groups go on from has to pass this one, too.
            if ratio == 1.0 and not (self.continuous and ratios != [1.0] * len(groups)):
                x = big.on_grid(x)  # as SAM's blocks take it
                for layer in layers:
                    x = self._run(call, self.blocks[layer], x, big, PBlock)
                    if self.taps is not None:
                        self.taps.layers[layer] = x.flatten(1, -2)
                x = x.flatten(1, -2)
                if _awaits_every_gradient():
                    x = _touch(x, self._little_of(index, layers))
                every = torch.arange(x.shape[1] - self.prefix, device=x.device).expand(len(x), -1)
                route.append(RouteGroup(tuple(layers), every, None))
            else:
                x, little, group = self._run_group(x, little, index, ratio, big, small)
                route.append(group)
        return x.to(given), tuple(route)

    def _little_of(self, group: int, layers: range) -> list[nn.Parameter]:
        """Parameters that a group of layers has for the little path alone."""
        if self.is_dense:
            return []
        modules: list[nn.Module] = [self.transitions[group], *(self.little_blocks[layer] for layer in layers)]
        own = [parameter for module in modules for parameter in module.parameters()]
        for layer in layers:
            named = self.blocks[layer].named_parameters()
            own += [
                parameter for name, parameter in named if name.split(".")[0] in LITTLE or ".kv_little." in f".{name}"
            ]
        return own

    def _run_group(
        self,
        x: Tensor,
        little: Tensor | None,
        index: int,
        ratio: float | str,
        big: Geometry,
        small: Geometry,
    ) -> tuple[Tensor, Tensor, RouteGroup]:
        """Group number `index` on x (B, N, C) -> (B, N, C), the little stream, and what was selected.

        `little` is the stream after the group before, (B, N, C_E) or None, used where it is `continuous`; `big` and
        `small` hold the windows of both paths.
        """
        transition: Any = self.transitions[index]
        _, layers = self.config.groups[index]
        if little is None or not self.continuous:
            little = transition.enter(x)  # (B, N, C_E)
        scores = transition.router(little[:, self.prefix :])  # (B, N - prefix)
        if self.focus is not None:
            scores = scores * self.focus
            scores = scores / scores.sum(dim=1, keepdim=True)
        indices = top_tokens(scores.detach(), self._count(scores, ratio))
        gate = straight_through_gate(scores, indices) if _learns() else None  # (B, K, 1)
        if self.prefix:
            always = torch.arange(self.prefix, device=x.device).expand(len(x), -1)
            indices = torch.cat([always, indices + self.prefix], dim=1)
            gate = gate if gate is None else F.pad(gate, (0, 0, self.prefix, 0), value=1.0)
        selection = Selection(indices, big)
        selected = selection.gather(x)  # (B, K, C)
        if not big.whole:
            selected = selected[:, None]  # what adapts SAM's layers expects four dimensions
        for layer in layers:
            selected = self._run(call, self.blocks[layer], selected, Routed(little, selection, big, gate), PBlock)
            little = self._run(self.little_blocks[layer], little, small)
        group = RouteGroup(tuple(layers), indices[:, self.prefix :] - self.prefix, scores.detach())
        if self.continuous:
            x = torch.zeros_like(x)  # nothing that big blocks gave a token outlives its selection
        if self.taps is None and not _learns():
            return transition.leave(x, little, selected, selection), little, group
        estimate = transition.estimate(x, little)
        x = selection.scatter(estimate, selected)
        if self.taps is not None:
            self.taps.layers[layers[-1]] = x
            self.taps.little[layers[-1]] = (estimate, scores)
        return x, little, group

    def _run(self, block: Callable[..., Tensor], *inputs: object) -> Tensor:
        """A block; with `gradient_checkpointing` it is computed again in the backward pass instead of stored."""
        if self.gradient_checkpointing and _learns():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _count(self, scores: Tensor, ratio: float | str) -> int:
        tokens = int(scores.shape[1])  # torch.jit.trace makes tensors of shapes
        if not isinstance(ratio, str):
            return min(tokens, max(1, round(ratio * tokens)))
        if torch.jit.is_tracing():
            raise InputError("keep_ratio 'auto' chooses anew for every image: set a number before the model is traced")
        mass = scores.detach().sort(dim=1, descending=True).values.cumsum(dim=1)
        return min(tokens, int((mass < self.auto_mass).sum()) + 1)


def use_kernels(encoder: Any, native: bool) -> None:
    """Let an encoder compute with the C++ kernels or without them, in place."""
    module: Any
    dtype = encoder.precision if native else ""
    encoder.kernels_dtype = dtype
    for module in encoder.modules():
        if isinstance(getattr(module, "kernels", None), Kernels):
            module.kernels.use(dtype)
        elif isinstance(module, Int8Linear):
            module.native = bool(dtype)


def _learns() -> bool:
    """Whether a backward pass may follow. A trace is checked without autograd, so it has to take that way, too."""
    return torch.is_grad_enabled() and not torch.jit.is_tracing()


def _awaits_every_gradient() -> bool:
    """Whether DistributedDataParallel is running the model and would wait for ever for parameters without gradients."""
    if not _learns() or not torch.distributed.is_available():
        return False
    wrapper: Any = nn.parallel.DistributedDataParallel._active_ddp_module
    return wrapper is not None and not wrapper.find_unused_parameters


def _touch(x: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """x, with a gradient of zero for parameters that it does not depend on."""
    firsts = [parameter.flatten()[:1] for parameter in parameters if parameter.requires_grad]
    return x + 0.0 * torch.cat(firsts).sum().to(x.dtype) if firsts else x


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        kind = type(value).__name__
        raise InputError(f"keep_ratio is a number in (0, 1], one number a stage, or 'auto', not a {kind}") from None
