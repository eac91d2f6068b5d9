"""`accelerate` on what projects bring along: copies and forks of `segment_anything`, and the ways they call it."""

from __future__ import annotations

import inspect
import sys
import types

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture
from little_models import embed, encoder_images, small_reference_sam

from sam_bigltl import InputError, accelerate

pytestmark = pytest.mark.usefixtures("one_thread")
BOX = np.array([4, 6, 40, 30])


def test_the_hq_encoder_of_comfyui_and_sd_webui():
    """Their `sam_hq` package has a subclass of `segment_anything`'s encoder that returns the global layers too."""

    class ImageEncoderViTHQ(segment_anything.modeling.ImageEncoderViT):
        def forward(self, x):
            kept = []
            layers = [block for block in self.blocks if block.window_size == 0]
            hooks = [layer.register_forward_hook(lambda *call: kept.append(call[-1])) for layer in layers]
            x = super().forward(x)
            for hook in hooks:
                hook.remove()
            return x, kept

    sam = small_reference_sam()
    sam.image_encoder.__class__ = ImageEncoderViTHQ
    with pytest.raises(InputError, match="ImageEncoderViTHQ"):
        accelerate(sam)
    ImageEncoderViTHQ.__module__ = "sam_hq.modeling.image_encoder"
    with torch.no_grad():
        embedding, layers = sam.image_encoder(encoder_images(sam))
        accelerate(sam, dtype="float32")
        found, found_layers = sam.image_encoder(encoder_images(sam))
        torch.testing.assert_close(found, embedding, atol=1e-4, rtol=0)
        assert len(found_layers) == len(layers) == 2
        for own, other in zip(found_layers, layers):
            torch.testing.assert_close(own, other, atol=1e-4, rtol=0)
        accelerate(sam, dtype="bfloat16", native=False)
        assert len(sam.image_encoder(encoder_images(sam))[1]) == 2
        assert torch.equal(accelerate(sam, undo=True).image_encoder(encoder_images(sam))[0], embedding)


def test_calls_of_medsam_micro_sam_and_grounded_sam():
    """The encoder by itself: on an image in [0, 1], as in MedSAM, and on a batch, as in micro-sam. Boxes at once, as in
    Grounded-SAM."""
    sam = small_reference_sam()

    @torch.no_grad()
    def results():
        image = torch.as_tensor(picture(64, 64)).permute(2, 0, 1)[None] / 255
        sparse, dense = sam.prompt_encoder(None, torch.tensor([[[4.0, 6, 40, 30]]]), None)
        medsam, _ = sam.mask_decoder(
            image_embeddings=sam.image_encoder(image), image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse, dense_prompt_embeddings=dense, multimask_output=False,
        )  # fmt: skip
        predictor = segment_anything.SamPredictor(sam)
        batch = [predictor.transform.apply_image(picture(*size)) for size in ((30, 64), (64, 50))]
        features = sam.image_encoder(
            torch.cat([sam.preprocess(torch.as_tensor(x).permute(2, 0, 1)[None]) for x in batch])
        )
        predictor.features, predictor.is_image_set = features[-1:], True
        predictor.original_size, predictor.input_size = (64, 50), batch[-1].shape[:2]
        boxes = predictor.transform.apply_boxes_torch(torch.as_tensor(np.stack([BOX, BOX + 5])), (64, 50))
        many = predictor.predict_torch(None, None, boxes, multimask_output=False, return_logits=True)[0]
        return medsam, features, torch.as_tensor(predictor.predict(box=BOX, return_logits=True)[0]), many

    expected = results()
    accelerate(sam, dtype="float32")
    for own, other in zip(results(), expected):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=0)


