"""Conversion keeps the function and its input; models survive the way to disk and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import tiny_sam
from little_models import dense_config, dense_sam, embed, encoder_images, small_reference_sam
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, Sam

from sam_bigltl.convert import convert_sam, describe, infer_config, load_sam, save_sam
from sam_bigltl.convert.registry import sam_model_registry
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.encoder import BigLittleEncoder, EncoderConfig, init_weights
from sam_bigltl.modeling.registry import DENSE, ENCODERS, build_sam

TOLERANCE = 1e-4  # the default LayerNorm of ImageEncoderViT has an eps of 1e-5, SAM's builders and ours 1e-6


def snapshot(sam: Sam) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in sam.state_dict().items()}


def assert_same(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert state.keys() == other.keys()
    for name, value in state.items():
        assert torch.equal(value, other[name]), name


# ---------------------------------------------------------------- conversion
def assert_converts_exactly(sam: Sam, **changes) -> Sam:
    before = snapshot(sam)
    for number, parameter in enumerate(sam.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        parameter.grad = torch.ones_like(parameter)
    grads = [parameter.requires_grad for parameter in sam.parameters()]
    big = convert_sam(sam, **changes)
    assert isinstance(big.image_encoder, BigLittleEncoder) and not big.training
    assert (embed(big, 1.0) - embed(sam)).abs().max() < TOLERANCE
    for part in ("prompt_encoder", "mask_decoder"):
        assert_same(getattr(big, part).state_dict(), getattr(sam, part).state_dict())
    with torch.no_grad():  # nothing that the result does reaches the source
        for parameter in big.parameters():
            parameter.add_(1.0)
    assert_same(before, sam.state_dict())
    assert [parameter.requires_grad for parameter in sam.parameters()] == grads
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in sam.parameters())
    return big


def test_conversion_of_segment_anything_is_exact_and_leaves_its_input():
    big = assert_converts_exactly(tiny_sam())
    assert big.image_encoder.config.little_dim == 8
    assert big.image_encoder.config.num_heads == 2
    assert big.image_encoder.config.window == 3


def test_conversion_of_a_dense_model_of_ours_is_exact_and_leaves_its_input():
    big = assert_converts_exactly(dense_sam(), little_dim=20, route_every=1)
    assert big.image_encoder.config == dense_config(little_dim=20, route_every=1)


def test_predictions_are_those_of_the_source():
    sam = tiny_sam()
    image = (torch.rand(50, 64, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    results = []
    for model in (sam, convert_sam(sam)):
        predictor = SamPredictor(model)
        predictor.set_image(image)
        results.append(predictor.predict(box=torch.tensor([5, 5, 40, 30]).numpy(), return_logits=True))
    for ours, theirs in zip(results[1], results[0]):
        assert abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("rel_pos", [True, False])
@pytest.mark.parametrize("abs_pos", [True, False])
@pytest.mark.parametrize("attends_all", [(1,), (), (0, 1)])
def test_conversion_without_positions(rel_pos: bool, abs_pos: bool, attends_all: tuple[int, ...]):
    torch.manual_seed(0)
    sam = tiny_sam()
    sam.image_encoder = ImageEncoderViT(
        img_size=64, embed_dim=32, depth=2, num_heads=4, out_chans=32, use_rel_pos=rel_pos, use_abs_pos=abs_pos,
        window_size=3, global_attn_indexes=attends_all, qkv_bias=rel_pos,
    )  # fmt: skip
    for parameter in sam.image_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    big = convert_sam(sam)
    assert (embed(big, 1.0) - embed(sam.eval())).abs().max() < TOLERANCE


def test_conversion_keeps_the_pixel_statistics():
    sam = tiny_sam()
    sam.pixel_mean += 3
    big = convert_sam(sam)
    assert torch.equal(big.pixel_mean, sam.pixel_mean) and torch.equal(big.pixel_std, sam.pixel_std)


@pytest.mark.parametrize("changes", [{"little_dim": 0}, {"little_dim": -4}, {"route_every": 0}, {"route_every": -1}])
def test_conversion_refuses(changes: dict[str, int]):
    with pytest.raises(InputError):
        convert_sam(tiny_sam(), **changes)


def test_converted_models_do_not_convert_again():
    with pytest.raises(InputError, match="already"):
        convert_sam(convert_sam(tiny_sam()))


# ---------------------------------------------------------------- files
VARIATIONS = [
    {},
    {"route_every": 1},
    {"route_every": 2},
    {"depth": 7, "global_layers": (6,), "route_every": 3},
    {"depth": 7, "global_layers": (6,), "route_every": 4},  # as many groups as with 5 or 6
    {"depth": 7, "global_layers": (6,), "route_every": 5},
    {"dim": 48, "num_heads": 3, "little_dim": 12},
    {"stem": (4, 8, 8, 16)},
    {"window": 14},  # larger than the grid
    {"window": 0, "global_layers": (0, 1, 2, 3)},
    {"mlp_ratio": 2.3},
    {"patch_size": 8, "img_size": 32},
    {"out_chans": 64},
    {"little_dim": 0},
]


@pytest.mark.parametrize("changes", VARIATIONS, ids=str)
def test_round_trip(changes: dict, tmp_path):
    config = dense_config(**({"little_dim": 16} | changes))
    sam = dense_sam(config)
    save_sam(sam, tmp_path / "new" / "model.safetensors")
    loaded = load_sam(tmp_path / "new" / "model.safetensors")
    assert loaded.image_encoder.config.groups == config.groups
    same = {"mlp_ratio": config.mlp_ratio, "route_every": config.route_every}  # where others build the same model
    assert replace(loaded.image_encoder.config, **same) == config
    assert_same(sam.state_dict(), loaded.state_dict())
    assert describe(loaded.image_encoder.config).startswith(f"an encoder of width {config.dim}, depth {config.depth}")
    ratio = 0.5 if config.little_dim else 1.0
    assert torch.equal(embed(sam, ratio), embed(loaded, ratio))
    assert not list(tmp_path.glob("**/partial-*"))


def test_float16_files_are_half_as_large_and_close(tmp_path):
    sam = dense_sam(dense_config(little_dim=16))
    for dtype in (torch.float32, torch.float16):
        save_sam(sam, tmp_path / f"{dtype}.safetensors", dtype)
    sizes = [(tmp_path / f"{dtype}.safetensors").stat().st_size for dtype in (torch.float32, torch.float16)]
    assert sizes[1] < 0.56 * sizes[0]
    loaded = load_sam(tmp_path / "torch.float16.safetensors")
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    expected = embed(sam, 1.0)
    difference = (embed(loaded, 1.0) - expected).norm() / expected.norm()
    assert 0 < difference < 1e-2


def test_sams_own_checkpoint_loads_as_a_dense_model(tmp_path):
    sam = small_reference_sam()
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    loaded = load_sam(tmp_path / "sam.pth")
    assert loaded.image_encoder.is_dense
    assert_same(sam.state_dict(), loaded.state_dict())
    assert (embed(loaded) - embed(sam)).abs().max() < 1e-5


@pytest.mark.parametrize("key", sorted(ENCODERS))
def test_every_registered_type_is_recognised_by_its_tensors(key: str):
    with torch.device("meta"):
        encoder = BigLittleEncoder(ENCODERS[key])
    state = {f"image_encoder.{name}": value for name, value in encoder.state_dict().items()}
    config = infer_config(state, "a file")
    assert config == ENCODERS[key] and describe(config) == key


def test_registry_keys_and_sizes():
    assert set(sam_model_registry) == {*ENCODERS, "default"}
    assert sam_model_registry["default"] is sam_model_registry["bigltl_h"]
    millions = {}
    for key in ("vit_b", "bigltl_b"):
        with torch.device("meta"):
            millions[key] = sum(p.numel() for p in BigLittleEncoder(ENCODERS[key]).parameters()) / 1e6
    assert millions["vit_b"] == pytest.approx(89.67, abs=0.01)  # SAM's
    # E-blocks of a tenth of the P-blocks, and the projections between both paths
    assert 1.1 < millions["bigltl_b"] / millions["vit_b"] < 1.3


@pytest.fixture(scope="module")
def vit_mini(tmp_path_factory) -> tuple[Sam, str]:
    torch.manual_seed(0)
    sam = sam_model_registry["vit_mini"]()
    path = tmp_path_factory.mktemp("mini") / "vit_mini.safetensors"
    save_sam(sam, path)
    return sam, str(path)


def test_the_registry_converts_the_dense_checkpoint(vit_mini):
    assert DENSE["bigltl_mini"] == "vit_mini"
    sam, path = vit_mini
    big = sam_model_registry["bigltl_mini"](checkpoint=path)
    assert big.image_encoder.config == ENCODERS["bigltl_mini"]
    x = encoder_images(sam)[:1, :, :112, :112]
    with torch.no_grad():
        assert (big.image_encoder(x) - sam.image_encoder(x)).abs().max() < 1e-5


@pytest.mark.parametrize("asked", ["bigltl_b", "vit_b", "bigltl_s"])
def test_the_wrong_type_is_named_in_one_line(asked: str, vit_mini):
    with pytest.raises(InputError) as error:
        sam_model_registry[asked](checkpoint=vit_mini[1])
    assert "vit_mini" in str(error.value) and asked in str(error.value) and "\n" not in str(error.value)


def test_a_little_model_is_not_a_dense_one(tmp_path):
    sam = build_sam(ENCODERS["bigltl_mini"])
    save_sam(sam, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match="holds bigltl_mini, not vit_mini"):
        load_sam(tmp_path / "m.safetensors", "vit_mini")


def test_new_weights_are_finite_and_seeded():
    config = EncoderConfig(img_size=64, dim=32, depth=2, num_heads=2, global_layers=(1,), window=3, little_dim=8)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        encoder = BigLittleEncoder(config)
        init_weights(encoder)
        states.append(encoder.state_dict())
    assert all(value.isfinite().all() for value in states[0].values())
    assert_same(states[0], states[1])
    assert not torch.equal(states[0]["blocks.0.attn.qkv.weight"], states[2]["blocks.0.attn.qkv.weight"])
