"""`sam-bigltl export`: a checkpoint as ONNX files."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..convert.export import export_onnx
from ..convert.registry import default_checkpoint
from ..convert.sam import load_sam

EXAMPLES = """\
examples:
  sam-bigltl export --format onnx --keep-ratio 0.5 --output out/mini_half
  sam-bigltl export --format onnx --checkpoint bigltl_b.safetensors --keep-ratio 0.25 --output out/b_quarter

Then, where there is no torch:
  from sam_bigltl.onnx_predictor import OnnxSamPredictor
  predictor = OnnxSamPredictor("out/mini_half")"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `export`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="of the files (onnx)")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="PATH",
        help="any model that load_sam reads (default: checkpoints/bigltl_mini.safetensors)",
    )  # fmt: skip
    parser.add_argument("--keep-ratio", type=float, default=1.0, metavar="R",
                        help="share of the tokens on the big path, in (0, 1]; fixed in the file (1.0)")  # fmt: skip
    parser.add_argument(
        "--batch", type=int, metavar="B",
        help="images that the encoder takes at once, fixed in the file (default: any number)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="folder for encoder.onnx and decoder.onnx")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Export, and say what was written."""
    sam = load_sam(args.checkpoint or default_checkpoint())
    for path in export_onnx(sam, args.output, args.keep_ratio, args.batch):
        print(f"wrote {path}: {path.stat().st_size / 1e6:.1f} MB")
