"""Model files that carry their setting: loaded as set, they do what is done by hand; what cannot be is one line."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam
from PIL import Image
from pycocotools import mask as mask_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sam_bigltl import InputError, SamPredictor, load_sam, save_sam
from sam_bigltl.cli import demo, evaluate, main
from sam_bigltl.convert.hub import from_pretrained, save_pretrained
from sam_bigltl.convert.tuned import FORMATS, Setting, read_setting
from sam_bigltl.fast.choice import check, choose

BOX = np.array([5, 5, 40, 30])
HALF = Setting("bfloat16", keep_ratio=0.5)


def runs(dtype: str, native: bool) -> bool:
    try:
        check(torch.device("cpu"), dtype, native)
    except InputError:
        return False
    return True


@pytest.fixture(scope="module")
def sam():
    return dense_sam(dense_config(little_dim=8))


def written(sam, path: Path, setting: Setting | None = HALF) -> Path:
    save_sam(sam, path / "model of mine.safetensors", setting=setting)
    return path / "model of mine.safetensors"


def with_metadata(source: Path, target: Path, about: str) -> Path:
    """The tensors of a file beside other words in its header."""
    save_file(load_file(source), target, metadata={"sam_bigltl": about})
    return target


def masks_of(sam) -> np.ndarray:
    predictor = SamPredictor(sam)
    predictor.set_image(picture())
    return predictor.predict(box=BOX, return_logits=True)[0]


@pytest.mark.parametrize(("form", "ratio"), [
    *((form, 0.5) for form in FORMATS), *((("bfloat16", False), ratio) for ratio in (1.0, (0.5, 0.25), "auto")),
], ids=str)  # fmt: skip
def test_tuned_is_what_is_done_by_hand(sam, tmp_path, form, ratio):
    dtype, native = form
    if not runs(dtype, native):
        pytest.skip("not on this processor")
    path = written(sam, tmp_path, Setting(dtype, native, ratio))
    by_hand = load_sam(path)
    assert by_hand.image_encoder.keep_ratio == 1.0 and next(by_hand.image_encoder.parameters()).dtype == torch.float32
    by_hand.image_encoder.optimize(dtype, native=native)
    by_hand.image_encoder.keep_ratio = ratio
    tuned = load_sam(path, tuned=True)
    assert tuned.image_encoder.keep_ratio == ratio
    assert bool(tuned.image_encoder.kernels_dtype) == native
    assert np.array_equal(masks_of(tuned), masks_of(by_hand))


def test_the_weights_stay_as_they_are(sam, tmp_path):
    plain, path = tmp_path / "plain.safetensors", written(sam, tmp_path, Setting("int8", keep_ratio=0.5))
    save_sam(sam, plain)
    one, other = load_file(plain), load_file(path)
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["sam_bigltl"])
    assert about["setting"] == {"dtype": "int8", "native": False, "keep_ratio": 0.5, "focus": False}
    # nothing that has been made int8 can be written, tuned or not
    with pytest.raises(InputError, match="int8 layers have no weights"):
        save_sam(load_sam(path, tuned=True), tmp_path / "again.safetensors", setting=HALF)


@pytest.mark.parametrize("setting", [
    Setting(), HALF, Setting("int8", True, (1.0, 0.25)), Setting("int8", False, "auto"), Setting(keep_ratio=0.3),
    Setting("float32", False, 0.0625, True),
], ids=str)  # fmt: skip
def test_settings_as_json(setting):
    assert Setting.from_json(json.loads(json.dumps(setting.as_json()))) == setting


WRONG = [
    None, [], "int8", 3, {"dtype": "int4"}, {"native": 1}, {"native": "no"},
    {"focus": 1}, {"keep_ratio": 0}, {"keep_ratio": 1.01}, {"keep_ratio": float("nan")}, {"keep_ratio": "half"},
    {"keep_ratio": []}, {"keep_ratio": [0.5, "auto"]}, {"keep_ratio": [[0.5]]}, {"keep_ratio": True},
    {"keep_ratio": None}, {"dtype": ["int8"]}, {"dtype": {}}, {"speed": "much"}, {"dtype": "x" * 10_000},
]  # fmt: skip


@pytest.mark.parametrize("content", WRONG, ids=lambda content: str(content)[:40])
def test_a_damaged_setting_is_one_line(sam, tmp_path, content):
    path = with_metadata(written(sam, tmp_path), tmp_path / "odd.safetensors", json.dumps({"setting": content}))
    with pytest.raises(InputError, match="odd.safetensors carries a setting that cannot be used") as caught:
        load_sam(path, tuned=True)
    assert "without tuned=True" in str(caught.value) and len(str(caught.value)) < 500
    assert load_sam(path).image_encoder.keep_ratio == 1.0  # its weights are as good as ever


def test_a_setting_for_another_model_is_one_line(sam, tmp_path):
    three = json.dumps({"setting": Setting(keep_ratio=(1.0, 0.5, 0.5)).as_json()})
    path = with_metadata(written(sam, tmp_path), tmp_path / "odd.safetensors", three)
    with pytest.raises(InputError, match=r"odd.safetensors carries a setting .*3 values, but the encoder has 2"):
        load_sam(path, tuned=True)
    with pytest.raises(InputError, match="3 keep_ratio values, but the encoder has 2 stages"):
        save_sam(sam, tmp_path / "new.safetensors", setting=Setting(keep_ratio=(1.0, 0.5, 0.5)))
    with pytest.raises(InputError, match="this model is dense"):
        save_sam(dense_sam(), tmp_path / "new.safetensors", setting=HALF)
    with pytest.raises(InputError, match="no focus"):
        save_sam(sam, tmp_path / "new.safetensors", setting=Setting(keep_ratio=0.5, focus=True))
    with pytest.raises(InputError, match="no setting"):
        save_sam(sam, tmp_path / "new.safetensors", setting=Setting("float64"))
    assert not (tmp_path / "new.safetensors").exists()


def test_files_without_a_setting(sam, tmp_path):
    plain = written(sam, tmp_path, None)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    for path in (plain, tmp_path / "sam.pth"):
        with pytest.raises(InputError, match="carries no setting: write it with sam-bigltl tune, or load it without"):
            load_sam(path, tuned=True)
        load_sam(path)
    with pytest.raises(InputError, match="no checkpoint at"):
        load_sam(tmp_path / "none.safetensors", tuned=True)
    (tmp_path / "cut.safetensors").write_bytes(plain.read_bytes()[:100])
    with pytest.raises(InputError, match="cut.safetensors"):
        load_sam(tmp_path / "cut.safetensors", tuned=True)


def test_a_machine_that_cannot(sam, tmp_path, monkeypatch):
    path = written(sam, tmp_path, Setting("int8", True, 0.5))
    monkeypatch.setenv("SAM_BIGLTL_CPU_LEVEL", "none")
    with pytest.raises(InputError, match=r"int8 with C\+\+ kernels.*not 'none'.*tune it on this machine, or load"):
        load_sam(path, tuned=True)
    monkeypatch.delenv("SAM_BIGLTL_CPU_LEVEL")
    assert load_sam(path).image_encoder.keep_ratio == 1.0
    for setting in (Setting("int8"), Setting("bfloat16", True)):
        with pytest.raises(InputError, match="does not run here .*on the CPU only, not on cuda"):
            read_setting(written(sam, tmp_path, setting), torch.device("cuda"))
    assert read_setting(written(sam, tmp_path), torch.device("cuda")) == HALF
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(InputError, match="oneDNN"):
        load_sam(written(sam, tmp_path, Setting("int8")), tuned=True)


def test_folders_of_the_hub(sam, tmp_path):
    save_pretrained(sam, tmp_path / "model", setting=HALF)
    tuned = SamPredictor.from_pretrained(tmp_path / "model", tuned=True).model
    assert tuned.image_encoder.keep_ratio == 0.5 and np.array_equal(
        masks_of(tuned), masks_of(load_sam(tmp_path / "model", tuned=True))
    )
    assert next(tuned.image_encoder.parameters()).dtype == torch.bfloat16
    assert from_pretrained(tmp_path / "model", keep_ratio=0.25, tuned=True).image_encoder.keep_ratio == 0.25
    plain = from_pretrained(tmp_path / "model")
    assert plain.image_encoder.keep_ratio == 1.0 and next(plain.image_encoder.parameters()).dtype == torch.float32
    save_pretrained(sam, tmp_path / "plain")
    with pytest.raises(InputError, match="plain carries no setting"):
        from_pretrained(tmp_path / "plain", tuned=True)
    with pytest.raises(InputError, match="no place for a setting"):
        save_pretrained(sam, tmp_path / "theirs", format="transformers", setting=HALF)


# ---------------------------------------------------------------- the command line
@pytest.fixture
def photo(tmp_path) -> Path:
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def segmented(*arguments: object, out: Path) -> np.ndarray:
    main(["segment", *map(str, arguments), "--device", "cpu", "--out", str(out)])
    return mask_utils.decode(json.loads((out / "photo_masks.json").read_text())[0]["segmentation"])


def test_segment(sam, tmp_path, photo, capsys):
    checkpoint = written(sam, tmp_path, Setting("bfloat16", keep_ratio=(0.5, 0.25)))
    given = [photo, "--box", "5,5,40,30", "--checkpoint", checkpoint]
    tuned = segmented(*given, "--tuned", out=tmp_path / "tuned")
    assert "in bfloat16 at keep_ratio 0.5/0.25" in capsys.readouterr().out
    by_hand = segmented(*given, "--dtype", "bfloat16", "--no-native", "--keep-ratio", "0.5,0.25", out=tmp_path / "hand")
    assert np.array_equal(tuned, by_hand)
    capsys.readouterr()
    other = segmented(*given, "--tuned", "--keep-ratio", "1.0", out=tmp_path / "other")
    assert "in bfloat16 at keep_ratio 1\n" in capsys.readouterr().out
    assert np.array_equal(other, segmented(*given, "--dtype", "bfloat16", "--no-native", out=tmp_path / "full"))


def test_segment_a_folder(sam, tmp_path, photo):
    (tmp_path / "prompts.json").write_text('{"photo.png": [{"box": [5, 5, 40, 30]}]}')
    given = [tmp_path, "--prompts", tmp_path / "prompts.json", "--checkpoint", written(sam, tmp_path)]
    tuned = segmented(*given, "--tuned", out=tmp_path / "tuned")
    by_hand = segmented(*given, "--dtype", "bfloat16", "--no-native", "--keep-ratio", 0.5, out=tmp_path / "hand")
    assert np.array_equal(tuned, by_hand)
    one, other = (json.loads((tmp_path / name / "settings.json").read_text()) for name in ("tuned", "hand"))
    assert one == other and one["dtype"] == "bfloat16" and one["keep_ratio"] == 0.5


@pytest.mark.parametrize(("options", "words"), [
    (["--tuned", "--dtype", "float32"], "leave --dtype and --native out"),
    (["--tuned", "--native"], "leave --dtype and --native out"),
    (["--tuned"], "carries no setting"),
])  # fmt: skip
def test_one_line(sam, tmp_path, photo, capsys, options, words):
    checkpoint = written(sam, tmp_path, None)
    with pytest.raises(SystemExit) as end:
        segmented(photo, "--box", "5,5,40,30", "--checkpoint", checkpoint, *options, out=tmp_path / "out")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error and not (tmp_path / "out").exists()


def parsed(command, *arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([*map(str, arguments), "--device", "cpu"])


@pytest.fixture
def jobs(monkeypatch) -> list:
    """What the evaluation is asked to do."""
    found: list = []
    monkeypatch.setattr(evaluate, "run_job", found.append)
    return found


def test_eval(sam, tmp_path, jobs):
    files = ["--annotations", "a.json", "--images", "b", "--output", "c", "--checkpoint"]
    path = written(sam, tmp_path)
    evaluate.run(parsed(evaluate, *files, path, "--tuned"))
    evaluate.run(parsed(evaluate, *files, path, "--tuned", "--keep-ratio", 1, 0.25))
    evaluate.run(parsed(evaluate, *files, path))
    evaluate.run(parsed(evaluate, *files, path, "--dtype", "auto"))
    here = choose(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    auto = jobs.pop()
    assert (auto.precision, auto.native) == (here.dtype, here.native)
    assert [(job.precision, job.native, job.plan.keep_ratios) for job in jobs] == [
        ("bfloat16", False, (0.5,)), ("bfloat16", False, (1.0, 0.25)), ("float32", False, (1.0,))
    ]  # fmt: skip
    stages = written(sam, tmp_path, Setting("bfloat16", keep_ratio=(0.5, 0.25)))
    with pytest.raises(InputError, match="give --keep-ratio"):
        evaluate.run(parsed(evaluate, *files, stages, "--tuned"))
    with pytest.raises(InputError, match="--tuned is, too"):
        evaluate.run(parsed(evaluate, *files[:-1], "--model", "a:b", "--tuned"))


def test_demo(sam, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    import sam_bigltl.demo.app as app
    import sam_bigltl.demo.engine as engine
    import sam_bigltl.demo.everything as everything

    class Served(Exception):
        pass

    def serve(engine, settings, *_):
        raise Served(engine.format, settings.keep_ratio)

    monkeypatch.setattr(app, "Demo", serve)
    monkeypatch.setattr(engine, "Engine", lambda *given: SimpleNamespace(format=given[2:4], sam=None))
    monkeypatch.setattr(everything, "find_options", lambda *_: None)
    path, here = written(sam, tmp_path), choose(torch.device("cpu"))
    asked = {("--tuned",): (("bfloat16", False), 0.5), ("--tuned", "--keep-ratio", "1"): (("bfloat16", False), 1.0),
             ("--dtype", "float32"): (("float32", False), 0.5), (): ((here.dtype, here.native), 0.5)}  # fmt: skip
    for options, wanted in asked.items():
        with pytest.raises(Served) as end:
            demo.run(parsed(demo, "--checkpoint", path, *options))
        assert end.value.args == wanted
