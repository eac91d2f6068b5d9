"""What a click costs: this project's predictor and generator against `segment_anything`'s.

"click ..." is the whole of it, from a decoded photograph to its masks: `set_image` and `predict` with one point, by a
big.LITTLE model in the C++ kernels and by `segment_anything`'s predictor with the same weights, dense and as torch
computes it.

The other tasks begin once the encoder has run. Both get the same model at SAM's size: the shipped prompt encoder and
mask decoder (SAM's, at their real widths), and an encoder that answers at once with the shipped encoder's embedding of
the photograph, brought to 64 x 64. So prompts are decoded, drawn and filtered as with SAM at 1024 px, and masks are
real ones.

Every predictor lives in a process of its own, and they take turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import segment_anything
import torch
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ..convert.registry import default_checkpoint
from ..convert.sam import load_sam
from ..data.files import write_csv
from ..data.images import read_image
from ..errors import ArgumentParser, InputError, run_cli
from ..fast.devices import device_name
from ..fast.precision import PRECISIONS
from ..modeling.registry import ENCODERS, build_sam
from ..predict.automatic import SamAutomaticMaskGenerator
from ..predict.predictor import SamPredictor
from .report import output_path
from .timing import measure
from .worker import Worker

SIDE, GRID = 1024, 64
WHOLE = {f"click {name}": name for name in ("bigltl_mini", "bigltl_s", "bigltl_b")}
TASKS = ("set_image", "1 box", "64 boxes", "everything", *WHOLE)
SHORT, MORE = TASKS[:2], 10  # what takes milliseconds runs so many times as often
COLUMNS = (
    "task", "predictor", "memory", "device", "torch", "threads", "runs", "median_s", "min_s", "max_s",
    "speedup_vs_segment_anything", "masks", "lowest_iou", "image",
    "keep_ratio", "dtype",
)  # fmt: skip


class Embedding(nn.Module):
    """An encoder that has its answer."""

    img_size = SIDE
    features: Tensor

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, images: Tensor) -> Tensor:
        return self.features.expand(len(images), -1, -1, -1)


@torch.no_grad()
def model_at_full_size(checkpoint: Path, image: np.ndarray) -> Sam:
    """A Sam of 1024 px with the decoder of `checkpoint` and its embedding of `image`, whatever image it is given."""
    sam = load_sam(checkpoint)
    predictor = SamPredictor(sam)
    predictor.set_image(image)
    side, grid = sam.image_encoder.img_size, predictor.features.shape[-1]
    height, width = predictor.input_size
    filled = predictor.features[..., : -(-height * grid // side), : -(-width * grid // side)]
    scale = GRID / max(filled.shape[-2:])
    features = F.interpolate(filled, scale_factor=scale, mode="bilinear", align_corners=False)
    features = F.pad(features, (0, GRID - features.shape[-1], 0, GRID - features.shape[-2]))
    prompts = PromptEncoder(sam.prompt_encoder.embed_dim, (GRID, GRID), (SIDE, SIDE), mask_in_chans=16)
    prompts.load_state_dict(sam.prompt_encoder.state_dict())
    return Sam(Embedding(features), prompts, sam.mask_decoder).eval()


@dataclass(frozen=True)
class Task:
    """One thing to time; `call` does it."""

    name: str
    call: Callable[[], Any] | None


@dataclass(frozen=True)
class ClickJob:
    """The tasks of one predictor: "sam_bigltl" or "segment_anything"; the rest as in `sam_bigltl.bench.cases.Job`."""

    predictor: str
    checkpoint: Path
    image: Path | None
    points_per_side: int
    tasks: tuple[str, ...]
    keep_memory: bool
    threads: int | None
    keep_ratio: float
    dtype: str
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.predictor}, memory {'kept' if self.keep_memory else 'not kept'}"

    def cases(self) -> list[Task]:
        """The tasks, which return masks as bool arrays (n, H, W), or None where there are none."""
        image = photograph(self.image)
        return [*self._parts(image), *self._whole(image)]

    def _whole(self, image: np.ndarray) -> list[Task]:
        """From the photograph to its masks, one after the other; no two models are in memory at a time."""
        point = {"point_coords": np.array([[image.shape[1] / 2, image.shape[0] / 2]]), "point_labels": np.array([1])}
        made: dict[str, Any] = {}

        def click(name: str) -> np.ndarray:
            if name not in made:
                made.clear()
                made[name] = self._predictor(name)
            made[name].set_image(image)
            return made[name].predict(**point)[0]

        return [Task(name, partial(click, WHOLE[name])) for name in self.tasks if name in WHOLE]

    def _predictor(self, name: str) -> Any:
        if name == "bigltl_mini":
            sam = load_sam(self.checkpoint)
        else:  # no weights are shipped, and time does not depend on them
            torch.manual_seed(0)
            sam = build_sam(ENCODERS[name])
        if self.predictor == "segment_anything":
            return segment_anything.SamPredictor(sam)
        encoder: Any = sam.image_encoder
        encoder.keep_ratio = self.keep_ratio
        encoder.optimize(self.dtype, native=True)
        return SamPredictor(sam)

    def _parts(self, image: np.ndarray) -> list[Task]:
        if not set(self.tasks) - set(WHOLE):
            return []
        sam = model_at_full_size(self.checkpoint, image)
        ours = self.predictor == "sam_bigltl"
        predictor = (SamPredictor if ours else segment_anything.SamPredictor)(sam)
        predictor.set_image(image)
        boxes = predictor.transform.apply_boxes_torch(some_boxes(image.shape[:2], 64), image.shape[:2])
        make = SamAutomaticMaskGenerator if ours else segment_anything.SamAutomaticMaskGenerator
        # Thresholds at which this decoder, which saw few photographs, finds masks.
        generator = make(sam, self.points_per_side, pred_iou_thresh=0.3, stability_score_thresh=0.5)
        calls = {
            "set_image": partial(predictor.set_image, image),
            "1 box": lambda: predictor.predict(box=some_boxes(image.shape[:2], 1)[0].numpy())[0],
            "64 boxes": lambda: predictor.predict_torch(None, None, boxes, multimask_output=False)[0][:, 0].numpy(),
            "everything": lambda: stacked(generator.generate(image)),
        }
        return [Task(name, calls[name]) for name in self.tasks if name in calls]


def photograph(path: Path | None) -> np.ndarray:
    """The image of `path`, else scikit-image's astronaut at 1024 x 1024: uint8 RGB (H, W, 3)."""
    if path is not None:
        return read_image(path)
    try:
        from skimage import data, transform
    except ImportError:
        raise InputError("no photograph: give --image, or pip install scikit-image for the default one") from None
    return transform.resize(data.astronaut(), (SIDE, SIDE), preserve_range=True).astype(np.uint8)


