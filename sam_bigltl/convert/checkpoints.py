"""Files of weights, read without executing anything in them."""

from __future__ import annotations

import argparse
import json
import logging
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..data.files import utf8_path
from ..errors import InputError
from .wrong_files import is_safetensors, why_not

# What trainings write next to their weights, and what cannot do anything.
_HARMLESS: list[Any] = [
    argparse.Namespace, (pathlib.PurePosixPath, "pathlib.PosixPath"), (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
]  # fmt: skip
# What wrappers put into names, at any place; what DataParallel and Lightning put before them is a prefix.
_WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Of several models in a file the averaged one is meant, as in timm: that is what those who train evaluate and publish.
_AVERAGED = re.compile(r"(?:^|[._])(?:average|ema)(?=[._]|$)")
_DEPTH = 4  # dictionaries in dictionaries


def load_torch(path: str | Path) -> Any:
    """What `torch.save` wrote, on the CPU: tensors and plain containers. Anything else in the file is refused."""
    with torch.serialization.safe_globals(_HARMLESS), open(path, "rb") as file:  # by a name torch may go by its ending
        return torch.load(file, map_location="cpu", weights_only=True)


def load_tensors(path: Path) -> Any:
    """The content of a safetensors file, or of what `torch.save` wrote: which one it is, its first bytes say."""
    return load_file(path) if is_safetensors(path) else load_torch(path)


def read_metadata(path: Path) -> dict[str, Any]:
    """What a file of `save_sam` says beside its tensors; nothing for any other."""
    if not is_safetensors(path):
        return {}
    with safe_open(path, "pt") as file:
        return dict(json.loads((file.metadata() or {}).get("sam_bigltl", "{}")))


def read_checkpoint(path: Path, load: Callable[[Path], Any] = load_torch) -> Any:
    """`load(path)`, where `load` executes nothing of the file; raises InputError if it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are then refused
            with utf8_path(path) as readable:
                return load(readable)
    except Exception as error:  # on noise the unpickler raises whatever its first bytes happen to mean
        raise InputError(why_not(path, error)) from None


def check_tensors(content: Any, path: Path) -> None:
    """Raise InputError, which names the tensor, unless all of `content` are plain ones of finite numbers.

    Args:
        content: tensors in dictionaries, lists and tuples, in one another; other things are left alone.
        path: of the file, for the message.
    """
    tensors = list(_tensors(content))
    for name, value in tensors:
        if value.is_meta:
            raise InputError(f"{path} holds no values of {name}, a meta tensor: save the model after it is loaded")
        if value.layout != torch.strided or value.is_nested or value.is_quantized or value.is_complex():
            kind = str(value.dtype if value.layout == torch.strided else value.layout).removeprefix("torch.")
            raise InputError(
                f"{path} holds {name} as a tensor of an odd kind ({kind}): save it as a dense float tensor"
            )
    # A tensor can repeat a few bytes of its file as often as it likes: what is read below would not fit the memory.
    storages = [value.untyped_storage() for _, value in tensors]
    stored = {storage.data_ptr(): storage.nbytes() for storage in storages}
    if sum(value.numel() * value.element_size() for _, value in tensors) > 4 * sum(stored.values()):
        raise InputError(f"{path} holds tensors that are expanded from fewer values: save copies, tensor.contiguous()")
    for name, value in tensors:
        if value.is_floating_point() and not value.float().isfinite().all():
            raise InputError(
                f"{path} has NaN or infinite values in {name}: the file is damaged or its training failed, "
                "take an earlier one"
            )


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors in containers, by the way to them."""
    rest, seen = [("", content)], set()
    while rest:
        name, item = rest.pop()
        if isinstance(item, Tensor):
            yield name, item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:  # a container can hold itself
            seen.add(id(item))
            inner = item.items() if isinstance(item, dict) else enumerate(item)
            rest += [(f"{name}.{key}" if name else str(key), value) for key, value in inner]


def find_weights(content: Any, anchor: str, path: Path) -> dict[str, Tensor]:
    """A model's state dict in what was saved of it: under a key, or with a prefix, as trainings and wrappers write.

    Args:
        content: of a file.
        anchor: a name, or the first part of names, that the model's tensors have.
        path: of the file, for messages.

    Returns:
        The tensors by the model's own names. Of several models the averaged one (ema), which is logged.

    Raises:
        InputError: none, or several with nothing to choose by; the message names what was found.
    """
    found: dict[str, dict[str, Tensor]] = {}
    states = list(_state_dicts(content))
    for way, state in states:
        state = {_WRAPPERS.sub("", name): value for name, value in state.items()}
        prefixes = {name[:place] for name in state if (place := f".{name}.".find(f".{anchor}.")) >= 0}
        for prefix in [""] if "" in prefixes else sorted(prefixes):
            found[(way + prefix).strip(".") or "the top level"] = {
                name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)
            }
    if not found:
        if len(states) == 1:  # another model: what it lacks is said where it is built
            return states[0][1]
        keys = ", ".join(str(key)[:40] for key in list(content)[:8]) if isinstance(content, dict) else ""
        about = f"under any of its keys ({keys})" if keys else f"since it is a {type(content).__name__}"
        raise InputError(f"{path} holds no tensor of {anchor} {about}: give a file of model.state_dict()")
    chosen = [way for way in found if _AVERAGED.search(way)] if len(found) > 1 else list(found)
    if len(chosen) != 1:
        several = ", ".join(list(found)[:8])[:200]
        raise InputError(
            f"{path} holds several models ({several}): write the one that you mean into a file of its own with "
            "torch.save"
        )
    if len(found) > 1:
        others = ", ".join(way for way in found if way != chosen[0])
        logging.getLogger(__name__).warning("%s: the weights under %s are read, not %s", path, chosen[0], others)
    return found[chosen[0]]


def has_tensors(content: Any, part: str) -> bool:
    """Whether a tensor in `content` belongs to the part of a model that is called `part`."""
    return any(f".{part}." in f".{name}" for _, state in _state_dicts(content) for name in state)


def _state_dicts(content: Any) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Dictionaries with tensors by name, and the way to each: "", "model." and so on."""
    level, seen = [("", content)], set()
    for _ in range(_DEPTH):
        below = []
        for way, item in level:
            if not isinstance(item, dict) or id(item) in seen:
                continue
            seen.add(id(item))
            tensors = {key: value for key, value in item.items() if isinstance(key, str) and isinstance(value, Tensor)}
            if tensors:
                yield way, tensors
            below += [(f"{way}{key}.", value) for key, value in item.items()]
        level = below
