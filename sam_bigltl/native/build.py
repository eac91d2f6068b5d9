"""Compiling and loading the C++ kernels.

They are compiled for the processor that will run them, with the system's compiler (a second or two), and kept in the
user's cache folder under a name made of their text, so that a new version is compiled anew.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from ..errors import InputError

FLAGS = (
    "-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl",
    "-mavx512dq", "-mavx512bf16",
)  # fmt: skip
_FOLDER = Path(__file__).parent


def cache_folder() -> Path:
    """Where compiled kernels are kept: `sam_bigltl` in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sam_bigltl"


@functools.cache
def load() -> ctypes.CDLL:
    """The compiled kernels. Raises InputError with the reason where this machine cannot have them."""
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        raise InputError("native kernels need a processor with AVX512-BF16: leave native (--native) out")
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        raise InputError("native kernels need a C++ compiler: install g++ or leave native (--native) out")
    sources = sorted(_FOLDER.glob("*.cpp"))
    digest = hashlib.sha256(" ".join((compiler, *FLAGS)).encode())
    for path in (*sources, *sorted(_FOLDER.glob("*.h"))):
        digest.update(path.read_bytes())
    library = cache_folder() / f"kernels-{digest.hexdigest()[:16]}.so"
    if not library.exists():
        _compile(compiler, sources, library)
    # torch's OpenMP is already loaded under the same name, so both share their threads.
    kernels = ctypes.CDLL(str(library))
    kernels.bigltl_attend_scratch.restype = ctypes.c_int64
    kernels.bigltl_quantize.restype = ctypes.c_float
    return kernels


def _compile(compiler: str, sources: list[Path], library: Path) -> None:
    try:
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            command = [*compiler.split(), *FLAGS, *map(str, sources), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
                reason = next((line for line in lines if "error" in line), lines[0])
                raise InputError(f"{compiler} cannot compile the native kernels ({reason.strip()}): leave native out")
            os.replace(made, library)  # whole or not at all, also where two processes compile at once
    except OSError as error:
        raise InputError(f"native kernels cannot be made: {error}") from error
