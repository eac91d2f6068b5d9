"""The closed-form start: everything is fitted group by group on a few dozen images, with linear algebra.

The big path is the teacher. Each image also runs through the model that is being fitted, at a keep ratio: what a group
gets is what this model gives it, and what it is fitted to are the teacher's tokens, so that errors do not add up.

* `down` spans the C_E directions of the group's input from which its keys, values and change are best predicted
  (reduced-rank regression), scaled to unit variance;
* `kv_little` and `up` are ridge regressions of keys and values, and of what the tokens lack at the end of the group,
  on the little stream;
* E-blocks get the hidden units of their MLP from the teacher's own (`features`), and the layer after them is fitted to
  what `up` leaves; their attention adds nothing;
* the router is fitted to each token's share of the error that `up` leaves in its image (`router`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from tqdm import tqdm

from ...errors import InputError
from ...modeling.blocks import PBlock
from ...modeling.calls import call
from ...modeling.encoder import BigLittleEncoder
from ...modeling.routing import Geometry
from .features import fit_block, teacher_units
from .moments import RIDGE, Moments
from .photo import photo_tokens
from .router import fit_router


@dataclass(frozen=True)
class Recipe:
    """What the fit does; the parts are apart so that eval/research/fit_study.py can measure each.

    Attributes:
        ratios: keep ratios that the images run at, in turn; none fits every group to the teacher's own activations.
        units: where the E-blocks' hidden units come from: "teacher", "random", or None, which leaves the blocks out.
        router: "share" of the image's error, or "log" of the error.
        rest: how much more than others tokens weigh that would not be selected.
        photo_only: fit to the photograph, not to the padding of the frame.
        channels: weigh channels of the change by what later layers read of them.
        change: weight of the change against a layer's keys and values, where `down` is chosen.
        ridge: of every regression, see `Moments`.
    """

    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    units: str | None = "teacher"
    router: str = "share"
    rest: float = 1.0
    photo_only: bool = True
    channels: bool = True
    change: float = 1.0
    ridge: float = RIDGE
    steps: int = 20
    fusion: bool = False
    twice: bool = False


BEFORE = Recipe(ratios=(), units=None, router="log", photo_only=False, channels=False)


@dataclass
class _Image:
    """One image on its way.

    Attributes:
        x: tokens of the model that is fitted, (1, N, C); after: the teacher's, at the end of the group.
        teacher: the teacher's before the layer that is fitted.
        weight: of each token, (N,).
        ratio: keep ratio; 1.0 is the teacher itself.
        little: little stream (N, C_E).
    """

    x: Tensor
    teacher: Tensor
    weight: Tensor
    ratio: float
    after: Tensor = torch.empty(0)
    little: Tensor = torch.empty(0)

    @property
    def lack(self) -> Tensor:
        """What the tokens lack at the end of the group, (N, C)."""
        return (self.after - self.x)[0]


@torch.no_grad()
def warm_start(sam: Sam, images: Iterable[Tensor], progress: bool = True, recipe: Recipe = Recipe()) -> None:
    """Fit the little path of a converted model, in place.

    Args:
        sam: from `convert_sam`; its big path is the teacher and is not changed.
        images: preprocessed images (1, 3, S, S) on the model's device, as `Sam.preprocess` returns them; some dozens.
            Each group of layers is gone through three times.
        progress: show a bar where stderr is a terminal.
        recipe: what is fitted, for studies.

    Raises:
        InputError: there are no images.
    """
    encoder: BigLittleEncoder = sam.image_encoder
    states: list[_Image] = []
    big = small = None
    for image in images:
        embedded = encoder.embed_patches(image)
        grid = (int(embedded.shape[1]), int(embedded.shape[2]))
        big = encoder._geometry(grid, encoder.config.window, image.device)
        small = encoder._geometry(grid, encoder.config.little_window, image.device)
        tokens = embedded.flatten(1, 2).contiguous()
        ratio = recipe.ratios[len(states) % len(recipe.ratios)] if recipe.ratios else 1.0
        states.append(
            _Image(tokens, tokens, _photo(image, encoder.patch_size) if recipe.photo_only else _all(tokens), ratio)
        )
    if big is None or small is None:
        raise InputError("the warm start needs photographs, and there are none")
    block: Any
    for block in encoder.little_blocks:
        for layer in (block.attn.proj, block.mlp.lin2):
            layer.weight.zero_()
            layer.bias.zero_()
    groups = list(zip(encoder.transitions, encoder.config.groups))
    # disable=None: no bar where stderr is no terminal
    for index, (transition, (_, layers)) in enumerate(
        tqdm(groups, desc="warm start", disable=None if progress else True)
    ):
        _fit_group(encoder, transition, layers, states, big, recipe)
        for state in states if index + 1 < len(groups) else ():
            if state.ratio == 1.0:
                state.x = state.after
            else:
                state.x, _ = encoder._run_group(state.x, transition, layers, state.ratio, big, small)
            state.teacher = state.after


PADDING = 0.02  # weight of a token outside the photograph: other tokens see it, but no mask is there


def _photo(image: Tensor, patch: int) -> Tensor:
    """Weights (N,) of the tokens."""
    return torch.where(photo_tokens(image, patch).flatten(), 1.0, PADDING)


def _all(tokens: Tensor) -> Tensor:
    return torch.ones(tokens.shape[1], device=tokens.device)


def _fit_group(
    encoder: BigLittleEncoder, transition: Any, layers: range, states: list[_Image], big: Geometry, recipe: Recipe
) -> None:
    """Fit one group; leaves the teacher's tokens after it in `after`."""
    blocks: list[Any] = [encoder.blocks[layer] for layer in layers]
    little_blocks: list[Any] = [encoder.little_blocks[layer] for layer in layers]
    metric = _read_later(encoder, layers[-1]) if recipe.channels else torch.ones(encoder.config.dim)
    moments = Moments(recipe.ridge)
    for state in states:
        tokens, keys_values = state.teacher, []
        for block in blocks:
            tokens, own, _ = dense(block, tokens, big)
            keys_values.append(own)
        state.after = tokens
        moments.add(state.x[0], torch.cat([*keys_values, state.lack], dim=-1), state.weight)
    scales = [_key_value_scale(block) if recipe.channels else torch.ones(2 * encoder.config.dim) for block in blocks]
    _fit_down(transition.down, moments, [*scales, metric], recipe.change)
    del moments

    starts = [state.teacher for state in states]
    for state in states:
        state.little = transition.down(state.x)[0]
    for block, little_block in zip(blocks, little_blocks):
        by_layer, units = Moments(recipe.ridge), Moments(recipe.ridge)
        for state in states:
            state.teacher, keys_values, middle = dense(block, state.teacher, big)
            by_layer.add(block.norm_little(state.little), keys_values, state.weight)
            if recipe.units == "teacher":
                units.add(little_block.norm2(state.little), block.mlp.lin1(block.norm2(middle))[0], state.weight)
        by_layer.solve(block.attn.kv_little)
        if recipe.units:
            teacher_units(little_block, block, units) if recipe.units == "teacher" else None
            fit_block(little_block, states, metric, recipe)
    _fit_up(transition.up, states, None, recipe)
    _route(transition, states, recipe)
    if recipe.rest != 1.0:
        _fit_up(transition.up, states, transition, recipe)
    if recipe.fusion:
        _fuse(encoder, transition, layers, states, starts, big, recipe)


