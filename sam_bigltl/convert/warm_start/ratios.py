"""Which stages need big tokens most: one keep ratio a stage at the cost of the same ratio everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from tqdm import tqdm

from ...errors import InputError
from ...modeling.encoder import BigLittleEncoder, EncoderConfig
from .photo import photo_tokens

STEPS = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5, 0.625, 0.75)
_MEASURED = 3  # of the tuples that promise most, how many are measured


def stage_costs(config: EncoderConfig) -> list[float]:
    """Share of each stage in what the big path costs, at equal keep ratios, in multiply-accumulates.

    It is proportional to the tokens that a stage keeps: its linear layers, and queries against every key in reach.
    """
    costs = []
    for layers in config.stages:
        reach = [config.side**2 if layer in config.global_layers else config.window**2 for layer in layers]
        costs.append(sum((4 + 2 * config.mlp_ratio) * config.dim + 2 * keys for keys in reach))
    return [cost / sum(costs) for cost in costs]


@torch.no_grad()
def choose_ratios(
    sam: Sam, images: Sequence[Tensor], mean_ratio: float, steps: Sequence[float] = STEPS, progress: bool = True
) -> tuple[float, ...]:
    """Keep ratios by stage that cost no more than `mean_ratio` in every stage and change the embedding least.

    Each stage is measured at each step with the others at `mean_ratio`; errors are taken to add up. The tuples that
    promise most are then measured themselves, beside the even one, so that the choice is never worse on `images`.

    Args:
        sam: a big.LITTLE model whose little path is fitted or trained. Its `keep_ratio` is left as it was.
        images: preprocessed images (1, 3, S, S) on its device, as `Sam.preprocess` returns them. They are encoded once
            for each step below 1 and stage, and four times more.
        mean_ratio: mean over the stages, by what they cost.
        steps: ratios that a stage may take, beside `mean_ratio`.
        progress: show a bar where stderr is a terminal.

    Returns:
        one ratio a stage, for `sam.image_encoder.keep_ratio`; even where nothing is better.

    Raises:
        InputError: no images, a dense model, or a ratio outside (0, 1).
    """
    encoder: BigLittleEncoder = sam.image_encoder
    if not images:
        raise InputError("keep ratios by stage are chosen on photographs, and there are none")
    if encoder.is_dense:
        raise InputError("this model is dense: it has no keep ratios to choose; convert it first")
    if not all(0 < ratio < 1 for ratio in (mean_ratio, *steps)):
        raise InputError(f"keep ratios to choose from lie between 0 and 1, not {mean_ratio:g} and {tuple(steps)}")
    costs = stage_costs(encoder.config)
    before: Any = encoder.keep_ratio
    ratios = sorted({*steps, mean_ratio})
    even = (mean_ratio,) * len(costs)
    budget = mean_ratio + 1e-9
    # What no tuple within the budget can take is not measured.
    least = min(ratios)
    usable = [[r for r in ratios if cost * r + (1 - cost) * least <= budget] for cost in costs]
    try:
        error = _Errors(encoder, images, 1 + sum(len(own) - 1 for own in usable) + _MEASURED, progress)
        base = error(even)
        change = [
            {r: 0.0 if r == mean_ratio else error((*even[:stage], r, *even[stage + 1 :])) - base for r in own}
            for stage, own in enumerate(usable)
        ]
        tuples = [t for t in product(*usable) if sum(c * r for c, r in zip(costs, t)) <= budget and t != even]
        tuples.sort(key=lambda t: sum(own[r] for own, r in zip(change, t)))
        found = {even: base} | {t: error(t) for t in tuples[:_MEASURED]}
    finally:
        encoder.keep_ratio = before
    error.bar.close()
    return min(found, key=lambda t: found[t])


class _Errors:
    """Squared error of the embedding over the square of that at 1.0, inside the photographs, at given ratios."""

    def __init__(self, encoder: BigLittleEncoder, images: Sequence[Tensor], total: int, progress: bool) -> None:
        self.encoder = encoder
        self.tokens = [encoder.embed_patches(image) for image in images]
        self.masks = [photo_tokens(image, encoder.patch_size) for image in images]
        self.bar = tqdm(total=total, desc="keep ratios by stage", disable=None if progress else True)
        self.wanted = self._encoded(1.0)

    def __call__(self, ratios: tuple[float, ...]) -> float:
        self.bar.update()
        off = sum((a - b).square().sum().item() for a, b in zip(self._encoded(ratios), self.wanted))
        return off / sum(b.square().sum().item() for b in self.wanted)

    def _encoded(self, ratio: Any) -> list[Tensor]:
        self.encoder.keep_ratio = ratio
        return [self.encoder.encode_tokens(x)[..., mask] for x, mask in zip(self.tokens, self.masks)]
