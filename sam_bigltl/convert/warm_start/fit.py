"""The closed-form start: everything is fitted group by group on a few dozen images, with linear algebra.

The big path is the teacher. Each image also runs through the model that is being fitted, at a keep ratio: what a group
gets is what this model gives it, and what it is fitted to are the teacher's tokens, so that errors do not add up.

* `down` spans the C_E directions of the group's input from which its keys, values and change are best predicted
  (reduced-rank regression), scaled to unit variance;
* `kv_little` and `up` are ridge regressions of keys and values, and of what the tokens lack at the end of the group,
  on the little stream;
* E-blocks get the hidden units of their MLP from the teacher's own (`features`), and the layer after them is fitted to
  what `up` leaves; their attention adds nothing;
* the router is a ridge regression of the log of the error that `up` leaves: tokens that the little path cannot
  explain are the important ones.

A `continuous` little stream has one `down`, for the keys and values of all layers and what leaves the last one; what
its `up` is fitted to are the teacher's tokens themselves, since unselected tokens have nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
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

PADDING = 0.02  # weight of a token outside the photograph: other tokens see it, but no mask is there
OUTSIDE, EASY = 0.3, 0.02  # its weight for the router, and the quantile of the errors inside that is taken for its own


@dataclass(frozen=True)
class Recipe:
    """What the fit does; each part can be left out, so that eval/research/fit_study.py can measure it.

    Attributes:
        ratios: keep ratios that the images run at, in turn; none fits every group to the teacher's own activations.
        units: give E-blocks hidden units of the teacher; else they add nothing.
        photo_only: fit to the photograph, not to the padding of the frame.
        channels: weigh channels by what reads them, where `down` is chosen.
        change: weight of the change against the keys and values of a layer, where `down` is chosen.
        ridge: of every regression, see `Moments`.
    """

    ratios: tuple[float, ...] = (0.5, 0.25, 0.125)
    units: bool = True
    photo_only: bool = True
    channels: bool = True
    change: float = 2.0
    ridge: float = RIDGE


_DEFAULT = Recipe()


@dataclass
class _Image:
    """One image on its way.

    Attributes:
        x: tokens of the model that is fitted, before the group, (1, N, C).
        teacher: the teacher's tokens before the layer that is fitted.
        weight: of each token, (N,).
        ratio: keep ratio; 1.0 is the teacher itself.
        after: the teacher's tokens after the group.
        base: what `up` adds to, (1, N, C).
        entering: little stream before the group, (N, C_E).
        little: little stream, (N, C_E).
    """

    x: Tensor
    teacher: Tensor
    weight: Tensor
    ratio: float
    after: Tensor = field(init=False)
    base: Tensor = field(init=False)
    entering: Tensor = field(init=False)
    little: Tensor = field(init=False)

    @property
    def lack(self) -> Tensor:
        """What the tokens lack at the end of the group, (N, C)."""
        return (self.after - self.base)[0]


@torch.no_grad()
def warm_start(sam: Sam, images: Iterable[Tensor], progress: bool = True, recipe: Recipe = _DEFAULT) -> None:
    """Fit the little path of a converted model, in place.

    Args:
        sam: from `convert_sam`; its big path is the teacher and is not changed.
        images: preprocessed images (1, 3, S, S) on the model's device, as `Sam.preprocess` returns them; some dozens.
            Three sets of tokens are held of each, and each runs through every group of layers twice in full and once
            at a keep ratio.
        progress: show a bar where stderr is a terminal.
        recipe: what is fitted, for studies.

    Raises:
        InputError: there are no images.
    """
    encoder: BigLittleEncoder = sam.image_encoder
    states: list[_Image] = []
    for image in images:
        embedded = encoder.embed_patches(image)
        grid = (int(embedded.shape[1]), int(embedded.shape[2]))
        tokens = embedded.flatten(1, 2).contiguous()
        weight = tokens.new_ones(tokens.shape[1], dtype=torch.float32)
        if recipe.photo_only:
            weight[~photo_tokens(image, encoder.patch_size).flatten()] = PADDING
        ratio = recipe.ratios[len(states) % len(recipe.ratios)] if recipe.ratios else 1.0
        states.append(_Image(tokens, tokens, weight, ratio))
    if not states:
        raise InputError("the warm start needs photographs, and there are none")
    big = encoder._geometry(grid, encoder.config.window, tokens.device)
    small = encoder._geometry(grid, encoder.config.little_window, tokens.device)
    block: Any
    for block in encoder.little_blocks:
        for layer in (block.attn.proj, block.mlp.lin2):
            layer.weight.zero_()
            layer.bias.zero_()
    groups = list(zip(encoder.transitions, encoder.config.groups))
    # disable=None: no bar where stderr is no terminal
    bar = tqdm(groups, desc="warm start", disable=None if progress else True)
    for index, (transition, (_, layers)) in enumerate(bar):
        if index == 0 or not encoder.continuous:
            _fit_entry(encoder, transition, range(encoder.config.depth) if encoder.continuous else layers, states, big,
                       recipe)  # fmt: skip
        _fit_group(encoder, transition, layers, states, big, recipe)
        for state in states if index + 1 < len(groups) else ():
            if state.ratio == 1.0:
                state.x = state.after
            else:
                entering = state.entering[None]
                state.x, _, _ = encoder._run_group(state.x, entering, index, state.ratio, big, small)
            state.teacher = state.after


def _fit_entry(
    encoder: BigLittleEncoder, transition: Any, layers: range, states: list[_Image], big: Geometry, recipe: Recipe
) -> None:
    """Fit `down` to the layers that its stream is for, and start it; leaves the teacher's tokens behind them."""
    blocks: list[Any] = [encoder.blocks[layer] for layer in layers]
    moments = Moments(recipe.ridge)
    for state in states:
        tokens, keys_values = state.teacher, []
        for block in blocks:
            tokens, own, _ = _dense_pass(block, tokens, big)
            keys_values.append(own)
        state.after = tokens
        change = (tokens if encoder.continuous else tokens - state.x)[0]
        moments.add(state.x[0], torch.cat([*keys_values, change], dim=-1), state.weight)
    later, width = _read_later(encoder, layers[-1]), encoder.config.dim
    parts = [(torch.ones_like(later).repeat(2), 1.0) for _ in blocks] + [(torch.ones_like(later), recipe.change)]
    if recipe.channels:
        parts = [(read, 0.5**0.5) for block in blocks for read in _read_inside(block).split(width)]
        parts.append((later, recipe.change))
    _fit_down(transition.down, moments, parts)
    for state in states:
        state.little = transition.down(state.x)[0]


