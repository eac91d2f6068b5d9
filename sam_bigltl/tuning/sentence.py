"""What a tuning says in the end: one sentence, and the lines that use what it found."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from ..data.files import encodable
from ..fast.devices import parse_device
from .result import Tuned
from .table import original_name, share, whole_images


def sentence(tuned: Tuned) -> str:
    """The verdict, and below it the lines of Python and of the command line that use the tuned model."""
    lines = [verdict(tuned), "", "In Python:", *(f"    {line}" for line in python_lines(tuned))]
    if command := command_line(tuned):
        lines += ["On the command line:", f"    {command}"]
    return "\n".join(lines)


def verdict(tuned: Tuned) -> str:
    """One sentence: the chosen setting, how fast it is and how far its masks agree."""
    row, measured = tuned.row, len(tuned.photographs.get("measure", ()))
    count = len(whole_images(tuned))
    of = f"of {count} settings" if count != 1 else "of one setting"
    if tuned.reached:
        begin = f"The fastest {of} with a mean agreement of at least {tuned.target:g} is {tuned.setting}"
    else:
        begin = f"None {of} has a mean agreement of {tuned.target:g}; the most faithful is {tuned.setting}"
    on = f" on {measured} photograph{'s' * (measured != 1)}" if measured else ""
    return (
        f"{begin}: {1e3 * row.seconds:.1f} ms a pass of the image encoder, {row.speedup:.1f} times as fast as "
        f"{original_name(tuned)}, and its masks agree with the original's to {share(row.agreement)} (mean IoU, "
        f"{row.prompts} prompts{on})."
    )


def python_lines(tuned: Tuned) -> list[str]:
    """How to have a predictor."""
    if tuned.path is None:
        return ["predictor = SamPredictor(tuned.sam)  # set already; tune(..., output=FOLDER) writes it to a file"]
    device = tuned.sam.device
    moved = f".to({str(device)!r})" if device.type != "cpu" else ""
    return [
        "from sam_bigltl import SamPredictor, load_sam",
        f"predictor = SamPredictor(load_sam({str(tuned.path)!r}, tuned=True){moved})",
    ]


def command_line(tuned: Tuned) -> str:
    """How to segment a photograph; empty where the model is in no file."""
    if tuned.path is None:
        return ""
    command = f"sam-bigltl segment PHOTO --box x0,y0,x1,y1 --checkpoint {shell_word(tuned.path)} --tuned"
    device = tuned.sam.device
    return command + f" --device {device}" * (device.type != parse_device(None).type)


def shell_word(path: Path) -> str:
    """A path as one word of a shell's command line, in printable characters, that no flag can be taken for."""
    text = str(path)
    text = f"./{text}" if text.startswith("-") else text
    if text.isprintable() and encodable(text) == text:
        return shlex.quote(text)
    # Bash's quotes for bytes: the file's name may not be UTF-8, or hold a line break.
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(plain)}'"
