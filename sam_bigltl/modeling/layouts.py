"""Where the queries and keys of an attention lie, as the native kernels take them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from torch import Tensor

from ..fast.native.ragged import Ragged
from .routing import Geometry, Selection


def all_tokens(geometry: Geometry, batch: int, whole: bool) -> Ragged:
    """Every token asks, in windows or (`whole`) in the whole image."""
    return _kept(geometry.layouts, (batch, whole), lambda: _all_tokens(geometry, batch, whole))


def _all_tokens(geometry: Geometry, batch: int, whole: bool) -> Ragged:
    tokens = geometry.grid[0] * geometry.grid[1]
    place = torch.arange(batch * tokens, device=geometry.rows.device)
    rows, columns = geometry.rows.repeat(batch), geometry.columns.repeat(batch)
    if whole:
        return _global(place, rows, columns, geometry.grid, batch)
    made = _windows(geometry, place, place, rows, columns, batch)
    return replace(made, places=made.queries.argsort().int())


def selected_tokens(selection: Selection, whole: bool) -> Ragged:
    """The selected tokens ask, in windows or (`whole`) in the whole image. Rows of q: in the order of the selection."""
    return _kept(selection.layouts, whole, lambda: _selected_tokens(selection, whole))


def _selected_tokens(selection: Selection, whole: bool) -> Ragged:
    batch = selection.indices.shape[0]
    order = torch.cat([selection.flat, selection.rest])
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    rows, columns = selection.rows.flatten(), selection.columns.flatten()
    if whole:
        return _global(place, rows, columns, selection.geometry.grid, batch)
    return _windows(selection.geometry, place, selection.flat, rows, columns, batch)


def _kept(layouts: dict[Hashable, Ragged], key: Hashable, make: Callable[[], Ragged]) -> Ragged:
    if torch.compiler.is_compiling():  # what is kept would belong to that graph
        return make()
    if key not in layouts:
        layouts[key] = make()
    return layouts[key]


def _global(place: Tensor, rows: Tensor, columns: Tensor, grid: tuple[int, int], batch: int) -> Ragged:
    count = len(rows)
    queries = torch.arange(count, device=rows.device)
    starts = torch.arange(batch + 1, device=rows.device) * (count // batch)
    return _made(place.view(batch, -1), starts, queries, rows, columns, grid)


def _windows(geometry: Geometry, place: Tensor, asking: Tensor, rows: Tensor, columns: Tensor, batch: int) -> Ragged:
    """`place`: row of each token in the table, (B * N,); `asking`: tokens of the rows of q, (Q,)."""
    tokens, side = geometry.grid[0] * geometry.grid[1], geometry.window
    window = geometry.token_window[asking % tokens] + asking // tokens * geometry.num_windows
    counts = torch.zeros(batch * geometry.num_windows, dtype=torch.long, device=window.device)
    counts.scatter_add_(0, window, torch.ones_like(window))
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    keys = place.view(batch, tokens)[:, geometry.place_token]
    keys[:, geometry.padding] = -1
    keys = keys.view(batch * geometry.num_windows, side * side)
    return _made(keys, starts, window.argsort(stable=True), rows % side, columns % side, (side, side))


def _made(
    keys: Tensor, starts: Tensor, queries: Tensor, rows: Tensor, columns: Tensor, grid: tuple[int, int]
) -> Ragged:
    keys, starts, queries, rows, columns = (
        tensor.to(torch.int32).contiguous() for tensor in (keys, starts, queries, rows, columns)
    )
    return Ragged(keys, starts, queries, rows, columns, grid)
