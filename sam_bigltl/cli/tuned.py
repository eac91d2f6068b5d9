"""How the encoder runs: the flags `--dtype` and `--native`, and `--tuned`, which replaces them."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..convert.registry import default_checkpoint
from ..convert.tuned import Setting, read_setting
from ..errors import InputError
from ..fast.choice import Choice, Native, choose
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
) -> tuple[Choice, Setting | None]:
    """What the encoder computes in, and the setting that it comes from, if one does.

    The caller may `say()` it, once nothing can be wrong with the input any more. Raises InputError for `--tuned` beside
    the flags that it replaces, and for what does not run on `device`.

    Args:
        exact: as in `add_format`.
    """
    if not args.tuned:
        dtype = args.dtype or ("float32" if exact else "auto")
        native: Native = args.native if args.native is not None else "auto" if dtype == "auto" or not exact else False
        return choose(device, dtype, native), None
    if args.dtype is not None or args.native is not None:
        raise InputError(
            "--tuned takes the number format and the kernels from the checkpoint: leave --dtype and --native out, or "
            "--tuned"
        )
    setting = read_setting(args.checkpoint or default_checkpoint(), device)
    return Choice(setting.dtype, setting.native), setting
