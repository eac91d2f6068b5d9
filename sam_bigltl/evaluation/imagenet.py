"""Top-1 and top-5 accuracy of classifiers, every keep_ratio in one pass over the images."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform
from torch import Tensor, nn
from torch.utils.data import Subset
from tqdm import tqdm

from ..bench.macs import count_macs
from ..convert.classifiers import add_model_arguments, data_config, logits_of, open_classifier, set_ratio
from ..data.fields import is_number
from ..data.files import write_csv
from ..data.labelled import Transformed, collate, open_dataset
from ..data.skipped import Unreadable
from ..data.workers import load, worker_failures
from ..errors import ArgumentParser, InputError, run_cli
from ..fast.choice import choose
from ..fast.devices import device_name, parse_device, synchronize
from ..fast.precision import PRECISIONS
from ..modeling.trunk import Trunk

COLUMNS = (
    "model", "keep_ratio", "top1", "top5", "images", "unreadable", "images_per_s", "gmacs", "dtype", "batch_size",
    "image_size", "device", "torch", "threads",
)  # fmt: skip

EXAMPLES = """examples:
  python eval/imagenet_top1.py --data-dir imagenet/val --checkpoint runs/small/model.safetensors \\
      --keep-ratio 1 0.5 0.25 --output results
  python eval/imagenet_top1.py --dataset torch/cifar10 --data-dir data --model bigltl_tiny_patch16_224 \\
      --checkpoint x.safetensors --output r
  python eval/imagenet_top1.py --data-dir imagenet/val --backbone checkpoints/bigltl_mini.safetensors \\
      --checkpoint probe.safetensors --output r
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `eval/imagenet_top1.py`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR",
                        help="a folder with one folder a class, or the root of --dataset")  # fmt: skip
    parser.add_argument("--dataset", default="", metavar="NAME", help="of timm's create_dataset, such as torch/cifar10")
    parser.add_argument("--split", default="validation", help="(validation)")
    add_model_arguments(parser)
    parser.add_argument("--keep-ratio", nargs="+", type=float, default=[1.0], metavar="R", help="in (0, 1] (1.0)")
    parser.add_argument("--dtype", default="float32", help="auto, float32, bfloat16 or int8 (float32)")
    parser.add_argument("--native", action="store_true", help="this project's C++ kernels: bfloat16, int8, CPU")
    parser.add_argument("--batch-size", type=int, default=32, help="(32)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images (1)")
    parser.add_argument("--limit", type=int, metavar="N", help="only N images, evenly spaced")
    parser.add_argument("--device", help="cpu, cuda, cuda:N (default: cuda if there is one, else cpu)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="folder for results; an interrupted run in it goes on")  # fmt: skip
    parser.add_argument("--restart", action="store_true", help="forget what --output holds")


def inference_transform(model: nn.Module) -> Any:
    """The preprocessing that the model's own configuration asks for."""
    config = data_config(model)
    return create_transform(
        config["input_size"], mean=config["mean"], std=config["std"], interpolation=config["interpolation"],
        crop_pct=config["crop_pct"], crop_mode=config["crop_mode"],
    )  # fmt: skip


def count_correct(
    model: nn.Module, images: Tensor, labels: Tensor, ratios: Sequence[float], device: torch.device
) -> list[tuple[int, int, int, float]]:
    """For each ratio: images, right at once, right among five, seconds."""
    if not len(labels):  # none of a batch could be read
        return [(0, 0, 0, 0.0)] * len(ratios)
    images, rows = images.to(device), []
    for ratio in ratios:
        set_ratio(model, ratio)
        start = time.perf_counter()
        logits = logits_of(model, images)
        synchronize(device)
        seconds = time.perf_counter() - start
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu() == labels[:, None]
        rows.append((len(labels), int(best[:, 0].sum()), int(best.any(dim=1).sum()), seconds))
    return rows


def run(args: argparse.Namespace) -> None:
    """Evaluate, print the table, write results.csv; exit with code 1 if images could not be read.

    Raises InputError, also where too many cannot be read.
    """
    for name in ("batch_size", "limit", "num_classes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} {getattr(args, name)} is below 1")
    ratios = list(dict.fromkeys(args.keep_ratio))
    for ratio in ratios:
        if not 0 < ratio <= 1:
            raise InputError(f"--keep-ratio {ratio:g} is outside (0, 1]")
    device = parse_device(args.device)
    chosen = choose(device, args.dtype, args.native or ("auto" if args.dtype == "auto" else False))
    dataset = open_dataset(args.dataset, args.data_dir, args.split)
    dataset_indices: Sequence[int] = range(len(dataset))
    if args.limit is not None and args.limit < len(dataset):
        dataset_indices = torch.linspace(0, len(dataset) - 1, args.limit).round().int().tolist()
    classes = args.num_classes or dataset.classes or 1000
    model = open_classifier(args.model, classes, args.model_kwargs, args.checkpoint, args.backbone).to(device)
    transform = inference_transform(model)
    for ratio in ratios:
        set_ratio(model, ratio)  # refuses
    size = data_config(model)["input_size"]
    gmacs = {}
    for ratio in ratios:
        set_ratio(model, ratio)
        gmacs[ratio] = count_macs(model, torch.zeros(1, *size, device=device)).total / 1e9
    trunk = getattr(model, "image_encoder", model)
    if isinstance(trunk, Trunk):
        trunk.compute_in(chosen.dtype, chosen.native)
    elif args.native or args.dtype == "int8":
        raise InputError("--native and int8 are for this project's models")
    else:
        if chosen.native:  # which "auto" chose
            chosen = choose(device, native=False)
        model.to(PRECISIONS[chosen.dtype])
    chosen.say()
    if args.checkpoint is None:
        print("no --checkpoint: random weights", file=sys.stderr)

    name = args.backbone.name if args.backbone else args.model
    settings = {
        "data": str(args.data_dir), "dataset": args.dataset, "split": args.split, "images": len(dataset_indices),
        "model": name, "model_kwargs": args.model_kwargs, "checkpoint": str(args.checkpoint), "ratios": ratios,
        "dtype": chosen.dtype + " native" * chosen.native, "batch_size": args.batch_size,
    }  # fmt: skip
    journal = Journal(args.output, json.loads(json.dumps(settings, default=str)), args.restart)
    rest = Subset(Transformed(dataset, transform), list(dataset_indices)[journal.batches * args.batch_size :])
    dtype = next(model.parameters()).dtype if not isinstance(trunk, Trunk) else torch.float32
    unreadable = Unreadable(len(dataset_indices))
    unreadable.update(journal.unreadable)
    with (
        closing(load(rest, args.workers, 2, args.batch_size, collate)) as batches,
        worker_failures(),
        tqdm(total=-(-len(rest) // args.batch_size), unit="batch", disable=None) as bar,
    ):
        for images, labels, skipped in batches:
            unreadable.add(skipped)
            rows = count_correct(model, images.to(dtype), labels, ratios, device)
            journal.add(rows, {each.key: each.reason for each in skipped})
            bar.update()
    totals = journal.totals(len(ratios))
    environment = {"device": device_name(device), "torch": torch.__version__, "threads": torch.get_num_threads()}
    results = [
        {
            "model": name, "keep_ratio": ratio, "top1": 100 * first / count, "top5": 100 * five / count,
            "images": count, "unreadable": len(unreadable.reasons), "images_per_s": count / seconds,
            "gmacs": gmacs[ratio], "dtype": settings["dtype"], "batch_size": args.batch_size, "image_size": size[-1],
            **environment,
        }
        for ratio, (count, first, five, seconds) in zip(ratios, totals, strict=True)
    ]  # fmt: skip
    path = args.output / "results.csv"
    write_csv(path, COLUMNS, results)
    print(f"{'keep_ratio':>10} {'top-1 %':>8} {'top-5 %':>8} {'images':>7} {'images/s':>9} {'GMACs':>7}")
    for row in results:
        print(
            f"{row['keep_ratio']:>10g} {row['top1']:>8.2f} {row['top5']:>8.2f} {row['images']:>7} "
            f"{row['images_per_s']:>9.1f} {row['gmacs']:>7.2f}"
        )
    print(f"written: {path}")
    unreadable.finish("imagenet_top1.py", args.output / "unreadable.csv", "repair them and give --restart")


class Journal:
    """What was counted so far, a line a batch, so that an interrupted run loses one batch at most.

    Raises InputError where the folder holds the journal of other settings, or cannot be written.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], restart: bool) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the folder {folder}: {error.strerror}") from None
        self.path = folder / "journal.jsonl"
        if restart or not self.path.exists():
            self._write("w", settings)
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]  # a torn last line is a batch that was under way
        if whole != text:
            self.path.write_bytes(whole)
        first, *lines = whole.splitlines() or [b""]
        try:
            stored, batches = json.loads(first), [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            stored, batches = None, []
        damaged = not isinstance(stored, dict) or not all(map(_is_batch, batches))
        if damaged or (stored == settings and any(len(each["rows"]) != len(settings["ratios"]) for each in batches)):
            raise InputError(f"{self.path} is damaged, or of another version: give --restart or another --output")
        if stored != settings:
            other = next((key for key in settings if stored.get(key) != settings[key]), "settings")
            raise InputError(f"{folder} holds a run with another {other}: give --restart or another --output")
        self.rows = [each["rows"] for each in batches]
        self.unreadable: dict[str, str] = {}  # reasons by name
        for each in batches:
            self.unreadable |= each["unreadable"]

    @property
    def batches(self) -> int:
        """How many are done."""
        return len(self.rows)

    def add(self, rows: list[tuple[int, int, int, float]], unreadable: dict[str, str]) -> None:
        """Append a batch."""
        self.rows.append(rows)
        self._write("a", {"rows": rows, "unreadable": unreadable})

    def _write(self, mode: str, line: dict[str, Any]) -> None:
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written ({error.strerror}): make room, then start again") from None

    def totals(self, ratios: int) -> list[tuple[float, ...]]:
        """Sums over the batches, for each ratio."""
        return [tuple(sum(column) for column in zip(*(rows[index] for rows in self.rows))) for index in range(ratios)]


def _is_batch(batch: Any) -> bool:
    """Whether it is what `add` writes.

    That is for each ratio images, right at once, right among five, seconds; and the unreadable.
    """
    if not isinstance(batch, dict) or batch.keys() != {"rows", "unreadable"}:
        return False
    rows, unreadable = batch["rows"], batch["unreadable"]
    counted = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 4 and all(map(is_number, row)) for row in rows
    )
    return counted and isinstance(unreadable, dict) and all(isinstance(reason, str) for reason in unreadable.values())


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/imagenet_top1.py`."""
    parser = ArgumentParser(prog="imagenet_top1.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
