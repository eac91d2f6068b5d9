"""`sam-bigltl convert`: a SAM checkpoint to a big.LITTLE model, or any model to transformers' files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ..convert.hub import save_pretrained
from ..convert.sam import convert_sam, load_sam, save_sam
from ..errors import InputError

EXAMPLES = """\
examples:
  sam-bigltl convert sam_vit_b_01ec64.pth bigltl_b.safetensors
  sam-bigltl convert sam_vit_b_01ec64.pth bigltl_b.safetensors --warm-start photos/ --max-images 32
  sam-bigltl convert finetuned.pth my-sam/ --format transformers      # for transformers.SamModel

At keep_ratio 1.0 the result computes what the SAM computes. Below, its little path is random until it is fitted
(--warm-start, minutes) or distilled (sam-bigltl train --teacher)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `convert`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", type=Path, help="SAM's .pth, a file or folder of transformers' SamModel, or a dense "
                        "model of ours")  # fmt: skip
    parser.add_argument(
        "target", type=Path, help="the .safetensors file to write; the folder for --format transformers"
    )
    parser.add_argument("--format", choices=["sam_bigltl", "transformers"], default="sam_bigltl",
                        help="transformers: the folder of a SamModel, without a little path (sam_bigltl)")  # fmt: skip
    parser.add_argument("--little-dim", type=int, help="width of the little path (a quarter of the big one)")
    parser.add_argument("--route-every", type=int, help="layers that share one selection (one selection a stage)")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32", help="of the file (float32)")
    parser.add_argument("--warm-start", type=Path, metavar="DATA", help="fit the little path to the photographs of a "
                        "folder, a COCO-format JSON or tar shards")  # fmt: skip
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the JSON's photographs")
    parser.add_argument("--max-images", type=int, default=48, help="photographs used by --warm-start (48)")
    parser.add_argument("--seed", type=int, default=0, help="of the new weights and the choice of photographs (0)")


def run(args: argparse.Namespace) -> None:
    """Convert, fit if asked, write."""
    if args.format == "transformers":
        _to_transformers(args)
        return
    if args.target.suffix != ".safetensors":
        raise InputError(f"the target is a .safetensors file, not {args.target}")
    torch.manual_seed(args.seed)
    if args.images is not None and args.warm_start is None:
        raise InputError("--images is the folder of the photographs of --warm-start, which is missing")
    sam = convert_sam(load_sam(args.source), args.little_dim, args.route_every)
    if args.warm_start:
        from ..convert.warm_start import warm_start

        warm_start(sam, _photos(sam, args))
    save_sam(sam, args.target, getattr(torch, args.dtype))
    encoder = sam.image_encoder.config
    print(f"wrote {args.target}: width {encoder.dim} + {encoder.little_dim}, {len(encoder.groups)} routing groups")


def _photos(sam: Sam, args: argparse.Namespace) -> Iterator[Tensor]:
    """Photographs for the fit, preprocessed; those of a folder itself, or the first of another source."""
    from ..data.photos import preprocessed
    from ..data.sources import first_photos, open_source

    if args.max_images < 1:
        raise InputError(f"at least 1 photograph, not {args.max_images}")
    if args.warm_start.suffix.lower() != ".json" and args.images is not None:
        raise InputError("--images is the folder of a JSON's photographs: --warm-start names no JSON")
    if args.warm_start.is_dir():
        return preprocessed(sam, args.warm_start, args.max_images, args.seed)
    source = open_source(str(args.warm_start), args.images)
    return first_photos(sam, source, args.max_images, args.seed)


def _to_transformers(args: argparse.Namespace) -> None:
    for flag in ("little_dim", "route_every", "warm_start", "images"):
        if getattr(args, flag) is not None:
            name = flag.replace("_", "-")
            raise InputError(f"--{name} is of the little path, for which transformers has no place: leave it out")
    if args.target.suffix in (".safetensors", ".pth", ".bin") or args.target.is_file():
        raise InputError(f"--format transformers writes a folder: {args.target} is the name of a file")
    sam = load_sam(args.source)
    sam.image_encoder.keep_ratio = 1.0
    save_pretrained(sam, args.target, getattr(torch, args.dtype), format="transformers")
    left_out = ", its little path left out" if sam.image_encoder.config.little_dim else ""
    print(f"wrote {args.target}{left_out}: transformers.SamModel.from_pretrained reads it")
