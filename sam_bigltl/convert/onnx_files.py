"""The two files of an ONNX export: what they are called, what they say of themselves, and how they are opened.

Imports neither torch nor onnxruntime: `export` has the one, `onnx_predictor` the other.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.files import utf8_path
from ..errors import InputError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ENCODER, DECODER = "encoder", "decoder"
METADATA_KEY = "sam_bigltl"


@dataclass(frozen=True)
class About:
    """What each file says of itself, in the metadata of the ONNX model.

    Attributes:
        part: ENCODER or DECODER.
        model: the registry key, or the sizes in words.
        keep_ratio: share of the tokens on the big path, fixed in the encoder.
        image_size: side of the encoder's input, pixels.
        pixel_mean, pixel_std: of the R, G and B of images in 0 to 255.
        mask_threshold: of the logits.
        weights: fingerprint of the model, by which encoder and decoder know each other.
    """

    part: str
    model: str
    keep_ratio: float
    image_size: int
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    mask_threshold: float
    weights: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def file_of(folder: Path, part: str) -> Path:
    """Where an export has its encoder or decoder."""
    return folder / f"{part}.onnx"


def open_part(folder: Path, part: str, threads: int | None, providers: list[str]) -> tuple[InferenceSession, About]:
    """A session of one file of an export, and what it says of itself.

    Raises InputError, one line, for a file that is missing, damaged or another one.
    """
    import onnxruntime

    path = file_of(folder, part)
    if not path.is_file():
        raise InputError(f"no {path.name} in {folder}: give the folder that sam-bigltl export wrote")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        with utf8_path(folder) as readable:
            session = onnxruntime.InferenceSession(str(file_of(readable, part)), options, providers=providers)
        found = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    except Exception as error:  # onnxruntime has an exception for each kind of damage
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path} cannot be read as an ONNX model, export it again: {reason}") from None
    if found is None:
        raise InputError(f"{path} was not written by sam-bigltl export: export the checkpoint with it")
    try:
        about = About(**json.loads(found))
    except (TypeError, ValueError):
        raise InputError(f"{path} was written by another version of sam_bigltl: export the checkpoint again") from None
    if about.part != part:
        raise InputError(f"{path} holds the {about.part}: export again, or give each file its own name back")
    return session, about


def check_computed(values: np.ndarray, folder: Path, part: str) -> None:
    """Raise InputError where a file of an export computed something not finite: its weights cannot be right."""
    if not np.isfinite(values).all():
        raise InputError(f"{file_of(folder, part)} computes NaN or infinite values: export its checkpoint again")
