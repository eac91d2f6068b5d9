"""`accelerate` on timm's `samvit_*`: the model itself is the encoder."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import enliven

from sam_bigltl import InputError, accelerate
from sam_bigltl.modeling.encoder import BigLittleEncoder

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_thread")


def build(name: str = "samvit_base_patch16", seed: int = 0, **changes):
    torch.manual_seed(seed)
    sizes = dict(
        img_size=64, embed_dim=32, depth=4, num_heads=2, window_size=3, global_attn_indexes=(1, 3), num_classes=5,
        neck_chans=16,
    )  # fmt: skip
    model = timm.create_model(name, **(sizes | changes)).eval()
    enliven(model, seed)
    return model


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def outputs(model) -> list[torch.Tensor]:
    x = images()
    features, layers = model.forward_intermediates(x)
    some = model.forward_intermediates(x, indices=2, norm=True, intermediates_only=True)
    early = model.forward_intermediates(x, indices=[0, 2], stop_early=True)
    return [model(x), model.forward_features(x), features, *layers, *some, early[0], *early[1]]


def assert_close(found, expected, atol: float = 1e-4) -> None:
    assert len(found) == len(expected)
    for own, other in zip(found, expected):
        torch.testing.assert_close(own, other, atol=atol, rtol=0)


CHANGES = [
    {}, {"head_hidden_size": 8},
    {"neck_chans": 0}, {"use_abs_pos": False}, {"num_classes": 0}, {"qkv_bias": False}, {"use_rel_pos": False},
]  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES)
def test_outputs(changes):
    model = build(**changes)
    parts = list(model.named_modules())
    expected, names = outputs(model), list(model.state_dict())
    assert accelerate(model, dtype="float32") is model
    assert isinstance(model.encoder, BigLittleEncoder) and isinstance(model, type(build()))
    assert_close(outputs(model), expected)
    assert sorted(model.state_dict()) == sorted(names)
    accelerate(model, undo=True)
    assert_close(outputs(model), expected, atol=0.0)
    assert list(model.named_modules()) == parts  # in the same order
    assert list(model.state_dict()) == names


def test_epsilon():
    """timm's norms have another epsilon than SAM's."""
    model = build()
    assert model.blocks[0].norm1.eps == 1e-5
    for block in model.blocks:
        block.norm2.eps = 0.1
    expected = outputs(model)
    assert_close(outputs(accelerate(model, dtype="float32")), expected)
    accelerate(model, dtype="bfloat16", native=False)
    assert (model(images()) - expected[0]).norm() / expected[0].norm() < 5e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights(dtype):
    model, other = build(), build(seed=1)
    state = copy.deepcopy(model.state_dict())
    accelerate(model, dtype=dtype, native=False)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    again = build(seed=2)
    again.load_state_dict(model.state_dict())
    assert_close(outputs(again), outputs(build()), atol=0.0)
    model.load_state_dict(other.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(outputs(copied), outputs(model), atol=0.0)
        assert_close(outputs(accelerate(copied, undo=True)), outputs(other), atol=0.0)


def test_below_one():
    model = build()
    expected = outputs(model)
    accelerate(model, 0.5, "float32", images=[picture(seed=seed) for seed in range(6)])
    half = model(images())
    assert not torch.allclose(half, expected[0], atol=1e-4)
    with pytest.raises(InputError, match=r"keep_ratio to 1\.0"):
        model.forward_intermediates(images())
    model.load_state_dict(model.state_dict())
    assert torch.equal(model(images()), half)
    model.keep_ratio = 1.0
    assert_close(outputs(model), expected)


def test_fine_tuning():
    model = build().train()
    reference = copy.deepcopy(model)
    qkv = model.blocks[0].attn.qkv.weight
    accelerate(model, dtype="float32")
    for each in (model, reference):
        each.set_grad_checkpointing()
        each(images()).square().mean().backward()
    assert model.encoder.gradient_checkpointing
    torch.testing.assert_close(qkv.grad, reference.blocks[0].attn.qkv.weight.grad, atol=1e-5, rtol=1e-3)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.reset_classifier(3)
    learnt = outputs(model.eval())
    accelerate(model, undo=True)
    assert_close(outputs(model), learnt)
    assert model(images()).shape == (2, 3) and model.blocks[0].attn.qkv.weight is qkv


def test_refused():
    model = build()
    for changes, words in (
        (dict(use_rope=True, use_rel_pos=False), "rope"),
        (dict(init_values=1e-4), "ls1"),
        (dict(drop_path_rate=0.1), "drop_path"),
        (dict(proj_drop_rate=0.1), "drops out"),
        (dict(qk_norm=True), "q_norm"),
        (dict(act_layer=torch.nn.ReLU), "act"),
        (dict(head_hidden_size=8, neck_chans=0), "neck"),
    ):
        with pytest.raises(InputError, match=words):
            accelerate(build(**changes))
    with pytest.raises(InputError, match="VisionTransformer"):
        accelerate(timm.create_model("vit_tiny_patch16_224"))
    accelerate(model, dtype="float32")
    with pytest.raises(InputError, match="64 x 64"):
        model(images()[..., :32])
    with pytest.raises(InputError, match="undo"):
        model.prune_intermediate_layers(1)
    assert np.isfinite(model(images()).detach().numpy()).all()
