"""What a classifier keeps of its accuracy: a dense ViT trained from nothing, and big.LITTLE students of it.

For every seed: a dense ViT; its conversion distilled with random keep ratios; the same with random tokens in place of
the router's; the same from labels alone. All are scored on the same images at 1.0, 0.5 and 0.25, the distilled ones in
faster formats too where `--dtype` asks for it.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import timm
import torch
from torch import nn

from sam_bigltl.bench.timing import measure, timed
from sam_bigltl.cli import flag_checks
from sam_bigltl.convert.classifiers import data_config
from sam_bigltl.convert.vit import convert_vit
from sam_bigltl.data.labelled import Transformed, collate, open_dataset
from sam_bigltl.data.workers import load
from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.evaluation.imagenet import count_correct, inference_transform
from sam_bigltl.training.classify import Classification, ClassifyConfig, LabelledBatches

from .routers import RandomRouter

RATIOS = (1.0, 0.5, 0.25)
ROWS = ("dense ViT", "distilled", "random tokens", "no distillation")


def accuracies(model: nn.Module, batches: Sequence, ratios: Sequence[float]) -> list[float]:
    """Top-1 in percent at each ratio."""
    model.eval()
    device = next(model.parameters()).device
    rows = [count_correct(model, images, labels, ratios, device) for images, labels, _ in batches]
    return [100 * sum(row[i][1] for row in rows) / sum(row[i][0] for row in rows) for i in range(len(ratios))]


def one_seed(args: argparse.Namespace, seed: int) -> tuple[dict[str, list[float]], nn.Module, dict[str, nn.Module]]:
    """Accuracies by row, the dense model, and the distilled student by row: as trained and in every other format."""
    train = open_dataset("", args.data_dir, "train")
    classes = train.classes
    kwargs = dict(
        img_size=args.img_size, patch_size=args.patch_size, embed_dim=args.dim, depth=args.depth, num_heads=args.heads,
        num_classes=classes,
    )  # fmt: skip
    torch.manual_seed(seed)
    dense = timm.create_model("vit_tiny_patch16_224", **kwargs)
    dense.pretrained_cfg = dense.pretrained_cfg | {"crop_pct": 1.0}
    base = ClassifyConfig(
        steps=args.steps, batch_size=args.batch_size, lr=args.lr, warmup=args.steps // 10, seed=seed,
        workers=args.workers, save_every=args.steps, log_every=50, precision=args.precision, ema=0.0,
        scale=(args.least_crop, 1.0), hflip=args.hflip,
    )  # fmt: skip
    config = replace(
        base, steps=args.student_steps, lr=args.student_lr, warmup=args.student_steps // 10, keep_ratio_range=(0.2, 1.0)
    )
    images = Transformed(open_dataset("", args.val_dir, "validation", train.labels), inference_transform(dense))
    batches = list(load(images, args.workers, ahead=2, batch_size=64, collate=collate))
    if unreadable := [each for *_, skipped in batches for each in skipped]:
        raise InputError(f"{len(unreadable)} of {len(images)} images cannot be read, the first: {unreadable[0].reason}")

    def trained(model: nn.Module, name: str, config: ClassifyConfig, teacher: nn.Module | None) -> nn.Module:
        output = args.output / f"{name.replace(' ', '_')}_{seed}"
        run = Classification(
            model, LabelledBatches(train, data_config(dense), classes, config), config, output, teacher
        )
        if run.state_path.exists():
            run.resume()
        run.run()
        if run.unreadable.reasons:  # every row is to have seen the same images
            raise InputError(f"a training image cannot be read: {next(iter(run.unreadable.reasons.values()))}")
        return model.eval()

    found, kept = {}, {}
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
        torch.manual_seed(seed)  # of the random tokens, whether the run was trained now or before
        found[name] = accuracies(student, batches, RATIOS)
        if name == "distilled":
            kept[name] = student
            for dtype in args.dtype:
                row = f"{name}, {dtype}{' native' * args.native}"
                kept[row] = copy.deepcopy(student)
                kept[row].optimize(dtype, native=args.native)
                found[row] = accuracies(kept[row], batches, RATIOS)
    return found, dense, kept


def times(dense: nn.Module, students: dict[str, nn.Module], side: int, batch: int, runs: int) -> dict[str, list[float]]:
    """Median milliseconds of a batch by row, the students at each ratio; all take turns."""
    pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))

    def at(student: nn.Module, ratio: float) -> None:
        student.keep_ratio = ratio
        student(pixels)

    calls = {(ROWS[0], 1.0): lambda: dense(pixels)} | {
        (name, ratio): lambda student=student, ratio=ratio: at(student, ratio)
        for name, student in students.items()
        for ratio in RATIOS
    }
    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        measured = measure([lambda call=call: timed(call) for call in calls.values()], runs, 3)
    for (name, _), own in zip(calls, measured, strict=True):
        found.setdefault(name, []).append(1e3 * statistics.median(own))
    return found


def run(args: argparse.Namespace) -> None:
    """Train all models of all seeds, print the table, write study.csv. Raises InputError."""
    flag_checks.at_least_one(args, ("steps", "student_steps", "batch_size", "seeds", "depth", "dim", "heads"))
    flag_checks.probability(args, ("hflip",))
    if args.native and not args.dtype:
        raise InputError("--native needs a --dtype")
    results = [one_seed(args, seed) for seed in range(args.seeds)]
    _, dense, students = results[-1]
    milliseconds = times(dense, students, args.img_size, 32, 20)
    path = args.output / "study.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "keep_ratio", "top1_mean", "top1_sd", "seeds", "ms_of_32_images"))
        print(f"{'model':<24} {'keep_ratio':>10} {'top-1 %':>8} {'sd':>6} {'ms of 32':>9}")
        for name in results[-1][0]:
            took = milliseconds.get(name)
            for index, ratio in enumerate(RATIOS if name != ROWS[0] else (1.0,)):
                values = [found[name][index] for found, _, _ in results]
                mean, spread = statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
                ms = f"{took[index]:.3f}" if took else ""  # where another row's model computes the same
                writer.writerow((name, ratio, f"{mean:.3f}", f"{spread:.3f}", len(values), ms))
                print(f"{name:<24} {ratio:>10g} {mean:>8.2f} {spread:>6.2f} {ms and f'{float(ms):.1f}':>9}")
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
        ("student_lr", float, 5e-4), ("workers", int, 1), ("least_crop", float, 0.5), ("hflip", float, 0.5),
    ):  # fmt: skip
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"({default:g})")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="float32", help="(float32)")
    parser.add_argument("--dtype", nargs="+", choices=["bfloat16", "int8"], default=[], help="score in these as well")
    parser.add_argument("--native", action="store_true", help="those with this project's C++ kernels")
    run_cli(parser.prog, run, parser.parse_args(argv))
