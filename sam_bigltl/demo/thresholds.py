"""How sure everything mode must be of a mask, for the weights that are loaded."""

from __future__ import annotations

from .everything import Options


def default_options() -> Options:
    """What the page starts with."""
    return Options(12, 0.4, 0.6)