def _fit_group(
    encoder: BigLittleEncoder, transition: Any, layers: range, states: list[_Image], big: Geometry, recipe: Recipe
) -> None:
    """Fit the rest of a group; leaves the teacher's tokens after it in `after`, and the little stream behind it."""
    blocks: list[Any] = [encoder.blocks[layer] for layer in layers]
    little_blocks: list[Any] = [encoder.little_blocks[layer] for layer in layers]
    later = _read_later(encoder, layers[-1])
    for state in states:
        if encoder.continuous:  # what `_fit_entry` left are the tokens behind the last layer of all
            state.after = state.teacher
            for block in blocks:
                state.after = call(block, big.on_grid(state.after), big, PBlock).flatten(1, -2)
        state.base = torch.zeros_like(state.x) if encoder.continuous else state.x
        state.entering = state.little
    for block, little_block in zip(blocks, little_blocks):
        regression, units = Moments(recipe.ridge), Moments(recipe.ridge)
        for state in states:
            state.teacher, own, middle = _dense_pass(block, state.teacher, big)
            regression.add(block.norm_little(state.little), own, state.weight)
            if recipe.units:
                units.add(little_block.norm2(state.little), block.mlp.lin1(block.norm2(middle))[0], state.weight)
        regression.solve(block.attn.kv_little)
        if recipe.units:
            teacher_units(little_block, block, units)
            fit_block(little_block, states, later, recipe.ridge)

    change = Moments(recipe.ridge)
    for state in states:
        change.add(state.little, state.lack, state.weight)
    change.solve(transition.up)
    _fit_router(transition, states, recipe)


