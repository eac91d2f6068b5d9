"""Folders of the Hugging Face Hub and `torch.hub`: the same model comes back, and one line for what cannot."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture, tiny_sam
from little_models import dense_config, dense_sam

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.convert.hub import from_pretrained, save_pretrained
from sam_bigltl.convert.registry import default_checkpoint, sam_model_registry
from sam_bigltl.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    one, other = first.state_dict(), second.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def sam():
    sam = dense_sam(dense_config(little_dim=8))
    sam.image_encoder.keep_ratio = 0.5
    return sam


@pytest.fixture
def folder(sam, tmp_path) -> Path:
    save_pretrained(sam, tmp_path / "new" / "my_model")
    return tmp_path / "new" / "my_model"


def test_round_trip(sam, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    found = from_pretrained(folder)
    assert_same(found, sam)
    assert found.image_encoder.config == sam.image_encoder.config and found.image_encoder.keep_ratio == 0.5
    assert from_pretrained(str(folder), keep_ratio="auto", device="cpu").image_encoder.keep_ratio == "auto"


def test_predictor_gives_the_same_masks(sam, folder):
    box = np.array([5, 5, 40, 30])
    masks = []
    for predictor in (SamPredictor(sam), SamPredictor.from_pretrained(folder)):
        predictor.set_image(picture())
        masks.append(predictor.predict(box=box)[0])
    assert (masks[0] == masks[1]).all()


def test_keep_ratio_of_every_stage_and_dtype(sam, tmp_path):
    encoder = sam.image_encoder
    ratios = tuple(np.linspace(0.25, 1, len(encoder.config.stages)))
    other = dense_sam(dense_config(little_dim=8))
    other.image_encoder.keep_ratio = ratios
    save_pretrained(other, tmp_path / "half", torch.float16)
    save_pretrained(other, tmp_path / "full")
    assert from_pretrained(tmp_path / "half").image_encoder.keep_ratio == ratios
    half, full = (tmp_path / name / "model.safetensors" for name in ("half", "full"))
    assert half.stat().st_size < 0.7 * full.stat().st_size


def test_card_and_configuration(sam, folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sam_bigltl\n") and 'from_pretrained("my_model"' in card
    config = json.loads((folder / "config.json").read_text())
    assert config["image_encoder"]["dim"] == 32 and config["keep_ratio"] == 0.5
    (folder / "README.md").write_text("mine")
    save_pretrained(sam, folder)
    assert (folder / "README.md").read_text() == "mine"
    (folder / "config.json").unlink()
    assert from_pretrained(folder).image_encoder.keep_ratio == 1.0


def test_bad_folders_are_one_line(sam, folder, tmp_path):
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        from_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"noise")
    with pytest.raises(InputError, match="damaged"):
        from_pretrained(folder)
    with pytest.raises(InputError, match="no model.safetensors"):
        from_pretrained(tmp_path)
    with pytest.raises(InputError, match="load_sam"):
        from_pretrained(default_checkpoint())
    with pytest.raises(InputError, match="convert_sam"):
        save_pretrained(tiny_sam(), tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        save_pretrained(sam, Path(__file__))


def test_repositories_offline(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be reached") as caught:
        from_pretrained("someone/some-model", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no repository id"):
        from_pretrained("a/b/c")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it was not installed
    with pytest.raises(InputError, match="pip install huggingface_hub"):
        from_pretrained("someone/some-model")


@pytest.mark.parametrize("name,text", [
    ("RepositoryNotFoundError", "no such repository"), ("EntryNotFoundError", "holds no model.safetensors"),
    ("HfHubHTTPError", "cannot be fetched"),
])  # fmt: skip
def test_what_the_hub_answers_is_one_line(monkeypatch, name, text):
    hub = pytest.importorskip("huggingface_hub")
    error = getattr(importlib.import_module("huggingface_hub.errors"), name)

    def refuse(*_: object, **__: object) -> None:
        raise error.__new__(error)  # its constructor wants an HTTP response

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(InputError, match=text) as caught:
        from_pretrained("someone/some-model")
    assert "\n" not in str(caught.value)


def test_a_repository_in_the_cache(folder, monkeypatch, tmp_path):
    """Laid out as the Hub's cache is, so that hf_hub_download finds it with no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--someone--some-model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("a" * 40))
    found = SamPredictor.from_pretrained("someone/some-model", cache_dir=tmp_path)
    assert found.model.image_encoder.keep_ratio == 0.5


def load(key: str, **options):
    return torch.hub.load(str(ROOT), key, source="local", **options)


def test_torch_hub_loads_the_shipped_weights():
    sam = load("bigltl_mini")
    assert_same(sam, load_sam(default_checkpoint()))
    assert load("vit_mini").image_encoder.is_dense
    with pytest.raises(InputError, match="no weights are shipped for bigltl_b"):
        load("bigltl_b")


def test_torch_hub_has_every_key(tmp_path):
    entries = runpy.run_path(str(ROOT / "hubconf.py"))
    public = {name: entry for name, entry in entries.items() if callable(entry) and not name.startswith("_")}
    assert set(public) == set(sam_model_registry)  # what torch.hub.list shows
    assert all("pretrained" in entry.__doc__ for entry in public.values())
    torch.manual_seed(0)
    random = load("bigltl_mini", pretrained=False)
    path = tmp_path / "mini.pth"
    torch.save(random.state_dict(), path)
    assert_same(load("bigltl_mini", checkpoint=path), random)
    with pytest.raises(InputError, match="not bigltl_s"):
        load("bigltl_s", checkpoint=path)
