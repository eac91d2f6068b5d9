"""Tiny kernels that compile in a second, in the place of the real ones: all that lies around those is the same."""

from __future__ import annotations

from pathlib import Path

from sam_bigltl.fast.native import build, caps, levels

KERNELS = """
#include "parallel.h"
#include <cstdint>
#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif
#define JOIN(a, b, c) a##b##c
#define NAMED(level, name) JOIN(bigltl_, level, name)
#if defined(__AVX512F__) && !defined(BIGLTL_256)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
EXPORT int NAMED(BIGLTL_LEVEL, _width)() { return kWidth; }
// Adds the index, in unequal times.
EXPORT void NAMED(BIGLTL_LEVEL, _count)(int64_t* counts, int64_t size, int64_t threads) {
  parallel_for(size, threads, [&](int64_t index) {
    for (volatile int64_t i = 0; i < 300 * (index % 3); i = i + 1) {
    }
    counts[index] += index;
  });
}
"""
# Compiles KERNELS where it is given kernels.cpp, without optimization.
COMPILER = """#!/bin/sh
for word do
  shift
  case "$word" in */kernels.cpp) word="{source}" ;; esac
  set -- "$@" "$word"
done
exec g++ -I "{native}" "$@" -O0
"""


def compiler(folder: Path) -> str:
    """The path of a compiler of KERNELS, made in `folder`."""
    source, program = folder / "toy.cpp", folder / "toy-compiler"
    source.write_text(KERNELS)
    program.write_text(COMPILER.format(source=source, native=Path(build.__file__).parent))
    program.chmod(0o700)
    return str(program)


def find() -> build.Library:
    """What `build.load` finds, which is searched for once a process, searched for anew."""
    return build.find(caps.allowed(caps.settings()))


def forget() -> None:
    """The next `load` and `function` search for the kernels again."""
    for cached in (build._load, levels._best, levels._function):
        cached.cache_clear()
