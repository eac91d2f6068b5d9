"""transformers' SamModel, SamVisionModel, SamHQModel and SamHQVisionModel, and a pipeline with one of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.sam import modeling_sam
from transformers.models.sam_hq import modeling_sam_hq

from ...errors import InputError
from ..transformers_names import to_transformers
from .anatomy import Anatomy
from .encoder import InPlaceEncoder, States
from .renamed import Renamed
from .site import SMALL, Site

_ANSWERS = {
    modeling_sam.SamVisionEncoder: modeling_sam.SamVisionEncoderOutput,
    modeling_sam_hq.SamHQVisionEncoder: modeling_sam_hq.SamHQVisionEncoderOutput,
}


def _their_name(name: str) -> str:
    found = to_transformers(f"image_encoder.{name}")
    return found[0].removeprefix("vision_encoder.") if found else f"encoder.{name}"


class VisionEncoder(Renamed, nn.Module):
    """Stands where SamVisionEncoder or SamHQVisionEncoder was and answers as it does.

    Attributes:
        encoder: ours.
        config: transformers' SamVisionConfig.
    """

    to_theirs = staticmethod(_their_name)

    def __init__(self, encoder: InPlaceEncoder, config: Any, answers: type) -> None:
        super().__init__()
        theirs = encoder.origin.theirs
        dtype = encoder.origin.dtype or next(theirs.parameters()).dtype
        # The first parameter tells transformers the type of the model, which inputs and files have: not a copy's.
        self.marker = nn.Parameter(torch.empty(0, dtype=dtype, device=encoder.pos_embed.device), requires_grad=False)
        self.encoder = encoder
        self.config = config
        self.answers = answers
        self.training = encoder.training

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """torch's, by transformers' names."""
        state = super().state_dict(*args, **kwargs)
        del state[kwargs.get("prefix", "") + "marker"]
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args: Any) -> None:  # nn.Module's signature
        state_dict[prefix + "marker"] = self.marker.detach()
        super()._load_from_state_dict(state_dict, prefix, *args)

    def get_input_embeddings(self) -> nn.Module:
        """As transformers' encoder."""
        return self.encoder.patch_embed

    def forward(self, pixel_values: Tensor | None = None, **kwargs: Any) -> Any:
        """As transformers' encoder: a ModelOutput, or a tuple with return_dict=False.

        Args:
            pixel_values: (B, 3, S, S).
            kwargs: output_hidden_states at keep_ratio 1.0: True, or the indices of those to keep.

        Raises:
            InputError: another size; attentions, which are never stored; hidden states below keep_ratio 1.0.
        """
        if pixel_values is None:
            raise ValueError("You have to specify pixel_values")
        self.encoder.check_size(pixel_values)
        if self._setting(kwargs, "output_attentions"):
            raise InputError(
                "an accelerated encoder stores no attention weights: call it without output_attentions, or take the "
                "model's own encoder back with accelerate(model, undo=True)"
            )
        wanted = self._setting(kwargs, "output_hidden_states")
        is_hq = self.answers is modeling_sam_hq.SamHQVisionEncoderOutput
        collected: bool = wanted is not None and wanted is not False
        if collected and not self.encoder.all_big:
            raise InputError("below keep_ratio 1.0 only some tokens have hidden states: set keep_ratio to 1.0 for them")
        if not collected and not is_hq:
            result = self.answers(last_hidden_state=self.encoder(pixel_values))
        else:
            states = self.encoder.states(pixel_values)
            result = self.answers(last_hidden_state=states.embedding.to(pixel_values.dtype))
            if is_hq:
                layers = self.encoder.config.global_layers
                result["intermediate_embeddings"] = [states.layers[layer].to(pixel_values.dtype) for layer in layers]
            if collected:
                result["hidden_states"] = _hidden_states(states, wanted, pixel_values)
        return result if kwargs.get("return_dict", getattr(self.config, "return_dict", True)) else result.to_tuple()

    def _setting(self, kwargs: dict[str, Any], name: str) -> Any:
        return kwargs.get(name, getattr(self.config, name, False))


