"""From a timm ViT to a big.LITTLE classifier with the same function at keep_ratio 1.0."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import Tensor, nn

from ..errors import InputError
from ..modeling.blocks import PBlock
from ..modeling.classifier import BigLittleClassifier, BigLittleDistilledClassifier, make_config

_CLASSES: dict[type[nn.Module], type[BigLittleClassifier | BigLittleDistilledClassifier]] = {
    VisionTransformer: BigLittleClassifier,
    VisionTransformerDistilled: BigLittleDistilledClassifier,
}


def convert_vit(
    vit: VisionTransformer, little_dim: int | None = None, route_every: int | None = None
) -> BigLittleClassifier | BigLittleDistilledClassifier:
    """A big.LITTLE classifier that computes what `vit` computes at keep_ratio 1.0.

    Patch embedding, tokens, positions, norms and head are copies of its own; layer scale becomes part of the weights
    that it follows. The little path starts random.

    Args:
        vit: timm's VisionTransformer of plain pre-norm blocks: `vit_*`, `deit_*`, `deit3_*`. It is left as it was.
        little_dim: width of the little path; None is a quarter of the big one.
        route_every: layers that share one selection; None is a quarter of the depth.

    Returns:
        a new model in eval mode, on the device of `vit`, in its dtype.

    Raises:
        InputError: another kind of model, or blocks that a big.LITTLE layer cannot compute.
    """
    kind = _CLASSES.get(type(vit))
    if kind is None:
        raise InputError(f"convert_vit takes timm's VisionTransformer, not a {type(vit).__name__}")
    for index, block in enumerate(vit.blocks):
        if obstacle := _obstacle(block, vit.embed_dim):
            raise InputError(f"block {index} of this ViT cannot be converted: {obstacle}")
    first: Any = vit.blocks[0]
    config = make_config(
        vit.embed_dim, len(vit.blocks), first.attn.num_heads, first.mlp.fc1.out_features / vit.embed_dim,
        little_dim, route_every,
    )  # fmt: skip
    model: Any = copy.deepcopy(vit)
    model.__class__ = kind
    model.blocks = nn.Sequential(*(_converted(cast(Block, block), config.little_dim) for block in vit.blocks))
    model._become_big_little(config)
    weight = model.patch_embed.proj.weight
    return model.to(weight.device, weight.dtype).eval()


def _obstacle(block: nn.Module, dim: int) -> str | None:
    """Why a PBlock cannot compute what `block` computes; None if it can."""
    if type(block) is not Block:
        return f"it is a {type(block).__name__}"
    attention: Any = block.attn
    mlp: Any = block.mlp
    if type(attention) is not Attention:
        return f"its attention is a {type(attention).__name__}"
    for name in ("q_norm", "k_norm", "norm"):
        if not isinstance(getattr(attention, name, nn.Identity()), nn.Identity):
            return f"its attention has a {name}"
    if attention.qkv.weight.shape != (3 * dim, dim) or attention.proj.weight.shape != (dim, dim):
        return "its attention has another width than the model"
    if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
        return f"its norm is a {type(block.norm1).__name__}"
    plain = all(isinstance(getattr(mlp, name, None), nn.Linear) for name in ("fc1", "fc2"))
    if not plain or mlp.fc2.in_features != mlp.fc1.out_features:
        return f"its MLP is a {type(mlp).__name__}"
    if not isinstance(getattr(mlp, "norm", nn.Identity()), nn.Identity):
        return "its MLP has a norm"
    if not isinstance(mlp.act, nn.GELU) or mlp.act.approximate != "none":
        return f"its activation is {mlp.act}, not the exact GELU"
    return None


@torch.no_grad()
def _converted(block: Block, little_dim: int) -> PBlock:
    attention: Any = block.attn
    mlp: Any = block.mlp
    dim = attention.qkv.in_features
    rate = getattr(block.drop_path1, "drop_prob", 0.0) or 0.0
    big: Any = PBlock(dim, attention.num_heads, mlp.fc1.out_features / dim, 0, 0, little_dim, rate)
    norms: tuple[tuple[nn.LayerNorm, Any], ...] = ((big.norm1, block.norm1), (big.norm2, block.norm2))
    for mine, theirs in norms:
        mine.eps = theirs.eps
        _copy(mine, theirs)
    _copy(big.attn.qkv, attention.qkv)
    _copy(big.attn.proj, attention.proj, getattr(block.ls1, "gamma", None))
    _copy(big.mlp.lin1, mlp.fc1)
    _copy(big.mlp.lin2, mlp.fc2, getattr(block.ls2, "gamma", None))
    return big


def _copy(mine: nn.Linear | nn.LayerNorm, theirs: Any, scale: Tensor | None = None) -> None:
    """Weights and bias of `theirs`; a bias or weight that it does not have is the one that changes nothing."""
    weight = torch.ones_like(mine.weight) if theirs.weight is None else theirs.weight
    bias = torch.zeros_like(mine.bias) if theirs.bias is None else theirs.bias
    mine.weight.copy_(weight if scale is None else scale[:, None] * weight)
    mine.bias.copy_(bias if scale is None else scale * bias)
