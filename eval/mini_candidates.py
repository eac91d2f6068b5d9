"""Encoder times of widths, depths and stems that `bigltl_mini` could have, in turn, in the formats that people use.

    python eval/mini_candidates.py --runs 9

Random weights: time does not depend on them. What each candidate learns is in docs/design_notes.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from statistics import median

import torch

from sam_bigltl.bench.timing import measure, timed
from sam_bigltl.errors import ArgumentParser, run_cli
from sam_bigltl.modeling.encoder import BigLittleEncoder, EncoderConfig, init_weights

FORMATS = ("int8", "bfloat16", "float32")
RATIOS = (1.0, 0.25)


def candidates() -> dict[str, EncoderConfig]:
    """By name: the old shape, widths and depths at 640 px, and two other input sizes."""
    found = {
        "448 px, 192 x 8, plain stem": EncoderConfig(
            img_size=448,
            dim=192,
            depth=8,
            num_heads=6,
            global_layers=(1, 3, 5, 7),
            window=7,
            stem=(24, 48, 96, 192),
            little_dim=48,
        )
    }
    for size, dim, depth in (
        (640, 192, 8),
        (640, 256, 6),
        (640, 256, 8),
        (640, 320, 6),
        (640, 384, 6),
        (512, 256, 6),
        (768, 256, 6),
    ):
        found[f"{size} px, {dim} x {depth}"] = EncoderConfig(
            img_size=size, dim=dim, depth=depth, num_heads=dim // 32, global_layers=tuple(range(1, depth, 2)), window=8,
            stem="mobile", little_dim=dim // 4,
        )  # fmt: skip
    return found


def _seconds(encoder: BigLittleEncoder, image: torch.Tensor, ratio: float) -> float:
    encoder.keep_ratio = ratio
    return timed(lambda: encoder(image))


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Time all of them and print a table."""
    calls: dict[tuple[str, str, float], Callable[[], float]] = {}
    parameters = {}
    for name, config in candidates().items():
        encoder = BigLittleEncoder(config).eval()
        init_weights(encoder)
        parameters[name] = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
        image = torch.randn(1, 3, config.img_size, config.img_size)
        for kind in FORMATS:
            chosen = deepcopy(encoder)
            if kind != "float32":
                chosen.optimize(kind, native=True)
            calls |= {(name, kind, ratio): partial(_seconds, chosen, image, ratio) for ratio in RATIOS}
    seconds = dict(zip(calls, measure(list(calls.values()), args.runs, warmup=1)))
    columns = [(kind, ratio) for kind in FORMATS for ratio in RATIOS]
    print("| encoder | M parameters | " + " | ".join(f"{kind} {ratio:g}" for kind, ratio in columns) + " |")
    print("|" + "---|" * (len(columns) + 2))
    for name, count in parameters.items():
        times = [1000 * median(seconds[(name, *column)]) for column in columns]
        print(f"| {name} | {count:.1f} | " + " | ".join(f"{value:.0f}" for value in times) + " |")


if __name__ == "__main__":
    parser = ArgumentParser(prog="mini_candidates.py", description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=9, help="timed passes of each (9)")
    run_cli(parser.prog, run, parser.parse_args())
