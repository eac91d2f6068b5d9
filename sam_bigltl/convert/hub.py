"""Models as folders of the Hugging Face Hub: `model.safetensors`, `config.json` and a model card.

`Sam` is `segment_anything`'s own class and its sizes are read from the tensors, so huggingface_hub's mixin, which wraps
a class and its constructor, does not fit: these functions keep its names, files and arguments.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from segment_anything.modeling import Sam

from ..data.files import whole_file
from ..errors import InputError
from ..fast.devices import parse_device
from .sam import describe, load_sam, save_sam
from .transformers_files import CONFIG, PREPROCESSOR, PROCESSOR
from .transformers_folder import save_transformers
from .tuned import Setting, apply_from, read_setting
from .weight_files import NAMES, SINGLE, shard_names

WEIGHTS, CARD = SINGLE, "README.md"

_CARD = """\
---
library_name: sam_bigltl
pipeline_tag: mask-generation
tags:
- segment-anything
- vision-transformer
---

# {name}

A Segment Anything model with a big.LITTLE image encoder \
([arXiv 2410.10267](https://arxiv.org/abs/2410.10267)): {model}.

```python
from sam_bigltl import SamPredictor

predictor = SamPredictor.from_pretrained("{name}", keep_ratio=0.5)  # this folder, or its repository id
predictor.set_image(image)                                          # uint8 RGB of shape (H, W, 3)
masks, iou, low_res = predictor.predict(box=box)                    # box: x0, y0, x1, y1
```

`keep_ratio`, the share of the tokens on the big path, is a run-time setting: any number in (0, 1], one a stage, \
or "auto".

Training data, evaluation and licence: to be filled in by whoever publishes this model.
"""
_THEIR_CARD = """\
---
library_name: transformers
pipeline_tag: mask-generation
tags:
- segment-anything
---

# {name}

A Segment Anything model for `transformers.SamModel`, written by sam_bigltl.

Training data, evaluation and licence: to be filled in by whoever publishes this model.
"""


def save_pretrained(
    sam: Sam,
    folder: str | PathLike[str],
    dtype: torch.dtype = torch.float32,
    format: Literal["sam_bigltl", "transformers"] = "sam_bigltl",
    setting: Setting | None = None,
) -> None:
    """Write a model as a folder that `from_pretrained` reads and `hf upload` publishes.

    Args:
        sam: a Sam with one of this project's encoders, big.LITTLE or dense; its `keep_ratio` is kept.
        folder: made where it is missing. A model card that is there already is left alone.
        dtype: of the floating-point tensors in the file.
        format: "transformers" writes what its `SamModel`, `SamProcessor` and `pipeline("mask-generation")` read, and
            takes `segment_anything`'s encoder, too. It has no place for a LITTLE path: the model as it is at
            keep_ratio 1.0 is written, and one that is set below is refused.
        setting: how its encoder runs best, for `from_pretrained(..., tuned=True)`; it goes into the file of weights,
            see `save_sam`. transformers' format has no place for it.

    Raises:
        InputError: another encoder, one that the format has no place for, or a folder that cannot be written.
    """
    if format not in ("sam_bigltl", "transformers"):
        raise InputError(f'format is "sam_bigltl" or "transformers", not {format!r}')
    folder = Path(folder)
    if format == "transformers":
        if setting is not None:
            raise InputError("transformers' format has no place for a setting: leave it out, or the format")
        save_transformers(sam, folder, dtype)
        _write(folder, {CARD: _THEIR_CARD.format(name=folder.resolve().name)})
        return
    encoder = sam.image_encoder
    if not hasattr(encoder, "config"):
        raise InputError("this model has segment_anything's encoder: convert it with convert_sam first")
    config = {
        "library_name": "sam_bigltl",
        "model": describe(encoder.config),
        "keep_ratio": encoder.keep_ratio,
        "image_encoder": asdict(encoder.config),
    }
    save_sam(sam, folder / WEIGHTS, dtype, setting)
    card = _CARD.format(name=folder.resolve().name, model=config["model"])
    _write(folder, {CONFIG: json.dumps(config, indent=2) + "\n", CARD: card})


def _write(folder: Path, texts: dict[str, str]) -> None:
    try:
        for name, text in texts.items():
            if name != CARD or not (folder / CARD).exists():
                with whole_file(folder / name) as file:
                    file.write(text)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from None


def from_pretrained(
    name: str | PathLike[str],
    *,
    keep_ratio: float | tuple[float, ...] | str | None = None,
    device: str | torch.device | None = None,
    tuned: bool = False,
    **download: Any,
) -> Sam:
    """The model of a folder that `save_pretrained` or transformers wrote, or of a repository of the Hugging Face Hub.

    Args:
        name: the folder, or the repository's id such as "someone/bigltl_b" or "facebook/sam-vit-base". A folder comes
            first.
        keep_ratio: of the encoder; None is what the folder's `config.json` says, where it is one of ours.
        device: as torch takes it; None is the CPU.
        tuned: run as the setting says that the weights carry, see `load_sam`; `keep_ratio`, where it is given, takes
            the place of the setting's.
        download: `revision`, `token`, `cache_dir`, `force_download`, `local_files_only` of `hf_hub_download`.

    Raises:
        InputError: no such folder or repository, no network, or files that hold no Sam.
    """
    folder = Path(name)
    if folder.is_file():
        raise InputError(f"{folder} is a file: give its folder, or read it with load_sam")
    if not folder.is_dir():
        folder = _download(str(name), **download)
    target = parse_device(str(device or "cpu"))
    setting = read_setting(folder, target) if tuned else None
    sam = load_sam(folder).to(target)
    if setting is not None:
        apply_from(folder, sam.image_encoder, setting)
    if keep_ratio is not None:
        sam.image_encoder.keep_ratio = keep_ratio
    return sam


def _download(repo_id: str, **options: Any) -> Path:
    """The folder of the Hub's cache that holds a repository's weights and, where it has them, its configurations."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import (
            EntryNotFoundError,
            HFValidationError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
        )
    except ModuleNotFoundError:
        raise InputError(
            f"there is no folder {repo_id}; to fetch it from the Hugging Face Hub: pip install huggingface_hub"
        ) from None
    try:
        path = None
        for file in (CONFIG, PREPROCESSOR, PROCESSOR, *NAMES):
            try:
                found = hf_hub_download(repo_id, file, **options)
            except EntryNotFoundError as error:  # no configuration will do, and one file of weights
                missing = error
                if isinstance(error, LocalEntryNotFoundError):  # unreachable: what the cache holds, without waiting
                    options["local_files_only"] = True
                continue
            if file in NAMES:
                path = Path(found)
                break
        if path is None:
            raise missing
        for shard in shard_names(path):
            hf_hub_download(repo_id, shard, **options)
        return path.parent
    except LocalEntryNotFoundError:
        raise InputError(
            f"there is no folder {repo_id}, and the Hugging Face Hub cannot be reached: check the path or the network"
        ) from None
    except EntryNotFoundError:
        raise InputError(f"the repository {repo_id} of the Hugging Face Hub holds no {WEIGHTS}") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"there is no folder {repo_id}, and no such repository on the Hugging Face Hub, or none that may be read: "
            "check the name, or log in with hf auth login"
        ) from None
    except HFValidationError:
        raise InputError(f"there is no folder {repo_id}, and it is no repository id such as someone/model") from None
    except OSError as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{repo_id} cannot be fetched from the Hugging Face Hub ({reason})") from None