def _hidden_states(states: States, wanted: Any, images: Tensor) -> tuple[Tensor | None, ...]:
    """The tokens before the layers and after each; None for those that were not asked for."""
    every = [states.tokens, *(states.layers[layer] for layer in sorted(states.layers))]
    if isinstance(wanted, bool):
        kept = set(range(len(every)))
    else:
        kept = {index % len(every) for index in ([wanted] if isinstance(wanted, int) else wanted)}
    return tuple(x.to(images.dtype) if index in kept else None for index, x in enumerate(every))


class _VisionSite(Site):
    """Ours lies inside of a `VisionEncoder`."""

    def __init__(self, model: Any, module: Any, prefix: str) -> None:
        super().__init__(model, _anatomy(module, prefix), attribute="vision_encoder")

    def ours(self) -> InPlaceEncoder | None:
        return self.encoder.encoder if isinstance(self.encoder, VisionEncoder) else None

    def install(self, encoder: InPlaceEncoder) -> None:
        theirs: Any = encoder.origin.theirs
        self.model.vision_encoder = VisionEncoder(encoder, theirs.config, _ANSWERS[type(theirs)])

    def small(self) -> nn.Module:
        theirs = self.encoder.config
        config = type(theirs)(
            hidden_size=SMALL["dim"], output_channels=SMALL["channels"], num_hidden_layers=SMALL["depth"],
            num_attention_heads=SMALL["heads"], image_size=SMALL["side"], window_size=SMALL["window"],
            global_attn_indexes=list(SMALL["global_layers"]), mlp_dim=4 * SMALL["dim"], hidden_act=theirs.hidden_act,
        )  # fmt: skip
        config._attn_implementation = theirs._attn_implementation
        return type(self.encoder)(config)

    def answer(self, encoder: nn.Module, images: Tensor) -> list[Tensor]:
        found = encoder(images)
        return [found.last_hidden_state, *getattr(found, "intermediate_embeddings", [])]


def _anatomy(module: Any, prefix: str) -> Anatomy:
    def of(name: str) -> Any:
        return getattr(module, prefix + name)

    gelu = (nn.GELU, _activation("gelu"))
    return Anatomy(
        {
            "": (of("VisionEncoder"),),
            "patch_embed": (of("PatchEmbeddings"),),
            "patch_embed.projection": (nn.Conv2d,),
            "layers": (nn.ModuleList,),
            "layers.*": (of("VisionLayer"),),
            "layers.*.layer_norm1": (nn.LayerNorm,),
            "layers.*.attn": (of("VisionAttention"), of("VisionSdpaAttention")),
            "layers.*.attn.qkv": (nn.Linear,),
            "layers.*.attn.proj": (nn.Linear,),
            "layers.*.layer_norm2": (nn.LayerNorm,),
            "layers.*.mlp": (of("MLPBlock"),),
            "layers.*.mlp.lin1": (nn.Linear,),
            "layers.*.mlp.lin2": (nn.Linear,),
            "layers.*.mlp.act": gelu,
            "neck": (of("VisionNeck"),),
            "neck.conv1": (nn.Conv2d,),
            "neck.layer_norm1": (of("LayerNorm"),),
            "neck.conv2": (nn.Conv2d,),
            "neck.layer_norm2": (of("LayerNorm"),),
        },
        name=_their_name,
        blocks="layers",
        patch="patch_embed.projection",
        heads="num_attention_heads",
    )


def _activation(name: str) -> type[nn.Module]:
    from transformers.activations import ACT2FN

    return type(ACT2FN[name])


def find(model: Any) -> Site | None:
    """The place of the encoder, or None where the model, or that of the pipeline, is none of these."""
    model = model if isinstance(model, nn.Module) else getattr(model, "model", model)
    if isinstance(model, modeling_sam.SamModel | modeling_sam.SamVisionModel):
        return _VisionSite(model, modeling_sam, "Sam")
    if isinstance(model, modeling_sam_hq.SamHQModel | modeling_sam_hq.SamHQVisionModel):
        return _VisionSite(model, modeling_sam_hq, "SamHQ")
    return None
