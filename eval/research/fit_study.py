"""The study of docs/fit.md: what each part of the closed-form start is worth, without training, against token merging
and token dropping.

Candidates are fitted to the first photographs of a list and measured on the others. Rows that the CSV has are skipped.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from sam_bigltl.bench.macs import count_macs
from sam_bigltl.bench.timing import measure as time_in_turns
from sam_bigltl.bench.timing import timed
from sam_bigltl.convert import convert_sam, load_sam
from sam_bigltl.convert.warm_start import Recipe, choose_ratios, warm_start
from sam_bigltl.convert.weight_files import weights_sha256
from sam_bigltl.data.files import write_csv
from sam_bigltl.data.images import read_image
from sam_bigltl.data.photos import preprocess
from sam_bigltl.errors import ArgumentParser, InputError, run_cli

from . import rivals
from .fit_reference import agreement, references

RATIOS = (0.5, 0.25, 0.125)
CHOOSING = 4  # photographs that keep ratios by stage are chosen on
TIMED = 8  # photographs that the timed model is fitted to, for a selection as it is in use
COLUMNS = ("candidate", "setting", "gmacs", "ms", "error", "mean", "p5", "above_0.9", "box", "point", "prompts", "fit",
           "measured", "teacher")  # fmt: skip
BEFORE = Recipe(ratios=(), units=False, photo_only=False, channels=False, change=1.0)
RECIPES = {
    "before": BEFORE,
    "sequential": replace(BEFORE, ratios=RATIOS),
    "blocks": replace(BEFORE, ratios=RATIOS, units=True),
    "all": Recipe(),
}
RIVALS: dict[str, tuple[Callable[[Sam, float], Sam], tuple[float, ...]]] = {
    "merged": (rivals.merged, (0.5, 0.25)),
    "dropped": (rivals.pruned, (0.5, 0.25, 0.125)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the study."""
    parser.add_argument("--checkpoint", required=True, help="a dense SAM, the teacher")
    parser.add_argument("--images", required=True, type=Path, help="a text file with one photograph a line")
    parser.add_argument("--fit", type=int, default=40, help="how many of them are for fitting (default: 40)")
    parser.add_argument("--hold-out", type=int, default=0, metavar="N",
                        help="choose: measure the embedding alone, on the last N of the fitting ones")  # fmt: skip
    parser.add_argument("--candidates", nargs="+", choices=[*RECIPES, *RIVALS], default=[*RECIPES, *RIVALS])
    parser.add_argument("--objects", type=int, default=12, help="of each photograph, at most (default: 12)")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "sam_bigltl" / "fit_study",
                        help="folder for the teacher's masks (default: ~/.cache/sam_bigltl/fit_study)")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("docs/results/fit.csv"))
    parser.add_argument("--times", type=int, default=0, metavar="N",
                        help="measure no masks: time the encoders of the table, in N rounds by turns")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Fit and measure what the table does not have yet."""
    paths = [Path(line) for line in args.images.read_text().splitlines() if line.strip()]
    if not 0 < args.hold_out + 1 <= args.fit < len(paths):
        raise InputError(f"{args.images} has {len(paths)} photographs: --fit and --hold-out leave none on one side")
    teacher, weights = load_sam(args.checkpoint), weights_sha256(args.checkpoint)[:12]
    if args.times:
        _time(args, teacher, weights, paths)
        return
    fitted = paths[: args.fit - args.hold_out]
    measured = paths[args.fit - args.hold_out : args.fit] if args.hold_out else paths[args.fit :]
    objects = 0 if args.hold_out else args.objects
    theirs = list(references(teacher, weights, measured, args.cache, objects))
    rows = _read(args.output)
    about = {"fit": len(fitted), "measured": ("held out " if args.hold_out else "") + str(len(measured)),
             "teacher": weights}  # fmt: skip

    def missing(candidate: str, setting: str) -> bool:
        same = {"candidate": candidate, "setting": setting} | {name: str(value) for name, value in about.items()}
        return not any(same.items() <= row.items() for row in rows)

    def measure(candidate: str, setting: str, sam: Sam) -> None:
        macs = count_macs(sam.image_encoder, theirs[0].image).total / 1e9
        numbers = agreement(sam, theirs)
        row = {"candidate": candidate, "setting": setting, "gmacs": f"{macs:.2f}"} | about
        row |= {name: f"{value:.5f}" if name != "prompts" else str(value) for name, value in numbers.items()}
        rows.append({name: str(row.get(name, "")) for name in COLUMNS})
        print("  ".join(rows[-1][name] for name in COLUMNS[:10]), flush=True)
        write_csv(args.output, COLUMNS, rows)

    for name in args.candidates:
        if name in RIVALS:
            build, ratios = RIVALS[name]
            for ratio in ratios:
                if missing(name, str(ratio)):
                    measure(name, str(ratio), build(teacher, ratio))
            continue
        settings = [str(ratio) for ratio in RATIOS] + (["by stage"] if name == "all" else [])
        if not any(missing(name, setting) for setting in settings):
            continue
        images = [preprocess(teacher, read_image(path)) for path in fitted]
        torch.manual_seed(0)
        sam = convert_sam(teacher)
        warm_start(sam, images, recipe=RECIPES[name])
        for ratio in RATIOS:
            sam.image_encoder.keep_ratio = ratio
            if missing(name, str(ratio)):
                measure(name, str(ratio), sam)
        for ratio in RATIOS if name == "all" and not args.hold_out else ():
            sam.image_encoder.keep_ratio = chosen = choose_ratios(sam, images[:CHOOSING], ratio)
            setting = " ".join(f"{each:g}" for each in chosen)
            if missing(name, setting):
                measure(name, setting, sam)


@torch.inference_mode()
def _time(args: argparse.Namespace, teacher: Sam, weights: str, paths: list[Path]) -> None:
    """Median milliseconds of the table's encoders in float32, into its column `ms`; the teacher's is printed."""
    rows = _read(args.output)
    images = [preprocess(teacher, read_image(path)) for path in paths]
    ours = convert_sam(teacher)
    warm_start(ours, images[:TIMED])
    models: dict[tuple[str, str], tuple[Sam, Any]] = {("teacher", ""): (teacher, 1.0)}
    for row in rows:
        name, setting = row["candidate"], row["setting"]
        if row["teacher"] != weights or row["measured"].startswith("held out"):
            continue
        ratios = tuple(map(float, setting.split()))
        ratio = ratios[0] if len(ratios) == 1 else ratios
        models[name, setting] = (RIVALS[name][0](teacher, ratio), 1.0) if name in RIVALS else (ours, ratio)

    def one(sam: Sam, ratio: Any, turn: Iterator[Tensor]) -> float:
        sam.image_encoder.keep_ratio = ratio
        return timed(partial(sam.image_encoder, next(turn)))

    calls = [partial(one, *case, cycle(images)) for case in models.values()]
    seconds = dict(zip(models, map(median, time_in_turns(calls, args.times, warmup=2))))
    print(f"teacher: {1e3 * seconds['teacher', '']:.1f} ms")
    for row in rows:
        if (key := (row["candidate"], row["setting"])) in seconds:
            row["ms"] = f"{1e3 * seconds[key]:.1f}"
            print("  ".join((*key, row["gmacs"], row["ms"], row["mean"])))
    write_csv(args.output, COLUMNS, rows)


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """The command."""
    parser = ArgumentParser(prog="fit_study", description=__doc__)
    add_arguments(parser)
    run_cli("fit_study", run, parser.parse_args())
