"""What the study compares the model with: other routers, attention without the little stream, smaller and sparser ViTs.

Each function changes a Sam in place, or makes one, that trains and evaluates like any other.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sam_bigltl.modeling.attention import SemiCrossAttention
from sam_bigltl.modeling.encoder import BigLittleEncoder
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.modeling.routing import Geometry, Selection


# ---------------------------------------------------------------- routers
class RandomRouter(nn.Module):
    """Scores drawn anew at every call, from torch's generator."""

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) -> scores (B, N) that sum to 1."""
        return torch.rand(little.shape[:2], device=little.device).softmax(dim=1)


class CentreRouter(nn.Module):
    """The prior that objects are in the middle: scores fall with the distance from the frame's centre."""

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) of a square grid -> scores (B, N) that sum to 1."""
        side = round(little.shape[1] ** 0.5)
        line = torch.linspace(-1, 1, side, device=little.device)
        distance = (line[:, None].square() + line.square()).flatten()
        return (-4 * distance).softmax(dim=0).expand(len(little), -1)


class OracleRouter(nn.Module):
    """Scores given from outside: `scores` (B, N), for images of which the ground truth is known."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: Tensor | None = None

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) -> scores (B, N)."""
        return self.scores.to(little.device).expand(len(little), -1)


class FirstRouter(nn.Module):
    """The first group's router, whose scores the others repeat: one selection for the whole encoder."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router
        self.scores: Tensor | None = None

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) -> scores (B, N)"""
        self.scores = self.router(little)
        return self.scores


class RepeatingRouter(nn.Module):
    """The scores of a `FirstRouter`."""

    def __init__(self, first: FirstRouter) -> None:
        super().__init__()
        self._first = (first,)  # not a submodule: its weights are the first group's

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) -> scores (B, N)"""
        return self._first[0].scores


def route_once(sam: Sam) -> None:
    """Let the first group select for all."""
    transitions = sam.image_encoder.transitions
    transitions[0].router = first = FirstRouter(transitions[0].router)
    for transition in transitions[1:]:
        transition.router = RepeatingRouter(first)


def set_router(sam: Sam, router: nn.Module) -> None:
    """Let `router` score the tokens of every group."""
    for transition in sam.image_encoder.transitions:
        transition.router = router


def boundary_scores(masks: Tensor, side: int) -> Tensor:
    """How much of the objects' outlines is in each token, summing to 1: what an oracle would route by.

    Args:
        masks: (n, S, S) boolean, in the frame.
        side: tokens a side.

    Returns:
        (1, side * side); objects count alike, whatever their length, and every token counts a little.
    """
    masks = masks[:, None].float()
    edge = F.max_pool2d(masks, 3, 1, 1) - -F.max_pool2d(-masks, 3, 1, 1)  # (n, 1, S, S)
    share = F.adaptive_avg_pool2d(edge, side).flatten(1)
    share = (share / share.sum(dim=1, keepdim=True).clamp(min=1e-12)).sum(dim=0, keepdim=True) + 1e-6
    return share / share.sum()


# ---------------------------------------------------------------- attention and fusion
class SelectedOnlyAttention(SemiCrossAttention):
    """Self-attention among the selected tokens of a window or image: the little stream is not seen."""

    def routed(self, x: Tensor, little: Tensor, selection: Selection, geometry: Geometry) -> Tensor:
        """x (B, K, C) -> (B, K, C)"""
        batch, count, _ = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # (B, h, K, d)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        for lines, table in ((selection.rows, self.rel_pos_h), (selection.columns, self.rel_pos_w)):
            lines = lines % self.window if self.window else lines
            size = (table.shape[0] + 1) // 2
            index = (lines[:, :, None] - lines[:, None, :]).clamp(1 - size, size - 1) + size - 1
            logits = logits + (q @ table.to(q.dtype).t()).gather(-1, index[:, None].expand(-1, self.num_heads, -1, -1))
        if self.window:
            window = geometry.token_window[selection.indices]
            logits = logits.masked_fill((window[:, :, None] != window[:, None, :])[:, None], float("-inf"))
        out = logits.softmax(dim=-1).to(v.dtype) @ v
        return self.proj(out.transpose(1, 2).reshape(batch, count, -1))


