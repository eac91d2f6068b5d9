"""`tune`: from a model and photographs to the fastest setting that keeps its masks."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from segment_anything.modeling import Sam

from ..convert.sam import convert_sam, load_sam
from ..errors import InputError
from ..fast.quantize import Int8Linear, Int8MLP
from ..modeling.encoder import BigLittleEncoder
from .journal import MODEL
from .photographs import FIT, MEASURE, Images, open_photographs
from .result import Tuned
from .run import Run, Wanted
from .settings import RATIOS


def tune(
    sam: Sam | str | PathLike[str],
    images: Images,
    *,
    target: float = 0.95,
    minutes: float = 0.0,
    budget: float | None = 10.0,
    output: str | PathLike[str] | None = None,
    fit: int = FIT,
    measure: int = MEASURE,
    objects: int = 8,
    keep_ratios: Sequence[float | str] = RATIOS,
    dtypes: Sequence[str] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    restart: bool = False,
    say: Callable[[str], None] | None = None,
) -> Tuned:
    """The fastest setting of a model that keeps its masks, measured on photographs without any annotation.

    The model is converted, its little path fitted in closed form to some of the photographs, and every combination of
    number format and keep_ratio compared with the original on the others: time of the encoder, and IoU of the masks for
    the same boxes and points. `sam` is left as it was.

    Args:
        sam: `segment_anything`'s Sam, one of ours, or what `load_sam` reads. One that has a little path keeps it: then
            only the setting is sought.
        images: a folder, a text file with a path a line, or a list of paths and of uint8 RGB arrays (H, W, 3).
        target: mean IoU with the original's masks that the chosen setting has at least.
        minutes: of training after the fit, at most.
        budget: minutes that everything else may take, about: fewer photographs and settings fit into less. None has no
            bound.
        output: folder for the tuned model and what was measured; the same call goes on there after an interruption.
        fit, measure: photographs to fit and to measure on, at most.
        objects: prompts of a photograph are a box and a point of so many objects at most.
        keep_ratios, dtypes: that are compared; None is all dtypes that run here, with and without the C++ kernels.
        device: None is where `sam` is, the CPU for a file.
        restart: throw away what `output` holds.
        say: called with a line of text when something begins; None prints them to stderr.

    Raises:
        InputError: photographs, a model, an argument or a folder that cannot be used.
    """
    for name, value in (("keep_ratios", keep_ratios), ("dtypes", dtypes)):
        if isinstance(value, str | float | int):
            raise InputError(f"{name} is a list of them, such as [{value!r}]")
    wanted = Wanted(
        target, minutes, budget, fit, measure, objects, tuple(keep_ratios),
        None if dtypes is None else tuple(dtypes), seed,
    )  # fmt: skip
    wanted.check()
    say = say or (lambda line: print(line, file=sys.stderr, flush=True))
    source = "a model in memory" if isinstance(sam, Sam) else str(sam)
    if output is not None and not isinstance(sam, Sam) and _holds(Path(output) / MODEL, Path(sam)):
        raise InputError(f"{sam} would be overwritten by the tuned model: use another --output")
    model, has_little = big_little(sam if isinstance(sam, Sam) else load_sam(Path(sam)), seed)
    model.to(model.device if device is None else device)
    if has_little and minutes:
        raise InputError("this model has a little path already, which tune leaves as it is: leave minutes out")
    photographs = open_photographs(images, 0 if has_little else fit, measure, seed, progress=True, output=output)
    kept: Any = TemporaryDirectory() if output is None else nullcontext(output)
    with kept as place:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            run = Run(wanted, model, has_little, photographs, Path(place), output is not None, say)
            run.open(source, restart)
            return run.all()


def _holds(file: Path, given: Path) -> bool:
    """Whether a file is the one that is given, or in the folder that is."""
    try:
        return file.exists() and (given.samefile(file) or given.samefile(file.parent))
    except OSError:  # loading says what is wrong with it
        return False


def big_little(sam: Sam, seed: int) -> tuple[Sam, bool]:
    """A big.LITTLE copy in float32, and whether it had a little path already."""
    encoder = sam.image_encoder
    is_int8 = any(isinstance(module, Int8Linear | Int8MLP) for module in encoder.modules())
    has_little = isinstance(encoder, BigLittleEncoder) and not encoder.is_dense
    if is_int8 or (has_little and any(p.dtype != torch.float32 for p in encoder.parameters())):
        raise InputError("tune takes a model in float32: load it anew, before optimize()")
    if has_little:
        model = copy.deepcopy(sam).eval().requires_grad_(False)
        model.image_encoder.keep_ratio = 1.0
        return model, True
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return convert_sam(sam).requires_grad_(False), False
