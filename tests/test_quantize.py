"""int8 inference: the rounding by hand, layers against float64, whole encoders against float32."""

import copy

import pytest
import torch
from helpers import picture
from little_models import dense_sam, embed, encoder_images, enliven
from torch import nn

from sam_bigltl import SamPredictor, convert_sam
from sam_bigltl.errors import InputError
from sam_bigltl.fast.precision import check_precision, set_precision
from sam_bigltl.fast.quantize import Int8Linear, quantize_activation


def test_activation_rounding_by_hand() -> None:
    x = torch.tensor([[0.0, 127.0, -127.0, 1.4, -1.6, 63.5]], dtype=torch.bfloat16) / 64
    levels, scale = quantize_activation(x)
    assert scale == pytest.approx(1 / 64)
    assert levels.dtype == torch.uint8
    assert levels.tolist() == [[128, 255, 1, 129, 126, 192]]  # 63.5 rounds to the even 64


def test_activation_of_zeros() -> None:
    levels, scale = quantize_activation(torch.zeros(2, 3, dtype=torch.bfloat16))
    assert scale > 0 and levels.eq(128).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_linear_is_the_product_of_the_rounded_factors(activation: str, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 40, bias=bias)
    x = torch.randn(3, 7, 48).bfloat16()
    levels, scale = quantize_activation(x.flatten(0, 1))
    factor = (levels.double() - 128) * scale
    step = linear.weight.detach().abs().amax(dim=1, keepdim=True).double() / 127
    expected = factor @ ((linear.weight.detach().double() / step).round() * step).T
    expected = expected + (linear.bias.detach().double() if bias else 0.0)
    if activation == "gelu":
        expected = nn.functional.gelu(expected)
    found = Int8Linear(linear, activation)(x)
    assert found.dtype == torch.bfloat16 and found.shape == (3, 7, 40)
    torch.testing.assert_close(found.double().flatten(0, 1), expected, rtol=1e-2, atol=1e-2)
    exact = linear(x.float()).double()
    if activation == "none":
        assert (found.double() - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5, 0.2])
def test_encoder_stays_close_to_float32(keep_ratio: float) -> None:
    sam = convert_sam(dense_sam())
    enliven(sam.image_encoder, seed=3)
    images = encoder_images(sam)
    sam.image_encoder.keep_ratio = keep_ratio
    with torch.inference_mode():
        expected = sam.image_encoder(images)
        layers = sum(isinstance(m, nn.Linear) for m in sam.image_encoder.blocks.modules())
        encoder = set_precision(copy.deepcopy(sam.image_encoder), "int8")
        found = encoder(images)
    assert layers and not any(isinstance(m, nn.Linear) for m in encoder.blocks.modules())
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 0.05
    assert (found - expected).norm() > 0


def test_dense_encoder_and_original_left_alone() -> None:
    sam = dense_sam()
    before = embed(sam)
    encoder = set_precision(copy.deepcopy(sam.image_encoder), "int8")
    with torch.inference_mode():
        found = encoder(encoder_images(sam))
    assert (found - before).norm() / before.norm() < 0.05
    assert torch.equal(embed(sam), before)


def test_predictor_takes_an_int8_encoder() -> None:
    sam = convert_sam(dense_sam())
    set_precision(sam.image_encoder, "int8")
    predictor = SamPredictor(sam)
    predictor.set_image(picture())
    masks, _, _ = predictor.predict(box=torch.tensor([4.0, 4.0, 30.0, 30.0]).numpy())
    assert masks.shape == (3, *picture().shape[:2])


def test_what_cannot_be_int8_is_refused() -> None:
    with pytest.raises(InputError, match="unknown dtype 'int4'"):
        check_precision("int4", torch.device("cpu"))
    with pytest.raises(InputError, match="int8 runs on the CPU only"):
        check_precision("int8", torch.device("cuda"))
    with pytest.raises(InputError, match="this project's encoders only"):
        set_precision(nn.Linear(2, 2), "int8")
