"""Encoders with the C++ kernels of whole blocks against the same encoders without them.

The kernels themselves are tested against formulas, in every level of instructions, in test_native_levels.py.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from little_models import dense_config, dense_sam, embed, enliven
from torch import Tensor, nn

from sam_bigltl import convert_sam
from sam_bigltl.errors import InputError
from sam_bigltl.fast.native import blocks, levels, ops
from sam_bigltl.modeling.encoder import BigLittleEncoder
from sam_bigltl.modeling.layouts import all_tokens
from sam_bigltl.modeling.routing import Geometry

LIMITS = {"float32": 1e-5, "int8": 0.02, "bfloat16": 0.02}  # of a result's length
RATIOS = [1.0, 0.5, 0.2, "auto"]
# Every module of a layer that a client may hook; int8 has other ones.
PARTS = [
    "blocks.1", "blocks.1.norm1", "blocks.1.attn", "blocks.1.attn.qkv", "blocks.1.attn.kv_little",
    "blocks.1.attn.proj", "blocks.1.norm_little", "blocks.1.up", "blocks.1.norm2", "blocks.1.mlp",
    "blocks.1.mlp.lin1", "blocks.1.mlp.act", "blocks.1.mlp.lin2", "blocks.1.drop_path",
    "little_blocks.2", "little_blocks.2.norm1", "little_blocks.2.attn", "little_blocks.2.attn.qkv",
    "little_blocks.2.attn.proj", "little_blocks.2.norm2", "little_blocks.2.mlp", "little_blocks.2.mlp.lin1",
    "little_blocks.2.mlp.act", "little_blocks.2.mlp.lin2", "transitions.1.down", "transitions.1.up",
    "patch_embed.proj", "neck", "neck.0", "neck.3",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    try:
        levels.function("has")
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def encoder() -> BigLittleEncoder:
    sam = convert_sam(dense_sam())  # windows of 3 in a grid of 4
    enliven(sam.image_encoder, seed=3)
    return sam.image_encoder


@pytest.fixture
def native(encoder: BigLittleEncoder) -> BigLittleEncoder:
    made = copy.deepcopy(encoder).optimize("float32", native=True)
    made.keep_ratio = 0.5
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that blocks and transitions have called."""
    called: list[str] = []
    for name in ("linear", "attend", "finish", "windows"):
        original = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *args, _name=name, _own=original, **kw: (called.append(_name), _own(*args, **kw))[1]
        )
    return called


def images(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(7))


def plain(native: BigLittleEncoder) -> BigLittleEncoder:
    """A copy with the same weights and ratio, without kernels."""
    return copy.deepcopy(native).optimize(native.precision, native=False)


def distance(found: Tensor, expected: Tensor) -> float:
    assert found.isfinite().all()
    return float((found.double() - expected).norm() / expected.double().norm())


def optimized(encoder: BigLittleEncoder, dtype: str) -> BigLittleEncoder:
    if not ops.has(dtype) and dtype == "bfloat16":
        pytest.skip("this processor does not multiply bfloat16")
    return copy.deepcopy(encoder).optimize(dtype, native=True)


@torch.no_grad()
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", LIMITS)
def test_encoders_agree_with_float32(
    encoder: BigLittleEncoder, calls: list[str], dtype: str, ratio: float | str
) -> None:
    reference, native = copy.deepcopy(encoder), optimized(encoder, dtype)
    reference.keep_ratio = native.keep_ratio = ratio
    expected, found = reference(images()), native(images())
    assert {"attend", "finish"} <= set(calls)
    routes = zip(native.last_route.groups, reference.last_route.groups, strict=True)
    assert all(torch.equal(a.indices, b.indices) for a, b in routes)
    assert distance(found, expected) < LIMITS[dtype]
    single = torch.cat([native(images()[:1]), native(images()[1:])])
    assert distance(single, found) < (1e-6 if dtype == "float32" else LIMITS[dtype])


