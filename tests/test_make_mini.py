"""The recipe of the shipped weights: every phase is a command line that the program takes, in an order that resumes."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("accelerate")

from sam_bigltl.cli import convert as convert_cli
from sam_bigltl.cli import train as cli
from sam_bigltl.errors import InputError

SCRIPT = Path(__file__).resolve().parents[1] / "eval" / "make_mini.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("make_mini", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_mini"] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def args(tmp_path):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('{"images": [{"id": 1}], "annotations": [{"id": 2}]}')
    data = [tmp_path / "a.json", tmp_path / "b.json"]
    return argparse.Namespace(
        data=data,
        images=tmp_path,
        val=tmp_path / "a.json",
        runs=tmp_path / "runs",
        init=None,
        first="crops",
        processes=1,
        install=False,
    )


def parsed(module, words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return parser.parse_args(words[1:])


def test_every_phase_is_a_command(recipe, args):
    args.runs.mkdir()
    for phase in recipe.TEACHER:
        found = parsed(cli, recipe.command(phase, None, args))
        assert found.model == "vit_mini" and found.data == args.data and found.output == args.runs / phase.name
    found = parsed(convert_cli, recipe.conversion(Path("teacher"), args))
    assert found.images == args.images and found.max_images == recipe.FITTED
    assert found.warm_start.read_text().count('"id"') == 4  # both files


def test_phases_that_have_run_are_passed_over_and_begun_ones_resumed(recipe, args, monkeypatch):
    commands = []

    def pretend(words: list[str], processes: int) -> None:
        commands.append(words)
        if words[0] == "convert":
            return Path(words[2]).touch()
        folder = Path(words[words.index("--output") + 1])
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()

    monkeypatch.setattr(recipe, "_run", pretend)
    recipe.run(args)
    assert len(commands) == len(recipe.TEACHER) + 1
    assert "--init" not in commands[0] and commands[1][commands[1].index("--init") + 1].endswith(
        "crops/model.safetensors"
    )
    recipe.run(args)
    assert len(commands) == len(recipe.TEACHER) + 1  # nothing again
    last = args.runs / recipe.TEACHER[-1].name
    (last / "model.safetensors").rename(last / "state.pt")
    assert "--resume" in recipe.command(recipe.TEACHER[-1], None, args)


def test_it_goes_on_from_a_checkpoint(recipe, args, monkeypatch):
    commands = []

    def pretend(words: list[str], processes: int) -> None:
        commands.append((words, processes))

    monkeypatch.setattr(recipe, "_run", pretend)
    last = recipe.TEACHER[-1].name
    args.init, args.first, args.processes = args.data[0], last, 2
    recipe.run(args)
    (words, processes), (student, _) = commands
    assert words[words.index("--init") + 1] == str(args.init) and processes == 2
    assert words[words.index("--output") + 1].endswith(last) and student[0] == "convert"
    args.init = args.data[0].with_name("none")
    with pytest.raises(InputError, match="none"):
        recipe.run(args)


def test_a_later_phase_needs_weights_to_go_on_from(recipe, args):
    args.first = "frames"
    with pytest.raises(InputError, match="--init"):
        recipe.run(args)
