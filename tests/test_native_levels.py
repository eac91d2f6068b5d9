"""Every C++ kernel in every level of instructions, against the formulas in float64.

Levels of this processor run as they are, those of Arm under QEMU (Debian's `qemu-user` and `g++-aarch64-linux-gnu`).
Compiled without optimization, unless KERNEL_TEST_FLAGS says otherwise: "-O3", or "-O0 -fsanitize=address,undefined".
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from little_models import dense_sam, encoder_images, enliven
from native import formula, processes
from native.remote import Remote
from torch import Tensor, nn

from sam_bigltl import convert_sam
from sam_bigltl.fast.native import ops, toolchain
from sam_bigltl.modeling.layouts import all_tokens, selected_tokens
from sam_bigltl.modeling.routing import Geometry, Selection

# Of a result's length. float32 sums up to 800 products one after the other; the others round both sides of a product.
LIMITS = {"float32": 2e-6, "bfloat16": 8e-3, "int16": 2e-3, "int8": 3e-2}


@pytest.fixture(scope="module", params=tuple(toolchain.LEVELS), autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[Remote]:
    """Runs the functions of `ops` in a level."""
    with processes.patched(request.param, request.config) as remote:
        yield remote


def formats() -> list[str]:
    """Those that the level of this test has."""
    return [name for name in LIMITS if ops.has(name)]


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer(inputs: int, outputs: int, bias: bool = True, seed: int = 0) -> nn.Linear:
    made = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    made.weight.copy_(values(outputs, inputs, seed=seed) * inputs**-0.5)
    if bias:
        made.bias.copy_(values(outputs, seed=seed + 1))
    return made


def norm(width: int) -> nn.LayerNorm:
    made = nn.LayerNorm(width, eps=1e-6).requires_grad_(False)
    made.weight.copy_(1 + 0.3 * values(width, seed=8))
    made.bias.copy_(0.3 * values(width, seed=9))
    return made


def pack(made: nn.Linear, dtype: str, chunked: bool = False) -> ops.Packed:
    return ops.pack(made.weight, made.bias, dtype, chunked)


def check(found: Tensor, expected: Tensor, dtype: str, factor: float = 1.0, more: float = 0.0) -> None:
    assert found.isfinite().all(), dtype
    error = (found.double() - expected).norm() / expected.norm()
    assert error <= factor * LIMITS[dtype] + more, (dtype, error)


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "options"),
    [
        (1, 1, 1, dict()),
        (7, 17, 33, dict(norm=True, activation="gelu")),
        (13, 40, 70, dict(activation="gelu", residual=True)),
        (150, 96, 16, dict(norm=True)),  # more than one block of rows
        (9, 800, 130, dict(bias=False)),
    ],
)
def test_linear_by_the_formula(rows: int, inputs: int, outputs: int, options: dict[str, Any]) -> None:
    made, x = layer(inputs, outputs, options.get("bias", True)), 3 * values(rows, inputs, seed=2) + 1
    residual = values(rows, outputs, seed=3) if options.get("residual") else None
    before, activation = norm(inputs) if options.get("norm") else None, options.get("activation", "none")
    expected = formula.linear(made, x, before, activation, residual)
    for dtype in formats():
        packed = pack(made, dtype)
        check(ops.linear(packed, x, before, activation=activation, residual=residual), expected, dtype)
        if activation == "none":
            check(ops.linear(packed, x, before, residual=residual, dtype=torch.float16), expected, dtype, more=5e-4)


def test_linear_on_some_rows_of_a_part() -> None:
    """Rows by number, at a stride, and nothing else is touched."""
    made, wide = layer(20, 35), values(30, 50)
    x = wide[:, 10:30]
    source, target = torch.tensor([3, 29, 0, 3, 11]), torch.tensor([8, 1, 0, 9, 5])
    residual = values(10, 35, seed=4)
    expected = formula.linear(made, x[source], None, "none", residual[target])
    for dtype in formats():
        out = torch.full((10, 60), 7.0)
        part = out[:, 5:40]
        ops.linear(pack(made, dtype), x, source=source, residual=residual, out=part, target=target)
        check(part[target], expected, dtype)
        part.index_fill_(0, target, 7.0)
        assert out.eq(7.0).all(), dtype


@pytest.mark.parametrize("inputs", [1, 6, 33, 500])
def test_bytes_are_multiplied_exactly(inputs: int) -> None:
    """The largest levels everywhere, and those in between: nothing saturates, and padding counts for nothing."""
    x_levels = ops.pack(torch.ones(1, 1), None, "int8").problem.row_levels
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randint(-x_levels, x_levels + 1, (14, inputs), generator=generator).float()
    weight = torch.randint(-127, 128, (37, inputs), generator=generator).float()
    x[:, 0], weight[:, 0] = x_levels, 127  # so that a step is 1
    x[:2] = torch.tensor([[x_levels], [-x_levels]])
    weight[:2] = torch.tensor([[127.0], [-127.0]])
    assert torch.equal(ops.linear(ops.pack(weight, None, "int8"), x), x @ weight.T)


def test_rows_of_zeros() -> None:
    made = layer(12, 9)
    for dtype in formats():
        assert torch.equal(ops.linear(pack(made, dtype), torch.zeros(3, 12)), made.bias.expand(3, 9)), dtype


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize(
    ("grid", "window", "heads", "channels", "count"),
    [
        ((4, 5), 3, 2, 16, 7),  # padded windows, some of them without a query
        ((9, 7), 0, 3, 6, 60),  # more than one block of queries
        ((30, 21), 0, 2, 20, 1),  # 630 keys: two chunks of whole rows; one query
        ((14, 14), 14, 1, 80, 50),  # more than 64 channels
        ((6, 6), 3, 5, 2, 36),  # every token is selected
    ],
)
def test_attention_by_the_formula(
    grid: tuple[int, int], window: int, heads: int, channels: int, count: int, positions: bool
) -> None:
    batch, tokens, dim, size = 2, grid[0] * grid[1], heads * channels, window or max(grid)
    geometry = Geometry(grid, size, "cpu")
    order = torch.rand(batch, tokens, generator=torch.Generator().manual_seed(1)).argsort(dim=1)
    ragged = selected_tokens(Selection(order[:, :count].sort(dim=1).values, geometry), whole=not window)
    qkv = values(batch * count, 3 * dim)  # q, keys and values are parts of it: rows at a stride
    rest, padding = values(batch * (tokens - count), 2 * dim, seed=2), values(2 * dim, seed=3)
    tables = (values(2 * size - 1, channels, seed=4), values(2 * size - 1, channels, seed=5)) if positions else None
    for stored in (torch.float32, torch.float16):
        qkv, rest, padding = qkv.to(stored), rest.to(stored), padding.to(stored)
        table = torch.cat([qkv[:, dim:], rest, padding[None]])  # row -1 is the padding
        expected = formula.attention(qkv[:, :dim], table, ragged, tables, heads)
        for products in ("float32", "int16"):
            found = ops.attend(qkv[:, :dim], qkv[:, dim:], rest, padding, ragged, tables, heads, products)
            check(found, expected, products)


def test_large_logits_do_not_overflow() -> None:
    ragged = all_tokens(Geometry((25, 25), 25, "cpu"), 1, whole=True)
    qkv = values(625, 24) * 20
    expected = formula.attention(qkv[:, :8], qkv[:, 8:], ragged, None, 1)
    for products in ("float32", "int16"):
        found = ops.attend(qkv[:, :8], qkv[:, 8:], qkv[:0, 8:], qkv[0, 8:], ragged, None, 1, products)
        check(found, expected, products, factor=20)


@pytest.mark.parametrize(
    ("rows", "dim", "hidden", "little_dim", "in_place"),
    [(1, 5, 3, 2, False), (40, 24, 70, None, True), (100, 40, 1000, 17, False)],
)
def test_the_rest_of_a_block_by_the_formula(
    rows: int, dim: int, hidden: int, little_dim: int | None, in_place: bool
) -> None:
    attended, x = values(rows, dim + 3), values(rows, dim, seed=1)
    proj, lin1, lin2, before = layer(dim + 3, dim), layer(dim, hidden, seed=2), layer(hidden, dim, seed=3), norm(dim)
    up = little = chosen = None
    if little_dim:
        up, little = layer(little_dim, dim, seed=4), values(rows + 9, little_dim, seed=5)
        chosen = torch.randperm(rows + 9, generator=torch.Generator().manual_seed(6))[:rows]
    expected = formula.rest_of_block(attended, x, proj, before, lin1, lin2, up, little, chosen)
    for dtype in formats():
        out = x.clone() if in_place else None
        found = ops.finish(
            attended, x if out is None else out, pack(proj, dtype), before, pack(lin1, dtype),
            pack(lin2, dtype, chunked=True), None if up is None else pack(up, dtype), little, chosen, out,
        )  # fmt: skip
        check(found, expected, dtype)


@pytest.mark.parametrize("products", ["float32", "int16"])
def test_blocks_window_by_window(products: str) -> None:
    """Whole E-blocks, some windows padded."""
    dim, heads = 12, 2
    ragged = all_tokens(Geometry((13, 13), 4, "cpu"), 1, whole=False)
    assert ops.fits_windows(ragged)
    x, padding = values(169, dim), values(2 * dim, seed=3)
    qkv, proj, lin1, lin2 = layer(dim, 3 * dim), layer(dim, dim, seed=2), layer(dim, 40, seed=4), layer(40, dim, seed=6)
    before, between = norm(dim), norm(dim)
    projected = formula.linear(qkv, x, before, "none", None)
    table = torch.cat([projected[:, dim:], padding[None].double()])
    attended = formula.attention(projected[:, :dim], table, ragged, None, heads)
    expected = formula.rest_of_block(attended, x, proj, between, lin1, lin2, None, None, None)
    for dtype in formats():
        packed = [pack(made, dtype) for made in (qkv, proj, lin1, lin2)]
        found = ops.windows(x, ragged, before, packed[0], padding, heads, packed[1], between, *packed[2:], products)
        check(found, expected, dtype, more=LIMITS[products])


def test_same_bits_in_any_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x, before, qkv = layer(33, 33), values(200, 33), norm(33), values(117, 72)
    windows = all_tokens(Geometry((9, 13), 4, "cpu"), 1, whole=False)
    whole = all_tokens(Geometry((9, 13), 4, "cpu"), 1, whole=True)  # threads share one window
    first: list[Tensor] = []
    for threads in (1, 1, 2, 5):
        monkeypatch.setattr(ops, "_threads", lambda threads=threads: ctypes.c_int64(threads))
        found = []
        for packed in (pack(made, dtype) for dtype in formats()):
            found.append(ops.linear(packed, x, before, activation="gelu"))
            found.append(ops.finish(x, x, packed, before, packed, packed))
        for ragged in (windows, whole):
            for products in ("float32", "int16"):
                keys = qkv[:, 24:]
                found.append(ops.attend(qkv[:, :24], keys, keys[:0], keys[0], ragged, None, 2, products))
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(first, found)), threads


@torch.no_grad()
@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_whole_encoders(kernels: Remote, ratio: float) -> None:
    """P-blocks, E-blocks and what is between them, of two images with windows that are padded."""
    sam = convert_sam(dense_sam())
    enliven(sam.image_encoder, seed=3)
    encoder, images = sam.image_encoder, encoder_images(sam)
    encoder.keep_ratio = ratio
    expected = encoder(images).double()
    kernels.called.clear()
    for dtype in set(formats()) - {"int16"}:
        native = copy.deepcopy(encoder).optimize(dtype, native=True)
        check(native(images), expected, dtype, factor=5 if dtype == "float32" else 2)
        routes = zip(native.last_route.groups, encoder.last_route.groups)
        assert all(torch.equal(a.indices, b.indices) for a, b in routes), dtype
    assert {"linear", "attend", "finish"} <= kernels.called
