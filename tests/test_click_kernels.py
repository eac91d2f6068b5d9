"""The C++ kernels around the blocks: patch embedding, neck, drawing and enlarging masks, against torch and
`segment_anything` on the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import segment_anything
import torch
from torch import nn
from torch.nn import functional as F

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.errors import InputError
from sam_bigltl.fast.native import draw, ends, enlarge, levels, stem
from sam_bigltl.modeling import decode
from sam_bigltl.modeling.encoder import EncoderConfig
from sam_bigltl.modeling.mobile_stem import MobileStem
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.modeling.stem import PatchProjection

SHIPPED = Path(__file__).parents[1] / "checkpoints" / "bigltl_mini.safetensors"

try:
    levels.function("inverted")
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

CONFIG = EncoderConfig(img_size=128, dim=32, depth=2, num_heads=2, global_layers=(1,), window=4, little_dim=16,
                       out_chans=256)  # fmt: skip


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def lively(module: nn.Module) -> nn.Module:
    """`module` with random biases and with weights that keep the size of what passes."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5)
    return module.eval()


@pytest.fixture(scope="module")
def embedding() -> MobileStem:
    torch.manual_seed(0)
    return lively(MobileStem(40))


def photo(size: tuple[int, int], filled: tuple[int, int]) -> torch.Tensor:
    """Normalised pixels in the top left corner of zeros, (3, *size)."""
    image = torch.zeros(3, *size)
    image[:, : filled[0], : filled[1]] = torch.randn(3, *filled, generator=torch.Generator().manual_seed(1))
    return image


