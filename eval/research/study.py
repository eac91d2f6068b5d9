"""The study of docs/study.md: short distillations from one teacher, one change each, scored on dev by protocol A.

Every cell trains for the same number of steps on the same photographs in the same order, then its rows go into a CSV.
Cells whose rows are there are skipped, and a cell that was interrupted goes on, so that the study can be run in pieces.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from segment_anything.modeling import Sam

from sam_bigltl.bench.timing import measure, timed
from sam_bigltl.convert import convert_sam, load_sam
from sam_bigltl.convert.warm_start import warm_start
from sam_bigltl.convert.weight_files import weights_sha256
from sam_bigltl.data.coco import check_image_files, read_coco, read_photo
from sam_bigltl.data.sources import first_photos, open_source
from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.evaluation.prompts import in_frame
from sam_bigltl.evaluation.runner import Plan, evaluate, summary_rows
from sam_bigltl.predict.predictor import SamPredictor
from sam_bigltl.training.cache import EmbeddingCache
from sam_bigltl.training.distill import DistillConfig, Distiller, fill_cache

from . import ablations
from .study_report import computes_like_base, write_report

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.125)
TRAINING = dict(batch_size=8, streams=1, optimizer="muon", lr=2e-4, warmup=10, final_lr=0.02, ema=0.95, workers=1,
                keep_ratios=RATIOS, train_decoder=False, log_every=10, save_every=25)  # fmt: skip
COLUMNS = ("cell", "seed", "steps", "keep_ratio", "prompt", "clicks", "all", "small", "medium", "large", "instances",
           "train_seconds", "teacher")  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One model of the study.

    Attributes:
        name: in the CSV; the letter before the dash is the table's.
        build: from the teacher and the warm-started student, the model to train.
        training: what differs from `TRAINING`; None is no training.
        convert: arguments of `convert_sam` for the student.
        ratios: keep ratios to score at; a dense model's own is 1.0.
        clicks: numbers of clicks to score beside the box. Repetitions are scored with boxes and one click, and at the
            keep ratios up to 0.25 where there are any: what claims are made of.
        source: another cell whose trained model is the start (trained no further).
        seeds: how many repetitions.
    """

    name: str
    build: Callable[[Sam, Sam], Sam]
    training: dict[str, Any] | None = field(default_factory=dict)
    convert: dict[str, Any] = field(default_factory=dict)
    ratios: tuple[float, ...] = (0.25, 0.125)
    clicks: tuple[int, ...] = (1,)
    source: str | None = None
    seeds: int = 1


def _changed(*changes: Callable[[Sam], None]) -> Callable[[Sam, Sam], Sam]:
    def build(teacher: Sam, student: Sam) -> Sam:
        for change in changes:
            change(student)
        return student

    return build


def _with_router(router: Callable[[], torch.nn.Module]) -> Callable[[Sam, Sam], Sam]:
    return _changed(lambda sam: ablations.set_router(sam, router()))


def _shallow(*layers: int) -> Callable[[Sam, Sam], Sam]:
    return lambda teacher, student: ablations.shallow(teacher, layers)


_NO_TEACHER_OF_FEATURES = dict(stage=2, weight_embedding=0.0, prompts=8)
_ALL_CLICKS = (1, 3, 5)
CELLS = {cell.name: cell for cell in (
    Cell("teacher", lambda teacher, student: teacher, None, ratios=(1.0,), clicks=_ALL_CLICKS),
    Cell("a-one-checkpoint", _changed(), ratios=RATIOS, clicks=_ALL_CLICKS, seeds=3),
    Cell("b-random-at-test", _with_router(ablations.RandomRouter), None, source="a-one-checkpoint", seeds=3),
    Cell("b-centre-at-test", _with_router(ablations.CentreRouter), None, source="a-one-checkpoint"),
    Cell("b-oracle-at-test", _with_router(ablations.OracleRouter), None, source="a-one-checkpoint"),
    Cell("b-random", _with_router(ablations.RandomRouter), seeds=3),
    Cell("b-centre", _with_router(ablations.CentreRouter)),
    Cell("b-supervised", _changed(), {"weight_router": 0.1}, seeds=2),
    Cell("c-every-layer", _changed(), convert={"route_every": 1}),
    Cell("c-once", _changed(ablations.route_once)),
    Cell("d-no-gamma", _changed(ablations.without_fusion)),
    Cell("d-selected-only", _changed(ablations.attend_to_selected_only)),
    Cell("e-masks-only", _changed(), _NO_TEACHER_OF_FEATURES),
    Cell("e-embedding-and-masks", _changed(), _NO_TEACHER_OF_FEATURES | {"weight_embedding": 1.0}),
    Cell("e-only-0.5", _changed(), {"keep_ratios": (0.5,)}, ratios=(0.5,)),
    Cell("e-only-0.25", _changed(), {"keep_ratios": (0.25,)}, ratios=(0.25,)),
    Cell("f-dense-1-layer", _shallow(7), ratios=(1.0,), seeds=3),
    Cell("f-dense-2-layers", _shallow(3, 7), ratios=(1.0,), clicks=_ALL_CLICKS, seeds=3),
    Cell("f-dense-3-layers", _shallow(3, 5, 7), ratios=(1.0,), clicks=_ALL_CLICKS, seeds=3),
    Cell("f-dense-4-layers", _shallow(1, 3, 5, 7), ratios=(1.0,), clicks=_ALL_CLICKS, seeds=3),
    Cell("f-dense-5-layers", _shallow(0, 1, 3, 5, 7), ratios=(1.0,)),
    Cell("f-pruned-0.5", lambda teacher, student: ablations.pruned(teacher, 0.5), ratios=(1.0,)),
    Cell("f-pruned-0.25", lambda teacher, student: ablations.pruned(teacher, 0.25), ratios=(1.0,)),
    Cell("f-merged-0.5", lambda teacher, student: ablations.merged(teacher, 0.5), ratios=(1.0,)),
    Cell("f-merged-0.25", lambda teacher, student: ablations.merged(teacher, 0.25), ratios=(1.0,)),
    Cell("g-warm-start-only", _changed(), None, ratios=(0.5, 0.25, 0.125)),
    Cell("g-no-warm-start", _changed(), ratios=(0.5, 0.25, 0.125)),
    Cell("h-depthwise", _changed(ablations.convolve)),
    Cell("h-no-e-blocks", _changed(ablations.without_little_blocks), seeds=3),
    Cell("h-width-16", _changed(), convert={"little_dim": 16}),
    Cell("h-width-16-random", _with_router(ablations.RandomRouter), convert={"little_dim": 16}),
    Cell("h-width-96", _changed(), convert={"little_dim": 96}),
)}  # fmt: skip


