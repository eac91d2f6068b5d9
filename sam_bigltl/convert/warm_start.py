"""A closed-form start for the little path, so that a converted model is useful below keep_ratio 1.0 before training.

Everything is fitted group by group to the dense model's own activations on a few dozen images, with linear algebra:

* `down` spans the C_E directions of the group's input from which its keys, values and change are best predicted
  (reduced-rank regression), scaled to unit variance;
* `kv_little` and `up` are ridge regressions of keys and values, and of the group's change, on the little stream;
* the router is a ridge regression of the log of the error that `up` leaves: tokens that the little path cannot
  explain are the important ones.

E-blocks start as the identity (zero output projections), so that the fits hold from the first step on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import InputError
from ..modeling.blocks import PBlock
from ..modeling.encoder import BigLittleEncoder
from ..modeling.routing import Geometry
from ..modeling.trunk import Transition

RIDGE = 1e-4  # of the mean squared feature


class _Moments:
    """Sums for regressing y on x with an intercept, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []  # of x, y, x x^T and x y^T

    def add(self, x: Tensor, y: Tensor) -> None:
        """x (n, p), y (n, q)"""
        x, y = x.double(), y.double()
        sums = [x.sum(0), y.sum(0), x.T @ x, x.T @ y]
        self.sums = [old + new for old, new in zip(self.sums, sums)] if self.sums else sums
        self.count += len(x)

    def centred(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means of x (p,) and y (q,), covariances xx (p, p) with the ridge and xy (p, q)."""
        mean_x, mean_y, xx, xy = (total / self.count for total in self.sums)
        xx = xx - torch.outer(mean_x, mean_x)
        xx += torch.eye(len(xx), dtype=xx.dtype, device=xx.device) * RIDGE * xx.diagonal().mean()
        return mean_x, mean_y, xx, xy - torch.outer(mean_x, mean_y)

    def solve(self, layer: nn.Linear) -> None:
        """Make `layer` the regression."""
        mean_x, mean_y, xx, xy = self.centred()
        weight = torch.linalg.solve(xx, xy)  # (p, q)
        layer.weight.copy_(weight.T)
        if layer.bias is not None:
            layer.bias.copy_(mean_y - mean_x @ weight)


@torch.no_grad()
def warm_start(sam: Sam, images: Iterable[Tensor], progress: bool = True) -> None:
    """Fit the little path of a converted model, in place.

    Args:
        sam: from `convert_sam`; its big path is the teacher and is not changed.
        images: preprocessed images (1, 3, S, S) on the model's device, as `Sam.preprocess` returns them; some dozens.
            They are gone through three times a group.

    Raises:
        InputError: there are no images.
    """
    encoder: BigLittleEncoder = sam.image_encoder
    tokens: list[Tensor] = []
    geometry: Geometry | None = None
    for image in images:
        embedded = encoder.patch_embed(image) + encoder.pos_embed
        geometry = encoder._geometry(tuple(embedded.shape[1:3]), encoder.config.window, image.device)
        tokens.append(embedded.flatten(1, 2))
    if geometry is None:
        raise InputError("the warm start needs photographs, and there are none")
    block: Any
    for block in encoder.little_blocks:
        for layer in (block.attn.proj, block.mlp.lin2):
            layer.weight.zero_()
            layer.bias.zero_()
    groups = list(zip(encoder.transitions, encoder.config.groups))
    # disable=None: no bar where stderr is no terminal
    for transition, (_, layers) in tqdm(groups, desc="warm start", disable=None if progress else True):
        tokens = _fit_group(transition, [encoder.blocks[layer] for layer in layers], tokens, geometry)


def _fit_group(transition: Transition, blocks: list[PBlock], inputs: list[Tensor], geometry: Geometry) -> list[Tensor]:
    """Fit one group to the images' tokens before it; returns those after it."""
    moments, outputs = _Moments(), []
    for x in inputs:
        after, keys_values = _dense_pass(blocks, x, geometry)
        outputs.append(after)
        moments.add(x[0], torch.cat([*keys_values, after[0] - x[0]], dim=-1))
    _fit_down(transition.down, moments, parts=len(blocks) + 1)

    by_layer, change = [_Moments() for _ in blocks], _Moments()
    for x, after in zip(inputs, outputs):
        little = transition.down(x[0])
        change.add(little, after[0] - x[0])
        for block, own, regression in zip(blocks, _dense_pass(blocks, x, geometry)[1], by_layer):
            regression.add(block.norm_little(little), own)
    change.solve(transition.up)
    for block, regression in zip(blocks, by_layer):
        regression.solve(block.attn.kv_little)

    hardness = _Moments()
    for x, after in zip(inputs, outputs):
        little = transition.down(x[0])
        error = (after[0] - x[0] - transition.up(little)).square().mean(dim=-1, keepdim=True)
        hardness.add(little, error.clamp(min=1e-12).log())
    hardness.solve(transition.router.score)
    return outputs


def _dense_pass(blocks: list[PBlock], x: Tensor, geometry: Geometry) -> tuple[Tensor, list[Tensor]]:
    """Tokens after the blocks (1, N, C), and the keys and values of each block (N, 2C)."""
    keys_values = []
    for block in blocks:
        keys_values.append(block.attn.qkv(block.norm1(x))[0, :, x.shape[-1] :])
        x = block(x, geometry)
    return x, keys_values


def _fit_down(down: nn.Linear, moments: _Moments, parts: int) -> None:
    """The best rank-C_E linear summary of x for predicting y, as uncorrelated features of unit variance.

    `y` is made of `parts` (keys and values of each layer, and the change), which weigh the same.
    """
    mean_x, _, xx, xy = moments.centred()
    values, vectors = torch.linalg.eigh(xx)
    inverse_root = vectors / values.clamp(min=values.max() * 1e-10).sqrt() @ vectors.T
    fitted = inverse_root @ xy  # (C, q): each target's regression in whitened x
    width = len(mean_x)
    sizes = [2 * width] * (parts - 1) + [width]
    fitted = torch.cat([part / part.norm() for part in fitted.split(sizes, dim=1)], dim=1)
    directions = torch.linalg.eigh(fitted @ fitted.T).eigenvectors[:, -down.out_features :]  # (C, C_E)
    weight = directions.T @ inverse_root  # (C_E, C)
    down.weight.copy_(weight)
    down.bias.copy_(-weight @ mean_x)
