"""`sam-bigltl distill`: a big.LITTLE student from a SAM, on photographs with or without masks."""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from segment_anything.modeling import Sam

from ..convert.registry import sam_model_registry
from ..convert.sam import convert_sam, describe, load_sam, save_sam
from ..convert.warm_start import warm_start
from ..data.sources import Source, first_photos, open_source
from ..errors import InputError
from ..modeling.registry import ENCODERS
from ..training.cache import EmbeddingCache
from ..training.curve import plot_log
from ..training.distill import DistillConfig, Distiller, fill_cache, fingerprint
from ..training.processes import join_processes
from ..training.validation import Validation
from . import flag_checks

EXAMPLES = """\
examples:
  SAM's ViT-B to bigltl_b on shards of SA-1B, embeddings first, then masks:
    sam-bigltl distill --teacher sam_vit_b_01ec64.pth --student bigltl_b --data 'sa1b/sa_{000000..000009}.tar' \\
        --stages 1,2 --steps 20000 5000 --batch-size 16 8 --lr 4e-4 1e-4 --output runs/bigltl_b
  the same on 8 GPUs, with ViT-H's embeddings computed once:
    accelerate launch --num_processes 8 -m sam_bigltl.cli distill --teacher sam_vit_h_4b8939.pth --student bigltl_h \\
        --data 'sa1b/sa_{000000..000009}.tar' --cache cache/vit_h --streams 8 --checkpointing --steps 20000 \\
        --output runs/bigltl_h

--output gets stage1/ and stage2/, each with model.safetensors (averaged weights, float32), log.csv, val.csv, curve.png,
skipped.csv and state.pt. The same command with --resume goes on after an interruption, also on another number of
processes, as long as it divides --streams."""

