"""Augmentations of training crops."""

from __future__ import annotations

import numpy as np

from sam_bigltl.training.augment import Cutout, degrade, paste


def _scene():
    photo = np.full((64, 96, 3), 100, np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    mask[8:56, 8:88] = 255
    return photo, mask


def test_a_pasted_object_is_where_its_mask_says_and_hides_what_lies_below():
    photo, mask = _scene()
    whole = np.full((40, 30), 255, np.uint8)
    cutout = Cutout(np.full((40, 30, 3), 250, np.uint8), whole)
    pasted = 0
    for seed in range(40):
        image, masks = paste(photo, [mask], cutout, np.random.default_rng(seed))
        if len(masks) < 2:
            continue
        pasted += 1
        new, rest = masks
        assert (image[new == 0] == 100).all()  # nothing outside of its mask
        deep = new.astype(bool)
        for axis, shift in ((0, 3), (0, -3), (1, 3), (1, -3)):
            deep &= np.roll(new, shift, axis) > 0
        assert (image[deep] >= 245).all()
        assert (np.minimum(new, rest) < 128).all()  # no pixel belongs to both
        assert np.array_equal(np.maximum(new, rest)[mask > 0] >= 127, np.ones((mask > 0).sum(), bool))
    assert pasted > 25


def test_a_hidden_object_is_not_asked_for():
    photo, _ = _scene()
    small = np.zeros((64, 96), np.uint8)
    small[30:34, 46:50] = 255
    cutout = Cutout(np.zeros((50, 50, 3), np.uint8), np.full((50, 50), 255, np.uint8))
    gone = [len(paste(photo, [small], cutout, np.random.default_rng(seed))[1]) for seed in range(60)]
    assert set(gone) == {1, 2}


def test_degradations_keep_shape_and_picture():
    rng = np.random.default_rng(0)
    photo = np.linspace(0, 255, 64 * 96 * 3).reshape(64, 96, 3).astype(np.uint8)
    for _ in range(30):
        out = degrade(photo, rng)
        assert out.shape == photo.shape and out.dtype == np.uint8
        assert np.abs(out.astype(float) - photo).mean() < 25
