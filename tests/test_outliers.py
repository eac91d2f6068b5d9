"""Weights with outliers: the re-parametrisation is exact, and rounding takes them as it takes weights without."""

from __future__ import annotations

import copy
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from little_models import dense_config, dense_sam, embed, encoder_images, enliven, small_reference_sam
from research import outliers, reparametrise
from research.reparametrise import reparametrised
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sam_bigltl import accelerate, convert_sam
from sam_bigltl.errors import InputError
from sam_bigltl.fast.native import build
from sam_bigltl.fast.precision import set_precision
from sam_bigltl.fast.rescale import centre_keys, smooth

STEPS = ("scale_queries", "shift_positions", "shift_keys", "scale_values", "scale_norms")
FORMATS = [("bfloat16", False), ("bfloat16", True), ("int8", False), ("int8", True)]


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def converted(sam: Sam) -> Sam:
    """With a little path whose every weight is alive, the same for all models of one shape."""
    result = convert_sam(sam)
    donor = convert_sam(dense_sam())
    enliven(donor.image_encoder, seed=3)
    big = sam.image_encoder.state_dict()
    little = {name: value for name, value in donor.image_encoder.state_dict().items() if name not in big}
    result.image_encoder.load_state_dict(little, strict=False)
    return result


# ---------------------------------------------------------------- the re-parametrisation
@pytest.mark.parametrize("make", [dense_sam, small_reference_sam])
@pytest.mark.parametrize("step", [*STEPS, "concentrate", "scale_residual"])
@torch.no_grad()
def test_each_step_is_exact_in_float64(make, step: str) -> None:
    sam = make()
    images, encoder = encoder_images(sam).double(), sam.image_encoder.double()
    before, weights = encoder(images), {name: value.clone() for name, value in encoder.state_dict().items()}
    change = getattr(reparametrise, step)
    if step == "concentrate":
        change(encoder, images)
    elif step == "scale_residual":  # beside which the norms' epsilon is smaller
        change(encoder)
    else:
        change(encoder, torch.Generator().manual_seed(0))
    assert any(not torch.equal(value, weights[name]) for name, value in encoder.state_dict().items())
    assert distance(encoder(images), before) < (1e-6 if step == "scale_residual" else 1e-12)


@pytest.mark.parametrize("make", [dense_sam, small_reference_sam])
@torch.no_grad()
def test_all_of_them_at_once_in_float32(make) -> None:
    sam = make()
    images, before = encoder_images(sam), copy.deepcopy(sam.state_dict())
    expected = copy.deepcopy(sam.image_encoder).double()(images.double())
    changed = reparametrised(sam, images, seed=5)
    assert distance(changed.image_encoder(images), expected) < 4 * distance(sam.image_encoder(images), expected) + 1e-6
    assert all(torch.equal(value, before[name]) for name, value in sam.state_dict().items())
    again, other = reparametrised(sam, images, seed=5).state_dict(), reparametrised(sam, images, seed=6).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in changed.state_dict().items())
    assert any(not torch.equal(value, other[name]) for name, value in changed.state_dict().items())


def test_it_has_the_outliers_of_large_models() -> None:
    sam = dense_sam()
    attn = reparametrised(sam, encoder_images(sam)).image_encoder.blocks[0].attn
    rows = attn.qkv.weight.norm(dim=1)
    assert rows[64:].max() > 50 * rows[64:].median()  # values
    keys = attn.qkv.bias[32:64] / rows[32:64]
    assert keys.max() > 5 and keys.min() < -5  # two modes
    assert attn.rel_pos_h.mean(dim=0).abs().mean() > 5 * attn.rel_pos_h.std(dim=0).mean()


def test_only_before_conversion() -> None:
    sam = convert_sam(dense_sam())
    with pytest.raises(InputError, match="has a little path: re-parametrise it before"):
        reparametrised(sam, encoder_images(sam))


def test_the_script_needs_photographs_to_measure_on(tmp_path: Path) -> None:
    photos = tmp_path / "photos.txt"
    arguments = Namespace(images=photos, fit=2, objects=16)
    with pytest.raises(InputError, match="cannot read .*photos.txt, a list of photographs, one path a line"):
        outliers.run(arguments)
    photos.write_text("a.jpg\nb.jpg\n\n")
    with pytest.raises(InputError, match="--fit 2 leaves no photograph to measure on: .*photos.txt names 2"):
        outliers.run(arguments)


