"""Masks of very many photographs on Ray Data: `sam-bigltl bulk`, and the parts of a pipeline of one's own.

May use `evaluation` and every room below it. Names are imported when they are asked for: processes that read
photographs load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..convert.tuned import Setting
    from .config import BulkConfig, Everything
    from .folder import Folder
    from .inputs import Shard, find_shards
    from .reading import Photograph, read_chunks
    from .run import Summary, segment_shards
    from .segmenter import Segmenter

_MODULES = {
    "BulkConfig": "config", "Everything": "config", "Folder": "folder", "Photograph": "reading",
    "Segmenter": "segmenter", "Shard": "inputs", "Summary": "run", "find_shards": "inputs",
    "Setting": "config", "read_chunks": "reading", "segment_shards": "run",
}  # fmt: skip
__all__ = [
    "BulkConfig",
    "Everything",
    "Folder",
    "Photograph",
    "Segmenter",
    "Setting",
    "Shard",
    "Summary",
    "find_shards",
    "read_chunks",
    "segment_shards",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    return value
