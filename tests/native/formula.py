"""What the kernels compute, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sam_bigltl.fast.native.ragged import Ragged


def _layer(made: nn.Linear, x: Tensor) -> Tensor:
    return nn.functional.linear(x, made.weight.double(), None if made.bias is None else made.bias.double())


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, norm.normalized_shape, norm.weight.double(), norm.bias.double(), norm.eps)


def _activated(name: str, x: Tensor) -> Tensor:
    return {"none": lambda x: x, "gelu": nn.functional.gelu}[name](x)


def linear(made: nn.Linear, x: Tensor, norm: nn.LayerNorm | None, activation: str, residual: Tensor | None) -> Tensor:
    out = _activated(activation, _layer(made, x.double() if norm is None else _normed(norm, x.double())))
    return out if residual is None else out + residual.double()


def attention(q: Tensor, table: Tensor, ragged: Ragged, tables: tuple[Tensor, Tensor] | None, heads: int) -> Tensor:
    """(queries, C), NaN in rows that are no query.

    Args:
        table: (rows, 2C): keys and values, with that of a padded place in the last row.
    """
    dim, (rows, columns) = q.shape[1], ragged.grid
    d = dim // heads
    out = torch.full(q.shape, float("nan"), dtype=torch.float64)
    for window, (start, end) in enumerate(zip(ragged.starts.tolist(), ragged.starts.tolist()[1:])):
        queries = ragged.queries[start:end].long()
        keys, values = table[ragged.keys[window].long()].double().view(-1, 2, heads, d).unbind(1)
        some = q[queries].double().view(-1, heads, d)
        logits = torch.einsum("qhd,khd->qhk", some, keys) * d**-0.5
        if tables is not None:
            middle = (len(tables[0]) - 1) // 2
            down = ragged.rows[queries].long()[:, None] - torch.arange(rows) + middle
            across = ragged.columns[queries].long()[:, None] - torch.arange(columns) + middle
            bias_h = torch.einsum("qhd,qrd->qhr", some, tables[0].double()[down])
            bias_w = torch.einsum("qhd,qcd->qhc", some, tables[1].double()[across])
            logits = logits + (bias_h[..., None] + bias_w[..., None, :]).flatten(2)
        out[queries] = torch.einsum("qhk,khd->qhd", logits.softmax(2), values).flatten(1)
    return out


def rest_of_block(
    attended: Tensor, x: Tensor, proj: nn.Linear, norm: nn.LayerNorm, lin1: nn.Linear, lin2: nn.Linear,
    up: nn.Linear | None, little: Tensor | None, little_rows: Tensor | None,
) -> Tensor:  # fmt: skip
    y = x.double() + _layer(proj, attended.double())
    if up is not None and little is not None:
        y = y + _layer(up, little[little_rows].double())
    return y + _layer(lin2, _activated("gelu", _layer(lin1, _normed(norm, y))))
