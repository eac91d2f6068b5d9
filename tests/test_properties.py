"""What holds for any prompt, image size, keep_ratio, mask and grid, on examples that hypothesis draws."""

# ruff: noqa: E402 - what needs an optional package is imported after the check for it
from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture
from little_models import dense_sam

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from sam_bigltl import InputError, SamPredictor, convert_sam
from sam_bigltl.cli.segment import parse_keep_ratio
from sam_bigltl.data.coco import Annotation
from sam_bigltl.data.rle import check_rle
from sam_bigltl.modeling.routing import Geometry, Selection, top_tokens
from sam_bigltl.predict.prompt import Prompt
from sam_bigltl.predict.segment import Segment, annotation


def examples(count: int):
    """The same examples every time, however slow the machine."""
    return settings(
        max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )


@cache
def sam():
    torch.set_num_threads(1)
    return convert_sam(dense_sam(), little_dim=16)


def predictor_at(keep_ratio=0.5, strict=False) -> SamPredictor:
    sam().image_encoder.keep_ratio = keep_ratio
    return SamPredictor(sam(), strict=strict)


def one_line(error: InputError) -> None:
    assert str(error) and "\n" not in str(error)


sides = st.one_of(st.sampled_from([1, 2, 63, 64, 65]), st.integers(1, 150))
sizes = st.tuples(sides, sides)
numbers = st.one_of(
    st.floats(-50, 200, width=32), st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e38, 1e-300, 0.0])
)
dtypes = st.sampled_from(["float64", "float32", "float16", "int32", "uint8"])


def rows(count: int, width: int):
    return st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=count, max_size=count)


@st.composite
def prompts(draw) -> dict:
    """Points, a box, both or neither; numbers of any kind, labels mostly good ones."""
    found = {}
    if draw(st.booleans()):
        count = draw(st.integers(0, 4))
        found["point_coords"] = np.array(draw(rows(count, 2)), dtype=float).reshape(count, 2)
        found["point_labels"] = np.array(
            draw(st.lists(st.sampled_from([0, 1, 1, 0, -1, 2]), min_size=count, max_size=count))
        )
    if draw(st.booleans()):
        found["box"] = np.array(draw(rows(1, 4))[0])
    kind = draw(dtypes)
    with np.errstate(all="ignore"):
        return {name: values.astype(kind) if name != "point_labels" else values for name, values in found.items()}


@examples(60)
@given(size=sizes, prompt=prompts(), multimask=st.booleans(), logits=st.booleans())
def test_predict_gives_masks_of_the_images_size_or_one_line(size, prompt, multimask, logits):
    predictor = predictor_at(strict=True)
    predictor.set_image(picture(*size))
    try:
        masks, ious, low = predictor.predict(**prompt, multimask_output=multimask, return_logits=logits)
    except InputError as error:
        one_line(error)
        assert prompt  # no prompt at all is SAM's "everything here"
        return
    count = 3 if multimask else 1
    assert masks.shape == (count, *size) and masks.dtype == (np.float32 if logits else bool)
    assert ious.shape == (count,) and ious.dtype == np.float32 and np.isfinite(ious).all()
    assert low.shape == (count, 16, 16) and low.dtype == np.float32 and np.isfinite(low).all()
    again = predictor.predict(**prompt, multimask_output=multimask, return_logits=logits)
    assert all(np.array_equal(one, other) for one, other in zip((masks, ious, low), again))


@examples(60)
@given(prompt=prompts())
def test_numbers_that_are_not_finite_are_always_refused_where_strict(prompt):
    predictor = predictor_at(strict=True)
    predictor.set_image(picture())
    finite = all(np.isfinite(values).all() for values in prompt.values())
    try:
        predictor.predict(**prompt)
        assert finite
    except InputError as error:
        one_line(error)


