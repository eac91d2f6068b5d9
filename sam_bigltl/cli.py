"""The command line: `sam-bigltl COMMAND ...`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from types import ModuleType

from .errors import ArgumentParser, run_cli

# Command: (module, function that adds its flags, function that runs it, one line of help). Imported when called for.
COMMANDS = {
    "quickstart": (
        "quickstart",
        "add_quickstart_arguments",
        "run_quickstart",
        "three photographs segmented, with times",
    ),
    "segment": (
        "segment",
        "add_segment_arguments",
        "run_segment",
        "masks of a photograph or a folder, from boxes or points",
    ),
    "convert": ("convert_cli", "add_arguments", "run", "a SAM checkpoint to a big.LITTLE model"),
    "download": ("download", "add_arguments", "run", "SAM's published checkpoints"),
    "train": ("training.cli", "add_arguments", "run", "train or distil a model from masks in COCO format"),
    "distill": ("training.distill_cli", "add_arguments", "run", "a big.LITTLE student from a SAM, on photographs"),
    "eval": ("evaluation.cli", "add_arguments", "run", "mIoU on masks in COCO format"),
    "export": ("export_cli", "add_arguments", "run", "a checkpoint as ONNX files, which run without torch"),
    "demo": ("demo.cli", "add_arguments", "run", "a page on which clicks become masks"),
    "bench": ("latency.cli", "add_arguments", "run", "encoder latency, interleaved and with ratios"),
}


# A task of a command: another module in its place.
TASKS = {("train", "classify"): "training.classify_cli"}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Bad input ends with one line and exit code 2."""
    argv = _join_negative(list(sys.argv[1:] if argv is None else argv))
    parser = ArgumentParser(
        prog="sam-bigltl",
        description="Segment Anything with a big.LITTLE image encoder.",
        epilog="example: sam-bigltl segment photo.jpg --box 20,30,200,180 --keep-ratio 0.5 --out out",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, add, _, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == asked:
            module = TASKS.get((name, _value(argv, "--task")), module)
            getattr(_import(module, command), add)(command)
    args = parser.parse_args(argv)
    module, _, run, _ = COMMANDS[args.command]
    module = TASKS.get((args.command, getattr(args, "task", None)), module)
    run_cli(f"sam-bigltl {args.command}", getattr(_import(module, parser), run), args)


def _import(module: str, parser: ArgumentParser) -> ModuleType:
    """A module of this package; ends the process in one line where an optional package that it needs is missing."""
    try:
        return importlib.import_module(f"sam_bigltl.{module}")
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("sam_bigltl"):
            raise
        parser.exit(2, f"{parser.prog}: error: this needs the package {error.name}: pip install 'sam_bigltl[all]'\n")


def _value(argv: Sequence[str], option: str) -> str | None:
    """What follows `option`, or what it is set to with =."""
    for word, following in zip(argv, [*argv[1:], None]):
        if word == option or word.startswith(option + "="):
            return following if word == option else word[len(option) + 1 :]
    return None


def _join_negative(argv: list[str]) -> list[str]:
    """`--box -5,0,9,9` as `--box=-5,0,9,9`: argparse takes a value that starts with a minus for a flag."""
    joined: list[str] = []
    for word in argv:
        if joined and joined[-1] in ("--box", "--point") and re.match(r"-[\d.]", word):
            joined[-1] += "=" + word
        else:
            joined.append(word)
    return joined


if __name__ == "__main__":
    main()
