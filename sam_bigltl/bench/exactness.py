"""Is a converted SAM encoder equal to the original at keep_ratio 1.0? A check on random weights, no download."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import segment_anything
import torch
from segment_anything.modeling import Sam
from torch import nn

from ..convert.sam import convert_sam
from ..errors import ArgumentParser, InputError, run_cli

MODELS = ("vit_b", "vit_l", "vit_h")
TOLERANCE = 1e-4


def randomise_positions(encoder: nn.Module, seed: int = 0) -> None:
    """Fill `pos_embed` (std 0.02) and every `rel_pos_h`, `rel_pos_w` (std 0.1) in place.

    segment_anything builds them as zeros, where an encoder that ignored them would pass any comparison.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            leaf = name.rpartition(".")[2]
            if leaf == "pos_embed":
                parameter.normal_(0.0, 0.02, generator=generator)
            elif leaf in ("rel_pos_h", "rel_pos_w"):
                parameter.normal_(0.0, 0.1, generator=generator)


def conversion_difference(sam: Sam, seed: int = 0) -> float:
    """Largest absolute difference between the embeddings of `sam` and `convert_sam(sam)` at keep_ratio 1.0.

    Both encoders run in float32 on one seeded random image, (1, 3, S, S) at the model's own size S.
    """
    size = sam.image_encoder.img_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(seed))
    converted = convert_sam(sam).eval()
    converted.image_encoder.keep_ratio = 1.0
    with torch.inference_mode():
        expected = sam.image_encoder(image)  # (1, 256, g, g)
        actual = converted.image_encoder(image)
    return (actual - expected).abs().max().item()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare this command's options."""
    parser.add_argument("--model", default="vit_b", help=f"{', '.join(MODELS)} (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Print the difference; exit with code 1 if it is above the tolerance. Raises InputError for an unknown model."""
    if args.model not in MODELS:
        raise InputError(f"unknown model {args.model!r}: choose from {', '.join(MODELS)}")
    torch.manual_seed(0)
    sam = segment_anything.sam_model_registry[args.model]()
    randomise_positions(sam.image_encoder)
    difference = conversion_difference(sam)
    print(f"max abs difference at keep_ratio 1.0: {difference:.3g} (tolerance 1e-4)")
    if not difference <= TOLERANCE:  # so that NaN fails too
        sys.exit(1)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/exactness.py`."""
    parser = ArgumentParser(prog="exactness.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
