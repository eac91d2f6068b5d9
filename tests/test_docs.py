"""What the documentation says of the code is true: names, links, commands, tests that it names, snippets that parse."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import io
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

import sam_bigltl
from sam_bigltl.cli import COMMANDS, main
from sam_bigltl.registry import ENCODERS
from sam_bigltl.trunk import heads_of

ROOT = Path(__file__).resolve().parents[1]
AT_ROOT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES = sorted([*AT_ROOT, *(ROOT / "docs").glob("*.md"), *(ROOT / "checkpoints").glob("*.md")])
NAMED = [path for path in PAGES if path.parent.name == "docs"]


def blocks(page: Path, *languages: str) -> list[str]:
    """The contents of a page's fenced blocks in one of `languages`."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block for language, block in found if language in languages]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def resolves(name: str) -> bool:
    """Whether `sam_bigltl.module.Name` is there."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_dotted_names_resolve(page: Path):
    for needed in ("timm", "accelerate", "webdataset"):
        pytest.importorskip(needed)
    for name in re.findall(r"`(sam_bigltl(?:\.\w+)+)(?:\([^`]*)?`", page.read_text()):
        assert resolves(name), name


def directives() -> dict[str, list[str]]:
    """Names whose docstrings the API page shows, with the members that it asks for."""
    text = (ROOT / "docs" / "api.md").read_text()
    found = re.findall(r"^::: (\S+)\n((?: +\S.*\n)*)", text, flags=re.MULTILINE)
    return {name: re.findall(r"\w+", options.partition("members:")[2]) for name, options in found}


def test_the_api_page_names_what_there_is():
    for needed in ("timm", "onnxscript"):
        pytest.importorskip(needed)
    shown = directives()
    assert all(f"sam_bigltl.{name}" in shown for name in sam_bigltl.__all__)
    for name, members in shown.items():
        thing = pkgutil.resolve_name(name)
        assert name == "sam_bigltl.sam_model_registry" or inspect.getdoc(thing), name
        assert all(inspect.getdoc(inspect.getattr_static(thing, member)) for member in members), name


def test_the_registry_on_the_api_page():
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert {key for key, _ in rows} == set(ENCODERS)
    for key, row in rows:
        config = ENCODERS[key]
        little = f"{config.little_dim}, {heads_of(config.little_dim)}" if config.little_dim else "none (dense)"
        big = f"{config.dim}, {config.depth}, {config.num_heads}"
        ends = ", ".join(map(str, config.global_layers))
        assert row == f"{config.img_size} | {big} | {little} | {config.window} | {ends}", key


def test_every_page_is_in_the_sites_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\nexclude_docs:")[0]
    listed = re.findall(r"\S+\.md$", nav, flags=re.MULTILINE)
    assert sorted(listed) == sorted([*(page.name for page in NAMED), "checkpoints/MODEL_CARD.md"])


def test_the_site_builds_without_warnings(tmp_path):
    for needed in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    assert all(f'id="{name}"' in api for name in directives())


def script(name: str) -> ModuleType:
    """A script of eval/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "eval" / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("key", ["bigltl_b", "bigltl_mini"])
