"""Processes that read: every command ends with them, whatever goes wrong in them, and they end with it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_cli
import torch
from labelled import make_folder
from torch.utils.data import Dataset
from training_toy import write_shapes

from sam_bigltl.cli import main
from sam_bigltl.convert import registry, save_sam
from sam_bigltl.data import workers
from sam_bigltl.data.workers import load
from sam_bigltl.errors import InputError
from sam_bigltl.evaluation import imagenet

ROOT, TESTS = Path(__file__).resolve().parents[1], Path(__file__).resolve().parent
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}
PATIENCE = 150  # seconds of a process that would never end
PAGE = b"<html>404 Not Found</html>"  # what a download script saves in place of a photograph
CLASSIFIER = ["--model", "bigltl_tiny_patch16_224", "--model-kwargs", "img_size=32", "patch_size=8", "depth=2",
              "embed_dim=32",
              "num_heads=2", "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """`shapes` with an empty photograph among four, `pages` and `labelled` with pages for photographs, a teacher."""
    root = tmp_path_factory.mktemp("workers")
    write_shapes(root / "shapes", 4)
    (root / "shapes" / "images" / "2.png").write_bytes(b"")
    (root / "pages").mkdir()
    for number in range(12):
        (root / "pages" / f"{number}.jpg").write_bytes(PAGE)
    for path in make_folder(root / "labelled", each=4).rglob("*.png"):
        path.write_bytes(PAGE)
    with tiny_cli.registered():
        torch.manual_seed(0)
        save_sam(registry.sam_model_registry["vit_tiny"](), root / "teacher.safetensors")
    return root


def command(name: str, root: Path, output: Path, count: int) -> list[str]:
    """Script and arguments of a command that meets a file that it cannot read."""
    common = ["--batch-size", "4", "--workers", str(count), "--output", str(output)]
    steps = ["--steps", "9", "--device", "cpu"]
    if name == "train":
        data = ["--data", str(root / "shapes" / "train.json"), "--images", str(root / "shapes" / "images")]
        return [str(TESTS / "tiny_cli.py"), "train", "--model", "vit_tiny", "--crop", "64", *data, *steps, *common]
    if name in ("distill", "warm start"):
        data = ["--teacher", str(root / "teacher.safetensors"), "--data", str(root / "pages")]
        data += ["--warm-start", "8" if name == "warm start" else "0", "--student", "bigltl_tiny", "--streams", "4"]
        return [str(TESTS / "tiny_cli.py"), "distill", *data, *steps, *common]
    data = ["--data-dir", str(root / "labelled"), *CLASSIFIER]
    if name == "classify":
        return ["-m", "sam_bigltl.cli", "train", "--task", "classify", *data, "--steps", "9", *common]
    return [str(ROOT / "eval" / "imagenet_top1.py"), *data, *common]


WORDS = {
    "train": "2.png is empty (0 bytes)", "distill": "photographs in a row cannot be used",
    "warm start": "photographs in a row cannot be used", "classify": "images cannot be read so far, and more than 25%",
    "imagenet_top1": "images cannot be read so far, and more than 25%",
}  # fmt: skip


@pytest.mark.parametrize("name", WORDS)
def test_bad_input_ends_a_command_with_one_line(name: str, root, tmp_path):
    running = [
        subprocess.Popen(
            [sys.executable, *command(name, root, tmp_path / str(count), count)], env=ENVIRONMENT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for count in (1, 4)
    ]  # fmt: skip
    try:
        for process in running:
            _, errors = process.communicate(timeout=PATIENCE)
            lines = [line for line in errors.splitlines() if not line.startswith("no --checkpoint")]
            assert process.returncode == 2 and len(lines) == 1 and WORDS[name] in lines[0], errors
    finally:
        for process in running:
            process.kill()


@pytest.mark.parametrize("name", WORDS)
def test_and_without_processes(name: str, root, tmp_path, capsys):
    script, *words = command(name, root, tmp_path, 0)
    with tiny_cli.registered(), pytest.raises(SystemExit) as stop:
        imagenet.main(words) if name == "imagenet_top1" else main(words[1:] if script == "-m" else words)
    assert stop.value.code == 2 and WORDS[name] in capsys.readouterr().err


# ---------------------------------------------------------------- what happens to the processes
class Items(Dataset):
    """Item i is {"x": [i]}; where `bad` is reached, `what` happens."""

    def __init__(self, bad: int = -1, what: str = "") -> None:
        self.bad, self.what = bad, what

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index == self.bad and self.what == "refused":
            raise InputError("photograph 7 is no photograph:\nInputError: really")
        if index == self.bad and self.what == "killed":
            os.kill(os.getpid(), 9)
        if index >= self.bad >= 0 and self.what == "stuck":
            time.sleep(1000)
        return {"x": torch.full((5,), index)}


def numbers(items: Iterator[dict[str, torch.Tensor]]) -> list[int]:
    return [int(item["x"][0]) for item in items]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_items_come_in_order_and_processes_go(count: int):
    assert numbers(load(Items(), count, ahead=2)) == list(range(12))
    items = load(Items(), count, ahead=2)
    next(items)
    assert len(multiprocessing.active_children()) == count
    items.close()
    assert not multiprocessing.active_children()
    stacked = load(Items(), count, 2, batch_size=5, collate=lambda items: torch.stack([item["x"] for item in items]))
    assert [len(batch) for batch in stacked] == [5, 5, 2]


def test_a_process_that_does_not_end_is_killed(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.5)
    items = load(Items(3, "stuck"), 2, ahead=3)
    next(items)
    start = time.monotonic()
    items.close()
    assert not multiprocessing.active_children() and time.monotonic() - start < 60


@pytest.mark.parametrize(("what", "words"), [("refused", "really"), ("killed", "a process that reads files is gone")])
def test_what_a_process_meets_is_one_line(what: str, words: str):
    with pytest.raises(InputError, match=words) as error:
        numbers(load(Items(7, what), 1, ahead=2))
    assert "\n" not in str(error.value) and not multiprocessing.active_children()


def script(text: str) -> subprocess.CompletedProcess:
    """`text` after what makes `Items` and `load` known, in a process of its own."""
    head = "import multiprocessing, torch\nfrom test_workers import Items, load, numbers\n"
    return subprocess.run(
        [sys.executable, "-c", head + text], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE
    )


def test_tensors_travel_where_memory_cannot_be_shared():
    done = script("""
def refuse(*_):
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")
torch.UntypedStorage._share_fd_cpu_ = torch.UntypedStorage._share_filename_cpu_ = refuse
print(numbers(load(Items(), 2, ahead=2)))
""")
    assert done.returncode == 0 and done.stdout.strip() == str(list(range(12))), done.stderr


def test_where_no_process_can_be_started_it_says_so():
    done = script("""
from sam_bigltl.errors import run_cli
def refuse(*_):
    raise OSError(38, "Function not implemented")
multiprocessing.Lock = refuse
run_cli("train", lambda _: numbers(load(Items(), 2, ahead=2)), None)
""")
    assert done.returncode == 2 and done.stderr.endswith("(Function not implemented): give --workers 0\n"), done.stderr


def test_an_iterator_that_a_traceback_keeps_does_not_keep_the_interpreter():
    done = script("""
kept = load(Items(5, "stuck"), 2, ahead=2)
next(kept)
raise SystemExit(7)
""")
    assert done.returncode == 7 and not done.stderr, done.stderr
