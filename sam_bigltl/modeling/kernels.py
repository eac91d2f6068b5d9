"""When a block runs in the C++ kernels, and its weights as they take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from ..fast.native import blocks, ops
from ..fast.quantize import Int8Linear, Int8MLP
from .calls import Place, Routed, is_plain
from .routing import Geometry

Kinds = tuple[type[nn.Module], ...]
Packed = TypeVar("Packed")


class Kernels:
    """The kernels of one block or transition; no module, so that nothing in it is a part of the model.

    Attributes:
        dtype: that its products are computed in, a format of `PRECISIONS`; "" where the kernels are off.
    """

    def __init__(self) -> None:
        self.dtype = ""
        self._kept = blocks.Kept()

    def use(self, dtype: str) -> None:
        """Compute in `dtype` from now on, "" without kernels; what was packed goes."""
        self.dtype = dtype
        self._kept = blocks.Kept()

    def __getstate__(self) -> dict[str, str]:  # what is packed belongs to the tensors of one block
        return {"dtype": self.dtype}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.use(state["dtype"])

    def packed(self, block: Any, x: Tensor, place: Place) -> blocks.PackedBlock | None:
        """The weights of `block` for tokens x, (..., C); None where the kernels cannot do what it does.

        They have no gradient, a trace or a compiler does not see them, their buffers have a fixed size, and a client
        who hooked, wrapped or replaced a part of the block expects it to run.
        """
        geometry = place.geometry if isinstance(place, Routed) else place
        if not isinstance(geometry, Geometry) or not _is_inference(x) or not _is_ours(block):
            return None
        if isinstance(place, Routed) and _needs_gradients(place):
            return None
        if not ops.fits(x.shape[-1] // block.attn.num_heads, max(geometry.grid)):
            return None
        return self._kept.get(block, blocks.PackedBlock, self.dtype)

    def transition(self, module: Any, x: Tensor) -> blocks.PackedTransition | None:
        """The same for the projections between the streams, where there are both."""
        if not self.dtype or not hasattr(module, "down") or _learns(module) or not _is_inference(x):
            return None
        if not _are_plain(module, (module.down, module.up)):
            return None
        return self._kept.get(module, blocks.PackedTransition, self.dtype)

    def around(self, module: nn.Module, x: Tensor, kinds: Kinds, make: Callable[[Any, str], Packed]) -> Packed | None:
        """`make(module, dtype)` for what comes before or after the blocks; None where the kernels cannot compute it.

        Args:
            x: what it gets.
            kinds: that every module inside has to be of.
        """
        if not self.dtype or _learns(module) or not _is_inference(x):
            return None
        if not all(is_plain(part, *kinds) for part in module.modules() if part is not module):
            return None
        whole = self.dtype == "float32" or not ops.has_fast_integers()
        return self._kept.get(module, make, "float32" if whole else "int16")


def without_kernels(block: nn.Module, run: Callable[[Tensor, Any], Tensor], x: Tensor, place: Any) -> Tensor:
    """`run(x, place)` in the dtype of the block's parameters; what comes in and goes out is of the dtype of x."""
    dtype = next((p.dtype for p in block.parameters() if p.is_floating_point()), x.dtype)
    if isinstance(place, Routed):
        place = replace(place, little=place.little.to(dtype))
    return run(x.to(dtype), place).to(x.dtype)


def _needs_gradients(place: Routed) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (place.little, place.gate))


def _is_inference(x: Tensor) -> bool:
    seen = torch.jit.is_tracing() or torch.compiler.is_compiling() or (torch.is_grad_enabled() and x.requires_grad)
    return not seen and x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous()


def _learns(module: nn.Module) -> bool:
    return torch.is_grad_enabled() and any(parameter.requires_grad for parameter in module.parameters())


def _is_ours(block: Any) -> bool:
    attn, mlp = block.attn, block.mlp
    if _learns(block) or not _has_layers(attn, mlp) or not _keeps_all(getattr(block, "drop_path", None)):
        return False
    norms = [getattr(block, name) for name in ("norm1", "norm2", "norm_little") if hasattr(block, name)]
    layers = [attn.qkv, attn.proj, mlp.lin1, mlp.lin2]
    layers += [getattr(parent, name) for parent, name in ((attn, "kv_little"), (block, "up")) if hasattr(parent, name)]
    return _are_plain(block, layers, norms) and "rescalable" in vars(type(attn)) and is_plain(attn, type(attn))


def _keeps_all(drop_path: Any) -> bool:
    """Whether stochastic depth, where a block has it, does nothing."""
    return drop_path is None or (is_plain(drop_path, type(drop_path)) and not (drop_path.training and drop_path.rate))


def _has_layers(attn: nn.Module, mlp: nn.Module) -> bool:
    if not is_plain(mlp, MLPBlock, Int8MLP) or not hasattr(attn, "qkv"):
        return False
    act: Any = getattr(mlp, "act", None)
    return isinstance(mlp, Int8MLP) or (is_plain(act, nn.GELU) and act.approximate == "none")


def _are_plain(module: nn.Module, layers: Any, norms: Any = ()) -> bool:
    return (
        not module._forward_hooks and not module._forward_pre_hooks
        and all(is_plain(layer, nn.Linear, Int8Linear) for layer in layers)
        and all(is_plain(norm, nn.LayerNorm, nn.Identity) for norm in norms)
        and all(norm.weight is not None and norm.bias is not None for norm in norms if isinstance(norm, nn.LayerNorm))
    )  # fmt: skip
