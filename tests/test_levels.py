"""Which level of instructions the C++ kernels run in, and the threads that they run in."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import native_toy
import pytest

from sam_bigltl.errors import InputError
from sam_bigltl.fast.native import build, caps, levels, toolchain

X86 = ("avx2", "avx2_vnni", "avx2_vnni_vl", "avx512", "avx512_vnni", "avx512_bf16")
ARM = ("neon", "neon_dot", "neon_i8mm")
here = toolchain.levels_of(platform.machine())
on_x86 = pytest.mark.skipif(here != X86, reason="an x86 processor's levels")


# ---------------------------------------------------------------- what the environment allows
@pytest.mark.parametrize(
    ("aten", "onednn", "ours", "highest"),
    [
        ("", "", "", "avx512_bf16"),
        ("avx2", "", "", "avx2_vnni_vl"),  # ATen knows no VNNI
        ("avx512", "", "", "avx512_bf16"),
        ("AVX2", "AVX2", "", "avx2"),
        ("avx2", "AVX2_VNNI", "", "avx2_vnni_vl"),
        ("", "AVX512_CORE", "", "avx512"),
        ("", "avx512_core_vnni", "", "avx512_vnni"),
        ("", "AVX512_CORE_BF16", "", "avx512_bf16"),
        ("", "AVX512_CORE_AMX", "", "avx512_bf16"),
        ("", "ALL", "avx512", "avx512"),
        ("avx2", "AVX512_CORE_VNNI", "avx512_bf16", "avx2_vnni_vl"),  # the lowest counts
        ("something new", "something new", "", "avx512_bf16"),
    ],
)
def test_the_environment_limits_the_level(aten, onednn, ours, highest, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    for name, value in zip(("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "SAM_BIGLTL_CPU_LEVEL"), (aten, onednn, ours)):
        monkeypatch.setenv(name, value)
    assert caps.allowed(caps.settings()) == X86[: X86.index(highest) + 1]


@pytest.mark.parametrize(
    ("variable", "value"),
    [("ATEN_CPU_CAPABILITY", "default"), ("ONEDNN_MAX_CPU_ISA", "SSE41"), ("ONEDNN_MAX_CPU_ISA", "AVX")],
)
def test_less_than_any_level(variable, value, monkeypatch):
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert levels.level() is None
    with pytest.raises(InputError, match=f"switched off by {variable}={value.lower()}: unset it, or leave native out"):
        levels.function("width")
    assert f"no C++ kernels: native kernels are switched off by {variable}" in levels.explain()
    monkeypatch.setattr(platform, "machine", lambda: "arm64")  # "default" is NEON there
    assert caps.allowed(caps.settings()) == ARM


def test_levels_that_there_are_not(monkeypatch):
    monkeypatch.setenv("SAM_BIGLTL_CPU_LEVEL", "neon_dot")
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    with pytest.raises(InputError, match="SAM_BIGLTL_CPU_LEVEL is one of avx2, avx2_vnni, .*, not 'neon_dot'"):
        build.load()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert caps.allowed(caps.settings()) == ARM[:2]


# ---------------------------------------------------------------- what the processor has
@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Iterator[Path]:
    """Tiny kernels in the place of the real ones, in a cache of their own."""
    if os.name != "posix" or not shutil.which("g++"):
        pytest.skip("compiled with g++ by a script")
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("CXX", native_toy.compiler(folder))
        patch.setattr(build, "_FOLDER", folder)  # where no library lies that a wheel brought
        native_toy.forget()
        yield folder
    native_toy.forget()


@on_x86
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/cpuinfo")
def test_levels_are_what_the_system_says_of_the_processor(toy):
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].split())
    avx2, avx512 = {"avx2", "fma", "f16c"}, {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
    needed = {
        "avx2": avx2, "avx2_vnni": avx2 | {"avx_vnni"},
        "avx2_vnni_vl": avx2 | avx512 | {"avx512_vnni"}, "avx512": avx2 | avx512,
        "avx512_vnni": avx2 | avx512 | {"avx512_vnni"}, "avx512_bf16": avx2 | avx512 | {"avx512_vnni", "avx512_bf16"},
    }  # fmt: skip
    assert toolchain.names(build.load().kernels.bigltl_machine_levels()) == tuple(
        level for level in X86 if needed[level] <= flags
    )


def runs_here() -> tuple[str, ...]:
    return toolchain.names(build.load().kernels.bigltl_machine_levels())


@pytest.mark.parametrize("level", [level for level in here if not level.endswith("_vnni")])
def test_functions_are_those_of_the_level(toy, level, monkeypatch):
    if level not in runs_here():
        pytest.skip(f"this processor has no {level}")
    monkeypatch.setenv("SAM_BIGLTL_CPU_LEVEL", level)
    assert levels.level() == level and build.load().levels == (level,)
    assert levels.function("width")() == {"avx2": 8, "avx2_vnni_vl": 8, "avx512": 16, "avx512_bf16": 16}.get(level, 4)
    assert levels.explain().endswith(f": C++ kernels in {level}, compiled here")


def test_one_library_holds_every_level(toy, tmp_path):
    made = toolchain.compile_library(os.environ["CXX"].split(), here, tmp_path / "kernels.so", tmp_path)
    kernels = ctypes.CDLL(str(tmp_path / "kernels.so"))
    assert made == here == toolchain.names(kernels.bigltl_library_levels())
    for level in set(here) & set(runs_here()):
        assert kernels[f"bigltl_{level}_width"]() in (4, 8, 16)


@on_x86
def test_levels_that_a_compiler_does_not_know_are_left_out(toy, tmp_path, monkeypatch):
    old = tmp_path / "old-compiler"
    old.write_text(
        f'#!/bin/sh\ncase "$*" in *-mavxvnni*|*-mavx512bf16*) exit 1 ;; esac\nexec {os.environ["CXX"]} "$@"\n'
    )
    old.chmod(0o700)
    made = toolchain.compile_library([str(old)], X86, tmp_path / "kernels.so", tmp_path)
    assert made == ("avx2", "avx2_vnni_vl", "avx512", "avx512_vnni")
    if runs_here()[-1] == "avx512_bf16":  # the next best is compiled for this machine
        monkeypatch.setenv("CXX", str(old))
        assert native_toy.find().levels == ("avx512_vnni",)


def test_a_processor_without_any_level(toy, monkeypatch):
    monkeypatch.setattr(build, "_runs", lambda _: ())
    with pytest.raises(InputError, match="need a processor with AVX2, or with Arm's NEON: leave native .--native. out"):
        native_toy.find()


def test_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        InputError, match="need a C.. compiler, or a wheel that brings them: install .*, or leave native"
    ):
        native_toy.find()


# ---------------------------------------------------------------- a library that came with the package
def test_the_packages_own_library_comes_first_if_it_is_of_these_sources(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_FOLDER", tmp_path)
    shipped = tmp_path / toolchain.shipped_name()
    other = tmp_path / f"kernels-0123456789abcdef{toolchain.SUFFIX}"
    toolchain.compile_library(os.environ["CXX"].split(), runs_here()[:1], other, tmp_path)
    assert native_toy.find().origin == "compiled here"
    other.rename(shipped)
    monkeypatch.setenv("PATH", "")  # no compiler is needed now
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = native_toy.find()
    assert found.origin == "from the wheel" and found.levels == runs_here()[:1]


# ---------------------------------------------------------------- threads
SIZE = 1000


def count(threads: int) -> list[int]:
    """Every index, added as often as a body got it."""
    counts = (ctypes.c_int64 * SIZE)()
    levels.function("count", None)(counts, ctypes.c_int64(SIZE), ctypes.c_int64(threads))
    return list(counts)


@pytest.fixture(params=["torch's threads", "a pool"])
def threads_of(request, toy) -> str:
    kernels = build.load().kernels
    runtime = build._gomp_parallel()
    if request.param == "a pool":
        kernels.bigltl_set_parallel(None)
    elif runtime is None:
        pytest.skip("torch has no OpenMP runtime with GOMP_parallel")
    yield request.param
    kernels.bigltl_set_parallel(ctypes.c_void_p(runtime))


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_every_index_once(threads_of, threads):
    for _ in range(20):
        assert count(threads) == list(range(SIZE))


def test_calls_from_several_threads_at_once(threads_of):
    found = []
    callers = [threading.Thread(target=lambda: found.extend(count(3) for _ in range(10))) for _ in range(4)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(60)
    assert found == [list(range(SIZE))] * 40


ALONE = """
import ctypes, os, sys, threading
import native_toy, test_levels as t
from sam_bigltl.fast.native import build
if sys.argv[1] == "pool":
    build.load().kernels.bigltl_set_parallel(None)
