"""Whole commands on folders of odd names and odd files, with worker processes.

They run on odd terminals and full disks, and are interrupted. Each command runs in a process of its own, which must end
with a code of ours, without a traceback and alone.
"""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from PIL import Image

from sam_bigltl import cli
from sam_bigltl.convert import registry, save_sam
from sam_bigltl.evaluation import imagenet
from sam_bigltl.modeling.encoder import EncoderConfig

from .children import Ended, run_child
from .documents import SIZE, annotations
from .mutate import mutate_bytes

NAMES = (
    b"a.jpg", b"b.png", b"caf\xe9.jpg", "caf\u00e9.jpg".encode(), b"\xff\xfe.png", b"-x.jpg", b"--help.jpg",
    b"a\nb.jpg", b"\x1b[31m.jpg", b"..jpg", b" .jpg", b"a,b;c.jpg", b"%s{0..3}.jpg", b"=1+1.jpg", b"a\\b.jpg",
    b"x" * 240 + b".jpg", "\U0001f408.jpg".encode(), b"pipe:touch PWNED #.jpg", b"http:x.jpg", b"IMG.2023.01.jpg",
    b".hidden.jpg", b"a.tif", b"a.jfif",
)  # fmt: skip
TARS = (
    b"a.tar",
    b"pipe:touch PWNED #.tar",
    b"file:a.tar",
    b"caf\xe9.tar",
    b"b.tgz",
    b"c.tar.gz",
    b"{0..3}.tar",
    b"-d.tar",
)
CONFIG = EncoderConfig(
    img_size=128, dim=16, depth=2, num_heads=2, global_layers=(1,), window=4, out_chans=16, little_dim=4
)
ALLOWED = {0, 1, 2}


def _pictures() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    found = []
    for kind, mode in (("JPEG", "RGB"), ("PNG", "RGB"), ("PNG", "I;16"), ("TIFF", "RGB")):
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels) if mode == "RGB" else Image.fromarray(pixels[..., 0].astype(np.uint16) * 16)
        picture.save(buffer, kind)
        found.append(buffer.getvalue())
    return found


def _place(rng: Random, folder: Path, name: bytes, good: list[bytes]) -> None:
    """A photograph, or now and then something else of its name."""
    path = os.path.join(os.fsencode(folder), name)
    kind = rng.randrange(30)
    content = rng.choice(good)
    if kind == 0:
        content = b""
    elif kind == 1:
        content = b"<!DOCTYPE html><html></html>"
    elif kind == 2:
        content = mutate_bytes(rng, content)
    elif kind == 3:
        os.makedirs(path, exist_ok=True)
        return
    elif kind == 4:
        os.symlink(rng.choice((b"nowhere", b"/dev/null", path)), path)
        return
    with open(path, "wb") as file:
        file.write(content)


