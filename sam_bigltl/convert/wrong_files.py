"""What a file is that cannot be read as weights, and what to do about it, in one line."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

SAVE = "save its weights alone with torch.save(model.state_dict(), 'weights.pth')"
_AGAIN = "download or copy it again"
_LONGEST = 100_000_000  # bytes of a header, as in safetensors
_PICKLES = (b"\x80\x03", b"\x80\x04", b"\x80\x05")  # torch.save writes the second protocol
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "rar",
           b"\x28\xb5\x2f\xfd": "zstd"}  # fmt: skip


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, whatever its name: the length of a header, and a brace."""
    with open(path, "rb") as file:
        first = file.read(9)
    return len(first) == 9 and first[8:] == b"{" and int.from_bytes(first[:8], "little") < 2**32


def why_not(path: Path, error: Exception) -> str:
    """One line on a file of weights whose reading ended with `error`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{path} cannot be read: {error.strerror}"
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(2048)
    if not size:
        return f"{path} is empty: {_AGAIN}"
    if "TorchScript" in str(error):
        return f"{path} is a TorchScript program, not weights: {SAVE}"
    if text := _text(first, path):
        return f"{path} {text}"
    known = re.search(r"GLOBAL ([\w.]+)", str(error), re.ASCII)
    if known or first[:2] in _PICKLES:
        named = f"it names {known[1][:80]}" if known else "it is a plain pickle"
        return (
            f"{path} holds more than tensors ({named}), perhaps a whole pickled model, and is not read because that "
            f"could run any code: where you trust it, {SAVE}"
        )
    if is_safetensors(path):
        return f"{path} {_cut(path, size)}"
    if first.startswith(b"PK\x03\x04"):
        return f"{path} {_zip(path)}"
    for magic, name in _PACKED.items():
        if first.startswith(magic):
            return f"{path} is compressed ({name}): unpack it, and give the file of weights in it"
    return f"{path} cannot be read as a checkpoint: it is truncated or damaged, or no file of weights"


def _text(first: bytes, path: Path) -> str | None:
    """What a text is that came in the place of weights."""
    start = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights: run git lfs pull, or download the file itself"
    if re.match(rb"<(!doctype|html|head|\?xml|!--)", start, re.IGNORECASE):
        return "is a web page (HTML), not weights: download the file itself, not the page that shows it"
    if start.startswith((b"{", b"[")) and not start.startswith(b"{\x00"):
        try:
            content = json.loads(path.read_bytes()) if path.stat().st_size < 2**24 else None
        except (ValueError, RecursionError):
            return None
        said = content.get("error") or content.get("message") if isinstance(content, dict) else None
        said = f" ({' '.join(said.split())[:80]})" if isinstance(said, str) else ""
        if path.name == "config.json":
            return "describes a model and holds no weights: give its folder"
        return f"is a text in JSON{said}, not weights: download the file of weights itself"
    return None


def _cut(path: Path, size: int) -> str:
    """On safetensors: how much of the file is there."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        whole = 8 + length
        if whole <= size and length < _LONGEST:
            try:
                header = json.loads(file.read(length))
                whole += max((e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"), default=0)
            except Exception:  # noise can look like a header
                whole = 0
    if whole > size:
        return f"is cut short, {size} bytes of {whole}: the download or copy did not end, {_AGAIN}"
    return f"cannot be read as safetensors: it is truncated or damaged, {_AGAIN}"


def _zip(path: Path) -> str:
    """On zip files, which torch.save writes."""
    if not zipfile.is_zipfile(path):
        return f"is cut short: it begins as a file of torch.save, but its end is missing, {_AGAIN}"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # of a damaged table of contents
        names = ["data.pkl"]
    if not any(name.endswith("data.pkl") for name in names):
        return "is a zip archive, not a file of torch.save: unpack it, and give the file of weights in it"
    return f"cannot be read as a checkpoint: it is truncated or damaged, {_AGAIN}"