# ---------------------------------------------------------------- rounding
@pytest.mark.parametrize("ratio", [1.0, 0.5])
@torch.no_grad()
def test_rescaling_leaves_the_function(ratio: float) -> None:
    sam = converted(reparametrised(dense_sam(), encoder_images(dense_sam())))
    expected, before = embed(sam, ratio), copy.deepcopy(sam.state_dict())
    centre_keys(sam.image_encoder)
    centred = embed(sam, ratio)
    assert distance(centred, expected) < 1e-5
    smooth(sam.image_encoder)
    assert torch.allclose(embed(sam, ratio), centred, rtol=1e-5, atol=1e-5)
    after = sam.state_dict()
    changed = {name.split(".", 3)[3] for name, value in after.items() if not torch.equal(value, before[name])}
    expected_names = {"norm1.weight", "attn.qkv.bias", "attn.kv_little.bias", "attn.proj.weight"}
    assert changed >= expected_names | {"attn.rel_pos_h", "mlp.lin1.weight"}


@pytest.mark.parametrize("ratio", [1.0, 0.5])
@pytest.mark.parametrize(("dtype", "native"), FORMATS)
@torch.no_grad()
def test_formats_take_outliers_as_they_take_plain_weights(dtype: str, native: bool, ratio: float) -> None:
    if native:
        try:
            build.load()
        except InputError as error:
            pytest.skip(str(error))
    plain = dense_sam()
    images = encoder_images(plain)
    errors = []
    for sam in map(converted, (plain, reparametrised(plain, images))):
        expected = embed(sam, ratio)
        sam.image_encoder.optimize(dtype, native=native)
        errors.append(distance(embed(sam, ratio), expected))
    assert errors[1] < 1.5 * errors[0] + 0.003


@torch.no_grad()
def test_keys_far_from_zero_keep_their_digits_in_bfloat16() -> None:
    plain = dense_sam(dense_config(num_heads=1))
    far = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(0)
    reparametrise.shift_keys(far.image_encoder.double(), generator, size=500)
    reparametrise.shift_positions(far.image_encoder, generator, size=500)
    far.image_encoder.float()
    errors = []
    for sam in (plain, far):
        expected = embed(sam)
        errors.append(distance(embed(_optimized(sam, "bfloat16")), expected))
    assert errors[1] < 1.5 * errors[0]


def _optimized(sam: Sam, dtype: str) -> Sam:
    set_precision(sam.image_encoder, dtype)
    return sam


# ---------------------------------------------------------------- what others have in the model
class OwnAttention(nn.Module):
    """An attention of a client's, with the names of SAM's and without a softmax."""

    def __init__(self, theirs: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj = theirs.qkv, theirs.proj
        self.rel_pos_h, self.rel_pos_w = theirs.rel_pos_h, theirs.rel_pos_w

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(q.sigmoid() * k.sigmoid() * v)


@torch.no_grad()
def test_what_a_client_replaced_or_watches_stays() -> None:
    sam = reparametrised(dense_sam(), encoder_images(dense_sam()))
    encoder = sam.image_encoder
    encoder.blocks[0].attn = OwnAttention(encoder.blocks[0].attn)
    seen: list[Tensor] = []
    encoder.blocks[1].attn.qkv.register_forward_hook(lambda _, x, y: seen.append(y))
    expected = embed(sam)
    centre_keys(encoder)
    smooth(encoder)
    torch.testing.assert_close(embed(sam), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4 * float(seen[0].abs().max()))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@torch.no_grad()
def test_an_accelerated_model_keeps_its_own_weights(dtype: str) -> None:
    plain = small_reference_sam()
    sam = reparametrised(plain, encoder_images(dense_sam()))
    before = copy.deepcopy(sam.state_dict())
    images = encoder_images(dense_sam())
    expected = sam.image_encoder(images)
    accelerate(sam, dtype=dtype, native=False)
    assert distance(sam.image_encoder(images), expected) < 0.1
    for model in (sam, accelerate(sam, undo=True)):
        state = model.state_dict()
        assert state.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in state.items())


@torch.no_grad()
def test_weights_loaded_into_an_accelerated_model_suit_its_little_path() -> None:
    sam = reparametrised(small_reference_sam(), encoder_images(dense_sam()))
    state = copy.deepcopy(sam.state_dict())
    images = encoder_images(dense_sam())
    accelerate(sam, dtype="bfloat16", native=False, images=[_noise(seed) for seed in range(4)], keep_ratio=0.5)
    before = sam.image_encoder(images)
    sam.load_state_dict(state, strict=False)
    assert distance(sam.image_encoder(images), before) < 0.05


def _noise(seed: int):
    return torch.randint(256, (64, 64, 3), generator=torch.Generator().manual_seed(seed)).byte().numpy()
