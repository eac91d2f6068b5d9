"""How blocks and attentions are called, so that clients may hook, wrap or replace each of them.

SAM's blocks take tokens alone, `block(x)`. A big.LITTLE layer also needs to know where these tokens lie. Modules of
this package are told by a second argument. A client's module in their place (an adapter, LoRA) is called as SAM calls
it, and what it wraps finds the same argument here.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
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


@dataclass
class _Kept:
    place: Place
    kind: type[nn.Module]
    found: bool = False


_SELECTED = "_had_selected_tokens"  # of a module inside a client's: what its last call was for

_now = threading.local()  # .kept: a `_Kept` while a client's module runs
_takes_more: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def call(module: nn.Module, x: Tensor, place: Place, kind: type[nn.Module]) -> Tensor:
    """`module(x)` for tokens that lie at `place`; `kind` is what this package has there.

    Raises InputError where tokens are selected and a client's module does not hold one of `kind` that knows what to do.
    """
    if isinstance(module, kind) and "forward" not in vars(module):
        return module(x, place)
    before: _Kept | None = getattr(_now, "kept", None)
    _now.kept = kept = _Kept(place, kind)
    try:
        # A wrapper that passes arguments on may run what it wraps again, in a backward pass, when nothing is kept here.
        result = module(x, place) if _passes_on(module) else module(x)
    finally:
        _now.kept = before
    if isinstance(place, Routed) and not kept.found:
        raise InputError(
            f"a {type(module).__name__} that takes the place of a {kind.__name__} runs at keep_ratio 1.0 only: "
            "let it wrap ours instead"
        )
    return result


def place_of_call(module: nn.Module, given: Place | None) -> Place | None:
    """`given`, or what `call` keeps for `module` inside a client's; None in a call by hand.

    Raises InputError where a client's module runs selected tokens again in a backward pass, as torch.utils.checkpoint
    does: which tokens they are is not kept until then, and the gradients would be wrong.
    """
    kept: _Kept | None = getattr(_now, "kept", None)
    if kept is None or not isinstance(module, kept.kind):
        if given is None and vars(module).get(_SELECTED) and torch._C._current_graph_task_id() != -1:
            raise InputError(
                "torch.utils.checkpoint in a module around a block or an attention runs at keep_ratio 1.0 only: set "
                "encoder.gradient_checkpointing = True in its place, or let the module take *args, pass them on, and "
                "checkpoint with use_reentrant=False"
            )
        return given
    kept.found = True
    if given is not None:
        return given
    selected = isinstance(kept.place, Routed)
    if vars(module).get(_SELECTED, False) != selected:
        vars(module)[_SELECTED] = selected
    if isinstance(kept.place, Geometry) and not kept.place.whole and torch.is_grad_enabled():
        return None  # as by hand, which is what a checkpoint of a client's runs in the backward pass
    return kept.place


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
