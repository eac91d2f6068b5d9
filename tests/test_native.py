"""The C++ kernels against float64, and encoders with them against the same without."""

from __future__ import annotations

import copy

import pytest
import torch
from little_models import dense_config, dense_sam, embed, encoder_images, enliven
from torch import Tensor, nn

from sam_bigltl import convert_sam
from sam_bigltl.errors import InputError
from sam_bigltl.fast.native import build, ops
from sam_bigltl.fast.native.ragged import Ragged
from sam_bigltl.modeling.encoder import BigLittleEncoder
from sam_bigltl.modeling.layouts import all_tokens, selected_tokens
from sam_bigltl.modeling.routing import Geometry, Selection


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    try:
        build.load()
    except InputError as error:
        pytest.skip(str(error))


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def attend_in_float64(
    q: Tensor, table: Tensor, padding: Tensor, ragged: Ragged, tables: tuple[Tensor, Tensor] | None, num_heads: int
) -> Tensor:
    """One query and one head at a time, by the formula."""
    dim, (rows, columns) = q.shape[1], ragged.grid
    d = dim // num_heads
    out = torch.full(q.shape, float("nan"), dtype=torch.float64)
    table = torch.cat([table, padding[None]]).double()  # row -1
    for window, (start, end) in enumerate(zip(ragged.starts.tolist(), ragged.starts.tolist()[1:])):
        kv = table[ragged.keys[window].long()]
        for query in ragged.queries[start:end].tolist():
            for head in range(num_heads):
                part = slice(head * d, head * d + d)
                one = q[query, part].double()
                logits = kv[:, :dim][:, part] @ one * d**-0.5
                if tables is not None:
                    middle = (len(tables[0]) - 1) // 2
                    down = ragged.rows[query] - torch.arange(rows) + middle
                    across = ragged.columns[query] - torch.arange(columns) + middle
                    bias_h, bias_w = tables[0].double()[down] @ one, tables[1].double()[across] @ one
                    logits = logits + (bias_h[:, None] + bias_w).flatten()
                out[query, part] = logits.softmax(0) @ kv[:, dim:][:, part]
    return out


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize(
    ("grid", "window", "num_heads", "channels", "count"),
    [
        ((4, 5), 3, 2, 16, 7),  # padded windows, some of them without a query
        ((9, 7), 0, 3, 6, 60),  # more than one block of queries
        ((30, 21), 0, 2, 20, 5),  # 630 keys: two chunks of whole rows, 21 a row
        ((14, 14), 14, 1, 80, 50),  # more than 64 channels
        ((6, 6), 3, 5, 2, 36),  # every token is selected
    ],
)
def test_attention_by_the_formula(
    grid: tuple[int, int], window: int, num_heads: int, channels: int, count: int, positions: bool
) -> None:
    batch, tokens, dim = 2, grid[0] * grid[1], num_heads * channels
    geometry = Geometry(grid, window or max(grid), "cpu")
    order = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(1)).argsort(dim=1)
    selection = Selection(order[:, :count].sort(dim=1).values, geometry)
    ragged = selected_tokens(selection, whole=not window)
    qkv = values(batch * count, 3 * dim)  # q, keys and values are parts of it: rows at a stride
    rest, padding = values(batch * (tokens - count), 2 * dim, seed=2), values(2 * dim, seed=3)
    size = window or max(grid)
    tables = (values(2 * size - 1, channels, seed=4), values(2 * size - 1, channels, seed=5)) if positions else None
    found = ops.attend(qkv[:, :dim], qkv[:, dim:], rest, padding, ragged, tables, num_heads)
    expected = attend_in_float64(
        qkv[:, :dim], torch.cat([qkv[:, dim:], rest]), padding, ragged, tables, num_heads
    )  # fmt: skip
    # Weights and the result are rounded to bfloat16: 2^-9 each.
    torch.testing.assert_close(found.double(), expected, rtol=8e-3, atol=8e-3)
    assert (found - expected).norm() / expected.norm() < 4e-3


def test_large_logits_do_not_overflow() -> None:
    geometry = Geometry((25, 25), 25, "cpu")
    ragged = all_tokens(geometry, 1, whole=True)
    qkv = values(625, 24) * 60
    found = ops.attend(qkv[:, :8], qkv[:, 8:], qkv[:0, 8:], qkv[0, 8:], ragged, None, 1)
    expected = attend_in_float64(qkv[:, :8], qkv[:, 8:], qkv[0, 8:], ragged, None, 1)
    assert found.isfinite().all() and (found - expected).norm() / expected.norm() < 4e-3


