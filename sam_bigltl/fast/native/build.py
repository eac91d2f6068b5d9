"""Compiling and loading the C++ kernels.

They are compiled for the processor that will run them, with the system's compiler (a second or two), and kept in the
user's cache folder under a name made of their text, so that a new version is compiled anew. What lies there is run in
this process, so it is loaded only if it is whole and nobody else can have written it.
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
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from ...errors import InputError

FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl",
    "-mavx512dq", "-mavx512bf16",
)  # fmt: skip
_FOLDER = Path(__file__).parent
_UNFINISHED = "compiling-"
_PATIENCE = 600  # seconds for the compiler
_DIGEST = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Where compiled kernels are kept: `sam_bigltl` in $XDG_CACHE_HOME, if it is an absolute path, or ~/.cache."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path.home() / ".cache") / "sam_bigltl"


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled kernels. Raises InputError with the reason where this machine cannot have them."""
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        raise InputError("native kernels need a processor with AVX512-BF16: leave native (--native) out")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise InputError("native kernels need a C++ compiler: install g++ or leave native (--native) out")
    sources = sorted(_FOLDER.glob("*.cpp"))
    digest = hashlib.sha256(" ".join((compiler, platform.machine(), *FLAGS)).encode())
    for path in (*sources, *sorted(_FOLDER.glob("*.h"))):
        digest.update(path.read_bytes())
    try:
        library = _prepared(cache_folder()) / f"kernels-{digest.hexdigest()[:16]}.so"
        kernels = _open(library) if _is_whole(library) else None
        if kernels is None:  # none yet, damaged, or of another machine that shares this folder
            _compile(compiler, sources, library)
            kernels = _open(library)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        raise InputError(f"native kernels cannot be made: {error}") from error
    if kernels is None:
        raise InputError(
            f"the native kernels in {library.parent} cannot be loaded, perhaps because nothing there may be executed: "
            "set XDG_CACHE_HOME to another folder, or leave native out"
        )
    return kernels


def _open(library: Path) -> ctypes.CDLL | None:
    """The library, or None where the system cannot load it, or it has other functions."""
    try:
        # torch's OpenMP is already loaded under the same name, so both share their threads.
        kernels = ctypes.CDLL(str(library))
        kernels.bigltl_attend_scratch.restype = ctypes.c_int64
        kernels.bigltl_quantize.restype = ctypes.c_float
    except (OSError, AttributeError):
        return None
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


def _compile(compiler: str, sources: list[Path], library: Path) -> None:
    """Make `library`, whole or not at all, also where two processes compile at once or one is killed."""
    with _folder_for(library) as folder:
        made = folder / library.name
        command = [*compiler.split(), *FLAGS, *map(str, sources), "-o", str(made)]
        try:
            done = subprocess.run(
                command, env=os.environ | {"TMPDIR": str(folder)}, stdin=subprocess.DEVNULL, capture_output=True,
                errors="replace", timeout=_PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise InputError(f"{compiler} does not end: leave native out") from None
        if done.returncode:
            lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
            reason = next((line for line in lines if "error" in line), lines[0])
            raise InputError(f"{compiler} cannot compile the native kernels ({reason.strip()}): leave native out")
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
