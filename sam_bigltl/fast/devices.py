"""The device that something runs on."""

from __future__ import annotations

import functools
import platform
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import InputError

_WINDOWS = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"


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
    return (device.type == "cpu" and _processor()) or platform.processor() or platform.machine()


@functools.cache
def _processor() -> str | None:
    """The CPU's product name, from where each system has it."""
    if sys.platform == "win32":
        import winreg

        with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _WINDOWS) as key:
            return str(winreg.QueryValueEx(key, "ProcessorNameString")[0]).strip()
        return None
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if found:
            return found[1].strip()
    # Arm: Linux has only numbers in that file, of which lscpu knows the names; macOS has no such file.
    is_mac = sys.platform == "darwin"
    command = ["sysctl", "-n", "machdep.cpu.brand_string"] if is_mac else ["lscpu"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=5, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"^(.+)$" if is_mac else r"^Model name:\s*(.+)$", told, re.MULTILINE)
    return found[1].strip() if found else None


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished: kernels are launched asynchronously on all but the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
