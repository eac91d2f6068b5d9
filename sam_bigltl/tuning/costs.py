"""What a first photograph tells of the time and memory that everything takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from segment_anything.modeling import Sam

from ..bench.macs import count_macs
from ..bench.timing import resident_memory, timed
from ..data.photos import preprocess
from ..predict.predictor import SamPredictor
from .engines import Engines, encoder_seconds
from .original import answers, find_prompts
from .plan import Costs
from .settings import Setting

_STATUS = Path("/proc/self/status")


def first_look(
    engines: Engines, original: Sam, pixels: np.ndarray, formats: Sequence[tuple[str, bool]], objects: int
) -> tuple[Costs, int, float | None]:
    """Seconds of the parts of a tuning, the original encoder's multiply-accumulates, and bytes of memory at the peak.

    Args:
        pixels: uint8 RGB (H, W, 3), shrunk.
        objects: prompts are a box and a point each.
    """
    image = preprocess(engines.sam, pixels)
    macs = count_macs(original.image_encoder, image).total  # and a pass to warm up
    passes = [encoder_seconds(original.image_encoder, image) for _ in range(2)]
    everything = timed(partial(find_prompts, original, pixels, objects))
    predictor = SamPredictor(original)
    predictor.set_image(pixels)
    height, width = pixels.shape[:2]
    boxes = np.tile([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]], (objects, 1))
    decode = min(timed(partial(answers, predictor, boxes, boxes[:, :2])) for _ in range(2))
    times = {}
    for dtype, native in formats:
        whole, low = Setting(dtype, native, 1.0), Setting(dtype, native, Costs.LOW)
        engines.seconds(low, image)
        times[whole.format] = engines.seconds(whole, image), engines.seconds(low, image)
    peak = resident_memory("VmHWM") if _STATUS.exists() and image.device.type == "cpu" else None
    return Costs(min(passes), everything, decode, times), macs, peak


def fitting_memory(sam: Sam, photographs: int) -> float:
    """Bytes that fitting takes, about: three sets of tokens a photograph, and what a stage is fitted to, in float64."""
    config = sam.image_encoder.config
    tokens, layers = config.side**2, max(map(len, config.stages))
    targets = 2 * 8.0 * tokens * (2 * layers + 1) * config.dim  # keys and values of each layer, and the change; twice
    return 3 * 4.0 * photographs * tokens * config.dim + targets
