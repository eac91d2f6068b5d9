"""Files of weights: models, classifiers, embeddings, and the state of a training."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save, save_file
from segment_anything.modeling import Sam
from torch import Tensor, nn

from sam_bigltl.convert import load_sam
from sam_bigltl.convert.classifiers import open_classifier
from sam_bigltl.modeling.encoder import EncoderConfig
from sam_bigltl.modeling.registry import build_sam
from sam_bigltl.predict.predictor import SamPredictor
from sam_bigltl.training.config import LoopConfig
from sam_bigltl.training.engine import Batch, Loop

from .mutate import VALUES, mutate_bytes, mutate_json

CLASSIFIER = ("bigltl_tiny_patch16_224", 3, {"img_size": 32, "depth": 2})
SHAPES = ((0,), (1,), (3, 3), (10**9, 0), (1, 100_000, 0, 0), (2, 2, 2, 2), ())


def little_sam() -> Sam:
    """The smallest Sam with every part that a real one has."""
    config = EncoderConfig(
        img_size=32, dim=16, depth=2, num_heads=2, global_layers=(1,), window=1, out_chans=16, little_dim=8
    )
    return build_sam(config)


class _Run(Loop):
    def micro_batches(self) -> Iterator[list[Batch]]:
        return iter(())


def mutate_state(rng: Random, state: dict[str, Tensor]) -> dict[str, Any]:
    """A copy of `state` with tensors dropped, renamed, or of another shape, dtype or kind."""
    state = dict(state)
    for _ in range(rng.randint(1, 3)):
        if not state:
            break
        name = rng.choice(sorted(state))
        action = rng.randrange(6)
        value = state.pop(name)
        if action == 0:
            parts = name.split(".")
            place = rng.randrange(len(parts))
            parts[place] = rng.choice(("", "x", "0", "99", str(10**12), "-1", "blocks", "transitions"))
            state[".".join(parts)] = value
        elif action == 1:
            state[name] = torch.zeros(rng.choice(SHAPES))
        elif action == 2 and isinstance(value, Tensor):
            state[name] = value.to(rng.choice((torch.int8, torch.bool, torch.float64, torch.bfloat16)))
        elif action == 3:
            state[name] = rng.choice(VALUES)
        elif action == 4 and isinstance(value, Tensor) and value.ndim:
            state[name] = value.flatten()[: rng.randint(0, value.numel())].clone()
    return state


def mutate_safetensors(rng: Random, content: bytes) -> bytes:
    """A safetensors file with a damaged header, or damaged as bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(rng, content)
    size = struct.unpack("<Q", content[:8])[0]
    header = json.dumps(mutate_json(rng, json.loads(content[8 : 8 + size]))).encode()
    return struct.pack("<Q", len(header)) + header + content[8 + size :]


def make(folder: Path) -> Callable[[Random], None]:
    """A function that damages one file of weights and loads it."""
    sam = little_sam()
    state, classifier = sam.state_dict(), open_classifier(*CLASSIFIER).state_dict()
    predictor = SamPredictor(sam)
    predictor.set_image(np.zeros((20, 30, 3), np.uint8))
    predictor.save_embedding(folder / "good.safetensors")
    embedding = (folder / "good.safetensors").read_bytes()
    model = nn.Linear(2, 2)
    run = _Run(model, model, LoopConfig(steps=2), folder / "run")
    run.save()
    saved = torch.load(run.state_path, weights_only=True)

    def write(rng: Random, tensors: dict[str, Tensor]) -> Path:
        """A damaged file, by its bytes or by its content, of either kind."""
        by_content = rng.random() < 0.5
        changed = mutate_state(rng, tensors) if by_content else tensors
        if rng.random() < 0.5:
            path = folder / "bad.safetensors"
            only = {name: value.clone().contiguous() for name, value in changed.items() if isinstance(value, Tensor)}
            content = save(only, {"sam_bigltl": json.dumps({"route_every": rng.choice((*VALUES[:9], 2))})})
            path.write_bytes(content if by_content else mutate_safetensors(rng, content))
        else:
            path = folder / rng.choice(("bad.pth", "bad.safetensors"))
            torch.save(changed, path, _use_new_zipfile_serialization=rng.random() < 0.7)
            if not by_content:
                path.write_bytes(mutate_bytes(rng, path.read_bytes()))
        return path

    def load(rng: Random) -> None:
        load_sam(write(rng, state), rng.choice((None, None, None, "bigltl_mini", "vit_b")))

    def classify(rng: Random) -> None:
        open_classifier(*CLASSIFIER, write(rng, classifier))

    def probe(rng: Random) -> None:
        open_classifier("", 3, backbone=write(rng, state))

    def embed(rng: Random) -> None:
        path = folder / "bad.safetensors"
        path.write_bytes(mutate_safetensors(rng, embedding))
        predictor.load_embedding(path)
        predictor.predict(box=np.array([1, 1, 9, 9]))

    def features(rng: Random) -> None:
        size = struct.unpack("<Q", embedding[:8])[0]
        metadata = json.loads(embedding[8 : 8 + size])["__metadata__"]
        sizes = json.dumps(mutate_json(rng, json.loads(metadata["sizes"])))
        shape = rng.choice((*SHAPES, (1, 16, 2, 2)))
        save_file({"features": torch.zeros(shape)}, folder / "bad.safetensors", metadata | {"sizes": sizes})
        predictor.load_embedding(folder / "bad.safetensors")

    def resume(rng: Random) -> None:
        if rng.random() < 0.5:
            changed = dict(saved)
            part = rng.choice(sorted(changed))
            inner = changed[part]
            changed[part] = mutate_state(rng, inner) if isinstance(inner, dict) and inner else rng.choice(VALUES)
            torch.save(changed, run.state_path)
        else:
            torch.save(saved, run.state_path)
            run.state_path.write_bytes(mutate_bytes(rng, run.state_path.read_bytes()))
        run.resume()

    readers = (load, load, load, classify, probe, embed, features, resume)
    return lambda rng: rng.choice(readers)(rng)