@torch.no_grad()
@pytest.mark.parametrize("dtype", LIMITS)
def test_dense_models(dtype: str) -> None:
    """Without a little path, and so many tokens that padding is a small part."""
    encoder = dense_sam(dense_config(img_size=160, window=7)).image_encoder
    found = optimized(encoder, dtype)(images(1, 160, 160))
    assert distance(found, encoder(images(1, 160, 160))) < LIMITS[dtype]


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(48, 32), (16, 64), (16, 16)])
@pytest.mark.parametrize("dtype", LIMITS)
def test_smaller_images(encoder: BigLittleEncoder, dtype: str, height: int, width: int) -> None:
    reference, native = copy.deepcopy(encoder), optimized(encoder, dtype)
    reference.keep_ratio = native.keep_ratio = 0.5
    small = images(1, height, width)
    assert distance(native(small), reference(small)) < LIMITS[dtype]


@torch.no_grad()
@pytest.mark.parametrize("dtype", LIMITS)
def test_same_bits_in_any_number_of_threads_and_every_time(
    encoder: BigLittleEncoder, dtype: str, request: pytest.FixtureRequest
) -> None:
    native, threads = optimized(encoder, dtype), torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    native.keep_ratio = 0.5
    found = []
    for count in (1, 2, 1, 3):
        torch.set_num_threads(count)
        found.append(native(images()))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_same_masks_every_time() -> None:
    sam = dense_sam(dense_config(little_dim=8))
    sam.image_encoder.optimize("int8", native=True)
    assert torch.equal(embed(sam, 0.5), embed(sam, 0.5))


