"""SamPredictor against segment_anything's: same signatures, same masks; then what it adds."""

import copy
import inspect

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture, tiny_sam

from sam_bigltl.convert.registry import sam_model_registry
from sam_bigltl.errors import InputError
from sam_bigltl.predict.predictor import SamPredictor

SIZES = [(40, 52), (64, 64), (100, 30), (3, 200), (200, 3), (1, 1), (7, 5)]


@pytest.fixture(scope="module")
def sam():
    return tiny_sam()


@pytest.fixture
def predictor(sam):
    predictor = SamPredictor(sam)
    predictor.set_image(picture())
    return predictor


def assert_equal(ours, theirs):
    """The same masks, types and shapes; scores and logits to rounding, since the products are in another order."""
    assert len(ours) == len(theirs) == 3
    for a, b in zip(ours, theirs):
        assert type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a), np.asarray(b)
        assert (a == b).all() if a.dtype == bool else np.allclose(a, b, atol=1e-5), abs(a - b).max()


def prompts(height, width):
    rng = np.random.default_rng(height * width)
    points = rng.uniform(0, 1, (3, 2)) * (width, height)
    box = np.array([0.1 * width, 0.2 * height, 0.9 * width, 0.8 * height])
    labels = np.array([1, 0, 1])
    mask = rng.normal(0, 5, (1, 16, 16)).astype(np.float32)
    return [
        dict(point_coords=points, point_labels=labels),
        dict(point_coords=points[:1].astype(int), point_labels=np.array([True])),
        dict(point_coords=points, point_labels=np.array([1, -1, 0.0]), box=box),
        dict(box=box),
        dict(box=box.astype(np.float32)[None], multimask_output=False),
        dict(box=box + np.array([-width, 0, 5, 3]), return_logits=True),
        dict(mask_input=mask),
        dict(point_coords=points, point_labels=labels, box=box, mask_input=mask, return_logits=True),
        dict(point_coords=points * 3 - 40, point_labels=labels, multimask_output=False, return_logits=True),
        dict(),
    ]


def test_signatures_are_segment_anythings():
    for name, method in inspect.getmembers(segment_anything.SamPredictor):
        if name.startswith("_") and name != "__init__":
            continue
        ours = getattr(SamPredictor, name)
        if isinstance(method, property):
            assert isinstance(ours, property)
            continue
        theirs = inspect.signature(method).parameters
        mine = inspect.signature(ours).parameters
        assert list(mine)[: len(theirs)] == list(theirs), name
        for key, parameter in theirs.items():
            assert (mine[key].default, mine[key].kind) == (parameter.default, parameter.kind), (name, key)
        added = [parameter for key, parameter in mine.items() if key not in theirs]
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in added), name


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_same_as_segment_anything(sam, size, image_format):
    ours, theirs = SamPredictor(sam), segment_anything.SamPredictor(sam)
    image = picture(*size)
    for predictor in (ours, theirs):
        predictor.set_image(image, image_format)
    assert (ours.get_image_embedding() == theirs.get_image_embedding()).all()
    assert (ours.original_size, ours.input_size) == (theirs.original_size, theirs.input_size)
    for prompt in prompts(*size):
        assert_equal(ours.predict(**prompt), theirs.predict(**prompt))


def test_rgb_and_bgr_differ_and_agree(sam):
    predictor = SamPredictor(sam)
    image = picture()
    predictor.set_image(image)
    rgb = predictor.get_image_embedding()
    predictor.set_image(np.ascontiguousarray(image[..., ::-1]), "BGR")
    assert (predictor.get_image_embedding() == rgb).all()
    predictor.set_image(image, "BGR")
    assert not (predictor.get_image_embedding() == rgb).all()


