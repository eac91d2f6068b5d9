"""The shipped weights do what the README says of them: a mask that a person calls right, at every keep_ratio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from little_models import dense_sam
from safetensors.torch import load_file

from sam_bigltl import SamPredictor, load_sam, save_sam
from sam_bigltl.convert import describe
from sam_bigltl.convert.checkpoints import check_tensors, find_weights
from sam_bigltl.errors import InputError
from sam_bigltl.evaluation.metrics import mask_iou

FOLDER = Path(__file__).resolve().parents[1] / "checkpoints"
LIMIT = 30 * 2**20


def scene() -> tuple[np.ndarray, np.ndarray]:
    """A red ball on grass-like noise, (300, 400, 3) uint8, and its mask."""
    rng = np.random.default_rng(0)
    image = cv2.GaussianBlur(rng.normal(0, 60, (300, 400, 3)), (0, 0), 3) * 3 + (90, 130, 70)
    yy, xx = np.mgrid[:300, :400]
    mask = (xx - 230) ** 2 + (yy - 140) ** 2 < 70**2
    shade = 1 - 0.4 * np.hypot(xx - 205, yy - 115) / 120
    image[mask] = (np.array((210, 40, 40)) * shade[..., None])[mask]
    return np.clip(image, 0, 255).astype(np.uint8), mask


@pytest.mark.parametrize("name", ["vit_mini", "bigltl_mini"])
def test_shipped_weights_segment_a_ball(name):
    path = FOLDER / f"{name}.safetensors"
    assert path.stat().st_size < LIMIT
    sam = load_sam(path)
    assert describe(sam.image_encoder.config) == name
    image, truth = scene()
    predictor = SamPredictor(sam)
    for ratio in (1.0,) if name == "vit_mini" else (1.0, 0.5, 0.25):
        sam.image_encoder.keep_ratio = ratio
        predictor.set_image(image)
        point = {"point_coords": np.array([[230, 140]]), "point_labels": np.array([1])}
        for prompt in ({"box": np.array([160, 70, 300, 210])}, point):
            masks, iou, _ = predictor.predict(**prompt)
            assert mask_iou(masks[iou.argmax()], truth) > 0.8, (ratio, prompt)


def test_writing_adds_no_names(tmp_path):
    """Reading changes nothing in what is written: names in a file of ours are the model's own."""
    sam = dense_sam()
    save_sam(sam, tmp_path / "a.safetensors")
    assert load_file(tmp_path / "a.safetensors").keys() == sam.state_dict().keys()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_containers_that_hold_themselves():
    ring: dict[str, Any] = {"a": torch.zeros(2)}
    ring |= {str(number): ring for number in range(200)}
    check_tensors(ring, Path("x"))
    with pytest.raises(InputError):
        find_weights({"b": ring, "c": {"d": torch.ones(1)}}, "e", Path("x"))
