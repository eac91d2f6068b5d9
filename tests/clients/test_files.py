# ruff: noqa: F811, I001 - fixtures
"""Files as people have them: those of transformers' SamModel, SAM-HQ and MedSAM, read.

The files are written by the projects' own code, with tiny models, and what is loaded computes what they compute.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sam_bigltl
from clients.saved_models import folder, model  # noqa: F401 - fixtures
from clients.saved_models import (
    VISION,
    as_bins,
    assert_close,
    ours,
    refusal,
    sam_model,
    saved,
    theirs,
)
from sam_bigltl import SamPredictor, load_sam, save_sam
from sam_bigltl.convert.hub import from_pretrained
from sam_bigltl.convert.transformers_names import to_sam, to_transformers

transformers = pytest.importorskip("transformers")


# ---------------------------------------------------------------- names
def test_every_name_has_its_counterpart(model):
    names = set(model.state_dict())
    mapped = {name: to_sam(name) for name in names}
    assert None not in mapped.values()
    assert {back for name in mapped.values() for back in to_transformers(name)} == names
    for name in ("image_encoder.transitions.0.down.weight", "image_encoder.blocks.0.gamma"):
        assert to_transformers(name) == []
    assert to_sam("mask_decoder.hq_token.weight") is None and to_sam("image_encoder.pos_embed") is None


# ---------------------------------------------------------------- what is read
WAYS = {
    "folder": lambda folder: folder,
    "safetensors": lambda folder: folder / "model.safetensors",
    "shards": lambda folder: folder,
    "index": lambda folder: folder / "model.safetensors.index.json",
    "bin": lambda folder: folder,
    "bin, the file": lambda folder: folder / "pytorch_model.bin",
    "bin, sharded": lambda folder: folder,
    "without configuration": lambda folder: folder / "model.safetensors",
}


@pytest.mark.parametrize("way", WAYS)
def test_sam_model(model, tmp_path, way):
    sharded = way in ("shards", "index")
    folder = saved(model, tmp_path / "tiny", **({"max_shard_size": "100KB"} if sharded else {}))
    assert len(list(folder.glob("*.safetensors"))) > (2 if sharded else 0)
    if way.startswith("bin"):
        as_bins(folder, 3 if way == "bin, sharded" else 1)
    if way == "without configuration":  # the heads of the decoder, too, are then SAM's
        model = sam_model(num_attention_heads=8)
        model.save_pretrained(folder)
        (folder / "config.json").unlink()
    sam = load_sam(WAYS[way](folder))
    assert sam.image_encoder.config.num_heads == 4 and sam.image_encoder.config.global_layers == (1, 3)
    assert_close(ours(sam), theirs(model))


@pytest.mark.parametrize("vision", [
    {"use_rel_pos": False}, {"use_abs_pos": False}, {"qkv_bias": False}, {"window_size": 0},
    {"use_rel_pos": False, "use_abs_pos": False, "qkv_bias": False, "window_size": 14, "global_attn_indexes": []},
    {"window_size": 4, "global_attn_indexes": [2]},  # windows as large as the image: tensors do not tell them apart
])  # fmt: skip
def test_what_the_configuration_alone_says(tmp_path, vision):
    model = sam_model(vision=vision)
    sam = load_sam(saved(model, tmp_path))
    config, said = sam.image_encoder.config, VISION | vision
    assert config.global_layers == tuple(said["global_attn_indexes"] if said["window_size"] else range(4))
    assert config.window == said["window_size"] and config.num_heads == 4
    assert_close(ours(sam), theirs(model))


def test_a_decoder_of_other_sizes_stays_what_it_is_through_our_files(tmp_path):
    model = sam_model(num_attention_heads=2, layer_norm_eps=1e-3, iou_head_depth=4, iou_head_hidden_dim=24,
                      num_hidden_layers=3)  # fmt: skip
    sam = load_sam(saved(model, tmp_path / "a"))
    assert_close(ours(sam), theirs(model))
    save_sam(sam_bigltl.convert_sam(sam), tmp_path / "b.safetensors")
    assert_close(ours(load_sam(tmp_path / "b.safetensors")), theirs(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(model, tmp_path, dtype):
    rounded = {name: value.to(dtype).float() for name, value in model.state_dict().items()}
    model = sam_model().to(dtype)
    folder = saved(model, tmp_path)
    sam = load_sam(folder)
    assert next(sam.parameters()).dtype == torch.float32
    model = model.float()
    assert all(torch.equal(value, rounded[name]) for name, value in model.state_dict().items())
    assert_close(ours(sam), theirs(model))


def test_a_folder_in_the_hubs_cache(folder, model, tmp_path, monkeypatch):
    """Blobs, snapshots of links to them, and a reference, as huggingface_hub lays them out."""
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "cache" / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("a" * 40)
    for part in (repository / "blobs", repository / "refs", snapshot):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    for number, file in enumerate(folder.iterdir()):
        shutil.copy(file, repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    wanted = theirs(model)
    assert_close(ours(load_sam(snapshot)), wanted)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_close(ours(from_pretrained("someone/tiny", cache_dir=tmp_path / "cache")), wanted)
    assert str(snapshot) in refusal(repository)
    for blob in (repository / "blobs").iterdir():
        blob.unlink()
    assert "is a link to a file that is gone" in refusal(snapshot)


@pytest.mark.parametrize("kind", ["bin", "shards"])
def test_repositories_without_model_safetensors(model, tmp_path, monkeypatch, kind):
    constants = pytest.importorskip("huggingface_hub.constants")
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    folder = saved(model, repository / "snapshots" / ("a" * 40), max_shard_size="10MB" if kind == "bin" else "100KB")
    if kind == "bin":
        as_bins(folder, 1)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert_close(ours(SamPredictor.from_pretrained("someone/tiny", cache_dir=tmp_path).model), theirs(model))


def test_their_config_is_not_mistaken_for_ours(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"keep_ratio": 0.5}))
    assert from_pretrained(folder).image_encoder.keep_ratio == 1.0


def test_safetensors_come_before_bins(folder):
    shutil.copy(folder / "config.json", folder / "pytorch_model.bin")
    load_sam(folder)


# ---------------------------------------------------------------- SAM-HQ, encoders, adapters
def test_sam_hq_of_transformers(tmp_path, caplog):
    model = sam_model("SamHQ", vit_dim=32)
    model.save_pretrained(tmp_path)
    sam = load_sam(tmp_path)
    assert len(caplog.messages) == 1 and "without the HQ output" in caplog.messages[0]
    low, scores = ours(sam)
    plain = sam_model()  # SAM's part of the same weights, in SamModel
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    assert_close((low, scores), theirs(plain))


def test_sam_hqs_own_file(tmp_path, caplog):
    build = pytest.importorskip("segment_anything_hq.modeling")
    sam = load_sam(saved(sam_model(num_attention_heads=8, layer_norm_eps=1e-5), tmp_path / "a"))
    decoder = build.MaskDecoderHQ(
        transformer_dim=32, transformer=build.TwoWayTransformer(2, 32, 8, 64), iou_head_depth=3, vit_dim=32
    )
    decoder.load_state_dict(sam.mask_decoder.state_dict(), strict=False)
    wanted = ours(sam)
    sam.mask_decoder = decoder
    torch.save(sam.state_dict(), tmp_path / "sam_hq.pth")
    caplog.clear()
    assert_close(ours(load_sam(tmp_path / "sam_hq.pth")), wanted)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "sam_bigltl.accelerate" in caplog.messages[0] and "\n" not in caplog.messages[0]


def test_medsams_checkpoints(model, tmp_path):
    """Weights alone, and the state that its training script writes."""
    sam = load_sam(saved(sam_model(num_attention_heads=8, layer_norm_eps=1e-5), tmp_path / "a"))
    state = sam.state_dict()
    optimizer = torch.optim.AdamW(sam.mask_decoder.parameters())
    torch.save(state, tmp_path / "medsam_vit_b.pth")
    training = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 3}
    torch.save(training, tmp_path / "medsam_model_latest.pth")
    for name in ("medsam_vit_b.pth", "medsam_model_latest.pth"):
        assert_close(ours(load_sam(tmp_path / name)), ours(sam))


@pytest.mark.parametrize("prefix", ["sam.", "model.", "module.", "model.sam.", "base_model.model."])
@pytest.mark.parametrize("kind", ["lightning", "safetensors"])
def test_prefixes_of_a_fine_tuned_sam_model(folder, model, tmp_path, prefix, kind):
    state = {prefix + name: value for name, value in load_file(folder / "model.safetensors").items()}
    if kind == "safetensors":
        save_file(state, folder / "model.safetensors")
        path = folder
    else:
        path = folder / "last.ckpt"
        lightning = {"state_dict": state | {"criterion.weight": torch.ones(2)}, "hyper_parameters": {"lr": 1e-4}}
        torch.save(lightning | {"pytorch-lightning_version": "2.5.0", "epoch": 3, "callbacks": {}}, path)
    assert_close(ours(load_sam(path)), theirs(model))


def test_encoders_alone(model, tmp_path):
    transformers.SamVisionModel(model.config.vision_config).save_pretrained(tmp_path / "a")
    save_file(load_sam(saved(model, tmp_path / "b")).image_encoder.state_dict(), tmp_path / "c.safetensors")
    encoder = {f"image_encoder.{name}": value for name, value in load_file(tmp_path / "c.safetensors").items()}
    save_file(encoder, tmp_path / "d.safetensors")
    for name in ("a", "c.safetensors", "d.safetensors"):
        assert "holds an image encoder alone" in (message := refusal(tmp_path / name)), name
        assert "sam_bigltl.accelerate" in message


def test_peft(model, tmp_path):
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(sam_model(), peft.LoraConfig(target_modules=["qkv"]))
    torch.save(wrapped.state_dict(), tmp_path / "a.pth")
    assert "merge_and_unload" in refusal(tmp_path / "a.pth")
    wrapped.save_pretrained(tmp_path / "adapter")
    assert "an adapter alone" in refusal(tmp_path / "adapter")
    merged = wrapped.merge_and_unload()
    assert_close(ours(load_sam(saved(merged, tmp_path / "merged"))), theirs(merged))
