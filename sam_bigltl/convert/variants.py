"""SAM's tensors as other projects write them, and what a file says beside its tensors."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError

ENCODER_ALONE = (
    "holds an image encoder alone, without SAM's prompt encoder and mask decoder: give the file of the whole model, or "
    "put our encoder into the one that you have with sam_bigltl.accelerate"
)
_HQ = re.compile(
    r"mask_decoder\.(hf_token|hf_mlp|compress_vit_feat|embedding_encoder|embedding_maskfeature"  # SAM-HQ's own files
    r"|hq_token|hq_mask_mlp|compress_vit_\w+|encoder_conv\d|encoder_norm|mask_conv\d|mask_norm)\."  # SamHQModel
)
_ADAPTED = re.compile(r"\.(base_layer|lora_\w+|modules_to_save|original_module)\.")
# Encoders alone, as timm, transformers and segment_anything name their layers.
_ALONE = ("blocks.0.attn.rel_pos_h", "layers.0.attn.rel_pos_h")
_PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}


@dataclass(frozen=True)
class Stated:
    """What tensors do not tell of a model, and its file or its configuration may. None: nothing is said.

    Attributes:
        num_heads, global_layers, window, route_every: of the encoder, as in `EncoderConfig`.
        decoder_heads: heads of the mask decoder's attention.
        decoder_eps: epsilon of the norms in the layers of its transformer.
    """

    num_heads: int | None = None
    global_layers: tuple[int, ...] | None = None
    window: int | None = None
    route_every: int | None = None
    decoder_heads: int | None = None
    decoder_eps: float | None = None

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> Stated:
        """What one of our own files says, as far as it is of the right kind."""
        every, heads, eps = (about.get(name) for name in ("route_every", "decoder_heads", "decoder_eps"))
        return cls(
            route_every=every if type(every) is int and every > 0 else None,
            decoder_heads=heads if type(heads) is int and heads > 0 else None,
            decoder_eps=eps if isinstance(eps, float) and 0 < eps < 1 else None,
        )


def read_sam(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors that `segment_anything`'s Sam has, of a state dict by its names that may hold more.

    Raises:
        InputError: layers that peft has wrapped, an encoder alone, or photographs prepared in another way.
    """
    refuse_adapters(state, path)
    parts = {name.split(".")[0] for name in state}
    if any(name in state for name in _ALONE) or (
        "image_encoder.blocks.0.attn.qkv.weight" in state and not parts & {"mask_decoder", "prompt_encoder"}
    ):
        raise InputError(f"{path} {ENCODER_ALONE}")
    for name, usual in _PIXELS.items():  # some copies of Sam save what SAM leaves out
        if name in state and not torch.allclose(state[name].float().flatten(), torch.tensor(usual), atol=1e-3):
            raise InputError(f"{path} normalises photographs with another {name} than SAM's: its masks would be wrong")
    return without_hq({name: value for name, value in state.items() if name not in _PIXELS}, path)


def without_hq(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors without those that SAM-HQ adds to the mask decoder, which is logged.

    SAM-HQ trains only these; the others are SAM's, so that what is left is SAM.
    """
    left = {name: value for name, value in state.items() if not _HQ.match(name)}
    if len(left) < len(state):
        logging.getLogger(__name__).warning(
            "%s is a SAM-HQ: SAM is read from it, without the HQ output; to keep that, build the model with its own "
            "package and use sam_bigltl.accelerate",
            path,
        )
    return left


def refuse_adapters(state: dict[str, Tensor], path: Path) -> None:
    """Raise InputError for a model whose layers peft has wrapped."""
    if wrapped := next((name for name in state if _ADAPTED.search(name)), None):
        raise InputError(
            f"{path} holds layers that peft has wrapped ({wrapped[:80]}): save the model after merge_and_unload()"
        )
