"""Photographs a second of `sam-bigltl bulk`, of `segment FOLDER` and of a plain loop, in one run, on this machine.

All three read, segment and write the same photographs with the same boxes, the loop and the folder mode in one process
with all of torch's threads. The share of the cores that is busy and the memory of every process are sampled meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from sam_bigltl.bulk import BulkConfig, Folder, Segmenter, find_shards, read_chunks, results
from sam_bigltl.bulk.prompt_files import read_prompts
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.convert.tuned import Setting
from sam_bigltl.data.coco import load_coco
from sam_bigltl.data.files import whole_file
from sam_bigltl.data.images import write_image
from sam_bigltl.data.tables import aligned
from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.fast.choice import choose
from sam_bigltl.memory import keep_freed_memory
from sam_bigltl.predict.batches import embed
from sam_bigltl.predict.samples import sample_photos

MOST_BOXES = 4  # of a photograph
EVERY = 0.5  # seconds between samples
LOOP = """
import json, sys
import numpy as np
from pycocotools import mask as coco_mask
from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.convert.registry import default_checkpoint
from sam_bigltl.data.images import read_image
folder, prompts, out, ratio = sys.argv[1:]
sam = load_sam(default_checkpoint())
sam.image_encoder.optimize()
sam.image_encoder.keep_ratio = float(ratio)
predictor = SamPredictor(sam)
with open(out, "w") as file:
    for name, asked in json.load(open(prompts)).items():
        predictor.set_image(read_image(f"{folder}/{name}"))
        for prompt in asked:
            masks, scores, _ = predictor.predict(box=np.array(prompt["box"]))
            rle = coco_mask.encode(np.asfortranarray(masks[scores.argmax()].astype(np.uint8)))
            file.write(json.dumps({"name": name, "counts": rle["counts"].decode()}) + "\\n")
