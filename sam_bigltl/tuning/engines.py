"""One model in every format: encoders of their own around one prompt encoder and one mask decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import numpy as np
import torch
from segment_anything.modeling import Sam
from torch import Tensor, nn

from ..bench.timing import measure as measure_in_turns
from ..bench.timing import timed
from ..data.photos import preprocess
from ..fast.devices import synchronize
from ..modeling.trunk import use_kernels
from ..predict.predictor import SamPredictor
from .settings import Setting


class Engines:
    """The model in the formats that are asked for; encoders are made when they are, and kept.

    Args:
        sam: a big.LITTLE model in float32, on its device. Its `keep_ratio` changes.
    """

    def __init__(self, sam: Sam) -> None:
        self.sam = sam
        self._predictors: dict[str, SamPredictor] = {}

    def predictor(self, setting: Setting) -> SamPredictor:
        """A predictor that runs as `setting` says until the next call."""
        if setting.dtype not in self._predictors:
            self._predictors[setting.dtype] = SamPredictor(self._model(setting.dtype))
        predictor = self._predictors[setting.dtype]
        encoder = predictor.model.image_encoder
        encoder.keep_ratio = setting.keep_ratio
        use_kernels(encoder, setting.native)
        return predictor

    def _model(self, dtype: str) -> Sam:
        if dtype == "float32":
            return self.sam
        encoder = copy.deepcopy(self.sam.image_encoder)
        encoder.compute_in(dtype, native=False)
        model = Sam(encoder, self.sam.prompt_encoder, self.sam.mask_decoder)
        model.pixel_mean, model.pixel_std = self.sam.pixel_mean, self.sam.pixel_std
        return model.eval()

    def weights_changed(self) -> None:
        """Make the encoders of other formats anew from `sam`."""
        self._predictors = {dtype: own for dtype, own in self._predictors.items() if dtype == "float32"}

    @torch.inference_mode()
    def seconds(self, setting: Setting, image: Tensor) -> float:
        """One encoder pass over a preprocessed image (1, 3, S, S)."""
        encoder = self.predictor(setting).model.image_encoder
        return encoder_seconds(encoder, image.to(encoder.pos_embed.dtype))


@torch.inference_mode()
def encoder_seconds(encoder: nn.Module, image: Tensor) -> float:
    """One pass of an encoder over a preprocessed image (1, 3, S, S)."""

    def call() -> None:
        encoder(image)
        synchronize(image.device)

    return timed(call)


def times(
    engines: Engines, plain: nn.Module, settings: Sequence[Setting], photographs: Sequence[np.ndarray], rounds: int
) -> tuple[float, dict[Setting, float]]:
    """Median seconds of a pass of the original's encoder and of every setting.

    They take turns, over another photograph in every round, so that what else happens on the machine meets all of them.

    Args:
        plain: the original's encoder.
        photographs: uint8 RGB (H, W, 3).
        rounds: counted ones, after one that is not.
    """
    images = [preprocess(engines.sam, pixels) for pixels in photographs]
    place = dict.fromkeys(range(len(settings) + 1), -1)

    def turn(number: int, seconds: Callable[[Tensor], float]) -> float:
        place[number] += 1
        return seconds(images[place[number] % len(images)])

    calls = [partial(turn, 0, partial(encoder_seconds, plain))]
    calls += [partial(turn, number, partial(engines.seconds, own)) for number, own in enumerate(settings, 1)]
    reference, *others = [median(each) for each in measure_in_turns(calls, rounds, warmup=1)]
    return reference, dict(zip(settings, others))
