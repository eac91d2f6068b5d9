"""A ViT of timm becomes a big.LITTLE classifier, and is timed at several keep ratios.

    python examples/classify.py --model deit_tiny_patch16_224 --checkpoint deit_tiny.pth --photo photo.jpg

Without a checkpoint the weights are random, and nothing is downloaded.
"""

import argparse
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from sam_bigltl.convert import convert_vit
from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.images import read_image
from sam_bigltl.open_classifier import open_classifier
from sam_bigltl.quickstart import sample_photos


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    torch.manual_seed(0)
    vit = open_classifier(args.model, args.num_classes, checkpoint=args.checkpoint)
    model = convert_vit(vit)
    photo = read_image(args.photo) if args.photo else sample_photos()[2].image
    transform = create_transform(**resolve_data_config({}, model=vit), is_training=False)
    images = transform(Image.fromarray(photo))[None]  # (1, 3, 224, 224)

    expected = vit(images).softmax(dim=1)
    print(f"timm {timm.__version__} {args.model}: class {expected.argmax().item()}, {expected.max():.3f}")
    for ratio in args.keep_ratio:
        model.keep_ratio = ratio
        times = []
        for _ in range(args.runs + 1):
            start = time.perf_counter()
            result = model(images).softmax(dim=1)
            times.append((time.perf_counter() - start) * 1e3)
        route = model.last_route.groups[0].indices.shape[1]
        print(f"keep_ratio {ratio:g}: {route} of {model.patch_embed.num_patches} patches big, {min(times[1:]):.1f} ms, "
              f"class {result.argmax().item()}, max abs difference {(result - expected).abs().max():.1e}")  # fmt: skip


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="deit_tiny_patch16_224", help="a ViT of timm (%(default)s)")
    parser.add_argument("--checkpoint", type=Path, help="its weights")
    parser.add_argument("--num-classes", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--photo", help="(default: the cat that comes with scikit-image)")
    parser.add_argument("--keep-ratio", type=float, nargs="+", default=[1.0, 0.5, 0.25], help="(1 0.5 0.25)")
    parser.add_argument("--runs", type=int, default=5, help="timed passes, of which the quickest counts (%(default)s)")
    run_cli("classify", run, parser.parse_args())
