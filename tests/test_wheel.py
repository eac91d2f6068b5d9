"""What `pip install` and a source distribution bring: everything that runs, the shipped weights, and nothing else."""

from __future__ import annotations

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

pytest.importorskip("setuptools", minversion="77")  # the licence as pyproject.toml states it
pytest.importorskip("pip")

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = "from setuptools import build_meta; build_meta.build_sdist('dist')"


def run(*command: object, folder: Path, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def make_wheel(source: Path, target: Path) -> Path:
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-w", target)
    run(sys.executable, "-m", "pip", "wheel", source, *options, folder=source)
    (wheel,) = target.glob("*.whl")
    return wheel


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
def wheel(checkout, tmp_path_factory) -> Path:
    return make_wheel(checkout, tmp_path_factory.mktemp("wheel"))


def expected_package() -> set[str]:
    sources = {
        path for pattern in ("*.py", "*.cpp", "*.h", "canvas.*") for path in (ROOT / "sam_bigltl").rglob(pattern)
    }
    weights = {"sam_bigltl/weights/bigltl_mini.safetensors", "sam_bigltl/weights/MODEL_CARD.md"}
    return {path.relative_to(ROOT).as_posix() for path in sources} | weights


def test_wheel_holds_the_package_the_weights_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        shipped = archive.read("sam_bigltl/weights/bigltl_mini.safetensors")
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == expected_package()
    assert any(name.endswith("/LICENSE") for name in about)
    assert shipped == (ROOT / "checkpoints" / "bigltl_mini.safetensors").read_bytes()


def test_sdist_makes_the_same_wheel(checkout, wheel, tmp_path):
    run(sys.executable, "-c", SCRIPT, folder=checkout)
    (archive,) = (checkout / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[-1] for name in tar.getnames()}
        tar.extractall(tmp_path, filter="data")
    assert {"LICENSE", "README.md", "hubconf.py", "checkpoints/bigltl_mini.safetensors"} <= names
    assert not [name for name in names if name.startswith(("tests", "data", "runs")) or name.endswith((".so", ".pth"))]
    again = make_wheel(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())


def test_an_installed_wheel_segments_in_an_empty_folder(wheel, tmp_path):
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
    clean = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    run(
        environment / "bin" / "sam-bigltl",
        "segment",
        "photo.png",
        "--box",
        "5,4,60,40",
        "--device",
        "cpu",
        folder=empty,
        env=clean,
    )
    assert (empty / "out" / "photo_mask_1.png").is_file()
    where = "import sam_bigltl, sam_bigltl.registry as r; print(sam_bigltl.__file__, r.default_checkpoint(), sep='\\n')"
    for line in run(python, "-c", where, folder=empty, env=clean).stdout.splitlines():
        assert Path(line).is_relative_to(site)
