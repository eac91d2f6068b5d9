"""The study of docs/study.md: what routing is worth where the transformer does the work, against its rivals.

Cells that the table has are skipped, and an interrupted cell goes on, so that the study can run in pieces.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as coco_mask
from segment_anything.modeling import Sam
from torch import Tensor

from sam_bigltl.convert import convert_sam, load_sam, save_sam
from sam_bigltl.convert.sam import LITTLE_PATH
from sam_bigltl.convert.warm_start import Recipe, warm_start
from sam_bigltl.convert.weight_files import weights_sha256
from sam_bigltl.data.coco import check_image_files, read_coco
from sam_bigltl.data.sources import first_photos, open_source
from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.evaluation.journal import ImageRecord
from sam_bigltl.evaluation.results import InstanceResult
from sam_bigltl.evaluation.runner import Plan, evaluate, summary_rows
from sam_bigltl.fast.choice import formats
from sam_bigltl.predict.predictor import SamPredictor
from sam_bigltl.training.loop import TrainConfig, make_batches

from .cells import CELLS, Cell, Material, worth_of
from .crop_distill import CropObjective, crop_trainer

COCO = {"cocomini", "cocotiny", "coco128", "tinycoco", "cocolightly"}  # sources that hold COCO's photographs
OTHERS = 5  # of the other photographs of dev one in so many
FITTED = 40  # photographs of the closed-form start
TRAINING = dict(
    batch_size=8, prompts=1, optimizer="muon", lr=3e-4, final_lr=0.02, warmup=6, ema=0.93, balance="source",
    scale=(0.5, 1.3), as_is=0.3, train_decoder=False, workers=0, save_every=20, log_every=5,
)  # fmt: skip
COLUMNS = ("teacher", "cell", "seed", "steps", "keep_ratio", "prompt", "clicks", "all", "small", "medium", "large",
           "agreement", "instances", "train_seconds")  # fmt: skip
PHOTO_COLUMNS = (*COLUMNS[:7], "sums", "agreement_sums")
INSTANCES = "instances"  # the row of *_photos.csv with the number of masks of each photograph
KEY = ("cell", "seed", "steps")


@dataclass(frozen=True)
class Job:
    """A cell, a repetition of it, and how long it trains; 0 steps are the closed-form start, or no training."""

    name: str
    seed: int
    steps: int


class Study:
    """The cells over one teacher.

    Args:
        teacher: path of the dense model.
        data: folder with train.json, dev.json and images/, and perhaps train_2.json.
        runs: folder of states.
        table: the CSV of mIoU; beside it `*_photos.csv` gets the sums of IoU by photograph.
        limit: dev images, or None for all that the study uses.
        clicks: at which a prompt by clicks is scored; the teacher's masks are compared at the first click alone, since
            later ones fall into each model's own errors.
        precision: of the training, see `LoopConfig`.
    """

    def __init__(
        self, teacher: Path, data: Path, runs: Path, table: Path, limit: int | None = None,
        clicks: tuple[int, ...] = (1,), precision: str = "float32",
    ) -> None:  # fmt: skip
        self.path, self.data, self.runs, self.table = teacher, data, runs, table
        self.clicks, self.precision = clicks, precision
        self.photos = table.with_name(f"{table.stem}_photos.csv")
        images, _ = read_coco(data / "dev.json", folder=data / "images")
        chosen = [image for index, image in enumerate(images) if image.source in COCO or index % OTHERS == 0]
        self.images = chosen[:limit]
        check_image_files(self.images, data / "images")
        self.train = [path for path in (data / "train.json", data / "train_2.json") if path.exists()]
        self.mark = weights_sha256(teacher)[:12]

    def run(self, jobs: Sequence[Job]) -> None:
        """Run what is missing of these, in their order."""
        teachers = self.table.with_name("study_teachers.csv")
        if not teachers.exists() or self.mark not in teachers.read_text():
            append_rows(teachers, ("model", "teacher"), [{"model": self.path.stem, "teacher": self.mark}])
        for job in jobs:
            if (job.name, str(job.seed), str(job.steps)) in self._done():
                continue
            if job.name == "shipped" and self.path.stem != "vit_mini":
                continue  # it is another teacher's student
            began = time.perf_counter()
            cell = CELLS[job.name]
            sam, seconds = self._trained(cell, job)
            self._score(cell, job, sam, seconds)
            print(f"{job.name} seed {job.seed} steps {job.steps}: {time.perf_counter() - began:.0f} s", flush=True)

    def _done(self) -> set[tuple[str, ...]]:
        if not self.table.exists():
            return set()
        with open(self.table, newline="") as file:
            return {tuple(row[key] for key in KEY) for row in csv.DictReader(file) if row["teacher"] == self.mark}

    def config(self, cell: Cell, job: Job) -> TrainConfig:
        """How a cell is trained: the same for all but for the keep ratios."""
        crop = load_sam(self.path).image_encoder.img_size // 2
        return TrainConfig(
            **TRAINING, steps=job.steps, seed=job.seed, crop=crop, keep_ratios=cell.drawn, precision=self.precision
        )

    @cached_property
    def crops(self) -> list[dict[str, Tensor]]:
        """Six batches of the training photographs, with masks; no cell is trained on them."""
        config = self.config(CELLS["teacher"], Job("", 1000, 1))
        batches = make_batches(self.train, self.data / "images", load_sam(self.path), config)
        return [batches[step] for step in range(6)]

    @cached_property
    def worth(self) -> list[int]:
        """The teacher's layers, the least valuable first; found once, kept in `runs`."""
        path = self.runs / f"{self.mark}_worth.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(worth_of(load_sam(self.path), self.crops)))
        return json.loads(path.read_text())

    def material(self, cell: Cell, seed: int = 0, fit: bool = True) -> Material:
        """What a cell is made of; a repetition is fitted to photographs of its own.

        Args:
            fit: False leaves the little path as it is converted, for what does not depend on it.
        """
        teacher = load_sam(self.path)
        if fit and cell.drawn != (1.0,):
            student = self._fitted(cell, seed)
        else:
            student = convert_sam(teacher, **cell.convert)
        return Material(teacher, student, self.worth, self.crops)

    def _fitted(self, cell: Cell, seed: int) -> Sam:
        """The teacher converted, its little path fitted in closed form; made once, kept in `runs`."""
        name = "_".join(f"{key}-{value}" for key, value in sorted(cell.convert.items())) or "default"
        name += "" if cell.recipe is None else f"_units-{cell.recipe.units}"
        name += f"_{seed}" if seed else ""
        path = self.runs / f"{self.mark}_fitted_{name}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            student = convert_sam(load_sam(self.path), **cell.convert)
            source = open_source(str(self.train[0]), self.data / "images")
            photos = first_photos(student, source, FITTED, seed)
            warm_start(student, photos, progress=False, recipe=cell.recipe or Recipe())
            path.parent.mkdir(parents=True, exist_ok=True)
            save_sam(student, path)
        return load_sam(path)

    def _trained(self, cell: Cell, job: Job) -> tuple[Sam, float]:
        """The cell's model, and the seconds that its training took."""
        sam = cell.build(self.material(cell, job.seed))
        torch.manual_seed(job.seed)
        if not job.steps or job.name == "teacher":
            return sam.eval(), 0.0
        for name, parameter in sam.image_encoder.named_parameters():
            left_alone = cell.little_only and not LITTLE_PATH.match(name)
            if left_alone or (".router." in name and (cell.fixed_router or cell.little_only)):
                parameter.requires_grad_(False)
        teacher = load_sam(self.path)
        teacher.image_encoder.optimize()
        objective = CropObjective(sam, teacher, cell.cosine_only)
        output = self.runs / f"{self.mark}_{job.name.replace(' ', '_')}_{job.seed}_{job.steps}"
        trainer = crop_trainer(
            sam, objective, self.train, self.data / "images", self.config(cell, job), output, teacher
        )
        if trainer.state_path.exists():
            trainer.resume()
        trainer.run()
        sam.load_state_dict(trainer.averaged())
        return sam.eval(), trainer.seconds

    def _score(self, cell: Cell, job: Job, sam: Sam, seconds: float) -> None:
        torch.manual_seed(job.seed)
        records, rows = self.predicted(sam, cell.ratios)
        theirs = self._teachers_masks()
        sums: dict[tuple, dict[Any, float]] = defaultdict(lambda: defaultdict(float))
        agreed: dict[tuple, dict[Any, float]] = defaultdict(lambda: defaultdict(float))
        sizes = {image.id: image.size for image in self.images}
        for result in (result for record in records for result in record.results):
            key, image = (result.keep_ratio, result.prompt, result.clicks), result.image_id
            sums[key][image] += result.iou
            if result.clicks <= 1:
                agreed[key][image] += _iou(result.counts, theirs[_name(result)], sizes[image])
        for row in rows:
            if found := agreed.get((row["keep_ratio"], row["prompt"], row["clicks"])):
                row["agreement"] = 100 * sum(found.values()) / row["instances"]
        fixed = {"teacher": self.mark, "cell": job.name, "seed": job.seed, "steps": job.steps}
        rows = [row | fixed | {"train_seconds": round(seconds, 1)} for row in rows]
        append_rows(self.table, COLUMNS, [{k: _rounded(v) for k, v in row.items()} for row in rows])
        if not self.photos.exists():
            counts = " ".join(str(len(image.annotations)) for image in self.images)
            append_rows(self.photos, PHOTO_COLUMNS, [{"cell": INSTANCES, "sums": counts}])
        photos = [
            fixed | {"keep_ratio": key[0], "prompt": key[1], "clicks": key[2]}
            | {
                name: " ".join(f"{found[key].get(image.id, 0.0):.4f}" for image in self.images)
                for name, found in (("sums", sums), ("agreement_sums", agreed)) if key in found
            }
            for key in sums
        ]  # fmt: skip
        append_rows(self.photos, PHOTO_COLUMNS, photos)

    def predicted(self, sam: Sam, ratios: Sequence[float]) -> tuple[list[ImageRecord], list[dict[str, Any]]]:
        """Every mask of a model from a box and from clicks, and the summary."""
        if ("float32", True) in formats(sam.device):  # quicker, and the same to 1e-5
            sam.image_encoder.compute_in("float32", True)
        plan = Plan(keep_ratios=tuple(ratios), prompts=("box", "point"), clicks=self.clicks)
        records = evaluate(SamPredictor(sam), self.images, self.data / "images", plan, progress=False)
        return records, summary_rows(records, plan)

    def _teachers_masks(self) -> dict[str, str]:
        """The teacher's own masks as RLE by "annotation prompt"; made once, kept in `runs`."""
        path = self.runs / f"{self.mark}_masks_{len(self.images)}.json"
        if not path.exists():
            records, _ = self.predicted(load_sam(self.path), (1.0,))
            results = (result for record in records for result in record.results if result.clicks <= 1)
            masks = {_name(result): result.counts for result in results}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(masks))
        return json.loads(path.read_text())


