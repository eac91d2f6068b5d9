"""`sam-bigltl train`: a dense or big.LITTLE Sam from masks in COCO format, with or without a teacher."""

from __future__ import annotations

import argparse
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import torch
from segment_anything.modeling import Sam

from ..convert.registry import sam_model_registry
from ..convert.sam import convert_sam, describe, load_sam, save_sam
from ..convert.warm_start import warm_start
from ..data.photos import preprocessed
from ..errors import InputError
from ..modeling.mobile_stem import MobileStem
from ..modeling.registry import ENCODERS
from ..training.curve import plot_log
from ..training.loop import TrainConfig, Trainer, make_batches
from ..training.pretrained import lite0_weights, load_pretrained_stem
from ..training.processes import join_processes
from ..training.validation import Validation
from . import flag_checks

EXAMPLES = """\
examples:
  a dense model from nothing, on crops of half the side (four times as many images a second), then on whole frames:
    sam-bigltl train --model vit_mini --data train.json --images images --val dev.json \\
        --crop 224 --steps 2000 --output runs/crops
    sam-bigltl train --model vit_mini --init runs/crops/model.safetensors --data train.json --images images \\
        --val dev.json --batch-size 8 --lr 3e-4 --steps 1000 --output runs/dense
  a big.LITTLE model, converted from it, fitted in closed form and distilled:
    sam-bigltl train --model bigltl_mini --teacher runs/dense/model.safetensors --distill-weight 1 \\
        --keep-ratios 1.0 0.5 0.25 --data train.json --images images --val dev.json --steps 500 --output runs/little

The output folder gets model.safetensors (averaged weights), log.csv, val.csv, curve.png, and state.pt, from which
--resume continues exactly."""

