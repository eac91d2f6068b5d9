"""`sam-bigltl train --task classify`: a big.LITTLE classifier, from labels, from a ViT, or both."""

from __future__ import annotations

import argparse
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from ..convert.classifiers import KeyValues, add_model_arguments, data_config, open_classifier, save_classifier
from ..data.labelled import LabelledImages, Transformed, collate, open_dataset
from ..data.skipped import Unreadable
from ..data.workers import load
from ..errors import InputError
from ..evaluation.imagenet import count_correct, inference_transform
from ..fast.devices import parse_device
from ..training.classify import Classification, ClassifyConfig, LabelledBatches
from ..training.curve import plot_log
from . import flag_checks

EXAMPLES = """examples:
  sam-bigltl train --task classify --data-dir imagenet/train --val-dir imagenet/val \\
      --model deit_small_patch16_224 --convert --checkpoint deit_small.pth \\
      --teacher deit_small_patch16_224 --teacher-checkpoint deit_small.pth --keep-ratio-range 0.2 1 \\
      --steps 25000 --batch-size 256 --lr 1e-4 --auto-augment rand-m9-mstd0.5 --mixup 0.8 --cutmix 1.0 \\
      --output runs/small
  sam-bigltl train --task classify --data-dir photos/train --backbone checkpoints/bigltl_mini.safetensors \\
      --steps 500 --output runs/probe
"""