class OraclePredictor(SamPredictor):
    """Gives the oracle router the outlines of the objects in each image.

    Args:
        truth: scores by `digest` of the image.
    """

    def __init__(self, sam: Sam, truth: dict[str, torch.Tensor]) -> None:
        super().__init__(sam)
        self.truth = truth

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """As `SamPredictor.set_image`."""
        for transition in self.model.image_encoder.transitions:
            transition.router.scores = self.truth[digest(image)]
        super().set_image(image, image_format)


def digest(image: np.ndarray) -> str:
    """A name for an image's pixels."""
    return hashlib.sha1(np.ascontiguousarray(image).tobytes()).hexdigest()


class Study:
    """The cells over one teacher.

    Args:
        teacher: path of the dense model.
        data: folder with train.json, dev.json and images/.
        runs: folder of states, weights and the teacher's embeddings.
        table: the CSV.
        steps: of every cell.
        limit: dev images, or None for all.
    """

    def __init__(
        self, teacher: Path, data: Path, runs: Path, table: Path, steps: int, limit: int | None = None
    ) -> None:
        self.teacher_path, self.data, self.runs, self.table, self.steps = teacher, data, runs, table, steps
        images, usage = read_coco(data / "dev.json", folder=data / "images")
        self.images = images[:limit]
        print(usage.of(self.images, "of images beyond --limit"))
        check_image_files(self.images, data / "images")
        self.source = open_source(str(data / "train.json"), data / "images")
        self.mark = weights_sha256(teacher)[:12]

    @cached_property
    def cache(self) -> EmbeddingCache:
        """The teacher's embeddings of all training photographs, for every cell."""
        return fill_cache(self.runs / "cache", self.source, load_sam(self.teacher_path), "bfloat16")

    def run(self, names: Sequence[str]) -> None:
        """Run what is missing of these cells, in their order: all of them once, then the repetitions."""
        for seed in range(max(CELLS[name].seeds for name in names)):
            for name in names:
                cell = CELLS[name]
                if seed >= cell.seeds or (name, str(seed)) in self._done():
                    continue
                began = time.perf_counter()
                sam, seconds = self._trained(cell, seed)
                self._score(cell, seed, sam, seconds)
                print(f"{name} seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)

    def _done(self) -> set[tuple[str, str]]:
        if not self.table.exists():
            return set()
        with open(self.table, newline="") as file:
            rows = list(csv.DictReader(file))
        others = {row["teacher"] for row in rows} - {self.mark}
        if others:
            raise InputError(f"{self.table} has rows of another teacher: give another --table")
        return {(row["cell"], row["seed"]) for row in rows if int(row["steps"]) == self.steps}

    def _trained(self, cell: Cell, seed: int) -> tuple[Sam, float]:
        """The cell's model, and the seconds that its training took."""
        torch.manual_seed(seed)
        teacher = load_sam(self.teacher_path)
        if cell.source:
            student, _ = self._trained(CELLS[cell.source], seed)
        else:
            student = convert_sam(teacher, **cell.convert)
            if cell.name != "g-no-warm-start":
                warm_start(student, first_photos(student, self.source, 48, seed), progress=False)
        sam = cell.build(teacher, student)
        if cell.training is None:
            return sam.eval(), 0.0
        config = DistillConfig(
            **({"stage": 1, "steps": self.steps, "seed": seed, "cached": True} | TRAINING | cell.training)
        )
        output = self.runs / f"{cell.name}_{seed}"
        distiller = Distiller(sam, load_sam(self.teacher_path), self.source, config, output, self.cache)
        if distiller.state_path.exists():
            distiller.resume()
        distiller.run()
        sam.load_state_dict(distiller.averaged())
        return sam.eval(), distiller.seconds

    def _score(self, cell: Cell, seed: int, sam: Sam, seconds: float) -> None:
        torch.manual_seed(seed)
        oracle = not sam.image_encoder.is_dense and isinstance(
            sam.image_encoder.transitions[0].router, ablations.OracleRouter
        )
        predictor = OraclePredictor(sam, self._truth(sam)) if oracle else SamPredictor(sam)
        ratios, clicks = cell.ratios, cell.clicks
        if seed:
            ratios, clicks = tuple(ratio for ratio in ratios if ratio <= 0.25) or ratios, (1,)
        plan = Plan(keep_ratios=ratios, prompts=("box", "point"), clicks=clicks)
        records = evaluate(predictor, self.images, self.data / "images", plan)
        fixed = {
            "cell": cell.name, "seed": seed, "steps": self.steps, "train_seconds": round(seconds, 1),
            "teacher": self.mark
        }  # fmt: skip
        new = not self.table.exists()
        self.table.parent.mkdir(parents=True, exist_ok=True)
        with open(self.table, "a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            if new:
                writer.writeheader()
            for row in summary_rows(records, plan):
                writer.writerow({k: round(v, 3) if isinstance(v, float) else v for k, v in (row | fixed).items()})

    def _truth(self, sam: Sam) -> dict[str, torch.Tensor]:
        """What an oracle router is given for each dev image, by `digest`."""
        side, truth = sam.image_encoder.img_size, {}
        for image in self.images:
            frame = torch.zeros(len(image.annotations), side, side, dtype=torch.bool)
            for number, annotation in enumerate(image.annotations):
                mask = torch.from_numpy(in_frame(annotation.mask(), side))
                frame[number, : mask.shape[0], : mask.shape[1]] = mask
            pixels = read_photo(self.data / "images" / image.file_name, image)
            truth[digest(pixels)] = ablations.boundary_scores(frame, sam.image_encoder.config.side)
        return truth


def measure_times(study: Study, path: Path, names: Sequence[str], runs: int = 15) -> None:
    """Encoder time of untrained cells, batch 1, float32, interleaved, into a CSV: weights do not change it."""
    image = torch.rand(1, 3, *2 * (load_sam(study.teacher_path).image_encoder.img_size,))
    models = []
    for name in names:
        cell = CELLS[name]
        if computes_like_base(name):
            continue
        teacher = load_sam(study.teacher_path)
        sam = cell.build(teacher, convert_sam(teacher, **cell.convert)).eval()
        models += [(name, ratio, sam.image_encoder) for ratio in cell.ratios]

    def encode(encoder: torch.nn.Module, ratio: float) -> None:
        encoder.keep_ratio = ratio
        encoder(image)

    with torch.inference_mode():
        times = measure(
            [partial(timed, partial(encode, encoder, ratio)) for _, ratio, encoder in models], runs, warmup=2
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("cell", "keep_ratio", "median_ms", "min_ms", "max_ms", "runs", "threads", "torch"))
        for (name, ratio, _), values in zip(models, times, strict=True):
            figures = (round(1e3 * value, 2) for value in (median(values), min(values), max(values)))
            writer.writerow((name, ratio, *figures, runs, torch.get_num_threads(), torch.__version__))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, or a part of it."""
    parser = ArgumentParser(prog="study.py", description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=Path("checkpoints/vit_mini.safetensors"))
    parser.add_argument("--data", type=Path, help="folder with train.json, dev.json and images/")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of states (runs/study)")
    parser.add_argument("--table", type=Path, default=Path("docs/results/study.csv"))
    parser.add_argument("--times", type=Path, default=Path("docs/results/study_times.csv"))
    parser.add_argument("--page", type=Path, default=Path("docs/study.md"))
    parser.add_argument("--steps", type=int, default=80, help="of every cell (80)")
    parser.add_argument("--limit", type=int, help="dev images (all)")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS), metavar="CELL")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--measure-times", action="store_true", help="only the encoders' times, into --times")
    what.add_argument("--report", action="store_true", help="only tables and plots, from the CSVs into --page")
    run_cli("study.py", _run, parser.parse_args(argv))


def _run(args: argparse.Namespace) -> None:
    if args.report:
        write_report(args.table, args.times, args.page)
        return
    if args.data is None:
        raise InputError("--data is missing: the folder with train.json, dev.json and images/")
    study = Study(args.teacher, args.data, args.runs, args.table, args.steps, args.limit)
    if args.measure_times:
        measure_times(study, args.times, args.cells)
    else:
        study.run(args.cells)
