"""`segment_anything`'s builders: SAM's three sizes by name, with this project's encoder in its dense form.

They compute what SAM does, from SAM's checkpoints, and are `sam_model_registry["vit_h"]` and so on; `keep_ratio` is 1.0
always. For ratios below it, see `convert_sam`.
"""

from __future__ import annotations

from pathlib import Path

from segment_anything.modeling import Sam

from .registry import sam_model_registry


def build_sam_vit_h(checkpoint: str | Path | None = None) -> Sam:
    """SAM with ViT-H, in eval mode: of `checkpoint`, any file that `load_sam` reads, or with random weights.

    Raises InputError where the file cannot be used, or holds a model of another size.
    """
    return sam_model_registry["vit_h"](checkpoint)


def build_sam_vit_l(checkpoint: str | Path | None = None) -> Sam:
    """SAM with ViT-L, as `build_sam_vit_h`."""
    return sam_model_registry["vit_l"](checkpoint)


def build_sam_vit_b(checkpoint: str | Path | None = None) -> Sam:
    """SAM with ViT-B, as `build_sam_vit_h`."""
    return sam_model_registry["vit_b"](checkpoint)


build_sam = build_sam_vit_h
