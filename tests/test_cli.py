"""The command line as a whole, and what the package exports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sam_bigltl
from sam_bigltl.cli import COMMANDS, main
from sam_bigltl.errors import in_one_line

PUBLIC = (
    "SamPredictor", "SamAutomaticMaskGenerator", "sam_model_registry", "convert_sam", "load_sam", "BigLittleEncoder",
    "BigLittleClassifier",
)  # fmt: skip


def helped(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--help"])
    assert end.value.code == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_help_names_every_command(capsys):
    text = helped(capsys)
    assert "example" in text
    for name, (_, line) in COMMANDS.items():
        assert name in text and line.split()[0] in text


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_every_command_has_examples(command: str, capsys):
    text = helped(capsys, command)
    assert "example" in text
    usage, examples = text.split("example", 1)
    assert f"sam-bigltl {command}" in examples
    known = set(re.findall(r"--[a-z][a-z0-9-]*", usage))
    shown = re.sub(r"\\\n", " ", examples).split("\n")
    shown = " ".join(line for line in shown if line.strip().startswith((f"sam-bigltl {command} ", "python eval/")))
    assert set(re.findall(r"--[a-z][a-z0-9-]*", shown)) <= known


@pytest.mark.parametrize("arguments", [["fly"], [], ["--fly"], ["train", "--fly"], ["convert"], ["segment"]])
def test_bad_usage_is_one_line_and_code_2(arguments: list[str], capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sam-bigltl") and "error" in lines[0]


def test_the_module_runs_as_the_command():
    done = subprocess.run([sys.executable, "-m", "sam_bigltl.cli", "fly"], capture_output=True, text=True)
    assert done.returncode == 2 and "fly" in done.stderr and len(done.stderr.splitlines()) == 1


def test_exports():
    for name in PUBLIC:
        assert name in sam_bigltl.__all__
    for name in sam_bigltl.__all__:
        assert getattr(sam_bigltl, name) is not None
    assert "bigltl_b" in sam_bigltl.sam_model_registry


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "timm.py").write_text("raise ModuleNotFoundError('no timm', name='timm')")
    found = subprocess.run(
        [sys.executable, "-m", "sam_bigltl.cli", "train", "--task", "classify", "--help"],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert found.returncode == 2 and found.stderr.endswith(
        "needs the package timm: pip install '.[all]' in the checkout\n"
    )
    assert found.stderr.count("\n") == 1


def test_control_characters_of_a_name_do_not_reach_the_terminal():
    assert in_one_line("no file a\x1b[31mb\r\nc.jpg") == r"no file a\x1b[31mb c.jpg"
    assert in_one_line("caf\udce9 \u00e9") == "caf\udce9 \u00e9"  # the stream escapes what it cannot show