def _fuse(encoder, transition, layers, states, starts, big, recipe):
    """Correct selected tokens for what approximate keys, values and inputs cost them, before each MLP."""
    from ...modeling.calls import Routed
    from ...modeling.routing import Selection, top_tokens

    small = encoder._geometry(big.grid, encoder.config.little_window, starts[0].device)
    on = []
    for state, start in zip(states, starts):
        little = transition.down(state.x)
        count = max(1, round(state.ratio * little.shape[1]))
        selection = Selection(top_tokens(transition.router(little), count), big)
        on.append([selection, little, selection.gather(state.x), start])
    for layer in layers:
        block = encoder.blocks[layer]
        block.gamma.zero_()
        m = Moments(recipe.ridge)
        caught = []
        hook = block.norm2.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        a = b = 0
        for item, state in zip(on, states):
            selection, little, x, t = item
            caught.clear()
            block(x, Routed(little, selection, big))
            item[3] = call(block, big.on_grid(t), big, PBlock).flatten(1, -2)
            own, middle = caught
            lack = (selection.gather(middle.flatten(1, -2)) - own)[0]
            m.add(selection.gather(little)[0], lack, state.weight[selection.indices[0]])
            a += lack.square().sum().item()
            b += len(lack)
        hook.remove()
        m.solve(block.up)
        block.gamma.fill_(1)
        c = 0
        for item in on:
            selection, little, x, t = item
            item[2] = block(x, Routed(little, selection, big))
            item[1] = encoder.little_blocks[layer](little, small)


