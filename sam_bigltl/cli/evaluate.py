"""The command line of the evaluation, shared by `sam-bigltl eval`, `eval/coco_miou.py` and `eval/lvis_miou.py`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from ..convert.tuned import Setting
from ..errors import InputError
from ..evaluation.compare import compare, format_comparison
from ..evaluation.protocols import BOXES, CLICK_POLICIES, MASK_SELECT, PROTOCOLS, Protocol
from ..evaluation.run import Job, run_job
from ..evaluation.runner import Plan
from ..predict.prompt_checks import MOST_POINTS
from .tuned import add_format, add_tuned, encoder_setting

DESCRIPTION = """\
Measure mIoU (and AP with a detector's boxes) on COCO-format or LVIS annotations, with box or click prompts.

Protocol A is EfficientViT-SAM's, B EdgeSAM's, C EfficientSAM's: their numbers cannot be compared with each other. Every
ingredient of a protocol can be changed by its own flag; results name all that were in force."""

EXAMPLES = """\
examples:
  %(prog)s --annotations instances_val2017.json --images val2017 --checkpoint model.safetensors \\
      --keep-ratio 1.0 0.5 0.25 --prompts box point --clicks 1 3 5 --output results/coco
  %(prog)s --annotations instances_val2017.json --images val2017 --checkpoint sam_vit_b.pth --protocol B \\
      --output results/edgesam_protocol
  %(prog)s --annotations instances_val2017.json --images val2017 --checkpoint model.safetensors \\
      --prompts detector --detections coco_vitdet.json --output results/ap
  %(prog)s --annotations mine.json --images photos --model my_models:mobile_sam --output results/peer
  torchrun --nproc-per-node 2 eval/coco_miou.py ... the same flags: two processes share the images
  %(prog)s --compare results/a/results.json results/b/results.json

The output folder gets results.json (settings and summary), instances.csv (one row per instance and setting),
report.html (curves and the worst and best masks), and a journal: the same command continues an interrupted run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the evaluation's flags, its description and examples to `parser`."""
    parser.description = DESCRIPTION
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    data = parser.add_argument_group("data and model")
    data.add_argument("--annotations", metavar="JSON", help="COCO-format instances file, or LVIS v1's")
    data.add_argument("--images", metavar="DIR", help="folder of the images that the file names; for LVIS the folder "
                      "that holds train2017 and val2017")  # fmt: skip
    data.add_argument("--checkpoint", metavar="CKPT", help="weights of this project or of SAM")
    data.add_argument("--model", metavar="MODULE:CALLABLE", help="instead: a function that returns an object with "
                      "SamPredictor's interface; it is given --checkpoint if there is one")  # fmt: skip
    data.add_argument("--detections", metavar="JSON", help="a detector's boxes in COCO's results format")
    data.add_argument("--ignore-exif", action="store_true", help="read images as they are stored, as their annotations "
                      "do, not turned as EXIF says")  # fmt: skip
    data.add_argument("--sources", nargs="+", default=[], metavar="NAME", help="a table of these sources' images "
                      "alone, too (\"source\" in the entries of the file's images)")  # fmt: skip
    data.add_argument("--limit", metavar="N", help="only the first N images with annotations, by image id")
    # Numbers stay text here: `run` checks them and answers a bad one in one line.
    what = parser.add_argument_group("what is measured")
    what.add_argument("--keep-ratio", nargs="+", metavar="R", help="in (0, 1], or auto; several are allowed (1.0)")
    what.add_argument("--prompts", nargs="+", choices=["box", "point", "detector"], default=["box"], help="(box)")
    what.add_argument(
        "--clicks", nargs="+", default=["1", "3", "5"], metavar="N", help="clicks at which point IoU is taken (1 3 5)"
    )
    what.add_argument("--protocol", choices=list(PROTOCOLS), default="A", help="(A)")
    own = parser.add_argument_group("ingredients (default: the protocol's)")
    own.add_argument("--mask-select", choices=MASK_SELECT, help="highest predicted IoU of three, the single mask, or "
                     "the best fitting of three")  # fmt: skip
    own.add_argument("--box", choices=BOXES, help="the annotation's box, or the tightest around its mask")
    own.add_argument("--click-policy", choices=CLICK_POLICIES, help="RITM's user, EdgeSAM's, or random pixels")
    own.add_argument("--crowds", choices=["keep", "skip"], help="crowd annotations")
    own.add_argument("--min-area", metavar="A", help="leave out annotations with less area, square pixels")
    own.add_argument("--refine", nargs="+", metavar="N", help="corrective points after a box at which IoU is taken")
    own.add_argument("--mask-feedback", action=argparse.BooleanOptionalAction, default=None,
                     help="give each further prediction the logits of the one before")  # fmt: skip
    own.add_argument("--focus", nargs="?", choices=["image", "box"], const="image",
                     help="tell the encoder the boxes that will be prompted, so that it seeks its big tokens there "
                     "first (prompt-aware routing): all of an image (image), or with one encoding for each "
                     "(box)")  # fmt: skip
    how = parser.add_argument_group("how it runs")
    how.add_argument("--seed", default="0", metavar="N", help="of random clicks (0)")
    how.add_argument("--device", help="such as cpu or cuda:0 (cuda if there is one, else cpu)")
    add_format(how, exact=True)
    add_tuned(how)
    how.add_argument(
        "--batch-size",
        default="8",
        metavar="N",
        help="prompts decoded at once (8); 0: one call of predict for each, as a user would, slower",
    )
    how.add_argument("--workers", default="1", metavar="N", help="threads that read images ahead (1)")
    how.add_argument("--output", metavar="DIR", help="folder of the results")
    how.add_argument("--restart", action="store_true", help="throw away what an earlier run left in --output")
    how.add_argument("--no-report", action="store_true", help="no report.html")
    parser.add_argument("--compare", nargs=2, metavar="RESULTS", help="instead: the difference of two results.json, "
                        "with a bootstrap confidence interval over images")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Evaluate as the flags of `add_arguments` say, write the results and print the table.

    Raises:
        InputError: a flag, the annotations, the checkpoint or some of the images cannot be used.
    """
    if args.compare:
        print(format_comparison(compare(*args.compare)))
        return
    for flag in ("annotations", "images", "output"):
        if getattr(args, flag) is None:
            raise InputError(f"--{flag} is missing: see --help for examples")
    if not (args.checkpoint or args.model):
        raise InputError("give the weights with --checkpoint, or another project's model with --model module:callable")
    if args.model and (args.dtype not in (None, "float32") or args.native or args.tuned):
        raise InputError(
            "--dtype and --native are for --checkpoint only: what --model returns keeps its own; --tuned is, too"
        )
    device = _device(args.device)
    chosen, setting = encoder_setting(args, device, exact=True)
    if ("detector" in args.prompts) != bool(args.detections):
        raise InputError("--prompts detector and --detections JSON belong together: give both or neither")
    plan = Plan(
        protocol=_protocol(args),
        keep_ratios=_keep_ratios(args.keep_ratio, setting),
        prompts=tuple(_unique(args.prompts)),
        clicks=tuple(sorted(_unique(_whole(text, "--clicks", most=MOST_POINTS) for text in args.clicks))),
        seed=_whole(args.seed, "--seed", 0),
        batch_size=_whole(args.batch_size, "--batch-size", 0),
        workers=_whole(args.workers, "--workers", 0),
        focus=args.focus,
    )
    if plan.focus and (args.model or plan.prompts != ("box",)):
        raise InputError(
            "--focus tells the encoder the annotations' boxes: it needs --checkpoint, and --prompts box alone"
        )
    chosen.say()
    run_job(Job(
        annotations=Path(args.annotations), images=Path(args.images), output=Path(args.output), plan=plan,
        device=device, checkpoint=args.checkpoint, model=args.model, precision=chosen.dtype, native=chosen.native,
        restart=args.restart, sources=tuple(_unique(args.sources)),
        detections=None if args.detections is None else Path(args.detections),
        limit=None if args.limit is None else _whole(args.limit, "--limit"), report=not args.no_report,
        style=getattr(args, "style", "coco"), ignore_exif=args.ignore_exif,
    ))  # fmt: skip


def _protocol(args: argparse.Namespace) -> Protocol:
    """The named protocol with the ingredients that were given by themselves."""
    changes: dict[str, Any] = {
        field.name: getattr(args, field.name) for field in fields(Protocol)
        if field.name not in ("name", "source", "crowds", "min_area", "refine", "resampled_target", "skip_empty")
        and getattr(args, field.name) is not None
    }  # fmt: skip
    if args.crowds is not None:
        changes["crowds"] = args.crowds == "keep"
    if args.min_area is not None:
        changes["min_area"] = _number(args.min_area, "--min-area")
    if args.refine is not None:
        counts = (_whole(text, "--refine", 0, MOST_POINTS) for text in args.refine)
        changes["refine"] = tuple(sorted(_unique(counts)))
    return replace(PROTOCOLS[args.protocol], **changes)


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _keep_ratios(given: Sequence[str] | None, setting: Setting | None) -> tuple[float | str, ...]:
    if given is not None:
        return tuple(_unique(_keep_ratio(text) for text in given))
    ratio = 1.0 if setting is None else setting.keep_ratio
    if isinstance(ratio, tuple):
        raise InputError("this checkpoint is tuned to one keep_ratio a stage, which is not measured: give --keep-ratio")
    return (ratio,)


def _keep_ratio(text: str) -> float | str:
    if text == "auto":
        return text
    ratio = _parsed(float, text, 0.0)
    if not 0.0 < ratio <= 1.0:
        raise InputError(f"--keep-ratio {text} is neither a number in (0, 1] nor auto; give for example 0.5")
    return ratio


def _whole(text: str, flag: str, least: int = 1, most: int | None = None) -> int:
    number = _parsed(int, text, least - 1)
    if number < least:
        raise InputError(f"{flag} {text} is not a whole number of at least {least}; give for example {flag} 5")
    if most is not None and number > most:
        raise InputError(f"{flag} {text} is too many points for one prompt; give {most} at most")
    return number


def _number(text: str, flag: str) -> float:
    number = _parsed(float, text, -1.0)
    if not 0 <= number < float("inf"):
        raise InputError(f"{flag} {text} is not a number of at least 0; give for example {flag} 1")
    return number


def _parsed(kind: type, text: str, otherwise: Any) -> Any:
    try:
        return kind(text)
    except ValueError:
        return otherwise


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used ({reason}); give for example cpu or cuda:0") from error
    return device
