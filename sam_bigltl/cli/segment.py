"""`sam-bigltl segment`: masks of one photograph, from boxes or points, as pictures and COCO JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..data.images import read_image
from ..data.tables import aligned
from ..errors import InputError
from ..fast.devices import parse_device
from ..predict.prompt import Prompt, usable
from ..predict.segment import (
    Segment,
    load_predictor,
    segment_image,
    segment_prompt,
    set_routing,
    write_masks,
    write_pictures,
)
from .prompts import name_and_exit, parse_keep_ratio, parse_prompts
from .tuned import add_format, add_tuned, encoder_setting

EXAMPLES = """\
examples:
  sam-bigltl segment photo.jpg --box 20,30,200,180 --keep-ratio 0.5 --out out
  sam-bigltl segment photo.jpg --point 120,90 --point 10,10,0
  sam-bigltl segment photos/ --prompts prompts.json --workers 2 --out out

prompts.json holds what to segment in each photograph of the folder, one entry an object, in pixels:
  {"street.jpg": [{"box": [20, 30, 200, 180]}, {"point_coords": [[120, 90], [10, 10]], "point_labels": [1, 0]}]}
The folder's masks go to OUT/street_masks.json and so on. Interrupted, the same command goes on where it stopped."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sam-bigltl segment`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("image", help="photograph (JPEG, PNG or another format that Pillow reads), or a folder of them")
    parser.add_argument("--checkpoint", metavar="PATH", help="weights (default: bigltl_mini, which is shipped)")
    parser.add_argument(
        "--box", action="append", default=[], metavar="X0,Y0,X1,Y1",
        help="corners of a box around an object, in pixels; give it again for another object",
    )  # fmt: skip
    parser.add_argument(
        "--point", action="append", default=[], metavar="X,Y[,LABEL]",
        help="a point on the object, in pixels; label 0: a point that is not on it. All points are for one object",
    )  # fmt: skip
    parser.add_argument(
        "--keep-ratio", metavar="RATIO",
        help="share of the image that the big path computes: a number in (0, 1], one number a stage as in "
        "1,0.5,0.5,0.25, or auto (default: that of the checkpoint)",
    )  # fmt: skip
    parser.add_argument(
        "--focus", action="store_true",
        help="encode once for each box, with the big tokens sought in it first: better masks at a small --keep-ratio",
    )  # fmt: skip
    parser.add_argument("--all-masks", action="store_true", help="keep all three masks of a prompt, not the best one")
    parser.add_argument("--out", default="out", metavar="DIR", help="folder for the results (default: %(default)s)")
    folder = parser.add_argument_group("a folder of photographs")
    folder.add_argument("--prompts", metavar="JSON", help="what to segment in each of its photographs, see below")
    folder.add_argument(
        "--workers", type=int, default=2, metavar="N",
        help="threads that read photographs ahead and write results behind the model; any number gives the same masks "
        "(default: %(default)s)",
    )  # fmt: skip
    folder.add_argument("--pictures", action="store_true", help="write overlay, masks and routing as pictures too")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")
    add_format(parser)
    add_tuned(parser)


def run(args: argparse.Namespace) -> None:
    """Segment `args.image`, write the results to `args.out`, and print a table.

    Exits with code 1 if some of the prompts cannot be used. Raises InputError on bad input, or if none of them can.
    """
    if Path(args.image).is_dir():
        from .segment_folder import run_folder

        return run_folder(args)
    if args.prompts is not None:
        raise InputError(f"--prompts is for a folder of photographs, and {args.image} is none")
    prompts = parse_prompts(args.box, args.point)
    keep_ratio = None if args.keep_ratio is None else parse_keep_ratio(args.keep_ratio)
    device = parse_device(args.device)
    chosen, setting = encoder_setting(args, device)
    if setting is not None and keep_ratio is None:
        keep_ratio = setting.keep_ratio
    if args.focus and prompts[0].box is None:
        raise InputError("--focus seeks the big tokens in a box: give one with --box")
    image = read_image(args.image)
    prompts, unusable = usable(prompts, image.shape[:2])
    if not prompts:
        raise unusable[0]
    predictor = load_predictor(args.checkpoint, device, chosen.dtype, chosen.native)
    set_routing(predictor, keep_ratio, args.focus)
    chosen.say()

    def answer(some: Sequence[Prompt]) -> list[list[Segment]]:
        return [segment_prompt(predictor, prompt, args.all_masks) for prompt in some]

    segments, routes, encoder_ms = segment_image(predictor, image, prompts, answer, args.focus)
    out, name = Path(args.out), Path(args.image).name
    paths = [*write_pictures(out, name, image, routes, segments), write_masks(out, name, segments)]
    print(table(segments))
    where = f"on {device} in {chosen.dtype}" + " native" * chosen.native
    where += (
        ""
        if setting is None or keep_ratio is None
        else f" at keep_ratio {replace(setting, keep_ratio=keep_ratio).ratio}"
    )
    print(f"encoder {encoder_ms:.1f} ms (first call), decoder {sum_ms(segments):.1f} ms, {where}")
    print("wrote " + ", ".join(str(path) for path in paths))
    if unusable:
        name_and_exit({f"{len(unusable)} of {len(unusable) + len(prompts)} prompts could not be used": unusable})


def table(segments: Sequence[Segment]) -> str:
    """One aligned line per mask."""
    rows = [("mask", "prompt", "predicted IoU", "area px", "decoder ms")]
    for number, s in enumerate(segments, start=1):
        rows.append((str(number), str(s.prompt), f"{s.predicted_iou:.3f}", str(s.mask.sum()), f"{s.decoder_ms:.1f}"))
    return aligned(rows, left=(1,))


def sum_ms(segments: Sequence[Segment]) -> float:
    """Decoder time over all prompts; the masks of one prompt share one call."""
    return sum({segment.prompt: segment.decoder_ms for segment in segments}.values())
