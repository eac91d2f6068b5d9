"""The processes of a training that `accelerate launch` or `torchrun` started, or this one alone."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState

from ..fast.devices import parse_device


def join_processes(device: str | None) -> tuple[PartialState, torch.device]:
    """The group of processes, and the device of this one: where there are several, each has its own.

    Args:
        device: of `--device`; None is a GPU where there is one.
    """
    chosen = parse_device(device)
    cpu = chosen.type == "cpu"
    if cpu:  # without it accelerate sees no group of processes where there is no GPU
        os.environ["ACCELERATE_USE_CPU"] = "true"
    # Hours: the others wait while one validates, or fills its share of a cache.
    processes = PartialState(cpu=cpu, timeout=timedelta(hours=12))
    return processes, processes.device if processes.num_processes > 1 else chosen