@pytest.mark.parametrize("size, filled", [
    ((128, 128), (128, 128)), ((128, 128), (77, 128)), ((128, 128), (128, 50)), ((96, 80), (1, 3)),
    ((48, 112), (48, 111)), ((16, 16), (16, 16)), ((64, 64), (0, 0)),
])  # fmt: skip
def test_the_patch_embedding(embedding, size, filled):
    image = photo(size, filled)
    wanted = embedding(image[None])[0]
    for dtype, tolerance in (("float32", 1e-5), ("int16", 1e-2)):
        packed = stem.PackedStem(embedding, dtype)
        for _ in range(2):  # the second time with what is kept of padding
            tokens = packed.tokens(image)
            assert tokens.shape == wanted.shape
            assert (tokens - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_padding_that_is_left_out_changes_no_bit(embedding, dtype, monkeypatch):
    packed, image = stem.PackedStem(embedding, dtype), photo((160, 160), (107, 160))
    tokens = packed.tokens(image)
    for threads in (1, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert torch.equal(packed.tokens(image), tokens)
        finally:
            torch.set_num_threads(before)
    prepare = packed._prepare
    monkeypatch.setattr(packed, "_prepare", lambda image: (prepare(image)[0], (160, 160)))
    assert torch.equal(packed.tokens(image), tokens)


@pytest.mark.parametrize("side, grid", [(16, (4, 6)), (14, (3, 1)), (8, (1, 1))])
def test_sams_projection(side, grid):
    torch.manual_seed(0)
    embed = lively(PatchProjection(kernel_size=(side, side), stride=(side, side), embed_dim=24))
    image = torch.randn(3, side * grid[0], side * grid[1])
    wanted = embed(image[None])[0]
    for dtype, tolerance in (("float32", 1e-5), ("int16", 1e-2)):
        tokens = ends.PackedProjection(embed, dtype).tokens(image)
        assert tokens.shape == (*grid, 24) and (tokens - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.mark.parametrize("grid", [(8, 8), (1, 1), (3, 7), (5, 1)])
def test_the_neck(grid):
    torch.manual_seed(0)
    neck = lively(build_sam(replace(CONFIG, out_chans=48)).image_encoder.neck)
    tokens = torch.randn(*grid, 32)
    wanted = neck(tokens.permute(2, 0, 1)[None])[0]
    for dtype, tolerance in (("float32", 1e-5), ("int16", 1e-2)):
        found = ends.PackedNeck(neck, dtype).embedding(tokens)
        assert found.is_contiguous() and (found - wanted).abs().max() < tolerance * wanted.abs().max()


@pytest.mark.parametrize("grid, prompts, masks", [((6, 5), 1, 3), ((4, 7), 3, 1), ((1, 1), 2, 4), ((2, 2), 0, 3)])
def test_drawing(grid, prompts, masks):
    torch.manual_seed(0)
    decoder = lively(build_sam(CONFIG).mask_decoder)
    image, kernels = torch.randn(prompts, grid[0] * grid[1], 256), torch.randn(prompts, masks, 32)
    assert draw.fits(decoder.output_upscaling)
    found = draw.PackedUpscaling(decoder.output_upscaling, "float32").draw(image, kernels, grid)
    if prompts:
        wanted = decode.draw(decoder, image, kernels, grid)
        assert found.shape == wanted.shape and (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_other_activations_are_not_drawn_here():
    upscaling = build_sam(CONFIG).mask_decoder.output_upscaling
    upscaling[2] = nn.GELU("tanh")
    assert not draw.fits(upscaling)


@pytest.mark.parametrize("original", [(300, 200), (200, 300), (64, 64), (17, 40), (2, 900), (1000, 1400)])
@pytest.mark.parametrize("channels", [1, 3])
def test_masks_are_those_of_sam(original, channels):
    sam = build_sam(CONFIG)
    scale = 128 / max(original)
    part = tuple(int(side * scale + 0.5) for side in original)
    if min(part) < 2:
        return
    coarse = torch.randn(2, channels, 7, 7, generator=torch.Generator().manual_seed(2)) - 0.5
    for low_res in (
        F.interpolate(coarse, (32, 32), mode="bicubic"),
        F.interpolate(coarse, (32, 32), mode="nearest").where(torch.arange(32) > 20, torch.tensor(-3.0)),
        -coarse.abs().repeat_interleave(4, -1),
        torch.zeros(1, channels, 32, 32),
        torch.full((1, channels, 32, 32), 2.0),
    ):
        wanted = sam.postprocess_masks(low_res, part, original) > 0
        assert torch.equal(enlarge.masks(low_res, 128, part, original), wanted)


def predictors(dtype: str, **change) -> tuple[SamPredictor, segment_anything.SamPredictor]:
    torch.manual_seed(0)
    sam = build_sam(replace(CONFIG, **change))
    for part in (sam.image_encoder.neck, sam.mask_decoder):
        lively(part)
    if change.get("stem"):
        lively(sam.image_encoder.patch_embed)
    theirs = segment_anything.SamPredictor(build_sam(replace(CONFIG, **change)))
    theirs.model.load_state_dict(sam.state_dict())
    sam.image_encoder.optimize(dtype, native=True)
    return SamPredictor(sam), theirs


@pytest.mark.parametrize("change", [{}, {"stem": "mobile"}], ids=["projection", "mobile"])
def test_a_click_is_sams(change):
    ours, theirs = predictors("float32", **change)
    rng = np.random.default_rng(0)
    for size in ((90, 140), (200, 150), (128, 128)):
        image = rng.integers(0, 255, (*size, 3), np.uint8)
        ours.set_image(image)
        theirs.set_image(image)
        assert (ours.features - theirs.features).abs().max() < 1e-4
        prompt = {"point_coords": np.array([[40, 30], [9, 70]]), "point_labels": np.array([1, 0])}
        for options in ({}, {"multimask_output": False}, {"return_logits": True}):
            (masks, scores, low_res), wanted = ours.predict(**prompt, **options), theirs.predict(**prompt, **options)
            assert masks.dtype == wanted[0].dtype and masks.shape == wanted[0].shape
            assert np.abs(low_res - wanted[2]).max() < 1e-4 * np.abs(wanted[2]).max()
            assert np.abs(scores - wanted[1]).max() < 1e-4
            if options.get("return_logits"):
                assert np.abs(masks - wanted[0]).max() < 1e-4 * np.abs(wanted[0]).max()
            else:
                logits = theirs.predict(**prompt, **options | {"return_logits": True})[0]
                near = np.abs(logits) < 1e-4 * np.abs(logits).max()
                assert masks.any() and np.array_equal(masks | near, wanted[0] | near)


def test_what_a_client_put_in_runs():
    predictor, _ = predictors("float32", stem="mobile")
    image = np.random.default_rng(0).integers(0, 255, (100, 128, 3), np.uint8)
    encoder, calls = predictor.model.image_encoder, []
    parts = (encoder.patch_embed.stages[3][1].depthwise, encoder.neck[1], encoder.neck, encoder.patch_embed)
    handles = [part.register_forward_hook(lambda module, *_: calls.append(module)) for part in parts]
    predictor.set_image(image)
    assert set(calls) == set(parts)
    for handle in handles:
        handle.remove()
    calls.clear()
    predictor.set_image(image)
    assert not calls
    own = predictor.model.postprocess_masks
    predictor.model.postprocess_masks = lambda *given: (calls.append(given), own(*given))[1]
    predictor.predict(np.array([[5, 5]]), np.array([1]))
    assert calls


def test_weights_that_change_are_seen():
    predictor, _ = predictors("float32", stem="mobile")
    image = np.random.default_rng(0).integers(0, 255, (100, 128, 3), np.uint8)
    prompt = {"point_coords": np.array([[5, 5]]), "point_labels": np.array([1])}
    predictor.set_image(image)
    before, low_res = predictor.features, predictor.predict(**prompt)[2]
    predictor.model.mask_decoder.output_upscaling[3].weight.mul_(2)
    assert not np.allclose(predictor.predict(**prompt)[2], low_res)
    predictor.model.image_encoder.patch_embed.first.weight.mul_(2)
    predictor.set_image(image)
    assert not torch.allclose(predictor.features, before)


@pytest.mark.parametrize("change", [{}, {"stem": "mobile"}], ids=["projection", "mobile"])
def test_int8_keeps_float32_around_the_blocks(change):
    ours, theirs = predictors("int8", **change)
    image = np.random.default_rng(0).integers(0, 255, (100, 128, 3), np.uint8)
    ours.set_image(image)
    theirs.set_image(image)
    assert ours.features.dtype == torch.float32
    assert F.cosine_similarity(ours.features, theirs.features).mean() > 0.98


@torch.no_grad()
def test_memory_layouts_and_numbers_that_are_none() -> None:
    """The kernels see the same image in any layout, and a pixel that is no number stays one."""
    encoder = load_sam(SHIPPED).image_encoder.optimize("int8", native=True)
    encoder.keep_ratio = 0.5
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder(images), encoder(images.contiguous(memory_format=torch.channels_last)))
    exact = load_sam(SHIPPED).image_encoder.optimize("float32", native=True)
    assert exact(images * torch.nan).isnan().all()
    with pytest.raises(InputError, match="takes normalised images, floating point numbers, not torch.uint8"):
        exact(images.to(torch.uint8))
