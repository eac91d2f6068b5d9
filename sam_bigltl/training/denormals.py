"""Denormal numbers as zero while a training runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def denormals_are_zero() -> bool:
    """Whether the calling thread's processor takes denormal numbers for zero now; torch does not tell."""
    return sys.float_info.min / 2 == 0.0


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Denormals are zero inside, as the calling thread had them after: the mode is the whole program's, not ours.

    Denormals in young weights slow a CPU down several times.
    """
    before = denormals_are_zero()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