"""


def photographs(args: argparse.Namespace, folder: Path) -> Path:
    """Links to the photographs in `folder`, and the JSON of their boxes beside it."""
    folder.mkdir()
    prompts: dict[str, list[dict]] = {}
    if args.annotations is not None:
        found = [
            (args.images / image.file_name, [each.bbox for each in image.annotations if each.bbox is not None])
            for image in load_coco(args.annotations)
        ]
    else:
        found = []
        for sample in sample_photos():
            path = folder.with_name(f"{sample.name}.png")
            write_image(path, sample.image)
            boxes = [each.box for each in sample.objects.values() if each.box is not None]
            found.append((path, [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes]))
    for number in range(args.count):
        path, boxes = found[number % len(found)]
        name = f"{number:06d}{path.suffix}"
        os.symlink(path.absolute(), folder / name)
        corners = [[x, y, x + w, y + h] for x, y, w, h in boxes[:MOST_BOXES]]
        prompts[name] = [{"box": box} for box in corners]
    with whole_file(folder.with_suffix(".json")) as file:
        json.dump(prompts, file)
    return folder.with_suffix(".json")


class Samples(threading.Thread):
    """Busy share of the cores, and memory by kind of process, while a command runs."""

    def __init__(self, process: subprocess.Popen) -> None:
        super().__init__(daemon=True)
        self.process, self.busy = process, []
        self.memory: dict[str, list[float]] = defaultdict(list)

    def run(self) -> None:
        """Sample until the command ends."""
        psutil.cpu_percent()
        while self.process.poll() is None:
            time.sleep(EVERY)
            self.busy.append(psutil.cpu_percent())
            sums: dict[str, float] = defaultdict(float)
            for name, own in _processes(self.process.pid):
                sums[name] = max(sums[name], own)
            for name, own in sums.items():
                self.memory[name].append(own)


def _processes(root: int) -> Iterator[tuple[str, float]]:
    """Kind and proportional memory in MB of a process and its descendants."""
    try:
        parent = psutil.Process(root)
        family = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            words = " ".join(process.cmdline())
            own = process.memory_full_info().uss / 1e6
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        kind = "driver" if process.pid == root else "worker" if "_Worker" in words else None
        kind = "reader" if kind is None and "_read" in words else kind
        if kind is not None:
            yield kind, own


def timed(command: Sequence[str], done: Path) -> tuple[float, float, Samples]:
    """Seconds of a command, seconds until its first result lay in `done`, and the samples."""
    began, first = time.perf_counter(), 0.0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    samples = Samples(process)
    samples.start()
    while process.poll() is None:
        if (
            not first
            and done.exists()
            and (done.is_file() or any(done.rglob("*.parquet")) or any(done.glob("*_masks.json")))
        ):
            first = time.perf_counter() - began
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    samples.join()
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with {process.returncode}: {process.stderr.read().decode()[-2000:]}")
    return seconds, first, samples


def parts(args: argparse.Namespace, folder: Path, prompts: Path) -> None:
    """Print the milliseconds of one core that each part of the work takes for a photograph."""
    torch.set_num_threads(1)
    keep_freed_memory()
    chosen = choose(torch.device("cpu"))
    setting = Setting(chosen.dtype, chosen.native, args.keep_ratio)
    config = BulkConfig.of(default_checkpoint(), setting=setting, prompts="file")
    segmenter, out = Segmenter(config), Folder(str(folder.with_name("parts")))
    asked = read_prompts(prompts)
    seconds: dict[str, float] = defaultdict(float)
    count = 0

    def clocked(name: str, function: Callable[..., Any], *given: Any) -> Any:
        began = time.perf_counter()
        result = function(*given)
        seconds[name] += time.perf_counter() - began
        return result

    for shard in find_shards(str(folder)):
        chunks = read_chunks(shard, lambda key, _: list(asked[key]), config.frame)
        while (found := clocked("read, hash, decode, resize", next, chunks, None)) is not None:
            number, photographs = found
            images = [each.pixels for each in photographs]
            for image, each in zip(images, photographs):
                clocked("encode", embed, segmenter.predictor, [image], [each.size])
            rows, _ = clocked("all of the worker", segmenter.segment, photographs)
            clocked("write", results.write_part, out, shard.name, number, rows)
            count += len(photographs)
    seconds["prompts, masks, run lengths"] = seconds.pop("all of the worker") - seconds["encode"]
    rows = [("part", "ms a photograph", "share")]
    total = sum(seconds.values())
    rows += [(name, f"{1e3 * own / count:.1f}", f"{100 * own / total:.0f} %") for name, own in seconds.items()]
    print(aligned(rows, left=(0,)))


def flat(values: Sequence[float]) -> str:
    """Memory after the start and at the end: medians of the second and the last quarter, in MB."""
    quarter = len(values) // 4
    if not quarter:
        return "-"
    return f"{median(values[quarter : 2 * quarter]):.0f} -> {median(values[-quarter:]):.0f}"


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        prompts = photographs(args, root / "photos")
        folder = prompts.with_suffix("")
        if args.parts:
            return parts(args, folder, prompts)
        command = [sys.executable, "-m", "sam_bigltl.cli"]
        ratio = ["--keep-ratio", str(args.keep_ratio)]
        bulk = [*command, "bulk", folder, "--prompts", prompts, "--output", root / "bulk", *ratio]
        jobs = {
            "plain loop": ([sys.executable, "-c", LOOP, folder, prompts, root / "loop", args.keep_ratio],
                           root / "loop"),
            "segment FOLDER": ([*command, "segment", folder, "--prompts", prompts, "--out", root / "folder", *ratio],
                               root / "folder"),
            "bulk": (bulk, root / "bulk"),
        }  # fmt: skip
        rows = [
            (
                "",
                "seconds",
                "to the first result",
                "a second",
                "after the first",
                "cores busy",
                "driver MB",
                "worker MB",
            )
        ]
        for name in args.modes:
            words, done = jobs[name]
            seconds, first, samples = timed(list(map(str, words)), done)
            begun = round(first / EVERY)
            busy = samples.busy[begun:] or samples.busy
            rows.append((
                name, f"{seconds:.1f}", f"{first:.1f}", f"{args.count / seconds:.2f}",
                f"{args.count / (seconds - first):.2f}", f"{sum(busy) / len(busy):.0f} %",
                flat(samples.memory["driver"]), flat(samples.memory["worker"]),
            ))  # fmt: skip
            print(aligned(rows[:1] + rows[-1:], left=(0,)), flush=True)
            if done.is_dir():
                shutil.rmtree(done)
        print(f"{args.count} photographs, keep_ratio {args.keep_ratio:g}, {os.cpu_count()} cores")
        print(aligned(rows, left=(0,)))


def main(argv: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = ArgumentParser(prog="bulk_throughput.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--annotations", type=Path, help="COCO JSON with boxes (copies of the quickstart's photographs)"
    )
    parser.add_argument("--images", type=Path, help="folder of its photographs")
    parser.add_argument("--count", type=int, default=2000, help="photographs (2000)")
    parser.add_argument("--keep-ratio", type=float, default=0.25, help="(0.25)")
    parser.add_argument("--parts", action="store_true", help="only what each part of the work takes, on one core")
    parser.add_argument("--modes", nargs="+", default=["plain loop", "segment FOLDER", "bulk"])
    run_cli("bulk_throughput.py", run, parser.parse_args(argv))
