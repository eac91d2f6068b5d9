"""`tune`: what it measures, against independent computations, on tiny models with random weights."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from little_models import dense_sam, small_reference_sam
from segment_anything import SamPredictor as PlainPredictor

import sam_bigltl
from sam_bigltl import InputError, load_sam
from sam_bigltl.tuning import agreement, choice, original, run
from sam_bigltl.tuning.result import Row
from sam_bigltl.tuning.settings import Setting

pytestmark = pytest.mark.usefixtures("one_thread")


def photographs(count: int = 12, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Pictures uint8 RGB that have nothing in common: a few coloured rectangles each."""
    rng = np.random.default_rng(3)
    pictures = []
    for _ in range(count):
        picture = np.full((*size, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        for _ in range(6):
            (top, bottom), (left, right) = (np.sort(rng.integers(0, side, 2)) for side in size)
            picture[top : bottom + 4, left : right + 4] = rng.integers(0, 256, 3)
        pictures.append(picture)
    return pictures


QUICK = dict(
    fit=4, measure=4, objects=3, keep_ratios=(1.0, 0.5), dtypes=("float32", "bfloat16"), budget=None, say=lambda _: None
)  # fmt: skip


@pytest.fixture(scope="module")
def sam():
    return small_reference_sam()


def by_setting(tuned, *about) -> Row:
    return next(row for row in tuned.rows if row.setting == Setting(*about))


def test_a_sam_is_tuned_and_left_as_it_was(sam, tmp_path):
    before = copy.deepcopy(sam.state_dict())
    tuned = sam_bigltl.tune(sam, photographs(), output=tmp_path, target=0.5, **QUICK)

    assert all(torch.equal(value, before[name]) for name, value in sam.state_dict().items())
    exact = by_setting(tuned, "float32", False, 1.0)
    assert exact.agreement > 0.999 and exact.embedding_error < 1e-8 and exact.score_drift < 1e-5
    half = by_setting(tuned, "float32", False, 0.5)
    assert half.embedding_error > 1e-4 and half.agreement < exact.agreement
    assert by_setting(tuned, "bfloat16", False, 1.0).embedding_error > 1e-7
    assert all(row.speedup == pytest.approx(tuned.reference_seconds / row.seconds) for row in tuned.rows)
    assert len(tuned.photographs["fit"]) == len(tuned.photographs["measure"]) == 4
    assert not {*tuned.photographs["fit"]} & {*tuned.photographs["measure"]}
    focused = by_setting(tuned, "float32", False, 0.5, True)
    assert 4 <= focused.prompts <= 8 and focused.unfocused is not None  # two boxes a photograph at most

    good = [row for row in tuned.rows if row.agreement >= 0.5 and not row.setting.focus]
    assert tuned.reached and tuned.row.seconds == min(row.seconds for row in good)
    again = load_sam(tuned.path, tuned=True).image_encoder
    assert again.keep_ratio == tuned.setting.keep_ratio == tuned.sam.image_encoder.keep_ratio
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(image), tuned.sam.image_encoder(image))


def test_an_interrupted_tuning_measures_no_photograph_twice(sam, tmp_path, monkeypatch):
    calls, real = [], run.measure

    def counted(predictor, seen, setting):
        calls.append((seen.key, setting))
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(predictor, seen, setting)

    monkeypatch.setattr(run, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        sam_bigltl.tune(sam, photographs(), output=tmp_path, **QUICK)
    with open(tmp_path / "journal.jsonl", "a") as file:
        file.write('{"kind": "measu')  # torn by a power cut
    tuned = sam_bigltl.tune(sam, photographs(), output=tmp_path, **QUICK)
    assert len(calls) == 1 + len({*calls})  # the one that was interrupted

    monkeypatch.setattr(run, "measure", real)
    whole = sam_bigltl.tune(sam, photographs(), **QUICK)
    timeless = [{**row.__dict__, "seconds": 0, "speedup": 0} for row in sorted(whole.rows, key=str_of)]
    assert timeless == [{**row.__dict__, "seconds": 0, "speedup": 0} for row in sorted(tuned.rows, key=str_of)]

    with pytest.raises(InputError, match=r"holds a tuning of something else \(options differ\): use another --output"):
        sam_bigltl.tune(sam, photographs(), output=tmp_path, **{**QUICK, "objects": 2})
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines[1:3]] == ["plan", "fitted"] and lines[-1]["kind"] == "times"
    (tmp_path / "journal.jsonl").write_text('{"about": 1}\nnonsense\n')
    with pytest.raises(InputError, match="--restart"):
        sam_bigltl.tune(sam, photographs(), output=tmp_path, **QUICK)
    restarted = sam_bigltl.tune(sam, photographs(), output=tmp_path, restart=True, **QUICK)
    assert len(restarted.rows) == len(whole.rows)


def str_of(row: Row) -> str:
    return str(row.setting)


def test_a_little_path_that_is_there_is_kept(sam, tmp_path):
    ours = sam_bigltl.convert_sam(sam)
    state = copy.deepcopy(ours.state_dict())
    tuned = sam_bigltl.tune(ours, photographs(), output=tmp_path, **QUICK)
    kept = load_sam(tuned.path).state_dict()
    assert all(torch.equal(kept[name], value) for name, value in state.items())
    assert tuned.photographs["fit"] == []
    with pytest.raises(InputError, match="has a little path already"):
        sam_bigltl.tune(ours, photographs(), minutes=1, **QUICK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": 1.2}, "target"), ({"minutes": -1}, "minutes"), ({"budget": 0.0}, "budget"),
        ({"objects": 0}, "objects"), ({"keep_ratios": ()}, "keep_ratio"), ({"keep_ratios": (0.0,)}, "keep_ratio"),
        ({"dtypes": ("float8",)}, "float8"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named(sam, change, words):
    with pytest.raises(InputError, match=words) as caught:
        sam_bigltl.tune(sam, photographs(), **{**QUICK, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gained", [True, False])
def test_a_training_is_kept_where_it_gains(sam, tmp_path, monkeypatch, gained):
    """A stand-in for the training changes the little path; whether it gained decides what becomes of that."""
    pytest.importorskip("accelerate")
    from sam_bigltl.tuning import distil

    given, fits, real = [], [], run.warm_start

    def fit(model, images):
        images = list(images)
        fits.append(len(images))
        real(model, images)

    def train(student, teacher, photographs, minutes, ratios, folder, seed):
        given.extend(photographs)
        for transition in student.image_encoder.transitions:
            transition.up.bias.add_(1.0)
        return distil.Distilled((3, 2), 4.0, False, 4, 1, gained, {}, {})

    monkeypatch.setattr(run, "warm_start", fit)
    monkeypatch.setattr(distil, "distil", train)
    wanted = {**QUICK, "fit": 6, "dtypes": ("float32",)}
    trained = sam_bigltl.tune(sam, photographs(), output=tmp_path, minutes=1, **wanted)
    assert fits == ([6, 5] if gained else [6, 5, 6])  # one in five says when to stop
    assert len(given) == 6 and all(masks and masks[0]["size"] == [48, 64] for _, masks in given)
    assert ("nothing gained" in trained.about["training"]) != gained
    (stage,) = trained.stages
    assert stage["keep_ratio"] == "0.5" and (stage["trained_error"] > stage["fitted_error"] + 1e-4) == gained
    again = sam_bigltl.tune(sam, photographs(), output=tmp_path, minutes=1, **wanted)
    assert again.stages == trained.stages and len(fits) == (2 if gained else 3)


def test_three_photographs_and_alike_ones_are_refused(sam):
    with pytest.raises(InputError, match="3 photographs are too few"):
        sam_bigltl.tune(sam, photographs(3), **QUICK)
    with pytest.raises(InputError, match="all alike"):
        sam_bigltl.tune(sam, photographs(1) * 12, **QUICK)


# ---------------------------------------------------------------- the original
def test_the_original_is_segment_anything(sam):
    shared = original.original_of(sam_bigltl.convert_sam(sam))
    pixels = photographs(1)[0]
    boxes, points = np.array([[5.0, 6.0, 40.0, 30.0], [20, 10, 60, 44]]), np.array([[12.0, 9.0], [50, 40]])
    seen = original.see(shared, "a", pixels, boxes, points)
    plain = PlainPredictor(sam)
    plain.set_image(pixels)
    for index in range(2):
        mask, score, _ = plain.predict(box=boxes[index], multimask_output=False)
        np.testing.assert_array_equal(seen.masks["box"][index].numpy(), mask[0])
        assert seen.scores["box"][index].item() == pytest.approx(score[0], abs=1e-5)
        masks, scores, _ = plain.predict(points[index : index + 1], np.ones(1))
        assert seen.output[index] == scores.argmax()
        np.testing.assert_array_equal(seen.masks["point"][index].numpy(), masks[scores.argmax()])
    assert seen.embedding.shape == (1, 32, 4, 4)
    areas = [int(mask.sum()) for mask in seen.masks["box"]]
    assert seen.sizes("box") == ["small" if area <= 1024 else "medium" for area in areas]


def test_prompts_lie_in_the_objects_that_are_found(sam):
    for pixels in photographs(3):
        boxes, points = original.find_prompts(sam, pixels, most=4)
        assert 1 <= len(boxes) == len(points) <= 4
        height, width = pixels.shape[:2]
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all() and (boxes[:, 2] <= width).all()
        inside = (points >= boxes[:, :2]) & (points <= boxes[:, 2:] + 1)
        assert inside.all() and (points[:, 1] < height).all()
    (box,), _ = original.find_prompts(sam, pixels, most=1)  # neither the smallest nor the largest
    assert box.tolist() in original.find_prompts(sam, pixels, most=3)[0].tolist()
    ring = np.zeros((30, 40), bool)
    ring[5:25, 5:35] = True
    ring[9:21, 9:24] = False  # its thick side is the right one
    x, y = original._innermost(ring)
    assert ring[int(y), int(x)] and x > 24


def test_boxes_that_are_encoded_for_themselves_are_of_all_sizes(sam):
    boxes = np.zeros((8, 4))
    chosen = [
        agreement.focused_objects(original.Objects("a", boxes, boxes, boxes[:count], boxes, {}, {}, boxes))
        for count in (0, 1, 2, 3, 8)
    ]
    assert chosen == [[], [0], [0, 1], [0, 2], [2, 6]]


def test_large_photographs_are_shrunk_to_what_the_encoder_sees():
    picture = photographs(1, (300, 200))[0]
    assert original.shrunk(picture, 64).shape == (64, 43, 3)
    np.testing.assert_array_equal(original.shrunk(picture, 300), picture)


# ---------------------------------------------------------------- agreement
def test_mask_ious():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 5, 9, 7)) > 0.6
    first[4] = second[4] = False
    expected = [(a & b).sum() / (a | b).sum() for a, b in zip(first[:4], second[:4])]
    found = agreement.mask_ious(torch.tensor(first), torch.tensor(second))
    assert found == pytest.approx([*expected, 1.0])


def test_embedding_error_is_over_the_variance_within_channels():
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(1, 3, 5, 4)) + np.array([0, 100, -50.0])[None, :, None, None]
    other = embedding + 0.1 * rng.normal(size=embedding.shape)
    expected = ((other - embedding) ** 2).sum() / sum(20 * embedding[0, c].var() for c in range(3))
    found = agreement.embedding_error(torch.tensor(other), torch.tensor(embedding))
    assert found == pytest.approx(expected)


def measured(ious, kinds=("box", "point"), sizes=("small", "large"), switched=(None, True), error=0.25):
    return agreement.Measured(list(kinds), list(sizes), list(ious), [0.1, 0.3], list(switched), error, [0, 1])


def test_rows_summarise_all_prompts():
    parts = {"a": measured((1.0, 0.5)), "b": measured((0.95, 0.85), switched=(None, False), error=0.75)}
    setting = Setting("int8", True, 0.5)
    (row,) = choice.rows({setting: parts}, 3.0, {setting: 1.5})
    assert row.agreement == pytest.approx(0.825) and row.above_90 == 0.5 and row.prompts == 4
    assert row.worst == pytest.approx(np.percentile([1, 0.5, 0.95, 0.85], 5))
    assert row.by_size == {"small": pytest.approx(0.975), "medium": None, "large": pytest.approx(0.675)}
    assert row.by_prompt == {"box": pytest.approx(0.975), "point": pytest.approx(0.675)}
    assert (row.switched, row.embedding_error, row.speedup) == (0.5, 0.5, 2.0)
    assert row.score_drift == pytest.approx(0.2)


def test_the_fastest_that_keeps_the_target_is_chosen():
    def row(seconds, value, focus=False, ratio=0.5):
        setting = Setting("float32", False, ratio, focus)
        (made,) = choice.rows({setting: {"a": measured((value, value))}}, 1.0, {setting: seconds})
        return made

    rows = [row(0.1, 0.99, focus=True), row(0.2, 0.90), row(0.3, 0.95, ratio=0.75), row(0.4, 0.97, ratio=1.0)]
    assert choice.choose(rows, 0.95) == (rows[2].setting, True)
    assert choice.choose(rows, 0.89) == (rows[1].setting, True)
    assert choice.choose(rows, 0.98) == (rows[3].setting, False)  # none without boxes given: the most faithful


def test_boxes_given_are_compared_over_the_same_prompts():
    plain, focus = Setting(keep_ratio=0.5), Setting(keep_ratio=0.5, focus=True)
    own = replace(measured((0.9,), kinds=("box",), sizes=("small",), switched=(None,)), indices=[1])
    rows = choice.rows({plain: {"a": measured((0.2, 0.6))}, focus: {"a": own}}, 1.0, {plain: 1.0, focus: 1.0})
    assert next(row for row in rows if row.setting == focus).unfocused == 0.6


def test_other_weights_or_pictures_are_another_tuning(sam, tmp_path):
    """A decoder of one's own, or pictures that have the same names, must not be mixed with what the folder holds."""
    pictures = photographs()
    sam_bigltl.tune(sam, pictures, output=tmp_path, **QUICK)
    with pytest.raises(InputError, match=r"\(pixels differ\)"):
        sam_bigltl.tune(sam, [255 - picture for picture in pictures], output=tmp_path, **QUICK)
    other = copy.deepcopy(sam)
    with torch.no_grad():
        other.mask_decoder.iou_prediction_head.layers[-1].bias += 0.1
    with pytest.raises(InputError, match=r"\(weights differ\)"):
        sam_bigltl.tune(other, pictures, output=tmp_path, **QUICK)


def test_nothing_of_the_users_is_overwritten(sam, tmp_path):
    ours = tmp_path / "model.safetensors"
    sam_bigltl.save_sam(sam_bigltl.convert_sam(sam), ours)
    content = ours.read_bytes()
    (tmp_path / "training").mkdir()
    for model, words in ((str(ours), "would be overwritten"), (sam, "is no tuning's")):
        for restart in (False, True):
            with pytest.raises(InputError, match=words):
                sam_bigltl.tune(model, photographs(), output=tmp_path, restart=restart, **QUICK)
    assert ours.read_bytes() == content and {path.name for path in tmp_path.iterdir()} == {ours.name, "training"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(minutes=1, keep_ratios=(1.0,)), "training is for keep_ratios below 1"),
        (dict(minutes=1, keep_ratios=("auto",)), "training is for keep_ratios below 1"),
        (dict(keep_ratios="auto"), r"keep_ratios is a list of them, such as \['auto'\]"),
        (dict(keep_ratios=0.5), r"keep_ratios is a list of them, such as \[0.5\]"),
        (dict(dtypes="int8"), r"dtypes is a list of them, such as \['int8'\]"),
        (dict(dtypes=()), "there is no dtype to compare"),
    ],
)
def test_arguments_are_refused_before_the_work(sam, arguments, words):
    with pytest.raises(InputError, match=words):
        sam_bigltl.tune(sam, photographs(), **{**QUICK, **arguments})


def test_int8_is_refused_in_words():
    dense = dense_sam()
    dense.image_encoder.optimize("int8")
    with pytest.raises(InputError, match="takes a model in float32"):
        sam_bigltl.tune(dense, photographs(), **QUICK)


def test_training_without_float32_leaves_the_random_state(sam):
    state = torch.get_rng_state()
    tuned = sam_bigltl.tune(sam, photographs(), **{**QUICK, "dtypes": ("bfloat16",), "minutes": 0.01})
    assert torch.equal(state, torch.get_rng_state())
    assert [stage["keep_ratio"] for stage in tuned.stages] == ["0.5"]
    assert tuned.stages[0]["fitted_error"] > 0
