"""Predictors that clients derive, and the embeddings that they assign: as with `segment_anything.SamPredictor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture, tiny_sam
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide

from sam_bigltl import SamPredictor
from sam_bigltl.evaluation.decoding import PromptLoop, decoder_for

BOX = np.array([5, 5, 40, 25])
KINDS = (SamPredictor, segment_anything.SamPredictor)


@pytest.fixture(scope="module")
def sam() -> Sam:
    return tiny_sam()


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


def assert_close(ours: Any, theirs: Any) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert type(a) is type(b) and a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5)


def answers(predictor: Any) -> list[np.ndarray]:
    predictor.set_image(picture())
    return [*predictor.predict(box=BOX, return_logits=True), predictor.get_image_embedding().numpy()]


def overriding(base: type) -> dict[str, type]:
    """Subclasses of a predictor, as clients write them; `calls` says what of theirs ran."""

    class SetTorchImage(base):
        def set_torch_image(self, transformed_image, original_image_size):
            self.calls = ["set_torch_image", tuple(transformed_image.shape), transformed_image.dtype]
            super().set_torch_image(255 - transformed_image, original_image_size)

    class OwnSetTorchImage(base):
        @torch.no_grad()
        def set_torch_image(self, transformed_image, original_image_size):
            self.reset_image()
            self.original_size, self.input_size = original_image_size, tuple(transformed_image.shape[-2:])
            self.features = -self.model.image_encoder(self.model.preprocess(transformed_image))
            self.is_image_set = True

    class PredictTorch(base):
        def predict_torch(
            self, point_coords, point_labels, boxes=None, mask_input=None, multimask_output=True, return_logits=False
        ):
            self.calls = ["predict_torch", return_logits]
            return super().predict_torch(
                point_coords, point_labels, boxes + 3, mask_input, multimask_output, return_logits
            )

    class PredictTorchByKeyword(base):
        def predict_torch(self, *args, return_logits=False):  # SAM gives the five others by position
            self.calls = [len(args)]
            masks, iou, low_res = super().predict_torch(*args, return_logits=return_logits)
            return masks.requires_grad_(), -iou, low_res

    class Init(base):
        def __init__(self, model):
            self.model = model
            self.transform = ResizeLongestSide(model.image_encoder.img_size)

    class InitAndReset(base):
        def __init__(self, model):
            self.model, self.is_image_set = model, False
            self.transform = ResizeLongestSide(model.image_encoder.img_size)

        def reset_image(self):
            self.is_image_set, self.features = False, None

    class SetImage(base):
        def set_image(self, image, image_format="RGB"):
            self.calls = [image_format]
            super().set_image(np.ascontiguousarray(image[:, ::-1]), image_format)

    class GetImageEmbedding(base):
        def get_image_embedding(self):
            return 2 * super().get_image_embedding()

    class Transform(base):
        def __init__(self, model):
            super().__init__(model)
            self.transform = Shifted(model.image_encoder.img_size)

    class Shifted(ResizeLongestSide):
        def apply_image(self, image):
            return super().apply_image(255 - image)

        def apply_coords(self, coords, original_size):
            return super().apply_coords(coords, original_size) + 2.5

    kinds = locals()
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and name not in ("base", "Shifted")}


@pytest.mark.parametrize("name", overriding(SamPredictor))
def test_what_a_subclass_overrides_is_called(sam: Sam, name: str) -> None:
    ours, theirs = (overriding(kind)[name](sam) for kind in KINDS)
    assert_close(answers(ours), answers(theirs))
    assert getattr(ours, "calls", None) == getattr(theirs, "calls", None)
    assert ours.original_size == theirs.original_size and ours.input_size == theirs.input_size


def test_methods_put_into_an_instance(sam: Sam) -> None:
    found = []
    for kind in KINDS:
        predictor, calls = kind(sam), []
        before = predictor.set_torch_image, predictor.predict_torch
        predictor.set_torch_image = lambda image, size, f=before[0]: calls.append("set") or f(255 - image, size)  # noqa: B023
        predictor.predict_torch = lambda *a, f=before[1], **k: calls.append(len(a) + len(k)) or f(*a, **k)  # noqa: B023
        found.append(answers(predictor))
        assert calls == ["set", 6]
    assert_close(*found)


def test_focus_reaches_an_overridden_set_torch_image() -> None:
    from little_models import dense_sam

    from sam_bigltl import convert_sam

    sam = convert_sam(dense_sam())
    sam.image_encoder.keep_ratio = 0.3
    plain = SamPredictor(sam)
    predictor = overriding(SamPredictor)["SetTorchImage"](sam)
    predictor.set_image(255 - picture(64, 64), boxes=[[0, 0, 9, 9]])
    assert predictor.calls[0] == "set_torch_image"
    plain.set_image(picture(64, 64), boxes=[[0, 0, 9, 9]])
    assert torch.equal(predictor.features, plain.features)
    plain.set_image(picture(64, 64))
    assert not torch.equal(predictor.features, plain.features)


ASSIGNED: dict[str, Callable[[torch.Tensor], Any]] = {
    "as they are": lambda x: x,
    "3-D": lambda x: x[0],
    "float16": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "from numpy": lambda x: torch.from_numpy(x.numpy().copy()),
    "not contiguous": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "a parameter": lambda x: torch.nn.Parameter(x),
}


@pytest.mark.parametrize("name", ASSIGNED)
@pytest.mark.parametrize("by_hand", [False, True])
def test_features_that_are_assigned(sam: Sam, name: str, by_hand: bool) -> None:
    found = []
    for kind in KINDS:
        predictor = kind(sam)
        predictor.set_image(picture(30, 52))
        features = ASSIGNED[name](predictor.features)
        if by_hand:  # as micro-sam and label tools do
            predictor = kind(sam)
            predictor.is_image_set, predictor.original_size, predictor.input_size = True, [30, 52], [37, 64]
        predictor.features = features
        assert predictor.get_image_embedding() is features
        found.append(predictor.predict(box=BOX, return_logits=True))
    assert_close(*found)


def test_features_that_sam_refuses_give_the_right_masks(sam: Sam, tmp_path) -> None:
    predictor = SamPredictor(sam)
    predictor.set_image(picture())
    features = predictor.features
    boxes = torch.tensor([[5.0, 5, 40, 25], [1, 2, 30, 20]])
    expected = predictor.predict_torch(None, None, boxes, return_logits=True)
    for assigned in (features[0], features.double(), features.numpy(), features.numpy()[0]):
        predictor.features = assigned
        assert_close(predictor.predict_torch(None, None, boxes, return_logits=True), expected)
    predictor.features = features[0]
    predictor.save_embedding(tmp_path / "e.safetensors")
    other = SamPredictor(sam)
    other.load_embedding(tmp_path / "e.safetensors")
    assert_close(other.predict_torch(None, None, boxes, return_logits=True), expected)


def test_several_embeddings_that_are_assigned(sam: Sam) -> None:
    """SAM answers one prompt on all of them."""
    found = []
    for kind in KINDS:
        predictor = kind(sam)
        predictor.set_image(picture(40, 52, 1))
        first = predictor.features
        predictor.set_image(picture(40, 52, 2))
        predictor.features = torch.cat([first, predictor.features])
        found.append([*predictor.predict_torch(None, None, torch.tensor([[5.0, 5, 40, 25]]), return_logits=True)])
    assert found[0][0].shape == (2, 3, 40, 52)
    assert_close(*found)


def test_sizes_that_are_assigned_after_set_image(sam: Sam) -> None:
    found = []
    for kind in KINDS:
        predictor = kind(sam)
        predictor.set_image(picture())
        predictor.original_size = (80, 104)
        found.append(predictor.predict(box=2 * BOX, return_logits=True))
    assert_close(*found)


def test_an_encoder_and_a_decoder_that_share_more_than_features(sam: Sam) -> None:
    """As SAM-HQ's: the encoder gives a tuple, and the decoder takes it."""

    class Encoder(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.img_size = inner, inner.img_size

        def forward(self, x):
            return self.inner(x), x.mean()

    class Decoder(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, image_embeddings, **inputs):
            features, more = image_embeddings
            masks, iou = self.inner(image_embeddings=features, **inputs)
            return masks + more, iou

    other = tiny_sam()
    other.image_encoder, other.mask_decoder = Encoder(other.image_encoder), Decoder(other.mask_decoder)
    found = []
    for kind in KINDS:
        predictor = kind(other)
        predictor.set_image(picture())
        found.append(predictor.predict(box=BOX, return_logits=True))
    assert_close(*found)


def test_a_hook_that_predicts(sam: Sam) -> None:
    """A hook on a part of the model may use a predictor of the same model."""
    inner, found = SamPredictor(sam), []
    inner.set_image(picture())
    handle = sam.image_encoder.register_forward_hook(lambda *_: found.append(inner.predict(box=BOX)[1]) and None)
    try:
        outer = SamPredictor(sam)
        outer.set_image(picture())
    finally:
        handle.remove()
    assert len(found) == 1 and np.allclose(found[0], outer.predict(box=BOX)[1], atol=1e-5)


def test_a_predictor_of_its_own_is_evaluated_by_its_own_predict() -> None:
    class Own(SamPredictor):
        def predict(self, *args, **kwargs):
            return super().predict(*args, **kwargs)

    class Torch(segment_anything.SamPredictor):
        def predict_torch(self, *args, **kwargs):
            return super().predict_torch(*args, **kwargs)

    sam = tiny_sam()
    for kind in (Own, Torch):
        assert type(decoder_for(kind(sam), 4)) is PromptLoop
    patched = SamPredictor(sam)
    patched.predict = patched.predict.__get__
    assert type(decoder_for(patched, 4)) is PromptLoop