_HELP = {
    "steps": "optimizer steps in all, from which the learning rate's schedule is made",
    "until": "end after this many of them; 0 is all",
    "batch_size": "images a step",
    "prompts": "masks an image",
    "crop": "side of the training crops, pixels (the whole frame)",
    "as_is": "share of the images at exactly the scale of inference",
    "box_share": "share of boxes among single prompts; the others are points",
    "box_jitter": "share of the boxes that are jittered",
    "rounds": "most rounds of prompts: after the first, clicks into the error of the mask, which is fed back",
    "round_prompts": "masks an image in the rounds after the first",
    "paste": "share of the crops that get an object of another photograph",
    "degrade": "share of the crops that are blurred, compressed or noisy",
    "lr": "peak learning rate",
    "final_lr": "share of the peak that the cosine ends at",
    "warmup": "steps of linear warm-up",
    "weight_decay": "of matrices and kernels",
    "stem_lr": "share of the learning rate for a pretrained stem",
    "clip": "norm that gradients are clipped to",
    "distill_weight": "weight of the embedding loss to the teacher",
    "ema": "decay of the averaged weights; 0 for none",
    "seed": "of weights, batches and keep ratios",
    "workers": "processes that make batches",
    "save_every": "steps between states on disk",
    "log_every": "steps a row of log.csv",
    "val_every": "steps between validations; 0 is at the end only",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `train`."""
    parser.add_argument(
        "--task", choices=["masks", "classify"], help="what to train: see `train --task classify --help` (masks)"
    )
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        nargs="+",
        metavar="JSON",
        help="masks to train on, COCO format; several add up",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of their images")
    parser.add_argument(
        "--balance",
        choices=["source"],
        help="draw each `source` of the JSON as the square root of its photographs (all alike)",
    )
    parser.add_argument("--ignore-exif", action="store_true", help="read images as they are stored, as their masks do, "
                        "not turned as EXIF says")  # fmt: skip
    parser.add_argument("--val", type=Path, metavar="JSON", help="masks to validate on (protocol A, box and 1 click)")
    parser.add_argument("--val-images", type=int, default=48, help="images of them, evenly spaced (48)")
    parser.add_argument("--model", required=True, choices=sorted(ENCODERS), help="what to train")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, metavar="CKPT", help="weights to start from")
    start.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--teacher", type=Path, metavar="CKPT", help="dense model to convert and distil from")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--device", help="such as cpu or cuda:0 (cuda if there is one, else cpu)")
    defaults = {field.name: field for field in fields(TrainConfig)}
    for name, text in _HELP.items():
        kind = int if "int" in str(defaults[name].type) else float
        default = None if name == "crop" else defaults[name].default
        required = name == "steps"
        note = "" if required or name == "crop" else f" ({default:g})"
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, required=required, help=text + note,
            default=None if required else default,
        )  # fmt: skip
    parser.add_argument(
        "--keep-ratios", type=float, nargs="+", default=[1.0], metavar="R", help="drawn one a step (1.0)"
    )
    parser.add_argument(
        "--scale", type=float, nargs=2, default=(0.5, 1.5), metavar=("LOW", "HIGH"), help="random scale (0.5 1.5)"
    )
    parser.add_argument(
        "--sharpen-positions", action="store_true",
        help="multiply a quarter of the frequencies of SAM's position encoding by 3 and another by 7 before training, "
        "so that a small model tells neighbouring tokens apart; once, at the start of a model's training",
    )  # fmt: skip
    parser.add_argument("--freeze-decoder", action="store_true", help="train the image encoder only")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="adamw", help="(adamw)")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="(bfloat16)")
    parser.add_argument("--compile", action="store_true", help="torch.compile; on two CPU cores it did not pay")


def run(args: argparse.Namespace) -> None:
    """Train, then write weights, curve and validation."""
    _check(args)
    processes, device = join_processes(args.device)
    torch.manual_seed(args.seed)
    teacher = load_sam(args.teacher).to(device) if args.teacher else None
    sam = _student(args, teacher).to(device)
    if args.sharpen_positions and not args.resume:
        sharpen_positions(sam)
    if teacher is not None:
        sizes = [(m.image_encoder.img_size, m.image_encoder.config.out_chans) for m in (sam, teacher)]
        if sizes[0] != sizes[1]:
            kind = describe(teacher.image_encoder.config)
            raise InputError(f"{args.teacher} cannot teach a {args.model}: {kind} has embeddings of another size")
    config = TrainConfig(
        **{name: getattr(args, name) for name in _HELP if name != "crop"},
        crop=sam.image_encoder.img_size if args.crop is None else args.crop,
        keep_ratios=tuple(args.keep_ratios),
        scale=tuple(args.scale),
        balance=args.balance,
        train_decoder=not args.freeze_decoder,
        optimizer=args.optimizer,
        precision=args.precision,
        compile=args.compile,
    )
    for ratio in config.keep_ratios:
        sam.image_encoder.keep_ratio = ratio  # checks it
    batches = make_batches(args.data, args.images, sam, config, args.ignore_exif)
    if processes.is_main_process:
        print(f"training {batches.usage}", flush=True)
    validate = None
    if args.val:
        validate = Validation(sam, args.val, args.images, args.val_images, config.keep_ratios, args.ignore_exif)
        if processes.is_main_process:
            print(f"validation {validate.usage}", flush=True)
    trainer = Trainer(sam, batches, config, args.output, teacher, validate)
    if args.resume:
        trainer.resume()
    trainer.run()
    if not processes.is_main_process:
        return
    sam.load_state_dict(trainer.averaged())
    save_sam(sam, args.output / "model.safetensors")
    plot_log(args.output)
    print(f"wrote {args.output / 'model.safetensors'} after {trainer.step} steps, {trainer.seconds:.0f} s of training")


@torch.no_grad()
def sharpen_positions(sam: Sam) -> None:
    """Multiply the third quarter of the random frequencies of SAM's position encoding by 3 and the last by 7, in place.

    As they come, the encodings of neighbouring tokens have a cosine of 0.9 on a grid of 28 tokens, and a box is no
    sharper than that to the decoder until much training has undone it.
    """
    frequencies = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix  # (2, C / 2)
    quarter = frequencies.shape[1] // 4
    frequencies[:, 2 * quarter : 3 * quarter] *= 3
    frequencies[:, 3 * quarter :] *= 7


def _check(args: argparse.Namespace) -> None:
    if find_spec("matplotlib") is None:  # before the work, not at its end
        raise InputError("training draws its curve with matplotlib: pip install matplotlib")
    flag_checks.at_least_one(
        args, ("steps", "batch_size", "prompts", "rounds", "round_prompts", "save_every", "log_every", "val_images")
    )
    if not 0 < args.scale[0] <= args.scale[1] < float("inf"):
        raise InputError(f"--scale is two positive numbers, the lower first, not {args.scale[0]:g} {args.scale[1]:g}")
    names = ("until", "seed", "workers", "warmup", "val_every", "weight_decay", "final_lr", "distill_weight", "stem_lr")
    flag_checks.not_negative(args, names)
    flag_checks.positive(args, ("lr", "clip"))
    if not args.resume and (args.output / "state.pt").exists():
        raise InputError(f"{args.output} holds a run already: continue it with --resume, or choose another --output")
    if args.distill_weight and not args.teacher:
        raise InputError("--distill-weight needs a --teacher")
    for name in ("as_is", "box_share", "box_jitter", "paste", "degrade"):
        if not 0 <= getattr(args, name) <= 1:
            raise InputError(f"{flag_checks.flag(name)} is a share in [0, 1], not {getattr(args, name):g}")
    flag_checks.below_one(args, ("ema",))


def _student(args: argparse.Namespace, teacher: Sam | None) -> Sam:
    """The model to train: from a file, from the teacher, or new."""
    if args.init:
        return load_sam(args.init, args.model)
    if teacher is None or args.resume:
        sam = sam_model_registry[args.model]()
        if isinstance(sam.image_encoder.patch_embed, MobileStem) and not args.resume:
            load_pretrained_stem(sam.image_encoder.patch_embed, lite0_weights())
        return sam
    sam = convert_sam(teacher)
    if sam.image_encoder.config != ENCODERS[args.model]:
        kind = describe(teacher.image_encoder.config)
        raise InputError(f"a {args.model} cannot be converted from {kind}: give its start with --init")
    print("warm start: fitting the little path to the teacher in closed form", flush=True)
    warm_start(sam, preprocessed(sam, args.images, count=48, seed=args.seed))
    return sam