def test_torch_methods_are_the_same(sam):
    ours, theirs = SamPredictor(sam), segment_anything.SamPredictor(sam)
    image = torch.as_tensor(picture(48, 64)).permute(2, 0, 1)[None].float()
    torch.manual_seed(0)
    points, labels = torch.rand(4, 3, 2) * 60, torch.randint(0, 2, (4, 3))
    boxes = torch.tensor([[1.0, 2, 30, 40]]).repeat(4, 1) + torch.rand(4, 4)
    masks = torch.randn(4, 1, 16, 16)
    for arguments in ((points, labels), (None, None, boxes), (points, labels, boxes, masks, False, True),
                      (points.double(), labels)):  # fmt: skip
        results = []
        for predictor in (ours, theirs):
            predictor.set_torch_image(image, (96, 128))
            results.append(predictor.predict_torch(*arguments))
        assert_equal(*results)
        assert results[0][0].shape[-2:] == (96, 128)


def test_the_position_encoding_follows_the_weights():
    """It is kept between calls; other weights, in place or in the place of these, must not meet the old one."""
    sam = tiny_sam()
    ours, theirs = SamPredictor(sam), segment_anything.SamPredictor(sam)
    for predictor in (ours, theirs):
        predictor.set_image(picture())
    box = dict(box=np.array([5, 5, 40, 25]), return_logits=True)
    layer = sam.prompt_encoder.pe_layer
    masks = [ours.predict(**box)[0]]
    for change in (
        lambda old: layer.load_state_dict({"positional_encoding_gaussian_matrix": old * 2}),
        lambda old: setattr(layer, "positional_encoding_gaussian_matrix", old * 3),
    ):
        change(layer.positional_encoding_gaussian_matrix)
        assert_equal(ours.predict(**box), theirs.predict(**box))
        masks.append(ours.predict(**box)[0])
    assert not np.allclose(masks[0], masks[1], atol=1e-3) and not np.allclose(masks[1], masks[2], atol=1e-3)


def test_prompts_are_not_changed(predictor):
    prompt = prompts(40, 52)[7]
    before = copy.deepcopy(prompt)
    predictor.predict(**prompt)
    assert all(np.array_equal(prompt[key], before[key]) for key in prompt)


def test_coordinates_reach_the_model_as_float32(predictor):
    seen = []
    encoder = predictor.model.prompt_encoder

    def hook(_module, _args, kwargs):
        seen.extend([kwargs["points"][0], kwargs["boxes"]])

    handle = encoder.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        predictor.predict(np.array([[3.3, 4.4]]), np.array([1]), np.array([1.1, 2.2, 30.3, 20.4]))
    finally:
        handle.remove()
    assert [value.dtype for value in seen] == [torch.float32] * 2


def test_segment_anythings_caching_idiom_works(sam):
    """Pipelines assign features and sizes of an earlier image to the attributes themselves."""
    first, second = SamPredictor(sam), SamPredictor(sam)
    first.set_image(picture(30, 60))
    second.features, second.is_image_set = first.get_image_embedding(), True
    second.original_size, second.input_size = first.original_size, first.input_size
    box = np.array([5, 5, 40, 25])
    assert_equal(first.predict(box=box), second.predict(box=box))


def test_image_narrower_than_a_model_pixel(sam):
    predictor = SamPredictor(sam)
    predictor.set_image(picture(1, 500))
    masks, _, _ = predictor.predict(np.array([[250, 0]]), np.array([1]))
    assert masks.shape == (3, 1, 500)


def test_set_images_equals_single_images(sam):
    images = [picture(40, 52, 1), picture(64, 20, 2), picture(9, 90, 3)]
    batch, single = SamPredictor(sam), SamPredictor(sam)
    batch.set_images(images)
    assert batch.get_image_embedding().shape == (3, 32, 4, 4)
    for index, image in enumerate(images):
        single.set_image(image)
        height, width = image.shape[:2]
        prompt = dict(point_coords=np.array([[width / 2, height / 2]]), point_labels=[1], return_logits=True)
        ours = batch.predict(**prompt, image_index=index)
        theirs = single.predict(**prompt)
        assert ours[0].shape == (3, height, width)
        for a, b in zip(ours, theirs):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    for bad in (3, -1, 1.0, True):
        with pytest.raises(InputError, match="image_index"):
            batch.predict(image_index=bad)
    assert batch.predict()[0].shape == (3, 40, 52)
    assert batch.predict(image_index=np.int64(2))[0].shape == (3, 9, 90)