@examples(60)
@given(prompt=prompts(), multimask=st.booleans())
def test_any_prompt_is_answered_as_segment_anything_answers_it(prompt, multimask):
    ours, theirs = predictor_at(), segment_anything.SamPredictor(sam())
    for predictor in (ours, theirs):
        predictor.set_image(picture())
    wanted = theirs.predict(**prompt, multimask_output=multimask, return_logits=True)
    for mine, its in zip(ours.predict(**prompt, multimask_output=multimask, return_logits=True), wanted, strict=True):
        assert np.allclose(mine, its, atol=1e-4, equal_nan=True)


@examples(12)
@given(some=st.lists(sizes, min_size=2, max_size=3), ratio=st.sampled_from([1.0, 0.5, (0.3, 0.7), "auto"]))
def test_a_batch_is_its_images_one_by_one(some, ratio):
    images = [picture(*size, seed) for seed, size in enumerate(some)]
    together, alone = predictor_at(ratio), predictor_at(ratio)
    together.set_images(images)
    for index, image in enumerate(images):
        alone.set_image(image)
        box = np.array([0, 0, image.shape[1], image.shape[0]])
        _, ious, low = together.predict(box=box, image_index=index)
        _, wanted_ious, wanted = alone.predict(box=box)
        for mine, its in zip(together.route.groups, alone.route.groups, strict=True):
            chosen = mine.indices[index]
            assert torch.equal(chosen[chosen >= 0], its.indices[0])
        assert np.abs(low - wanted).max() < 1e-3 * max(1.0, np.abs(wanted).max())
        assert np.abs(ious - wanted_ious).max() < 1e-4


@examples(40)
@given(batch=st.integers(1, 9), seed=st.integers(0, 99))
def test_prompts_together_are_prompts_one_by_one(batch, seed):
    predictor = predictor_at()
    predictor.set_image(picture())
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 40, (batch, 2, 2)), axis=1).reshape(batch, 4) + np.array([0, 0, 2, 2])
    boxes = predictor.transform.apply_boxes_torch(torch.from_numpy(corners), (40, 52)).float()
    _, _, together = predictor.predict_torch(None, None, boxes)
    for index in range(batch):
        _, _, alone = predictor.predict_torch(None, None, boxes[index : index + 1])
        assert (together[index] - alone[0]).abs().max() < 1e-3 * max(1.0, float(alone.abs().max()))


ratios = st.one_of(
    st.floats(), st.integers(-2, 3), st.sampled_from([1.0, 0.0, 1 + 1e-9, 1e-300, -0.0, "auto", "", "all", None])
)


@examples(200)
@given(value=st.one_of(ratios, st.lists(ratios, max_size=4), st.tuples(ratios, ratios)))
def test_a_keep_ratio_is_taken_if_and_only_if_it_is_in_its_range(value):
    encoder = sam().image_encoder
    stages = len(encoder.config.stages)

    def proper(ratio) -> bool:
        return isinstance(ratio, (int, float)) and 0 < ratio <= 1

    if isinstance(value, (list, tuple)):
        good = len(value) == stages and all(map(proper, value))
    else:
        good = value == "auto" or proper(value)
    encoder.keep_ratio = 1.0
    try:
        encoder.keep_ratio = value
        assert good and encoder.keep_ratio == (tuple(value) if isinstance(value, list) else value)
    except InputError as error:
        one_line(error)
        assert not good and encoder.keep_ratio == 1.0


@examples(200)
@given(text=st.one_of(st.text(alphabet="0123456789.,-eainfuto ", max_size=8), st.floats(0.001, 1).map(str)))
def test_what_the_command_line_takes_for_a_keep_ratio_the_encoder_takes_too(text):
    try:
        value = parse_keep_ratio(text)
    except InputError as error:
        one_line(error)
        return
    if not isinstance(value, tuple) or len(value) == len(sam().image_encoder.config.stages):
        sam().image_encoder.keep_ratio = value


