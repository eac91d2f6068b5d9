"""The quickstart: three photographs segmented at three keep ratios, with the encoder's time at each."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ..bench.timing import measure, timed
from ..data.images import write_image
from ..errors import InputError
from ..fast.choice import choose
from ..fast.devices import parse_device, synchronize
from ..predict.predictor import SamPredictor
from ..predict.samples import sample_photos
from ..predict.segment import Segment, draw_segments, load_predictor, segment_prompt
from ..predict.visualize import routing_picture, side_by_side

RATIOS = (1.0, 0.5, 0.25)
WARMUP = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of demo/quickstart.py and `sam-bigltl quickstart`."""
    parser.epilog = "example: sam-bigltl quickstart --out out"
    parser.add_argument("--checkpoint", metavar="PATH", help="weights (default: checkpoints/bigltl_mini.safetensors)")
    parser.add_argument("--out", default="out", metavar="DIR", help="folder for the pictures (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="timed passes (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one, else cpu)")


def run(args: argparse.Namespace) -> None:
    """Segment the photographs, time the encoder, write one strip per photograph, print what came out."""
    if args.runs < 1:
        raise InputError(f"--runs {args.runs} is below 1")
    device = parse_device(args.device)
    chosen = choose(device)
    predictor = load_predictor(args.checkpoint, device, chosen.dtype, chosen.native)
    if getattr(predictor.model.image_encoder, "is_dense", True):
        raise InputError("the quickstart needs a big.LITTLE checkpoint: convert this one with sam-bigltl convert")
    photos = sample_photos()
    print(chosen.line)
    print(f"segmenting {', '.join(photo.name for photo in photos)} at keep_ratio {', '.join(map(str, RATIOS))}")
    milliseconds = encoder_ms([photo.image for photo in photos], predictor, RATIOS, args.runs)
    print(time_table(milliseconds, args.runs, len(photos), f"{device.type} in {chosen}"))
    print()
    print(f"{'photo':<10} {'object':<10} {'prompt':<14} {'keep_ratio':>10} {'predicted IoU':>13} {'IoU with 1.0':>12}")
    paths = []
    for photo in photos:
        captions, pictures = [], []
        full: list[Segment] = []
        for ratio in RATIOS:
            predictor.model.image_encoder.keep_ratio = ratio
            predictor.set_image(photo.image)
            segments = [segment_prompt(predictor, prompt)[0] for prompt in photo.objects.values()]
            full = full or segments
            agreement = [iou(a.mask, b.mask) for a, b in zip(segments, full)]
            for name, segment, value in zip(photo.objects, segments, agreement):
                kind = re.sub(r"box [^ ]+", "box", str(segment.prompt))
                print(f"{photo.name:<10} {name:<10} {kind:<14} {ratio:>10g}"
                      f" {segment.predicted_iou:>13.3f} {value:>12.3f}")  # fmt: skip
            pictures.append(draw_segments(photo.image, segments))
            captions.append(f"keep_ratio {ratio:g}: {milliseconds[ratio]:.0f} ms")
        assert predictor.route is not None  # the encoder is not dense
        pictures.append(routing_picture(photo.image, predictor.route))
        captions.append(f"big tokens at {RATIOS[-1]:g} (dark: LITTLE only)")
        path = Path(args.out) / f"quickstart_{photo.name}.png"
        write_image(path, side_by_side(pictures, captions))
        paths.append(str(path))
    print("\nwrote " + ", ".join(paths))


def encoder_ms(
    images: Sequence[np.ndarray], predictor: SamPredictor, ratios: Sequence[float], runs: int
) -> dict[float, float]:
    """Median milliseconds of the image encoder per keep ratio, over `runs` passes in which the ratios take turns."""
    model, device = predictor.model, predictor.device
    encoder = model.image_encoder
    inputs = []
    for image in images:
        resized = torch.as_tensor(predictor.transform.apply_image(image), device=device)
        inputs.append(model.preprocess(resized.permute(2, 0, 1)[None]))

    def encode(pixels: torch.Tensor, ratio: float) -> None:
        encoder.keep_ratio = ratio
        with torch.no_grad():
            encoder(pixels)
        synchronize(device)

    calls = [partial(timed, partial(encode, pixels, ratio)) for pixels in inputs for ratio in ratios]
    times = measure(calls, runs, WARMUP)
    return {
        ratio: median(value for own in times[index :: len(ratios)] for value in own) * 1e3
        for index, ratio in enumerate(ratios)
    }


def time_table(milliseconds: dict[float, float], runs: int, photos: int, where: str) -> str:
    """Encoder time at each keep ratio, and how many times faster than at 1.0."""
    lines = [f"encoder on {where}, {torch.get_num_threads()} CPU threads, batch 1,"
             f" median of {runs} interleaved passes over {photos} photos"]  # fmt: skip
    lines.append(f"{'keep_ratio':>10} {'median ms':>10} {'speedup':>8}")
    for ratio, value in milliseconds.items():
        lines.append(f"{ratio:>10g} {value:>10.1f} {milliseconds[1.0] / value:>7.2f}x")
    return "\n".join(lines)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks; 1.0 where both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0
