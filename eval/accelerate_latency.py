"""Masks and times of transformers' SamModel before and after `sam_bigltl.accelerate`, on the CPU or a GPU.

Both encoders run in turns in one process that keeps its freed memory (docs/speed.md), medians are printed. Weights are
random unless --model names a folder of transformers' or a model on the Hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sam_bigltl import accelerate
from sam_bigltl.bench.exactness import randomise_positions
from sam_bigltl.bench.timing import measure, timed
from sam_bigltl.cli import flag_checks
from sam_bigltl.data.tables import aligned
from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.fast.devices import synchronize

# Of transformers' SamVisionConfig; "tiny" is for a look at this script.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=256, global_attn_indexes=[1]),
    "vit_b": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, global_attn_indexes=[2, 5, 8, 11]),
    "vit_l": dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, global_attn_indexes=[5, 11, 17, 23]),
    "vit_h": dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16, global_attn_indexes=[7, 15, 23, 31]),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `eval/accelerate_latency.py`."""
    parser.add_argument("--model", metavar="FOLDER", help="weights for SamModel.from_pretrained (default: random)")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="vit_b", help="of the random model (vit_b)")
    parser.add_argument("--dtype", default="auto", help="of accelerate, beside float32 (auto)")
    parser.add_argument("--device", default="cpu", help="(cpu)")
    parser.add_argument("--runs", type=int, default=5, help="counted passes of each encoder (5)")
    parser.add_argument("--warmup", type=int, default=1, help="passes before them (1)")


def build(args: argparse.Namespace) -> Any:
    """The SamModel that the flags ask for, in eval mode. Raises InputError."""
    try:
        from transformers import SamConfig, SamModel
    except ImportError:
        raise InputError("this needs transformers: pip install 'sam_bigltl[clients]'") from None
    if args.model:
        try:
            return SamModel.from_pretrained(args.model).to(args.device).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"{args.model} is no SamModel of transformers: {error}") from None
    shape = SHAPES[args.shape]
    torch.manual_seed(0)
    side = shape.get("image_size", 1024)
    prompts = dict(image_size=side, image_embedding_size=side // 16)
    model = SamModel(SamConfig(vision_config=shape | {"initializer_range": 0.02}, prompt_encoder_config=prompts))
    randomise_positions(model.vision_encoder)
    with torch.no_grad():
        for weight in model.mask_decoder.parameters():  # larger, so that masks depend visibly on the embedding
            if weight.ndim > 1:
                weight.mul_(2.5)
    return model.to(args.device).eval()


def run(args: argparse.Namespace) -> None:
    """Measure and print a table. Raises InputError."""
    flag_checks.at_least_one(args, ("runs",))
    flag_checks.not_negative(args, ("warmup",))
    model = build(args)
    side = model.config.vision_config.image_size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(args.device)
    encoders, outputs = {"transformers": model.vision_encoder}, {"transformers": outputs_of(model, image)}
    for dtype in dict.fromkeys(("float32", args.dtype)):
        accelerate(model, dtype=dtype)
        name = f"accelerated, {model.vision_encoder.encoder.format}"
        encoders[name], outputs[name] = model.vision_encoder, outputs_of(model, image)
    calls = [partial(timed, partial(encode, encoder, image)) for encoder in encoders.values()]
    times = [median(each) for each in measure(calls, args.runs, args.warmup)]
    rows = [["encoder", "seconds", "ratio", "largest difference of mask logits", "of scores"]]
    for (name, (masks, scores)), seconds in zip(outputs.items(), times):
        expected_masks, expected_scores = outputs["transformers"]
        differences = (masks - expected_masks).abs().max(), (scores - expected_scores).abs().max()
        rows.append([name, f"{seconds:.3f}", f"{times[0] / seconds:.2f}", *(f"{x.item():.1e}" for x in differences)])
    print(aligned(rows, left=(0,)))
    print(f"transformers' mask logits reach {outputs['transformers'][0].abs().max().item():.1f}")


@torch.inference_mode()
def encode(encoder: Any, image: Tensor) -> None:
    """One pass of an encoder, to its end."""
    encoder(image)
    synchronize(image.device)


@torch.inference_mode()
def outputs_of(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
    """Mask logits and scores for a point in the middle."""
    point = torch.full((1, 1, 1, 2), image.shape[-1] / 2, device=image.device)
    found = model(pixel_values=image, input_points=point)
    return found.pred_masks, found.iou_scores


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/accelerate_latency.py`."""
    parser = ArgumentParser(prog="accelerate_latency.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))


if __name__ == "__main__":
    main()
