"""One photograph: a box, then a point on an object with a second one that is not on it.

python examples/one_image.py
python examples/one_image.py --photo photo.jpg --box 80 40 300 260 --point 200 150 --not-point 90 60
"""

import argparse
from pathlib import Path

import numpy as np

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.images import read_image, write_image
from sam_bigltl.quickstart import sample_photos
from sam_bigltl.registry import default_checkpoint
from sam_bigltl.visualize import overlay


def run(args: argparse.Namespace) -> None:
    image = read_image(args.photo) if args.photo else sample_photos()[0].image  # (H, W, 3) uint8 RGB
    box = np.array(args.box)
    points, labels = np.array([args.point, args.not_point]), np.array([1, 0])

    sam = load_sam(args.checkpoint or default_checkpoint())
    sam.image_encoder.keep_ratio = args.keep_ratio
    predictor = SamPredictor(sam)
    predictor.set_image(image)  # the encoder runs here, once

    # Three masks for each prompt, because it may be ambiguous: the one with the highest predicted IoU is taken.
    masks, scores, _ = predictor.predict(box=box)
    by_box = masks[scores.argmax()]
    print(f"box: {by_box.sum()} pixels, predicted IoU {scores.max():.3f}")
    masks, scores, _ = predictor.predict(point_coords=points, point_labels=labels)
    by_points = masks[scores.argmax()]
    print(f"points: {by_points.sum()} pixels, predicted IoU {scores.max():.3f}")

    path = Path(args.out) / "one_image.png"
    write_image(path, overlay(image, [by_box, by_points], boxes=[box], points=points, labels=labels))
    print(f"wrote {path}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", help="(default: the astronaut that comes with scikit-image)")
    parser.add_argument("--box", type=float, nargs=4, default=(285, 340, 505, 511), metavar=("X0", "Y0", "X1", "Y1"))
    parser.add_argument("--point", type=float, nargs=2, default=(189, 384), metavar=("X", "Y"), help="on the object")
    parser.add_argument("--not-point", type=float, nargs=2, default=(130, 384), metavar=("X", "Y"), help="not on it")
    parser.add_argument("--checkpoint", help="(default: the shipped weights)")
    parser.add_argument("--keep-ratio", type=float, default=0.5, help="(%(default)s)")
    parser.add_argument("--out", default="out", help="folder (%(default)s)")
    run_cli("one_image", run, parser.parse_args())
