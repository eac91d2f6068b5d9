"""Draw docs/architecture.png: one encoder of the registry, with its own sizes and counted parameters.

python eval/draw_architecture.py --model bigltl_b --keep-ratio 0.25 --output docs/architecture.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from sam_bigltl.errors import ArgumentParser, InputError, run_cli
from sam_bigltl.modeling.encoder import BigLittleEncoder, EncoderConfig
from sam_bigltl.modeling.registry import ENCODERS
from sam_bigltl.modeling.trunk import heads_of

BIG, BIG_LIGHT = "#1f5fa8", "#d6e4f5"
LITTLE, LITTLE_LIGHT = "#c77700", "#fde9c9"
PLAIN, PLAIN_LIGHT = "#555555", "#eeeeee"
ROUTE, ROUTE_LIGHT = "#7a3e9d", "#ecdff5"
SMALL, NORMAL, LARGE = 7.2, 8.0, 9.6


@dataclass(frozen=True)
class Numbers:
    """What the figure says of an encoder; parameters are counted, on the meta device.

    Attributes:
        tokens, kept: N and K.
        p_block: parameters that a big block has in SAM too. added: what routing adds to it.
        e_block: of a little block. transition: of one stage's projections and router.
    """

    config: EncoderConfig
    tokens: int
    kept: int
    p_block: int
    added: int
    e_block: int
    transition: int


def numbers(key: str, keep_ratio: float) -> Numbers:
    """Numbers of a key of the registry. Raises InputError where it has no little path."""
    config = ENCODERS[key]
    if not config.little_dim:
        raise InputError(f"{key} is dense: choose a bigltl_* model")
    with torch.device("meta"):
        encoder = BigLittleEncoder(config)

    def count(module: torch.nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters())

    block = encoder.blocks[0]
    added = count(block.attn.kv_little) + count(block.norm_little) + count(block.up) + block.gamma.numel()
    tokens = config.side**2
    return Numbers(
        config, tokens, max(1, round(keep_ratio * tokens)), count(block) - added, added,
        count(encoder.little_blocks[0]), count(encoder.transitions[0]),
    )  # fmt: skip


def millions(count: int) -> str:
    """7079424 -> "7.08 M"."""
    return f"{count / 1e6:.2f} M"


def box(
    ax: Axes, x: float, y: float, width: float, height: float, text: str, colours: tuple[str, str], size: float = NORMAL
) -> None:
    """A rounded box with centred text; x and y are its lower left corner."""
    edge, face = colours
    shape = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, ec=edge, fc=face, lw=1.1))
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, linespacing=1.25)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], colour: str = PLAIN) -> None:
    """A straight arrow."""
    ax.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, lw=1.1, color=colour, shrinkA=0, shrinkB=0)
    )


def path(ax: Axes, points: list[tuple[float, float]], colour: str = PLAIN) -> None:
    """Straight lines through `points`, the last one with an arrowhead."""
    ax.plot(*zip(*points[:-1]), color=colour, lw=1.1, solid_capstyle="butt")
    arrow(ax, points[-2], points[-1], colour)


def draw_encoder(ax: Axes, own: Numbers, y: float) -> None:
    """The row of stages, one square a layer."""
    config = own.config
    embedding = "convolutional stem" if config.stem else f"patches {config.patch_size} x {config.patch_size}"
    box(ax, 0.1, y, 2.6, 1.5, f"image\n{config.img_size} x {config.img_size}\n{embedding}", (PLAIN, PLAIN_LIGHT), SMALL)
    box(ax, 15.4, y, 2.5, 1.5, f"neck\n{config.out_chans} x {config.side} x {config.side}\nto SAM's decoder",
        (PLAIN, PLAIN_LIGHT), SMALL)  # fmt: skip
    stages, left, right = config.stages, 3.1, 15.0
    gap = 0.4
    width = (right - left - gap * (len(stages) - 1)) / len(stages)
    arrow(ax, (2.7, y + 0.75), (left, y + 0.75))
    for number, layers in enumerate(stages):
        x = left + number * (width + gap)
        ax.add_patch(Rectangle((x, y), width, 1.5, ec=PLAIN, fc="white", lw=1.1))
        first, last = layers[0] + 1, layers[-1] + 1
        ax.text(
            x + width / 2,
            y + 1.2,
            f"stage {number + 1}: layers {first}-{last}",
            ha="center",
            va="center",
            fontsize=SMALL,
        )
        step = (width - 0.3) / len(layers)
        for place, layer in enumerate(layers):
            whole = layer in config.global_layers
            side = (x + 0.15 + place * step + 0.08 * step, y + 0.15)
            ax.add_patch(Rectangle(side, 0.84 * step, 0.72, ec=BIG, fc=BIG if whole else BIG_LIGHT, lw=0.9))
            if len(layers) <= 4:
                ax.text(side[0] + 0.42 * step, y + 0.51, "global" if whole else f"{config.window}x{config.window}",
                        ha="center", va="center", fontsize=6.4, color="white" if whole else "black")  # fmt: skip
        arrow(ax, (x + width, y + 0.75), (x + width + gap, y + 0.75))


def draw_stage(ax: Axes, own: Numbers, y: float) -> None:
    """Both paths of one stage: the big one above, the little one below."""
    config = own.config
    layers = config.stages[0]
    shown = [layers[0], layers[-1]] if len(layers) == 2 else [layers[0], layers[len(layers) // 2], layers[-1]]
    top, low, height = y + 2.75, y, 1.25
    middle_top, middle_low = top + height / 2, low + height / 2
    box(ax, 0.1, y + 1.15, 1.55, 1.7, f"N = {own.tokens:,}\ntokens of\nC = {config.dim}", (PLAIN, PLAIN_LIGHT), SMALL)
    box(ax, 2.15, low, 1.75, height, f"down\n{config.dim} to {config.little_dim}", (LITTLE, LITTLE_LIGHT))
    box(ax, 2.15, y + 1.55, 1.75, 0.9, "router", (ROUTE, ROUTE_LIGHT))
    box(ax, 2.15, top, 1.75, height, f"take the K\n= {own.kept:,} best", (ROUTE, ROUTE_LIGHT))
    path(ax, [(1.65, y + 2.0), (1.9, y + 2.0), (1.9, middle_low), (2.15, middle_low)])
    path(ax, [(1.65, y + 2.0), (1.9, y + 2.0), (1.9, middle_top), (2.15, middle_top)])
    arrow(ax, (3.02, low + height), (3.02, y + 1.55), LITTLE)
    arrow(ax, (3.02, y + 2.45), (3.02, top), ROUTE)
    left, right = 4.55, 14.2
    step = (right - left) / len(shown)
    width = step - 0.75
    before = 3.9
    for place, layer in enumerate(shown):
        x = left + place * step
        reach = "global" if layer in config.global_layers else f"{config.window} x {config.window} windows"
        box(ax, x, top, width, height, f"P-block, layer {layer + 1}\n{reach}", (BIG, BIG_LIGHT))
        box(ax, x, low, width, height,
            f"E-block, layer {layer + 1}\n{config.little_window} x {config.little_window} windows",
            (LITTLE, LITTLE_LIGHT))  # fmt: skip
        skipped = place and layer - shown[place - 1] > 1
        for level, dots, colour in ((middle_top, 0.2, BIG), (middle_low, -0.25, LITTLE)):
            arrow(ax, (before, level), (x, level), colour)
            if skipped:
                ax.text((before + x) / 2, level + dots, "...", ha="center", va="center", fontsize=LARGE, color=colour)
        turn = x - 0.32  # the little stream as it is before this layer's E-block
        path(ax, [(turn, middle_low), (turn, y + 2.0), (x + width / 2, y + 2.0), (x + width / 2, top)], LITTLE)
        before = x + width
    ax.text(before - width / 2 + 0.3, y + 2.0, "keys and values of the tokens that\nare not big, and fusion by gamma",
            ha="left",
            va="center", fontsize=SMALL, color=LITTLE)  # fmt: skip
    end = right + 0.25
    box(ax, end, top, 1.4, height, "write K\nback", (BIG, BIG_LIGHT))
    box(ax, end, low, 1.4, height, f"+ up\n{config.little_dim} to {config.dim}", (LITTLE, LITTLE_LIGHT), SMALL)
    arrow(ax, (before, middle_top), (end, middle_top), BIG)
    arrow(ax, (before, middle_low), (end, middle_low), LITTLE)
    box(ax, 16.35, y + 1.15, 1.55, 1.7, f"N = {own.tokens:,}\ntokens of\nC = {config.dim}", (PLAIN, PLAIN_LIGHT), SMALL)
    path(ax, [(end + 1.4, middle_top), (17.12, middle_top), (17.12, y + 2.85)], BIG)
    path(ax, [(end + 1.4, middle_low), (17.12, middle_low), (17.12, y + 1.15)], LITTLE)
    ax.text(left, top + height + 0.28,
            f"big path: K tokens, {config.num_heads} heads; a P-block is SAM's block, "
            f"{millions(own.p_block)} parameters, and {millions(own.added)} for the little stream",
            fontsize=NORMAL, color=BIG, va="center")  # fmt: skip
    ax.text(left, low - 0.3,
            f"little path: all N tokens, {heads_of(config.little_dim)} heads, {config.little_dim} channels; "
            f"an E-block has {millions(own.e_block)} parameters", fontsize=NORMAL, color=LITTLE,
            va="center")  # fmt: skip
    ax.text(0.1, low - 0.3, f"down, router, up: {millions(own.transition)}", fontsize=SMALL, color=PLAIN, va="center")


def draw_attention(ax: Axes, own: Numbers, y: float) -> None:
    """Semi-cross attention of one P-block, and what follows it."""
    selected = {1, 2, 6, 9}
    cell, left = 0.56, 3.3
    ax.text(0.1, y + 2.02, "queries", fontsize=NORMAL, va="center")
    ax.text(0.1, y + 1.64, "selected tokens only", fontsize=SMALL, va="center", color=PLAIN)
    ax.text(0.1, y + 0.72, "keys and values", fontsize=NORMAL, va="center")
    ax.text(0.1, y + 0.34, "every token in reach", fontsize=SMALL, va="center", color=PLAIN)
    for token in range(12):
        x = left + token * cell
        big = token in selected
        ax.add_patch(Rectangle((x, y + 0.3), cell, 0.5, ec="white", fc=BIG if big else LITTLE, lw=1.2))
        if big:
            ax.add_patch(Rectangle((x, y + 1.6), cell, 0.5, ec="white", fc=BIG, lw=1.2))
    centre = left + 6.5 * cell
    for token in range(12):
        colour = BIG if token in selected else LITTLE
        ax.plot([centre, left + (token + 0.5) * cell], [y + 1.6, y + 0.8], color=colour, lw=0.8)
    x = 10.75
    box(ax, x, y + 0.3, 2.6, 1.8, "semi-cross\nattention\n+ relative positions", (BIG, BIG_LIGHT), SMALL)
    box(ax, x + 3.0, y + 0.3, 2.1, 1.8, "+ gamma x\nup(little)", (LITTLE, LITTLE_LIGHT), SMALL)
    hidden = round(own.config.dim * own.config.mlp_ratio)
    box(ax, x + 5.5, y + 0.3, 1.65, 1.8, f"+ MLP\n{own.config.dim} to\n{hidden:,}", (BIG, BIG_LIGHT), SMALL)
    arrow(ax, (left + 12 * cell + 0.1, y + 1.2), (x, y + 1.2), BIG)
    arrow(ax, (x + 2.6, y + 1.2), (x + 3.0, y + 1.2), BIG)
    arrow(ax, (x + 5.1, y + 1.2), (x + 5.5, y + 1.2), BIG)


def draw(key: str, keep_ratio: float) -> plt.Figure:
    """The whole figure."""
    own = numbers(key, keep_ratio)
    figure = plt.figure(figsize=(9.0, 6.0))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-0.1, 18.1), ylim=(0, 12))
    ax.axis("off")
    width = own.config.dim // own.config.num_heads
    titles = {
        11.6: f"{key}: {own.config.depth} layers in {len(own.config.stages)} stages; "
        "each ends at a layer with global attention",
        8.75: f"One stage at keep_ratio {keep_ratio:g}",
        3.05: f"Inside a P-block: {own.config.num_heads} heads of {width} channels",
    }
    for y, text in titles.items():
        ax.text(0.1, y, text, fontsize=LARGE, fontweight="bold", va="center")
    draw_encoder(ax, own, 9.6)
    draw_stage(ax, own, 4.05)
    draw_attention(ax, own, 0.3)
    return figure


def run(args: object) -> None:
    """Draw what the flags say. Raises InputError."""
    if args.model not in ENCODERS:
        raise InputError(f"--model {args.model} is none of {', '.join(sorted(ENCODERS))}")
    if not 0 < args.keep_ratio <= 1:
        raise InputError(f"--keep-ratio is in (0, 1], not {args.keep_ratio:g}")
    figure = draw(args.model, args.keep_ratio)
    try:
        figure.savefig(args.output, dpi=200, metadata={"Software": None})
    except OSError as error:
        raise InputError(f"cannot write {args.output}: {error.strerror}") from None
    print(f"wrote {args.output}")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bigltl_b", help="a bigltl_* key of the registry (%(default)s)")
    parser.add_argument("--keep-ratio", type=float, default=0.25, help="of the example (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("docs/architecture.png"), help="(%(default)s)")
    run_cli("draw_architecture", run, parser.parse_args())
