"""The cache of compiled kernels: damaged, foreign and planted libraries, and compilers that are killed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import native_toy
import pytest

from sam_bigltl.errors import InputError
from sam_bigltl.fast.native import build

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions and signals of POSIX")
SH = "#!/bin/sh\n"
TESTS = Path(__file__).parent
# Stands for a compiler: puts what is compiled already where the libraries shall be, and counts those with kernels.
COPY = """#!/bin/sh
linked=no
while [ "$1" != -o ]; do [ "$1" = -shared ] && linked=yes; shift; done
case "$linked $2" in
  "yes "*/machine-*) cp "{folder}/machine.so" "$2" ;;
  "yes "*) echo x >> "{log}"; cp "{folder}/kernels.so" "$2" ;;
  *) : > "$2" ;;
esac
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """A folder with the two libraries as the compiler writes them: what asks the processor, and the kernels."""
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("CXX", native_toy.compiler(folder))
        try:
            native_toy.find()
        except InputError as error:
            pytest.skip(str(error))
    for kind in ("machine", "kernels"):
        (library,) = (folder / "sam_bigltl").glob(f"{kind}-*")
        (folder / f"{kind}.so").write_bytes(library.read_bytes()[:-32])
    return folder


class Cache:
    """A cache of its own, whose compiler copies the library that is compiled already."""

    def __init__(self, folder: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.log, self.monkeypatch = folder, folder / "log", monkeypatch
        self.folder = folder / "sam_bigltl"
        self.compiler(COPY.format(log=self.log, folder=compiled))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder))

    def compiler(self, text: str) -> None:
        program = self.root / "compiler"
        program.write_text(text)
        program.chmod(0o700)
        self.monkeypatch.setenv("CXX", str(program))

    def compilations(self) -> int:
        return self.log.read_text().count("x") if self.log.exists() else 0

    def library(self) -> Path:
        """Where the kernels will be: the name depends on the compiler's."""
        native_toy.find()
        self.log.unlink()
        return self.kernels()

    def kernels(self) -> Path:
        library, _ = sorted(self.folder.iterdir())  # and machine-*
        return library


@pytest.fixture
def cache(tmp_path, compiled, monkeypatch) -> Cache:
    return Cache(tmp_path, compiled, monkeypatch)


def works(library: build.Library) -> bool:
    width = getattr(library.kernels, f"bigltl_{library.levels[-1]}_width")
    return library.origin == "compiled here" and width() in (4, 8, 16)


def signed(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


def of_arm(content: bytes) -> bytes:
    """The same for another processor: bytes 18 and 19 of an ELF file are its machine, 183 is AArch64."""
    return signed(content[:18] + (183).to_bytes(2, "little") + content[20:-32])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "its first page": lambda content: content[:4096],
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "one bit": lambda content: content[:9000] + bytes([content[9000] ^ 1]) + content[9001:],
    "text": lambda content: b"#!/bin/sh\nid\n",
    "without its sum": lambda content: content[:-32],
    "another processor's": of_arm,
    "no library": lambda content: signed(b"no library"),
}

LOADS = """
import os, sys
import native_toy
for home in sys.argv[1:]:
    os.environ["XDG_CACHE_HOME"] = home
    found = native_toy.find()
    assert found.origin == "compiled here" and found.kernels[f"bigltl_{found.levels[-1]}_width"]() in (4, 8, 16)
"""


def test_damaged_and_foreign_libraries_are_made_anew(compiled, tmp_path, monkeypatch):
    """In a process of its own, which the system ends (SIGBUS) where it maps half a library."""
    caches = {}
    for number, (kind, damage) in enumerate(DAMAGE.items()):
        (tmp_path / str(number)).mkdir()
        # All by one compiler, since its path is in the name of the library.
        caches[kind] = Cache(tmp_path / str(number), compiled, monkeypatch)
        monkeypatch.setenv("CXX", str(tmp_path / "0" / "compiler"))
        native_toy.find()
        for library in caches[kind].folder.iterdir():
            damaged = damage(library.read_bytes())
            library.unlink()  # this process has it mapped
            library.write_bytes(damaged)
            library.chmod(0o700)
    log = caches["empty"].log
    log.unlink()
    homes = [str(cache.root) for cache in caches.values()]
    done = subprocess.run([sys.executable, "-c", LOADS, *homes], capture_output=True, text=True, timeout=300, cwd=TESTS)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert log.read_text().count("x") == len(DAMAGE)
    for cache in caches.values():
        assert cache.kernels().read_bytes() == signed((compiled / "kernels.so").read_bytes())


def test_what_is_made_is_the_users_alone(cache):
    before = os.umask(0)
    try:
        library = cache.library()
    finally:
        os.umask(before)
    assert library.stat().st_mode & 0o777 == 0o700 and library.parent.stat().st_mode & 0o777 == 0o700


def planted(kind: str, library: Path, elsewhere: Path) -> None:
    """Somebody else's work in the place of the library."""
    library.rename(elsewhere)
    if kind == "link":
        library.symlink_to(elsewhere)
    elif kind == "folder":
        library.mkdir()
        (library / "x").write_text("")
    elif kind == "pipe":
        os.mkfifo(library)
    else:
        library.write_bytes(elsewhere.read_bytes())
        library.chmod({"everybody's": 0o777, "the group's": 0o770, "unreadable": 0o000}[kind])


