"""Smaller and sparser ViTs that the study compares the model with: what else the time of an encoder can be spent on.

Each function makes a Sam, from a dense teacher or a big.LITTLE student, that trains and evaluates like any other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from segment_anything.modeling import PromptEncoder, Sam
from torch import Tensor, nn
from torch.nn import functional as F

from sam_bigltl.convert.sam import LITTLE_PATH
from sam_bigltl.convert.warm_start.moments import Moments
from sam_bigltl.modeling.encoder import BigLittleEncoder
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.modeling.routing import Geometry, RouteGroup, Selection, straight_through_gate, top_tokens
from sam_bigltl.training.engine import Batch
from sam_bigltl.training.loop import embed_crop

from .ablations import SelectedOnlyAttention


# ---------------------------------------------------------------- smaller dense ViTs
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


@torch.no_grad()
def layers_by_worth(teacher: Sam, tokens: Tensor) -> list[int]:
    """The layers from the least to the most valuable: each time the one goes that the embedding misses least.

    Args:
        tokens: patch and position embeddings of some photographs, (B, gh, gw, C).
    """
    encoder: BigLittleEncoder = teacher.image_encoder
    wanted = encoder.encode_tokens(tokens)
    left, gone = list(range(encoder.config.depth)), []
    blocks = encoder.blocks
    try:
        while left:
            errors = {}
            for layer in left:
                encoder.blocks = nn.ModuleList(
                    block if index in left and index != layer else Skip() for index, block in enumerate(blocks)
                )
                errors[layer] = (encoder.encode_tokens(tokens) - wanted).square().mean().item()
            gone.append(min(errors, key=errors.__getitem__))
            left.remove(gone[-1])
    finally:
        encoder.blocks = blocks
    return gone


class Skip(nn.Module):
    """A layer that does nothing."""

    def forward(self, x: Tensor, place: object = None) -> Tensor:
        """x as it is"""
        return x


@torch.no_grad()
def narrow(teacher: Sam, mlp_ratio: float) -> Sam:
    """A dense student whose MLPs keep the hidden units that weigh most, their number `mlp_ratio` times the width."""
    config = replace(teacher.image_encoder.config, mlp_ratio=mlp_ratio)
    sam = build_sam(config)
    state = teacher.state_dict()
    for layer, block in enumerate(teacher.image_encoder.blocks):
        units = round(config.dim * mlp_ratio)
        worth = (block.mlp.lin1.weight * block.norm2.weight).norm(dim=1) * block.mlp.lin2.weight.norm(dim=0)
        kept = worth.topk(units).indices.sort().values
        name = f"image_encoder.blocks.{layer}.mlp."
        for key in ("lin1.weight", "lin1.bias"):
            state[name + key] = state[name + key][kept]
        state[name + "lin2.weight"] = state[name + "lin2.weight"][:, kept]
    sam.load_state_dict(state)
    return sam


@torch.no_grad()
def low_resolution(teacher: Sam, side: int) -> Sam:
    """The teacher at `side` pixels: position embeddings interpolated, relative positions within reach kept."""
    theirs: BigLittleEncoder = teacher.image_encoder
    config = replace(theirs.config, img_size=side)
    sam = build_sam(config)
    prompts: PromptEncoder = sam.prompt_encoder
    state = teacher.state_dict()
    pos = state["image_encoder.pos_embed"].permute(0, 3, 1, 2)
    pos = F.interpolate(pos, (config.side, config.side), mode="bicubic", align_corners=False)
    state["image_encoder.pos_embed"] = pos.permute(0, 2, 3, 1)
    cut = theirs.config.side - config.side
    for layer in config.global_layers:
        for axis in "hw":
            name = f"image_encoder.blocks.{layer}.attn.rel_pos_{axis}"
            state[name] = state[name][cut : len(state[name]) - cut]
    sam.load_state_dict(state)
    assert prompts.input_image_size == (side, side)
    return sam


# ---------------------------------------------------------------- pruning
class PrunedEncoder(BigLittleEncoder):
    """Token pruning on the dense ViT, as EViT prunes (arXiv 2202.07800): no little path, no router.

    Before each stage the K tokens whose keys drew most attention in the last global layer go on, the others keep
    their features until the next one: a dense prediction needs all of them. Before the first stage all go on.
    """

    prune_ratio = 1.0

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, gh, gw, C) -> (B, out_chans, gh, gw)"""
        x, geometry = _start(self, tokens)
        importance = None
        for layers in self.config.stages:
            if importance is None:
                x = _dense(self, x, layers, geometry)
            else:
                count = max(1, round(self.prune_ratio * x.shape[1]))
                kept = importance.sort(dim=1, descending=True, stable=True).indices[:, :count].sort(dim=1).values
                selection = Selection(kept, geometry)
                x = selection.scatter(x, _sparse(self, selection.gather(x), layers, selection))
            importance = self._attention_drawn(self.blocks[layers[-1]], x)
        return _end(self, x, tokens)

    @torch.no_grad()
    def _attention_drawn(self, block: nn.Module, x: Tensor) -> Tensor:
        """Mean attention that each token's key draws from a grid of 49 queries, (B, N)."""
        batch, count, _ = x.shape
        qkv = block.attn.qkv(block.norm1(x.to(self.pos_embed.dtype)))
        q, k, _ = qkv.view(batch, count, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries = torch.linspace(0, count - 1, 49, device=x.device).long()
        return ((q[:, :, queries] * block.attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1).mean(dim=(1, 2))


def pruned(teacher: Sam, ratio: float) -> Sam:
    """The teacher with token pruning at `ratio`; every weight is the teacher's."""
    return _as(teacher, PrunedEncoder, prune_ratio=ratio)


# ---------------------------------------------------------------- merging
class MergedEncoder(BigLittleEncoder):
    """Token merging on the dense ViT (ToMe, arXiv 2210.09461), with the merged tokens parted again after each block.

    In the global layers a share of the tokens is merged into the most similar of the others (bipartite matching over
    every fourth token, as for dense prediction in arXiv 2303.17604), the block runs on what is left, and each merged
    token gets its group's change. Windowed layers stay dense: their relative positions need every place.
    """

    merge_ratio = 1.0

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, gh, gw, C) -> (B, out_chans, gh, gw)"""
        x, geometry = _start(self, tokens)
        for layer in range(self.config.depth):
            if layer in self.config.global_layers:
                keep = max(1, round(self.merge_ratio * x.shape[1]))
                x = _merged(self, x, range(layer, layer + 1), _match(x.detach(), geometry.grid, x.shape[1] - keep),
                            geometry)  # fmt: skip
            else:
                x = _dense(self, x, range(layer, layer + 1), geometry)
        return _end(self, x, tokens)


def merged(teacher: Sam, ratio: float) -> Sam:
    """The teacher with token merging down to `ratio` (at least a quarter) in its global layers; its own weights."""
    return _as(teacher, MergedEncoder, merge_ratio=ratio)


def _match(x: Tensor, grid: tuple[int, int], count: int) -> Tensor:
    """For each token the one that it merges into, itself for those that stay, (B, N): `count` of them merge."""
    rows, columns = grid
    place = torch.arange(rows * columns, device=x.device)
    is_target = (place // columns % 2 == 0) & (place % columns % 2 == 0)
    targets, sources = place[is_target], place[~is_target]
    unit = F.normalize(x.float(), dim=-1)
    similarity, best = (unit[:, sources] @ unit[:, targets].transpose(1, 2)).max(dim=-1)  # (B, sources)
    order = similarity.sort(dim=1, descending=True, stable=True).indices[:, : min(count, len(sources))]
    return place.expand(len(x), -1).scatter(1, sources[order], targets[best.gather(1, order)])


class StructuredEncoder(BigLittleEncoder):
    """Merging in flat areas only, after StructSAM's abstract (arXiv 2603.07307); its code is not known to us.

    A token's energy is the size of the first differences of the features around it. In every layer the 2 x 2 cells
    with the least energy are merged into their token of least energy; the others stay as they are.
    """

    merge_ratio = 1.0

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, gh, gw, C) -> (B, out_chans, gh, gw)"""
        x, geometry = _start(self, tokens)
        for layer in range(self.config.depth):
            energy = _energy(x.detach(), geometry.grid)
            owner = _flat_cells(energy, energy, self.merge_ratio, geometry.grid)
            x = _merged(self, x, range(layer, layer + 1), owner, geometry)
        return _end(self, x, tokens)


def structured(teacher: Sam, ratio: float) -> Sam:
    """The teacher with merging in flat areas down to `ratio` (at least a quarter) in all layers; its own weights."""
    return _as(teacher, StructuredEncoder, merge_ratio=ratio)


def _energy(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Size of the central differences of the tokens x (B, N, C) in rows and columns, (B, N)."""
    image = F.pad(x.transpose(1, 2).unflatten(2, grid), (1, 1, 1, 1), mode="replicate")
    down = image[:, :, 2:, 1:-1] - image[:, :, :-2, 1:-1]
    right = image[:, :, 1:-1, 2:] - image[:, :, 1:-1, :-2]
    return (down.square() + right.square()).sum(dim=1).sqrt().flatten(1)


def _flat_cells(worth: Tensor, energy: Tensor, ratio: float, grid: tuple[int, int]) -> Tensor:
    """For each token the one that it merges into, (B, N): the 2 x 2 cells of least worth become one token each.

    Args:
        worth: (B, N), of the tokens, summed over a cell.
        energy: (B, N), whose smallest in a cell is the token that stays.
        ratio: share of the tokens that are left, at least a quarter.
        grid: rows and columns, even.
    """
    batch, count = worth.shape
    cells = _in_cells(torch.arange(count, device=worth.device).expand(batch, -1), grid)  # (B, M, 4) tokens
    merging = max(0, min(cells.shape[1], round((count - ratio * count) / 3)))
    order = worth.gather(1, cells.flatten(1)).view_as(cells).sum(-1).sort(dim=1, stable=True).indices[:, :merging]
    flat = cells.gather(1, order[..., None].expand(-1, -1, 4))  # (B, merging, 4)
    least = energy.gather(1, flat.flatten(1)).view_as(flat).argmin(-1, keepdim=True)
    target = flat.gather(2, least).expand_as(flat)
    place = torch.arange(count, device=worth.device).expand(batch, -1)
    return place.scatter(1, flat.flatten(1), target.flatten(1))


def _in_cells(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, N) -> (B, N / 4, 4), by 2 x 2 cells"""
    rows, columns = grid
    return x.reshape(-1, rows // 2, 2, columns // 2, 2).transpose(2, 3).reshape(len(x), -1, 4)


# ---------------------------------------------------------------- merging inside the big.LITTLE layer
class MixedEncoder(BigLittleEncoder):
    """big.LITTLE whose unselected tokens are merged by 2 x 2 cells instead of projected: the big blocks run on both.

    The router scores cells; those of highest score keep their tokens, of the others one token, the mean, goes through
    the big blocks, and the four share its change. What `up` makes of the little stream is added to them, so that they
    do not end alike. There are no E-blocks. `keep_ratio` is the share of tokens in the big blocks, at least a quarter.
    """

    def _run_group(
        self, x: Tensor, little: Tensor | None, index: int, ratio: float | str, big: Geometry, small: Geometry
    ) -> tuple[Tensor, Tensor, RouteGroup]:
        transition, (_, layers) = self.transitions[index], self.config.groups[index]
        little = transition.enter(x)
        scores = transition.router(little)
        owner = _flat_cells(scores.detach(), -scores.detach(), float(ratio), big.grid)
        kept = _kept(owner)
        gate = straight_through_gate(scores, kept) if torch.is_grad_enabled() else None
        after = _merged(self, x, layers, owner, big, gate)
        is_merged = owner != torch.arange(x.shape[1], device=x.device)
        is_merged = is_merged | _has_others(owner)
        after = after + transition.up(little) * is_merged[..., None].to(x.dtype)
        if self.taps is not None:
            self.taps.layers[layers[-1]] = after
            self.taps.little[layers[-1]] = (after, scores)
        return after, little, RouteGroup(tuple(layers), top_tokens(scores.detach(), kept.shape[1]), scores.detach())


def _has_others(owner: Tensor) -> Tensor:
    """Which tokens others merge into, (B, N)."""
    place = torch.arange(owner.shape[1], device=owner.device)
    others = (owner != place).long()
    return torch.zeros_like(owner).scatter_add_(1, owner, others) > 0


def mixed(student: Sam, crops: Sequence[Batch] = (), ratio: float = 0.4) -> Sam:
    """A converted student as a `MixedEncoder`.

    Args:
        student: its big path is the teacher, and its `down` and routers are fitted.
        crops: batches to fit `up` to, by least squares at `ratio`, group by group, to what merged tokens lack; without
            any it adds nothing.
    """
    sam = _as(student, MixedEncoder)
    encoder = sam.image_encoder
    for transition in encoder.transitions:
        nn.init.zeros_(transition.up.weight)
        nn.init.zeros_(transition.up.bias)
    states = []
    for batch in crops:
        tokens = embed_crop(sam, (batch["image"].float() - sam.pixel_mean) / sam.pixel_std, batch["offset"])
        states.append((*_start(encoder, tokens.detach()), batch["valid"].flatten()))
    with torch.no_grad():
        xs = theirs = [x for x, *_ in states]
        for group, (_, layers) in enumerate(encoder.config.groups) if states else ():
            theirs = [_dense(encoder, x, layers, geometry) for x, (_, geometry, _) in zip(theirs, states)]
            moments = Moments()
            for x, wanted, (_, geometry, valid) in zip(xs, theirs, states):
                after, little, _ = encoder._run_group(x, None, group, ratio, geometry, geometry)
                moments.add(little.flatten(0, 1)[valid], (wanted - after).flatten(0, 1)[valid])
            moments.solve(encoder.transitions[group].up)
            xs = [
                encoder._run_group(x, None, group, ratio, geometry, geometry)[0]
                for x, (_, geometry, _) in zip(xs, states)
            ]
    for name, parameter in sam.image_encoder.named_parameters():  # what no longer runs
        if LITTLE_PATH.match(name) and not name.startswith("transitions."):
            parameter.requires_grad_(False)
    return sam


# ---------------------------------------------------------------- parts
def _as(sam: Sam, kind: type[BigLittleEncoder], **settings: float) -> Sam:
    """A copy of `sam` whose encoder is of another class."""
    sam = copied(sam)
    sam.image_encoder.__class__ = kind
    for name, value in settings.items():
        setattr(sam.image_encoder, name, value)
    return sam


def copied(sam: Sam) -> Sam:
    """A copy that nothing is shared with."""
    return copy.deepcopy(sam)


def _start(encoder: BigLittleEncoder, tokens: Tensor) -> tuple[Tensor, Geometry]:
    """Tokens (B, gh, gw, C) as a row (B, N, C), and their windows."""
    gh, gw = int(tokens.shape[1]), int(tokens.shape[2])
    return tokens.flatten(1, 2).contiguous(), encoder._geometry((gh, gw), encoder.config.window, tokens.device)


def _end(encoder: BigLittleEncoder, x: Tensor, tokens: Tensor) -> Tensor:
    return encoder._neck(x.view(tokens.shape))


def _dense(encoder: BigLittleEncoder, x: Tensor, layers: range, geometry: Geometry) -> Tensor:
    x = geometry.on_grid(x)
    for layer in layers:
        x = encoder.blocks[layer](x, geometry)
    return x.flatten(1, 2)


def _sparse(encoder: BigLittleEncoder, x: Tensor, layers: range, selection: Selection) -> Tensor:
    """Layers on some tokens x (B, K, C), which see each other and nothing else."""
    given, x = x.dtype, x.to(encoder.pos_embed.dtype)  # C++ kernels keep float32 between the layers
    for layer in layers:
        block = encoder.blocks[layer]
        x = x + SelectedOnlyAttention.routed(block.attn, block.norm1(x), None, selection, selection.geometry)
        x = x + block.mlp(block.norm2(x))
    return x.to(given)


def _kept(owner: Tensor) -> Tensor:
    """Tokens that are left, ascending, (B, K); as many in each image."""
    stays = owner == torch.arange(owner.shape[1], device=owner.device)
    return stays.nonzero()[:, 1].view(len(owner), -1)


def _merged(
    encoder: BigLittleEncoder, x: Tensor, layers: range, owner: Tensor, geometry: Geometry, gate: Tensor | None = None
) -> Tensor:
    """Layers on means of tokens x (B, N, C), each of which gets the change of its mean.

    Args:
        owner: the token that each merges into, (B, N).
        gate: factor on the change of each that is left, (B, K, 1).
    """
    wide = owner[..., None].expand_as(x)
    means = torch.zeros_like(x).scatter_reduce(1, wide, x, "mean", include_self=False)
    selection = Selection(_kept(owner), geometry)
    before = selection.gather(means)
    change = _sparse(encoder, before, layers, selection) - before
    if gate is not None:
        change = gate.to(x.dtype) * change
    return x + selection.scatter(torch.zeros_like(x), change).gather(1, wide)