def attend_to_selected_only(sam: Sam) -> None:
    """Take the little stream out of the big path's keys and values."""
    for block in sam.image_encoder.blocks:
        block.attn.__class__ = SelectedOnlyAttention


def without_fusion(sam: Sam) -> None:
    """Take the little stream out of the big path's residual: gamma is 0 and stays so."""
    for block in sam.image_encoder.blocks:
        with torch.no_grad():
            block.gamma.zero_()
        block.gamma.requires_grad_(False)


# ---------------------------------------------------------------- other E-blocks
class DepthwiseMixer(nn.Module):
    """A depthwise convolution in the place of an E-block's attention.

    Args:
        dim: little width C_E.
        kernel: side of the kernel, odd.
    """

    def __init__(self, dim: int, kernel: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """x (B, N, C_E) -> (B, N, C_E)"""
        x = self.conv(x.transpose(1, 2).unflatten(2, geometry.grid))
        return self.proj(x.flatten(2).transpose(1, 2))


class NoBlock(nn.Module):
    """An E-block that does nothing."""

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """x (B, N, C_E), returned as it is."""
        return x


def convolve(sam: Sam) -> None:
    """Let E-blocks mix tokens by a depthwise convolution, which adds nothing at first, as their attention does not."""
    for block in sam.image_encoder.little_blocks:
        block.attn = DepthwiseMixer(sam.image_encoder.config.little_dim)
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.attn.proj.bias)


def without_little_blocks(sam: Sam) -> None:
    """Leave the little stream as `down` makes it at the start of each group."""
    blocks = sam.image_encoder.little_blocks
    for layer in range(len(blocks)):
        blocks[layer] = NoBlock()


# ---------------------------------------------------------------- dense and sparse rivals
def shallow(teacher: Sam, layers: tuple[int, ...]) -> Sam:
    """A dense student of the teacher's width that keeps only these layers, initialised from them.

    It is the strongest start that a smaller dense ViT can have here: no weight is random.
    """
    theirs: BigLittleEncoder = teacher.image_encoder
    config = replace(
        theirs.config, depth=len(layers),
        global_layers=tuple(place for place, layer in enumerate(layers) if layer in theirs.config.global_layers),
    )  # fmt: skip
    sam = build_sam(config)
    state = {
        name: value for name, value in teacher.state_dict().items() if not name.startswith("image_encoder.blocks.")
    }
    for place, layer in enumerate(layers):
        for name, value in theirs.blocks[layer].state_dict().items():
            state[f"image_encoder.blocks.{place}.{name}"] = value
    sam.load_state_dict(state)
    return sam