def copy_of_segment_anything(monkeypatch, name: str, change: tuple[str, str]):
    """`segment_anything`'s own encoder file as a module of another name, with one change."""
    source = inspect.getsource(segment_anything.modeling.image_encoder)
    assert change[0] in source
    package = types.ModuleType(name)
    package.__path__ = []
    module = types.ModuleType(f"{name}.image_encoder")
    module.__package__ = name
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, f"{name}.common", segment_anything.modeling.common)
    monkeypatch.setitem(sys.modules, f"{name}.image_encoder", module)
    exec(compile(source.replace(*change, 1), f"{name}/image_encoder.py", "exec"), module.__dict__)
    sam = small_reference_sam()
    encoder = module.ImageEncoderViT(
        img_size=64, embed_dim=32, depth=4, num_heads=2, out_chans=32, use_rel_pos=True, window_size=3,
        global_attn_indexes=(1, 3), **({"image": 1} if "image: int" in change[1] else {}),
    )  # fmt: skip
    encoder.load_state_dict(sam.image_encoder.state_dict())
    sam.image_encoder = encoder.eval()
    return sam


def test_a_copy_of_segment_anything(monkeypatch):
    sam = copy_of_segment_anything(monkeypatch, "vendored", ("x", "x"))
    expected = embed(sam)
    accelerate(sam, dtype="float32")
    torch.testing.assert_close(embed(sam), expected, atol=1e-4, rtol=0)


CODE = [
    ("attn = (q * self.scale)", "attn = (q * 0.99 * self.scale)"),
    ("x = shortcut + x", "x = shortcut + 0.99 * x"),
    ("F.pad(x, (0, 0, 0, pad_w, 0, pad_h))", "F.pad(x, (0, 0, pad_w, 0, pad_h, 0))"),
    ("attn = add_decomposed_rel_pos(attn, q, self.rel_pos_h", "attn = add_decomposed_rel_pos(attn, q, self.rel_pos_w"),
]


@pytest.mark.parametrize("change", CODE)
def test_a_fork_that_computes_something_else_is_named(monkeypatch, change):
    sam = copy_of_segment_anything(monkeypatch, "forked", change)
    theirs = sam.image_encoder
    with pytest.raises(InputError, match=r"forked\.image_encoder\.ImageEncoderViT computes something else"):
        accelerate(sam)
    assert sam.image_encoder is theirs


def test_a_fork_that_is_built_in_another_way_is_named(monkeypatch):
    sam = copy_of_segment_anything(
        monkeypatch, "forked", ("embed_dim: int = 768", "embed_dim: int = 768, *, image: int")
    )
    with pytest.raises(InputError, match="cannot be built as SAM's"):
        accelerate(sam)


def test_photographs_of_another_library_are_named():
    from PIL import Image

    with pytest.raises(InputError, match="image 0 is a PIL Image: give uint8 RGB arrays"):
        accelerate(small_reference_sam(), 0.5, images=[Image.fromarray(image) for image in (picture(), picture())])


def _output_hook(encoder):
    return encoder.blocks[0].register_forward_hook(lambda *_: None)


def _pre_hook(encoder):
    return encoder.blocks[1].attn.register_forward_pre_hook(lambda *_: None)


@pytest.mark.parametrize("hook", [_output_hook, _pre_hook])
@pytest.mark.parametrize("change", [dict(dtype="bfloat16", native=False), dict(undo=True)])
def test_hooks_do_not_vanish_with_the_encoder_that_has_them(hook, change):
    sam = accelerate(small_reference_sam(), dtype="float32")
    handle = hook(sam.image_encoder)
    accelerate(sam, 1.0, dtype="float32")  # the same encoder goes on
    with pytest.raises(InputError, match="hook .* blocks.*: remove it first"):
        accelerate(sam, **change)
    handle.remove()
    accelerate(sam, **change)


@pytest.mark.parametrize("ratio", [0, -1, 1.5, "half", [0.5, 2.0], None, float("nan")])
def test_a_ratio_that_there_is_not_is_named(ratio):
    with pytest.raises(InputError, match="keep_ratio is .*in \\(0, 1\\]"):
        accelerate(small_reference_sam(), ratio, dtype="float32")


def test_the_model_inside_a_wrapper_is_asked_for():
    with pytest.raises(InputError, match="inside this DataParallel, a Sam"):
        accelerate(torch.nn.DataParallel(small_reference_sam()))
