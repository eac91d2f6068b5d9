"""Windows with as many queries as were selected in each, as the native kernels take them.

Keys are numbered in a table of all tokens: first the big ones in the order of the selection, then the others. So what
the linear layers wrote is read where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Queries and keys of W windows (or whole images), all int32.

    Attributes:
        keys: row of each key in the table, -1 where a window is padded, (W, rows * columns).
        starts: queries of window w are `queries[starts[w]:starts[w + 1]]`, (W + 1,).
        queries: rows of q, sorted by window, (Q,).
        rows, columns: of each row of q inside its window, (Q,).
        grid: rows and columns of the keys of a window.
        places: where every row of q is in `queries`, (Q,), where every token asks; else None.
    """

    keys: Tensor
    starts: Tensor
    queries: Tensor
    rows: Tensor
    columns: Tensor
    grid: tuple[int, int]
    places: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.keys, self.starts, self.queries, self.rows, self.columns
