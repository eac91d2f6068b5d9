"""Names of any bytes, on terminals that cannot show them: every command does its work and says so in escapes."""

from __future__ import annotations

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_cli
import torch
from evaluation_toy import arguments, main, toy
from helpers import picture
from PIL import Image
from training_toy import write_shapes

from sam_bigltl.bench.memory_growth import plot as plot_memory
from sam_bigltl.bench.plot import plot
from sam_bigltl.cli import commands as cli
from sam_bigltl.convert import registry, save_sam
from sam_bigltl.errors import ArgumentParser
from sam_bigltl.predict.visualize import side_by_side

ROOT = Path(__file__).resolve().parents[1]
NAME = os.fsdecode(b"caf\xe9")  # in Latin-1
TERMINALS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def run(*arguments: object, terminal: str, **options: object) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONUTF8", "LC_ALL")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | TERMINALS[terminal]
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, env=environment, timeout=300, **options)


# ---------------------------------------------------------------- what all entry points share
PRINTS = """
import sys
from sam_bigltl.errors import InputError, run_cli

def command(kind):
    name = "caf\\udce9 \\u56fe \\ud800"
    if kind == "refused":
        raise InputError(name)
    if kind == "encoded":
        name.encode("ascii")
    print(name)

run_cli("prog", command, sys.argv[1])
"""
SHOWN = {  # of the character U+56FE; the halves of surrogate pairs are escapes everywhere
    "ascii": b"\\u56fe", "cp1252": b"\\u56fe", "C": b"\\u56fe", "utf-8": "\u56fe".encode(),
}  # fmt: skip


@pytest.mark.parametrize("terminal", TERMINALS)
def test_what_a_terminal_cannot_show_is_escaped(terminal):
    name = b"caf\\udce9 " + SHOWN[terminal] + b" \\ud800"
    done = run("-c", PRINTS, "shown", terminal=terminal)
    assert (done.returncode, done.stdout, done.stderr) == (0, name + b"\n", b"")
    done = run("-c", PRINTS, "refused", terminal=terminal)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"prog: error: " + name + b"\n")


def test_a_name_that_the_locale_does_not_have_is_one_line():
    done = run("-c", PRINTS, "encoded", terminal="utf-8")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"PYTHONUTF8=1" in done.stderr


def test_without_a_terminal():
    """Neither stream is there, as in a program without a console."""
    done = run("-c", "import sys; sys.stdout = sys.stderr = None\n" + PRINTS.replace("\nimport sys", ""), "shown",
               terminal="utf-8")  # fmt: skip
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "ENAMETOOLONG"])
def test_what_a_disk_refuses_is_one_line(code):
    program = "import errno; from sam_bigltl.errors import run_cli\n"
    program += f"def refused(_): raise OSError(errno.{code}, 'x', 'a\\nb')\nrun_cli('prog', refused, None)"
    done = run("-c", program, terminal="utf-8")
    assert done.returncode == 2 and done.stderr.startswith(b"prog: error: ") and done.stderr.endswith(b": a b\n")


def calls(path: Path) -> set[str]:
    """The names of the functions that a script calls, and of those that the `main` it imports calls."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and "main" in found and any(name.name == "main" for name in node.names):
            module = Path(*node.module.split("."))
            places = [ROOT / folder / f"{module}.py" for folder in ("", "eval", "tests")]
            found |= calls(next((place for place in places if place.is_file()), ROOT / module / "commands.py"))
    return found


SCRIPTS = sorted(path for folder in ("eval", "demo", "examples") for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / "sam_bigltl" / "cli" / "commands.py"], ids=lambda path: path.name)
def test_every_script_is_run_by_run_cli(script):
    assert "run_cli" in calls(script)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_is_plain(command):
    """It is printed before `run_cli` sees to the streams."""
    parser = ArgumentParser(prog=command)
    cli._import(cli.COMMANDS[command][0], parser).add_arguments(parser)
    assert parser.format_help().isascii()


# ---------------------------------------------------------------- commands
@pytest.mark.parametrize("terminal", ["ascii", "C"])
def test_segment(terminal, tmp_path):
    photo, out = tmp_path / f"{NAME}.png", tmp_path / NAME / "out"
    Image.fromarray(picture(48, 80)).save(photo)
    done = run("-m", "sam_bigltl.cli", "segment", photo, "--box", "5,4,60,40",
               "--out", out, "--keep-ratio", 0.25, "--device", "cpu", terminal=terminal)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9_masks.json" in done.stdout and done.stdout.isascii()
    assert json.loads((out / f"{NAME}_masks.json").read_text())[0]["file_name"] == f"{NAME}.png"
    assert (out / f"{NAME}_overlay.png").is_file() and (out / f"{NAME}_mask_1.png").is_file()


def test_distill_and_its_cache(tmp_path):
    """Folders, photographs, weights and results have names that are not UTF-8."""
    folder, out = tmp_path / NAME, tmp_path / f"out {NAME}"
    write_shapes(folder)
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(f"{NAME}{path.name}"))
    (folder / "images" / f"{NAME}.jpg").write_bytes(b"no picture")
    with tiny_cli.registered():
        torch.manual_seed(0)
        save_sam(registry.sam_model_registry["vit_tiny"](), folder / f"{NAME}.safetensors")
        for _ in range(2):  # the second time with the cache of the first
            shutil.rmtree(out, ignore_errors=True)
            cli.main([str(value) for value in (
                "distill", "--teacher", folder / f"{NAME}.safetensors", "--student", "bigltl_tiny", "--data",
                folder / "images", "--steps", 2, "--batch-size", 4, "--warm-start", 2, "--workers", 0, "--device",
                "cpu", "--cache", folder / "cache", "--output", out,
            )])  # fmt: skip
    with open(out / "stage1" / "skipped.csv", newline="", encoding="utf-8") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["caf\\udce9.jpg"]
    assert len(list((folder / "cache").glob("*.safetensors"))) == 1


def test_evaluation(data: SimpleNamespace, stub_model: SimpleNamespace) -> None:
    content = toy()
    for image in content["images"]:
        (data.images / image["file_name"]).rename(data.images / f"{NAME}{image['file_name']}")
        image["file_name"] = f"{NAME}{image['file_name']}"
    data.write(content)
    renamed = data.json.rename(data.json.with_name(f"{NAME}.json"))
    flags = arguments(data)
    flags[1], flags[-1] = str(renamed), str(data.out / NAME)
    main(flags)
    assert (data.out / NAME / "instances.csv").is_file()
    assert "caf\\udce9.json" in (data.out / NAME / "report.html").read_text(encoding="utf-8")


def test_plots_of_names(tmp_path):
    """Neither bytes that are not UTF-8 nor formulas of matplotlib."""
    name = f"$x^{{$ {NAME}.py:f"
    row = {
        "model": name, "image_size": 64, "batch": 1, "keep_ratio": 1.0, "gmacs": 1.0, "dtype": "float32",
        "native": "no", "compiled": "no", "memory": "default", "median_s": 1.0, "min_s": 1.0, "max_s": 1.0,
    }  # fmt: skip
    plot(tmp_path / f"{NAME}.png", [row])
    plot_memory(tmp_path / f"{NAME}.PDF", [{"round": 1, "resident_mb": 3.0}], name)
    assert Image.open(tmp_path / f"{NAME}.png").format == "PNG"
    assert (tmp_path / f"{NAME}.PDF").read_bytes().startswith(b"%PDF")
    strip = side_by_side([picture()], [f"{NAME} \ud800 \u56fe"])
    assert strip.dtype == np.uint8