_HELP = {
    "steps": "steps in all", "batch_size": "images a step", "lr": "peak learning rate", "warmup": "steps of warm-up",
    "final_lr": "share of the peak at the end", "weight_decay": "weight decay", "clip": "largest gradient norm",
    "ema": "decay of the averaged weights that are saved; 0 for none", "seed": "of every random choice",
    "workers": "processes that read images", "save_every": "steps between states",
    "log_every": "steps between log rows", "val_every": "steps between validations; 0: at the end only",
    "color_jitter": "of timm's augmentation",
    "erase": "probability of random erasing", "hflip": "probability of a mirrored image; 0 for text and digits",
    "mixup": "alpha; 0 for none", "cutmix": "alpha; 0 for none",
    "smoothing": "of the labels", "label_weight": "weight of the labels' loss",
    "feature_weight": "of 1 - cosine to the teacher's tokens",
    "logit_weight": "of the cross-entropy with the teacher's probabilities", "temperature": "of these probabilities",
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `train --task classify`."""
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--task", choices=["masks", "classify"], help="what to train (masks)")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="DIR",
                        help="a folder with one folder a class, or the root of --dataset")  # fmt: skip
    parser.add_argument("--val-dir", type=Path, metavar="DIR", help="the same, to validate on")
    parser.add_argument("--dataset", default="", metavar="NAME", help="of timm's create_dataset, such as torch/cifar10")
    parser.add_argument("--split", default="train", help="of --dataset (train)")
    parser.add_argument("--val-split", default="validation", help="of --dataset (validation)")
    parser.add_argument("--val-images", type=int, default=2000, help="images to validate on, evenly spaced (2000)")
    add_model_arguments(parser)
    parser.add_argument("--convert", action="store_true", help="--model is a plain ViT: make a big.LITTLE one of it")
    parser.add_argument("--teacher", metavar="NAME", help="a model of timm's registry to distil from")
    parser.add_argument("--teacher-kwargs", nargs="*", default={}, action=KeyValues, metavar="KEY=VALUE",
                        help="for timm.create_model")  # fmt: skip
    parser.add_argument("--teacher-checkpoint", type=Path, metavar="CKPT", help="its weights")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--device", help="such as cpu or cuda:0 (cuda if there is one, else cpu)")
    defaults = {field.name: field for field in fields(ClassifyConfig)}
    for name, text in _HELP.items():
        kind = int if "int" in str(defaults[name].type) else float
        if name == "steps":
            parser.add_argument("--steps", type=int, required=True, help=text)
        else:
            default = defaults[name].default
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default, help=f"{text} ({default:g})")
    parser.add_argument("--auto-augment", metavar="POLICY", help="of timm, such as rand-m9-mstd0.5")
    parser.add_argument("--scale", type=float, nargs=2, default=(0.5, 1.0), metavar=("LOW", "HIGH"),
                        help="share of the image's area in a training crop (0.5 1)")  # fmt: skip
    parser.add_argument(
        "--keep-ratios", type=float, nargs="+", default=[1.0], metavar="R", help="drawn one a step (1.0)"
    )
    parser.add_argument("--keep-ratio-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="draw from it instead")
    parser.add_argument("--optimizer", default="adamw", metavar="NAME", help="of timm (adamw)")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16", help="(bfloat16)")


class Validation:
    """Top-1 and top-5 on some images, at each keep ratio, with given weights.

    Attributes:
        unreadable: images that cannot be read.
    """

    def __init__(self, model: nn.Module, dataset: LabelledImages, count: int, ratios: list[float]) -> None:
        chosen = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().int().tolist()
        self.images = Subset(Transformed(dataset, inference_transform(model)), chosen)
        self.model, self.ratios, self.unreadable = model, ratios, Unreadable(len(chosen))

    def __call__(self, weights: dict[str, Tensor]) -> list[dict]:
        """Rows with keep_ratio, top1, top5 (percent) and images (that could be read).

        Raises InputError where too few could.
        """
        model = self.model
        before = {name: value.clone() for name, value in model.state_dict().items()}
        training, device = model.training, next(model.parameters()).device
        model.load_state_dict(weights)
        model.eval()
        rows = []
        try:
            for images, labels, skipped in load(self.images, 0, 1, batch_size=64, collate=collate):
                self.unreadable.add(skipped)
                rows.append(count_correct(model, images, labels, self.ratios, device))
        finally:  # an interrupt saves the model as it was
            model.load_state_dict(before)
            model.train(training)
        sums = [[sum(column) for column in zip(*each)] for each in zip(*rows)]
        return [
            {"keep_ratio": ratio, "top1": round(100 * one / n, 3), "top5": round(100 * five / n, 3), "images": n}
            for ratio, (n, one, five, _) in zip(self.ratios, sums)
        ]


def run(args: argparse.Namespace) -> None:
    """Train, then write weights, curve and validation; exit with code 1 if images could not be read.

    Raises InputError.
    """
    _check(args)
    device = parse_device(args.device)
    torch.manual_seed(args.seed)
    dataset = open_dataset(args.dataset, args.data_dir, args.split)
    classes = args.num_classes or dataset.classes
    if classes is None:
        raise InputError(f"dataset {args.dataset} does not tell its classes: give --num-classes")
    start = None if args.resume and not args.backbone else args.checkpoint
    model = open_classifier(args.model, classes, args.model_kwargs, start, args.backbone, args.convert).to(device)
    teacher = None
    if args.teacher:
        teacher = open_classifier(args.teacher, classes, args.teacher_kwargs, args.teacher_checkpoint).to(device)
        if args.feature_weight and (args.backbone or teacher.num_features != model.num_features):
            raise InputError(f"tokens of {args.teacher} have another width than the student's: give --feature-weight 0")
    config = ClassifyConfig(
        **{name: getattr(args, name) for name in _HELP},
        auto_augment=args.auto_augment, scale=tuple(args.scale), keep_ratios=tuple(args.keep_ratios),
        keep_ratio_range=tuple(args.keep_ratio_range) if args.keep_ratio_range else None,
        optimizer=args.optimizer, precision=args.precision, head_only=bool(args.backbone),
    )  # fmt: skip
    batches = LabelledBatches(dataset, data_config(model), classes, config)
    validate = None
    if args.val_dir:
        routed = not getattr(getattr(model, "image_encoder", model), "is_dense", True)
        validate = Validation(
            model, open_dataset(args.dataset, args.val_dir, args.val_split, dataset.labels), args.val_images,
            [1.0, 0.5, 0.25] if routed else [1.0],
        )  # fmt: skip
    trainer = Classification(model, batches, config, args.output, teacher, validate)
    if args.resume:
        trainer.resume()
    trainer.run()
    save_classifier(model, trainer.averaged(), args.output / "model.safetensors")
    plot_log(args.output)
    print(f"wrote {args.output / 'model.safetensors'} after {trainer.step} steps, {trainer.seconds:.0f} s of training")
    unreadable = trainer.unreadable
    if validate is not None:
        unreadable.total += validate.unreadable.total
        unreadable.reasons |= validate.unreadable.reasons
    unreadable.finish("sam-bigltl train", args.output / "skipped.csv", "the model is written")


def _check(args: argparse.Namespace) -> None:
    if find_spec("matplotlib") is None:  # before the work, not at its end
        raise InputError("training draws its curve with matplotlib: pip install matplotlib")
    counts, above_zero = ("steps", "batch_size", "save_every", "log_every"), ("lr", "clip", "temperature")
    flag_checks.at_least_one(args, (*counts, "val_images"))
    flag_checks.not_negative(args, (name for name in _HELP if name not in counts + above_zero))
    flag_checks.positive(args, above_zero)
    flag_checks.below_one(args, ("ema", "smoothing"))
    flag_checks.probability(args, ("erase", "hflip"))
    if not 0 < args.scale[0] <= args.scale[1] <= 1:
        raise InputError(f"--scale is two shares in (0, 1], the lower first, not {args.scale[0]:g} {args.scale[1]:g}")
    for ratio in [*args.keep_ratios, *(args.keep_ratio_range or ())]:
        if not 0 < ratio <= 1:
            raise InputError(f"keep ratios are in (0, 1], not {ratio:g}")
    if args.teacher_checkpoint and not args.teacher:
        raise InputError("--teacher-checkpoint needs a --teacher")
    if args.teacher and args.teacher_checkpoint is None:
        raise InputError("a --teacher with random weights teaches nothing: give --teacher-checkpoint")
    if not args.resume and (args.output / "state.pt").exists():
        raise InputError(f"{args.output} holds a run already: continue it with --resume, or choose another --output")
