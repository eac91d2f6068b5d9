"""The closed-form start: what it must not touch, what it wins, and its regressions against NumPy's."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam

from sam_bigltl.convert import convert_sam
from sam_bigltl.convert.warm_start import Recipe, warm_start

LITTLE = 12
# Measured: relative error 0.114 -> 0.045 at keep_ratio 0.5, 0.142 -> 0.064 at 0.25 and 0.149 -> 0.070 at 0.125. With
# the teacher's own activations and without E-blocks 0.041, 0.072 (1.98 times) and 0.076 (1.94 times).
FACTORS = {0.5: 2.0, 0.25: 2.1, 0.125: 2.05}
# To the teacher's own activations, without E-blocks: what NumPy computes in one line each.
PLAIN = Recipe(ratios=(), units=False, photo_only=False, channels=False, change=1.0)


@pytest.fixture(scope="module")
def fitted() -> SimpleNamespace:
    """A tiny dense model and what it was converted to, before and after the warm start; pictures to fit and to test."""
    dense = dense_sam(dense_config(img_size=96))
    with torch.no_grad():
        for block in dense.image_encoder.blocks:  # a trained block changes its input, rather than replacing it
            block.attn.proj.weight.mul_(0.4)
            block.mlp.lin2.weight.mul_(0.4)
    torch.manual_seed(1)
    before = convert_sam(dense, LITTLE)
    torch.manual_seed(1)
    after = convert_sam(dense, LITTLE)
    pictures = [torch.from_numpy(picture(96, 96, seed)).permute(2, 0, 1) for seed in range(16)]
    images = [dense.preprocess(x)[None] for x in pictures]
    warm_start(after, images[:12], progress=False)
    plain = convert_sam(dense, LITTLE)
    warm_start(plain, images[:12], progress=False, recipe=PLAIN)
    return SimpleNamespace(
        dense=dense, before=before, after=after, plain=plain, fit=images[:12], test=torch.cat(images[12:])
    )


@torch.no_grad()
def embed(sam, images: torch.Tensor, keep_ratio: float) -> torch.Tensor:
    sam.image_encoder.keep_ratio = keep_ratio
    return sam.image_encoder(images)


def test_the_big_path_is_untouched(fitted):
    assert torch.equal(embed(fitted.after, fitted.test, 1.0), embed(fitted.dense, fitted.test, 1.0))
    fitted_state = fitted.after.state_dict()
    for name, value in fitted.dense.state_dict().items():
        assert torch.equal(fitted_state[name], value), name


def test_pictures_that_were_not_fitted_are_closer_below_full_keep_ratio(fitted):
    wanted = embed(fitted.dense, fitted.test, 1.0)
    for ratio, factor in FACTORS.items():
        errors = [
            ((embed(sam, fitted.test, ratio) - wanted).norm() / wanted.norm()).item()
            for sam in (fitted.before, fitted.after)
        ]
        assert errors[1] < errors[0] / factor, (ratio, errors)


@torch.no_grad()
def activations(fitted, group: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Of the dense model on the fitted pictures: a group's input (n, C), its keys and values by layer, its change."""
    encoder = fitted.dense.image_encoder
    layers = encoder.config.groups[group][1]
    inputs, keys_values, changes = [], {layer: [] for layer in layers}, []
    hooks = [  # on the norm: a hooked qkv gets padded windows
        encoder.blocks[layer].norm1.register_forward_hook(
            lambda _, __, out, layer=layer: keys_values[layer].append(
                encoder.blocks[layer].attn.qkv(out[0].flatten(0, 1))[:, out.shape[-1] :]
            )
        )
        for layer in layers
    ]
    states: dict[int, torch.Tensor] = {}
    for layer in (layers[0], layers[-1]):
        block = encoder.blocks[layer]
        hooks.append(
            block.register_forward_pre_hook(
                lambda _, args, layer=layer: states.update({layer: args[0][0].flatten(0, 1)})
            )
        )
        hooks.append(block.register_forward_hook(lambda _, __, out: states.update({-1: out[0].flatten(0, 1)})))
    encoder.keep_ratio = 1.0
    for image in fitted.fit:
        encoder(image)
        inputs.append(states[layers[0]])
        changes.append(states[-1] - states[layers[0]])
    for hook in hooks:
        hook.remove()
    arrays = [torch.cat(keys_values[layer]).double().numpy() for layer in layers]
    return torch.cat(inputs).double().numpy(), arrays, torch.cat(changes).double().numpy()


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients (p, q) and intercept (q,)."""
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    return solution[:-1], solution[-1]


def linear(layer: torch.nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


def explained(y: np.ndarray, fit: np.ndarray) -> float:
    return 1 - ((y - fit) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


@pytest.mark.parametrize("group", [0, 1])
def test_regressions_are_numpys(fitted, group):
    x, keys_values, change = activations(fitted, group)
    encoder = fitted.plain.image_encoder
    transition = encoder.transitions[group]
    little = linear(transition.down, x)
    assert np.abs(little.mean(0)).max() < 1e-3
    assert np.abs(np.cov(little.T) - np.eye(LITTLE)).max() < 0.05  # uncorrelated, of unit variance
    for layer, target in zip(encoder.config.groups[group][1], keys_values):
        normed = torch.nn.functional.layer_norm(torch.from_numpy(little), (LITTLE,), eps=1e-6).numpy()
        weight, bias = least_squares(normed, target)
        ours = linear(encoder.blocks[layer].attn.kv_little, normed)
        assert np.abs(ours - (normed @ weight + bias)).max() < 2e-3 * target.std()
    weight, bias = least_squares(little, change)
    assert np.abs(transition.up.weight.detach().numpy().T - weight).max() < 1e-3 * np.abs(weight).max()
    assert np.abs(linear(transition.up, little) - (little @ weight + bias)).max() < 2e-3 * change.std()
    error = ((change - (little @ weight + bias)) ** 2).mean(1)
    weight, _ = least_squares(little, np.log(error)[:, None])
    score = transition.router.score.weight.detach().numpy()[0]
    assert np.abs(score - weight[:, 0]).max() < 5e-3 * np.abs(weight).max()


@pytest.mark.parametrize("group", [0, 1])
def test_directions_explain_the_targets_as_well_as_principal_components_do(fitted, group):
    x, keys_values, change = activations(fitted, group)
    # Each part weighs the same, as what a linear map of all of x explains of it.
    parts = []
    for part in (*keys_values, change):
        weight, bias = least_squares(x, part)
        fit = x @ weight + bias
        parts.append(part / np.linalg.norm(fit - fit.mean(0)))
    targets = np.concatenate(parts, axis=1)
    little = linear(fitted.plain.image_encoder.transitions[group].down, x)
    principal = (x - x.mean(0)) @ np.linalg.svd(x - x.mean(0), full_matrices=False)[2][:LITTLE].T
    scores = []
    for features in (little, principal):
        weight, bias = least_squares(features, targets)
        scores.append(explained(targets, features @ weight + bias))
    assert scores[0] >= scores[1] - 1e-4
    assert scores[0] > 0.3


def test_more_pictures_than_it_needs_and_an_iterator_are_fine(fitted):
    torch.manual_seed(1)
    again = convert_sam(fitted.dense, LITTLE)
    warm_start(again, iter(fitted.fit), progress=False)
    for name, value in fitted.after.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
