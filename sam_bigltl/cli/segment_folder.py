"""`sam-bigltl segment FOLDER --prompts JSON`: masks of many photographs, resumed where an earlier run stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..convert.registry import default_checkpoint
from ..convert.weight_files import weights_sha256
from ..data.photos import SUFFIXES
from ..errors import InputError
from ..fast.devices import parse_device
from ..predict.prompt import usable
from ..predict.segment import load_predictor, set_routing
from ..predict.segment_folder import answered_size, keep_settings, load_prompts, segment_photos
from . import flag_checks
from .prompts import name_and_exit, parse_keep_ratio
from .tuned import encoder_setting


def run_folder(args: argparse.Namespace) -> None:
    """Segment the photographs that `args.prompts` names.

    Exits with code 1 if some of them, or some prompts, could not be used. Raises InputError on bad arguments, a file
    without prompts, or results of other settings in `args.out`.
    """
    folder, out = Path(args.image), Path(args.out)
    if args.prompts is None:
        raise InputError(f"{folder} is a folder: give --prompts JSON with what to segment in it (see --help)")
    if args.box or args.point:
        raise InputError("--box and --point are for one photograph: for a folder write them into the --prompts file")
    flag_checks.at_least_one(args, ("workers",))
    prompts = load_prompts(args.prompts, folder)
    keep_ratio = None if args.keep_ratio is None else parse_keep_ratio(args.keep_ratio)
    device = parse_device(args.device)
    chosen, setting = encoder_setting(args, device)
    if setting is not None and keep_ratio is None:
        keep_ratio = setting.keep_ratio
    checkpoint = Path(args.checkpoint or default_checkpoint())
    predictor = load_predictor(str(checkpoint), device, chosen.dtype, chosen.native)
    set_routing(predictor, keep_ratio, args.focus)
    settings = {"keep_ratio": keep_ratio, "dtype": chosen.dtype, "native": chosen.native, "focus": args.focus}
    settings |= {"all_masks": args.all_masks, "pictures": args.pictures}
    resumed = keep_settings(out, settings | {"checkpoint": weights_sha256(checkpoint)})
    chosen.say()

    done: dict[str, list[InputError]] = {}  # with what is wrong with prompts of theirs
    for name, asked in prompts.items() if resumed else ():
        if (size := answered_size(out, name, asked, args.all_masks)) is not None:
            done[name] = usable(asked, size, str(folder / name))[1]
    todo = {name: asked for name, asked in prompts.items() if name not in done}
    failed, lost = segment_photos(predictor, folder, out, todo, args.workers, args.all_masks, args.pictures, args.focus)
    lost = [error for errors in done.values() for error in errors] + lost
    count = f"of {len(prompts)} photographs"
    print(f"{len(todo) - len(failed)} {count} segmented into {out}, {len(done)} were there already")
    if unasked := sum(p.suffix.lower() in SUFFIXES and p.name not in prompts for p in folder.iterdir()):
        print(f"not in {args.prompts}: {unasked} photographs of {folder}")
    wrong = {f"{len(failed)} {count} could not be segmented": list(failed.values())} if failed else {}
    wrong |= {f"{len(lost)} prompts could not be used": lost} if lost else {}
    if wrong:
        name_and_exit(wrong)
