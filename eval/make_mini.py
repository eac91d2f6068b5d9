"""Make the shipped weights from the data: a dense teacher in phases, then its big.LITTLE student in closed form.

    python eval/make_mini.py --data data/train.json data/train_2.json --images data/images --val data/dev.json \
        --runs runs

Interrupted, the same command goes on where it was. Each phase is one `sam-bigltl` command, printed before it runs, with
a folder of its own in --runs; a phase that is finished is not run again. --install writes both files in float16 to
checkpoints/.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from sam_bigltl.convert import load_sam, save_sam
from sam_bigltl.errors import ArgumentParser, InputError, run_cli

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


@dataclass(frozen=True)
class Phase:
    """One command: flags that all trainings of a kind share are left out."""

    name: str
    flags: str


_ROUNDS = "--balance source --rounds 8 --optimizer muon"
_AGAIN = "--balance source --rounds 6 --optimizer muon --box-share 0.75"
TEACHER = (
    # Parts of the frame: ten times as many images a second as whole frames, objects of all sizes.
    Phase("crops",
          f"{_ROUNDS} --crop 224 --scale 0.4 1.5 --as-is 0.25 --paste 0.25 --degrade 0.15 --batch-size 16 --lr 8e-4 "
          "--final-lr 0.15 --warmup 60 --ema 0.995 --steps 7000 --until 1647 --sharpen-positions --seed 31"),
    # Larger parts, in which whole photographs fit at small scales.
    Phase("large_crops",
          f"{_ROUNDS} --crop 448 --scale 0.45 1.4 --as-is 0.3 --paste 0.2 --degrade 0.1 --batch-size 8 --lr 6e-4 "
          "--final-lr 0.1 --warmup 20 --ema 0.99 --steps 900 --seed 32"),
    # What inference sees.
    Phase("frames",
          f"{_ROUNDS} --round-prompts 3 --scale 0.7 1.3 --as-is 0.6 --batch-size 8 --lr 3e-4 --final-lr 0.02 "
          "--warmup 8 --ema 0.95 --steps 100 --seed 33"),
    # From here on each image of a batch has a random generator of its own, and two processes share the batch.
    Phase("more_crops",
          f"{_AGAIN} --crop 224 --scale 0.3 1.5 --as-is 0.25 --paste 0.25 --degrade 0.15 --batch-size 24 --lr 7e-4 "
          "--final-lr 0.08 --warmup 40 --ema 0.995 --steps 1800 --until 952 --seed 51"),
    Phase("more_frames",
          f"{_AGAIN} --round-prompts 3 --scale 0.6 1.3 --as-is 0.6 --batch-size 8 --lr 4e-4 --final-lr 0.02 "
          "--warmup 4 --ema 0.95 --steps 120 --seed 53"),
    Phase("crops_3",
          f"{_AGAIN} --crop 224 --scale 0.3 1.5 --as-is 0.25 --paste 0.25 --degrade 0.15 --batch-size 24 --lr 7e-4 "
          "--final-lr 0.08 --warmup 40 --ema 0.995 --steps 1300 --until 1169 --seed 71"),
    Phase("frames_3",
          f"{_AGAIN} --round-prompts 3 --scale 0.6 1.3 --as-is 0.6 --batch-size 8 --lr 4e-4 --final-lr 0.02 "
          "--warmup 4 --ema 0.95 --steps 110 --seed 73"),
    Phase("crops_4",
          f"{_AGAIN} --crop 224 --scale 0.3 1.5 --as-is 0.25 --paste 0.25 --degrade 0.15 --batch-size 24 --lr 7e-4 "
          "--final-lr 0.08 --warmup 40 --ema 0.995 --steps 1000 --until 701 --seed 91"),
    Phase("frames_4",
          f"{_AGAIN} --round-prompts 3 --scale 0.6 1.3 --as-is 0.6 --batch-size 8 --lr 4e-4 --final-lr 0.02 "
          "--warmup 4 --ema 0.95 --steps 100 --seed 93"),
)  # fmt: skip
FITTED = 40  # photographs that the student's LITTLE path is fitted to, in closed form


def command(phase: Phase, before: Path | None, args: argparse.Namespace) -> list[str]:
    """The words of a phase of the teacher, which starts from the file `before`."""
    words = ["train", "--model", "vit_mini", "--data", *map(str, args.data), "--images", str(args.images)]
    words += [*phase.flags.split(), "--output", str(args.runs / phase.name)]
    return words + _start(args.runs / phase.name, before) + _validation(args)


def conversion(teacher: Path, args: argparse.Namespace) -> list[str]:
    """The words that make the student of the finished teacher: docs/study.md says why it is not trained."""
    words = ["convert", str(teacher), str(args.runs / "student.safetensors"), "--warm-start", str(_merged(args))]
    return [*words, "--images", str(args.images), "--max-images", str(FITTED)]


def _start(folder: Path, before: Path | None) -> list[str]:
    if (folder / "state.pt").exists():
        return ["--resume"]
    return ["--init", str(before)] if before else []


def _validation(args: argparse.Namespace) -> list[str]:
    return ["--val", str(args.val), "--val-every", "1560"] if args.val else []


def _merged(args: argparse.Namespace) -> Path:
    """All of --data in one file: `convert` reads one."""
    documents = [json.loads(path.read_text()) for path in args.data]
    path = args.runs / "all.json"
    whole = {key: [entry for document in documents for entry in document[key]] for key in ("images", "annotations")}
    path.write_text(json.dumps(whole))
    return path


def _run(words: list[str], processes: int) -> None:
    print("sam-bigltl " + shlex.join(words), flush=True)
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    code = subprocess.call([sys.executable, *launch, "-m", "sam_bigltl.cli", *words])
    if code:
        raise SystemExit(code)


def run(args: argparse.Namespace) -> None:
    """All phases that are not finished, in order."""
    for path in (*args.data, args.images, *([args.val] if args.val else [])):
        if not path.exists():
            raise InputError(f"no file or folder {path}")
    args.runs.mkdir(parents=True, exist_ok=True)
    before, names = args.init, [phase.name for phase in TEACHER]
    if args.init and not args.init.exists():
        raise InputError(f"no file or folder {args.init}")
    if args.first != names[0] and not args.init:
        raise InputError(f"--first {args.first} goes on from weights: name them with --init")
    for phase in TEACHER[names.index(args.first) :]:
        made = args.runs / phase.name / "model.safetensors"
        if not made.exists():
            _run(command(phase, before, args), args.processes)
        before = made
    student = args.runs / "student.safetensors"
    if not student.exists():
        _run(conversion(before, args), 1)
    if args.install:
        for source, name in ((before, "vit_mini"), (student, "bigltl_mini")):
            save_sam(load_sam(source), CHECKPOINTS / f"{name}.safetensors", torch.float16)
            print(f"wrote {CHECKPOINTS / name}.safetensors")


if __name__ == "__main__":
    parser = ArgumentParser(
        prog="make_mini.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="JSON", help="masks to train on, COCO format"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of their photographs")
    parser.add_argument("--val", type=Path, metavar="JSON", help="masks to validate on, which choose nothing")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="folder of the phases (runs)")
    parser.add_argument(
        "--first", choices=[phase.name for phase in TEACHER], default=TEACHER[0].name, metavar="PHASE",
        help="begin with this phase of the teacher, from --init (%(default)s)",
    )  # fmt: skip
    parser.add_argument("--init", type=Path, metavar="CKPT", help="a vit_mini to begin with, such as the shipped one")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that share each batch (1)")
    parser.add_argument("--install", action="store_true", help="write both files to checkpoints/ in float16 at the end")
    run_cli(parser.prog, run, parser.parse_args())
