"""How blocks and attentions are called, so that clients may hook, wrap or replace each of them.

SAM's blocks take tokens alone, `block(x)`. A big.LITTLE layer also needs to know where these tokens lie. Modules of this
package are told by a second argument. A client's module in their place (an adapter, LoRA) is called as SAM calls it,
and what it wraps finds the same argument here.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..errors import InputError
from .routing import Geometry, Selection


@dataclass(frozen=True)
class Routed:
    """The call of a block or an attention is for selected tokens.

    Attributes:
        little: little stream of all tokens (B, N, C_E), which an attention gets normed.
        selection: the K tokens.
        geometry: the grid and its windows.
        gate: factor on what a block adds, (B, K, 1), or None outside training.
    """

    little: Tensor
    selection: Selection
    geometry: Geometry
    gate: Tensor | None = None


class Alone:
    """The call of an attention is for a grid (B, H, W, C) that sees nothing but itself, as in `segment_anything`."""


ALONE = Alone()
Place = Geometry | Routed | Alone

_kept = threading.local()
_takes_more: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def call(module: nn.Module, x: Tensor, place: Place, kind: type[nn.Module]) -> Tensor:
    """`module(x)` for tokens that lie at `place`; `kind` is what this package has there."""
    if isinstance(module, kind) and "forward" not in vars(module):
        return module(x, place)
    before: Any = getattr(_kept, "call", None)
    _kept.call = place, kind
    try:
        # A wrapper that passes arguments on may run what it wraps again, in a backward pass, when nothing is kept here.
        return module(x, place) if _passes_on(module) else module(x)
    finally:
        _kept.call = before


def place_of_call(module: nn.Module, given: Place | None) -> Place | None:
    """`given`, or what `call` keeps for `module` inside a client's; None in a call by hand.

    Raises InputError where a client's block itself calls an attention for selected tokens.
    """
    kept: Any = getattr(_kept, "call", None)
    if given is not None or kept is None:
        return given
    place, kind = kept
    if isinstance(module, kind):
        return place
    if isinstance(place, Routed):
        raise InputError("a block whose forward was replaced runs at keep_ratio 1.0 only: wrap the block instead")
    return None


def _passes_on(module: nn.Module) -> bool:
    if "forward" in vars(module):
        return False
    kind = type(module)
    if kind not in _takes_more:
        parameters = inspect.signature(kind.forward).parameters.values()
        _takes_more[kind] = any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters)
    return _takes_more[kind]


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether a module is of one of `kinds` itself, and nobody hooked or patched it."""
    return type(module) in kinds and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )
