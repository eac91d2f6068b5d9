"""State dicts of a module that holds our encoder, by the names that it had before."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from .encoder import InPlaceEncoder

_LITTLE = re.compile(r"^(little_blocks|transitions)\.|^blocks\.\d+\.(attn\.kv_little|norm_little|up|gamma)\b")
_HELD = "encoder."


class Renamed:
    """A base before `nn.Module` of one whose `encoder` is ours.

    The little path is left out of state dicts: the library has no name for it. What others added to the encoder keeps
    its name, behind "encoder.".
    """

    encoder: InPlaceEncoder
    to_theirs: Callable[[str], str]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """torch's, by the library's names."""
        state = super().state_dict(*args, **kwargs)  # type: ignore[misc]
        prefix = kwargs.get("prefix", "")
        named = self._names()
        for key in [key for key in state if key.startswith(prefix + _HELD)]:
            own = key[len(prefix + _HELD) :]
            if own in named:
                state[prefix + named[own]] = state.pop(key)
            elif _LITTLE.match(own):
                del state[key]
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args: Any) -> None:  # nn.Module's signature
        for own, other in self._names().items():
            if prefix + other in state_dict:
                state_dict[prefix + _HELD + own] = state_dict.pop(prefix + other)
        for own, value in self.encoder.exact.named_parameters():
            if _LITTLE.match(own):
                state_dict.setdefault(prefix + _HELD + own, value.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def _names(self) -> dict[str, str]:
        exact = self.encoder.exact
        names = [name for name, _ in exact.named_parameters() if not _LITTLE.match(name)]
        return exact.origin.names or {name: type(self).to_theirs(name) for name in names}