def threads():
    return len(os.listdir("/proc/self/task"))
before = threads()
t.count(1)
assert threads() == before, "one thread starts no other"
t.count(3)
assert threads() == before + 2, (before, threads())
t.count(3)
assert threads() == before + 2, "they are kept"
child = os.fork()
if child == 0:  # has the memory of this process, but none of its threads
    good = t.count(3) == list(range(t.SIZE)) and threads() == 3
    os._exit(0 if good else 1)
assert os.waitpid(child, 0)[1] == 0
assert t.count(3) == list(range(t.SIZE))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/task")
@pytest.mark.parametrize("kind", ["pool", "torch"])
def test_threads_that_are_started_and_children_of_fork(toy, kind):
    """The children of fork() compute too, also where the OpenMP runtime itself would wait for ever."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, kind], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/task")
def test_torch_and_the_kernels_share_their_threads(toy):
    """What torch itself calls: threads that it started take part, and no new ones."""
    if build._gomp_parallel() is None:
        pytest.skip("torch has no OpenMP runtime with GOMP_parallel")
    script = """
import os, torch, test_levels as t
torch.set_num_threads(3)
torch.ones(3_000_000).exp()
t.build.load()
before = len(os.listdir("/proc/self/task"))
t.count(3)
assert len(os.listdir("/proc/self/task")) == before
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
