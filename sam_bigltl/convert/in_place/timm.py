"""timm's `samvit_*`: the model is the encoder, with a classifier's head behind it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from timm.layers import LayerNorm2d, Mlp, PatchEmbed
from timm.models import vision_transformer_sam as library
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from typing_extensions import Self

from ...errors import InputError
from ...modeling.encoder import EncoderConfig
from .anatomy import Anatomy, examine
from .encoder import InPlaceEncoder, Origin, tie
from .renamed import Renamed
from .site import SMALL, Site

_PARTS = ("patch_embed", "pos_embed", "pos_drop", "patch_drop", "norm_pre", "blocks", "neck")


def _their_name(name: str) -> str:
    """timm's name of one of our parameters."""
    return name.replace(".mlp.lin", ".mlp.fc")


class VisionTransformer(Renamed, library.VisionTransformerSAM):
    """timm's model with our encoder: what it becomes in place."""

    to_theirs = staticmethod(_their_name)

    @property
    def blocks(self) -> Any:  # type: ignore[override]
        """Our P-blocks."""
        return self.encoder.blocks

    @property
    def patch_embed(self) -> Any:  # type: ignore[override]
        """Of our encoder."""
        return self.encoder.patch_embed

    @property
    def pos_embed(self) -> Any:  # type: ignore[override]
        """Of our encoder."""
        return self.encoder.pos_embed

    @property
    def neck(self) -> Any:  # type: ignore[override]
        """Of our encoder."""
        return self.encoder.neck

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's."""
        self.grad_checkpointing = self.encoder.gradient_checkpointing = enable

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, channels, g, g)"""
        self.encoder.check_size(x)
        return self.encoder(x)

    def forward_intermediates(
        self, x: Tensor, indices: Any = None, norm: bool = False, stop_early: bool = False, output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:  # fmt: skip
        """As timm's, at keep_ratio 1.0. Raises InputError below."""
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt of ViT-SAM is NCHW, not {output_fmt}")
        encoder = self.encoder
        encoder.check_size(x)
        if not encoder.all_big:
            raise InputError("below keep_ratio 1.0 only some tokens have intermediates: set keep_ratio to 1.0 for them")
        take, last = feature_take_indices(len(encoder.blocks), indices)
        states = encoder.states(x)
        tokens = {layer: value.permute(0, 3, 1, 2) for layer, value in states.layers.items()}  # (B, C, g, g)
        found = [
            (encoder.neck(value) if norm else value).to(x.dtype) for layer, value in tokens.items() if layer in take
        ]
        if intermediates_only:
            return found
        return (encoder.neck(tokens[last]) if stop_early else states.embedding).to(x.dtype), found

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: layers are taken away from the model's own encoder."""
        raise InputError("take layers away first, then accelerate: accelerate(model, undo=True)")


class _Site(Site):
    """The parts of the model are the encoder."""

    @property
    def encoder(self) -> Any:
        return self.model

    def ours(self) -> InPlaceEncoder | None:
        return self.model.encoder if isinstance(self.model, VisionTransformer) else None

    def examine(self) -> tuple[EncoderConfig, Origin]:
        if type(self.model) is not library.VisionTransformerSAM:
            raise InputError(f"the image encoder cannot be replaced: it is a {type(self.model).__name__}")
        parts = nn.Module()  # the encoder without the head
        for name in _PARTS:
            setattr(parts, name, getattr(self.model, name))
        config, origin = examine(parts.train(self.model.training), self.anatomy)
        origin.order = tuple(self.model._modules)
        return config, origin

    def build(self, config: EncoderConfig, origin: Origin) -> InPlaceEncoder:
        return tie(self.kind, config, origin, norm_only="neck.0.bias" in origin.names)

    def small(self) -> nn.Module:
        conv_neck = isinstance(self.model.neck, nn.Sequential)
        return type(self.model)(
            img_size=SMALL["side"], embed_dim=SMALL["dim"], depth=SMALL["depth"], num_heads=SMALL["heads"],
            neck_chans=SMALL["channels"] if conv_neck else 0, use_rel_pos=True, window_size=SMALL["window"],
            global_attn_indexes=SMALL["global_layers"], num_classes=0,
        )  # fmt: skip

    def answer(self, encoder: Any, images: Tensor) -> list[Tensor]:
        return [encoder.forward_features(images)]

    def around(self, encoder: nn.Module) -> Self:
        other = copy.copy(self)
        other.model = encoder
        return other

    def install(self, encoder: InPlaceEncoder) -> None:
        for name in _PARTS:
            self.model._modules.pop(name, None)
            self.model._parameters.pop(name, None)
            vars(self.model).pop(name, None)  # pos_embed, where it is None
        encoder.gradient_checkpointing = self.model.grad_checkpointing
        self.model.__class__ = VisionTransformer
        self.model.encoder = encoder

    def restore(self, theirs: nn.Module) -> None:
        model, order = self.model, self.model.encoder.origin.order
        del model.encoder
        model.__class__ = library.VisionTransformerSAM
        parts = {name: getattr(theirs, name) for name in _PARTS}
        modules = {**parts, **{name: model._modules.pop(name) for name in list(model._modules)}}
        for name in (*order, *(name for name in modules if name not in order)):
            setattr(model, name, modules[name])


def find(model: Any) -> Site | None:
    """The place of the encoder, or None where the model is none of these."""
    if not isinstance(model, library.VisionTransformerSAM):
        return None
    nothing = (nn.Identity,)
    conv_neck = isinstance(getattr(model, "neck", None), nn.Sequential)
    return _Site(
        model,
        Anatomy(
            {
                "": (nn.Module,),
                "patch_embed": (PatchEmbed,),
                "patch_embed.proj": (nn.Conv2d,),
                "patch_embed.norm": nothing,
                "pos_drop": (nn.Dropout,),
                "patch_drop": nothing,
                "norm_pre": nothing,
                "blocks": (nn.Sequential,),
                "blocks.*": (library.Block,),
                "blocks.*.norm1": (nn.LayerNorm,),
                "blocks.*.attn": (library.Attention,),
                "blocks.*.attn.qkv": (nn.Linear,),
                "blocks.*.attn.q_norm": nothing,
                "blocks.*.attn.k_norm": nothing,
                "blocks.*.attn.attn_drop": (nn.Dropout,),
                "blocks.*.attn.proj": (nn.Linear,),
                "blocks.*.attn.proj_drop": (nn.Dropout,),
                "blocks.*.ls1": nothing,
                "blocks.*.drop_path1": nothing,
                "blocks.*.norm2": (nn.LayerNorm,),
                "blocks.*.mlp": (Mlp,),
                "blocks.*.mlp.fc1": (nn.Linear,),
                "blocks.*.mlp.act": (nn.GELU,),
                "blocks.*.mlp.drop1": (nn.Dropout,),
                "blocks.*.mlp.norm": nothing,
                "blocks.*.mlp.fc2": (nn.Linear,),
                "blocks.*.mlp.drop2": (nn.Dropout,),
                "blocks.*.ls2": nothing,
                "blocks.*.drop_path2": nothing,
                "neck": (nn.Sequential,) if conv_neck else (LayerNorm2d,),
                "neck.0": (nn.Conv2d,),
                "neck.1": (LayerNorm2d,),
                "neck.2": (nn.Conv2d,),
                "neck.3": (LayerNorm2d,),
            },
            hidden="mlp.fc1",
            name=_their_name if conv_neck else lambda name: _their_name(name).replace("neck.0.", "neck."),
        ),
    )
