"""Objects of any kind where the predictor wants images, prompts, an index or a keep_ratio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from sam_bigltl.predict.predictor import SamPredictor

from .mutate import VALUES
from .weights import little_sam

DTYPES = ("uint8", "int64", "float16", "float32", "float64", "complex64", "bool", "object", "S3", "datetime64[s]")
SPECIAL = (0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e300, 1e38, 1e-300, 31.5)
NUMBERS = (
    0.0,
    1.0,
    0.5,
    -1,
    2,
    1e-9,
    np.float32(0.5),
    np.float64("nan"),
    np.int64(1),
    1 + 2j,
    True,
    "auto",
    "1",
    b"auto",
)


def array(rng: Random, shape: tuple[int, ...]) -> Any:
    """An array, tensor or nested list, mostly of `shape`, mostly of finite numbers."""
    shape = list(shape)
    if rng.random() < 0.3:
        shape.insert(rng.randint(0, len(shape)), rng.choice((0, 1, 2)))
    if rng.random() < 0.3 and shape:
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 3, 5))
    values = np.array(
        [rng.choice(SPECIAL) if rng.random() < 0.1 else rng.randint(0, 30) for _ in range(int(np.prod(shape)))]
    )
    with np.errstate(all="ignore"):
        values = values.reshape(shape).astype(rng.choice(DTYPES) if rng.random() < 0.4 else "float64", casting="unsafe")
    kind = rng.randrange(10)
    if kind == 0:
        return values.tolist()
    if kind == 1 and values.dtype.kind in "uifb":
        return torch.from_numpy(values)
    return rng.choice(VALUES) if kind == 2 else values


def tensor(rng: Random, shape: tuple[int, ...]) -> Any:
    """A tensor, mostly, as `predict_torch` takes it."""
    values = array(rng, shape)
    if isinstance(values, np.ndarray) and values.dtype.kind in "uifb":
        return torch.from_numpy(values).float() if rng.random() < 0.7 else torch.from_numpy(values)
    return values


def make(folder: Path) -> Callable[[Random], None]:
    """A function that calls a predictor with something odd."""
    sam = little_sam()
    predictor = SamPredictor(sam)
    predictor.set_image(np.zeros((20, 30, 3), np.uint8))
    good = predictor.get_embedding()

    def maybe(rng: Random, value: Any) -> Any:
        return None if rng.random() < 0.4 else value

    def predict(rng: Random) -> None:
        points = rng.randint(0, 3)
        predictor.predict(
            maybe(rng, array(rng, (points, 2))), maybe(rng, array(rng, (points,))), maybe(rng, array(rng, (4,))),
            maybe(rng, array(rng, (1, 8, 8))) if rng.random() < 0.3 else None,
            image_index=rng.choice((0, 0, 0, 1, *NUMBERS)),
        )  # fmt: skip

    def predict_torch(rng: Random) -> None:
        batch, points = rng.randint(0, 3), rng.randint(0, 3)
        predictor.predict_torch(
            maybe(rng, tensor(rng, (batch, points, 2))), maybe(rng, tensor(rng, (batch, points))),
            maybe(rng, tensor(rng, (batch, 4))), maybe(rng, tensor(rng, (batch, 1, 8,
                                                                         8))) if rng.random() < 0.3 else None,
        )  # fmt: skip

    def set_image(rng: Random) -> None:
        image = array(rng, (rng.randint(1, 40), rng.randint(1, 40), 3))
        if isinstance(image, np.ndarray) and rng.random() < 0.5:
            image = np.zeros(image.shape, np.uint8)
        predictor.set_image(image, rng.choice(("RGB", "RGB", "BGR", *VALUES[:4])))

    def set_images(rng: Random) -> None:
        predictor.set_images(rng.choice((*VALUES, [np.zeros((4, 4, 3), np.uint8), array(rng, (4, 4, 3))])))

    def set_torch_image(rng: Random) -> None:
        size = rng.choice(((20, 30), (1, 1), (30,), (0, 4), (-1, 5), ("a", 3), None, (20.5, 30)))
        predictor.set_torch_image(tensor(rng, (rng.randint(1, 2), 3, 24, 32)), size)

    def keep_ratio(rng: Random) -> None:
        value = rng.choice(
            (*NUMBERS, *VALUES, (0.5, rng.choice(NUMBERS)), [rng.choice(NUMBERS)], np.array([0.5]), {0.5})
        )
        sam.image_encoder.keep_ratio = value
        predictor.set_image(np.zeros((20, 30, 3), np.uint8))

    calls = (
        predict,
        predict,
        predict,
        predict_torch,
        predict_torch,
        set_image,
        set_images,
        set_torch_image,
        keep_ratio,
    )

    def case(rng: Random) -> None:
        sam.image_encoder.keep_ratio = 1.0
        predictor.set_embedding(good)
        predictor.strict = rng.random() < 0.5
        rng.choice(calls)(rng)

    return case
