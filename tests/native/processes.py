"""Kernels of any level in a process of its own: those of this processor, and those of Arm under QEMU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from native.remote import Remote

from sam_bigltl.fast.native import levels, ops, toolchain

if os.name == "posix":
    import fcntl

_DRIVER = Path(__file__).with_name("driver.cpp")
_CROSS_COMPILER, _CROSS_SYSTEM = "aarch64-linux-gnu-g++", Path("/usr/aarch64-linux-gnu")
# In the place of -O3, with which all levels take minutes.
_FLAGS = tuple(os.environ.get("KERNEL_TEST_FLAGS", "-O0").split())


@contextmanager
def patched(level: str, config: pytest.Config) -> Iterator[Remote]:
    """Within it the functions of `ops` run the kernels of `level`. Skips the test where this machine cannot."""
    remote = start(level, config)
    for who, function in (("this processor", "bigltl_machine_levels"), ("the compiler", "bigltl_library_levels")):
        if level not in toolchain.names(remote.call(function, ctypes.c_uint32)):
            remote.close()
            pytest.skip(f"{who} has no {level}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "data_ptr", remote.recorder())
        patch.setattr(levels, "function", remote.function)
        patch.setattr(levels, "level", lambda: level)
        ops.has.cache_clear()
        yield remote
    ops.has.cache_clear()
    remote.close()


def start(level: str, config: pytest.Config, processor: str | None = None) -> Remote:
    """The process, or a skipped test where there can be none.

    Args:
        processor: one that QEMU has under this name; the one that is here by default, and all that QEMU can do where it
            is of another kind than `level`.
    """
    if os.name != "posix":
        pytest.skip("the driver needs dlopen()")
    here = platform.machine()
    machine = "aarch64" if level in toolchain.levels_of("aarch64") and here != "arm64" else here
    if level not in toolchain.levels_of(machine):
        pytest.skip(f"{level} is not of this kind of processor")
    compiler, emulator = toolchain.find_compiler(), []
    if machine != here:
        if not shutil.which(_CROSS_COMPILER) or not _CROSS_SYSTEM.is_dir():
            pytest.skip(f"{level} needs g++-aarch64-linux-gnu")
        compiler, emulator, processor = [_CROSS_COMPILER], ["-L", str(_CROSS_SYSTEM)], processor or "max"
    if not compiler:
        pytest.skip("no C++ compiler")
    if processor:
        emulator = [f"qemu-{machine}", "-cpu", processor, *emulator]
        if not shutil.which(emulator[0]):
            pytest.skip(f"{emulator[0]} of qemu-user is not installed")
    driver, library = _compiled(tuple(compiler), machine, config.cache.mkdir("native_levels"))
    return Remote([*emulator, str(driver), str(library)], level)


@functools.cache
def _compiled(compiler: tuple[str, ...], machine: str, cache: Path) -> tuple[Path, Path]:
    """The driver and the library of all levels of `machine`."""
    made_by = " ".join((*compiler, *_FLAGS))
    name = hashlib.sha256((toolchain.digest() + machine + made_by).encode() + _DRIVER.read_bytes()).hexdigest()[:16]
    folder = cache / name
    driver, library = folder / "driver", folder / "kernels.so"
    with _alone(cache):
        if library.is_file():
            return driver, library
        for old in cache.glob("*/made_by"):  # of earlier sources
            if old.read_text() == made_by:
                shutil.rmtree(old.parent)
        folder.mkdir(exist_ok=True)
        (folder / "made_by").write_text(made_by)
        command = [*compiler, *_FLAGS, "-std=c++17", str(_DRIVER), "-o", str(driver), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        with TemporaryDirectory(dir=folder) as parts, pytest.MonkeyPatch.context() as patch:
            patch.setattr(toolchain, "FLAGS", (*_FLAGS, *(flag for flag in toolchain.FLAGS if flag != "-O3")))
            made = Path(parts) / library.name
            toolchain.compile_library(compiler, toolchain.levels_of(machine), made, Path(parts), machine)
            made.replace(library)
    return driver, library


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process is in this block for `folder` at the same time."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