def test_parameters_in_the_figure(key):
    pytest.importorskip("matplotlib")
    own = script("draw_architecture").numbers(key, 0.25)
    config = own.config
    c, e, table = config.dim, config.little_dim, 2 * config.window - 1
    mlp = round(c * config.mlp_ratio)
    # The first block: two norms, qkv and proj, the MLP, two tables of relative positions.
    assert own.p_block == 4 * c + (4 * c * c + 4 * c) + (2 * c * mlp + mlp + c) + 2 * table * c // config.num_heads
    assert own.added == (2 * c * e + 2 * c) + 2 * e + (c * e + c) + c  # keys and values, norm, up, gamma
    assert own.e_block == 4 * e + (4 * e * e + 4 * e) + (2 * e * 4 * e + 5 * e)
    assert own.transition == (c * e + e) + e + (c * e + c)
    assert own.tokens == (config.img_size // 16) ** 2 and own.kept == own.tokens // 4


def test_the_figure_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "figure.png"
    command = [sys.executable, str(ROOT / "eval" / "draw_architecture.py"), "--model"]
    done = subprocess.run([*command, "bigltl_mini", "--output", str(path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and path.stat().st_size > 20_000, done.stderr
    done = subprocess.run([*command, "vit_b"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "bigltl" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path).resolve()
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


@cache
def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them of headings, and those given by hand."""
    text = page.read_text()
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    return made | set(re.findall(r'<a id="([^"]+)"', text))


def test_pages_are_listed():
    index = (ROOT / "docs" / "README.md").read_text()
    assert all(f"]({page.name})" in index for page in NAMED if page.name != "README.md")


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120


@pytest.mark.parametrize("page", NAMED, ids=lambda page: page.name)
def test_prose_has_short_lines(page: Path):
    """Tables and commands may be longer, and what cannot be broken."""
    for line in prose(page).splitlines():
        assert len(line) <= 120 or line.startswith(("|", "![", ":::")) or len(line.split()) == 1, line


@pytest.mark.parametrize("page", NAMED, ids=lambda page: page.name)
def test_tests_that_are_named_exist(page: Path):
    for file, name in re.findall(r"`(?:pytest [^`]*?)?(tests/\w+\.py)(?:::(\w+))?`", page.read_text()):
        path = ROOT / file
        assert path.is_file(), file
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert not name or name in functions, f"{file}::{name}"


def test_every_ask_has_an_answer():
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", (ROOT / "docs" / "faq.md").read_text(), flags=re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 26))
    for number, row in rows:
        _, _, answer = row.split(" | ")
        assert "`" in answer or "not answered" in answer, number


def commands(page: Path) -> list[list[str]]:
    """The commands that a page shows, in blocks and in lines, as words from the program's name on."""
    shown = [line for block in blocks(page, "", "bash") for line in block.replace("\\\n", " ").splitlines()]
    shown += re.findall(r"`((?:sam-bigltl|python|accelerate) [^`\n]+)`", prose(page))
    result = []
    for line in shown:
        line = line.replace("-m sam_bigltl.cli", "sam-bigltl")
        if found := re.search(r"\bsam-bigltl [a-z]|\b(?:eval|examples)/\w+\.py", line.split(" # ")[0]):
            with contextlib.suppress(ValueError):  # prose with an apostrophe
                result.append(shlex.split(line[found.start() :], comments=True))
    return result


@cache
def flags(program: str, *command: str) -> set[str]:
    """The flags in a command's help."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as end:
        if program == "sam-bigltl":
            main([*command, "--help"])
        else:
            before, sys.argv = sys.argv, [program, "--help"]
            try:
                runpy.run_path(str(ROOT / program), run_name="__main__")
            finally:
                sys.argv = before
    assert end.value.code == 0, program
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", output.getvalue()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_flags_that_are_shown(page: Path):
    for needed in ("timm", "accelerate", "matplotlib"):
        pytest.importorskip(needed)
    for program, *words in commands(page):
        command: tuple[str, ...] = ()
        if program == "sam-bigltl":
            if words[0] == "COMMAND":
                continue
            assert words[0] in COMMANDS, f"{page.name}: sam-bigltl {words[0]}"
            command = (words[0],) + (("--task", "classify") if "classify" in words else ())
        else:
            assert (ROOT / program).is_file(), program
        used = {word.strip("[]").partition("=")[0] for word in words if word.strip("[").startswith("--")}
        assert used - {"--"} <= flags(program, *command) | {"--help"}, f"{page.name}: {program} {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_import_what_there_is(page: Path):
    if page.name == "api.md":
        return
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("sam_bigltl"):
                module = pytest.importorskip(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
