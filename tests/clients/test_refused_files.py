# ruff: noqa: F811, I001 - fixtures
"""Files of transformers that do not hold what SAM computes are refused in one line."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from clients.saved_models import folder, model  # noqa: F401 - fixtures
from clients.saved_models import (
    as_bins,
    refusal,
    sam_model,
    saved,
)
from sam_bigltl import load_sam
from sam_bigltl.convert.hub import from_pretrained
from sam_bigltl.errors import InputError

transformers = pytest.importorskip("transformers")


# ---------------------------------------------------------------- what is refused
@pytest.mark.parametrize("part,key,value", [
    ("vision_config", "hidden_act", "relu"), ("vision_config", "layer_norm_eps", 1e-5),
    ("prompt_encoder_config", "hidden_act", "gelu_new"), ("mask_decoder_config", "hidden_act", "gelu"),
    ("vision_config", "num_attention_heads", "4"), ("prompt_encoder_config", "image_size", 32),
    ("vision_config", "image_size", 80), ("vision_config", "window_size", None), (None, "model_type", "sam2"),
    (None, "vision_config", 3), ("vision_config", "global_attn_indexes", "1"),
    ("mask_decoder_config", "layer_norm_eps", "1e-6"),
])  # fmt: skip
def test_configurations_that_sam_does_not_compute(folder, part, key, value):
    content = json.loads((folder / "config.json").read_text())
    (content if part is None else content[part])[key] = value
    (folder / "config.json").write_text(json.dumps(content))
    message = refusal(folder)
    assert str(folder / "config.json") in message and (part is None or f"{part}.{key}" in message)


@pytest.mark.parametrize("change", [{"num_attention_heads": 8}, {"window_size": 2}, {"global_attn_indexes": [0]}])
def test_a_configuration_of_other_sizes(folder, change):
    content = json.loads((folder / "config.json").read_text())
    content["vision_config"] |= change
    (folder / "config.json").write_text(json.dumps(content))
    assert "do not fit" in refusal(folder)


@pytest.mark.parametrize("part,change", [
    ("vision_config", {"use_rel_pos": False}), ("vision_config", {"qkv_bias": False}),
    ("vision_config", {"use_abs_pos": False}), ("vision_config", {"num_hidden_layers": 3}),
    ("mask_decoder_config", {"num_hidden_layers": 1}), ("vision_config", {"window_size": 10**12}),
])  # fmt: skip
def test_tensors_that_transformers_would_leave_out(folder, part, change):
    content = json.loads((folder / "config.json").read_text())
    content[part] |= change
    (folder / "config.json").write_text(json.dumps(content))
    assert f"{part}.{next(iter(change))} = " in refusal(folder)


@pytest.mark.parametrize(
    "part", ["rel_pos", "qkv.bias", "pos_embed", "layers.3.attn.proj.bias", "positional_embedding"]
)
def test_tensors_that_are_missing(folder, part):
    """They are not taken for zeros where the configuration says that the model has them."""
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if part not in name}, folder / "model.safetensors")
    message = refusal(folder)
    assert "Missing key" in message or "it has no image_encoder.pos_embed" in message


@pytest.mark.parametrize("key,value", [
    ("image_mean", [0.5, 0.5, 0.5]), ("do_normalize", False), ("rescale_factor", 1.0), ("size", {"longest_edge": 32}),
])  # fmt: skip
def test_photographs_prepared_in_another_way(folder, key, value):
    path = folder / "processor_config.json"
    content = json.loads(path.read_text())
    content["image_processor"][key] = value
    path.write_text(json.dumps(content))
    assert f"prepares photographs with {key}" in refusal(folder)
    path.rename(folder / "preprocessor_config.json")
    (folder / "preprocessor_config.json").write_text(json.dumps(content["image_processor"]))
    assert f"prepares photographs with {key}" in refusal(folder)


def test_two_matrices_of_positions(folder):
    state = load_file(folder / "model.safetensors")
    matrix = state["shared_image_embedding.positional_embedding"]
    both = state | {"prompt_encoder.shared_embedding.positional_embedding": matrix.clone()}
    save_file(both, folder / "model.safetensors")
    load_sam(folder)
    save_file(both | {"prompt_encoder.shared_embedding.positional_embedding": matrix + 1}, folder / "model.safetensors")
    assert "one matrix for both" in refusal(folder)


def test_heads_that_nothing_tells(tmp_path):
    folder = saved(sam_model(vision={"use_rel_pos": False}), tmp_path)
    (folder / "config.json").unlink()
    assert "config.json" in refusal(folder)


def test_folders_of_something_else(model, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "holds no model.safetensors" in refusal(tmp_path / "empty")
    assert "holds no model.safetensors" in refusal(tmp_path / "empty", from_pretrained)
    (tmp_path / "empty" / "sam_vit_b.pth").touch()
    assert "sam_vit_b.pth" in refusal(tmp_path / "empty")
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n")
    message = refusal(folder)
    assert str(folder / "model.safetensors") in message and "git lfs pull" in message


def test_shards_that_are_not_whole(model, tmp_path):
    folder = saved(model, tmp_path / "tiny", max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("*.safetensors"))
    assert "is one of" in refusal(shards[0])
    content = shards[1].read_bytes()
    shards[1].unlink()
    assert f"{shards[1].name} is not there" in refusal(folder)
    shards[1].write_bytes(content[:-1])
    assert f"{shards[1]} is cut short" in refusal(folder)
    save_file({"other": torch.zeros(1)}, shards[1])
    assert f"its index has in {shards[1].name}" in refusal(index)
    for wrong in ({}, {"weight_map": {}}, {"weight_map": {"a": 3}}, [], {"weight_map": {"a": "../a.safetensors"}}):
        index.write_text(json.dumps(wrong))
        assert str(index) in refusal(folder)


def test_a_malicious_shard_is_not_run(model, tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "proof"),)

    folder = saved(model, tmp_path / "tiny")
    as_bins(folder, 3)
    torch.save({"x": Malicious()}, folder / "pytorch_model-00002-of-00003.bin")
    assert "holds more than tensors" in refusal(folder) and not (tmp_path / "proof").exists()


@pytest.mark.parametrize(
    "name, advice",
    [
        ("https://example.org/sam.pth", "download it first"),
        ("facebook/sam-vit-base", "from_pretrained"),
        ("nowhere/model.safetensors", "folder of transformers$"),
    ],
)
def test_what_is_not_on_this_machine(name, advice):
    with pytest.raises(InputError, match=advice):
        load_sam(name)
