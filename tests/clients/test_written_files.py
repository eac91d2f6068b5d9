# ruff: noqa: F811, I001 - fixtures
"""What is written for transformers, and commands on folders."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from helpers import tiny_sam
from PIL import Image
from safetensors.torch import load_file, save_file

import sam_bigltl
from clients.saved_models import folder, model  # noqa: F401 - fixtures
from clients.saved_models import (
    BOX,
    SIDE,
    assert_close,
    ours,
    photograph,
    saved,
    theirs,
)
from sam_bigltl import load_sam, save_sam
from sam_bigltl.convert.hub import save_pretrained
from sam_bigltl.convert.weight_files import weights_sha256
from sam_bigltl.data.files import sha256
from sam_bigltl.errors import InputError

transformers = pytest.importorskip("transformers")


# ---------------------------------------------------------------- what is written
def trained_here(**changes: Any) -> Any:
    """A Sam of ours, from SamModel's weights, with a LITTLE path."""
    sam = sam_bigltl.convert_sam(load_sam(changes.pop("path")), **changes)
    for layer in sam.mask_decoder.transformer.layers:  # SAM's own
        for norm in (layer.norm1, layer.norm2, layer.norm3, layer.norm4):
            norm.eps = 1e-5
    return sam


@pytest.mark.filterwarnings("error")
def test_written_for_transformers(folder, tmp_path):
    segment_anything = pytest.importorskip("segment_anything")
    sam = trained_here(path=folder)
    save_pretrained(sam, tmp_path / "new", format="transformers")
    names = ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    model, report = transformers.SamModel.from_pretrained(tmp_path / "new", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    found = theirs(model.eval())
    assert_close(found, ours(sam))
    assert_close(found, ours(sam, segment_anything.SamPredictor))
    assert_close(found, ours(load_sam(tmp_path / "new")))
    auto = transformers.AutoModel.from_pretrained(tmp_path / "new")
    assert type(auto) is transformers.SamModel


def test_the_processor_prepares_photographs_as_ours_does(folder, tmp_path):
    sam = trained_here(path=folder)
    save_pretrained(sam, tmp_path / "new", format="transformers")
    model = transformers.SamModel.from_pretrained(tmp_path / "new").eval()
    processor = transformers.SamProcessor.from_pretrained(tmp_path / "new")
    inputs = processor(images=photograph(), input_boxes=[[BOX]], return_tensors="pt")
    with torch.no_grad():
        found = model(**inputs, multimask_output=True)
    assert_close((found.pred_masks[0, 0].numpy(), found.iou_scores[0, 0].numpy()), ours(sam))
    assert transformers.SamImageProcessor.from_pretrained(tmp_path / "new").pad_size["height"] == SIDE


def test_segment_anythings_own_model_is_written(tmp_path):
    """Its norms keep their epsilon: ImageEncoderViT's default is not that of SAM's builders."""
    segment_anything = pytest.importorskip("segment_anything")
    sam = tiny_sam()
    assert sam.image_encoder.blocks[0].norm1.eps == 1e-5
    save_pretrained(sam, tmp_path, format="transformers")
    model = transformers.SamModel.from_pretrained(tmp_path).eval()
    assert_close(theirs(model), ours(sam, segment_anything.SamPredictor))


def test_half_precision_and_a_card(folder, tmp_path):
    sam = trained_here(path=folder)
    (tmp_path / "README.md").write_text("mine")
    save_pretrained(sam, tmp_path, torch.float16, format="transformers")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert transformers.SamModel.from_pretrained(tmp_path).dtype == torch.float16


@pytest.mark.parametrize("ratio", [0.5, (1.0, 0.5), "auto"])
def test_a_keep_ratio_has_no_place_in_transformers(folder, tmp_path, ratio):
    sam = trained_here(path=folder)
    sam.image_encoder.keep_ratio = ratio
    with pytest.raises(InputError, match="keep_ratio") as caught:
        save_pretrained(sam, tmp_path / "new", format="transformers")
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_models_that_transformers_has_no_place_for(folder, tmp_path):
    mini = sam_bigltl.sam_model_registry["vit_mini"]()
    hooked = load_sam(folder)
    hooked.image_encoder.blocks[0].adapter = torch.nn.Linear(2, 2)
    other = load_sam(folder)
    other.mask_decoder.__class__ = type("Other", (type(other.mask_decoder),), {})
    grey = load_sam(folder)
    grey.pixel_mean = grey.pixel_mean * 0
    for sam, text in ((mini, "stem"), (hooked, "blocks.0.adapter"), (other, "Other"), (grey, "normalises")):
        with pytest.raises(InputError, match=text):
            save_pretrained(sam, tmp_path / "new", format="transformers")
    with pytest.raises(InputError, match='"transformers"'):
        save_pretrained(hooked, tmp_path / "new", format="onnx")
    assert not (tmp_path / "new").exists()


# ---------------------------------------------------------------- commands
def command(*words: Any) -> None:
    from sam_bigltl.cli import main

    main([str(word) for word in words])


@pytest.mark.usefixtures("one_thread")
def test_convert_takes_and_writes_folders(model, folder, tmp_path, capsys):
    command("convert", folder, tmp_path / "big.safetensors")
    big = load_sam(tmp_path / "big.safetensors")
    assert big.image_encoder.config.little_dim == 8
    assert_close(ours(big), theirs(model))
    command("convert", tmp_path / "big.safetensors", tmp_path / "new", "--format", "transformers")
    assert "little path left out" in capsys.readouterr().out
    assert_close(theirs(transformers.SamModel.from_pretrained(tmp_path / "new").eval()), theirs(model))
    for words in (["--little-dim", 8], ["--warm-start", folder]):
        with pytest.raises(SystemExit):
            command("convert", folder, tmp_path / "other", "--format", "transformers", *words)
        assert "transformers has no place" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("convert", folder, tmp_path / "a.safetensors", "--format", "transformers")
    assert "writes a folder" in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_segment_takes_folders(folder, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.fromarray(photograph()).save(tmp_path / "photos" / "a.png")
    command("segment", tmp_path / "photos" / "a.png", "--box", "5,4,40,30", "--checkpoint", folder, "--out",
            tmp_path / "one")  # fmt: skip
    assert list((tmp_path / "one").iterdir())
    (tmp_path / "prompts.json").write_text(json.dumps({"a.png": [{"box": BOX}]}))
    words = ["segment", tmp_path / "photos", "--prompts", tmp_path / "prompts.json", "--checkpoint", folder]
    command(*words, "--out", tmp_path / "many")
    command(*words, "--out", tmp_path / "many")  # goes on: the model is known again by its folder
    assert list((tmp_path / "many").iterdir())


@pytest.mark.usefixtures("one_thread")
def test_eval_takes_folders_and_tells_them_apart(model, folder, data, capsys):
    words = ["eval", "--annotations", data.json, "--images", data.images, "--output", data.out, "--prompts", "box"]
    command(*words, "--checkpoint", folder)
    before = json.loads((data.out / "results.json").read_text())["settings"]["checkpoint_sha256"]
    assert before == sha256(folder / "model.safetensors")
    sharded = saved(model, folder.parent / "shards", max_shard_size="100KB")
    digest = weights_sha256(sharded)
    assert digest == weights_sha256(sharded / "model.safetensors.index.json") != before
    shard = sorted(sharded.glob("*.safetensors"))[3]
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard)
    assert weights_sha256(sharded) != digest


def test_others_that_take_a_checkpoint_take_folders(folder, tmp_path):
    from sam_bigltl.convert.classifiers import open_classifier
    from sam_bigltl.demo.engine import Engine

    assert open_classifier("", 3, backbone=folder)(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 3)
    assert Engine(folder, torch.device("cpu")).sam.image_encoder.img_size == SIDE
    with pytest.raises(InputError, match="not vit_b"):
        sam_bigltl.sam_model_registry["vit_b"](folder)
    classifier = open_classifier("bigltl_tiny_patch16_224", 3, {"img_size": 32, "depth": 2})
    (tmp_path / "classifier").mkdir()
    save_file(classifier.state_dict(), tmp_path / "classifier" / "model.safetensors")
    found = open_classifier("bigltl_tiny_patch16_224", 3, {"img_size": 32, "depth": 2}, tmp_path / "classifier")
    assert torch.equal(found.head.weight, classifier.head.weight)
    for path in (folder, tmp_path / "none"):  # bench looks before it starts its processes
        with pytest.raises(SystemExit):
            command("bench", "--models", "bigltl_b", "vit_b", "--checkpoint", path, "--output", tmp_path / "out")


@pytest.mark.parametrize("write", ["file", "sam_bigltl", "transformers"])
def test_an_int8_encoder_is_no_file(folder, tmp_path, write):
    """It was written without the layers in int8, as a file that nothing could read."""
    sam = load_sam(folder)
    sam.image_encoder.optimize("int8")
    with pytest.raises(InputError, match="save it before"):
        if write == "file":
            save_sam(sam, tmp_path / "new" / "a.safetensors")
        else:
            save_pretrained(sam, tmp_path / "new", format=write)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_ours_keeps_its_keep_ratio(folder, tmp_path):
    sam = trained_here(path=folder)
    sam.image_encoder.keep_ratio = 0.5
    save_pretrained(sam, tmp_path / "new")
    assert load_sam(tmp_path / "new").image_encoder.keep_ratio == 0.5


@pytest.mark.parametrize("path", [None, 3, {}, io.BytesIO()], ids=lambda path: type(path).__name__)
def test_what_is_no_path(path):
    with pytest.raises(InputError, match="load_sam reads a file or folder"):
        load_sam(path)
