"""SamAutomaticMaskGenerator against segment_anything's: same signature and the same records."""

import inspect

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture, tiny_sam

from sam_bigltl.errors import InputError
from sam_bigltl.predict.automatic import SamAutomaticMaskGenerator

LOOSE = dict(points_per_side=4, pred_iou_thresh=-10.0, stability_score_thresh=0.0, box_nms_thresh=0.99,
             points_per_batch=5)  # fmt: skip


@pytest.fixture(scope="module")
def sam():
    return tiny_sam()


def generate(cls, sam, image, **options):
    return cls(sam, **{**LOOSE, **options}).generate(image)


def assert_same(ours, theirs):
    """The same masks and boxes; scores to rounding, since the decoder's products are in another order."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for key in a:
            if key in ("predicted_iou", "stability_score"):
                assert a[key] == pytest.approx(b[key], abs=1e-5, nan_ok=True), key
            else:
                assert np.array_equal(a[key], b[key]) if isinstance(a[key], np.ndarray) else a[key] == b[key], key


@pytest.mark.parametrize("name", ["__init__", "generate", "postprocess_small_regions"])
def test_signature_is_segment_anythings(name):
    ours = inspect.signature(getattr(SamAutomaticMaskGenerator, name)).parameters.values()
    theirs = inspect.signature(getattr(segment_anything.SamAutomaticMaskGenerator, name)).parameters.values()
    assert [(p.name, p.default, p.kind) for p in ours] == [(p.name, p.default, p.kind) for p in theirs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"output_mode": "coco_rle"},
        {
            "output_mode": "uncompressed_rle",
            "crop_n_layers": 1,
            "crop_nms_thresh": 0.95,
            "crop_n_points_downscale_factor": 2,
        },
        {"min_mask_region_area": 30, "crop_nms_thresh": 0.9},
        {"points_per_side": None, "point_grids": [np.random.default_rng(0).uniform(0, 1, (7, 2))]},
    ],
    ids=str,
)
def test_same_records_as_segment_anything(sam, options):
    image = picture(45, 70)
    theirs = generate(segment_anything.SamAutomaticMaskGenerator, sam, image, **options)
    assert len(theirs) > 1
    assert_same(generate(SamAutomaticMaskGenerator, sam, image, **options), theirs)


def test_grid_points_give_bit_equal_embeddings_in_float32(sam):
    """Where float64 coordinates would be needed, float32 ones rounded at the half pixel give the same encoding."""
    ours = SamAutomaticMaskGenerator(sam).predictor
    theirs = segment_anything.SamPredictor(sam)
    points = np.random.default_rng(0).uniform(0, 1, (2000, 2)) * (70, 45)
    codes = []
    for predictor in (ours, theirs):
        coords = torch.as_tensor(predictor.transform.apply_coords(points, (45, 70)))[:, None]
        codes.append(sam.prompt_encoder((coords, torch.ones(2000, 1, dtype=torch.int)), None, None)[0])
    assert ours.transform.apply_coords(points, (45, 70)).dtype == np.float32
    assert (codes[0] == codes[1]).all()


def test_no_masks_is_an_empty_list(sam):
    assert generate(SamAutomaticMaskGenerator, sam, picture(), pred_iou_thresh=1e9, crop_n_layers=1) == []


def test_bfloat16():
    records = generate(SamAutomaticMaskGenerator, tiny_sam().bfloat16(), picture())
    assert records and isinstance(records[0]["predicted_iou"], float)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (200, 1), (2, 3)])
def test_crops_without_pixels_are_skipped(sam, size):
    records = generate(SamAutomaticMaskGenerator, sam, picture(*size), crop_n_layers=2, min_mask_region_area=1)
    assert records and all(record["segmentation"].shape == size for record in records)
    if min(size) > 1:  # all crops of the first layer have pixels
        options = dict(crop_n_layers=1)
        theirs = generate(segment_anything.SamAutomaticMaskGenerator, sam, picture(*size), **options)
        assert_same(generate(SamAutomaticMaskGenerator, sam, picture(*size), **options), theirs)


POINT = np.array([[0.5, 0.5]])
BAD = {
    "points_per_batch": [dict(points_per_batch=value) for value in (0, -1, 2.5, None)],
    "points_per_side": [dict(points_per_side=value) for value in (0, -3, 0.5, float("nan"), "4")],
    "crop_n_layers": [dict(crop_n_layers=value) for value in (-1, 1.0)],
    "crop_n_points_downscale_factor": [
        dict(points_per_side=4, crop_n_layers=2, crop_n_points_downscale_factor=value) for value in (3, 0, -1)
    ],
    "crop_overlap_ratio": [dict(crop_overlap_ratio=value) for value in (-0.1, 2.0, float("nan"))],
    "point_grids": [
        dict(points_per_side=None, point_grids=grids) | more
        for grids, more in (
            ([], {}), ([np.zeros((0, 2))], {}), (POINT, {}), ([POINT * np.nan], {}), ([POINT], dict(crop_n_layers=1)),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("name,options", [(name, options) for name, each in BAD.items() for options in each], ids=str)
def test_arguments_that_leave_nothing_to_do_are_named(sam, name, options):
    with pytest.raises(InputError, match=name) as error:
        SamAutomaticMaskGenerator(sam, **options)
    assert "\n" not in str(error.value)


def test_arguments_that_segment_anything_takes(sam):
    for options in (
        dict(points_per_side=2.5), dict(points_per_batch=np.int64(5)),
        dict(crop_n_layers=1, crop_n_points_downscale_factor=4),
        dict(points_per_side=1, crop_n_layers=1, crop_n_points_downscale_factor=0.5),
    ):  # fmt: skip
        theirs = generate(segment_anything.SamAutomaticMaskGenerator, sam, picture(), **options)
        assert_same(generate(SamAutomaticMaskGenerator, sam, picture(), **options), theirs)


def test_bad_input(sam):
    with pytest.raises(InputError):
        SamAutomaticMaskGenerator(sam, points_per_side=None)
    with pytest.raises(InputError):
        SamAutomaticMaskGenerator(sam, output_mode="png")
    with pytest.raises(InputError):
        SamAutomaticMaskGenerator(sam).generate(np.zeros((9, 9), np.uint8))
