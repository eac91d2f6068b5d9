"""Our encoder in models that somebody else built: `accelerate`, one file for each library, and what they share.

A library is imported only where the model is of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...errors import InputError
from ...fast.choice import Native, choose
from . import little
from .encoder import InPlaceEncoder
from .little import Images
from .site import Site
from .verify import verify

__all__ = ["accelerate", "accelerated"]

_Model = TypeVar("_Model")

# The package that a class of the model is from, and the file for it.
_LIBRARIES = {
    "segment_anything": ".segment_anything",
    "sam_bigltl": ".segment_anything",
    "segment_anything_hq": ".sam_hq",
    "transformers": ".transformers",
    "ultralytics": ".ultralytics",
    "timm": ".timm",
}


def accelerate(
    model: _Model,
    keep_ratio: float | Sequence[float] | str = 1.0,
    dtype: str = "auto",
    native: Native = "auto",
    *,
    weights: str | Path | None = None,
    images: Images | None = None,
    undo: bool = False,
) -> _Model:
    """Put this project's image encoder into a model that another library built, in place and by its own weights.

    At keep_ratio 1.0 and in float32 the model computes what it computed, and our encoder's parameters are the very
    objects of the encoder that it replaces, so optimizers stay valid. In another format it is a copy for inference.
    Called again, it changes the settings. `keep_ratio` of the new encoder can be set at any time.

    Args:
        model: `segment_anything`'s or `segment_anything_hq`'s Sam, predictor or generator; transformers' SamModel,
            SamVisionModel, SamHQModel or SamHQVisionModel, or a pipeline with it; ultralytics' SAM; timm's `samvit_*`;
            or one of ours.
        keep_ratio: see `BigLittleEncoder`. Below 1.0 the encoder needs a little path: `weights` or `images`.
        dtype, native: as in `BigLittleEncoder.optimize`, but for "auto": the faster of float32 and bfloat16 on this
            machine, in C++ kernels where they can be had, and float32 while the model is in training mode. What was
            chosen is printed to stderr. int8 is faster still; nobody can read or train its weights.
        weights: a big.LITTLE file of this project that was distilled from this model. Its whole encoder is used.
        images: some dozens of photographs, uint8 RGB arrays (H, W, 3) or paths, to fit the little path to.
        undo: give the model its own encoder back: the very object, on the model's present device.

    Returns:
        `model` itself.

    Raises:
        InputError: one line. A model of another kind; an encoder that is not SAM's ViT or that was changed (the message
            names the part); a keep_ratio below 1.0 without a little path; a format that cannot run here.
    """
    site = _site(model)
    live = site.ours()
    if undo:
        if live is None:
            raise InputError("there is nothing to undo: the model has its own encoder")
        site.restore(live.give_back())
        return model
    if weights is not None and images is not None:
        raise InputError("give weights or images, not both: weights bring a little path of their own")
    exact = live.current() if live is not None else None
    if live is not None and exact is not None:
        exact.to(live.pos_embed.device)
    asks_little = not _all_big(keep_ratio)
    if weights is not None or images is not None or exact is None:
        if live is not None:
            live.give_back()
        config, origin = site.examine() if live is None else (live.config, live.exact.origin)
        if live is None:
            verify(site)
        if weights is not None:
            exact = little.from_file(site, weights, config, origin)
        elif images is not None:
            if live is not None and not live.tied:
                raise InputError("the encoder is from a file: accelerate(model, undo=True) before you fit another")
            exact = little.fitted(site, config, origin, images)
        elif asks_little and config.little_dim == 0:
            raise _no_little()
        else:
            exact = site.build(config, origin)
    elif asks_little and exact.is_dense:
        raise _no_little()
    format = choose(exact.pos_embed.device, dtype, native, exact.training, keeps_weights=True)
    format.say()
    if live is not None and live.exact is exact and live.is_in(format):
        live.keep_ratio = keep_ratio
        return model
    encoder = exact.in_format(format)
    encoder.keep_ratio = keep_ratio
    if live is not None and encoder is not live:
        live.check_hooks()
    site.install(encoder)
    return model


@contextmanager
def accelerated(model: _Model, *args: Any, **kwargs: Any) -> Iterator[_Model]:
    """`accelerate` for the length of a with block, with the same arguments; afterwards the model is as it was before.

    Example:
        with accelerated(model, dtype="float32"):
            masks = model(**inputs).pred_masks
    """
    site = _site(model)
    before = site.ours()
    keep_ratio = before.keep_ratio if before is not None else 1.0
    accelerate(model, *args, **kwargs)
    try:
        yield model
    finally:
        live = site.ours()
        if before is None:
            if live is not None:
                site.restore(live.give_back())
        else:
            _back_to(site, before, live)
            before.keep_ratio = keep_ratio


def _back_to(site: Site, before: InPlaceEncoder, live: InPlaceEncoder | None) -> None:
    """Install an encoder that was there before, with what was learnt meanwhile."""
    if live is None or live is before:
        return
    exact = live.current()
    if exact is before.exact and before is not exact:
        before = exact.in_format(before.format)
    before.to(live.pos_embed.device)
    site.install(before.train(live.training))


def _site(model: Any) -> Site:
    for kind in type(model).__mro__:
        if file := _LIBRARIES.get(kind.__module__.partition(".")[0]):
            if (site := import_module(file, __name__).find(model)) is not None:
                return site
    kind = type(model)
    if isinstance(inside := getattr(model, "module", getattr(model, "_orig_mod", None)), torch.nn.Module):
        raise InputError(
            f"accelerate takes the model inside this {kind.__name__}, a {type(inside).__name__}, before it is wrapped"
        )
    if (site := import_module(_LIBRARIES["segment_anything"], __name__).find(model)) is not None:  # of a copy
        return site
    raise InputError(
        "accelerate takes a SAM of segment_anything, segment_anything_hq, transformers, ultralytics or timm, not a "
        f"{kind.__module__.partition('.')[0]} {kind.__name__}"
    )


def _all_big(keep_ratio: Any) -> bool:
    """Whether no little path is needed. Raises InputError for what no encoder takes."""
    if isinstance(keep_ratio, str) and keep_ratio == "auto":
        return False
    ratios = keep_ratio if isinstance(keep_ratio, Sequence) else [keep_ratio]
    try:
        ratios = [float(ratio) for ratio in ratios]
    except (TypeError, ValueError):
        raise InputError(
            f"keep_ratio is a number in (0, 1], one number a stage, or 'auto', not {keep_ratio!r}"
        ) from None
    if not all(0 < ratio <= 1 for ratio in ratios):
        raise InputError(f"keep_ratio is in (0, 1], not {keep_ratio!r}")
    return set(ratios) == {1.0}


def _no_little() -> InputError:
    return InputError(
        "keep_ratio below 1.0 needs a little path: give weights=FILE, a big.LITTLE file distilled from this model, or "
        "images=[...], some dozens of photographs to fit one to; or keep 1.0, which is exact"
    )
