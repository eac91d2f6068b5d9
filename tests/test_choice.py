"""What `optimize("auto")` takes, and what it says of formats that a processor has no instructions for.

Other processors are this one with its instructions capped, in a process of its own, since torch looks at them once.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam
from PIL import Image

from sam_bigltl import InputError, save_sam
from sam_bigltl.errors import SlowFormat
from sam_bigltl.fast import choice
from sam_bigltl.fast.choice import AUTO, Choice, check, choose, formats
from sam_bigltl.fast.native import levels

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "SAM_BIGLTL_CPU_LEVEL": "avx2"}
REPORT = """
import json, sys, warnings
import torch
from little_models import dense_config, dense_sam
from sam_bigltl import InputError
from sam_bigltl.fast.choice import formats
found = {"formats": formats(torch.device("cpu"))}
for name, options in {"default": {}, "again": {}, "bfloat16": {"dtype": "bfloat16"}, "int8": {"dtype": "int8"},
                      "no kernels": {"dtype": "int8", "native": False}}.items():
    encoder = dense_sam(dense_config(little_dim=8)).eval().image_encoder
    with warnings.catch_warnings(record=True) as seen:
        try:
            encoder.optimize(**options)
            error = ""
        except InputError as refused:
            error = str(refused)
    found[name] = {"dtype": str(encoder.pos_embed.dtype), "native": bool(encoder.kernels_dtype), "error": error,
                   "warnings": [str(each.message) for each in seen if issubclass(each.category, UserWarning)]}
print(json.dumps(found))
"""

capped = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="caps are of x86")


def run_capped(caps: dict[str, str], *command: str, folder: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, env={**environment, **caps}
    )


@capped
def test_a_processor_with_avx2_alone():
    done = run_capped(AVX2, "-c", REPORT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if levels.level() is None:
        pytest.skip("no C++ kernels here")
    assert found["formats"] == [["float32", False], ["float32", True], ["int8", True]]
    for name in ("default", "again"):
        assert found[name] == {"dtype": "torch.float32", "native": True, "error": "", "warnings": []}
    lines = [line for line in done.stderr.splitlines() if line.endswith("masks stay")]
    assert len(lines) == 1 and "int8 with C++ kernels (avx2)" in lines[0]
    assert not found["bfloat16"]["native"] and found["bfloat16"]["error"] == ""
    (warning,) = found["bfloat16"]["warnings"]
    assert "slower than float32" in warning and "\n" not in warning
    assert found["int8"] == found["default"]  # what is not rounded to 8 bits is not slow either
    refused = found["no kernels"]
    assert "takes minutes" in refused["error"] and "\n" not in refused["error"] and refused["dtype"] == "torch.float32"


@capped
def test_the_command_line_there(tmp_path):
    sam = dense_sam(dense_config(little_dim=8))
    save_sam(sam, tmp_path / "model.safetensors")
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    code = """
import sys
from sam_bigltl.cli import main
given = "segment photo.png --box 5,5,40,30 --checkpoint model.safetensors --device cpu --no-native --dtype".split()
main([*given, "bfloat16"])
print("-", file=sys.stderr)
main([*given, "int8"])
"""
    done = run_capped(AVX2, "-c", code, folder=tmp_path)
    assert done.returncode == 2 and "in bfloat16" in done.stdout, done.stderr
    warning, _, error = done.stderr.splitlines()
    assert warning.startswith("sam-bigltl segment: warning: this processor does not multiply bfloat16")
    assert error.startswith("sam-bigltl segment: error: int8 without the C++ kernels takes minutes")


@pytest.fixture
def processor(monkeypatch):
    """A processor of any kind: the level of its kernels (None: none), and whether torch's bfloat16, int8 are fast."""

    def no_compiler(*_: object) -> None:
        raise InputError("native kernels need a C++ compiler: install g++, or leave native (--native) out")

    def set_to(level: str | None, bfloat16: bool = False, int8: bool = False) -> None:
        monkeypatch.setattr(levels, "level", lambda: level)
        if level is None:
            monkeypatch.setattr(levels, "function", no_compiler)
        monkeypatch.setattr(choice, "multiplies_bfloat16", lambda: bfloat16)
        monkeypatch.setattr(choice, "multiplies_int8", lambda: int8)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)

    return set_to


@pytest.mark.parametrize("level", levels.LEVELS)
def test_every_level_has_a_format(processor, level):
    processor(level, bfloat16=level == "avx512_bf16")
    chosen = choose(CPU)
    assert chosen == Choice(AUTO[level], True) and f"({level})" in chosen.line and "\n" not in chosen.line
    assert choose(CPU, "int8") == choose(CPU, native=True, dtype="int8") == Choice("int8", True)
    assert choose(CPU, "float32") == Choice("float32", False)
    assert choose(CPU, native=False) == Choice("bfloat16" if level == "avx512_bf16" else "float32", False)
    assert choose(CPU, training=True) == Choice("float32", False)
    assert (("bfloat16", True) in formats(CPU)) == (level == "avx512_bf16")
    assert set(AUTO) == set(levels.LEVELS)


def test_without_kernels(processor):
    processor(None)
    assert choose(CPU) == Choice("float32", False)
    assert formats(CPU) == [("float32", False)]
    with pytest.raises(InputError, match="install g"):
        choose(CPU, native=True)
    with pytest.raises(InputError, match="takes minutes"):
        choose(CPU, "int8")
    processor(None, bfloat16=True, int8=True)
    assert choose(CPU) == Choice("bfloat16", False)
    assert choose(CPU, "int8") == Choice("int8", False)
    assert "C++ compiler" in choose(CPU).line and "C++ compiler" not in choose(CPU, native=False).line


def test_what_is_refused_and_what_is_warned_about(processor):
    processor("avx2")
    with pytest.raises(InputError, match=r"kernels of this processor \(avx2\) do not compute in bfloat16"):
        choose(CPU, "bfloat16", native=True)
    for dtype, native in (("float16", "auto"), ("auto", "yes")):
        with pytest.raises(InputError):
            choose(CPU, dtype, native)
    with pytest.raises(InputError, match="on the CPU only, not on cuda"):
        check(torch.device("cuda"), "bfloat16", native=True)
    with pytest.warns(SlowFormat, match="slower than float32"):
        assert choose(CPU, "bfloat16") == Choice("bfloat16", False)
    processor("avx512_bf16", bfloat16=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose(CPU, "bfloat16", native=False)
        assert choose(CPU, "bfloat16") == Choice("bfloat16", True)


def test_compile_leaves_the_kernels_out(processor):
    processor("avx2")
    encoder = dense_sam(dense_config(little_dim=8)).eval().image_encoder
    encoder.optimize(compile=True)
    assert encoder.kernels_dtype == ""
    with pytest.raises(InputError, match="native=True or compile=True"):
        encoder.optimize(compile=True, native=True)


def test_a_level_that_there_is_not():
    done = run_capped(
        {"SAM_BIGLTL_CPU_LEVEL": "nonsense"}, "-m", "sam_bigltl.cli", "bench", "--quick", "--budget", "0.01"
    )
    assert done.returncode != 0 and "SAM_BIGLTL_CPU_LEVEL is one of" in done.stderr and "Traceback" not in done.stderr
