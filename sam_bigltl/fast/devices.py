"""The device that something runs on."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import torch

from ..errors import InputError


def parse_device(text: str | None) -> torch.device:
    """The device named `text`; None: CUDA if there is one, else the CPU. Raises InputError if it cannot be used."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise InputError(f"unknown device {text!r}: choose cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"no such CUDA device: {text} ({torch.cuda.device_count()} available); use --device cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("this machine has no MPS device; use --device cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"unsupported device {text!r}: choose cpu, cuda, cuda:N or mps")
    return device


def device_name(device: torch.device) -> str:
    """The processor's product name where the system tells it, such as "NVIDIA H200"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if device.type == "cpu" and cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished: kernels are launched asynchronously on all but the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
