"""Files as people have them: those of transformers' SamModel, SAM-HQ and MedSAM, read; and SamModel's, written.

The files are written by the projects' own code, with tiny models, and what is loaded computes what they compute.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_sam
from PIL import Image
from safetensors.torch import load_file, save_file

import sam_bigltl
from sam_bigltl import SamPredictor, load_sam, save_sam
from sam_bigltl.convert.hub import from_pretrained, save_pretrained
from sam_bigltl.convert.transformers_names import to_sam, to_transformers
from sam_bigltl.convert.weight_files import weights_sha256
from sam_bigltl.data.files import sha256
from sam_bigltl.errors import InputError

transformers = pytest.importorskip("transformers")

SIDE = 64
VISION = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, image_size=SIDE, window_size=3,
              global_attn_indexes=[1, 3], mlp_dim=96, output_channels=32, num_pos_feats=16)  # fmt: skip
PROMPT = dict(hidden_size=32, image_size=SIDE)
DECODER = dict(hidden_size=32, num_attention_heads=4, mlp_dim=64)
BOX = [5.0, 4.0, 40.0, 30.0]


def sam_model(kind: str = "Sam", vision: dict[str, Any] | None = None, **decoder: Any) -> torch.nn.Module:
    """transformers' SamModel (or SamHQModel) with every weight alive."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vision_config=VISION | (vision or {}), prompt_encoder_config=PROMPT, mask_decoder_config=DECODER | decoder
    )
    model = getattr(transformers, f"{kind}Model")(config).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return model


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return sam_model()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    """As `model.save_pretrained` and the processor write it."""
    return saved(model, tmp_path / "tiny")


def saved(model: torch.nn.Module, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    size = {"longest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    processor = transformers.SamImageProcessor(
        size=size[0], pad_size=size[1], mask_size={"longest_edge": 16}, mask_pad_size={"height": 16, "width": 16}
    )
    transformers.SamProcessor(processor).save_pretrained(folder)
    return folder


def photograph() -> np.ndarray:
    """As wide as the model's input, so that nothing is resized."""
    return np.random.default_rng(0).integers(0, 255, (48, SIDE, 3), dtype=np.uint8)


@torch.no_grad()
def theirs(model: torch.nn.Module, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Low-resolution logits (3, 16, 16) and scores (3,) of `BOX`, by transformers."""
    image = torch.from_numpy(photograph()).permute(2, 0, 1).float()
    mean, std = (torch.tensor(x).view(3, 1, 1) * 255 for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    pixels = torch.nn.functional.pad((image - mean) / std, (0, 0, 0, SIDE - image.shape[1]))
    found = model(pixel_values=pixels[None], input_boxes=torch.tensor([[BOX]]), multimask_output=True, **options)
    return found.pred_masks[0, 0].numpy(), found.iou_scores[0, 0].numpy()


def ours(sam: Any, predictor: type = SamPredictor) -> tuple[np.ndarray, np.ndarray]:
    """The same by a predictor."""
    predictor = predictor(sam)
    predictor.set_image(photograph())
    _, scores, logits = predictor.predict(box=np.array(BOX))
    return logits, scores


def assert_close(found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.ptp(wanted[0]) > 0.01  # the masks say something
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-4)


def refusal(path: Path, load: Any = load_sam, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        load(path, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


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


def as_bins(folder: Path, count: int) -> None:
    """What `save_pretrained(safe_serialization=False)` wrote before transformers 5."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if count == 1:
        torch.save(state, folder / "pytorch_model.bin")
        return
    places = {name: f"pytorch_model-{1 + i % count:05}-of-{count:05}.bin" for i, name in enumerate(state)}
    for file in set(places.values()):
        torch.save({name: value for name, value in state.items() if places[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


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