def _name(result: InstanceResult) -> str:
    return f"{result.image_id} {result.annotation_id} {result.prompt}"


def _iou(ours: str, theirs: str, size: tuple[int, int]) -> float:
    """IoU of two masks as RLE; two empty ones agree."""
    first, second = ({"size": list(size), "counts": counts} for counts in (ours, theirs))
    if coco_mask.area(first) == coco_mask.area(second) == 0:
        return 1.0
    return float(coco_mask.iou([first], [second], [0])[0, 0])


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def append_rows(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Add rows to a CSV, with its header where it is new; keys that are no column are left out."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def jobs_of(names: Sequence[str], steps: int, seeds: int | None = None) -> list[Job]:
    """All cells once, then the repetitions; what neither fits nor trains anything has none."""
    found = []
    for seed in range(max(CELLS[name].seeds for name in names) if seeds is None else seeds):
        for name in names:
            cell = CELLS[name]
            chance = name not in ("teacher", "shipped") and (steps or cell.drawn != (1.0,))
            if seed < ((cell.seeds if seeds is None else seeds) if chance else 1):
                found.append(Job(name, seed, 0 if name == "teacher" else steps))
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Run the study, or a part of it."""
    from . import layer_worth, study_report, study_times

    parser = ArgumentParser(prog="study.py", description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=Path("checkpoints/vit_mini_plain.safetensors"))
    parser.add_argument("--data", type=Path, help="folder with train.json, dev.json and images/")
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of states (runs/study)")
    parser.add_argument("--table", type=Path, default=Path("docs/results/study.csv"))
    parser.add_argument("--steps", type=int, default=40, help="of training; 0 for none (40)")
    parser.add_argument("--seeds", type=int, help="repetitions of each cell (as the cells say)")
    parser.add_argument("--limit", type=int, help="dev images (all that the study uses)")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1], metavar="N", help="clicks to score at (1)")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of training (float32)")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS), metavar="CELL")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--layers", action="store_true", help="only what each layer is worth")
    what.add_argument("--times", action="store_true", help="only the encoders' times; on a quiet machine")
    what.add_argument("--sam-times", action="store_true", help="only times at SAM ViT-B's size")
    what.add_argument("--report", action="store_true", help="only the tables and the figure of docs/study.md")
    args = parser.parse_args(argv)

    def run(args: argparse.Namespace) -> None:
        if args.report:
            study_report.write_report(args.table.parent, Path("docs/study.md"))
        elif args.sam_times:
            study_times.measure_sam(args.table.parent / "study_times_sam.csv")
        elif args.data is None:
            raise InputError("--data is missing: the folder with train.json, dev.json and images/")
        else:
            study = Study(
                args.teacher, args.data, args.runs, args.table, args.limit, tuple(args.clicks), args.precision
            )
            if args.layers:
                layer_worth.run(study, args.table.parent / "study_layers.csv")
            elif args.times:
                study_times.measure_cells(study, args.cells, args.table.parent / "study_times.csv")
            else:
                study.run(jobs_of(args.cells, args.steps, args.seeds))

    run_cli("study.py", run, args)