def _dense_pass(block: PBlock, x: Tensor, big: Geometry) -> tuple[Tensor, Tensor, Tensor]:
    """Of the teacher's block: tokens after it (1, N, C), keys and values (N, 2C), and tokens before its MLP."""
    keys_values = block.attn.qkv(block.norm1(x))[0, :, x.shape[-1] :]
    middle: list[Tensor] = []
    hook = block.norm2.register_forward_pre_hook(lambda _, inputs: middle.append(inputs[0]))
    try:
        after = call(block, big.on_grid(x), big, PBlock)
    finally:
        hook.remove()
    return after.flatten(1, -2), keys_values, middle[0].flatten(1, -2)


def _fit_router(transition: Any, states: list[_Image], recipe: Recipe) -> None:
    """Regress the log of the error that `up` leaves on the stream before the group."""
    logs = Moments(recipe.ridge)
    for state in states:
        error = (state.lack - transition.up(state.little)).square().mean(dim=-1)
        log, weight = error.clamp(min=1e-12).log(), state.weight
        inside = weight == 1
        if not inside.all():
            # Outside the photograph no error matters: as easy as the easiest tokens inside.
            log = log.where(inside, log[inside].quantile(EASY))
            weight = torch.where(inside, 1.0, OUTSIDE)
        logs.add(state.entering, log[:, None], weight)
    logs.solve(transition.router.score)


def _read_inside(block: Any) -> Tensor:
    """How much a unit of each key and value channel moves logits and output, (2C,).

    Keys can be scaled up where queries are scaled down, and values where the projection is: neither changes the layer,
    nor what is fitted.
    """
    dim = block.attn.proj.weight.shape[0]
    query = (block.attn.qkv.weight[:dim] * block.norm1.weight).square().sum(dim=1)
    reach = (query + block.attn.qkv.bias[:dim].square()).sqrt()
    return torch.cat([reach, block.attn.proj.weight.norm(dim=0)])


def _read_later(encoder: BigLittleEncoder, layer: int) -> Tensor:
    """How strongly what comes after a layer reads each channel, (C,): the neck, and layers' MLPs and values."""
    neck: Any = encoder.neck[0]
    read = [neck.weight.flatten(1).norm(dim=0)]
    block: Any
    for block in encoder.blocks[layer + 1 :]:
        _, _, value = block.attn.qkv.weight.chunk(3)
        value = value * block.attn.proj.weight.norm(dim=0)[:, None]  # as it reaches the output, whatever its scale
        for norm, linear in ((block.norm1, value), (block.norm2, block.mlp.lin1.weight)):
            read.append((linear * norm.weight).norm(dim=0))
    return torch.stack([_normalised(each) for each in read]).square().mean(dim=0).sqrt()


def _normalised(x: Tensor) -> Tensor:
    """x with a root mean square of 1."""
    return x / x.square().mean().sqrt().clamp(min=1e-12)


def _fit_down(down: nn.Linear, moments: Moments, parts: list[tuple[Tensor, float]]) -> None:
    """The best rank-C_E linear summary of x for predicting y, as uncorrelated features of unit variance.

    Args:
        parts: what `y` is made of: a factor for each channel of a part, and the weight of the part, whatever its size.
    """
    mean_x, _, xx, xy = moments.centred()
    size = xx.diagonal().sqrt()
    values, vectors = torch.linalg.eigh(xx / torch.outer(size, size))
    inverse_root = vectors / values.clamp(min=values.max() * 1e-10).sqrt() @ vectors.T / size
    fitted = inverse_root @ xy  # (C, q): each target's regression in whitened x
    scaled = []
    for own, (scale, weight) in zip(fitted.split([len(scale) for scale, _ in parts], dim=1), parts):
        own = own * scale.double()
        scaled.append(own * (weight / own.norm().clamp(min=1e-300)))
    fitted = torch.cat(scaled, dim=1)
    directions = torch.linalg.eigh(fitted @ fitted.T).eigenvectors[:, -down.out_features :]  # (C, C_E)
    # An eigenvector's sign is any, but the norms after `down` see it: the same on every machine.
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    weight = (directions * largest.sign()).T @ inverse_root  # (C_E, C)
    down.weight.copy_(weight)
    down.bias.copy_(-weight @ mean_x)
