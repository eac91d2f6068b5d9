"""What pyproject.toml cannot say: the folder of the weights, and the C++ kernels that a wheel brings compiled.

Where they cannot be compiled, the wheel is one of Python alone, and they are compiled on request where it is installed.
"""

import importlib.util
import platform
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NATIVE = Path("sam_bigltl", "fast", "native")


def toolchain():
    """The package's own module for compilers, without the package and what that imports."""
    spec = importlib.util.spec_from_file_location(
        "toolchain", Path(__file__).resolve().parent / NATIVE / "toolchain.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def machine() -> str:
    """What the wheel is for: the platform of this Python, or that of $_PYTHON_HOST_PLATFORM where it is given."""
    name = sysconfig.get_platform().rpartition("-")[2]
    return platform.machine() if name.startswith("universal") else name


class BuildWithKernels(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # an editable installation compiles them when they are asked for
            self.compile_kernels()

    def compile_kernels(self):
        tools = toolchain()
        target = Path(self.build_lib).resolve() / NATIVE
        for left in target.glob("kernels-*"):  # of other sources
            left.unlink()
        try:
            compiler = tools.find_compiler()
            if compiler is None:
                raise tools.CompilerError("there is no C++ compiler")
            levels = tools.levels_of(machine())
            if not levels:
                raise tools.CompilerError(f"there are none for processors of the kind {machine()}")
            with tempfile.TemporaryDirectory() as folder:
                made = tools.compile_library(compiler, levels, target / tools.shipped_name(), Path(folder), machine())
            print(f"C++ kernels for {', '.join(made)}")
        except (tools.CompilerError, OSError) as error:
            print(f"warning: the wheel is without the C++ kernels: {error}", file=sys.stderr)


class PlatformWheel(bdist_wheel):
    """Of any Python 3, and of this platform where the kernels are in it."""

    def run(self):
        self.run_command("build")
        built = Path(self.get_finalized_command("build").build_lib)
        if list((built / NATIVE).glob("kernels-*")):
            self.root_is_pure = False
            self.distribution.has_ext_modules = lambda: True  # all goes where compiled files belong
        super().run()

    def get_tag(self):
        tag = super().get_tag()
        return tag if self.root_is_pure else ("py3", "none", tag[2].replace("universal2", machine()))


setup(
    packages=[*find_packages(include=["sam_bigltl", "sam_bigltl.*"]), "sam_bigltl.weights"],
    package_dir={"sam_bigltl.weights": "checkpoints"},
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel},
)
