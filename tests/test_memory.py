"""Freed memory is kept: the pages of one tensor serve the next."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from sam_bigltl.memory import keep_freed_memory
torch.set_num_threads(1)
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(3)
def use():
    for _ in range(5):
        torch.empty(10_000_000).fill_(1)
for _ in range(3):  # until every block has found its place
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, timeout=120)
    if done.returncode == 3:
        pytest.skip("no glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_pages_are_used_again() -> None:
    assert faults("keep") < 1000  # 40 MB are 10,000 pages of 4 KB
