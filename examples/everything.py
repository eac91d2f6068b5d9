"""Masks of everything in a photograph, from a grid of points.

python examples/everything.py --points-per-side 16 --out out
"""

import argparse
from pathlib import Path

from sam_bigltl import SamAutomaticMaskGenerator, load_sam
from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.images import read_image, write_image
from sam_bigltl.quickstart import sample_photos
from sam_bigltl.registry import default_checkpoint
from sam_bigltl.visualize import overlay


def run(args: argparse.Namespace) -> None:
    image = read_image(args.photo) if args.photo else sample_photos()[0].image
    sam = load_sam(args.checkpoint or default_checkpoint())
    sam.image_encoder.keep_ratio = 0.5
    # The thresholds are SAM's for SAM's own weights; the shipped ones, trained on few photographs, are less sure of
    # themselves.
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=args.points_per_side,
        pred_iou_thresh=args.pred_iou_thresh,
        stability_score_thresh=args.stability_score_thresh,
    )
    records = sorted(generator.generate(image), key=lambda record: record["area"], reverse=True)
    for number, record in enumerate(records, start=1):
        print(
            f"{number:>3}  {record['area']:>7} pixels  bbox {record['bbox']}"
            f"  predicted IoU {record['predicted_iou']:.3f}"
        )
    path = Path(args.out) / "everything.png"
    write_image(path, overlay(image, [record["segmentation"] for record in records]))
    print(f"{len(records)} masks; wrote {path}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", help="(default: the astronaut that comes with scikit-image)")
    parser.add_argument("--points-per-side", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--pred-iou-thresh", type=float, default=0.5, help="(%(default)s)")
    parser.add_argument("--stability-score-thresh", type=float, default=0.6, help="(%(default)s)")
    parser.add_argument("--checkpoint", help="(default: the shipped weights)")
    parser.add_argument("--out", default="out", help="folder (%(default)s)")
    run_cli("everything", run, parser.parse_args())
