"""Which tokens go to the big path: the router, the selection it makes, and the geometry both are laid out on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .choosing import Router, stable_order, straight_through_gate, top_tokens

__all__ = [
    "Geometry", "QueryBlocks", "Route", "RouteGroup", "Router", "Selection", "SequenceGeometry", "WindowBucket",
    "kept_for_training", "straight_through_gate", "top_tokens",
]  # fmt: skip


class Geometry:
    """A token grid cut into windows of one size, with the index maps between both orders.

    `whole` says that there is one window, which is everything (`SequenceGeometry`).

    Args:
        grid: (rows, columns) of tokens.
        window: window side in tokens; windows at the right and bottom edge are padded, as SAM pads them.
        device: where the index maps live.
    """

    whole = False

    def __init__(self, grid: tuple[int, int], window: int, device: torch.device | str) -> None:
        self.grid = grid
        self.window = window
        gh, gw = grid
        windows_h, windows_w = -(-gh // window), -(-gw // window)
        self.num_windows = windows_h * windows_w
        self.padded = (windows_h * window, windows_w * window) != grid
        token = torch.arange(gh * gw, device=device)
        self.rows, self.columns = token // gw, token % gw  # (N,)
        self.token_window = self.rows // window * windows_w + self.columns // window  # (N,)
        # Place of each token in window order, and the token at each place (any where the window is padded).
        inside = self.rows % window * window + self.columns % window
        self.token_place = self.token_window * window**2 + inside  # (N,)
        self.place_token = torch.full((self.num_windows * window**2,), -1, device=device)
        self.place_token[self.token_place] = token
        # Not by nonzero(): how many there are depends on the sizes alone, which an exported graph must know.
        padding = self.num_windows * window**2 - gh * gw
        self.padding = (self.place_token < 0).int().topk(padding).indices if padding else token[:0]
        self.place_token.clamp_(min=0)
        self.layouts: dict = {}  # kept by `sam_bigltl.ragged`

    def to_windows(self, x: Tensor, fill: Tensor) -> Tensor:
        """x (B, N, c) -> (B * windows, w * w, c), padded positions holding `fill` (c,)."""
        batch, _, channels = x.shape
        if self.padded:
            x = x.index_select(1, self.place_token)
            x[:, self.padding] = fill.to(x.dtype).expand(batch, len(self.padding), -1)  # the old ONNX exporter needs it
        else:
            (gh, gw), w = self.grid, self.window
            x = x.view(batch, gh // w, w, gw // w, w, channels).transpose(2, 3)
        return x.reshape(batch * self.num_windows, self.window**2, channels)

    def on_grid(self, x: Tensor) -> Tensor:
        """x (B, N, c) -> (B, gh, gw, c)"""
        return x.view(x.shape[0], *self.grid, x.shape[-1])

    def from_windows(self, x: Tensor, batch: int) -> Tensor:
        """(B * windows, w * w, c) -> (B, N, c), padding dropped."""
        channels = x.shape[-1]
        if self.padded:
            return x.view(batch, -1, channels).index_select(1, self.token_place)
        (gh, gw), w = self.grid, self.window
        x = x.view(batch, gh // w, gw // w, w, w, channels).transpose(2, 3)
        return x.reshape(batch, gh * gw, channels)


Made = TypeVar("Made", bound=Geometry)


def kept_for_training(make: Callable[[], Made]) -> Made:
    """`make()`, usable in a backward pass even where it is made during inference: what inference mode makes is not."""
    if not torch.is_inference_mode_enabled():
        return make()
    with torch.inference_mode(False):
        return make()


class SequenceGeometry(Geometry):
    """Tokens in a row, such as a class token and patches, which all see each other."""

    whole = True
    padded = False

    def __init__(self, tokens: int, device: torch.device | str) -> None:
        self.grid = (1, tokens)
        self.columns = torch.arange(tokens, device=device)
        self.rows = torch.zeros_like(self.columns)
        self.layouts = {}

    def on_grid(self, x: Tensor) -> Tensor:
        """x (B, N, c) as it is"""
        return x

    def to_windows(self, x: Tensor, fill: Tensor) -> Tensor:
        """x (B, N, c) as it is"""
        return x

    def from_windows(self, x: Tensor, batch: int) -> Tensor:
        """x (B, N, c) as it is"""
        return x


@dataclass(frozen=True)
class QueryBlocks:
    """Selected tokens sorted by window and cut into blocks of `size` slots that never span two windows.

    The number of windows' selected tokens is ragged; blocks make it rectangular with less than one block of waste a
    window, and their number depends on K only, so shapes stay fixed for a fixed K.

    Attributes:
        size: slots a block.
        window: window of each block, (B, blocks).
        source: for each slot, position among the K selected tokens (K: unused), (B, blocks * size).
        rows, columns: of each slot inside its window, (B, blocks * size).
        slot: slot of each selected token, (B, K).
    """

    size: int
    window: Tensor
    source: Tensor
    rows: Tensor
    columns: Tensor
    slot: Tensor


_BUCKET_STEP = 16  # selected tokens a window are rounded up to this


@dataclass(frozen=True)
class WindowBucket:
    """W windows with about as many selected tokens each, as one rectangular batch.

    Attributes:
        size: slots a window.
        source: selected token that each slot reads, as `Selection.flat` orders them, (W * size,).
        target: the same, with B * K where the slot is unused, (W * size,).
        rows, columns: of each slot inside its window, (W * size,).
        keys: tokens of the windows, rows of a (B * N, c) table, (W * w * w,).
        padding: which of the keys are padding.
    """

    size: int
    source: Tensor
    target: Tensor
    rows: Tensor
    columns: Tensor
    keys: Tensor
    padding: Tensor


class Selection:
    """K tokens of each image, in ascending order, with the index maps that the layers of a group share.

    Plain attributes: `torch.compile` does not see through `functools.cached_property`.

    Attributes:
        indices: (B, K).
        geometry: the grid and its windows.
        flat: rows of the selected tokens in a (B * N, c) table, (B * K,).
        rows, columns: of the selected tokens, (B, K).
        layouts: kept by `sam_bigltl.ragged`.
    """

    def __init__(self, indices: Tensor, geometry: Geometry) -> None:
        self.indices, self.geometry = indices, geometry
        batch, tokens = indices.shape[0], geometry.grid[0] * geometry.grid[1]
        self.flat = (indices + torch.arange(batch, device=indices.device)[:, None] * tokens).flatten()
        self.rows, self.columns = geometry.rows[indices], geometry.columns[indices]
        self.layouts: dict = {}
        self._rest: Tensor | None = None
        self._buckets: list[WindowBucket] | None = None
        self._blocks: QueryBlocks | None = None

    def gather(self, x: Tensor) -> Tensor:
        """x (B, N, c) -> (B, K, c)"""
        return x.reshape(-1, x.shape[-1]).index_select(0, self.flat).view(*self.indices.shape, -1)

    def scatter(self, into: Tensor, x: Tensor) -> Tensor:
        """`into` (B, N, c) with the selected tokens replaced by x (B, K, c)."""
        table = into.reshape(-1, into.shape[-1])
        return table.index_copy(0, self.flat, x.reshape(-1, x.shape[-1]).to(into.dtype)).view_as(into)

    def scatter_(self, into: Tensor, x: Tensor) -> Tensor:
        """The same, in place where `into` is contiguous: for one that nobody else needs."""
        table = into.contiguous().view(-1, into.shape[-1])
        # What is returned comes from the copy: the old ONNX exporter does not see that a view has changed its base.
        return table.index_copy_(0, self.flat, x.reshape(-1, x.shape[-1]).to(into.dtype)).view(into.shape)

    @property
    def rest(self) -> Tensor:
        """Rows of the tokens that were not selected, ascending, in a (B * N, c) table: (B * (N - K),)."""
        if self._rest is None:
            tokens = self.geometry.grid[0] * self.geometry.grid[1]
            selected = torch.zeros(self.indices.shape[0] * tokens, dtype=torch.uint8, device=self.flat.device)
            selected[self.flat] = 1
            self._rest = selected.argsort(stable=True)[: len(selected) - len(self.flat)]
        return self._rest

    @property
    def buckets(self) -> list[WindowBucket]:
        """The windows of the whole batch that have selected tokens, as few batches of equal shape."""
        if self._buckets is None:
            self._buckets = self._make_buckets()
        return self._buckets

    @property
    def blocks(self) -> QueryBlocks:
        """The selected tokens as blocks of queries."""
        if self._blocks is None:
            self._blocks = self._make_blocks()
        return self._blocks

    def _make_buckets(self) -> list[WindowBucket]:
        geometry, batch = self.geometry, self.indices.shape[0]
        device, area, tokens = self.indices.device, geometry.window**2, geometry.grid[0] * geometry.grid[1]
        offset = torch.arange(batch, device=device)[:, None] * geometry.num_windows
        window = (geometry.token_window[self.indices] + offset).flatten()  # (B * K,)
        order = window.argsort(stable=True)
        counts = torch.bincount(window, minlength=batch * geometry.num_windows)
        starts = counts.cumsum(0) - counts
        slots = (-(-counts // _BUCKET_STEP) * _BUCKET_STEP).clamp(max=area)
        rows, columns = (lines.flatten() % geometry.window for lines in (self.rows, self.columns))
        place_token = geometry.place_token.view(-1, area)
        padding = torch.zeros(geometry.num_windows * area, dtype=torch.bool, device=device)
        padding[geometry.padding] = True
        buckets = []
        for size in slots.unique().tolist():
            windows = ((slots == size) & (counts > 0)).nonzero().squeeze(1)
            if not len(windows):
                continue
            slot = torch.arange(size, device=device)
            # A slot beyond the window's last token computes on any other one, and its result is dropped.
            source = order[(starts[windows, None] + slot).clamp(max=len(order) - 1)].flatten()
            used = (slot < counts[windows, None]).flatten()
            place = windows % geometry.num_windows
            keys = (place_token[place] + windows[:, None] // geometry.num_windows * tokens).flatten()
            padded = padding.view(-1, area)[place].flatten().nonzero().squeeze(1)
            target = source.where(used, len(order))
            buckets.append(WindowBucket(size, source, target, rows[source], columns[source], keys, padded))
        return buckets

    def _make_blocks(self) -> QueryBlocks:
        geometry, (batch, num_selected) = self.geometry, self.indices.shape
        device, w = self.indices.device, geometry.window
        size = 32 if w * w >= 128 else 16
        window = geometry.token_window[self.indices]  # (B, K)
        order = stable_order(window)  # position among the K, by window
        window = window.gather(1, order)
        counts = torch.zeros(batch, geometry.num_windows, dtype=torch.long, device=device)
        counts.scatter_add_(1, window, torch.ones_like(window))
        per_window = (counts + size - 1) // size
        first_token = counts.cumsum(1) - counts  # first selected token of each window
        last_block = per_window.cumsum(1)
        first_block = last_block - per_window
        place = torch.arange(num_selected, device=device).expand(batch, -1)
        place = place - first_token.gather(1, window) + first_block.gather(1, window) * size  # slot, by window order
        num_blocks = num_selected // size + geometry.num_windows
        source = torch.full((batch, num_blocks * size), num_selected, dtype=torch.long, device=device)
        source.scatter_(1, place, order)
        # Blocks beyond the last used one read the last window; their slots are unused.
        block = torch.arange(num_blocks, device=device)
        block_window = (last_block[:, None] <= block[:, None]).sum(dim=-1).clamp_(max=geometry.num_windows - 1)
        zero = torch.zeros(batch, 1, dtype=torch.long, device=device)
        rows = torch.cat([self.rows % w, zero], dim=1).gather(1, source)
        columns = torch.cat([self.columns % w, zero], dim=1).gather(1, source)
        slot = torch.empty_like(place).scatter_(1, order, place)
        return QueryBlocks(size, block_window, source, rows, columns, slot)


@dataclass(frozen=True)
class RouteGroup:
    """One selection and the layers that shared it.

    Attributes:
        layers: indices of the layers.
        indices: selected tokens in ascending order, (B, K); -1 pads where images of a batch chose different K ("auto").
        scores: importance of every token, (B, N), summing to 1 over an image; None where all tokens were selected and
            no router ran (keep_ratio 1.0).
    """

    layers: tuple[int, ...]
    indices: Tensor
    scores: Tensor | None


@dataclass(frozen=True)
class Route:
    """What the last forward pass selected.

    Attributes:
        grid: (rows, columns) of tokens.
        groups: one entry a selection, in the order of the layers.
    """

    grid: tuple[int, int]
    groups: tuple[RouteGroup, ...]

    def counts(self) -> Tensor:
        """How many groups selected each token, (B, rows, columns)."""
        gh, gw = self.grid
        batch = self.groups[0].indices.shape[0]
        total = torch.zeros(batch, gh * gw + 1, dtype=torch.long, device=self.groups[0].indices.device)
        for group in self.groups:
            index = group.indices.where(group.indices >= 0, gh * gw)
            total.scatter_add_(1, index, torch.ones_like(index))
        return total[:, :-1].view(batch, gh, gw)

    @staticmethod
    def merge(routes: list[Route]) -> Route:
        """Routes of single images as the route of their batch."""
        groups = []
        for parts in zip(*(route.groups for route in routes)):
            longest = max(part.indices.shape[1] for part in parts)
            indices = [F.pad(part.indices, (0, longest - part.indices.shape[1]), value=-1) for part in parts]
            scores = None if parts[0].scores is None else torch.cat([part.scores for part in parts])
            groups.append(RouteGroup(parts[0].layers, torch.cat(indices), scores))
        return Route(routes[0].grid, tuple(groups))
