"""What `pip install` and a source distribution bring: everything that runs, the shipped weights, and nothing else."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from helpers import picture
from PIL import Image

from sam_bigltl.fast.native import toolchain

pytest.importorskip("setuptools", minversion="77")  # the licence as pyproject.toml states it
pytest.importorskip("pip")

ROOT = Path(__file__).resolve().parents[1]
LEVEL = toolchain.levels_of(platform.machine())[0]
# Knows the plainest level only, as an old one does; without much optimization, which takes most of the time.
COMPILER = """#!/bin/sh
case "$*" in *-mavxvnni*|*-mavx512*|*-march=*) exit 1 ;; esac
exec g++ "$@" -O1
"""
SCRIPT = "from setuptools import build_meta; build_meta.build_sdist('dist')"


def run(*command: object, folder: Path, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def make_wheel(source: Path, target: Path, **environment: str) -> tuple[Path, str]:
    """The wheel, and what was said of it."""
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-v", "-w", target)
    done = run(sys.executable, "-m", "pip", "wheel", source, *options, folder=source, env=os.environ | environment)
    (wheel,) = target.glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy to build in, with the kinds of files that a working folder has and a package must not have."""
    folder = tmp_path_factory.mktemp("checkout") / "project"
    folder.mkdir()
    for name in ("LICENSE", "README.md", "MANIFEST.in", "pyproject.toml", "setup.py", "hubconf.py"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("sam_bigltl", "tests", "demo", "eval", "checkpoints"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "data/train.json",
        "runs/log.json",
        "sam_bigltl/fast/native/kernels.so",
        "checkpoints/sam_vit_b_01ec64.pth",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="module")
def compiler(tmp_path_factory) -> str:
    if os.name != "posix" or not shutil.which("g++"):
        pytest.skip("g++ is not installed")
    program = tmp_path_factory.mktemp("compiler") / "old-compiler"
    program.write_text(COMPILER)
    program.chmod(0o700)
    return str(program)


@pytest.fixture(scope="module")
def wheel(checkout, compiler, tmp_path_factory) -> Path:
    stale = checkout / "build" / "lib" / "sam_bigltl" / "fast" / "native"
    stale.mkdir(parents=True)
    (stale / f"kernels-0123456789abcdef{toolchain.SUFFIX}").write_text("of other sources")
    return make_wheel(checkout, tmp_path_factory.mktemp("wheel"), CXX=compiler)[0]


def expected_package() -> set[str]:
    """Without the compiled kernels."""
    sources = {path for pattern in ("*.py", "*.cpp", "*.h") for path in (ROOT / "sam_bigltl").rglob(pattern)}
    sources |= {path for path in (ROOT / "sam_bigltl" / "demo" / "page").rglob("*") if path.is_file()}
    weights = {"sam_bigltl/weights/bigltl_mini.safetensors", "sam_bigltl/weights/MODEL_CARD.md"}
    return {path.relative_to(ROOT).as_posix() for path in sources} | weights


def test_wheel_holds_the_package_the_weights_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        shipped = archive.read("sam_bigltl/weights/bigltl_mini.safetensors")
    about = {name for name in names if ".dist-info/" in name}
    kernels = f"sam_bigltl/fast/native/{toolchain.shipped_name()}"
    assert names - about == expected_package() | {kernels}
    assert wheel.name.split("-")[2:4] == ["py3", "none"] and not wheel.name.endswith("-any.whl")
    assert any(name.endswith("/LICENSE") for name in about)
    assert shipped == (ROOT / "checkpoints" / "bigltl_mini.safetensors").read_bytes()


def test_without_a_compiler_the_wheel_is_of_python_alone(checkout, wheel, tmp_path):
    """Also where an earlier one with kernels was made in the same folder."""
    made, said = make_wheel(checkout, tmp_path, CXX="", PATH=str(tmp_path))
    assert made.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(made) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == expected_package()
    (line,) = [line.strip() for line in said.splitlines() if "C++" in line]
    assert line == "warning: the wheel is without the C++ kernels: there is no C++ compiler"


def test_sdist_makes_the_same_wheel(checkout, wheel, compiler, tmp_path):
    run(sys.executable, "-c", SCRIPT, folder=checkout)
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[-1] for name in tar.getnames()}
        tar.extractall(tmp_path, filter="data")
    assert {"LICENSE", "README.md", "hubconf.py", "checkpoints/bigltl_mini.safetensors"} <= names
    assert not [name for name in names if name.startswith(("tests", "data", "runs")) or name.endswith((".so", ".pth"))]
    again, _ = make_wheel(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "wheel", CXX=compiler)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def test_an_installed_wheel_segments_in_an_empty_folder_without_a_compiler(wheel, tmp_path):
    environment = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", environment, folder=tmp_path)
    python = environment / "bin" / "python"
    # torch and the others from the interpreter of the tests; of a .pth file added like this, none of its own is read,
    # so that sam_bigltl itself can only be the wheel's.
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=tmp_path).stdout.strip()
    )
    (site / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    pip = ("-m", "pip", "--python", python, "--disable-pip-version-check")
    run(sys.executable, *pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel, folder=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    Image.fromarray(picture(48, 80)).save(empty / "photo.png")
    clean = {"PATH": str(empty), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    run(
        environment / "bin" / "sam-bigltl",
        "segment",
        "photo.png",
        "--box",
        "5,4,60,40",
        "--device",
        "cpu",
        "--dtype",
        "int8",
        "--native",
        folder=empty,
        env=clean,
    )
    assert (empty / "out" / "photo_mask_1.png").is_file()
    where = """
import sam_bigltl, sam_bigltl.registry as r, sam_bigltl.fast.native.levels as levels
print(sam_bigltl.__file__, r.default_checkpoint(), levels.explain(), sep='\\n')
"""
    *paths, kernels = run(python, "-c", where, folder=empty, env=clean).stdout.splitlines()
    assert len(paths) == 2 and all(Path(path).is_relative_to(site) for path in paths)
    assert kernels.endswith(f": C++ kernels in {LEVEL}, from the wheel")
    assert not (tmp_path / "cache").exists()