def test_save_and_load_embedding(sam, tmp_path):
    images = [picture(40, 52, 1), picture(64, 20, 2)]
    first = SamPredictor(sam)
    first.set_images(images)
    first.save_embedding(tmp_path / "new" / "e.safetensors")
    second = SamPredictor(copy.deepcopy(sam))
    second.load_embedding(str(tmp_path / "new" / "e.safetensors"))
    assert second.is_image_set and second.route is None
    for index in range(2):
        prompt = dict(box=np.array([2, 3, 15, 30]), image_index=index, return_logits=True)
        assert_equal(first.predict(**prompt), second.predict(**prompt))
    SamPredictor(copy.deepcopy(sam).bfloat16()).load_embedding(tmp_path / "new" / "e.safetensors")


def test_embedding_of_another_model_is_refused(sam, predictor, tmp_path):
    path = tmp_path / "e.safetensors"
    predictor.save_embedding(path)
    changed = copy.deepcopy(sam)
    with torch.no_grad():
        changed.image_encoder.blocks[1].mlp.lin1.weight.mul_(1.1)
    for other in (tiny_sam(seed=1), tiny_sam(img_size=96), changed):
        with pytest.raises(InputError, match="other encoder weights"):
            SamPredictor(other).load_embedding(path)


def test_bad_embedding_files(predictor, tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "text").write_text("no")
    save_file({"weight": torch.zeros(2)}, str(tmp_path / "weights"))
    before = predictor.get_image_embedding()
    for name in ("missing", ".", "text", "weights"):
        with pytest.raises(InputError) as caught:
            predictor.load_embedding(tmp_path / name)
        assert "\n" not in str(caught.value)
    assert predictor.get_image_embedding() is before
    with pytest.raises(InputError, match="cannot write"):
        predictor.save_embedding(tmp_path)


@pytest.mark.parametrize("part", ["encoder", "decoder", "whole"])
def test_bfloat16(part):
    half = tiny_sam()
    {"encoder": half.image_encoder, "decoder": half.mask_decoder, "whole": half}[part].bfloat16()
    ours, reference = SamPredictor(half), SamPredictor(tiny_sam())
    for predictor in (ours, reference):
        predictor.set_image(picture())
    expected = torch.float32 if part == "encoder" else torch.bfloat16
    assert ours.get_image_embedding().dtype == expected
    for prompt in prompts(40, 52):
        prompt["return_logits"] = True
        for a, b in zip(ours.predict(**prompt), reference.predict(**prompt)):
            assert a.dtype == b.dtype == np.float32
            assert np.sqrt(np.mean((a - b) ** 2)) < 0.15 * np.sqrt(np.mean(b**2))
    assert ours.predict()[0].dtype == bool


def test_route_is_that_of_the_image_set(sam):
    sam = copy.deepcopy(sam)
    predictor = SamPredictor(sam)
    predictor.set_image(picture())
    assert predictor.route is None  # a plain encoder
    sam.image_encoder.last_route = "first"
    predictor.set_image(picture())
    sam.image_encoder.last_route = "second"
    assert predictor.route == "first"
    predictor.reset_image()
    assert predictor.route is None


def test_big_little_encoder():
    """The same masks from both predictors, and a route per image."""
    torch.manual_seed(0)
    sam = sam_model_registry["bigltl_mini"]()
    sam.image_encoder.keep_ratio = 0.25
    images = [picture(60, 90, 1), picture(90, 50, 2)]
    ours, theirs = SamPredictor(sam), segment_anything.SamPredictor(sam)
    for predictor in (ours, theirs):
        predictor.set_image(images[0])
    box = dict(box=np.array([10, 10, 45, 40]))
    assert_equal(ours.predict(**box), theirs.predict(**box))
    assert ours.route.grid == (40, 40)
    assert all(group.indices.shape == (1, 400) for group in ours.route.groups)
    single = ours.route.counts()
    ours.set_images(images)
    assert ours.route.counts().shape == (2, 40, 40) and (ours.route.counts()[:1] == single).all()
    sam.image_encoder.keep_ratio = "auto"
    ours.set_images(images)
    assert ours.predict(**box, image_index=1)[0].shape == (3, 90, 50)


