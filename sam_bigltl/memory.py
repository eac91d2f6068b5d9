"""Memory: what becomes of it when a program has freed it, and how much there is.

glibc gives large blocks back to the system at once, so that the next tensor of the same size starts on pages that the
system must find and clear again, 4 KB at a time. On virtual machines that costs more than the arithmetic (measured in
docs/design_notes.md). A process that computes all its life does better to keep what it has.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

# Of malloc.h; the same on every architecture.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its next tensors; says whether the C library was glibc, which can.

    The process stays as large as it once was. Nothing else changes, and there is no way back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or another system
        return False
    # No block gets a mapping of its own, the heap never shrinks, and it grows by 64 MB at a time.
    return all(
        mallopt(option, value) == 1 for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 2**26))
    )


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process may still take without swapping: of the machine, or of its control group's limit.

    None where the system does not tell. `root` is where its files are.
    """
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", (root / "proc/meminfo").read_text(), re.MULTILINE)
    except OSError:
        return None
    free = [int(found[1]) * 1024] if found else []
    group = root / "sys/fs/cgroup"
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            free.append(int((group / limit).read_text()) - int((group / used).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, min(free)) if free else None
