"""The command line of the evaluation, shared by `sam-bigltl eval` and `eval/coco_miou.py`."""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import torch

from sam_bigltl.bench import device_name
from sam_bigltl.convert import load_sam
from sam_bigltl.errors import InputError
from sam_bigltl.evaluation.datasets import check_image_files, load_coco
from sam_bigltl.evaluation.protocol import InstanceResult, check_keep_ratios, evaluate
from sam_bigltl.precision import PRECISIONS, check_precision, set_precision
from sam_bigltl.predictor import SamPredictor

DESCRIPTION = """\
Measure mIoU on COCO-format annotations with box or click prompts.

Protocol A is that of EfficientViT-SAM: the annotation's box, or RITM's simulated clicks; of the three masks the one
with the highest predicted IoU; mean over instances, in percent, overall and by object size."""

EXAMPLES = """\
examples:
  %(prog)s --annotations instances_val2017.json --images val2017 --checkpoint model.safetensors \\
      --keep-ratio 1.0 0.5 0.25 --prompts box point --clicks 1 3 5 --output results/coco
  %(prog)s --annotations mine.json --images photos --checkpoint model.safetensors --keep-ratio auto \\
      --limit 50 --output results/quick

The output folder gets results.json (settings and summary) and instances.csv (one row per instance and setting)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the evaluation's flags, its description and examples to `parser`."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--annotations", required=True, metavar="JSON", help="COCO-format instances file")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of the images that the file names")
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="model weights")
    # Ratios, clicks and limits stay text here: `run` checks them and answers a bad one in one line.
    parser.add_argument(
        "--keep-ratio", nargs="+", default=["1.0"], metavar="R", help="in (0, 1], or auto; several are allowed (1.0)"
    )
    parser.add_argument("--prompts", nargs="+", choices=["box", "point"], default=["box"], help="(box)")
    parser.add_argument(
        "--clicks", nargs="+", default=["1", "3", "5"], metavar="N", help="clicks at which point IoU is taken (1 3 5)"
    )
    parser.add_argument("--protocol", choices=["A"], default="A", help="A: EfficientViT-SAM's (A)")
    parser.add_argument("--limit", metavar="N", help="only the first N images with annotations, by image id")
    parser.add_argument("--device", help="such as cpu or cuda:0 (cuda if there is one, else cpu)")
    parser.add_argument("--dtype", choices=list(PRECISIONS), default="float32", help="of the image encoder (float32)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for results.json and instances.csv")


def run(args: argparse.Namespace) -> None:
    """Evaluate as the flags of `add_arguments` say, write the two files and print the table.

    Raises:
        InputError: a flag, the annotations, an image or the checkpoint cannot be used.
    """
    ratios = _unique(_keep_ratio(text) for text in args.keep_ratio)
    clicks = sorted(_unique(_positive(text, "--clicks") for text in args.clicks))
    prompts = _unique(args.prompts)
    limit = None if args.limit is None else _positive(args.limit, "--limit")
    device = _device(args.device)
    check_precision(args.dtype, device)
    images = load_coco(args.annotations)[:limit]
    check_image_files(images, args.images)
    output = _output_folder(args.output)

    sam = load_sam(args.checkpoint)
    check_keep_ratios(sam.image_encoder, ratios)
    sam.to(device).eval()
    set_precision(sam.image_encoder, args.dtype)

    # Renamed when complete, so that a run cut short does not leave a file that looks whole.
    partial = output / "instances.csv.part"
    with partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([column.name for column in fields(InstanceResult)])
        summary = evaluate(
            SamPredictor(sam),
            images,
            args.images,
            ratios,
            prompts,
            clicks,
            on_result=lambda result: writer.writerow(astuple(result)),
        )
    os.replace(partial, output / "instances.csv")

    settings = {
        "annotations": args.annotations,
        "images": args.images,
        "checkpoint": Path(args.checkpoint).name,
        "keep_ratio": ratios,
        "prompts": prompts,
        "clicks": clicks,
        "protocol": args.protocol,
        "limit": limit,
        "output": args.output,
        "device": str(device),
        "device_name": device_name(device),
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    report = json.dumps({"settings": settings, "summary": summary}, indent=2)
    (output / "results.json").write_text(report + "\n", encoding="utf-8")
    print(format_table(summary))


def format_table(summary: Sequence[dict[str, Any]]) -> str:
    """The summary's rows as aligned plain text, percentages with one decimal and "-" for an empty split."""
    header = list(summary[0])
    cells = [header] + [[_cell(name, row[name]) for name in header] for row in summary]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in cells)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) and name != "keep_ratio" else str(value)


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _keep_ratio(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        ratio = float(text)
    except ValueError:
        ratio = 0.0
    if not 0.0 < ratio <= 1.0:
        raise InputError(f"--keep-ratio {text} is neither a number in (0, 1] nor auto; give for example 0.5")
    return ratio


def _positive(text: str, flag: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise InputError(f"{flag} {text} is not a whole number of at least 1; give for example {flag} 5")
    return number


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); give for example cpu or cuda:0") from error
    return device


def _output_folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {path} cannot be a folder ({error.strerror}); give another path") from error
    return folder
