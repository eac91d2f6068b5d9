"""Where the weights of a model lie: one file, or a folder as transformers writes and the Hugging Face Hub keeps it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from ..data.files import load_json, sha256
from ..errors import InputError
from .transformers_names import SHARED

# As transformers names them, in the order in which it looks.
SINGLE, SHARDED = "model.safetensors", "model.safetensors.index.json"
NAMES = (SINGLE, SHARDED, "pytorch_model.bin", "pytorch_model.bin.index.json")
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".index.json"
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.\w+$")


def weight_files(path: str | Path) -> list[Path]:
    """The files that hold the weights of a model: one, or all the shards of an index.

    Args:
        path: a file of weights, an index of shards (`.index.json`), or a folder that holds either by transformers'
            name. Of several in a folder, safetensors come first, as in transformers.

    Raises:
        InputError: nothing there, or shards that are missing.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to a file that is gone: download the model again")
    if not path.is_file():
        raise InputError(
            f"no checkpoint at {path}: give the path of a .safetensors or a SAM .pth file, or a folder of transformers"
            + _elsewhere(str(path))
        )
    if path.name.endswith(_INDEX):
        return _shards(path)
    if shard := _SHARD.search(path.name):
        raise InputError(f"{path} is one of {int(shard[1])} shards of a model: give the folder with all of them")
    return [path]


def _elsewhere(path: str) -> str:
    """What to do with the name of something that is not on this machine; nothing for a path of a file."""
    if re.match(r"(https?|s3|gs):/", path):  # pathlib has taken the second slash
        return ". Files are read from disk: download it first (sam-bigltl download for SAM's own)"
    if re.fullmatch(r"[\w-]+/[\w.-]+", path) and not path.endswith(_ENDINGS):
        return ". A repository of the Hugging Face Hub is read by SamPredictor.from_pretrained(name)"
    return ""


def weights_sha256(path: str | Path) -> str:
    """The SHA-256 of a file of weights in hexadecimal digits; of several, that of theirs one after the other."""
    files = [Path(path)] if Path(path).is_file() and not str(path).endswith(_INDEX) else weight_files(path)
    if len(files) == 1:
        return sha256(files[0])
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()


def _in_folder(folder: Path) -> Path:
    for name in NAMES:
        if (folder / name).is_file() or (folder / name).is_symlink():
            return folder / name
    if snapshots := sorted((folder / "snapshots").glob("*/")):  # the root of a repository in the Hub's cache
        raise InputError(f"{folder} holds {len(snapshots)} snapshots of a repository: give one, such as {snapshots[0]}")
    if (folder / "adapter_config.json").is_file():
        raise InputError(f"{folder} holds an adapter alone (peft): merge it into its model and save that")
    if found := sorted(each.name for each in folder.iterdir() if each.suffix in _ENDINGS):
        raise InputError(f"{folder} holds no {SINGLE}: give one of its files, such as {folder / found[0]}")
    raise InputError(f"no checkpoint at {folder}, a folder: it holds no {SINGLE} and no pytorch_model.bin")


def shard_names(path: Path) -> list[str]:
    """The files that an index of shards names; none of any other file. Raises InputError for a broken index."""
    if not path.name.endswith(_INDEX):
        return []
    repair = "download it again"
    content = load_json(path, "index", repair, repair)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{path} is no index of shards: it has no weight_map with the file of every tensor")
    files = sorted(set(names.values()))
    if strange := [name for name in files if Path(name).name != name or "\\" in name]:
        raise InputError(f"{path} names {strange[0][:80]!r}, which is no file of its own folder")
    return files


def _shards(index: Path) -> list[Path]:
    files = shard_names(index)
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise InputError(
            f"{index} names {len(files)} shards, and {missing[0]} is not there ({len(missing)} missing): "
            "download the model again"
        )
    return [index.parent / name for name in files]


def join_shards(shards: list[Any], path: Path) -> dict[str, Any]:
    """The tensors of all shards; raises InputError where they are not those that the index promises."""
    content: dict[str, Any] = {}
    for shard in shards:
        content |= shard if isinstance(shard, dict) else {}
    index = _in_folder(path) if path.is_dir() else path
    promised = load_json(index, "index", "", "")["weight_map"]
    missing = [name for name in promised if name not in content and name not in SHARED]  # one of the tied two may do
    if missing:
        raise InputError(
            f"{path} lacks {missing[0][:80]}, which its index has in {promised[missing[0]]}: download it again"
        )
    return content