def test_nothing_is_set_after_reset(predictor, tmp_path):
    predictor.reset_image()
    for call in (predictor.predict, predictor.get_image_embedding, lambda: predictor.save_embedding(tmp_path / "e")):
        with pytest.raises(RuntimeError):
            call()


BAD_PROMPTS = {
    "nan point": dict(point_coords=[[np.nan, 1]], point_labels=[1]),
    "infinite point": dict(point_coords=[[1, np.inf]], point_labels=[1]),
    "labels missing": dict(point_coords=[[1, 1]]),
    "label 2": dict(point_coords=[[1, 1]], point_labels=[2]),
    "label count": dict(point_coords=[[1, 1]], point_labels=[1, 0]),
    "one flat point": dict(point_coords=[1, 1], point_labels=[1]),
    "three coordinates": dict(point_coords=[[1, 1, 1]], point_labels=[1]),
    "ragged": dict(point_coords=[[1, 1], [2]], point_labels=[1, 1]),
    "text": dict(point_coords=[["a", "b"]], point_labels=[1]),
    "nan box": dict(box=[0, 0, np.nan, 5]),
    "inverted box": dict(box=[20, 0, 10, 5]),
    "flat box": dict(box=[0, 5, 10, 5]),
    "box left": dict(box=[-20, 0, -1, 5]),
    "box right": dict(box=[52, 0, 60, 5]),
    "box below": dict(box=[0, 40, 9, 50]),
    "three numbers": dict(box=[0, 0, 1]),
    "two boxes": dict(box=[[0, 0, 1, 1], [0, 0, 2, 2]]),
    "mask size": dict(mask_input=np.zeros((1, 8, 8))),
    "flat mask": dict(mask_input=np.zeros((16, 16))),
    "nan mask": dict(mask_input=np.full((1, 16, 16), np.nan)),
}


# SAM has an answer to these: tests/clients/test_prompts_of_sam.py compares it with ours.
ANSWERED = {"nan point", "infinite point", "label 2", "nan box", "inverted box", "flat box", "box left", "box right",
            "box below", "nan mask"}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_bad_prompts_are_one_line(sam, name):
    for strict in (True, False):
        predictor = SamPredictor(sam, strict=strict)
        predictor.set_image(picture())
        if name in ANSWERED and not strict:
            assert predictor.predict(**BAD_PROMPTS[name])[0].shape == (3, 40, 52)
            continue
        with pytest.raises(InputError) as caught:
            predictor.predict(**BAD_PROMPTS[name])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("strict", [True, False])
def test_bad_torch_prompts(sam, strict):
    predictor = SamPredictor(sam, strict=strict)
    predictor.set_image(picture())
    point, label, box = torch.ones(2, 1, 2), torch.ones(2, 1), torch.tensor([[0.0, 0, 9, 9]])
    bad = [(point[0], label), (point, None), (point, label[:1]), (None, None, box[0]), (point, label, box),
           (None, None, None, torch.zeros(1, 1, 8, 8)), (point[:0], label[:0]), (None, None, box[:0])]  # fmt: skip
    answered = [(point * torch.nan, label), (None, None, box / 0), (None, label), (point, label.bool())]
    for arguments in bad + answered * strict:
        with pytest.raises(InputError):
            predictor.predict_torch(*arguments)
    for image in (torch.zeros(3, 64, 64), torch.zeros(1, 3, 32, 32), torch.zeros(1, 1, 64, 64)):
        with pytest.raises(InputError):
            predictor.set_torch_image(image, (64, 64))


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)),
                                   np.zeros((0, 9, 3), np.uint8), [[1]], None], ids=str)  # fmt: skip
def test_bad_images(sam, image):
    with pytest.raises(InputError) as caught:
        SamPredictor(sam, strict=True).set_image(image)
    assert "\n" not in str(caught.value)


def test_bad_format_and_no_images(sam):
    with pytest.raises(InputError, match="image_format"):
        SamPredictor(sam).set_image(picture(), "RGBA")
    with pytest.raises(InputError, match="at least one"):
        SamPredictor(sam).set_images([])
