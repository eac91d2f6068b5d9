"""How the encoder runs: the flags `--dtype` and `--native`, and `--tuned`, which replaces them."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..convert.registry import default_checkpoint
from ..convert.tuned import Setting, read_setting
from ..errors import InputError
from ..fast.choice import Native, choose
from ..fast.precision import PRECISIONS


def add_tuned(parser: Any) -> None:
    """Add the flag to a parser or a group of it; `--dtype` has no default there."""
    parser.add_argument("--tuned", action="store_true",
                        help="run the checkpoint as `sam-bigltl tune` has set it: its number format and kernels, and "
                        "its keep_ratio where no --keep-ratio is given")  # fmt: skip


def add_format(parser: Any, exact: bool = False) -> None:
    """Add `--dtype` and `--native` to a parser or a group of it; the default is "auto", or float32 where `exact`."""
    default = "float32, SAM's own arithmetic; auto: what is fastest on this machine" if exact else "auto"
    parser.add_argument("--dtype", metavar="|".join(("auto", *PRECISIONS)), help=f"of the image encoder ({default})")
    default = "only beside --dtype auto" if exact else "where they can be had, but not for --dtype float32"
    parser.add_argument("--native", action=argparse.BooleanOptionalAction, default=None,
                        help=f"run it in this project's C++ kernels, on the CPU ({default})")  # fmt: skip


def encoder_setting(
    args: argparse.Namespace, device: torch.device, exact: bool = False
) -> tuple[str, bool, Setting | None]:
    """The dtype of the encoder, whether the C++ kernels compute it, and the setting that they come from, if one does.

    What was left to this project's choice is printed to stderr. Raises InputError for `--tuned` beside the flags that
    it replaces, and for what does not run on `device`.

    Args:
        exact: as in `add_format`.
    """
    if not args.tuned:
        dtype = args.dtype or ("float32" if exact else "auto")
        native: Native = args.native if args.native is not None else "auto" if dtype == "auto" or not exact else False
        chosen = choose(device, dtype, native)
        chosen.say()
        return chosen.dtype, chosen.native, None
    if args.dtype is not None or args.native is not None:
        raise InputError(
            "--tuned takes the number format and the kernels from the checkpoint: leave --dtype and --native out, or "
            "--tuned"
        )
    setting = read_setting(args.checkpoint or default_checkpoint(), device)
    return setting.dtype, setting.native, setting
