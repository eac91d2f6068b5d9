"""What each term of a big.LITTLE layer costs, counted on the real model, beside the paper's formulas.

The paper (arXiv 2410.10267) counts 12 N C^2 + 2 N^2 C multiply-accumulates for a layer of a ViT and, at keep_ratio 1/2
and C_E = C / 4, 6.5 N C^2 + N^2 C for a big.LITTLE one.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..convert.registry import sam_model_registry
from ..errors import ArgumentParser, InputError, run_cli
from ..modeling.encoder import BigLittleEncoder
from ..modeling.registry import ENCODERS
from .macs import flop_counter

# Of a layer with N tokens, K of them big, C channels, E little ones; what belongs to a group is shared among its
# layers.
FORMULAS = {
    "big: queries, keys, values": "3 K C^2",
    "big: projection": "K C^2",
    "big: MLP": "8 K C^2",
    "big: keys and values of little tokens": "2 N E C",
    "big: fusion": "K E C",
    "little: queries, keys, values": "3 N E^2",
    "little: projection": "N E^2",
    "little: MLP": "8 N E^2",
    "group: down": "N C E / layers of the group",
    "group: up": "N E C / layers of the group",
    "attention of both paths": "2 K S C + 2 N w^2 E, S keys in reach",
}
_PLACES = (
    (r"\.blocks\.\d+\.attn\.qkv$", "big: queries, keys, values"),
    (r"\.blocks\.\d+\.attn\.proj$", "big: projection"),
    (r"\.blocks\.\d+\.mlp\.lin[12]$", "big: MLP"),
    (r"\.kv_little$", "big: keys and values of little tokens"),
    (r"\.blocks\.\d+\.up$", "big: fusion"),
    (r"\.little_blocks\.\d+\.attn\.qkv$", "little: queries, keys, values"),
    (r"\.little_blocks\.\d+\.attn\.proj$", "little: projection"),
    (r"\.little_blocks\.\d+\.mlp\.lin[12]$", "little: MLP"),
    (r"\.transitions\.\d+\.down$", "group: down"),
    (r"\.transitions\.\d+\.up$", "group: up"),
    (r"\.(patch_embed|neck)(\.|$)", None),
)
_ATTENTION = ("bmm", "baddbmm", "scaled_dot_product")


@dataclass(frozen=True)
class Cost:
    """MACs of one term in all layers: `formula` by FORMULAS (None where it depends on the windows), `counted`."""

    term: str
    formula: float | None
    counted: int


@torch.inference_mode()
def layer_costs(encoder: BigLittleEncoder, keep_ratio: float) -> list[Cost]:
    """Count one forward pass of a random image; `encoder` is left as it was."""
    before, encoder.keep_ratio = encoder.keep_ratio, keep_ratio
    side, dtype = encoder.img_size, cast(Tensor, encoder.neck[0].weight).dtype
    counter = flop_counter()
    generator = torch.Generator().manual_seed(0)
    with counter:
        encoder(torch.randn(1, 3, side, side, generator=generator).to(dtype))
    encoder.keep_ratio = before
    counts = counter.get_flop_counts()
    root = type(encoder).__name__
    found: Counter[str | None] = Counter()
    for name, operators in counts.items():
        place = next(
            (term for pattern, term in _PLACES if name.startswith(root) and re.search(pattern, name)), "parent"
        )
        found[place] += sum(operators.values()) // 2
    products = counts["Global"].items()
    found["attention of both paths"] = sum(
        value // 2 for operator, value in products if any(name in str(operator) for name in _ATTENTION)
    )
    return [Cost(term, _formula(encoder, keep_ratio, term), found[term]) for term in FORMULAS if found[term]]


def _formula(encoder: BigLittleEncoder, keep_ratio: float, term: str) -> float | None:
    """FORMULAS as a number for all layers together."""
    config = encoder.config
    if term.startswith("attention"):
        return None
    n, c, e = config.side**2, config.dim, config.little_dim
    k = n if keep_ratio == 1.0 else max(1, round(keep_ratio * n))
    text = FORMULAS[term].removesuffix(" / layers of the group")
    factors = {"K": k, "N": n, "C": c, "E": e, "C^2": c * c, "E^2": e * e}
    value = 1
    for word in text.split():
        value *= factors[word] if word in factors else int(word)
    return value * (len(config.groups) if term.startswith("group") else config.depth)


def report(encoder: BigLittleEncoder, keep_ratio: float) -> str:
    """The costs as text: G MACs of all layers, and in units of N C^2 a layer."""
    config = encoder.config
    unit = config.side**2 * config.dim**2 * config.depth
    costs = layer_costs(encoder, keep_ratio)
    lines = [f"{'term':<40} {'formula, a layer':<38} {'formula G':>9} {'counted G':>9} {'x N C^2':>8}"]
    for cost in costs:
        formula = "-" if cost.formula is None else f"{cost.formula / 1e9:.3f}"
        lines.append(
            f"{cost.term:<40} {FORMULAS[cost.term]:<38} {formula:>9}"
            f" {cost.counted / 1e9:>9.3f} {cost.counted / unit:>8.3f}"
        )
    total = sum(cost.counted for cost in costs)
    tokens, dim = config.side**2, config.dim
    vit, paper = 12 + 2 * tokens / dim, 6.5 + tokens / dim
    lines += [
        f"{'all layers':<79} {'':>9} {total / 1e9:>9.3f} {total / unit:>8.3f}",
        f"the paper: ViT 12 N C^2 + 2 N^2 C = {vit:.3f} N C^2;"
        f" big.LITTLE at 1/2, E = C/4: 6.5 N C^2 + N^2 C = {paper:.3f} N C^2",
    ]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `eval/layer_cost.py`."""
    parser.add_argument("--model", default="bigltl_b", help="a key of this project's registry (bigltl_b)")
    parser.add_argument("--keep-ratio", nargs="+", type=float, default=[1.0, 0.5], metavar="R", help="(1.0 0.5)")


def run(args: argparse.Namespace) -> None:
    """Print the table of each ratio. Raises InputError."""
    if args.model not in ENCODERS:
        raise InputError(f"unknown model {args.model!r}: choose from {', '.join(ENCODERS)}")
    torch.manual_seed(0)
    encoder = sam_model_registry[args.model]().image_encoder.to(torch.bfloat16)
    for ratio in args.keep_ratio:
        encoder.keep_ratio = ratio  # refuses
        print(f"{args.model}, keep_ratio {ratio:g}\n{report(encoder, ratio)}\n")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/layer_cost.py`."""
    parser = ArgumentParser(prog="layer_cost.py", description=__doc__)
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
