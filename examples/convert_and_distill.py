"""From a dense SAM to a big.LITTLE one: convert, check that nothing has changed at 1.0, distil for a few steps.

    python examples/convert_and_distill.py --steps 4 --out out/distilled
The pictures are drawn here, so that it runs anywhere; they teach nothing. docs/distillation.md has the real commands.
"""

import argparse
from pathlib import Path

import numpy as np

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.cli import main as sam_bigltl
from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.images import read_image, write_image
from sam_bigltl.registry import default_checkpoint


def draw_discs_on_noise(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:200, :260]
    for number in range(count):
        image = rng.integers(60, 120, (200, 260, 3), dtype=np.uint8)
        for x, y, radius in rng.integers((30, 30, 12), (220, 170, 40), (3, 3)):
            image[(xx - x) ** 2 + (yy - y) ** 2 < radius**2] = rng.integers(0, 255, 3)
        write_image(folder / f"{number}.png", image)


def run(args: argparse.Namespace) -> None:
    out, teacher = args.out, args.teacher or default_checkpoint().with_name("vit_mini.safetensors")
    draw_discs_on_noise(out / "pictures", count=8)

    # 1. On the command line: sam-bigltl convert TEACHER converted.safetensors --warm-start pictures/
    converted = out / "converted.safetensors"
    sam_bigltl(["convert", str(teacher), str(converted), "--warm-start", str(out / "pictures"), "--max-images", "4"])

    # 2. The converted model is the teacher at keep_ratio 1.0, and an approximation of it below.
    dense, student = SamPredictor(load_sam(teacher)), SamPredictor(load_sam(converted))
    picture = read_image(out / "pictures" / "0.png")
    dense.set_image(picture)
    for ratio in (1.0, 0.5, 0.25):
        student.model.image_encoder.keep_ratio = ratio
        student.set_image(picture)
        error = (student.features - dense.features).square().mean() / dense.features.square().mean()
        print(f"keep_ratio {ratio:g}: squared error of the embedding, relative to its square: {error:.1e}")

    # 3. As sam-bigltl distill --teacher TEACHER --student bigltl_mini --init converted.safetensors --data pictures/ ...
    options = f"--steps {args.steps} --batch-size 2 --warmup 1 --ema 0.5 --workers 0".split()
    paths = ["--init", str(converted), "--data", str(out / "pictures"), "--output", str(out / "run")]
    sam_bigltl(["distill", "--teacher", str(teacher), "--student", args.student, *paths, *options])


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", help="dense checkpoint (default: the shipped vit_mini)")
    parser.add_argument("--student", default="bigltl_mini", help="the teacher's big.LITTLE form (%(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/distilled"), help="folder (%(default)s)")
    run_cli("convert_and_distill", run, parser.parse_args())