@pytest.mark.parametrize("kind", ["link", "folder", "pipe", "everybody's", "the group's", "unreadable"])
def test_libraries_that_others_could_have_written(cache, tmp_path, kind):
    library = cache.library()
    planted(kind, library, tmp_path / "elsewhere")
    if kind == "unreadable" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    assert works(native_toy.find())
    assert cache.compilations() == 1 and library.lstat().st_mode & 0o777 == 0o700 and library.is_file()


def test_a_library_of_another_user(cache, monkeypatch):
    library = cache.library()
    native_toy.find()
    assert cache.compilations() == 0
    lstat, owner = Path.lstat, os.geteuid()

    def other(path: Path) -> os.stat_result:
        about = list(lstat(path))
        about[4] = owner + 1  # st_uid
        return os.stat_result(about) if path == library else lstat(path)

    monkeypatch.setattr(Path, "lstat", other)
    assert not build._is_whole(library)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write(cache, mode):
    cache.folder.mkdir()
    cache.folder.chmod(mode)
    with pytest.raises(InputError, match="is not a folder of yours alone.*chmod go-w") as caught:
        native_toy.find()
    assert "\n" not in str(caught.value) and list(cache.folder.iterdir()) == [] and cache.compilations() == 0


def test_a_folder_of_another_user(cache, monkeypatch):
    cache.library()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InputError, match="is not a folder of yours alone.*chown"):
        native_toy.find()


def test_a_file_in_place_of_the_folder(cache):
    cache.folder.write_text("")
    with pytest.raises(InputError, match="native kernels cannot be made: .*File exists"):
        native_toy.find()


def test_where_nothing_may_be_executed(cache, monkeypatch):
    def refused(_: str) -> ctypes.CDLL:
        raise OSError("failed to map segment from shared object: Operation not permitted")

    monkeypatch.setattr(ctypes, "CDLL", refused)
    with pytest.raises(InputError, match="cannot be loaded.*set XDG_CACHE_HOME to another folder, or leave native out"):
        native_toy.find()
    assert len(list(cache.folder.iterdir())) == 1


def test_a_library_without_our_functions(cache):
    """A compiler that makes another one."""
    cache.compiler(SH + f'while [ "$1" != -o ]; do shift; done\ng++ -shared -o "$2" -x c++ /dev/null 2> {cache.log}')
    with pytest.raises(InputError, match="cannot be loaded"):
        native_toy.find()


def test_relative_cache_folders_are_ignored(monkeypatch, tmp_path):
    """As the specification of XDG_CACHE_HOME has it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert build.cache_folder() == tmp_path / ".cache" / "sam_bigltl"


def test_compiled_once(cache):
    made = cache.library().stat().st_mtime_ns
    assert works(native_toy.find())
    assert cache.compilations() == 0 and cache.kernels().stat().st_mtime_ns == made


# ---------------------------------------------------------------- compilers that do not come to an end
@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("false", "false cannot compile the native kernels .exit code 1.: leave native out"),
        ("no-such-compiler", "native kernels cannot be made: .*no-such-compiler"),
    ],
)
def test_compilers_that_fail(compiler, message, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=message) as error:
        native_toy.find()
    assert "\n" not in str(error.value)
    assert list((tmp_path / "sam_bigltl").iterdir()) == []


def test_a_compiler_that_is_killed_leaves_nothing(cache):
    cache.compiler(SH + 'while [ "$1" != -o ]; do shift; done\nhead -c 9000 /dev/zero > "$2"\nkill -9 $$')
    with pytest.raises(InputError, match="cannot compile the native kernels .exit code -9"):
        native_toy.find()
    assert list(cache.folder.iterdir()) == []


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_while_it_compiles_leaves_nothing(cache, number):
    made = 'while [ "$1" != -o ]; do shift; done; echo > "$2"; mktemp > /dev/null'
    cache.compiler(f"{SH}{made}\necho > {cache.log}\nsleep 90")
    process = subprocess.Popen(
        [sys.executable, "-c", "import native_toy; native_toy.find()"], start_new_session=True, cwd=TESTS
    )
    try:
        assert wait_for(cache.log.exists) and len(list(cache.folder.iterdir())) == 1
        process.send_signal(number)
        process.wait(60)
        assert wait_for(lambda: not list(cache.folder.iterdir()))
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the compiler has outlived it


def test_what_a_power_cut_left_is_cleared_away(cache, compiled):
    left = cache.folder / "compiling-abc"
    left.mkdir(parents=True)
    cache.folder.chmod(0o700)
    (left / "kernels.so").write_bytes((compiled / "kernels.so").read_bytes()[:5000])
    assert works(native_toy.find())
    assert not left.exists() and cache.kernels()


def test_two_at_once(cache):
    """Both get kernels, and one file is left."""
    command = [sys.executable, "-c", "import native_toy; native_toy.find()"]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=TESTS) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(line.startswith("sam_bigltl: compiling C++ kernels") for text in said for line in text.splitlines())
    assert cache.kernels()
