"""Classifiers by name: timm's, this project's, a converted ViT, or a SAM's image encoder with a linear head."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from timm.utils import ParseKwargs
from torch import Tensor, nn

from ..data.files import whole_path
from ..errors import InputError
from ..modeling import classifier  # noqa: F401 - registers this project's models with timm
from .checkpoints import check_tensors, find_weights, load_tensors, read_checkpoint
from .probe import SamClassifier
from .sam import load_sam
from .vit import convert_vit
from .weight_files import join_shards, weight_files


class KeyValues(ParseKwargs):
    """timm's KEY=VALUE option, which says in one line what is wrong with a word."""

    def __call__(self, parser, namespace, values, option_string=None):  # argparse's signature
        if wrong := [value for value in values if value.count("=") != 1]:
            raise argparse.ArgumentError(self, f"{wrong[0]!r} is not KEY=VALUE")
        try:
            super().__call__(parser, namespace, values, option_string)
        except SyntaxError as error:  # of older timm versions, at words that newer ones take for text
            raise argparse.ArgumentError(self, f"{error.text or values!r} is not KEY=VALUE") from None


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what names a classifier."""
    parser.add_argument("--model", default="bigltl_small_patch16_224", metavar="NAME",
                        help="a model of timm's registry, this project's included (default: %(default)s)")  # fmt: skip
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=KeyValues, metavar="KEY=VALUE",
                        help="for timm.create_model, such as img_size=96 depth=6")  # fmt: skip
    parser.add_argument("--backbone", type=Path, metavar="CKPT",
                        help="instead of --model: the image encoder of this SAM (any that load_sam reads), frozen, "
                        "under a linear head")  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=Path, help="weights (.safetensors, .pth, a folder) of the model, or of the probe"
    )
    parser.add_argument("--num-classes", type=int, help="classes (default: those of the data)")


def open_classifier(
    name: str,
    num_classes: int,
    options: dict[str, Any] | None = None,
    checkpoint: Path | None = None,
    backbone: Path | None = None,
    convert: bool = False,
) -> nn.Module:
    """A classifier in eval mode on the CPU.

    Args:
        name: of timm's registry; `options` are for `timm.create_model`.
        checkpoint: its weights; with `convert` those of the ViT before it is converted.
        backbone: a SAM checkpoint whose encoder takes the place of `name`.
        convert: make a big.LITTLE classifier of timm's ViT `name`.

    Raises:
        InputError: no such model or file, or a file of another model, or with values that are not finite.
    """
    if "checkpoint_path" in (options or {}):  # timm would read it in its own way
        raise InputError("checkpoint_path is no option of a model here: give the file as the checkpoint (--checkpoint)")
    for path in (checkpoint, backbone):
        if path is not None:
            weight_files(path)
    model: nn.Module
    if backbone is not None:
        model = probe = SamClassifier(load_sam(backbone), num_classes)
        probe.pretrained_cfg["num_classes"] = num_classes
    else:
        try:
            model = timm.create_model(name, num_classes=num_classes, **(options or {}))
        except InputError:
            raise
        except Exception as error:  # of whatever model the name chooses
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"timm cannot make {name}: {reason}") from None
    if checkpoint is not None:
        _load(model, checkpoint, head_only=backbone is not None)
    # convert_vit checks what it is given.
    return (convert_vit(cast(VisionTransformer, model)) if convert else model).eval()


def _load(model: nn.Module, path: Path, head_only: bool) -> None:
    own = model.state_dict()
    wanted = {key for key in own if not (head_only and key.startswith("image_encoder."))}
    contents = [read_checkpoint(file, load_tensors) for file in weight_files(path)]
    content = contents[0] if len(contents) == 1 else join_shards(contents, path)
    state = find_weights(content, min(wanted), path)
    check_tensors(state, path)
    wrong = sorted(wanted ^ set(state)) or [key for key in wanted if state[key].shape != own[key].shape]
    if wrong:
        raise InputError(f"{path} holds another model: {wrong[0]} does not fit (is --num-classes or --model right?)")
    model.load_state_dict(state, strict=not head_only)


def save_classifier(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, which `timm.create_model(..., checkpoint_path=...)` reads.

    Of a probe the head only.
    """
    weights = {
        name: value.detach().cpu().contiguous() for name, value in weights.items()
        if not (isinstance(model, SamClassifier) and name.startswith("image_encoder."))
    }  # fmt: skip
    try:
        with whole_path(path) as partial:
            save_file(weights, partial)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None


def data_config(model: nn.Module) -> dict[str, Any]:
    """timm's data configuration of a model, with the input size that the model was made for."""
    config = resolve_data_config({}, model=model)
    if side := getattr(getattr(model, "patch_embed", None), "img_size", None):
        config["input_size"] = (3, *side)
    return config


def set_ratio(model: nn.Module, ratio: float | str) -> None:
    """Set `keep_ratio` where there is one; a model that computes every token takes 1.0 only."""
    if hasattr(model, "keep_ratio"):
        routed: Any = model
        routed.keep_ratio = ratio
    elif ratio != 1.0:
        raise InputError(f"{type(model).__name__} computes every token: --keep-ratio can only be 1.0")


@torch.inference_mode()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """float32 logits of normalised images."""
    return model(images).float()
