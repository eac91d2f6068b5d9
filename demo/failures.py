"""Draw what the shipped weights get wrong, on the quickstart's photographs: docs/failures.jpg."""

import argparse
from pathlib import Path

import torch

from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.images import write_image
from sam_bigltl.quickstart import sample_photos
from sam_bigltl.segment import Prompt, draw_segments, load_predictor, segment_prompt
from sam_bigltl.visualize import side_by_side

FAILURES = (
    ("astronaut", Prompt(box=(25, 5, 440, 511)), "the helmet and a part of the shuttle come along"),
    ("astronaut", Prompt(box=(10, 200, 375, 511)), "the suit takes head and helmet along, with holes"),
    ("coffee", Prompt(points=((300, 350),), labels=(1,)), "a point on the saucer: half of it, and specks of the table"),
    ("coffee", Prompt(box=(75, 55, 480, 380)), "a box around the saucer takes the cup, and little of the saucer"),
)


def run(args: argparse.Namespace) -> None:
    """One strip, written to args.out."""
    predictor = load_predictor(args.checkpoint, torch.device("cpu"), "float32")
    predictor.model.image_encoder.keep_ratio = args.keep_ratio
    photos = {photo.name: photo.image for photo in sample_photos()}
    pictures = []
    for name, prompt, _ in FAILURES:
        predictor.set_image(photos[name])
        segment = segment_prompt(predictor, prompt)[0]
        pictures.append(draw_segments(photos[name], [segment]))
    write_image(args.out, side_by_side(pictures, [caption for _, _, caption in FAILURES]))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    parser = ArgumentParser(prog="failures", description=__doc__)
    parser.add_argument("--checkpoint", help="weights (default: checkpoints/bigltl_mini.safetensors)")
    parser.add_argument("--keep-ratio", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--out", type=Path, default=Path("docs/failures.jpg"), help="default: docs/failures.jpg")
    run_cli("failures", run, parser.parse_args())
