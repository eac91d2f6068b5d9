"""What the server keeps of everybody's work, within one budget of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any


class Store:
    """Values by key; once they hold more bytes than `budget`, those that were used least recently go.

    All users share it, and nothing else of a user is kept. The newest value stays, however large it is. It may be used
    from several threads.

    Attributes:
        held: bytes that its values hold together.
    """

    def __init__(self, budget: int) -> None:
        self.budget, self.held = budget, 0
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Any:
        """The value, which has then been used, or None."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Any, size: int) -> None:
        """Keep a value of `size` bytes, in the place of one that `key` had."""
        with self._lock:
            self.held += size - self._values.pop(key, (None, 0))[1]
            self._values[key] = value, size
            while self.held > self.budget and len(self._values) > 1:
                _, (_, gone) = self._values.popitem(last=False)
                self.held -= gone