def some_boxes(size: tuple[int, int], count: int) -> Tensor:
    """Boxes (count, 4) all over an image of `size` (H, W), from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * 0.8
    corners[:, 1] += 0.15
    return (corners * torch.tensor([size[1], size[0]])).flatten(1)


def stacked(records: Sequence[dict[str, Any]]) -> np.ndarray:
    """Masks of a generator's records, (n, H, W)."""
    return np.stack([record["segmentation"] for record in records]) if records else np.zeros((0, 1, 1), bool)


def lowest_iou(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The lowest IoU of any of our masks with their most similar one; 0 where the numbers of masks differ."""
    if len(ours) != len(theirs):
        return 0.0
    if not len(ours):
        return 1.0
    left, right = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (ours, theirs))
    both = left @ right.T
    union = left.sum(1)[:, None] + right.sum(1) - both
    return float(np.where(union > 0, both / np.maximum(union, 1), 1.0).max(axis=1).min())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the benchmark."""
    parser.add_argument("--image", type=Path, help="photograph (default: scikit-image's astronaut at 1024 px)")
    parser.add_argument(
        "--checkpoint", type=Path, help="weights of ours (default: checkpoints/bigltl_mini.safetensors)"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="(default: all)")
    parser.add_argument("--keep-ratio", type=float, default=0.25, help="of whole clicks, ours (default: %(default)s)")
    parser.add_argument("--dtype", choices=tuple(PRECISIONS), default="float32",
                        help="of whole clicks, our encoder in its C++ kernels (default: %(default)s)")  # fmt: skip
    parser.add_argument("--points-per-side", type=int, default=16, help="of everything mode (default: %(default)s)")
    parser.add_argument(
        "--runs",
        type=int,
        default=5,
        help="counted rounds, after an uncounted one; ten times as many of what takes milliseconds (default: 5)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--output", type=Path, default=Path("out"), metavar="CSV",
                        help="a .csv file, or a folder for one named after device, torch version and threads "
                        "(default: %(default)s)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Measure, compare the masks, print the table and write the CSV. Raises InputError."""
    for option in ("runs", "points_per_side", "threads"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise InputError(f"--{option.replace('_', '-')} {value} is below 1")
    photograph(args.image)  # a bad one is refused here, in one line
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if not 0 < args.keep_ratio <= 1:
        raise InputError(f"--keep-ratio {args.keep_ratio:g} is not in (0, 1]")
    tasks = tuple(sorted(args.tasks, key=lambda name: name in WHOLE))  # as `ClickJob.cases` has them
    rest = (args.checkpoint or default_checkpoint(), args.image, args.points_per_side, tasks)
    settings = [("segment_anything", False), ("segment_anything", True), ("sam_bigltl", False), ("sam_bigltl", True)]
    workers = [
        Worker(ClickJob(name, *rest, keep, args.threads, args.keep_ratio, args.dtype)) for name, keep in settings
    ]
    environment = {
        "device": device_name(torch.device("cpu")), "torch": torch.__version__, "threads": torch.get_num_threads()
    }  # fmt: skip
    rows = []
    for index, task in enumerate(tasks):
        results = [worker.result(index) for worker in tqdm(workers, desc=f"{task}, first pass", leave=False)]
        runs = args.runs * (MORE if task in SHORT else 1)
        times = measure([partial(worker.seconds, index) for worker in workers], runs, 0)
        for (name, keep), result, own in zip(settings, results, times, strict=True):
            rows.append({
                "task": task, "predictor": name, "memory": "kept" if keep else "default", **environment,
                "runs": len(own), "median_s": median(own), "min_s": min(own), "max_s": max(own),
                "speedup_vs_segment_anything": median(times[0]) / median(own),
                "masks": None if result is None else len(result),
                "lowest_iou": None if result is None else lowest_iou(result, results[0]),
                "image": args.image.name if args.image else "astronaut",
                "keep_ratio": None if task not in WHOLE else args.keep_ratio if name == "sam_bigltl" else 1.0,
                "dtype": None if task not in WHOLE else args.dtype if name == "sam_bigltl" else "float32",
            })  # fmt: skip
    for worker in workers:
        worker.close()
    print(table(rows))
    path = output_path(args.output, "clicks", torch.device("cpu"), environment)
    write_csv(path, COLUMNS, rows)
    print(f"written: {path}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'task':<17} {'predictor':<17} {'memory':<8} {'median ms':>10} {'speedup':>8} {'masks':>6} {'IoU >=':>7}"
    ]
    for row in rows:
        masks = "-" if row["masks"] is None else row["masks"]
        iou = "-" if row["lowest_iou"] is None else f"{row['lowest_iou']:.4f}"
        lines.append(
            f"{row['task']:<17} {row['predictor']:<17} {row['memory']:<8} {1e3 * row['median_s']:>10.1f}"
            f" {row['speedup_vs_segment_anything']:>7.2f}x {masks:>6} {iou:>7}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/click_latency.py`."""
    parser = ArgumentParser(prog="click_latency.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
