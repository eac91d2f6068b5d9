"""The command line: `sam-bigltl COMMAND ...`."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from types import ModuleType

from ..errors import ArgumentParser, run_cli

# Command: module of this folder, one line of help. Each has `add_arguments` and `run`, and is imported when called for.
COMMANDS = {
    "quickstart": ("quickstart", "three photographs segmented, with times"),
    "segment": ("segment", "masks of a photograph or a folder, from boxes or points"),
    "bulk": ("bulk", "masks of very many photographs, on one machine or a Ray cluster"),
    "convert": ("convert", "a SAM checkpoint to a big.LITTLE model"),
    "tune": ("tune", "the fastest setting of a checkpoint that keeps its masks, on your photographs"),
    "download": ("download", "SAM's published checkpoints"),
    "train": ("train", "train or distil a model from masks in COCO format"),
    "distill": ("distill", "a big.LITTLE student from a SAM, on photographs"),
    "eval": ("evaluate", "mIoU on masks in COCO format"),
    "export": ("export", "a checkpoint as ONNX files, which run without torch"),
    "demo": ("demo", "a page on which clicks become masks"),
    "bench": ("bench", "encoder latency, interleaved and with ratios"),
}
# A task of a command: another module in its place.
TASKS: dict[tuple[str, str | None], str] = {("train", "classify"): "classify"}


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
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == asked:
            module = TASKS.get((name, _value(argv, "--task")), module)
            _import(module, command).add_arguments(command)
    args = parser.parse_args(argv)
    module, _ = COMMANDS[args.command]
    module = TASKS.get((args.command, getattr(args, "task", None)), module)
    run_cli(f"sam-bigltl {args.command}", _import(module, parser).run, args)


def _import(module: str, parser: ArgumentParser) -> ModuleType:
    """A module of this package; ends the process in one line where an optional package that it needs is missing."""
    try:
        return importlib.import_module(f"sam_bigltl.cli.{module}")
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("sam_bigltl"):
            raise
        parser.exit(
            2, f"{parser.prog}: error: this needs the package {error.name}: pip install '.[all]' in the checkout\n"
        )


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
