"""What the encoders of the study cost: milliseconds of one pass in every format that runs, measured in turns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from segment_anything.modeling import Sam

from sam_bigltl.bench.timing import measure, timed
from sam_bigltl.convert import convert_sam
from sam_bigltl.memory import keep_freed_memory
from sam_bigltl.modeling.registry import ENCODERS, build_sam

from . import rivals
from .ablations import NoBlock, without_little_blocks
from .cells import CELLS
from .study_report import SAME_TIME

FORMATS = (("float32", False), ("float32", True), ("int8", True))
# A search decides the ratios of the one; the other's attention runs in torch alone.
UNTIMED = ("ratios by stage", "selected only")
COLUMNS = ("model", "cell", "keep_ratio", "format", "median_ms", "min_ms", "max_ms", "runs", "threads", "torch")


def measure_cells(study: Any, names: Sequence[str], path: Path, runs: int = 7) -> None:
    """Times of the study's cells at batch 1, in every format, in turns, into a CSV: training does not change them."""
    models = []
    for name in names:
        if name in SAME_TIME or name in UNTIMED:
            continue
        cell = CELLS[name]
        for dtype, native in FORMATS:
            sam = cell.build(study.material(cell, fit=False)).eval()
            little: Any = getattr(sam.image_encoder, "little_blocks", ())
            without = any(isinstance(block, NoBlock) for block in little)
            if without:  # nothing of them can be rounded: the blocks go once the encoder is
                sam = study.material(cell, fit=False).student.eval()
            sam.image_encoder.compute_in(dtype, native)
            if without:
                without_little_blocks(sam)
            models += [(name, ratio, f"{dtype}{' in kernels' if native else ''}", sam.image_encoder)
                       for ratio in cell.ratios]  # fmt: skip
    _measure(models, study.path.stem, path, runs)


def measure_sam(path: Path, runs: int = 5) -> None:
    """Times at the size of SAM ViT-B, with random weights, in int8 with C++ kernels, in turns, into a CSV."""
    torch.manual_seed(0)
    teacher = build_sam(ENCODERS["vit_b"])
    every = range(ENCODERS["vit_b"].depth)
    makers: dict[str, tuple[Callable[[], Sam], tuple[float, ...]]] = {
        "teacher": (lambda: teacher, (1.0,)),
        "ours": (lambda: convert_sam(teacher), (0.5, 0.25, 0.125)),
        "merging inside": (lambda: rivals.mixed(convert_sam(teacher)), (0.6, 0.4, 0.25)),
    }
    for fewer in (3, 6, 9):
        layers = tuple(every)[fewer:]
        makers[f"{fewer} layers fewer"] = (partial(rivals.shallow, teacher, layers), (1.0,))
    for ratio in (2.0, 1.0):
        makers[f"MLP {ratio:g}"] = (partial(rivals.narrow, teacher, ratio), (1.0,))
    for side in (768, 512):
        makers[f"{side} px"] = (partial(rivals.low_resolution, teacher, side), (1.0,))
    for name, make in (("pruned", rivals.pruned), ("ToMe", rivals.merged), ("flat areas", rivals.structured)):
        for share in (0.5, 0.25):
            makers[f"{name} {share:g}"] = (partial(make, teacher, share), (1.0,))
    models = []
    for name, (make, ratios) in makers.items():
        encoder = rivals.copied(make()).image_encoder.eval()
        encoder.compute_in("int8", True)
        models += [(name, ratio, "int8 in kernels", encoder) for ratio in ratios]
    _measure(models, "vit_b", path, runs)


def _measure(models: Sequence[tuple[str, float, str, Any]], model: str, path: Path, runs: int) -> None:
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)

    def encode(encoder: Any, ratio: float) -> None:
        encoder.keep_ratio = ratio
        encoder(images[encoder.img_size])

    images = {
        side: torch.randn(1, 3, side, side, generator=generator)
        for side in sorted({encoder.img_size for *_, encoder in models})
    }
    calls = [partial(timed, partial(encode, encoder, ratio)) for _, ratio, _, encoder in models]
    with torch.inference_mode():
        times = measure(calls, runs, warmup=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        for (name, ratio, kind, _), values in zip(models, times, strict=True):
            figures = (round(1e3 * value, 2) for value in (median(values), min(values), max(values)))
            writer.writerow((model, name, ratio, kind, *figures, runs, torch.get_num_threads(), torch.__version__))
