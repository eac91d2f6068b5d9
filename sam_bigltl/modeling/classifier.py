"""big.LITTLE ViTs for image classification (arXiv 2410.10267), as timm models.

The layers are those of the SAM encoder (`sam_bigltl.trunk`); patch embedding, class token, position embedding, head and
everything that timm's scripts ask of a model are timm's VisionTransformer. Importing this module registers
`bigltl_{tiny,small,base,large}_patch16_224` with `timm.create_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ..errors import InputError
from .blocks import PBlock
from .routing import Route, SequenceGeometry, kept_for_training
from .trunk import KeepRatio, Trunk, init_layers


@dataclass(frozen=True)
class ClassifierConfig:
    """Shape of the layers of a classifier; attributes as in `sam_bigltl.encoder.EncoderConfig`.

    Every layer attends to the whole image. A stage, with one selection, is `route_every` layers.
    """

    dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    little_dim: int
    route_every: int

    @property
    def stages(self) -> list[range]:
        """Layers of each stage."""
        layers, step = range(self.depth), self.route_every
        return [layers[start : start + step] for start in range(0, self.depth, step)]

    @property
    def groups(self) -> list[tuple[int, range]]:
        """(stage, layers) of each selection."""
        return list(enumerate(self.stages))


def make_config(
    dim: int, depth: int, num_heads: int, mlp_ratio: float, little_dim: int | None, route_every: int | None
) -> ClassifierConfig:
    """A configuration with the defaults filled in. Raises InputError."""
    little_dim = dim // 4 if little_dim is None else little_dim
    route_every = max(1, depth // 4) if route_every is None else route_every
    if little_dim < 0 or route_every < 1:
        raise InputError(f"little_dim is at least 0 and route_every at least 1, not {little_dim} and {route_every}")
    return ClassifierConfig(dim, depth, num_heads, mlp_ratio, little_dim, route_every)


def _p_block(dim: int, num_heads: int, mlp_ratio: float, drop_path: float, little_dim: int, **options: Any) -> PBlock:
    """What VisionTransformer calls for each layer; of its many options those that our block has."""
    unknown = ("qk_norm", "init_values", "scale_attn_norm", "scale_mlp_norm", "attn_drop", "proj_drop")
    used = [name for name in unknown if options.get(name)]
    used += [name for name in ("qkv_bias", "proj_bias") if not options.get(name, True)]
    if used:
        raise InputError(f"a big.LITTLE classifier has no {used[0]}: leave it at its default")
    return PBlock(dim, num_heads, mlp_ratio, 0, 0, little_dim, drop_path)


class _BigLittleViT(Trunk):
    """What turns a VisionTransformer, or a subclass of it, into a big.LITTLE one.

    It comes before that class among the bases.
    """

    # The VisionTransformer's own.
    blocks: nn.Sequential
    num_prefix_tokens: int
    patch_embed: Any
    patch_drop: Any
    norm_pre: nn.Module
    norm: nn.Module
    _pos_embed: Callable[[Tensor], Tensor]

    def _become_big_little(self, config: ClassifierConfig) -> None:
        """Add all but the P-blocks, which are there."""
        self._set_up(config)
        self.prefix = self.num_prefix_tokens
        self._geometries: dict[tuple[int, torch.device], SequenceGeometry] = {}
        self._add_little_path()
        for name in ("little_blocks", "transitions"):
            init_layers(getattr(self, name, nn.Identity()))

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Images (B, 3, H, W) -> normed tokens (B, prefix + N, C). It takes no attention mask."""
        if attn_mask is not None or is_causal:
            raise InputError("a big.LITTLE classifier takes no attention mask")
        return self._one_by_one(x, self._features) if self.keep_ratio == "auto" else self._features(x)

    def _features(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x.to(self.patch_embed.proj.weight.dtype))
        grid = (x.shape[1], x.shape[2]) if x.ndim == 4 else self.patch_embed.grid_size
        x = self.norm_pre(self.patch_drop(self._pos_embed(x)))  # (B, prefix + N, C)
        geometry = self._geometry(x.shape[1], x.device)
        x, route = self._run_layers(x, geometry, geometry)
        self.last_route = Route(grid, route)
        return self.norm(x)

    def _prepare(self) -> None:
        self._geometry(self.prefix + self.patch_embed.num_patches, self.patch_embed.proj.weight.device)

    def _geometry(self, tokens: int, device: torch.device) -> SequenceGeometry:
        tokens = int(tokens)  # torch.jit.trace makes tensors of shapes
        if (tokens, device) in self._geometries:
            return self._geometries[tokens, device]
        geometry = kept_for_training(lambda: SequenceGeometry(tokens, device))
        if not torch.jit.is_tracing():  # a trace is checked by tracing again, with the same steps
            self._geometries[tokens, device] = geometry
        return geometry

    def _apply(self, fn, recurse=True):  # nn.Module's signature
        self.__dict__.get("_geometries", {}).clear()  # index maps of another device
        return super()._apply(fn, recurse)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute blocks again in the backward pass instead of storing what they need."""
        self.gradient_checkpointing = enable

    def forward_intermediates(self, *_: Any, **__: Any) -> Any:
        """Not there: tokens outside the selection have no features between the layers of a group."""
        raise InputError(
            "a big.LITTLE classifier has features after each stage only: set `taps` to a sam_bigltl.trunk.Taps"
        )


class BigLittleClassifier(_BigLittleViT, VisionTransformer):
    """timm's VisionTransformer with big.LITTLE layers.

    `keep_ratio`, `last_route`, `taps`, `auto_mass` and `optimize` are those of `BigLittleEncoder`; class and register
    tokens are always big. At keep_ratio 1.0 it computes exactly the ViT of its big weights.

    Args:
        keep_ratio: share of the patches on the big path: a number in (0, 1], one number a stage, or "auto".
        little_dim: width of the little path; None is a quarter of `embed_dim`, 0 makes a dense ViT.
        route_every: layers that share one selection; None is a quarter of `depth`.
        options: of timm's VisionTransformer. Those of its blocks that a big.LITTLE layer does not have raise
            InputError.
    """

    def __init__(
        self,
        *,
        keep_ratio: KeepRatio = 1.0,
        little_dim: int | None = None,
        route_every: int | None = None,
        **options: Any,
    ) -> None:
        dim, depth = options.get("embed_dim", 768), options.get("depth", 12)
        config = make_config(
            dim, depth, options.get("num_heads", 12), options.get("mlp_ratio", 4.0), little_dim, route_every
        )
        # timm calls `block_fn`, a class or not.
        p_block: Any = partial(_p_block, little_dim=config.little_dim)
        VisionTransformer.__init__(self, block_fn=p_block, **options)
        self._become_big_little(config)
        self.keep_ratio = keep_ratio


class BigLittleDistilledClassifier(_BigLittleViT, VisionTransformerDistilled):
    """The same for DeiT's models with a distillation token; made by `convert_vit` only."""