@pytest.mark.parametrize("shape", [(1, 1), (7, 17), (300, 48)])
@pytest.mark.parametrize("normed", [True, False])
def test_rounding_by_the_formula(shape: tuple[int, int], normed: bool) -> None:
    x = values(*shape) * 3 + 1
    norm = None
    expected = x.double()
    if normed:
        norm = nn.LayerNorm(shape[1], eps=1e-6).bfloat16().requires_grad_(False)
        enliven(norm)
        weight, bias = norm.weight.double(), norm.bias.double()
        expected = nn.functional.layer_norm(expected, shape[1:], weight, bias, norm.eps).bfloat16().double()
    levels, scale = ops.quantize(x, norm)
    assert levels.dtype == torch.uint8
    assert scale == pytest.approx(max(float(expected.abs().max()) / 127, 0) or 1.0, rel=5e-3)
    assert ((levels.double() - 128) * scale - expected).abs().max() <= (0.5 + 0.6 * normed) * scale + 1e-6


def test_zeros_round_to_zero() -> None:
    levels, scale = ops.quantize(torch.zeros(2, 3, dtype=torch.bfloat16), None)
    assert scale == 1.0 and levels.eq(128).all()


@pytest.fixture(scope="module")
def encoder() -> BigLittleEncoder:
    sam = convert_sam(dense_sam())  # windows of 3 in a grid of 4, two images a batch
    enliven(sam.image_encoder, seed=3)
    return sam.image_encoder


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.2, "auto"])
@pytest.mark.parametrize(("dtype", "limit"), [("bfloat16", 0.02), ("int8", 0.06)])
def test_encoders_agree_with_float32(encoder: BigLittleEncoder, dtype: str, limit: float, ratio: float | str) -> None:
    plain = copy.deepcopy(encoder)
    native = copy.deepcopy(encoder).optimize(dtype, native=True)
    plain.keep_ratio = native.keep_ratio = ratio
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    expected, found = plain(images), native(images)
    ours, theirs = native.last_route, plain.last_route
    assert all(torch.equal(a.indices, b.indices) for a, b in zip(ours.groups, theirs.groups, strict=True))
    assert (found - expected).norm() / expected.norm() < limit
    single = torch.cat([native(images[:1]), native(images[1:])])
    if dtype == "bfloat16":  # int8 has one scale a tensor, so a batch is not its images one by one
        assert (single - found).norm() / found.norm() < 0.01


@torch.no_grad()
def test_smaller_images(encoder: BigLittleEncoder) -> None:
    native = copy.deepcopy(encoder).optimize("bfloat16", native=True)
    native.keep_ratio = encoder.keep_ratio = 0.5
    images = torch.randn(1, 3, 48, 32, generator=torch.Generator().manual_seed(7))
    expected = encoder(images)
    assert (native(images) - expected).norm() / expected.norm() < 0.02


def test_gradients_go_round_the_kernels() -> None:
    sam = dense_sam()
    sam.image_encoder.optimize("bfloat16", native=True)
    sam.image_encoder(encoder_images(sam)).square().sum().backward()
    grads = [p.grad for name, p in sam.image_encoder.blocks.named_parameters() if "rel_pos" in name]
    assert len(grads) == 8 and all(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_off_again(encoder: BigLittleEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    model = copy.deepcopy(encoder).optimize("bfloat16", native=True).optimize("bfloat16", native=False)
    monkeypatch.setattr(ops, "_attend", lambda *_: pytest.fail("kernels ran"))
    with torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))


@torch.no_grad()
def test_one_graph_with_kernels(encoder: BigLittleEncoder) -> None:
    torch._dynamo.reset()
    model = copy.deepcopy(encoder).optimize("bfloat16", native=True)
    model.keep_ratio = 0.5
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(7))
    expected = model(images)
    model.compile(backend="aot_eager", fullgraph=True, dynamic=False)
    assert (model(images) - expected).norm() / expected.norm() < 0.01


def test_same_masks_every_time() -> None:
    sam = dense_sam(dense_config(little_dim=8))
    sam.image_encoder.optimize("int8", native=True)
    assert torch.equal(embed(sam, 0.5), embed(sam, 0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(dtype="int8", compile=True), "int8 layers cannot be compiled"),
    ],
)
def test_what_does_not_go_together(encoder: BigLittleEncoder, options: dict, message: str) -> None:
    model = copy.deepcopy(encoder)
    with pytest.raises(InputError, match=message):
        model.optimize(**options)
    assert model.neck[0].weight.dtype == torch.float32  # refused before anything changed
