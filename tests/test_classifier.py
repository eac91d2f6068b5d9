"""big.LITTLE classifiers: every registered model, exactness against timm, what timm's scripts ask of a model."""

from __future__ import annotations

import copy

import pytest
import timm
import timm.optim
import torch
from little_models import enliven
from torch import Tensor, nn

from sam_bigltl import BigLittleClassifier
from sam_bigltl.convert import convert_vit
from sam_bigltl.errors import InputError
from sam_bigltl.modeling.classifier import registered

SMALL = dict(img_size=64, depth=4, num_classes=7)


def images(batch: int = 2, side: int = 64) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(5))


def small_vit(name: str = "vit_small_patch16_224", **options) -> nn.Module:
    model = timm.create_model(name, **(dict(SMALL, embed_dim=48, num_heads=3) | options))
    enliven(model)
    return model.eval()


@pytest.fixture
def model() -> BigLittleClassifier:
    found = convert_vit(small_vit())
    enliven(found)
    return found


@pytest.mark.parametrize("name", registered())
def test_every_registered_model(name: str) -> None:
    torch.manual_seed(0)
    shape = SMALL | dict(depth=8)
    model = timm.create_model(name, keep_ratio=0.5, **shape)
    assert isinstance(model, BigLittleClassifier) and model.keep_ratio == 0.5
    assert model.pretrained_cfg["input_size"] == (3, 224, 224) and model.default_cfg["classifier"] == "head"
    logits = model(images())
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([1, 5])).backward()
    # The last E-block's result goes to patches, of which the class token knows nothing any more.
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    last = ("little_blocks.7.", "transitions.3.up.")
    assert [n for n in silent if not n.startswith(last)] == []
    pooled = timm.create_model(name, keep_ratio=0.5, global_pool="avg", **shape)
    nn.functional.cross_entropy(pooled(images()), torch.tensor([1, 5])).backward()
    assert [n for n, p in pooled.named_parameters() if not p.grad.abs().sum() > 0] == []
    model.eval()
    with torch.no_grad():
        expected = model(images())
        other = timm.create_model(name, keep_ratio=0.5, **shape).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(images()), expected)
        model.compile(backend="aot_eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(model(images()), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", registered())
def test_sizes_are_those_of_deit(name: str) -> None:
    theirs = "vit_large_patch16_224" if "large" in name else name.replace("bigltl", "deit")
    with torch.device("meta"):
        ours, vit = timm.create_model(name, little_dim=0), timm.create_model(theirs)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in vit.parameters())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_small_patch16_224", {}),
        ("vit_base_patch8_224", dict(img_size=32)),
        ("deit_small_patch16_224", {}),
        ("deit_base_distilled_patch16_224", {}),
        ("deit3_small_patch16_224", {}),  # layer scale, no position for the class token
        ("vit_base_patch16_clip_224", {}),  # a norm before the blocks, no bias in the patch embedding
        ("vit_small_patch14_reg4_dinov2", dict(img_size=56)),  # four register tokens
        ("vit_base_patch16_siglip_224", {}),  # no class token, attention pooling
        ("vit_medium_patch16_gap_240", {}),  # mean pooling
    ],
)
def test_exact_at_one(name: str, options: dict) -> None:
    vit = small_vit(name, **options)
    pixels = images(side=options.get("img_size", 64))
    expected = vit(pixels)
    before = copy.deepcopy(vit.state_dict())
    try:
        model = convert_vit(vit)
    except InputError as error:
        assert "GELU" in str(error) and "siglip" in name  # some of timm's versions approximate it there
        return
    torch.testing.assert_close(model(pixels), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.forward_features(pixels), vit.forward_features(pixels), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
    model.keep_ratio = 0.3
    changed = model(pixels)
    assert changed.isfinite().all() and not torch.allclose(changed, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "takes timm's VisionTransformer, not a ResNet"),
        ("vit_small_patch16_18x2_224", "block 0 of this ViT cannot be converted: it is a ParallelThingsBlock"),
        ("vit_giant_patch14_dinov2", "block 0 of this ViT cannot be converted: its MLP is a"),
    ],
)
def test_models_that_cannot_be_converted(name: str, message: str) -> None:
    options = {} if name == "resnet18" else dict(embed_dim=48, num_heads=3, depth=2)
    with pytest.raises(InputError, match=message):
        convert_vit(timm.create_model(name, **options))


