"""Does a process that segments photograph after photograph stay as large as it is? Its memory, round by round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from segment_anything.modeling import Sam

from ..predict.predictor import SamPredictor
from .plot import plain, save_figure
from .timing import resident_memory

RATIOS = (1.0, 0.5, 0.25)


def rounds(sam: Sam, count: int, longest: int, seed: int = 0) -> Iterator[int]:
    """Embed a photograph of random noise and a new size, predict from a box and from a point, and forget it.

    Args:
        sam: a big.LITTLE model takes each of RATIOS in turn.
        longest: sides are drawn from 1 to this many pixels.

    Yields:
        the resident memory of the process in bytes, after each of `count` rounds.
    """
    rng = np.random.default_rng(seed)
    predictor, encoder = SamPredictor(sam), sam.image_encoder
    for number in range(count):
        if not getattr(encoder, "is_dense", True):
            encoder.keep_ratio = RATIOS[number % len(RATIOS)]
        height, width = (int(side) for side in rng.integers(1, longest, 2, endpoint=True))
        predictor.set_image(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        predictor.predict(box=np.array([0, 0, width, height]))
        predictor.predict(np.array([[width / 2, height / 2]]), np.array([1]), multimask_output=False)
        yield resident_memory()


def plot(path: Path, rows: Sequence[dict[str, float]], title: str) -> None:
    """Draw resident memory over the rounds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 3.6), layout="constrained")
    axes.plot([row["round"] for row in rows], [row["resident_mb"] for row in rows], marker="o")
    top = 1.1 * max(row["resident_mb"] for row in rows)
    axes.set(xlabel="rounds of set_image and predict", ylabel="resident memory, MB", ylim=(0, top))
    axes.set_title(plain(title), fontsize=9)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
    pyplot.close(figure)