_SIZES = {
    "tiny": dict(embed_dim=192, depth=12, num_heads=3),
    "small": dict(embed_dim=384, depth=12, num_heads=6),
    "base": dict(embed_dim=768, depth=12, num_heads=12),
    "large": dict(embed_dim=1024, depth=24, num_heads=16),
}
# No weights to download; mean and standard deviation are DeiT's.
default_cfgs = generate_default_cfgs({
    f"bigltl_{size}_patch16_224.untrained": {
        "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "crop_pct": 0.9,
        "interpolation": "bicubic", "mean": timm.data.IMAGENET_DEFAULT_MEAN, "std": timm.data.IMAGENET_DEFAULT_STD,
        "fixed_input_size": True, "first_conv": "patch_embed.proj", "classifier": "head",
    }
    for size in _SIZES
})  # fmt: skip


def _create(size: str, pretrained: bool, options: dict[str, Any]) -> BigLittleClassifier:
    name = f"bigltl_{size}_patch16_224"
    if pretrained:
        raise InputError(f"{name} has no weights to download: convert a pretrained ViT with convert_vit instead")
    return build_model_with_cfg(BigLittleClassifier, name, pretrained, **(_SIZES[size] | options))


@register_model
def bigltl_tiny_patch16_224(pretrained: bool = False, **options: Any) -> BigLittleClassifier:
    """DeiT-Ti's big path: 192 wide, 12 deep, 3 heads."""
    return _create("tiny", pretrained, options)


@register_model
def bigltl_small_patch16_224(pretrained: bool = False, **options: Any) -> BigLittleClassifier:
    """DeiT-S's big path: 384 wide, 12 deep, 6 heads."""
    return _create("small", pretrained, options)


@register_model
def bigltl_base_patch16_224(pretrained: bool = False, **options: Any) -> BigLittleClassifier:
    """ViT-B's big path: 768 wide, 12 deep, 12 heads."""
    return _create("base", pretrained, options)


@register_model
def bigltl_large_patch16_224(pretrained: bool = False, **options: Any) -> BigLittleClassifier:
    """ViT-L's big path: 1024 wide, 24 deep, 16 heads."""
    return _create("large", pretrained, options)


def registered() -> Sequence[str]:
    """The models of this module by the name that `timm.create_model` knows."""
    return tuple(f"bigltl_{size}_patch16_224" for size in _SIZES)
