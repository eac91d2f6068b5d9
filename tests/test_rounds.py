"""Corrective rounds of training: where the next click falls, and masks as prompts, against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from sam_bigltl.modeling.decode import BACKGROUND, FOREGROUND, NOT_A_POINT, dense_position
from sam_bigltl.modeling.encoder import EncoderConfig
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.training.rounds import best_masks, decode_with_masks, draw_rounds, next_clicks

CENTRE = torch.tensor([[0.0, 0.0]])  # noise of a click at the centre of the error


def _logits(mask: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(mask.astype(np.float32) * 2 - 1)[None, None]


def test_the_click_is_the_deepest_pixel_of_the_larger_error():
    rng = np.random.default_rng(0)
    for _ in range(20):
        target = ndimage.binary_dilation(rng.random((32, 32)) < 0.01, iterations=4)
        found = ndimage.binary_dilation(rng.random((32, 32)) < 0.01, iterations=4)
        xy, label = next_clicks(
            _logits(found), torch.from_numpy(target).float()[None, None], torch.ones(1, 8, 8, dtype=torch.bool), CENTRE
        )
        depths = [
            ndimage.distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1] for error in (target & ~found, found & ~target)
        ]
        x, y = ((xy[0, 0] - 1.5) / 4).round().int().tolist()  # the middle of a mask pixel of four pixels
        which = 0 if label.item() == FOREGROUND else 1
        # OpenCV's 3 x 3 mask is within some percent of the exact distance
        assert depths[which][y, x] >= 0.93 * max(depth.max() for depth in depths)


def test_clicks_elsewhere_are_any_pixel_of_the_error():
    target, found = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    target[2:6, 2:6], found[4:8, 4:8] = True, True
    for noise in np.linspace(0, 0.999, 30):
        xy, label = next_clicks(
            _logits(found), torch.from_numpy(target).float()[None, None], torch.ones(1, 4, 4, dtype=torch.bool),
            torch.tensor([[0.9, noise]], dtype=torch.float32),
        )  # fmt: skip
        x, y = ((xy[0, 0] - 1.5) / 4).round().int().tolist()
        assert target[y, x] != found[y, x]
        assert label.item() == (FOREGROUND if target[y, x] else BACKGROUND)


def test_padding_holds_no_error_and_agreement_gives_no_click():
    found = np.zeros((16, 16), bool)
    found[:, 8:] = True  # only in the padding
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[:, :, 2:] = False
    for noise in (CENTRE, torch.tensor([[0.9, 0.5]])):
        assert next_clicks(_logits(found), torch.zeros(1, 1, 16, 16), valid, noise)[1].item() == NOT_A_POINT


@pytest.mark.parametrize("masked", [False, True])
def test_decoding_equals_the_classes_of_segment_anything(masked):
    torch.manual_seed(0)
    sam = build_sam(EncoderConfig(img_size=64, dim=32, depth=2, num_heads=2, global_layers=(1,), window=4))
    embeddings = torch.randn(2, 256, 4, 4)
    coords, labels = torch.rand(2, 3, 2, 2) * 64, torch.tensor([FOREGROUND, NOT_A_POINT]).expand(2, 3, 2)
    masks = torch.randn(2, 3, 16, 16) * 4 if masked else None
    position = dense_position(sam.prompt_encoder, torch.zeros(2, 2, dtype=torch.long), (4, 4))
    with torch.no_grad():
        logits, iou = decode_with_masks(sam, embeddings, position, coords, labels, masks)
        for image in range(2):
            for prompt in range(3):
                point = coords[image, prompt, None, :1], torch.ones(1, 1)
                sparse, dense = sam.prompt_encoder(
                    point, None, None if masks is None else masks[image, prompt][None, None]
                )
                wanted, wanted_iou = sam.mask_decoder.predict_masks(
                    embeddings[image, None], sam.prompt_encoder.get_dense_pe(), sparse, dense
                )
                assert torch.allclose(logits[image, prompt], wanted[0], atol=1e-4)
                assert torch.allclose(iou[image, prompt], wanted_iou[0], atol=1e-5)


def test_the_mask_that_goes_back_in_has_the_highest_predicted_iou_of_three():
    logits = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
    assert best_masks(logits, torch.tensor([[[0.9, 0.1, 0.5, 0.3]]])).unique().tolist() == [2.0]


def test_rounds_are_one_to_the_most():
    counts = [1 + len(draw_rounds(8, 4, np.random.default_rng(seed))["rounds"]) for seed in range(400)]
    assert min(counts) == 1 and max(counts) == 8
    assert 2.0 < np.mean(counts) < 2.8  # 1 / 0.4, cut at 8
