"""ONNX Runtime beside torch on the CPU: the encoder, and prompts once it has run.

Encoders are timed at a random input, prompts by the predictors, masks at the size of the image included. Every one
lives in a process of its own, and all of them take turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime
import torch
from tqdm import tqdm

from ..convert.export import export_onnx
from ..convert.onnx_files import ENCODER, open_part
from ..convert.registry import sam_model_registry
from ..data.files import write_csv
from ..errors import ArgumentParser, InputError, run_cli
from ..fast.devices import device_name
from ..fast.native import build
from ..fast.precision import PRECISIONS
from ..modeling.registry import ENCODERS
from ..predict.onnx_predictor import OnnxSamPredictor
from ..predict.predictor import SamPredictor
from .cases import Job
from .clicks import some_boxes
from .report import output_path
from .timing import measure
from .worker import Worker

TORCH, ONNX = "torch", "onnxruntime"
BOXES = (1, 16)
_SETTLE = 0.3  # seconds: without them torch took 1.4 to 1.9 times as long as alone, with them 1.1 to 1.5 times
COLUMNS = (
    "task", "model", "keep_ratio", "runtime", "dtype", "native", "device", "torch", "onnxruntime", "threads", "runs",
    "median_s", "min_s", "max_s", "speedup_vs_torch_float32", "image_size", "weights",
)  # fmt: skip


@dataclass(frozen=True)
class Timed:
    """One thing to time in another process; `call` does it. The rest are columns."""

    task: str
    model: str
    keep_ratio: float
    runtime: str
    dtype: str
    native: bool
    image_size: int
    call: Callable[[], Any] | None


@dataclass(frozen=True)
class RuntimeJob:
    """A model in one runtime and format.

    Attributes:
        model: key of the registry.
        keep_ratio: of encoder and export.
        folder: an export for ONNX Runtime, else None for torch.
        dtype, native: of the encoder in torch; prompts are timed where it is float32.
    """

    model: str
    keep_ratio: float
    checkpoint: Path | None
    threads: int
    folder: Path | None = None
    dtype: str = "float32"
    native: bool = False
    keep_memory: bool = True
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.model} {self.keep_ratio:g} {self.dtype}, {TORCH if self.folder is None else ONNX}"

    def cases(self) -> list[Timed]:
        """The encoder, and prompts for it."""
        calls = self._torch() if self.folder is None else self._onnx(self.folder)
        runtime, side = TORCH if self.folder is None else ONNX, ENCODERS[self.model].img_size
        return [
            Timed(task, self.model, self.keep_ratio, runtime, self.dtype, self.native, side, call)
            for task, call in calls.items()
        ]

    def _onnx(self, folder: Path) -> dict[str, Callable[[], Any]]:
        session, about = open_part(folder, ENCODER, self.threads, ["CPUExecutionProvider"])
        predictor = OnnxSamPredictor(folder, self.threads)
        image = _noise(about.image_size)
        predictor.set_image(image)
        pixels = np.random.default_rng(0).normal(size=(1, 3, *image.shape[:2])).astype(np.float32)
        calls: dict[str, Callable[[], Any]] = {"encoder": partial(session.run, None, {"images": pixels})}
        for count in BOXES:
            boxes = some_boxes(image.shape[:2], count).numpy()
            calls[_boxes(count)] = partial(predictor.predict_batch, boxes=boxes, multimask_output=False)
        return calls

    def _torch(self) -> dict[str, Callable[[], Any]]:
        job = Job(self.model, checkpoint=self.checkpoint, dtype=self.dtype, native=self.native,
                  keep_ratios=(self.keep_ratio,))  # fmt: skip
        (case,) = job.cases()
        assert case.call is not None
        calls: dict[str, Callable[[], Any]] = {"encoder": case.call}
        if self.dtype == "float32":
            predictor = SamPredictor(sam_model_registry[self.model](self.checkpoint))
            image = _noise(case.image_size)
            predictor.set_image(image)
            for count in BOXES:
                boxes = predictor.transform.apply_boxes_torch(some_boxes(image.shape[:2], count), image.shape[:2])
                calls[_boxes(count)] = partial(predictor.predict_torch, None, None, boxes, multimask_output=False)
        return calls


def _noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def _boxes(count: int) -> str:
    return "1 box" if count == 1 else f"{count} boxes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    parser.add_argument("--models", nargs="+", choices=list(ENCODERS), default=["bigltl_mini"], metavar="NAME",
                        help="keys of this project's registry (default: bigltl_mini)")  # fmt: skip
    parser.add_argument("--checkpoint", type=Path, help="weights of one model (default: random weights)")
    parser.add_argument("--keep-ratio", nargs="+", type=float, default=[1.0, 0.5, 0.25], metavar="R",
                        help="in (0, 1]; dense models have 1 only (default: 1.0 0.5 0.25)")  # fmt: skip
    parser.add_argument("--dtype", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS),
                        help="of the encoder in torch; bfloat16 and int8 in this project's C++ kernels "
                        "(default: all)")  # fmt: skip
    parser.add_argument("--runs", type=int, default=7, help="counted rounds, after two uncounted ones (default: 7)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--output", type=Path, default=Path("out"), metavar="CSV",
                        help="a .csv file, or a folder for one named after device, torch version and threads "
                        "(default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Export, measure, print the table and write the CSV. Raises InputError."""
    for option in ("runs", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f"--{option} {value} is below 1")
    for ratio in args.keep_ratio:
        if not 0.0 < ratio <= 1.0:
            raise InputError(f"--keep-ratio {ratio:g} is outside (0, 1]")
    if args.checkpoint is not None and len(args.models) > 1:
        raise InputError("--checkpoint is of one model: give one in --models")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if set(args.dtype) - {"float32"}:
        build.load()  # compiled once, not by every process
    device = torch.device("cpu")
    environment = {
        "device": device_name(device), "torch": torch.__version__, "onnxruntime": onnxruntime.__version__,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        workers = [Worker(job) for job in jobs(args, Path(folder), environment["threads"])]
        entries = [(worker, index) for worker in workers for index in range(len(worker.cases))]
        times = measure([partial(_settled, worker, index) for worker, index in entries], args.runs, 2)
        for worker in workers:
            worker.close()
    weights = "random" if args.checkpoint is None else args.checkpoint.name
    rows = result_rows([worker.cases[index] for worker, index in entries], times, environment | {"weights": weights})
    print(f"{environment['device']}, torch {environment['torch']}, onnxruntime {environment['onnxruntime']},"
          f" {environment['threads']} CPU threads, medians of {args.runs} interleaved runs")  # fmt: skip
    print(table(rows))
    path = output_path(args.output, "onnx", device, environment)
    write_csv(path, COLUMNS, rows)
    print(f"written: {path}")


def _settled(worker: Worker, index: int) -> float:
    """Seconds of a case, once ONNX Runtime's threads of the case before no longer wait, which takes the CPU."""
    time.sleep(_SETTLE)
    return worker.seconds(index)


def jobs(args: argparse.Namespace, folder: Path, threads: int) -> list[RuntimeJob]:
    """torch in every format and ONNX Runtime for each model and keep_ratio; the exports are written to `folder`."""
    found = []
    settings = [
        (model, ratio) for model in dict.fromkeys(args.models)
        for ratio in (dict.fromkeys(args.keep_ratio) if ENCODERS[model].little_dim else (1.0,))
    ]  # fmt: skip
    for model, ratio in tqdm(settings, desc="exports", disable=None):
        common = (model, ratio, args.checkpoint, threads)
        torch.manual_seed(0)
        export = folder / f"{model}-{ratio:g}"
        export_onnx(sam_model_registry[model](args.checkpoint), export, ratio)
        for dtype in dict.fromkeys(args.dtype):
            found.append(RuntimeJob(*common, dtype=dtype, native=dtype != "float32"))
        found.append(RuntimeJob(*common, folder=export))
    return found


def result_rows(
    cases: Sequence[Timed], times: Sequence[Sequence[float]], environment: dict[str, Any]
) -> list[dict[str, Any]]:
    """One dictionary per case, with the keys COLUMNS, by task.

    Speedups are over torch in float32, None where it was not timed.
    """
    found = dict(zip(cases, times, strict=True))
    base = {
        (case.task, case.model, case.keep_ratio): median(own)
        for case, own in found.items() if case.runtime == TORCH and case.dtype == "float32"
    }  # fmt: skip
    tasks = list(dict.fromkeys(case.task for case in cases))
    rows = []
    for case in sorted(cases, key=lambda case: tasks.index(case.task)):
        own, first = found[case], base.get((case.task, case.model, case.keep_ratio))
        rows.append({
            "task": case.task, "model": case.model, "keep_ratio": case.keep_ratio, "runtime": case.runtime,
            "dtype": case.dtype, "native": "yes" if case.native else "no", **environment, "runs": len(own),
            "median_s": median(own), "min_s": min(own), "max_s": max(own),
            "speedup_vs_torch_float32": first and first / median(own), "image_size": case.image_size,
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| task | model | keep_ratio | runtime | median ms | vs torch float32 |", "|---|---|---:|---|---:|---:|"]
    for row in rows:
        name = f"{row['runtime']} {row['dtype']}" + " native" * (row["native"] == "yes")
        speedup = row["speedup_vs_torch_float32"]
        lines.append(
            f"| {row['task']} | {row['model']} | {row['keep_ratio']:g} | {name} | {1e3 * row['median_s']:.1f} |"
            f" {'-' if speedup is None else f'{speedup:.2f}x'} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/onnx_latency.py`."""
    parser = ArgumentParser(prog="onnx_latency.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
