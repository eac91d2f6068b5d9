"""`sam-bigltl tune`: the fastest setting of a model that keeps its masks, measured on photographs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..fast.devices import parse_device
from ..tuning.report import check_matplotlib, sentence, table, write_report
from ..tuning.run import Wanted
from ..tuning.settings import FORMATS, RATIOS
from ..tuning.tune import tune
from .prompts import parse_keep_ratio

EXAMPLES = """\
examples:
  sam-bigltl tune sam_vit_b_01ec64.pth --images photos/
  sam-bigltl tune finetuned.pth --images list.txt --target 0.98 --minutes 30 --output tuned
  sam-bigltl segment photo.jpg --box 20,30,200,180 --checkpoint tuned/model.safetensors --tuned

No annotation is needed: the checkpoint's own masks are the reference. Interrupted, the same command goes on."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `tune`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    default = Wanted()
    parser.add_argument("checkpoint", type=Path, help="SAM's .pth, transformers' file or folder, or a model of ours")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR|LIST",
                        help="a folder of photographs, or a text file with a path a line")  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("tuned"),
                        help="folder for the model, the report and what was measured (tuned)")  # fmt: skip
    parser.add_argument("--target", type=float, default=default.target,
                        help=f"mean IoU with the checkpoint's own masks to keep ({default.target})")  # fmt: skip
    parser.add_argument("--minutes", type=float, default=default.minutes,
                        help="train the little path for so long after the fit, at most (0)")  # fmt: skip
    parser.add_argument("--budget", type=float, default=default.budget, metavar="MINUTES",
                        help="for everything but the training, about: less is measured in less (10)")  # fmt: skip
    parser.add_argument("--fit", type=int, default=default.fit, metavar="N",
                        help=f"photographs to fit to, at most ({default.fit})")  # fmt: skip
    parser.add_argument("--measure", type=int, default=default.measure, metavar="N",
                        help=f"other photographs to measure on, at most ({default.measure})")  # fmt: skip
    parser.add_argument("--objects", type=int, default=default.objects, metavar="N",
                        help=f"prompted in a photograph, at most ({default.objects})")  # fmt: skip
    parser.add_argument("--keep-ratio", nargs="+", default=list(RATIOS), type=parse_keep_ratio, metavar="R",
                        help="shares of the tokens to compare (all from 1.0 to 0.0625, and auto)")  # fmt: skip
    names = list(dict.fromkeys(dtype for dtype, _ in FORMATS))
    parser.add_argument("--dtype", nargs="+", choices=names,
                        help="formats to compare (all that run on this machine)")  # fmt: skip
    parser.add_argument("--device", help="cpu or cuda (cuda if there is one)")
    parser.add_argument("--seed", type=int, default=0, help="of the split and the new weights (0)")
    parser.add_argument("--restart", action="store_true", help="throw away what --output holds of an earlier run")


def run(args: argparse.Namespace) -> None:
    """Tune, write, and say what was found."""
    check_matplotlib()  # before the work
    tuned = tune(
        args.checkpoint, args.images, target=args.target, minutes=args.minutes, budget=args.budget, output=args.output,
        fit=args.fit, measure=args.measure, objects=args.objects, keep_ratios=args.keep_ratio, dtypes=args.dtype,
        seed=args.seed, device=parse_device(args.device), restart=args.restart, say=_say,
    )  # fmt: skip
    write_report(tuned, args.output)
    print(table(tuned), sentence(tuned), sep="\n\n")
    print(f"\nwrote {tuned.path}, and report.html, tune.json and tune.png beside it")


def _say(line: str) -> None:
    print(line, flush=True)
