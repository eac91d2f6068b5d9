"""Whether an encoder is SAM's ViT, part for part, and of what sizes: read from its modules, not from its weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...errors import InputError
from ...modeling.encoder import BigLittleEncoder, EncoderConfig
from .encoder import Origin

Classes = tuple[type[nn.Module], ...]


@dataclass(frozen=True)
class Anatomy:
    """How a library builds SAM's encoder.

    Attributes:
        classes: of each module, by its name in the library; a star is a number.
        name: the library's name of a parameter of ours.
        blocks: what it calls the list of layers.
        patch: the convolution of the patches.
        heads: what an attention calls its number of heads.
        hidden: the first linear layer of a block's MLP.
    """

    classes: dict[str, Classes]
    name: Callable[[str], str]
    blocks: str = "blocks"
    patch: str = "patch_embed.proj"
    heads: str = "num_heads"
    hidden: str = "mlp.lin1"


def sam_anatomy(classes: Any) -> Anatomy:
    """Of `segment_anything` or a copy of it: what holds the classes of its encoder, such as their module."""
    return Anatomy(
        {
            "": (classes.ImageEncoderViT,),
            "patch_embed": (classes.PatchEmbed,),
            "patch_embed.proj": (nn.Conv2d,),
            "blocks": (nn.ModuleList,),
            "blocks.*": (classes.Block,),
            "blocks.*.norm1": (nn.LayerNorm,),
            "blocks.*.attn": (classes.Attention,),
            "blocks.*.attn.qkv": (nn.Linear,),
            "blocks.*.attn.proj": (nn.Linear,),
            "blocks.*.norm2": (nn.LayerNorm,),
            "blocks.*.mlp": (classes.MLPBlock,),
            "blocks.*.mlp.lin1": (nn.Linear,),
            "blocks.*.mlp.lin2": (nn.Linear,),
            "blocks.*.mlp.act": (nn.GELU,),
            "neck": (nn.Sequential,),
            "neck.0": (nn.Conv2d,),
            "neck.1": (classes.LayerNorm2d,),
            "neck.2": (nn.Conv2d,),
            "neck.3": (classes.LayerNorm2d,),
        },
        name=lambda name: name,
    )


def examine(encoder: nn.Module, anatomy: Anatomy) -> tuple[EncoderConfig, Origin]:
    """The sizes of an encoder, and which of our parameters are which of its own.

    Raises:
        InputError: it is not SAM's ViT, or was changed; the message names the part.
    """
    for name, module in encoder.named_modules():
        if obstacle := _obstacle(module, anatomy.classes.get(name) or anatomy.classes.get(_starred(name))):
            raise _refusal(f"{name or 'it'} {obstacle}")
    config = _config(encoder, anatomy)
    present = {name: tuple(value.shape) for name, value in encoder.named_parameters()}
    kinds = {(value.dtype, value.device) for value in encoder.parameters()}
    if len(kinds) > 1:
        raise _refusal("its parameters are of several formats or on several devices")
    ((dtype, device),) = kinds
    if device.type == "meta" or dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise _refusal(f"its weights are {str(dtype).removeprefix('torch.')} on {device}")
    with torch.device("meta"):
        ours = [name for name, _ in BigLittleEncoder(config).named_parameters()]
    if "neck.weight" in present:  # a single norm
        ours = [name for name in ours if not name.startswith("neck.")] + ["neck.0.weight", "neck.0.bias"]
    names = {name: other for name in ours if (other := anatomy.name(name)) in present}
    if unknown := sorted(present.keys() - names.values()):
        raise _refusal(f"SAM's has no {unknown[0]}")
    optional = re.compile(r"pos_embed$|attn\.qkv\.bias$|attn\.rel_pos_[hw]$")
    if missing := [anatomy.name(name) for name in ours if name not in names and not optional.search(name)]:
        raise _refusal(f"it has no {missing[0]}")
    return config, Origin(encoder, names)


def refuse_changed(module: nn.Module, name: str = "it") -> None:
    """Raise InputError where a client hung something on a module that would be lost."""
    if obstacle := _changed(module):
        raise _refusal(f"{name} {obstacle}")


def _refusal(what: str) -> InputError:
    return InputError(f"the image encoder cannot be replaced: {what}")


def _obstacle(module: nn.Module, classes: Classes | None) -> str | None:
    """Why a module is none of those that our encoder computes; None if it is."""
    kind = type(module).__name__
    if classes is None:
        return f"is a {kind}, which SAM's encoder does not have there"
    if type(module) not in classes:
        return f"is a {kind}, not a {classes[0].__name__}"
    if changed := _changed(module):
        return changed
    part: Any = module
    if getattr(part, "approximate", "none") != "none" or ("act" in vars(part) and part.act is not F.gelu):
        return "is not the exact GELU"
    if isinstance(module, nn.Dropout) and part.p > 0:
        return f"drops out {part.p:g} of its input in training: build the model without dropout"
    if isinstance(module, nn.Conv2d) and (part.groups != 1 or part.dilation != (1, 1) or part.padding_mode != "zeros"):
        return "is a convolution of another kind"
    return None


def _changed(module: nn.Module) -> str | None:
    hooks = (
        "_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
        "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
    )  # fmt: skip
    for kind in hooks:
        for hook in getattr(module, kind, {}).values():
            # transformers' own, which collect hidden states
            if not getattr(hook, "__module__", "").startswith("transformers.utils."):
                return "has a hook: remove it, and register it again on the accelerated encoder"
    return "has another forward" if "forward" in vars(module) else None


def _config(encoder: Any, anatomy: Anatomy) -> EncoderConfig:
    blocks = getattr(encoder, anatomy.blocks)
    patch = encoder.get_submodule(anatomy.patch)
    dim, sides = patch.out_channels, {*patch.kernel_size, *patch.stride}
    if len(sides) > 1 or patch.in_channels != 3 or set(patch.padding) != {0}:
        raise _refusal("its patches overlap, are not square, or are not of RGB")
    if not len(blocks):
        raise _refusal("it has no layers")
    (side,) = sides
    heads = {getattr(block.attn, anatomy.heads) for block in blocks}
    hidden = {block.get_submodule(anatomy.hidden).out_features for block in blocks}
    windows = {block.window_size for block in blocks} - {0}
    if len(heads) > 1 or len(hidden) > 1 or len(windows) > 1:
        raise _refusal("its layers differ in heads, hidden width or window")
    (num_heads,) = heads
    scales = {block.attn.scale for block in blocks}
    if dim % num_heads or scales != {(dim // num_heads) ** -0.5}:
        raise _refusal("its attention is scaled by another factor")
    if any(getattr(block.attn, "dropout", 0) for block in blocks):
        raise _refusal("its attention drops out in training: build the model without dropout")
    img_size = _img_size(encoder, side)
    neck = encoder.neck
    final = next((part for part in neck.modules() if isinstance(part, nn.Conv2d)), None)
    return EncoderConfig(
        img_size=img_size,
        dim=dim,
        depth=len(blocks),
        num_heads=num_heads,
        global_layers=tuple(layer for layer, block in enumerate(blocks) if block.window_size == 0),
        window=next(iter(windows), 0),
        patch_size=side,
        mlp_ratio=hidden.pop() / dim,
        out_chans=final.out_channels if final is not None else dim,
    )


def _img_size(encoder: Any, patch: int) -> int:
    """Side of the input; from the positions where there are some, since ultralytics changes `img_size`."""
    if encoder.pos_embed is not None:
        size: Any = (encoder.pos_embed.shape[1] * patch, encoder.pos_embed.shape[2] * patch)
    else:
        size = next(
            found for part, name in ((encoder, "img_size"), (encoder, "image_size"), (encoder.patch_embed, "img_size"))
            if (found := getattr(part, name, None)) is not None
        )  # fmt: skip
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1 or min(sides) % patch:
        raise _refusal("its images are not square, or no whole number of patches")
    return sides.pop()


def _starred(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)
