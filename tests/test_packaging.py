"""What a checkout must keep: metadata that parses, versions pinned for `make`, short files, no machine's paths."""

from __future__ import annotations

import re
import subprocess
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10, where pytest brings tomli
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SOURCE_FOLDERS = ("sam_bigltl", "eval", "demo", "examples", "tests")
# Home and working folders of one machine. The lookbehind leaves relative paths and URLs alone.
MACHINE_PATH = re.compile(rb"(?<![\w.\-/])/(?:work|root|home/\w+|Users/\w+)/")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def source_files() -> list[Path]:
    return sorted(path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py"))


def test_metadata(project: dict) -> None:
    assert project["name"] == "sam_bigltl" and project["license"] == "Apache-2.0"
    assert (ROOT / project["readme"]).is_file()
    assert (ROOT / "LICENSE").read_text().split()[:5] == ["Apache", "License", "Version", "2.0,", "January"]


def test_constraints_pin_every_dependency_within_its_bounds(project: dict) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    pins = {}
    for pin in map(Requirement, lines):
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        pins[canonicalize_name(pin.name)] = specifier.version
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for needed in map(Requirement, (text for group in groups for text in group)):
        name = canonicalize_name(needed.name)
        if name != canonicalize_name(project["name"]):
            assert needed.specifier.contains(pins[name]), f"{needed} against {pins[name]}"


def test_console_script_resolves(project: dict) -> None:
    for name, target in project["scripts"].items():
        assert callable(EntryPoint(name, target, "console_scripts").load())


def test_every_source_folder_of_the_package_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "sam_bigltl").rglob("*.py")}
    missing = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    assert not missing, "no __init__.py: left out of an installation"


def test_no_source_file_passes_400_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in source_files()}
    assert not {path: lines for path, lines in lengths.items() if lines > 400}


def test_scripts_do_not_edit_the_import_path() -> None:
    editing = re.compile(r"^\s*sys\.path\b", re.MULTILINE)
    assert not [str(path.relative_to(ROOT)) for path in source_files() if editing.search(path.read_text())]


def test_no_machine_paths() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    found = [str(path.relative_to(ROOT)) for path in paths if path.is_file() and MACHINE_PATH.search(path.read_bytes())]
    assert not found