class _Scene:
    """What commands of one case read and write, in a new folder."""

    def __init__(self, rng: Random, folder: Path, model: Path, good: list[bytes]) -> None:
        self.rng, self.folder, self.model, self.good = rng, folder, model, good
        self.workers = str(rng.choice((0, 0, 1, 2)))
        self.output = folder / "output"

    def photos(self, name: str = "photos") -> tuple[str, list[bytes]]:
        """A folder of photographs and the names in it."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        names = self.rng.sample(NAMES, self.rng.randint(1, 5))
        for each in names:
            _place(self.rng, folder, each, self.good)
        return str(folder), names

    def shards(self) -> str:
        """A folder of tar files, some whole."""
        folder = self.folder / "shards"
        folder.mkdir()
        for name in self.rng.sample(TARS, self.rng.randint(1, 3)):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w:gz" if name.endswith(b"gz") else "w") as tar:
                for number in range(self.rng.randint(0, 3)):
                    stem = self.rng.choice(("a", "IMG.2023.01", "../out", "caf\udce9", "x" * 120)) + str(number)
                    members = [(".jpg", self.rng.choice(self.good)), (".json", b'{"annotations": []}'), (".txt", b"")]
                    for suffix, content in self.rng.sample(members, self.rng.randint(1, 3)):
                        entry = tarfile.TarInfo(stem + suffix)
                        entry.size = len(content)
                        tar.addfile(entry, io.BytesIO(content))
            content = buffer.getvalue()
            content = self.rng.choice((content, content, mutate_bytes(self.rng, content), b""))
            with open(os.path.join(os.fsencode(folder), name), "wb") as file:
                file.write(content)
        return str(folder)

    def coco(self) -> tuple[str, str]:
        """A COCO file of the photographs of a folder, and the folder."""
        folder, names = self.photos()
        document = annotations()
        template, objects = document["images"][0], document["annotations"]
        document["images"], document["annotations"] = [], []
        for number, name in enumerate(names):
            document["images"].append(template | {"id": number, "file_name": os.fsdecode(name)})
            document["annotations"] += [
                entry | {"id": len(names) * place + number + 1, "image_id": number}
                for place, entry in enumerate(objects)
            ]
        path = self.folder / "coco.json"
        path.write_text(json.dumps(document))
        return str(path), folder

    def classes(self) -> str:
        """A folder of class folders."""
        for name in self.rng.sample(("cat", "dog", ".ipynb_checkpoints", "caf\udce9", "-v", "a b"), 2):
            self.photos(f"classes/{name}")
        return str(self.folder / "classes")


def _segment(scene: _Scene) -> list[str]:
    folder, names = scene.photos()
    prompts = {
        os.fsdecode(name): [{"box": [2, 2, 20.5, 18]}, {"point_coords": [[5, 5]], "point_labels": [1]}]
        for name in names
    }
    (scene.folder / "prompts.json").write_text(json.dumps(prompts))
    return [
        "segment",
        folder,
        "--prompts",
        "prompts.json",
        "--out",
        str(scene.output),
        "--checkpoint",
        str(scene.model),
    ]


def _distill(scene: _Scene) -> list[str]:
    data = scene.photos()[0] if scene.rng.random() < 0.5 else scene.shards()
    return [
        "distill", "--teacher", "teacher.safetensors", "--student", "fuzz_little", "--data", data, "--steps", "2",
        "--streams", "1", "--batch-size", "2", "--workers", scene.workers, "--warm-start", "2", "--device", "cpu",
        "--output", str(scene.output),
    ]  # fmt: skip


def _train(scene: _Scene) -> list[str]:
    path, folder = scene.coco()
    return [
        "train", "--model", "fuzz_dense", "--data", path, "--images", folder, "--steps", "2", "--batch-size", "2",
        "--workers", scene.workers, "--rounds", "3", "--paste", "0.5", "--degrade", "0.5", "--device", "cpu",
        "--output", str(scene.output),
    ]  # fmt: skip


def _evaluate(scene: _Scene) -> list[str]:
    path, folder = scene.coco()
    return [
        "eval", "--annotations", path, "--images", folder, "--checkpoint", str(scene.model), "--keep-ratio", "0.5",
        "--prompts", "box", "--box", "tight", "--workers", scene.workers, "--device", "cpu", "--output",
        str(scene.output),
    ]  # fmt: skip


_TINY = [
    "--model",
    "bigltl_tiny_patch16_224",
    "--model-kwargs",
    "img_size=32",
    "depth=1",
    "embed_dim=16",
    "num_heads=1",
]


def _classify(scene: _Scene) -> list[str]:
    return [
        "train", "--task", "classify", "--data-dir", scene.classes(), *_TINY, "--steps", "2", "--batch-size", "2",
        "--workers", scene.workers, "--device", "cpu", "--output", str(scene.output),
    ]  # fmt: skip


def _top1(scene: _Scene) -> list[str]:
    return [
        "--data-dir", scene.classes(), *_TINY, "--num-classes", "2", "--workers", scene.workers, "--device", "cpu",
        "--keep-ratio", "0.5", "--output", str(scene.output),
    ]  # fmt: skip


COMMANDS: tuple[Callable[[_Scene], list[str]], ...] = (_segment, _distill, _train, _evaluate, _classify, _top1)


def _fault(rng: Random, scene: _Scene) -> Callable[[], None]:
    """Something wrong with the machine; what to do in the process before the command."""
    kind = rng.randrange(10)
    if kind == 0:
        scene.output.write_text("a file")
    elif kind == 1:
        scene.output.symlink_to(scene.folder / "nowhere")
    elif kind == 2:
        scene.output = Path("/dev/full/output")
    elif kind == 3:
        most = rng.choice((1, 1000, 20_000, 300_000))
        return partial(_limit_files, most)
    elif kind in (4, 5):
        encoding = rng.choice(("ascii", "cp1252", "latin-1"))
        return partial(_encode_terminal, encoding)
    return lambda: None


def _limit_files(most: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail instead, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _encode_terminal(encoding: str) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding=encoding, errors="strict")


def _register() -> None:
    models = {"fuzz_little": CONFIG, "fuzz_dense": EncoderConfig(**(vars(CONFIG) | {"little_dim": 0}))}
    registry.ENCODERS.update(models)
    registry.DENSE["fuzz_little"] = "fuzz_dense"
    registry.sam_model_registry.update({key: partial(registry._build, key) for key in models})


def problem(ended: Ended, interrupted: bool, pwned: bool) -> str:
    """What is wrong with how a command ended, or nothing."""
    if ended.hung:
        return "hangs"
    if ended.left:
        return "leaves processes behind"
    if pwned:
        return "ran a command out of a file's name"
    if "\x1b[31m" in ended.output:  # of a name in NAMES
        return "writes the control characters of a file's name to the terminal"
    if "Traceback (most recent call last)" in ended.output:
        return "traceback: " + ended.output.strip().splitlines()[-1][:160]
    allowed = ALLOWED | ({130, 143, -signal.SIGINT, -signal.SIGTERM} if interrupted else set())
    if ended.code not in allowed:
        return f"code {ended.code}: {ended.output.strip().splitlines()[-1:]}"
    if ended.code == 2 and not interrupted and not ended.output.strip():
        return "code 2 without a word"
    return ""


def make(folder: Path) -> Callable[[Random], None]:
    """A function that runs one command in a process of its own."""
    good = _pictures()
    model, teacher = folder / "model.safetensors", folder / "teacher.safetensors"
    torch.manual_seed(0)
    save_sam(registry.build_sam(CONFIG), model)
    save_sam(registry.build_sam(EncoderConfig(**(vars(CONFIG) | {"little_dim": 0}))), teacher)
    count = iter(range(10**9))

    def case(rng: Random) -> None:
        place = folder / str(next(count))
        place.mkdir()
        (place / "teacher.safetensors").symlink_to(teacher)
        scene = _Scene(rng, place, model, good)
        build = rng.choice(COMMANDS)
        before = _fault(rng, scene)
        words = build(scene)
        main = imagenet.main if build is _top1 else cli.main

        def call() -> None:
            os.chdir(place)
            torch.set_num_threads(1)
            before()
            _register()
            main(words)

        interrupt = (rng.choice((signal.SIGINT, signal.SIGTERM)), rng.uniform(0.0, 1.5)) if rng.random() < 0.2 else None
        wrong = problem(run_child(call, interrupt), interrupt is not None, any(place.rglob("PWNED*")))
        if wrong:
            raise AssertionError(f"{' '.join(words[:3])} {wrong}")

    return case
