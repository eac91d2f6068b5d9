"""Number formats, C++ kernels and the warm start on a model with outliers, beside the same model without.

The model with outliers computes the same function (`reparametrise.py`): what it loses more is due to them. Agreement is
that of `sam-bigltl tune`: the IoU with the masks of the float32 original, for a box and a point of every object that
the original's own everything mode finds.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor
from tqdm import tqdm

from sam_bigltl.cli import flag_checks
from sam_bigltl.convert import convert_sam, load_sam
from sam_bigltl.convert.warm_start import warm_start
from sam_bigltl.convert.weight_files import weights_sha256
from sam_bigltl.data.files import whole_path, write_csv
from sam_bigltl.data.images import read_image
from sam_bigltl.data.tables import aligned
from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.predict.predictor import SamPredictor
from sam_bigltl.tuning.agreement import Measured, measure
from sam_bigltl.tuning.original import Objects, find_prompts, see, shrunk
from sam_bigltl.tuning.settings import Setting, apply

from .reparametrise import reparametrised

COLUMNS = (
    "weights", "keep_ratio", "dtype", "native", "agreement", "agreement_p5", "above_0.9", "box", "point",
    "embedding_error", "prompts", "images",
)  # fmt: skip
FORMATS = (("float32", False), ("bfloat16", False), ("bfloat16", True), ("int8", False), ("int8", True))
SETTINGS = [Setting(dtype, native, 1.0) for dtype, native in FORMATS]
SETTINGS += [Setting(dtype, native, 0.5) for dtype, native in (FORMATS[0], FORMATS[2], FORMATS[4])]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `eval/outliers.py`."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="a dense model, such as a SAM checkpoint")
    parser.add_argument("--images", type=Path, required=True, metavar="LIST", help="photographs, one path a line")
    parser.add_argument("--fit", type=int, default=40, metavar="N", help="the first N of them fit the little path (40)")
    parser.add_argument("--objects", type=int, default=16, metavar="N", help="of a photograph, at most (16)")
    parser.add_argument("--seed", type=int, default=0, help="of the outliers (0)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep what the original sees here, for the next run")
    parser.add_argument("--csv", type=Path, default=Path("docs/results/outliers.csv"), help="(%(default)s)")


def run(args: argparse.Namespace) -> None:
    """Measure, print a row as it comes, write the CSV. Raises InputError."""
    flag_checks.at_least_one(args, ("fit", "objects"))
    try:
        photos = [Path(line) for line in args.images.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {args.images}, a list of photographs, one path a line: {error}") from None
    if args.fit >= len(photos):
        raise InputError(f"--fit {args.fit} leaves no photograph to measure on: {args.images} names {len(photos)}")
    sam = load_sam(args.checkpoint)
    fitting = [preprocessed(sam, photo) for photo in photos[: args.fit]]
    key = f"{weights_sha256(args.checkpoint)[:12]}-{args.objects}"
    seen = list(what_is_seen(sam, photos[args.fit :], args.objects, args.cache and args.cache / key))
    rows = []
    for name, original in (("plain", sam), ("outliers", reparametrised(sam, torch.cat(fitting[:4]), args.seed))):
        torch.manual_seed(0)  # the E-blocks' start
        converted = convert_sam(original)
        warm_start(converted, fitting)
        for setting in SETTINGS:
            rows.append({"weights": name} | row(setting, measured(converted, setting, seen)))
            tqdm.write("  ".join(str(value) for value in rows[-1].values()))
    write_csv(args.csv, COLUMNS, rows)
    print(aligned([COLUMNS, *([str(each[column]) for column in COLUMNS] for each in rows)]))
    print(f"written: {args.csv}")


def preprocessed(sam: Sam, photo: Path) -> Tensor:
    """(1, 3, S, S), as the encoder takes it."""
    resized = SamPredictor(sam).transform.apply_image(read_image(photo))
    return sam.preprocess(torch.as_tensor(resized).permute(2, 0, 1)[None].to(sam.device))


def what_is_seen(sam: Sam, photos: Sequence[Path], most: int, cache: Path | None) -> Iterator[Objects]:
    """What the original sees in each photograph; the prompts, which take long, are kept in the folder `cache`."""
    for photo in tqdm(photos, desc="original", disable=None):
        pixels = shrunk(read_image(photo), sam.image_encoder.img_size)
        kept = cache and cache / f"{photo.name}.npz"
        if kept and kept.is_file():
            with np.load(kept) as file:
                prompts = file["boxes"], file["points"]
        else:
            prompts = find_prompts(sam, pixels, most)
            if kept:
                with whole_path(kept) as partial, partial.open("wb") as out:
                    np.savez(out, boxes=prompts[0], points=prompts[1])
        if len(prompts[0]):
            yield see(sam, photo.name, pixels, *prompts)


def measured(sam: Sam, setting: Setting, seen: Sequence[Objects]) -> list[Measured]:
    """A copy of `sam` with a setting, on each photograph."""
    tuned = copy.deepcopy(sam)
    apply(tuned.image_encoder, setting)
    predictor = SamPredictor(tuned)
    shown = tqdm(seen, desc=str(setting), disable=None, leave=False)
    return [measure(predictor, objects, setting) for objects in shown]


def row(setting: Setting, parts: Sequence[Measured]) -> dict[str, Any]:
    """A line of the CSV."""
    ious = np.array([iou for part in parts for iou in part.ious])
    kinds = np.array([kind for part in parts for kind in part.kinds])
    return {
        "keep_ratio": setting.keep_ratio,
        "dtype": setting.dtype,
        "native": "yes" if setting.native else "no",
        "agreement": f"{ious.mean():.4f}",
        "agreement_p5": f"{np.percentile(ious, 5):.4f}",
        "above_0.9": f"{(ious > 0.9).mean():.4f}",
        "box": f"{ious[kinds == 'box'].mean():.4f}",
        "point": f"{ious[kinds == 'point'].mean():.4f}",
        "embedding_error": f"{np.mean([part.embedding_error for part in parts]):.5f}",
        "prompts": len(ious),
        "images": len(parts),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/outliers.py`."""
    parser = ArgumentParser(prog="outliers.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
