"""Whether the parts of a Sam are `segment_anything`'s own, as it built them.

The fast decoder reads weights and leaves modules out. What a client has put into the model (a hook, a wrapper around a
projection, a method of its own) would then not run. It is asked before every prediction, since the client may do so at
any time: a walk over some 110 modules that only looks things up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import segment_anything.modeling as sam_modules
import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d, MLPBlock
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import nn
from torch.nn.modules import module as torch_module

from ..errors import InputError

# Functions of each element, which need not be of one class.
_ACTIVATIONS = (nn.GELU, nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.Identity)


class _Part:
    """What a module has to be: of one of these classes, its children by name, or all alike in a list."""

    __slots__ = ("children", "classes", "each", "weights")

    def __init__(
        self,
        classes: type | tuple[type, ...],
        children: dict[str, _Part] | None = None,
        each: _Part | None = None,
        weights: tuple[str, ...] = (),
    ) -> None:
        self.classes = frozenset(classes if isinstance(classes, tuple) else (classes,))
        self.children = tuple((children or {}).items())
        self.each, self.weights = each, weights


def _sequence(*parts: _Part) -> _Part:
    return _Part(nn.Sequential, {str(index): part for index, part in enumerate(parts)})


_BOTH = ("weight", "bias")
_LINEAR, _NORM, _NORM_2D = (_Part(kind, weights=_BOTH) for kind in (nn.Linear, nn.LayerNorm, LayerNorm2d))
_UP, _CONV = _Part(nn.ConvTranspose2d, weights=_BOTH), _Part(nn.Conv2d, weights=_BOTH)
_EMBEDDING, _ACTIVATION = _Part(nn.Embedding, weights=("weight",)), _Part(_ACTIVATIONS)
_ATTENTION = _Part(Attention, dict.fromkeys(("q_proj", "k_proj", "v_proj", "out_proj"), _LINEAR))
_MLP = _Part(MLP, {"layers": _Part(nn.ModuleList, each=_LINEAR)})
_ATTENTIONS = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
_LAYER = _Part(
    TwoWayAttentionBlock,
    dict.fromkeys(_ATTENTIONS, _ATTENTION)
    | dict.fromkeys(("norm1", "norm2", "norm3", "norm4"), _NORM)
    | {"mlp": _Part(MLPBlock, {"lin1": _LINEAR, "lin2": _LINEAR, "act": _ACTIVATION})},
)
_DECODER = _Part(
    MaskDecoder,
    {
        "transformer": _Part(
            TwoWayTransformer,
            {
                "layers": _Part(nn.ModuleList, each=_LAYER),
                "final_attn_token_to_image": _ATTENTION,
                "norm_final_attn": _NORM,
            },
        ),
        "iou_token": _EMBEDDING,
        "mask_tokens": _EMBEDDING,
        "output_upscaling": _sequence(_UP, _NORM_2D, _ACTIVATION, _UP, _ACTIVATION),
        "output_hypernetworks_mlps": _Part(nn.ModuleList, each=_MLP),
        "iou_prediction_head": _MLP,
    },
)
_PROMPTS = _Part(
    PromptEncoder,
    {
        "pe_layer": _Part(PositionEmbeddingRandom),
        "point_embeddings": _Part(nn.ModuleList, each=_EMBEDDING),
        "not_a_point_embed": _EMBEDDING,
        "mask_downscaling": _sequence(_CONV, _NORM_2D, _ACTIVATION, _CONV, _NORM_2D, _ACTIVATION, _CONV),
        "no_mask_embed": _EMBEDDING,
    },
)

# Attributes of an instance that would stand in for its class's methods; the last one is of `module.compile()`.
_METHODS = (
    "forward", "_call_impl", "predict_masks", "_separate_heads", "_recombine_heads", "get_dense_pe", "_embed_points",
    "_embed_boxes", "_embed_masks", "_get_batch_size", "_pe_encoding", "forward_with_coords", "_compiled_call_impl",
)  # fmt: skip
_TENSORS = frozenset((nn.Parameter, torch.Tensor))  # not their subclasses: quantized and sharded ones have own products
# Of the two transposed convolutions, which the fast decoder computes as linear layers.
_UPSCALING = dict(kernel_size=(2, 2), stride=(2, 2), padding=(0, 0), output_padding=(0, 0), dilation=(1, 1), groups=1)


def _methods_of_classes() -> list[tuple[type, str, Any]]:
    """Classes, names of their methods, and the functions; None where somebody has replaced one already."""
    ours = (MaskDecoder, TwoWayTransformer, TwoWayAttentionBlock, Attention, MLP, MLPBlock, LayerNorm2d, PromptEncoder,
            PositionEmbeddingRandom)  # fmt: skip
    torchs = (nn.Linear, nn.LayerNorm, nn.ConvTranspose2d, nn.Conv2d, nn.Embedding, nn.Sequential, nn.GELU, nn.ReLU)
    found = []
    for kind in (*ours, *torchs):
        for name in _METHODS if kind in ours else ("forward",):
            function = kind.__dict__.get(name)
            if function is not None:
                original = function.__module__ == kind.__module__ and function.__qualname__ == f"{kind.__name__}.{name}"
                found.append((kind, name, function if original else None))
    return found


_FUNCTIONS = _methods_of_classes()
_POSTPROCESS = Sam.postprocess_masks if Sam.postprocess_masks.__module__ == sam_modules.sam.__name__ else None


def is_plain(sam: nn.Module) -> bool:
    """Whether masks of `sam` may be computed without calling its mask decoder.

    So it is where mask decoder, prompt encoder and `postprocess_masks` are SAM's own, down to every projection, without
    hooks, methods, wrappers, parametrizations or tensors of somebody else's.
    """
    return all(plain_parts(sam))


def check_plain(sam: nn.Module, done: str) -> None:
    """Raise InputError where the prompt encoder or the mask decoder of `sam` is not SAM's own; `done` says by what."""
    if not is_plain(sam):
        raise InputError(
            f"the prompt encoder or the mask decoder is not as SAM has it and cannot be {done}: remove hooks, and "
            "merge adapters into it or take them out"
        )


