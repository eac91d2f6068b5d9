"""How an encoder runs (number format, C++ kernels, keep_ratio), and model files that carry such a setting."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..fast.choice import check
from ..fast.precision import PRECISIONS
from ..modeling.encoder import EncoderConfig
from ..modeling.trunk import Trunk
from .checkpoints import read_checkpoint, read_metadata
from .weight_files import weight_files

# dtype of `fast.precision.PRECISIONS`, and whether the C++ kernels compute it.
FORMATS = tuple((dtype, native) for dtype in PRECISIONS for native in (False, True))


@dataclass(frozen=True)
class Setting:
    """How an encoder runs.

    Attributes:
        dtype: of `fast.precision.PRECISIONS`.
        native: whether the C++ kernels compute it.
        keep_ratio: see `BigLittleEncoder`.
        focus: whether every box is encoded for itself, with the big tokens sought in it (`SamPredictor.set_image`,
            `boxes`).
    """

    dtype: str = "float32"
    native: bool = False
    keep_ratio: float | tuple[float, ...] | str = 1.0
    focus: bool = False

    @property
    def format(self) -> str:
        """Such as "int8 with C++ kernels"."""
        return f"{self.dtype} with C++ kernels" if self.native else self.dtype

    @property
    def ratio(self) -> str:
        """The keep_ratio in words: "0.5", "0.5/0.25/0.5" or "auto"."""
        ratio = self.keep_ratio
        return "/".join(f"{each:g}" for each in ratio) if isinstance(ratio, tuple) else ratio_text(ratio)

    def __str__(self) -> str:
        return f"{self.format}, keep_ratio {self.ratio}" + ", boxes given" * self.focus

    def as_json(self) -> dict[str, Any]:
        """For files; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> Setting:
        """What `as_json` gave. Raises InputError for anything else."""
        refused = InputError(f"this is no setting of `sam-bigltl tune`: {str(content)[:100]}")
        if not isinstance(content, dict) or not content.keys() <= {field.name for field in fields(cls)}:
            raise refused
        setting = cls(**content)
        ratio = setting.keep_ratio
        if isinstance(ratio, list):
            setting = cls(setting.dtype, setting.native, tuple(ratio), setting.focus)
        ratios = ratio if isinstance(ratio, list | tuple) else [ratio]
        shares = ratio == "auto" or (len(ratios) > 0 and all(_is_share(each) for each in ratios))
        if not shares or type(setting.focus) is not bool or type(setting.native) is not bool:
            raise refused
        if (setting.dtype, setting.native) not in FORMATS:
            raise refused
        return setting


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= 1


def ratio_text(ratio: float | str) -> str:
    return ratio if isinstance(ratio, str) else f"{ratio:g}"


def apply(encoder: Trunk, setting: Setting) -> None:
    """Make `encoder` run as `setting` says, in place. Raises InputError where this machine cannot."""
    encoder.optimize(dtype=setting.dtype, native=setting.native)
    encoder.keep_ratio = setting.keep_ratio


def for_file(setting: Setting, config: EncoderConfig) -> dict[str, Any]:
    """What goes into the file of a model whose encoder has this shape. Raises InputError for what it cannot run as."""
    content = _of_a_model(Setting.from_json(setting.as_json())).as_json()
    ratio, stages = setting.keep_ratio, len(config.stages)
    if isinstance(ratio, tuple) and len(ratio) != stages:
        raise InputError(f"the setting has {len(ratio)} keep_ratio values, but the encoder has {stages} stages")
    if not config.little_dim and ratio != 1.0:
        raise InputError(f"the setting has keep_ratio {setting.ratio}, but this model is dense: convert it first")
    return content


def _of_a_model(setting: Setting) -> Setting:
    if setting.focus:
        raise InputError("boxes are given with every photograph: a model's setting has no focus")
    return setting


def apply_from(path: str | Path, encoder: Trunk, setting: Setting) -> None:
    """`apply` what `read_setting` found in `path`; the error names it."""
    try:
        apply(encoder, setting)
    except InputError as error:  # a keep_ratio for another encoder
        raise InputError(f"{path} carries a setting that is not for its model ({setting}): {error}") from None


def read_setting(path: str | Path, device: torch.device | None = None) -> Setting:
    """The setting that a model file carries (`save_sam(..., setting=...)`), read without its weights.

    Args:
        path: a file, or a folder of the Hub.
        device: where it shall run; None is the CPU.

    Raises:
        InputError: no such file, none or no usable setting in it, or one that does not run on `device`.
    """
    # Of a model in several files the first one says it.
    about = read_checkpoint(weight_files(path)[0], read_metadata)
    instead = "load it without tuned=True (--tuned) and choose dtype, native and keep_ratio yourself"
    if "setting" not in about:
        raise InputError(f"{path} carries no setting: write it with sam-bigltl tune, or {instead}")
    try:
        setting = _of_a_model(Setting.from_json(about["setting"]))
    except InputError as error:
        raise InputError(f"{path} carries a setting that cannot be used ({error}): {instead}") from None
    try:
        check(device or torch.device("cpu"), setting.dtype, setting.native)
    except InputError as error:
        reason = str(error).rpartition(": ")[0] or str(error)  # without advice that is for other calls
        raise InputError(
            f"{path} is set to {setting}, which does not run here ({reason}): tune it on this machine, or {instead}"
        ) from None
    return setting
