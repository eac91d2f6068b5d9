"""`accelerate` on `segment_anything`'s models and on ours, and what it refuses."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture
from little_models import dense_config, dense_sam, embed, encoder_images, small_reference_sam
from torch import nn

import sam_bigltl
from sam_bigltl import InputError, accelerate, accelerated, load_sam, save_sam
from sam_bigltl.fast import choice
from sam_bigltl.fast.choice import Choice
from sam_bigltl.modeling.encoder import BigLittleEncoder

pytestmark = pytest.mark.usefixtures("one_thread")
BOX = np.array([4, 6, 40, 30])


def photographs(count: int = 6) -> list[np.ndarray]:
    return [picture(50, 60, seed) for seed in range(count)]


def prediction(sam) -> tuple[np.ndarray, ...]:
    predictor = segment_anything.SamPredictor(sam)
    predictor.set_image(picture())
    return predictor.predict(box=BOX, return_logits=True)


def test_exact_in_place_and_undone():
    sam = small_reference_sam()
    theirs, before, embedding = sam.image_encoder, prediction(sam), embed(sam)
    names = list(sam.state_dict())
    assert accelerate(sam, dtype="float32") is sam
    assert isinstance(sam.image_encoder, BigLittleEncoder)
    for value, expected in zip(prediction(sam), before):
        np.testing.assert_allclose(value, expected, atol=1e-4)
    torch.testing.assert_close(embed(sam), embedding, atol=1e-4, rtol=0)
    assert sorted(sam.state_dict()) == sorted(names)
    accelerate(sam, undo=True)
    assert sam.image_encoder is theirs
    assert torch.equal(embed(sam), embedding)
    assert all(np.array_equal(value, expected) for value, expected in zip(prediction(sam), before))
    with pytest.raises(InputError, match="nothing to undo"):
        accelerate(sam, undo=True)


@pytest.mark.parametrize("library", [segment_anything, sam_bigltl])
def test_predictor_and_generator(library):
    sam = small_reference_sam()
    generator = library.SamAutomaticMaskGenerator(sam, points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0)
    expected = generator.generate(picture())
    assert accelerate(generator, dtype="float32") is generator
    assert isinstance(generator.predictor.model.image_encoder, BigLittleEncoder)
    found = generator.generate(picture())
    assert [mask["bbox"] for mask in found] == [mask["bbox"] for mask in expected] and found
    assert accelerate(generator.predictor, undo=True) is generator.predictor
    assert type(sam.image_encoder) is segment_anything.modeling.ImageEncoderViT


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_another_format_leaves_the_weights(dtype):
    sam = small_reference_sam()
    state = copy.deepcopy(sam.state_dict())
    embedding = embed(sam)
    accelerate(sam, dtype=dtype, native=False)
    found = embed(sam)
    assert found.dtype == torch.float32
    assert 0 < (found - embedding).norm() / embedding.norm() < 3e-2
    for name, value in sam.state_dict().items():
        assert torch.equal(value, state[name]), name
    sam.float()  # as ultralytics does before every prediction
    assert torch.equal(embed(sam), found)
    accelerate(sam, undo=True)
    assert torch.equal(embed(sam), embedding)
    assert all(torch.equal(value, state[name]) for name, value in sam.state_dict().items())


def test_twice_changes_settings():
    sam = small_reference_sam()
    theirs, embedding = sam.image_encoder, embed(sam)
    accelerate(sam, dtype="bfloat16", native=False)
    rounded = embed(sam)
    accelerate(sam, dtype="float32")
    torch.testing.assert_close(embed(sam), embedding, atol=1e-4, rtol=0)
    accelerate(sam, dtype="bfloat16", native=False)
    assert torch.equal(embed(sam), rounded)
    accelerate(sam, undo=True)
    assert sam.image_encoder is theirs


def test_with_block():
    sam = small_reference_sam()
    theirs, embedding = sam.image_encoder, embed(sam)
    with accelerated(sam, dtype="bfloat16", native=False) as same:
        assert same is sam
        rounded = embed(sam)
        with accelerated(sam, dtype="float32"):
            torch.testing.assert_close(embed(sam), embedding, atol=1e-4, rtol=0)
        assert torch.equal(embed(sam), rounded)
    assert sam.image_encoder is theirs
    with pytest.raises(ZeroDivisionError), accelerated(sam):
        _ = 1 / 0
    assert sam.image_encoder is theirs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_and_pickles(dtype):
    sam = small_reference_sam()
    embedding = embed(sam)
    accelerate(sam, dtype=dtype, native=False)
    expected = embed(sam)
    file = io.BytesIO()
    torch.save(sam, file)
    file.seek(0)
    for other in (copy.deepcopy(sam), pickle.loads(pickle.dumps(sam)), torch.load(file, weights_only=False)):
        assert torch.equal(embed(other), expected)
        accelerate(other, undo=True)
        assert torch.equal(embed(other), embedding)
    assert torch.equal(embed(sam), expected)


def test_training_reaches_the_same_parameters():
    sam = small_reference_sam().train()
    reference = copy.deepcopy(sam)
    optimizer = torch.optim.SGD(sam.parameters(), lr=0.1)
    before = {name: id(value) for name, value in sam.named_parameters()}
    accelerate(sam, dtype="float32")
    assert {name: id(value) for name, value in sam.named_parameters()} == before
    for model in (sam, reference):
        model.image_encoder(encoder_images(model)).square().mean().backward()
    for name, value in reference.image_encoder.named_parameters():
        torch.testing.assert_close(sam.image_encoder.get_parameter(name).grad, value.grad, atol=1e-5, rtol=1e-4)
    optimizer.step()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    accelerate(sam, undo=True)
    torch.testing.assert_close(embed(sam), embed(reference), atol=1e-4, rtol=0)


def test_a_copy_is_not_trained_in_silence():
    sam = small_reference_sam()
    accelerate(sam, dtype="bfloat16", native=False).train()
    with pytest.raises(InputError, match="dtype='float32'"):
        sam.image_encoder(encoder_images(sam))
    embed(sam)  # without gradients
    for name, value in sam.named_parameters():
        if name.startswith("image_encoder"):
            value.requires_grad_(False)
    sam.image_encoder(encoder_images(sam))
    accelerate(sam, undo=True)
    assert not any(value.requires_grad for value in sam.image_encoder.parameters())


def test_a_copy_in_eval_mode_needs_no_no_grad():
    sam = accelerate(small_reference_sam(), dtype="bfloat16", native=False)
    images = encoder_images(sam)
    assert not sam.image_encoder(images).requires_grad
    sam.image_encoder(images.requires_grad_()).sum().backward()
    assert images.grad.abs().max() > 0


def test_training_mode_means_float32(monkeypatch, capsys):
    monkeypatch.setattr(choice, "_SAID", set())
    sam = accelerate(small_reference_sam().train())
    assert sam.image_encoder.format == Choice("float32", False)
    assert "float32" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loads_other_weights(dtype):
    sam, other = small_reference_sam(), small_reference_sam(seed=1)
    accelerate(sam, dtype=dtype, native=False)
    sam.load_state_dict(other.state_dict())
    expected = embed(other)
    assert (embed(sam) - expected).norm() / expected.norm() < (1e-5 if dtype == "float32" else 2e-2)
    accelerate(sam, undo=True)
    assert torch.equal(embed(sam), expected)


def test_half_and_back():
    sam = small_reference_sam()
    expected = embed(copy.deepcopy(sam).bfloat16().float())
    for dtype in ("float32", "bfloat16"):
        other = accelerate(copy.deepcopy(sam), dtype=dtype, native=False).bfloat16()
        assert accelerate(other, undo=True).image_encoder.pos_embed.dtype == torch.bfloat16
        assert torch.equal(embed(other.float()), expected)


def test_below_one_with_photographs(tmp_path, capsys):
    sam = small_reference_sam()
    embedding = embed(sam)
    theirs = sam.image_encoder
    for keep_ratio in (0.5, "auto", [1.0, 0.5]):
        with pytest.raises(InputError, match="weights=FILE.*images="):
            accelerate(sam, keep_ratio)
        assert sam.image_encoder is theirs
    accelerate(sam, 0.5, "float32", images=photographs())
    assert "fitted to 6 images" in capsys.readouterr().err
    half = embed(sam)
    assert 1e-3 < (half - embedding).norm() / embedding.norm() < 0.5
    accelerate(sam, 0.5, "bfloat16", native=False)  # the little path stays
    assert (embed(sam) - half).norm() / half.norm() < 0.1
    sam.image_encoder.keep_ratio = 1.0
    accelerate(sam, 1.0, "float32")
    torch.testing.assert_close(embed(sam), embedding, atol=1e-4, rtol=0)
    save_sam(sam, tmp_path / "fitted.safetensors")
    assert torch.equal(embed(load_sam(tmp_path / "fitted.safetensors"), 0.5), half)
    accelerate(sam, undo=True)
    assert torch.equal(embed(sam), embedding)


def test_below_one_with_a_file(tmp_path):
    distilled = sam_bigltl.convert_sam(small_reference_sam(seed=3))
    save_sam(distilled, tmp_path / "distilled.safetensors")
    sam = small_reference_sam()
    embedding = embed(sam)
    accelerate(sam, 0.5, "float32", weights=tmp_path / "distilled.safetensors")
    assert torch.equal(embed(sam), embed(distilled, 0.5))
    accelerate(sam, 1.0, "float32")
    assert torch.equal(embed(sam), embed(distilled, 1.0))
    accelerate(sam, undo=True)
    assert torch.equal(embed(sam), embedding)
    save_sam(dense_sam(dense_config(depth=2, global_layers=(1,))), tmp_path / "other.safetensors")
    save_sam(dense_sam(), tmp_path / "dense.safetensors")
    for name, words in (("other", "depth 2"), ("dense", "no little path"), ("none", "no checkpoint")):
        with pytest.raises(InputError, match=words):
            accelerate(sam, 0.5, weights=tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="not both"):
        accelerate(sam, 0.5, weights=tmp_path / "distilled.safetensors", images=photographs())


@pytest.mark.parametrize("images", [[], [np.zeros((4, 4), np.uint8)], [np.zeros((4, 4, 3))], picture(), ["none.jpg"]])
def test_photographs_that_are_none(images):
    sam = small_reference_sam()
    with pytest.raises(InputError):
        accelerate(sam, 0.5, images=images)
    assert type(sam.image_encoder) is segment_anything.modeling.ImageEncoderViT


def test_ours():
    sam = sam_bigltl.convert_sam(small_reference_sam())
    theirs, half, full = sam.image_encoder, embed(sam, 0.5), embed(sam, 1.0)
    accelerate(sam, 0.5, "float32")
    assert torch.equal(embed(sam), half)
    accelerate(sam, dtype="bfloat16", native=False)
    assert 0 < (embed(sam) - full).norm() / full.norm() < 2e-2
    accelerate(sam, undo=True)
    assert sam.image_encoder is theirs and torch.equal(embed(sam), full)


def lora(sam) -> None:
    class Wrapped(nn.Module):
        def __init__(self, qkv):
            super().__init__()
            self.qkv = qkv

        def forward(self, x):
            return self.qkv(x)

    sam.image_encoder.blocks[0].attn.qkv = Wrapped(sam.image_encoder.blocks[0].attn.qkv)


CHANGES = {
    "blocks.0.attn.qkv": lora,
    "blocks.2 has a hook": lambda sam: sam.image_encoder.blocks[2].register_forward_hook(lambda *_: None),
    "mlp.act": lambda sam: setattr(sam.image_encoder.blocks[1].mlp, "act", nn.ReLU()),
    "exact GELU": lambda sam: setattr(sam.image_encoder.blocks[1].mlp, "act", nn.GELU("tanh")),
    "another forward": lambda sam: setattr(sam.image_encoder.neck, "forward", lambda x: x),
    "blocks.0.adapter": lambda sam: sam.image_encoder.blocks[0].add_module("adapter", nn.Linear(2, 2)),
    "prompt": lambda sam: sam.image_encoder.register_parameter("prompt", nn.Parameter(torch.zeros(1))),
    "scaled": lambda sam: setattr(sam.image_encoder.blocks[0].attn, "scale", 1.0),
    "window": lambda sam: setattr(sam.image_encoder.blocks[0], "window_size", 2),
    "several formats": lambda sam: sam.image_encoder.blocks[0].half(),
    "norm1 is a Identity": lambda sam: setattr(sam.image_encoder.blocks[0], "norm1", nn.Identity()),
    "rel_pos_h is": lambda sam: setattr(sam.image_encoder.blocks[0].attn, "rel_pos_h", nn.Parameter(torch.ones(3, 16))),
    "float64": lambda sam: sam.image_encoder.double(),
    "it is a Encoder": lambda sam: setattr(
        sam.image_encoder, "__class__", type("Encoder", (type(sam.image_encoder),), {})
    ),
}  # fmt: skip


@pytest.mark.parametrize("words", CHANGES)
def test_a_changed_encoder_is_named(words):
    sam = small_reference_sam()
    CHANGES[words](sam)
    theirs = sam.image_encoder
    with pytest.raises(InputError, match=words) as caught:
        accelerate(sam, dtype="float32")
    assert "\n" not in str(caught.value)
    assert sam.image_encoder is theirs


def test_lora_added_afterwards_is_not_lost_in_silence():
    sam = accelerate(small_reference_sam(), dtype="float32")
    expected = embed(sam)
    lora(sam)
    assert torch.equal(embed(sam), expected)
    for settings in (dict(undo=True), dict(dtype="bfloat16")):
        with pytest.raises(InputError, match=r"blocks\.0\.attn\.qkv is a Wrapped"):
            accelerate(sam, **settings)
    sam.image_encoder.blocks[0].attn.qkv = sam.image_encoder.blocks[0].attn.qkv.qkv
    accelerate(sam, undo=True)


def test_converted_since():
    sam = small_reference_sam()
    expected = embed(sam)
    accelerate(sam, dtype="float32").bfloat16()
    assert (embed(sam) - expected).norm() / expected.norm() < 2e-2
    accelerate(sam, dtype="float32")
    assert {value.dtype for value in sam.image_encoder.parameters()} == {torch.float32}


def test_another_epsilon_and_no_positions():
    sam = small_reference_sam()
    for block in sam.image_encoder.blocks:
        block.norm1.eps = 0.1
        block.attn.use_rel_pos = False
        del block.attn.rel_pos_h, block.attn.rel_pos_w
    sam.image_encoder.pos_embed = None
    names, expected = sorted(sam.state_dict()), embed(sam)
    accelerate(sam, dtype="float32")
    torch.testing.assert_close(embed(sam), expected, atol=1e-4, rtol=0)
    assert sorted(sam.state_dict()) == names
    sam.load_state_dict(sam.state_dict())
    accelerate(sam, dtype="bfloat16", native=False)
    assert (embed(sam) - expected).norm() / expected.norm() < 2e-2
    assert sorted(sam.state_dict()) == names


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "sam.pth", None])
def test_another_class_is_named(model):
    with pytest.raises(InputError, match=type(model).__name__):
        accelerate(model)


@pytest.mark.parametrize("settings", [dict(dtype="float16"), dict(native="yes"), dict(keep_ratio=2.0)])
def test_settings_that_there_are_not(settings):
    sam = small_reference_sam()
    with pytest.raises(InputError):
        accelerate(sam, **settings)
    assert type(sam.image_encoder) is segment_anything.modeling.ImageEncoderViT


def test_runs_before_and_after_in_inference_mode():
    """Index maps that a first pass makes in inference mode must do for training."""
    sam = accelerate(small_reference_sam(), dtype="float32")
    with torch.inference_mode():
        sam.image_encoder(encoder_images(sam))
    sam.train().image_encoder(encoder_images(sam)).sum().backward()


def test_no_other_library_is_imported():
    code = """
import sys
import segment_anything
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from sam_bigltl import accelerate
encoder = ImageEncoderViT(img_size=32, embed_dim=16, depth=1, num_heads=2, out_chans=16, use_rel_pos=True)
decoder = MaskDecoder(transformer_dim=16, transformer=TwoWayTransformer(1, 16, 2, 16))
accelerate(Sam(encoder, PromptEncoder(16, (2, 2), (32, 32), 4), decoder), dtype="float32")
libraries = {"transformers", "ultralytics", "timm", "segment_anything_hq", "peft"}
print(libraries & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