def plain_parts(sam: nn.Module) -> tuple[bool, bool]:
    """Whether the prompt encoder is SAM's own, and whether mask decoder and `postprocess_masks` are."""
    if not _is_torch_plain():
        return False, False
    return _is(sam.prompt_encoder, _PROMPTS), has_plain_postprocess(sam) and _is_plain_decoder(sam.mask_decoder)


def _is_plain_decoder(decoder: Any) -> bool:
    if not _is(decoder, _DECODER) or decoder.num_mask_tokens != len(decoder.output_hypernetworks_mlps):
        return False
    up = decoder.output_upscaling._modules
    if any(up[name].__dict__[key] != value for name in ("0", "3") for key, value in _UPSCALING.items()):
        return False
    transformer = decoder.transformer
    attentions = [layer._modules[name] for layer in transformer.layers for name in _ATTENTIONS]
    return all(_fits(attention) for attention in (*attentions, transformer.final_attn_token_to_image))


def has_plain_postprocess(sam: nn.Module) -> bool:
    """Whether `sam.postprocess_masks` is SAM's own."""
    return _POSTPROCESS is not None and has_methods(sam, {"postprocess_masks": _POSTPROCESS})


def has_methods(instance: Any, methods: Mapping[str, Any]) -> bool:
    """Whether what an object does under these names are these functions, not those of a subclass or of its own."""
    return all(getattr(getattr(instance, name, None), "__func__", None) is method for name, method in methods.items())


def _is_torch_plain() -> bool:
    """No hooks on every module there is, and no other function in the place of a class's method."""
    if (
        torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    ):
        return False
    for kind, name, function in _FUNCTIONS:
        if kind.__dict__.get(name) is not function:
            return False
    return True


def _is(root: Any, part: _Part) -> bool:
    """Whether a module and everything in it are what `part` says."""
    waiting = [(root, part)]
    while waiting:
        module, part = waiting.pop()
        if type(module) not in part.classes:
            return False
        own = module.__dict__
        if (
            own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or not own.keys().isdisjoint(_METHODS)
        ):
            return False
        if part.weights:
            tensors = own["_parameters"]
            for name in part.weights:
                if type(tensors.get(name)) not in _TENSORS:
                    return False
        children = own["_modules"]
        if part.each is not None:
            for child in children.values():
                waiting.append((child, part.each))
        else:
            for name, child_part in part.children:
                waiting.append((children.get(name), child_part))
    return True


def _fits(attention: Any) -> bool:
    """Whether its queries are as wide as it says, by which the fast decoder scales them."""
    own, width = attention._modules, attention.internal_dim
    return own["q_proj"].out_features == own["k_proj"].out_features == own["v_proj"].out_features == width
