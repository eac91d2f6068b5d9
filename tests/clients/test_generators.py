"""Mask generators that clients derive or give another predictor: the records of `segment_anything`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import segment_anything
from helpers import picture, tiny_sam
from little_models import dense_sam
from segment_anything.modeling import Sam

from sam_bigltl import SamAutomaticMaskGenerator, SamPredictor

KINDS = (SamAutomaticMaskGenerator, segment_anything.SamAutomaticMaskGenerator)
GRID = dict(points_per_side=4, points_per_batch=5, pred_iou_thresh=-100.0, stability_score_thresh=0.0,
            box_nms_thresh=0.99)  # fmt: skip


@pytest.fixture(scope="module", params=["SAM's encoder", "ours"])
def sam(request: pytest.FixtureRequest) -> Sam:
    return tiny_sam() if request.param == "SAM's encoder" else dense_sam()


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


def assert_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], none: bool = False) -> None:
    assert len(ours) == len(theirs) and bool(theirs) is not none
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for key in a:
            if key in ("predicted_iou", "stability_score"):
                assert a[key] == pytest.approx(b[key], abs=1e-5, nan_ok=True), key
            else:
                assert np.array_equal(a[key], b[key]), key


class OnlySams:
    """A predictor with the interface of SAM's and nothing else: no features, no model's parts are looked at."""

    def __init__(self, sam: Sam) -> None:
        self._inner = segment_anything.SamPredictor(sam)
        self.model, self.transform = self._inner.model, self._inner.transform
        self.set_image, self.reset_image = self._inner.set_image, self._inner.reset_image

    @property
    def device(self):
        return self._inner.device

    def predict_torch(self, *args, **kwargs):
        masks, iou, low_res = self._inner.predict_torch(*args, **kwargs)
        return -masks, iou, low_res


class Derived(segment_anything.SamPredictor):
    def predict_torch(self, *args, **kwargs):
        masks, iou, low_res = super().predict_torch(*args, **kwargs)
        return masks, iou / 2, low_res


class DerivedFromOurs(SamPredictor):
    def predict_torch(
        self, point_coords, point_labels, boxes=None, mask_input=None, multimask_output=True, return_logits=False
    ):
        found = super().predict_torch(point_coords, point_labels, boxes, mask_input, multimask_output, return_logits)
        return found[0], found[1] / 2, found[2]


def patched(sam: Sam) -> SamPredictor:
    predictor = SamPredictor(sam)
    before = predictor.predict_torch
    predictor.predict_torch = lambda *args, **kwargs: (lambda m, iou, low: (m, iou / 2, low))(*before(*args, **kwargs))
    return predictor


# What is put into our generator, and into SAM's beside it.
PREDICTORS: dict[str, tuple[Callable[[Sam], Any], Callable[[Sam], Any]]] = {
    "SAM's": (segment_anything.SamPredictor, segment_anything.SamPredictor),
    "only SAM's interface": (OnlySams, OnlySams),
    "derived from SAM's": (Derived, Derived),
    "derived from ours": (DerivedFromOurs, Derived),
    "patched": (patched, Derived),
    "ours": (SamPredictor, segment_anything.SamPredictor),
}


@pytest.mark.parametrize("name", PREDICTORS)
def test_another_predictor(sam: Sam, name: str) -> None:
    found = []
    for kind, predictor in zip(KINDS, PREDICTORS[name]):
        generator = kind(sam, crop_n_layers=1, **GRID)
        generator.predictor = predictor(sam)
        found.append(generator.generate(picture(45, 70)))
    assert_same(*found)


def test_ours_in_segment_anythings_generator(sam: Sam) -> None:
    expected = segment_anything.SamAutomaticMaskGenerator(sam, **GRID).generate(picture())
    for kind in KINDS:
        generator = kind(sam, **GRID)
        generator.predictor = SamPredictor(sam)
        assert_same(generator.generate(picture()), expected)


def derived(base: type) -> dict[str, type]:
    """Generators as clients derive them; `calls` counts what of theirs ran."""

    class Batch(base):
        calls = 0

        def _process_batch(self, points, im_size, crop_box, orig_size):
            self.calls += 1
            data = super()._process_batch(points, im_size, crop_box, orig_size)
            data.filter(data["iou_preds"] > data["iou_preds"].mean())
            return data

    class Crop(base):
        calls = 0

        def _process_crop(self, image, crop_box, crop_layer_idx, orig_size):
            self.calls += 1
            return super()._process_crop(255 - image, crop_box, crop_layer_idx, orig_size)

    class Generate(base):
        calls = 0

        def generate(self, image):
            self.calls += 1
            return [record | {"name": "mine"} for record in super().generate(image[::-1])]

    class GenerateMasks(base):
        calls = 0

        def _generate_masks(self, image):
            self.calls += 1
            data = super()._generate_masks(image)
            data["iou_preds"] = data["iou_preds"] * 2
            return data

    class OwnInit(base):
        calls = 0

        def __init__(self, model, **options):
            other = segment_anything.SamAutomaticMaskGenerator(model, **options)
            self.__dict__.update(other.__dict__)

    kinds = locals()
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and name != "base"}


@pytest.mark.parametrize("name", derived(SamAutomaticMaskGenerator))
def test_what_a_subclass_overrides_is_called(sam: Sam, name: str) -> None:
    ours, theirs = (derived(kind)[name](sam, crop_n_layers=1, **GRID) for kind in KINDS)
    records = [generator.generate(picture(45, 70)) for generator in (ours, theirs)]
    assert ours.calls == theirs.calls
    if name == "Generate":
        assert all(record.pop("name") == "mine" for record in records[0] + records[1])
    assert_same(*records)


def test_images_of_floats(sam: Sam) -> None:
    assert_same(*(kind(sam, **GRID).generate(picture() / 255) for kind in KINDS))