@torch.no_grad()
def test_windows_in_one_kernel_are_those_in_three_steps(
    encoder: BigLittleEncoder, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An E-block window by window, in windows that are padded at two edges."""
    layout = all_tokens(Geometry((15, 17), 4, "cpu"), 1, whole=False)  # 20 windows
    block = encoder.little_blocks[0]
    x = torch.randn(255, block.norm1.normalized_shape[0], generator=torch.Generator().manual_seed(1))
    for dtype in filter(ops.has, LIMITS):
        packed = blocks.PackedBlock(block, dtype)
        calls.clear()
        found = packed.dense(x, layout)
        assert calls == ["windows"]
        with monkeypatch.context() as patch:
            patch.setattr(ops, "fits_windows", lambda layout: False)
            expected = packed.dense(x, layout)
        assert calls == ["windows", "linear", "attend", "finish"]
        assert distance(found, expected) < LIMITS[dtype] / 10, dtype


@pytest.mark.parametrize("learns", ["blocks.0.attn.rel_pos_h", "transitions.0.down.weight", "little_blocks.3.mlp"])
def test_gradients_go_round_the_kernels(encoder: BigLittleEncoder, native: BigLittleEncoder, learns: str) -> None:
    """Also where hardly anything learns."""
    grads = []
    for model in (encoder, native):
        own = copy.deepcopy(model).requires_grad_(False)
        own.keep_ratio = 0.5
        parameters = [p.requires_grad_() for name, p in own.named_parameters() if name.startswith(learns)]
        own(images()).square().sum().backward()
        grads.append([p.grad for p in parameters])
    assert grads[0] and all(grad is not None and grad.any() for grad in grads[0])
    for expected, found in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@torch.no_grad()
def test_training_drops_what_it_drops(native: BigLittleEncoder) -> None:
    found = native(images())
    for block in native.blocks:
        block.drop_path.rate = 0.5
    assert torch.equal(native(images()), found)
    results = []
    for model in (native, plain(native)):
        torch.manual_seed(3)
        results.append(model.train()(images()))
    assert distance(*results) < 1e-5 and distance(results[0], found) > 0.01


@torch.no_grad()
def test_off_again(native: BigLittleEncoder, encoder: BigLittleEncoder, calls: list[str]) -> None:
    native(images())
    native.optimize("float32", native=False)
    encoder = copy.deepcopy(encoder)
    encoder.keep_ratio = 0.5
    calls.clear()
    assert torch.equal(native(images()), encoder(images())) and not calls


@torch.no_grad()
@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_weights_of_their_own(native: BigLittleEncoder, again: Callable, calls: list[str]) -> None:
    before = native(images())
    copied = again(native)
    calls.clear()
    assert torch.equal(copied(images()), before) and "finish" in calls
    native.blocks[0].mlp.lin1.weight.zero_()
    assert torch.equal(copied(images()), before) and not torch.equal(native(images()), before)


def _assign(layer: nn.Linear) -> None:
    layer.load_state_dict({name: value * 1.5 for name, value in layer.state_dict().items()}, assign=True)


def _replace_twice(layer: nn.Linear) -> None:
    """The memory of the second may be that of the weights that were packed."""
    value = layer.weight.detach() * 1.5
    del layer.weight
    layer.weight = nn.Parameter(value.clone())


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.weight.mul_(1.5),
        lambda layer: layer.bias.add_(0.5),
        lambda layer: layer.load_state_dict({name: value * 1.5 for name, value in layer.state_dict().items()}),
        _assign,
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight * 1.5)),
        _replace_twice,
        lambda layer: layer.weight.data.mul_(1.5),  # as peft merges its adapters: torch counts no change
    ],
)
@pytest.mark.parametrize(
    "name", ["blocks.1.attn.qkv", "blocks.2.mlp.lin2", "little_blocks.0.attn.proj", "transitions.0.up"]
)
def test_weights_that_change_are_seen(native: BigLittleEncoder, name: str, change: Callable) -> None:
    before = native(images())
    change(native.get_submodule(name))
    after = native(images())
    assert distance(after, before) > 1e-3
    assert distance(after, plain(native)(images())) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("part", PARTS)
def test_hooks_see_what_they_see_without_kernels(native: BigLittleEncoder, part: str) -> None:
    """And what they change counts."""
    native(images())
    results = []
    for model in (native, plain(native)):
        seen: list[Tensor] = []
        module = model.get_submodule(part)
        handle = module.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].clone()))
        outputs = [model(images())]
        handle.remove()
        handle = module.register_forward_hook(lambda _, inputs, output: output * 0.5)
        outputs.append(model(images()))
        handle.remove()
        results.append((seen, outputs))
    (found, ours), (expected, theirs) = results
    assert len(found) == len(expected) > 0
    for a, b in zip(found + ours, expected + theirs, strict=True):
        assert distance(a, b) < 1e-5
    assert not torch.equal(ours[0], ours[1])


@torch.no_grad()
def test_parts_that_a_client_replaced_run(native: BigLittleEncoder) -> None:
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    old = native.blocks[1].mlp.lin1
    native.blocks[1].mlp.lin1 = Twice(old.in_features, old.out_features)
    native.blocks[1].mlp.lin1.load_state_dict(old.state_dict())
    native.blocks[2].mlp.act = nn.GELU("tanh")
    native.little_blocks[0].norm1 = nn.LayerNorm(old.in_features and native.config.little_dim, elementwise_affine=False)
    assert distance(native(images()), plain(native)(images())) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_images_of_another_type(encoder: BigLittleEncoder, dtype: str) -> None:
    native = optimized(encoder, dtype)
    for of in (torch.float64, torch.bfloat16, torch.float16):
        found = native(images().to(of))
        assert found.dtype == of and distance(found, native(images().to(of).float())) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dtype="int8", compile=True), "int8 layers cannot be compiled"),
        (dict(dtype="float32", compile=True, native=True), "cannot be compiled"),
        (dict(dtype="float32", native="yes"), "native is True, False or 'auto'"),
    ],
)
def test_what_does_not_go_together(encoder: BigLittleEncoder, options: dict, message: str) -> None:
    model = copy.deepcopy(encoder)
    with pytest.raises(InputError, match=message):
        model.optimize(**options)
    assert model.neck[0].weight.dtype == torch.float32  # refused before anything changed


@torch.no_grad()
def test_graphs_go_round_the_kernels() -> None:
    torch._dynamo.reset()
    native = optimized(dense_sam(dense_config(depth=1, global_layers=(0,), little_dim=8)).image_encoder, "float32")
    native.keep_ratio = 0.5
    expected = native(images(1))
    native.compile(backend="eager", fullgraph=True, dynamic=False)
    assert distance(native(images(1)), expected) < 1e-5
