"""Finding, compiling and loading the C++ kernels.

A wheel brings them as a library beside the sources. Where there is none of exactly these sources, they are compiled
with the system's compiler, for this machine's processor alone, and kept in the user's cache folder under a name made
of their text, so that a new version is compiled anew. What lies there is run in this process, so it is loaded only if
it is whole and nobody else can have written it.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from ...errors import InputError
from . import caps, toolchain

_FOLDER = Path(__file__).parent
_UNFINISHED = "compiling-"
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Library:
    """The compiled kernels.

    Attributes:
        kernels: their functions.
        levels: the levels that are in it and that this processor runs, from the plainest; one at least.
        origin: "from the wheel" or "compiled here".
    """

    kernels: ctypes.CDLL
    levels: tuple[str, ...]
    origin: str


def load() -> Library:
    """The kernels, as far as the environment allows them (`caps`).

    Raises:
        InputError: this machine cannot have them: one line with the reason.
    """
    return _load(caps.settings())


@functools.cache
def _load(settings: tuple[str, ...]) -> Library:
    return find(caps.allowed(settings))


def find(allowed: tuple[str, ...]) -> Library:
    """A library with the best of the `allowed` levels that the processor runs: the wheel's, or else compiled here."""
    shipped = _FOLDER / toolchain.shipped_name()
    kernels = _open(shipped) if shipped.is_file() else None
    if kernels is None:
        return _compiled(allowed)
    levels = _common(toolchain.names(kernels.bigltl_library_levels()), _runs(kernels))
    _common(levels, allowed)
    return Library(kernels, levels, "from the wheel")


def _compiled(allowed: tuple[str, ...]) -> Library:
    try:
        compiler = toolchain.find_compiler()
        if compiler is None:
            raise InputError(
                f"native kernels need a C++ compiler, or a wheel that brings them: install {toolchain.HOW_TO_INSTALL}, "
                "or leave native (--native) out"
            )
        folder = _prepared(cache_folder())
        runs = _common(_runs(_cached(folder, compiler, ())), allowed)
        for level in reversed(runs):
            with suppress(toolchain.UnknownLevel):  # of a compiler older than the processor
                return Library(_cached(folder, compiler, (level,)), (level,), "compiled here")
        raise InputError(f"{compiler[0]} is too old for native kernels ({runs[0]}): update it, or leave native out")
    except toolchain.CompilerError as error:
        raise InputError(f"{error}: leave native out") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        raise InputError(f"native kernels cannot be made: {error}") from error


def cache_folder() -> Path:
    """Where compiled kernels are kept: `sam_bigltl` in $XDG_CACHE_HOME, if it is an absolute path, or ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "sam_bigltl"


def _runs(kernels: ctypes.CDLL) -> tuple[str, ...]:
    """The levels that this processor runs, whatever is in the library."""
    return toolchain.names(kernels.bigltl_machine_levels())


def _common(levels: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    common = tuple(level for level in levels if level in others)
    if not common:
        raise InputError("native kernels need a processor with AVX2, or with Arm's NEON: leave native (--native) out")
    return common


def _open(library: Path) -> ctypes.CDLL | None:
    """The library, or None where the system cannot load it, or it has other functions."""
    try:
        kernels = ctypes.CDLL(str(library))
        kernels.bigltl_machine_levels.restype = kernels.bigltl_library_levels.restype = ctypes.c_uint32
        if kernels.bigltl_library_levels():
            kernels.bigltl_set_parallel(ctypes.c_void_p(_gomp_parallel()))
    except (OSError, AttributeError):
        return None
    return kernels


def _gomp_parallel() -> int | None:
    """The address of the function that starts threads in the OpenMP runtime that torch uses, or None.

    GNU's, LLVM's and Intel's runtimes have it. What is loaded for the whole process comes first, for torch, too.
    """
    for name in (None, torch._C.__file__):
        with suppress(OSError, AttributeError, TypeError):  # TypeError: Windows has no None
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p).value
    return None


def _cached(folder: Path, compiler: list[str], levels: tuple[str, ...]) -> ctypes.CDLL:
    """The library with these levels in the cache folder, compiled if it is not there."""
    words = (*compiler, platform.machine(), *levels, toolchain.digest())
    name = f"{'-'.join(('kernels', *levels)) if levels else 'machine'}"
    library = folder / f"{name}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:16]}{toolchain.SUFFIX}"
    kernels = _open(library) if _is_whole(library) else None
    if kernels is None:  # none yet, damaged, or of another machine that shares this folder
        if levels:
            print(f"sam_bigltl: compiling C++ kernels for {levels[0]}, once: half a minute", file=sys.stderr)
        _compile(compiler, levels, library)
        kernels = _open(library)
    if kernels is None:
        raise InputError(
            f"the native kernels in {library.parent} cannot be loaded, perhaps because nothing there may be executed: "
            "set XDG_CACHE_HOME to another folder, or leave native out"
        )
    return kernels


def _prepared(folder: Path) -> Path:
    """The cache folder, made if it is missing, without links. Raises InputError where others could write into it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = folder.resolve()
    if not _is_ours(folder.stat()):
        raise InputError(
            f"{folder} is not a folder of yours alone, and native kernels in it are run: chown it to yourself and "
            "chmod go-w it, or remove it"
        )
    return folder


def _is_ours(about: os.stat_result) -> bool:
    """Whether a file or folder belongs to the user, and nobody else may write it."""
    if not hasattr(os, "geteuid"):  # Windows, whose permissions are others
        return True
    return about.st_uid == os.geteuid() and not about.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _is_whole(library: Path) -> bool:
    """Whether a library is a file of the user's that ends in the SHA-256 of what comes before, as `_compile` left it.

    One that is cut off would end the process (SIGBUS) while the system maps it.
    """
    try:
        about = library.lstat()
        if not stat.S_ISREG(about.st_mode) or not _is_ours(about):
            return False
        content = library.read_bytes()
    except OSError:
        return False
    return len(content) > _DIGEST and hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _compile(compiler: list[str], levels: tuple[str, ...], library: Path) -> None:
    """Make `library`, whole or not at all, also where two processes compile at once or one is killed."""
    with _folder_for(library) as folder:
        made = folder / library.name
        toolchain.compile_library(compiler, levels, made, folder)
        with made.open("r+b") as file:
            file.write(hashlib.sha256(file.read()).digest())  # the system's loader does not look behind the library
        made.chmod(0o700)
        if library.is_dir() and not library.is_symlink():
            shutil.rmtree(library)
        made.replace(library)


@contextmanager
def _folder_for(library: Path) -> Iterator[Path]:
    """A new folder beside `library`, which is gone afterwards, and also when this process is killed."""
    with _locked(library.parent) as alone:
        if alone:  # what a process left that ended with its whole group, or with the machine
            for left in library.parent.glob(f"{_UNFINISHED}*"):
                shutil.rmtree(left, ignore_errors=True)
        folder = tempfile.mkdtemp(prefix=_UNFINISHED, dir=library.parent)
        try:
            with _removed_after_death(folder):
                yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _removed_after_death(folder: str) -> Iterator[None]:
    """A process beside this one that removes `folder` once this one has ended, in whatever way, or the block has."""
    if os.name != "posix":
        yield
        return
    waits = 'cat > /dev/null; rm -rf -- "$1"'  # its input ends with this process
    with subprocess.Popen(["/bin/sh", "-c", waits, "sh", folder], stdin=subprocess.PIPE, start_new_session=True):
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Wait until no other process compiles into `folder`; says whether this system can tell."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        alone = False
        with suppress(OSError):  # of file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        yield alone
    finally:
        os.close(descriptor)
