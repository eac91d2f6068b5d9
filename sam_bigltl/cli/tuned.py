"""The flag `--tuned`, and what it leaves to `--dtype`, `--native` and `--keep-ratio`."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from ..convert.registry import default_checkpoint
from ..convert.tuned import Setting, read_setting
from ..errors import InputError
from ..fast.precision import check_precision


def add_tuned(parser: Any) -> None:
    """Add the flag to a parser or a group of it; `--dtype` has no default there."""
    parser.add_argument("--tuned", action="store_true",
                        help="run the checkpoint as `sam-bigltl tune` has set it: its number format and kernels, and "
                        "its keep_ratio where no --keep-ratio is given")  # fmt: skip


def encoder_setting(args: argparse.Namespace, device: torch.device) -> tuple[str, bool, Setting | None]:
    """The dtype of the encoder, whether the C++ kernels compute it, and the setting that they come from, if one does.

    Raises InputError for `--tuned` beside the flags that it replaces, and for what does not run on `device`.
    """
    if not args.tuned:
        dtype = args.dtype or "float32"
        check_precision(dtype, device)
        return dtype, args.native, None
    if args.dtype is not None or args.native:
        raise InputError(
            "--tuned takes the number format and the kernels from the checkpoint: leave --dtype and --native out, or "
            "--tuned"
        )
    setting = read_setting(args.checkpoint or default_checkpoint(), device)
    return setting.dtype, setting.native, setting
