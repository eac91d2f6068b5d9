"""Other ways to choose tokens that the study measures: routers, and what they are fitted to.

Each function changes a Sam in place; it trains and evaluates like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sam_bigltl.convert.warm_start import choose_ratios
from sam_bigltl.convert.warm_start.moments import Moments
from sam_bigltl.modeling.decode import dense_position
from sam_bigltl.modeling.encoder import BigLittleEncoder
from sam_bigltl.modeling.routing import top_tokens
from sam_bigltl.training.engine import Batch
from sam_bigltl.training.loop import embed_crop
from sam_bigltl.training.losses import mask_loss
from sam_bigltl.training.rounds import decode_with_masks


class RandomRouter(nn.Module):
    """Scores drawn anew at every call, from torch's generator."""

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) -> scores (B, N) that sum to 1."""
        return torch.rand(little.shape[:2], device=little.device).softmax(dim=1)


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


class CoveringRouter(nn.Module):
    """A router's scores, lowered for tokens that earlier groups have selected, so that all have their turn.

    Args:
        router: the learned one.
        before: the covering router of the group before, or None for the first.
        penalty: of the log score, for each time that a token was selected.
    """

    def __init__(self, router: nn.Module, before: CoveringRouter | None, penalty: float = 1.0) -> None:
        super().__init__()
        self.router, self.penalty = router, penalty
        self._before = (before,)  # not a submodule
        self.ratio = 1.0  # set by `covered`
        self.times: Tensor | None = None

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) -> scores (B, N) that sum to 1"""
        (before,) = self._before
        scores = self.router(little)
        times = torch.zeros_like(scores) if before is None else before.times
        scores = scores * (-self.penalty * times).exp()
        scores = scores / scores.sum(dim=1, keepdim=True)
        chosen = top_tokens(scores.detach(), max(1, round(self.ratio * scores.shape[1])))
        self.times = times.scatter_add(1, chosen, torch.ones_like(scores).gather(1, chosen))
        return scores


class TurnRouter(nn.Module):
    """No importance: each group takes the next tokens of an order that spreads any run of them evenly.

    The order is that of ordered dithering (Bayer's matrix), so that a quarter of the tokens is every second one of
    every second row. Tokens that the learned router calls unimportant, as the padding is, come last.

    Args:
        router: the learned one, of which only that is used.
        group: which selection this is.
        least: score, relative to the mean, under which a token comes last.
    """

    def __init__(self, router: nn.Module, group: int, least: float = 0.1) -> None:
        super().__init__()
        self.router, self.group, self.least = router, group, least
        self.ratio = 1.0  # set by `covered`

    def forward(self, little: Tensor) -> Tensor:
        """little (B, N, C_E) of a square grid -> scores (B, N) that sum to 1, without a gradient"""
        with torch.no_grad():
            scores = self.router(little)
            last = scores < self.least / scores.shape[1]
            rank = (dither_order(round(scores.shape[1] ** 0.5), scores.device) + 2 * scores.shape[1] * last).argsort(1)
            place = rank.argsort(1).to(scores.dtype)  # among the tokens of the image
            size = (~last).sum(dim=1, keepdim=True).clamp(min=1)
            turn = (place - self.group * max(1, round(self.ratio * scores.shape[1]))) % size
            value = torch.where(last, place, turn).neg().div(scores.shape[1])
            return (value - 2.0 * last).softmax(dim=1)


def dither_order(side: int, device: torch.device | str) -> Tensor:
    """The place of each token of a grid in the order of ordered dithering, (side * side,), all different."""
    matrix, size = torch.zeros(1, 1, dtype=torch.long, device=device), 1
    while size < side:
        matrix = torch.cat([torch.cat([4 * matrix, 4 * matrix + 2], 1), torch.cat([4 * matrix + 3, 4 * matrix + 1], 1)])
        size *= 2
    return matrix[:side, :side].flatten().argsort().argsort()


