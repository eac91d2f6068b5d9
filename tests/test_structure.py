"""The rooms of the package: what is in them, and that imports go one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sam_bigltl"
ROOMS = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(("__pycache__", ".")))


def test_few_entries_and_short_files():
    assert len(entries(PACKAGE)) <= 17
    long = {path.name: count for path in PACKAGE.rglob("*.py") if (count := len(path.read_text().splitlines())) > 400}
    assert not long


def test_the_package_holds_no_study_and_no_fuzzer():
    names = {path.stem for path in PACKAGE.rglob("*.py")}
    assert not {name for name in names if "fuzz" in name or "study" in name or "ablation" in name}


def summary(room: str) -> str:
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text()))
    assert text, room
    return text


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_is_in_it_and_what_it_may_use(room):
    assert ("use" in summary(room) and 1 < len(summary(room).splitlines()) < 8) or room == "cli"


def test_imports_go_one_way():
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "2 kept, 0 broken" in done.stdout, done.stdout + done.stderr


def test_a_short_way_down():
    """The longest chain of imports from room to room."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("sam_bigltl", cache_dir=None)
    rooms = {f"sam_bigltl.{room}" for room in ROOMS}
    below = {
        room: {other for other in rooms - {room} if graph.direct_import_exists(importer=room, imported=other,
                                                                               as_packages=True)}
        for room in rooms
    }  # fmt: skip

    @cache
    def steps(room: str) -> int:
        return max((1 + steps(other) for other in below[room]), default=0)

    assert max(map(steps, rooms)) <= 8


def tree() -> str:
    """The package, two levels, with the first sentence of what each room says of itself."""
    lines = ["sam_bigltl/"]
    for path in entries(PACKAGE):
        if path.is_file():
            lines.append(f"    {path.name}")
            continue
        about = summary(path.name).split("\n\n")[0].replace("\n", " ")
        lines.append(f"    {path.name}/  {about.split(':')[0].rstrip('.')}")
        names = [inner.name + "/" * inner.is_dir() for inner in entries(path) if inner.name != "__init__.py"]
        line = "       "
        for name in names:
            if len(line) + len(name) > 110:
                lines.append(line)
                line = "       "
            line += f" {name}"
        lines.append(line)
    return "\n".join(lines)


def test_the_tree_in_the_guide_is_true():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    between = text.partition("<!-- tree -->")[2].partition("<!-- /tree -->")[0]
    assert between.strip() == f"```text\n{tree()}\n```"


if __name__ == "__main__":  # writes it: python tests/test_structure.py
    guide = ROOT / "CONTRIBUTING.md"
    before, _, rest = guide.read_text().partition("<!-- tree -->")
    after = rest.partition("<!-- /tree -->")[2]
    guide.write_text(f"{before}<!-- tree -->\n```text\n{tree()}\n```\n<!-- /tree -->{after}")
