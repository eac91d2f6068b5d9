"""How the C++ kernels are compiled: by which compiler, with which flags, for which processors.

Only the standard library is used, and nothing of the package, since setup.py runs this file alone. It also compiles for
another machine than the one at hand: `CXX=aarch64-linux-gnu-g++ python toolchain.py --machine aarch64 kernels.so`
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The order is that of the bits of machine.cpp: what comes later is faster, on processors that have it.
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
LEVELS: dict[str, tuple[str, ...]] = {
    "avx2": _AVX2,
    "avx2_vnni": (*_AVX2, "-mavxvnni"),
    # The same instructions as AVX-512 codes them: for processors with AVX-512 that a limit holds at 256 bits.
    "avx2_vnni_vl": (*_AVX512, "-mavx512vnni", "-DBIGLTL_256"),
    "avx512": _AVX512,
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512_bf16": (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
    "neon": (),
    "neon_dot": ("-march=armv8.2-a+dotprod",),
    "neon_i8mm": ("-march=armv8.2-a+dotprod+i8mm",),
}
# Compilers differ in which products and sums they make one operation of their own accord, and so in the last bit of the
# results: without, kernels say where they want it.
FLAGS = ("-O3", "-std=c++17", "-fvisibility=hidden", "-fvisibility-inlines-hidden", "-ffp-contract=off")
_FOLDER = Path(__file__).resolve().parent
_PATIENCE = 600  # seconds for the compiler
HOW_TO_INSTALL = {
    "win32": "LLVM's clang++ and the build tools of Visual Studio",
    "darwin": "it with xcode-select --install",
}.get(sys.platform, "g++")
SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")


class CompilerError(Exception):
    """A compiler that does not do it: one line that says which and why."""


class UnknownLevel(CompilerError):
    """A compiler that is older than the instructions of all the levels."""


def levels_of(machine: str) -> tuple[str, ...]:
    """The levels of a kind of processor, as `platform.machine()` names it; none where there are no kernels for it."""
    family = {"x86_64": "avx", "amd64": "avx", "aarch64": "neon", "arm64": "neon"}.get(machine.lower())
    return tuple(level for level in LEVELS if family and level.startswith(family))


def names(bits: int) -> tuple[str, ...]:
    """The levels of a number with a bit for each, as the library returns it."""
    return tuple(level for number, level in enumerate(LEVELS) if bits >> number & 1)


def digest() -> str:
    """Of the sources and of this file: a library with another one is of another version."""
    total = hashlib.sha256()
    for path in sorted((*_FOLDER.glob("*.cpp"), *_FOLDER.glob("*.h"), Path(__file__).resolve())):
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


def shipped_name() -> str:
    """What the library of these sources is called in a wheel."""
    return f"kernels-{digest()}{SUFFIX}"


def find_compiler() -> list[str] | None:
    """The words of the command that compiles C++: $CXX, or what the system calls it; None where there is none."""
    given = os.environ.get("CXX", "").strip()
    if given:
        return [given] if os.path.isfile(given) else given.split()
    # Windows: clang++ takes these flags, and the vectors of the kernels, where cl.exe does not.
    for name in ("clang++",) if os.name == "nt" else ("c++", "g++", "clang++"):
        found = shutil.which(name)
        if found:
            return [found]
    return None


def compile_library(
    compiler: Sequence[str], levels: Sequence[str], library: Path, folder: Path, machine: str | None = None
) -> tuple[str, ...]:
    """Compile the kernels into one library.

    Args:
        compiler: the words of its command.
        levels: names of LEVELS; those that the compiler does not know are left out. Without any the library only tells
            what the machine runs.
        library: the file to write.
        folder: for what is needed on the way.
        machine: the processor to compile for, as `platform.machine()` names it; that of this process by default.

    Returns:
        the levels that are in the library.

    Raises:
        CompilerError: the compiler fails, or (UnknownLevel) knows none of the levels.
        OSError: it cannot be run.
    """
    machine = machine or platform.machine()
    known = [level for level in LEVELS if level in levels and _knows(compiler, LEVELS[level], folder, machine)]
    if levels and not known:
        raise UnknownLevel(f"{compiler[0]} knows none of the instructions {', '.join(levels)}")
    bits = sum(1 << number for number, level in enumerate(LEVELS) if level in known)
    jobs: list[tuple[str, str, tuple[str, ...]]] = [("machine.cpp", "machine", (f"-DBIGLTL_LIBRARY_LEVELS={bits}u",))]
    if known:
        jobs.append(("parallel.cpp", "parallel", ()))
    # The plainest level first: where two objects hold the same function of the C++ library, the linker takes the first.
    jobs += [("kernels.cpp", level, (f"-DBIGLTL_LEVEL={level}", *LEVELS[level])) for level in known]

    def compiled(job: tuple[str, str, tuple[str, ...]]) -> str:
        source, name, flags = job
        target = str(folder / f"{name}.o")
        _run([*compiler, *FLAGS, *_of_system(machine), *flags, "-c", str(_FOLDER / source), "-o", target], folder)
        return target

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(compiled, jobs))
    _run([*compiler, "-shared", *_of_system(machine), *objects, "-o", str(library)], folder)
    return tuple(known)


def _of_system(machine: str) -> tuple[str, ...]:
    if sys.platform == "win32":
        return ()
    if sys.platform == "darwin":  # whose compiler may be run by a Python of another processor
        return ("-fPIC", "-arch", "arm64" if levels_of(machine)[:1] == ("neon",) else "x86_64")
    return ("-fPIC", "-pthread")


def _knows(compiler: Sequence[str], flags: Sequence[str], folder: Path, machine: str) -> bool:
    """Whether the compiler takes the flags of a level."""
    command = [*compiler, *_of_system(machine), *flags, "-E", "-x", "c++", os.devnull, "-o", str(folder / "empty")]
    return _finished(command, folder).returncode == 0


def _run(command: list[str], folder: Path) -> None:
    done = _finished(command, folder)
    if done.returncode:
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise CompilerError(f"{command[0]} cannot compile the native kernels ({reason.strip()})")


def _finished(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, env=os.environ | {"TMPDIR": str(folder)}, stdin=subprocess.DEVNULL, capture_output=True,
            errors="replace", timeout=_PATIENCE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CompilerError(f"{command[0]} does not end") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description="compile the C++ kernels into one library, by $CXX or the system's c++"
    )
    parser.add_argument("library", type=Path)
    parser.add_argument("--machine", default=platform.machine(), help="x86_64 or aarch64; this one by default")
    parser.add_argument("--levels", nargs="+", choices=list(LEVELS), help="all of the machine by default")
    args = parser.parse_args()
    compiler = find_compiler()
    if compiler is None:
        sys.exit(f"error: there is no C++ compiler: install {HOW_TO_INSTALL}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            levels = args.levels or levels_of(args.machine)
            made = compile_library(compiler, levels, args.library.resolve(), Path(folder), args.machine)
    except (CompilerError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.library}: {', '.join(made)}")


if __name__ == "__main__":
    main()