def covered(sam: Sam, make: Callable[[nn.Module, int, nn.Module | None], nn.Module]) -> None:
    """Give each group the router `make(its own, group, the one made before)`, which is told the keep ratio."""
    encoder, made = sam.image_encoder, []
    for group, transition in enumerate(encoder.transitions):
        transition.router = make(transition.router, group, made[-1] if made else None)
        made.append(transition.router)

    def tell(module: nn.Module, inputs: tuple) -> None:
        for router in made:
            router.ratio = float(encoder.keep_ratio)

    made[0].register_forward_pre_hook(tell)


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


def fit_routers_to_masks(sam: Sam, crops: Sequence[Batch]) -> None:
    """Fit the routers to what a token's big path changes in the masks, in place.

    That is |g . d|, where d is what the little path lacks of the token at the end of a group, and g the gradient of the
    loss of the masks, against the photographs' own, with respect to it. The router is the ridge regression of its log
    on the little stream, as the closed-form start fits it to |d|.

    Args:
        sam: converted and fitted.
        crops: batches of `MaskBatches`.
    """
    encoder = sam.image_encoder
    logs = [Moments() for _ in encoder.transitions]
    for batch in crops:
        for group, (stream, effect, valid) in enumerate(_mask_effects(sam, batch)):
            log = effect.clamp(min=1e-12).log()
            floor = log[valid].quantile(0.02)
            logs[group].add(stream, torch.where(valid, log, floor)[:, None], torch.where(valid, 1.0, 0.3))
    with torch.no_grad():
        for moments, transition in zip(logs, encoder.transitions):
            moments.solve(transition.router.score)


def _mask_effects(sam: Sam, batch: Batch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each group: the little stream it starts with, |g . d| of each token, and which tokens show the photograph."""
    encoder = sam.image_encoder
    loss, states = _dense_loss(sam, batch)
    gradients = torch.autograd.grad(loss, states[1:])
    small = encoder._geometry(tuple(states[0].shape[1:3]), encoder.config.little_window, loss.device)
    found = []
    with torch.no_grad():
        for (_, layers), transition, before, after, gradient in zip(
            encoder.config.groups, encoder.transitions, states, states[1:], gradients
        ):
            stream = little = transition.enter(before.flatten(1, 2))
            for layer in layers:
                little = encoder.little_blocks[layer](little, small)
            lack = after.flatten(1, 2) - transition.estimate(before.flatten(1, 2), little)
            effect = (gradient.flatten(1, 2) * lack).sum(-1).abs()
            found.append((stream.flatten(0, 1), effect.flatten(), batch["valid"].flatten()))
    return found


def _dense_loss(sam: Sam, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The loss of the masks at keep_ratio 1.0, and the tokens before the first group and after each."""
    encoder = sam.image_encoder
    images = (batch["image"].float() - sam.pixel_mean) / sam.pixel_std
    states = [embed_crop(sam, images, batch["offset"])]
    big = encoder._geometry(tuple(states[0].shape[1:3]), encoder.config.window, images.device)
    for _, layers in encoder.config.groups:
        x = states[-1]
        for layer in layers:
            x = encoder.blocks[layer](x, big)
        states.append(x)
    embeddings = encoder._neck(states[-1])
    position = dense_position(sam.prompt_encoder, batch["offset"], embeddings.shape[-2:])
    logits, iou_pred = decode_with_masks(sam, embeddings, position, batch["coords"], batch["labels"])
    return mask_loss(logits, iou_pred, batch["target"].float() / 255, batch["boxes"]).total, states


class StagedEncoder(BigLittleEncoder):
    """Takes a number for `keep_ratio` as the tuple, one ratio a stage, that `by_stage` has for it."""

    by_stage: dict[float, tuple[float, ...]]

    def _checked(self, value: Any) -> Any:
        return super()._checked(self.by_stage.get(value, value))


def ratios_by_stage(sam: Sam, crops: Sequence[Batch], means: Sequence[float]) -> None:
    """Give each mean keep ratio the ratios by stage that change the embedding least at the same cost.

    Args:
        crops: batches that they are chosen on.
        means: the keep ratios, below 1.
    """
    images = torch.cat([batch["image"] for batch in crops]).float()
    images = list(((images - sam.pixel_mean) / sam.pixel_std).split(1))
    found = {mean: choose_ratios(sam, images, mean, progress=False) for mean in means}
    sam.image_encoder.by_stage = found
    sam.image_encoder.__class__ = StagedEncoder
