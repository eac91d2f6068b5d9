"""One checkpoint at several keep ratios: the encoder's time, how far the mask moves, and which tokens were big.

python examples/keep_ratio.py --ratios 1 0.5 0.25 auto --out out
"""

import argparse
import time
from pathlib import Path

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.images import write_image
from sam_bigltl.quickstart import iou, sample_photos
from sam_bigltl.registry import default_checkpoint
from sam_bigltl.visualize import routing_picture


def run(args: argparse.Namespace) -> None:
    photo = sample_photos()[1]
    prompt = next(iter(photo.objects.values())).arguments()
    sam = load_sam(args.checkpoint or default_checkpoint())
    encoder = sam.image_encoder
    if args.dtype != "float32":
        encoder.optimize(args.dtype)
    predictor = SamPredictor(sam)

    first = None
    print(
        f"{'keep_ratio':>10} {'big tokens':>10} {'set_image ms':>12} {'predicted IoU':>13} {'IoU with the first':>18}"
    )
    for ratio in args.ratios:
        encoder.keep_ratio = ratio if ratio == "auto" else float(ratio)  # also one number a stage: (1, 0.5, 0.5, 0.25)
        predictor.set_image(photo.image)  # the first call at a ratio is slower
        times = []
        for _ in range(args.runs):
            start = time.perf_counter()
            predictor.set_image(photo.image)
            times.append((time.perf_counter() - start) * 1e3)
        masks, scores, _ = predictor.predict(**prompt)
        mask = masks[scores.argmax()]
        first = mask if first is None else first
        groups = predictor.route.groups
        big = sum(group.indices.shape[1] for group in groups) / len(groups)
        print(f"{ratio:>10} {big:>10.0f} {min(times):>12.0f} {scores.max():>13.3f} {iou(mask, first):>18.3f}")
        write_image(Path(args.out) / f"routing_{ratio}.png", routing_picture(photo.image, predictor.route))
    print(f"wrote the routing pictures to {args.out}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratios", nargs="+", default=["1", "0.5", "0.25", "auto"], metavar="R")
    parser.add_argument("--runs", type=int, default=3, help="timed calls, of which the quickest counts (%(default)s)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or int8 (%(default)s)")
    parser.add_argument("--checkpoint", help="(default: the shipped weights)")
    parser.add_argument("--out", default="out", help="folder (%(default)s)")
    run_cli("keep_ratio", run, parser.parse_args())
