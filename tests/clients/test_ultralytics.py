"""`accelerate` on ultralytics' SAM. Its packages insist on a file, so one of random weights is written for it."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from helpers import picture
from little_models import enliven
from torch import nn

from sam_bigltl import InputError, accelerate
from sam_bigltl.fast.choice import Choice
from sam_bigltl.modeling.encoder import BigLittleEncoder

os.environ.setdefault("YOLO_OFFLINE", "true")
ultralytics = pytest.importorskip("ultralytics")
build_module = pytest.importorskip("ultralytics.models.sam.build")
pytestmark = pytest.mark.usefixtures("one_thread")
SIDE = 64
BOX = [[4, 6, 40, 30]]


def tiny_model(seed: int = 0):
    """ultralytics' SAMModel as its builder makes it, at 64 px."""
    torch.manual_seed(seed)
    from ultralytics.models.sam.modules.sam import SAMModel

    encoder = build_module.ImageEncoderViT(
        img_size=SIDE, embed_dim=32, depth=4, num_heads=2, out_chans=32, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1, 3), norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
    )  # fmt: skip
    transformer = build_module.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=64, num_heads=2)
    model = SAMModel(
        encoder,
        build_module.PromptEncoder(32, (SIDE // 16,) * 2, (SIDE, SIDE), mask_in_chans=16),
        build_module.MaskDecoder(transformer_dim=32, transformer=transformer),
    )
    enliven(encoder, seed)
    with torch.no_grad():
        for module in (model.prompt_encoder, model.mask_decoder):
            for weight in module.parameters():  # larger, so that masks depend visibly on the prompt
                if weight.ndim > 1:
                    weight.mul_(2.5)
        last = model.mask_decoder.iou_prediction_head.layers[-1]
        last.weight.mul_(1e-2)  # scores that differ, and that its filters let pass
        last.bias.fill_(0.9)
    return model.eval()


@pytest.fixture
def sam(tmp_path, monkeypatch):
    """`ultralytics.SAM` of a file of a tiny model."""
    path = tmp_path / "sam_b.pt"
    torch.save(tiny_model().state_dict(), path)

    def build(checkpoint):
        return build_module._load_checkpoint(tiny_model(seed=1), checkpoint).eval()

    monkeypatch.setitem(build_module.sam_model_map, "sam_b.pt", build)
    return ultralytics.SAM(str(path))


def predict(sam, image=None, **kwargs):
    settings = dict(imgsz=SIDE, conf=0.0, verbose=False, save=False, device="cpu")
    (result,) = sam.predict(picture(48, 60) if image is None else image, **(settings | kwargs))
    return result


def same(found, expected) -> None:
    assert len(found.masks) == len(expected.masks) > 0
    assert torch.equal(found.masks.data, expected.masks.data)
    torch.testing.assert_close(found.boxes.data, expected.boxes.data, atol=1e-4, rtol=0)


PROMPTS = [{"bboxes": BOX}, {"points": [[20, 14]], "labels": [1]}]


def test_masks_and_boxes(sam):
    theirs = sam.model.image_encoder
    before = [predict(sam, **prompt) for prompt in PROMPTS]
    assert accelerate(sam, dtype="float32") is sam
    assert isinstance(sam.model.image_encoder, BigLittleEncoder)
    for prompt, expected in zip(PROMPTS, before):
        same(predict(sam, **prompt), expected)
    accelerate(sam, undo=True)
    assert sam.model.image_encoder is theirs
    for prompt, expected in zip(PROMPTS, before):
        found = predict(sam, **prompt)
        assert torch.equal(found.masks.data, expected.masks.data)


def test_scores_and_embedding():
    model = tiny_model()
    x = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model.image_encoder(x)
        accelerate(model, dtype="float32")
        torch.testing.assert_close(model.image_encoder(x), expected, atol=1e-4, rtol=0)


def test_its_conversions_leave_the_format(sam):
    """Every prediction calls `model.float()` first, or `model.half()`."""
    expected = predict(sam, bboxes=BOX)
    accelerate(sam, dtype="bfloat16", native=False)
    encoder = sam.model.image_encoder
    found = predict(sam, bboxes=BOX)
    assert sam.model.image_encoder is encoder
    assert {value.dtype for value in encoder.parameters()} == {torch.bfloat16}
    assert (found.masks.data != expected.masks.data).float().mean() < 0.05
    state = tiny_model().state_dict()
    for name, value in sam.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    sam.model.half()
    accelerate(sam, undo=True)
    assert sam.model.image_encoder.pos_embed.dtype == torch.float16


def test_model_and_predictor_directly(sam):
    from ultralytics.models.sam import Predictor

    predictor = Predictor(overrides=dict(imgsz=SIDE, conf=0.0, verbose=False, save=False, device="cpu"))
    with pytest.raises(InputError, match="setup_model"):
        accelerate(predictor)
    predictor.setup_model(tiny_model(), verbose=False)
    predictor.set_image(picture(48, 60))
    grid = dict(points_stride=2, conf_thres=0.0, stability_score_thresh=0.0)
    expected = predictor(bboxes=BOX)[0]
    everything = predictor.generate(predictor.preprocess([picture(48, 60)]), **grid)
    assert len(everything[0])
    predictor.reset_image()
    predictor.segment_all = False
    assert accelerate(predictor, dtype="float32") is predictor
    predictor.set_image(picture(48, 60))
    same(predictor(bboxes=BOX)[0], expected)
    found = predictor.generate(predictor.preprocess([picture(48, 60)]), **grid)
    assert torch.equal(found[0], everything[0])
    torch.testing.assert_close(found[1], everything[1], atol=1e-4, rtol=0)
    assert accelerate(copy.deepcopy(sam.model), dtype="float32").image_encoder.format == Choice("float32", False)


def test_another_size(sam):
    """Theirs interpolates its positions; ours says what to do."""
    accelerate(sam, dtype="float32")
    with pytest.raises(InputError, match="64 x 64, not 32 x 32"):
        predict(sam, bboxes=BOX, imgsz=32)
    predict(sam, bboxes=BOX)
    accelerate(sam, undo=True)
    predict(sam, bboxes=BOX, imgsz=32)
    accelerate(sam, dtype="float32")  # after theirs was told another size
    predict(sam, bboxes=BOX)


def test_below_one(sam):
    accelerate(sam, 0.5, "float32", images=[picture(seed=seed) for seed in range(6)])
    predict(sam, bboxes=BOX)
    assert sam.model.image_encoder.last_route.groups[0].indices.shape == (1, 8)
    sam.model.image_encoder.keep_ratio = 0.25
    predict(sam, bboxes=BOX)
    assert sam.model.image_encoder.last_route.groups[0].indices.shape == (1, 4)


def test_training_after_a_prediction(sam):
    accelerate(sam, dtype="float32")
    predict(sam, bboxes=BOX)
    encoder = sam.model.image_encoder
    encoder.requires_grad_(True).train()(torch.randn(1, 3, SIDE, SIDE)).sum().backward()
    assert encoder.origin.theirs.blocks[0].attn.qkv.weight.grad is not None


def test_refused():
    model = tiny_model()
    model.image_encoder = build_module.TinyViT(
        img_size=64, embed_dims=[8, 8, 8, 8], depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_sizes=[2, 2, 2, 2]
    )
    with pytest.raises(InputError, match="TinyViT"):
        accelerate(model)
    from ultralytics.models.sam.modules.sam import SAM2Model

    second = SAM2Model.__new__(SAM2Model)
    nn.Module.__init__(second)
    with pytest.raises(InputError, match="SAM2Model"):
        accelerate(second)
    model = tiny_model()
    model.image_encoder.blocks[0].mlp.act = nn.ReLU()
    with pytest.raises(InputError, match="act"):
        accelerate(model)
