"""Tiny models of transformers, saved by transformers itself, and what they answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sam_bigltl import SamPredictor, load_sam
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