@torch.no_grad()
def test_the_class_token_is_always_big(model: BigLittleClassifier) -> None:
    model.keep_ratio = 0.25
    model(images())
    for group in model.last_route.groups:
        assert group.indices.shape == (2, 4) and group.scores.shape == (2, 16)  # 16 patches, a quarter of them
        assert group.indices.min() >= 0 and group.indices.max() < 16
        top = group.scores.sort(dim=1, descending=True).indices[:, :4].sort(dim=1).values
        assert torch.equal(top, group.indices)
    # With no patch that matters to it, the class token's state still passes through every big block.
    for block in model.blocks:
        block.attn.proj.weight.zero_()
        block.attn.proj.bias.zero_()
        block.gamma.zero_()
    routed = model.forward_features(images())[:, 0]
    model.keep_ratio = 1.0
    torch.testing.assert_close(routed, model.forward_features(images())[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.5, (1.0, 0.5, 0.5, 0.25), "auto"])
def test_a_batch_is_its_images(model: BigLittleClassifier, ratio) -> None:
    model.keep_ratio = ratio
    single = torch.cat([model(images()[:1]), model(images()[1:])])
    torch.testing.assert_close(model(images()), single, atol=1e-5, rtol=1e-5)
    assert model.last_route.grid == (4, 4) and model.last_route.counts().shape == (2, 4, 4)


def test_what_timms_scripts_ask(model: BigLittleClassifier) -> None:
    assert model.no_weight_decay() >= {"pos_embed", "cls_token"}
    assert model.get_classifier() is model.head
    model.reset_classifier(3)
    assert model.num_classes == 3 and model(images()).shape == (2, 3)
    features = model.forward_features(images())
    assert features.shape == (2, 17, 48) and torch.equal(model.forward_head(features), model(images()))
    assert model.forward_head(features, pre_logits=True).shape == (2, 48)
    groups = timm.optim.param_groups_weight_decay(model, no_weight_decay_list=model.no_weight_decay())
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    model.set_grad_checkpointing(True)
    model.keep_ratio = 0.5
    model(images()).sum().backward()
    checkpointed = model.blocks[0].attn.qkv.weight.grad.clone()
    model.zero_grad()
    model.set_grad_checkpointing(False)
    model(images()).sum().backward()
    torch.testing.assert_close(checkpointed, model.blocks[0].attn.qkv.weight.grad, atol=1e-5, rtol=1e-4)
    with pytest.raises(InputError, match="features after each stage only"):
        model.forward_intermediates(images())


def test_drop_path_is_for_training() -> None:
    torch.manual_seed(0)
    model = timm.create_model("bigltl_tiny_patch16_224", drop_path_rate=0.5, **SMALL)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0, 1 / 6, 1 / 3, 0.5])
    model.eval()
    assert torch.equal(model(images()), model(images()))
    model.train()
    assert not torch.equal(model(images()), model(images()))


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_optimized(model: BigLittleClassifier, dtype: str) -> None:
    model.keep_ratio = 0.5
    expected = model(images())
    found = model.optimize(dtype)(images()).float()
    assert (found - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(keep_ratio=0), "keep_ratio is in"),
        (dict(little_dim=-1), "little_dim is at least 0"),
        (dict(qk_norm=True), "a big.LITTLE classifier has no qk_norm"),
        (dict(init_values=1e-5), "a big.LITTLE classifier has no init_values"),
        (dict(pretrained=True), "has no weights to download"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        timm.create_model("bigltl_tiny_patch16_224", **(SMALL | options))
