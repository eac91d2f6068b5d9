"""int8 inference on CPU: the encoder's large linear layers with 8-bit weights and activations.

Weights are rounded once, one scale for each output channel; activations on the fly, symmetric: one scale a row in this
project's kernels, one a tensor in oneDNN's, which do the products where there are no kernels. No calibration data is
needed. What is no layer of a block (stem, norms, router, neck) stays in a float format.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling.common import MLPBlock
from torch import Tensor, nn

from ..errors import InputError
from .kernels import round_kernels
from .native import ops
from .processor import multiplies_bfloat16
from .rescale import centre_keys, smooth

_ZERO = 128  # oneDNN's fast kernels take unsigned activations: 128 stands for 0


def quantize_activation(x: Tensor) -> tuple[Tensor, float]:
    """Symmetric 8-bit rounding with one scale.

    x (rows, channels) -> uint8 of the same shape with `_ZERO` added, scale.
    """
    low, high = torch.aminmax(x)
    scale = max(-float(low), float(high)) / 127 or 1.0
    # Integers up to 256 are exact in bfloat16, so the steps after the product round only once.
    levels = (x * (1 / scale)).round_().to(torch.int8)
    return levels.view(torch.uint8).bitwise_xor_(_ZERO), scale  # flipping the sign bit adds 128


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, for inference on CPU.

    Args:
        linear: the layer to replace; it is left as it was.
        activation: "none", or "gelu" to apply it to the output in the same pass.
        norm: a norm of the input, which becomes part of this layer.
    """

    bias: Tensor
    scales: Tensor
    levels: Tensor

    def __init__(self, linear: nn.Linear, activation: str = "none", norm: nn.LayerNorm | None = None) -> None:
        super().__init__()
        self.native = False
        self.norm = norm
        weight = linear.weight.detach().float()
        scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127  # (out,)
        levels = (weight / scales[:, None]).round().to(torch.int8)
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().float()
        self.out_features, self.in_features = weight.shape
        self.activation = activation
        self.register_buffer("bias", bias, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("levels", levels, persistent=False)  # (out, in), int8
        self._packed: Any = None
        self._own: ops.Packed | None = None

    @property
    def packed(self) -> Any:
        """The rounded weights in oneDNN's layout, made at the first call."""
        if self._packed is None:
            self._packed = torch.ops.onednn.qlinear_prepack(self.levels.contiguous(), None)
        return self._packed

    def native_weights(self, chunked: bool = False, factor: Tensor | None = None) -> ops.Packed:
        """The rounded weights in the layout of this project's kernels, of which rounding leaves every level; `factor`
        (out,) is multiplied into the scales."""
        scales, bias = (self.scales, self.bias) if factor is None else (self.scales * factor, self.bias * factor)
        return ops.pack(self.levels.float() * scales[:, None], bias, "int8", chunked)

    def __getstate__(self) -> dict[str, Any]:  # for copy and pickle, which do not take these layouts
        return {**self.__dict__, "_packed": None, "_own": None}

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out), of one dtype."""
        if torch.jit.is_tracing():
            raise InputError("int8 layers round by scales that a trace would freeze: trace the model before optimize()")
        rows = x.reshape(-1, self.in_features)
        if self.native:
            if self._own is None:
                self._own = self.native_weights()
            rows = (rows if self.norm is None else self.norm(rows)).float()
            out = ops.linear(self._own, rows.contiguous(), activation=self.activation).to(x.dtype)
        else:
            self._own = None
            levels, scale = quantize_activation(rows if self.norm is None else self.norm(rows))
            out = qlinear(self, levels, scale).to(x.dtype)
        return out.view(*x.shape[:-1], self.out_features)


def qlinear(layer: Int8Linear, levels: Tensor, scale: float) -> Tensor:
    """The product of `layer` with what `quantize_activation` returned: (rows, out) bfloat16."""
    return torch.ops.onednn.qlinear_pointwise(
        levels, scale, _ZERO, layer.packed, layer.scales, torch.zeros(layer.out_features, dtype=torch.int32),
        layer.bias,
        1.0, 0, torch.bfloat16, layer.activation, [], "none",
    )  # fmt: skip


class Int8MLP(nn.Module):
    """`segment_anything`'s MLPBlock with int8 weights, the norm before it and GELU included."""

    def __init__(self, mlp: MLPBlock, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.lin1 = Int8Linear(mlp.lin1, "gelu", norm)
        self.lin2 = Int8Linear(mlp.lin2)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.lin1(x))


def quantize_encoder(encoder: nn.Module) -> nn.Module:
    """Make the large linear layers of an encoder int8, in place, and the rest bfloat16, or float32 where the processor
    does not multiply that; for inference on CPU only. Returns the encoder itself."""
    centre_keys(encoder)
    smooth(encoder)
    round_kernels(encoder)
    # From the weights as they are, before the rest is rounded.
    packed: list[tuple[nn.Module, str, nn.Module]] = []
    blocks: Any = encoder.blocks
    for block in [*blocks, *getattr(encoder, "little_blocks", [])]:
        packed.append((block, "mlp", Int8MLP(block.mlp, block.norm2)))
        norms = {"qkv": block.norm1, "kv_little": getattr(block, "norm_little", None)}
        for parent in (block, block.attn):
            packed += [
                (parent, name, Int8Linear(child, norm=norms.get(name)))
                for name, child in parent.named_children() if isinstance(child, nn.Linear)
            ]  # fmt: skip
        packed += [
            (block, name, nn.Identity()) for name, child in block.named_children() if isinstance(child, nn.LayerNorm)
        ]
    for transition in getattr(encoder, "transitions", []):
        packed.append((transition, "up", Int8Linear(transition.up)))  # not `down`: the router sees every rounding of it
    encoder.eval().requires_grad_(False).to(torch.bfloat16 if multiplies_bfloat16() else torch.float32)
    for parent, name, layer in packed:
        setattr(parent, name, layer)
    return encoder
