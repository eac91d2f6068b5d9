"""What only Arm's kernels have to show; `test_native_levels.py` runs them."""

from __future__ import annotations

import ctypes
import platform

import pytest
from native import processes

from sam_bigltl.fast.native import toolchain


@pytest.mark.parametrize(
    ("processor", "expected"),
    [("cortex-a72", ["neon"]), ("neoverse-n1", ["neon", "neon_dot"]), ("max", ["neon", "neon_dot", "neon_i8mm"])],
)
def test_levels_of_processors(pytestconfig: pytest.Config, processor: str, expected: list[str]) -> None:
    if platform.machine() in ("aarch64", "arm64"):
        pytest.skip("runs on the processor that is here")
    remote = processes.start("neon", pytestconfig, processor)
    assert list(toolchain.names(remote.call("bigltl_machine_levels", ctypes.c_uint32))) == expected
    remote.close()
