"""What each C++ kernel of one layer takes, and the share of the processor's best product that it reaches.

    python eval/research/kernel_times.py --keep-ratio 0.25 --dtype int8 float32
    SAM_BIGLTL_CPU_LEVEL=avx2 python eval/research/kernel_times.py

Random weights; one thread unless --threads says otherwise; minima of --runs calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sam_bigltl.bench.timing import kernel_peak
from sam_bigltl.convert.registry import sam_model_registry
from sam_bigltl.fast.native import levels, ops
from sam_bigltl.fast.native.blocks import PackedBlock
from sam_bigltl.memory import keep_freed_memory
from sam_bigltl.modeling.encoder import BigLittleEncoder
from sam_bigltl.modeling.layouts import all_tokens, selected_tokens
from sam_bigltl.modeling.routing import Geometry, Selection

Part = tuple[str, int, Callable[[], Tensor]]  # name, multiply-accumulates, call


def parts(encoder: BigLittleEncoder, ratio: float, dtype: str) -> Iterator[Part]:
    """The kernels of a windowed and of a global layer at `ratio`, with what they multiply."""
    config, side = encoder.config, encoder.config.side
    dim, little, tokens = config.dim, config.little_dim, side * side
    big, small = Geometry((side, side), config.window, "cpu"), Geometry((side, side), config.little_window, "cpu")
    count = round(ratio * tokens)
    chosen = torch.rand(1, tokens, generator=torch.Generator().manual_seed(0)).argsort(dim=1)[:, :count]
    selection = Selection(chosen.sort(dim=1).values, big)
    x, stream = torch.randn(count, dim), torch.randn(tokens, little)
    whole = config.global_layers[0]
    windowed = next(layer for layer in range(config.depth) if layer not in config.global_layers)
    block, wide = PackedBlock(encoder.blocks[windowed], dtype), PackedBlock(encoder.blocks[whole], dtype)
    e_block = PackedBlock(encoder.little_blocks[windowed], dtype)
    stored = block.qkv.stored
    qkv = ops.linear(block.qkv, x, block.norm1, dtype=stored)
    rest = ops.linear(block.kv_little, stream, block.norm_little, source=selection.rest, dtype=stored)

    def attend(packed: PackedBlock, whole: bool) -> Callable[[], Tensor]:
        layout = selected_tokens(selection, whole)
        return lambda: ops.attend(
            qkv[:, :dim], qkv[:, dim:], rest, packed.padding, layout, packed.tables, packed.num_heads, packed.products
        )

    hidden = encoder.blocks[windowed].mlp.lin1.out_features
    little_hidden = encoder.little_blocks[windowed].mlp.lin1.out_features
    attended = attend(wide, True)()
    yield "norm, qkv", count * 3 * dim * dim, lambda: ops.linear(block.qkv, x, block.norm1, dtype=stored)
    yield (
        "norm, keys and values of the others", (tokens - count) * 2 * dim * little,
        lambda: ops.linear(block.kv_little, stream, block.norm_little, source=selection.rest, dtype=stored),
    )  # fmt: skip
    yield "attention in windows", 2 * count * config.window**2 * dim, attend(block, False)
    yield "attention, global", 2 * count * tokens * dim, attend(wide, True)
    yield (
        "projection, little stream, MLP", count * dim * (dim + little + 2 * hidden),
        lambda: ops.finish(
            attended, x, block.proj, block.norm2, block.lin1, block.lin2, up=block.up, little=stream,
            little_rows=selection.flat,
        ),
    )  # fmt: skip
    layout = all_tokens(small, 1, whole=False)
    products = little * (4 * little + 2 * little_hidden) + 2 * config.little_window**2 * little
    yield "E-block", tokens * products, lambda: e_block.dense(stream, layout)


def fastest(call: Callable[[], Tensor], runs: int) -> float:
    """Seconds of the quickest of `runs` calls, after one that is not counted."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times[1:])


@torch.inference_mode()
def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bigltl_b", choices=[key for key in sam_model_registry if "bigltl" in key])
    parser.add_argument("--keep-ratio", type=float, default=0.25)
    parser.add_argument("--dtype", nargs="+", default=["int8"], choices=["float32", "bfloat16", "int8"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    encoder = sam_model_registry[args.model](checkpoint=None).image_encoder.eval()
    print(f"{levels.explain()}; {args.threads} thread(s)")
    for dtype in args.dtype:
        print(f"\n| {args.model} at {args.keep_ratio:g}, {dtype} | ms | GMAC/s | of the peak |\n|---|---|---|---|")
        for name, products, call in parts(encoder, args.keep_ratio, dtype):
            peak = kernel_peak("int8" if dtype == "int8" and "attention" not in name else dtype)
            if dtype == "int8" and "attention" in name:  # 16-bit products
                peak = kernel_peak("int16")
            seconds = fastest(call, args.runs)
            rate = products / seconds / 1e9
            print(f"| {name} | {1e3 * seconds:.1f} | {rate:.0f} | {rate / peak:.2f} |")


if __name__ == "__main__":
    main()
