"""`accelerate` on SAM-HQ's models: its encoder returns the tokens after its global layers too."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import enliven
from torch import nn

from sam_bigltl import InputError, accelerate

hq = pytest.importorskip("segment_anything_hq")
modeling = pytest.importorskip("segment_anything_hq.modeling")
pytestmark = pytest.mark.usefixtures("one_thread")


def build(seed: int = 0):
    torch.manual_seed(seed)
    # The decoder's 32 channels and its grid of 256 pixels are written into its class.
    encoder = modeling.ImageEncoderViT(
        img_size=64, embed_dim=32, depth=4, num_heads=2, out_chans=256, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1, 3), norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    sam = modeling.Sam(
        encoder,
        modeling.PromptEncoder(256, (4, 4), (64, 64), mask_in_chans=16),
        modeling.MaskDecoderHQ(
            transformer_dim=256, transformer=modeling.TwoWayTransformer(2, 256, 8, 64), vit_dim=32,
        ),
    )  # fmt: skip
    enliven(sam.image_encoder, seed)
    return sam.eval()


def predict(sam, **kwargs):
    predictor = hq.SamPredictor(sam)
    predictor.set_image(picture())
    return predictor.predict(box=np.array([4, 6, 40, 30]), return_logits=True, **kwargs)


def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def test_masks_scores_and_features():
    sam = build()
    theirs = sam.image_encoder
    with torch.no_grad():
        embedding, features = theirs(images())
    before = [predict(sam, **call) for call in ({}, {"hq_token_only": True}, {"multimask_output": False})]
    accelerate(sam, dtype="float32")
    with torch.no_grad():
        found, found_features = sam.image_encoder(images())
    torch.testing.assert_close(found, embedding, atol=1e-4, rtol=0)
    assert len(found_features) == len(features) == 2
    for own, other in zip(found_features, features):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=0)
    for call, expected in zip(({}, {"hq_token_only": True}, {"multimask_output": False}), before):
        for own, other in zip(predict(sam, **call), expected):
            np.testing.assert_allclose(own, other, atol=1e-4)
    accelerate(sam, undo=True)
    assert sam.image_encoder is theirs
    assert all(np.array_equal(own, other) for own, other in zip(predict(sam), before[0]))


def test_called_as_a_model():
    sam = build()
    record = {
        "image": torch.as_tensor(picture(48, 64)).permute(2, 0, 1), "original_size": (48, 64),
        "boxes": torch.tensor([[4.0, 6, 40, 30]]),
    }  # fmt: skip
    with torch.no_grad():
        expected = sam([record], multimask_output=False)[0]
        accelerate(sam, dtype="float32")
        found = sam([record], multimask_output=False)[0]
    torch.testing.assert_close(found["low_res_logits"], expected["low_res_logits"], atol=1e-4, rtol=0)


def test_predictor_settings_and_weights():
    sam, predictor = build(), None
    state = copy.deepcopy(sam.state_dict())
    predictor = hq.SamPredictor(sam)
    assert accelerate(predictor, dtype="bfloat16", native=False) is predictor
    expected = predict(build())[1]
    np.testing.assert_allclose(predict(sam)[1], expected, atol=5e-2)
    assert all(torch.equal(value, state[name]) for name, value in sam.state_dict().items())
    assert sam.state_dict().keys() == state.keys()
    accelerate(predictor, 0.5, "float32", images=[picture(seed=seed) for seed in range(6)])
    for keep_ratio in (0.5, "auto", (0.5, 1.0)):
        sam.image_encoder.keep_ratio = keep_ratio
        with torch.no_grad():
            embedding, features = sam.image_encoder(images())
        assert embedding.shape == (2, 256, 4, 4) and [x.shape for x in features] == [(2, 4, 4, 32)] * 2
        predict(sam)
    sam.image_encoder.keep_ratio = 1.0
    np.testing.assert_allclose(predict(sam)[1], expected, atol=1e-4)


def test_gradients():
    sam = build().train()
    reference = copy.deepcopy(sam)
    accelerate(sam, dtype="float32")
    for model in (sam, reference):
        embedding, features = model.image_encoder(images())
        (embedding.square().mean() + features[0].square().mean()).backward()
    for name, value in reference.image_encoder.named_parameters():
        torch.testing.assert_close(sam.image_encoder.get_parameter(name).grad, value.grad, atol=1e-5, rtol=1e-3)


def test_refused():
    sam = build()
    accelerate(sam, dtype="float32")
    with pytest.raises(InputError, match="64 x 64"):
        sam.image_encoder(images()[..., :32])
    sam.image_encoder = modeling.TinyViT(
        img_size=64, embed_dims=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_sizes=[2, 2, 2, 2]
    )
    with pytest.raises(InputError, match="TinyViT"):
        accelerate(sam)