# Flags that are a number for each stage, or one for all: (help, kind).
_STAGED: dict[str, tuple[str, type]] = {
    "steps": ("optimizer steps", int),
    "batch_size": ("images a step, on all processes together", int),
    "lr": ("peak learning rate", float),
    "final_lr": ("share of the peak that the cosine ends at", float),
    "warmup": ("steps of linear warm-up", int),
    "accumulate": ("micro-batches a process and step", int),
}
_SINGLE = {
    "streams": "streams that the photographs are read as; "
    "a multiple of the number of processes, a divisor of the batch",
    "prompts": "objects an image in stage 2",
    "rounds": "corrective points after the first prompt in stage 2",
    "weight_embedding": "of 1 - cosine plus relative squared error of the embedding",
    "weight_layers": "of the tokens after each stage, for a student of the teacher's width",
    "weight_router": "of the router's supervision: tokens that the little path gets wrong are the important ones",
    "weight_masks": "of the masks in stage 2",
    "weight_decay": "of matrices and kernels",
    "clip": "norm that gradients are clipped to",
    "ema": "decay of the averaged weights; 0 for none",
    "seed": "of batches and keep ratios",
    "workers": "processes that read photographs",
    "save_every": "steps between states on disk",
    "log_every": "steps a row of log.csv",
    "val_every": "steps between validations; 0 is at the end only",
}
_DEFAULTS = {"lr": 4e-4, "warmup": 50, "batch_size": 8}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `distill`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--teacher", type=Path, required=True, metavar="CKPT", help="SAM checkpoint, or a dense one of ours"
    )
    parser.add_argument("--student", required=True, choices=sorted(ENCODERS), help="what to train")
    parser.add_argument(
        "--data", required=True, help="COCO-format JSON (with --images), folder of photographs, or tar shards of SA-1B"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the JSON's photographs")
    parser.add_argument(
        "--allow-urls", action="store_true",
        help="--data may be addresses of shards (http:, gs:, ...) or shell commands that write one (pipe:...)",
    )  # fmt: skip
    parser.add_argument("--ignore-exif", action="store_true", help="read the JSON's photographs as they are stored, as "
                        "their masks do, not turned as EXIF says")  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--stages", default="1", help="1, 2 or 1,2 (1)")
    parser.add_argument(
        "--init", type=Path, metavar="CKPT", help="the student's start, instead of the teacher's conversion"
    )
    parser.add_argument(
        "--warm-start",
        type=int,
        default=48,
        metavar="N",
        help="photographs that the little path is fitted to first (48)",
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="compute the teacher's embeddings once, into this folder"
    )
    parser.add_argument("--val", type=Path, metavar="JSON", help="masks to validate on (protocol A, box and 1 click)")
    parser.add_argument("--val-images", type=int, default=48, help="images of them, evenly spaced (48)")
    parser.add_argument("--device", help="such as cpu or cuda:0 (each process its GPU if there is one, else cpu)")
    defaults = {field.name: field.default for field in fields(DistillConfig)} | _DEFAULTS
    for name, (text, kind) in _STAGED.items():
        required = name == "steps"
        parser.add_argument(
            flag_checks.flag(name), type=kind, nargs="+", required=required, metavar="N",
            help=f"{text}, for each stage or once" + ("" if required else f" ({defaults[name]:g})"),
            default=None if required else [defaults[name]],
        )  # fmt: skip
    for name, text in _SINGLE.items():
        kind = type(defaults[name])
        parser.add_argument(
            flag_checks.flag(name), type=kind, default=defaults[name], help=f"{text} ({defaults[name]:g})", metavar="N"
        )
    ratios = parser.add_mutually_exclusive_group()
    ratios.add_argument(
        "--keep-ratios", type=float, nargs="+", default=[1.0, 0.5, 0.25], metavar="R",
        help="one is drawn uniformly for each step (1.0 0.5 0.25)",
    )  # fmt: skip
    ratios.add_argument(
        "--keep-ratio-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="draw log-uniformly between these instead",
    )
    parser.add_argument("--train-decoder", action="store_true", help="train prompt encoder and mask decoder too")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw", help="(adamw)")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="(bfloat16)")
    parser.add_argument("--checkpointing", action="store_true", help="less memory, more time: for bigltl_h")


def run(args: argparse.Namespace) -> None:
    """Distil, stage after stage."""
    stages = _stages(args.stages)
    configs = [_config(args, stage, place, len(stages)) for place, stage in enumerate(stages)]
    _check(args, configs)
    processes, device = join_processes(args.device)
    torch.manual_seed(args.seed)
    source = open_source(args.data, args.images, args.allow_urls, args.ignore_exif)
    if source.usage and processes.is_main_process:
        print(f"training {source.usage}", flush=True)
    if 2 in stages and not source.has_masks:
        raise InputError(
            f"stage 2 prompts with objects, and {args.data} has no masks: use --stages 1, or data with masks"
        )
    teacher = load_sam(args.teacher).to(device)
    names = "\n".join(Path(unit).name for unit in source.units()).encode("utf-8", "surrogatepass")
    mark, data_mark = fingerprint(teacher)[:12], hashlib.sha256(names).hexdigest()[:12]
    student = _student(args, teacher, source).to(device)
    cache = None
    if args.cache:
        cache = fill_cache(args.cache, source, teacher, args.precision)
    validate = None
    if args.val:
        ratios = tuple(args.keep_ratio_range or args.keep_ratios)
        folder = args.images or args.val.parent
        validate = Validation(student, args.val, folder, args.val_images, ratios, args.ignore_exif)
        if processes.is_main_process:
            print(f"validation {validate.usage}", flush=True)
    for config in configs:
        job = _Job(args, student, teacher, source, cache, validate)
        _run_stage(job, replace(config, teacher=mark, data=data_mark))


@dataclass(frozen=True)
class _Job:
    """What the stages share."""

    args: argparse.Namespace
    student: Sam
    teacher: Sam
    source: Source
    cache: EmbeddingCache | None
    validate: Validation | None


def _run_stage(job: _Job, config: DistillConfig) -> None:
    folder = job.args.output / f"stage{config.stage}"
    final = folder / "model.safetensors"
    if not (job.args.resume and final.exists()):
        distiller = Distiller(job.student, job.teacher, job.source, config, folder, job.cache, job.validate)
        if job.args.resume and distiller.state_path.exists():
            distiller.resume()
        distiller.run()
        job.student.load_state_dict(distiller.averaged())
        if distiller.first:
            save_sam(job.student, final)
            plot_log(folder)
            skipped = f"; {len(distiller.skipped)} photographs or shards were skipped, see skipped.csv" * bool(
                distiller.skipped
            )
            print(
                f"wrote {final} after {distiller.step} steps, {distiller.seconds:.0f} s of training{skipped}",
                flush=True,
            )
        distiller.accelerator.wait_for_everyone()
    # From the file also where it was just written, so that an interruption between the stages changes nothing.
    job.student.load_state_dict(load_sam(final).state_dict())


def _stages(text: str) -> list[int]:
    try:
        stages = [int(part) for part in text.split(",")]
    except ValueError:
        stages = []
    if stages not in ([1], [2], [1, 2]):
        raise InputError(f"--stages is 1, 2 or 1,2, not {text}")
    return stages


def _config(args: argparse.Namespace, stage: int, place: int, count: int) -> DistillConfig:
    staged: dict[str, Any] = {}
    for name in _STAGED:
        values = getattr(args, name)
        if len(values) not in (1, count):
            raise InputError(f"{flag_checks.flag(name)} has {len(values)} values for {count} stage{'s' * (count > 1)}")
        staged[name] = values[min(place, len(values) - 1)]
    return DistillConfig(
        stage=stage, **staged, **{name: getattr(args, name) for name in _SINGLE},
        keep_ratios=tuple(args.keep_ratios),
        keep_ratio_range=tuple(args.keep_ratio_range) if args.keep_ratio_range else None,
        train_decoder=args.train_decoder, optimizer=args.optimizer, precision=args.precision,
        checkpointing=args.checkpointing, cached=args.cache is not None,
    )  # fmt: skip


def _check(args: argparse.Namespace, configs: list[DistillConfig]) -> None:
    for config in configs:
        counts = ("steps", "batch_size", "accumulate", "streams", "prompts", "save_every", "log_every")
        flag_checks.at_least_one(config, counts)
        flag_checks.positive(config, ("lr", "clip"))
        flag_checks.not_negative(config, (
            "seed", "workers", "warmup", "rounds", "val_every", "weight_decay", "final_lr", "weight_embedding",
            "weight_layers", "weight_router", "weight_masks",
        ))  # fmt: skip
    low, high = args.keep_ratio_range or (min(args.keep_ratios), max(args.keep_ratios))
    if not 0 < low <= high <= 1:
        raise InputError(f"keep ratios are in (0, 1], the lower first, not {low:g} to {high:g}")
    flag_checks.below_one(args, ("ema",))
    if args.warm_start < 0 or args.val_images < 1:
        raise InputError("--warm-start is not negative and --val-images at least 1")
    if not args.resume and any((args.output / f"stage{config.stage}" / "state.pt").exists() for config in configs):
        raise InputError(f"{args.output} holds a run already: continue it with --resume, or choose another --output")


def _student(args: argparse.Namespace, teacher: Sam, source: Source) -> Sam:
    """The student's start: from a file, converted from the teacher, or new with the teacher's decoder."""
    theirs, wanted = teacher.image_encoder.config, ENCODERS[args.student]
    if theirs.little_dim:
        raise InputError(f"{args.teacher} has a little path: the teacher is a dense model")
    if (theirs.img_size, theirs.out_chans) != (wanted.img_size, wanted.out_chans):
        raise InputError(f"{args.teacher} cannot teach a {args.student}: {describe(theirs)} has other embeddings")
    same = (theirs.dim, theirs.depth) == (wanted.dim, wanted.depth)
    if not same and (args.weight_layers or args.weight_router):
        raise InputError(
            f"--weight-layers and --weight-router need a student of the teacher's width, not a {args.student}"
        )
    if args.init:
        return load_sam(args.init, args.student)
    if same and wanted.little_dim:
        student = convert_sam(teacher)
        if student.image_encoder.config != wanted:
            raise InputError(
                f"a {args.student} cannot be converted from {describe(theirs)}: give its start with --init"
            )
        if args.warm_start and not args.resume:
            first = PartialState().is_main_process
            if first:
                print(
                    f"warm start: fitting the little path to {args.warm_start} photographs in closed form", flush=True
                )
            warm_start(student, first_photos(student, source, args.warm_start, args.seed), progress=first)
        return student
    student = sam_model_registry[args.student]()
    for part in ("prompt_encoder", "mask_decoder"):
        getattr(student, part).load_state_dict(getattr(teacher, part).state_dict())
    return student