def dense(block: PBlock, x: Tensor, big: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Of the teacher's block: tokens after it (1, N, C), keys and values (N, 2C), and tokens before its MLP."""
    keys_values = block.attn.qkv(block.norm1(x))[0, :, x.shape[-1] :]
    middle: list[Tensor] = []
    hook = block.norm2.register_forward_pre_hook(lambda _, inputs: middle.append(inputs[0]))
    try:
        after = call(block, big.on_grid(x), big, PBlock)
    finally:
        hook.remove()
    return after.flatten(1, -2), keys_values, middle[0].flatten(1, -2)


def _fit_up(up: nn.Linear, states: list[_Image], transition: Any, recipe: Recipe) -> None:
    """Regress what tokens lack on the little stream; with a transition, tokens that it would not select weigh more."""
    change = Moments(recipe.ridge)
    for state in states:
        weight = state.weight
        if transition is not None:
            scores = transition.router(transition.down(state.x))[0]
            rank = scores.argsort(descending=True).argsort() / len(scores)
            weight = weight * torch.where(rank >= state.ratio, recipe.rest, 1.0)
        change.add(state.little, state.lack, weight)
    change.solve(up)


def _route(transition: Any, states: list[_Image], recipe: Recipe) -> None:
    errors, littles = [], []
    for state in states:
        error = (state.lack - transition.up(state.little)).square().mean(dim=-1)
        errors.append(error * (state.weight == 1) if recipe.router == "share" else error)
        littles.append(transition.down(state.x)[0])
    fit_router(transition.router.score, littles, errors, recipe.router, [state.weight for state in states])


def _key_value_scale(block: Any) -> Tensor:
    """How much a unit of each key and value channel moves logits and output, (2C,)."""
    dim = block.attn.proj.weight.shape[0]
    query = block.attn.qkv.weight[:dim] * block.norm1.weight
    size = (query.square().sum(dim=1) + block.attn.qkv.bias[:dim].square()).sqrt()
    return torch.cat([size, block.attn.proj.weight.norm(dim=0)])


def _read_later(encoder: BigLittleEncoder, layer: int) -> Tensor:
    """How strongly what comes after a layer reads each channel, (C,), of root mean square 1."""
    total = encoder.neck[0].weight.flatten(1).square().sum(dim=0)
    total = total / total.mean()
    block: Any
    for block in encoder.blocks[layer + 1 :]:
        for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.lin1)):
            read = (linear.weight * norm.weight).square().sum(dim=0)
            total = total + read / read.mean()
    return (total / total.mean()).sqrt()


def _fit_down(down: nn.Linear, moments: Moments, scales: list[Tensor], change: float) -> None:
    """The best rank-C_E linear summary of x for predicting y, as uncorrelated features of unit variance.

    `y` is made of keys and values of each layer, and of the change; each part weighs the same, its channels by `scales`.
    """
    mean_x, _, xx, xy = moments.centred()
    values, vectors = torch.linalg.eigh(xx)
    inverse_root = vectors / values.clamp(min=values.max() * 1e-10).sqrt() @ vectors.T
    fitted = inverse_root @ xy  # (C, q): each target's regression in whitened x
    parts = [part * scale.double() for part, scale in zip(fitted.split([len(s) for s in scales], dim=1), scales)]
    parts = [part / part.norm() for part in parts]
    parts[-1] = parts[-1] * change
    fitted = torch.cat(parts, dim=1)
    directions = torch.linalg.eigh(fitted @ fitted.T).eigenvectors[:, -down.out_features :]  # (C, C_E)
    weight = directions.T @ inverse_root  # (C_E, C)
    down.weight.copy_(weight)
    down.bias.copy_(-weight @ mean_x)
