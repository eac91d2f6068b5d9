"""What a classifier keeps of its accuracy: a dense ViT trained from nothing, and big.LITTLE students of it.

For every seed: a dense ViT; its conversion distilled with random keep ratios; the same with random tokens in place of the
router's; the same from labels alone. All are scored on the same images at 1.0, 0.5 and 0.25.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..convert_vit import convert_vit
from ..errors import ArgumentParser, InputError, run_cli
from ..evaluation.imagenet import Transformed, count_correct, inference_transform
from ..latency.timing import measure, timed
from ..open_classifier import data_config
from .classify import Classification, ClassifyConfig, LabelledBatches, open_dataset

RATIOS = (1.0, 0.5, 0.25)
ROWS = ("dense ViT", "distilled", "random tokens", "no distillation")


class RandomRouter(nn.Module):
    """Scores that have nothing to do with the image, the same in every run."""

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) -> scores (B, N) that sum to 1"""
        order = torch.rand(little.shape[:2], generator=torch.Generator().manual_seed(little.shape[0]))
        return order.to(little.device).softmax(dim=1)


def accuracies(model: nn.Module, batches: Sequence, ratios: Sequence[float]) -> list[float]:
    """Top-1 in percent at each ratio."""
    model.eval()
    rows = list(count_correct(model, iter(batches), list(ratios), next(model.parameters()).device))
    return [100 * sum(row[i][1] for row in rows) / sum(row[i][0] for row in rows) for i in range(len(ratios))]


def one_seed(args: argparse.Namespace, seed: int) -> tuple[dict[str, list[float]], nn.Module, nn.Module]:
    """Accuracies by row of ROWS, the dense model and the distilled student."""
    train = open_dataset("", args.data_dir, "train")
    classes = len(train.reader.class_to_idx)
    kwargs = dict(
        img_size=args.img_size, patch_size=args.patch_size, embed_dim=args.dim, depth=args.depth, num_heads=args.heads,
        num_classes=classes,
    )  # fmt: skip
    torch.manual_seed(seed)
    dense = timm.create_model("vit_tiny_patch16_224", **kwargs)
    dense.pretrained_cfg = dense.pretrained_cfg | {"crop_pct": 1.0}
    base = ClassifyConfig(
        steps=args.steps, batch_size=args.batch_size, lr=args.lr, warmup=args.steps // 10, seed=seed, workers=args.workers,
        save_every=args.steps, log_every=50, precision=args.precision, ema=0.0, scale=(args.least_crop, 1.0),
    )  # fmt: skip
    config = replace(
        base, steps=args.student_steps, lr=args.student_lr, warmup=args.student_steps // 10, keep_ratio_range=(0.2, 1.0)
    )
    images = Transformed(open_dataset("", args.val_dir, "validation"), inference_transform(dense))
    batches = list(DataLoader(images, 64, num_workers=args.workers))

    def trained(model: nn.Module, name: str, config: ClassifyConfig, teacher: nn.Module | None) -> nn.Module:
        output = args.output / f"{name.replace(' ', '_')}_{seed}"
        run = Classification(
            model, LabelledBatches(train, data_config(dense), classes, config), config, output, teacher
        )
        if run.state_path.exists():
            run.resume()
        run.run()
        return model.eval()

    found = {}
    dense = trained(dense, ROWS[0], base, None)
    found[ROWS[0]] = accuracies(dense, batches, [1.0])
    for name in ROWS[1:]:
        torch.manual_seed(seed)
        student = convert_vit(dense)
        student.requires_grad_(True)
        if name == "random tokens":
            for transition in student.transitions:
                transition.router = RandomRouter()
        student = trained(student, name, config, None if name == "no distillation" else dense)
        found[name] = accuracies(student, batches, RATIOS)
        if name == "distilled":
            kept = student
    return found, dense, kept


def times(dense: nn.Module, student: nn.Module, side: int, batch: int, runs: int) -> list[float]:
    """Median milliseconds of a batch: the dense model, then the student at each ratio, in turns."""
    pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))

    def at(ratio: float) -> None:
        student.keep_ratio = ratio
        student(pixels)

    calls = [lambda: timed(lambda: dense(pixels)), *(lambda ratio=ratio: timed(lambda: at(ratio)) for ratio in RATIOS)]
    with torch.inference_mode():
        return [1e3 * statistics.median(own) for own in measure(calls, runs, 3)]


def run(args: argparse.Namespace) -> None:
    """Train all models of all seeds, print the table, write study.csv. Raises InputError."""
    for name in ("steps", "student_steps", "batch_size", "seeds", "depth", "dim", "heads"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} is at least 1, not {getattr(args, name)}")
    results = [one_seed(args, seed) for seed in range(args.seeds)]
    _, dense, student = results[-1]
    milliseconds = times(dense, student, args.img_size, 32, 20)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "study.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "keep_ratio", "top1_mean", "top1_sd", "seeds", "ms_of_32_images"))
        print(f"{'model':<18} {'keep_ratio':>10} {'top-1 %':>8} {'sd':>6} {'ms of 32':>9}")
        for name in ROWS:
            for index, ratio in enumerate(RATIOS if name != ROWS[0] else (1.0,)):
                values = [found[name][index] for found, _, _ in results]
                mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
                took = milliseconds[0 if name == ROWS[0] else 1 + index]
                writer.writerow((name, ratio, f"{mean:.3f}", f"{spread:.3f}", len(values), f"{took:.3f}"))
                print(f"{name:<18} {ratio:>10g} {mean:>8.2f} {spread:>6.2f} {took:>9.1f}")
    print(f"written: {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/classify_study.py`."""
    parser = ArgumentParser(prog="classify_study.py", description=__doc__)
    parser.add_argument(
        "--data-dir", type=Path, required=True, metavar="DIR", help="training images, one folder a class"
    )
    parser.add_argument("--val-dir", type=Path, required=True, metavar="DIR", help="the same, to score on")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the runs; finished ones are kept"
    )
    parser.add_argument("--seeds", type=int, default=3, help="(3)")
    for name, kind, default in (
        ("img_size", int, 64), ("patch_size", int, 8), ("dim", int, 96), ("depth", int, 8), ("heads", int, 3),
        ("steps", int, 600), ("student_steps", int, 300), ("batch_size", int, 32), ("lr", float, 1e-3),
        ("student_lr", float, 5e-4), ("workers", int, 1), ("least_crop", float, 0.5),
    ):  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"({default:g})")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="float32", help="(float32)")
    run_cli(parser.prog, run, parser.parse_args(argv))