class PrunedEncoder(BigLittleEncoder):
    """Token pruning on the dense ViT, as EViT prunes (arXiv 2202.07800): no little path, no router.

    Before each stage the K tokens whose keys drew most attention in the last global layer go on, the others keep
    their features until the next one: a dense prediction needs all of them. Before the first stage all go on.
    """

    prune_ratio = 1.0

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, gh, gw, C) -> (B, out_chans, gh, gw)"""
        batch, gh, gw, dim = tokens.shape
        geometry = self._geometry((gh, gw), self.config.window, tokens.device)
        x = tokens.reshape(batch, gh * gw, dim)
        importance = None
        for layers in self.config.stages:
            x = (
                self._dense(x, layers, geometry)
                if importance is None
                else self._sparse(x, layers, geometry, importance)
            )
            importance = self._attention_drawn(self.blocks[layers[-1]], x)
        return self.neck(x.view(batch, gh, gw, dim).permute(0, 3, 1, 2))

    def _dense(self, x: Tensor, layers: tuple[int, ...], geometry: Geometry) -> Tensor:
        for layer in layers:
            x = self.blocks[layer](x, geometry)
        return x

    def _sparse(self, x: Tensor, layers: tuple[int, ...], geometry: Geometry, importance: Tensor) -> Tensor:
        count = max(1, round(self.prune_ratio * x.shape[1]))
        kept = importance.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
        selection = Selection(kept, geometry)
        selected = selection.gather(x)
        for layer in layers:
            block = self.blocks[layer]
            added = SelectedOnlyAttention.routed(block.attn, block.norm1(selected), None, selection, geometry)
            selected = selected + added
            selected = selected + block.mlp(block.norm2(selected))
        return selection.scatter(x, selected)

    @torch.no_grad()
    def _attention_drawn(self, block: nn.Module, x: Tensor) -> Tensor:
        """Mean attention that each token's key draws from a grid of 49 queries, (B, N)."""
        batch, count, _ = x.shape
        q, k, _ = block.attn.qkv(block.norm1(x)).view(batch, count, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries = torch.linspace(0, count - 1, 49, device=x.device).long()
        return ((q[:, :, queries] * block.attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1).mean(dim=(1, 2))


def pruned(teacher: Sam, ratio: float) -> Sam:
    """The teacher with token pruning at `ratio`; every weight is the teacher's."""
    sam = copy.deepcopy(teacher)
    sam.image_encoder.__class__ = PrunedEncoder
    sam.image_encoder.prune_ratio = ratio
    return sam


class MergedEncoder(BigLittleEncoder):
    """Token merging on the dense ViT (ToMe, arXiv 2210.09461), with the merged tokens parted again after each block.

    In the global layers a share of the tokens is merged into the most similar of the others (bipartite matching over
    every fourth token, as for dense prediction in arXiv 2303.17604), the block runs on what is left, and each merged
    token gets its group's change. Windowed layers stay dense: their relative positions need every place.
    """

    merge_ratio = 1.0

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, gh, gw, C) -> (B, out_chans, gh, gw)"""
        batch, gh, gw, dim = tokens.shape
        geometry = self._geometry((gh, gw), self.config.window, tokens.device)
        x = tokens.reshape(batch, gh * gw, dim)
        for layer, block in enumerate(self.blocks):
            x = self._merged(block, x, geometry) if layer in self.config.global_layers else block(x, geometry)
        return self.neck(x.view(batch, gh, gw, dim).permute(0, 3, 1, 2))

    def _merged(self, block: nn.Module, x: Tensor, geometry: Geometry) -> Tensor:
        _, count, dim = x.shape
        keep = max(1, round(self.merge_ratio * count))
        kept, source, target = _match(x.detach(), geometry.grid, count - keep)
        merged = x.scatter_reduce(1, target[..., None].expand(-1, -1, dim), x.gather(1, _wide(source, dim)), "mean")
        selection = Selection(kept, geometry)
        before = selection.gather(merged)
        after = before + SelectedOnlyAttention.routed(block.attn, block.norm1(before), None, selection, geometry)
        after = after + block.mlp(block.norm2(after))
        change = selection.scatter(torch.zeros_like(x), after - before)
        change = change.scatter(1, _wide(source, dim), change.gather(1, _wide(target, dim)))
        return x + change


def _wide(index: Tensor, dim: int) -> Tensor:
    return index[..., None].expand(-1, -1, dim)


def _match(x: Tensor, grid: tuple[int, int], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens that stay (B, N - count), tokens that merge and the tokens they merge into (B, count each)."""
    rows, columns = grid
    place = torch.arange(rows * columns, device=x.device)
    is_target = (place // columns % 2 == 0) & (place % columns % 2 == 0)
    targets, sources = place[is_target], place[~is_target]
    unit = F.normalize(x.float(), dim=-1)
    similarity, best = (unit[:, sources] @ unit[:, targets].transpose(1, 2)).max(dim=-1)  # (B, sources)
    order = similarity.sort(dim=1, descending=True, stable=True).indices[:, : min(count, len(sources))]
    source, target = sources[order], targets[best.gather(1, order)]
    stays = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device).scatter(1, source, False)
    return stays.nonzero()[:, 1].view(len(x), -1), source, target


def merged(teacher: Sam, ratio: float) -> Sam:
    """The teacher with token merging down to `ratio` (at least a quarter) in its global layers; its own weights."""
    sam = copy.deepcopy(teacher)
    sam.image_encoder.__class__ = MergedEncoder
    sam.image_encoder.merge_ratio = ratio
    return sam
