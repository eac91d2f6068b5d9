"""Kernels of any level in a process of its own: those of this processor, and those of Arm under QEMU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from native.remote import Remote

from sam_bigltl.fast.native import levels, ops, toolchain

_DRIVER = Path(__file__).with_name("driver.cpp")
_CROSS_COMPILER, _EMULATOR, _SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64", Path("/usr/aarch64-linux-gnu")
FLAGS = tuple(os.environ.get("KERNEL_TEST_FLAGS", "").split())  # such as -fsanitize=address,undefined


@contextmanager
def patched(level: str, config: pytest.Config) -> Iterator[Remote]:
    """Within it the functions of `ops` run the kernels of `level`. Skips the test where this machine cannot."""
    remote = start(level, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "data_ptr", remote.recorder())
        patch.setattr(levels, "function", remote.function)
        patch.setattr(levels, "level", lambda: level)
        ops.has.cache_clear()
        yield remote
    ops.has.cache_clear()
    remote.close()


def start(level: str, config: pytest.Config, processor: str = "max") -> Remote:
    """The process; `processor` is the one that QEMU emulates. Skips the test where there can be none."""
    machine = platform.machine()
    if level not in toolchain.levels_of(machine) and level in toolchain.levels_of("aarch64"):
        machine = "aarch64"
    if level not in toolchain.levels_of(machine):
        pytest.skip(f"{level} is not of this kind of processor")
    emulated = machine != platform.machine()
    emulator = [_EMULATOR, "-cpu", processor, "-L", str(_SYSTEM)] if emulated else []
    compiler = [_CROSS_COMPILER] if emulated else toolchain.find_compiler()
    if not compiler:
        pytest.skip("no C++ compiler")
    if emulated and not (shutil.which(_EMULATOR) and shutil.which(_CROSS_COMPILER) and _SYSTEM.is_dir()):
        pytest.skip(f"{level} needs qemu-user and g++-aarch64-linux-gnu")
    driver, library = _compiled(tuple(compiler), machine, config.cache.mkdir("native_levels"))
    remote = Remote([*emulator, str(driver), str(library)], level)
    for who, function in (("this processor", "bigltl_machine_levels"), (compiler[0], "bigltl_library_levels")):
        if level not in toolchain.names(remote.call(function, ctypes.c_uint32)):
            remote.close()
            pytest.skip(f"{who} has no {level}")
    return remote


@functools.cache
def _compiled(compiler: tuple[str, ...], machine: str, cache: Path) -> tuple[Path, Path]:
    """The driver and the library of all levels of `machine`, optimized a little only, which takes less time."""
    text = " ".join((toolchain.digest(), machine, *compiler, *FLAGS)).encode() + _DRIVER.read_bytes()
    folder = cache / hashlib.sha256(text).hexdigest()[:16]
    driver, library = folder / "driver", folder / "kernels.so"
    if library.is_file():
        return driver, library
    for old in cache.iterdir() if cache.is_dir() else ():
        if old.is_dir() and (old / "machine").is_file() and (old / "machine").read_text() == machine:
            shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "machine").write_text(machine)
    with tempfile.TemporaryDirectory(dir=cache) as made, pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "FLAGS", tuple("-O1" if flag == "-O3" else flag for flag in toolchain.FLAGS))
        command = [*compiler, *FLAGS, "-std=c++17", str(_DRIVER), "-o", f"{made}/driver", "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        toolchain.compile_library(
            (*compiler, *FLAGS), toolchain.levels_of(machine), Path(made) / "kernels.so", Path(made), machine
        )
        Path(made, "driver").replace(driver)
        Path(made, "kernels.so").replace(library)
    return driver, library
