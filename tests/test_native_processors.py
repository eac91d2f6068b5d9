"""Which levels of instructions the library finds in processors that are not here: QEMU has many."""

from __future__ import annotations

import ctypes

import pytest
from native import processes

from sam_bigltl.fast.native import toolchain


@pytest.mark.parametrize(
    ("level", "processor", "expected"),
    [
        ("neon", "cortex-a72", ("neon",)),
        ("neon", "neoverse-n1", ("neon", "neon_dot")),
        ("neon", "max", ("neon", "neon_dot", "neon_i8mm")),
        ("avx2", "max", ("avx2",)),
        ("avx2", "max,-avx2", ()),
        ("avx2", "max,-f16c", ()),
        ("avx2", "max,-xsave", ()),  # the system does not keep the registers
    ],
)
def test_levels_of_processors(
    pytestconfig: pytest.Config, level: str, processor: str, expected: tuple[str, ...]
) -> None:
    remote = processes.start(level, pytestconfig, processor)
    assert toolchain.names(remote.call("bigltl_machine_levels", ctypes.c_uint32)) == expected
    remote.close()