@examples(25)
@given(ratio=st.floats(1e-6, 1, exclude_max=True), batch=st.integers(1, 3))
def test_routing_keeps_exactly_its_share(ratio, batch):
    encoder = sam().image_encoder
    encoder.keep_ratio = ratio
    with torch.no_grad():
        encoder(torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch)))
    for group in encoder.last_route.groups:
        assert group.indices.shape == (batch, max(1, round(ratio * 16)))
        assert (group.indices.diff(dim=1) > 0).all() and group.indices.min() >= 0 and group.indices.max() < 16
        for image in range(batch):  # none that was left out is more important
            rest = torch.ones(16, dtype=torch.bool).index_fill(0, group.indices[image], False)
            left_out = group.scores[image, rest]
            assert not rest.any() or group.scores[image, group.indices[image]].min() >= left_out.max()


@examples(100)
@given(
    scores=arrays.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 30)), elements=st.integers(0, 4)),
    data=st.data(),
)
def test_top_tokens_against_a_sort_in_python(scores, data):
    count = data.draw(st.integers(1, scores.shape[1]))
    found = top_tokens(torch.from_numpy(scores), count)
    for row, own in zip(scores, found.tolist()):
        assert own == sorted(sorted(range(len(row)), key=lambda index: (-row[index], index))[:count])


grids = st.tuples(st.integers(1, 17), st.integers(1, 17))


@examples(100)
@given(grid=grids, window=st.integers(1, 9), batch=st.integers(1, 3))
def test_windows_and_back(grid, window, batch):
    geometry, tokens = Geometry(grid, window, "cpu"), grid[0] * grid[1]
    x = torch.arange(1.0, batch * tokens * 2 + 1).view(batch, tokens, 2)
    windows = geometry.to_windows(x, torch.full((2,), -7.0))
    assert windows.shape == (batch * geometry.num_windows, window**2, 2)
    assert torch.equal(geometry.from_windows(windows, batch), x)
    assert (windows == -7).sum() == 2 * batch * (geometry.num_windows * window**2 - tokens)
    # One window holds the tokens that integer division puts there.
    rows_, columns = torch.arange(tokens) // grid[1], torch.arange(tokens) % grid[1]
    across = -(-grid[1] // window)
    for number in range(geometry.num_windows):
        inside = (rows_ // window * across + columns // window) == number
        assert sorted(x[0, inside, 0].tolist()) == sorted(v for v in windows[number, :, 0].tolist() if v > 0)


@examples(100)
@given(grid=grids, window=st.integers(1, 9), data=st.data())
def test_what_is_gathered_is_scattered_back(grid, window, data):
    tokens = grid[0] * grid[1]
    chosen = sorted(data.draw(st.sets(st.integers(0, tokens - 1), min_size=1)))
    selection = Selection(torch.tensor([chosen, chosen]), Geometry(grid, window, "cpu"))
    x = torch.arange(2.0 * tokens).view(2, tokens, 1)
    changed = selection.scatter(x, selection.gather(x) + 1000)
    wanted = x.clone()
    wanted[:, chosen] += 1000
    assert torch.equal(changed, wanted)
    assert selection.rest.tolist() == [row for row in range(2 * tokens) if row % tokens not in chosen]


@examples(60)
@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_a_mask_survives_its_json(mask):
    record = annotation("a.jpg", Segment(mask, 0.5, Prompt(), 1.0))
    assert np.array_equal(coco_mask.decode(record["segmentation"]).astype(bool), mask)
    assert record["area"] == mask.sum() and record["size"] == list(mask.shape)
    check_rle(record["segmentation"], mask.shape, "mask", 1)  # counts without pycocotools
    read = Annotation(1, 1.0, None, record["segmentation"], mask.shape)
    assert np.array_equal(read.mask(), mask)
    counts = [0] if mask.T.flat[0] else []
    flat = mask.T.ravel()
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]
    counts += [int(run) for run in np.diff(edges)]
    assert np.array_equal(
        Annotation(1, 1.0, None, {"size": list(mask.shape), "counts": counts}, mask.shape).mask(), mask
    )
