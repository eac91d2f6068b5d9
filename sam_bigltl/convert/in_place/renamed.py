"""A module that holds our encoder: its state dict by the names that it had before, and its keep_ratio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..sam import LITTLE_PATH
from .encoder import InPlaceEncoder

_HELD = "encoder."


class Renamed:
    """A base before `nn.Module` of one whose `encoder` is ours.

    The little path is left out of state dicts: the library has no name for it. What others added to the encoder keeps
    its name, behind "encoder.".
    """

    encoder: InPlaceEncoder
    to_theirs: Callable[[str], str]

    @property
    def keep_ratio(self) -> Any:
        """See `BigLittleEncoder`."""
        return self.encoder.keep_ratio

    @keep_ratio.setter
    def keep_ratio(self, value: Any) -> None:
        self.encoder.keep_ratio = value

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """torch's, by the library's names."""
        state = super().state_dict(*args, **kwargs)  # type: ignore[misc]
        prefix = kwargs.get("prefix", "")
        named = self._names()
        for key in [key for key in state if key.startswith(prefix + _HELD)]:
            own = key[len(prefix + _HELD) :]
            if own in named:
                state[prefix + named[own]] = state.pop(key)
            elif LITTLE_PATH.match(own):
                del state[key]
        return state

    def _load_from_state_dict(self, state_dict, prefix, *args: Any) -> None:  # nn.Module's signature
        for own, other in self._names().items():
            if prefix + other in state_dict:
                state_dict[prefix + _HELD + own] = state_dict.pop(prefix + other)
        for own, value in self.encoder.exact.named_parameters():
            if LITTLE_PATH.match(own):
                state_dict.setdefault(prefix + _HELD + own, value.detach())
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def _names(self) -> dict[str, str]:
        exact = self.encoder.exact
        names = [name for name, _ in exact.named_parameters() if not LITTLE_PATH.match(name)]
        return exact.origin.names or {name: type(self).to_theirs(name) for name in names}
