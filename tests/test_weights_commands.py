"""Every command that takes a checkpoint takes one of Lightning's: under "state_dict", each name with a prefix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import tiny_cli
import torch
from helpers import picture
from labelled import make_folder
from PIL import Image
from torch import Tensor
from training_toy import write_shapes, write_shards

import sam_bigltl.classifier  # noqa: F401 - registers the models
from sam_bigltl import load_sam
from sam_bigltl.bench.models import build
from sam_bigltl.cli import export as export_cli
from sam_bigltl.cli import main
from sam_bigltl.convert import registry
from sam_bigltl.demo.engine import Engine
from sam_bigltl.evaluation import imagenet

KWARGS = dict(img_size=32, patch_size=8, depth=2, embed_dim=32, num_heads=2)
WORDS = [f"{key}={value}" for key, value in KWARGS.items()]


def lightning(state: dict[str, Tensor], path: Path) -> str:
    named = {f"model.{name}": value for name, value in state.items()} | {"loss.weight": torch.ones(2)}
    torch.save({"epoch": 1, "pytorch-lightning_version": "2.5.0", "state_dict": named, "callbacks": {}}, path)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Checkpoints of tiny models, a photograph, masks, shards and labelled pictures."""
    folder = tmp_path_factory.mktemp("commands")
    write_shapes(folder / "shapes", count=2)
    write_shards(folder / "shards", shards=1, each=4)
    make_folder(folder / "labelled", each=2)
    Image.fromarray(picture()).save(folder / "p.png")
    torch.manual_seed(0)
    with tiny_cli.registered():
        for key in ("vit_tiny", "bigltl_tiny"):
            lightning(registry.sam_model_registry[key]().state_dict(), folder / f"{key}.ckpt")
    lightning(load_sam(registry.default_checkpoint()).state_dict(), folder / "mini.ckpt")
    classifier = timm.create_model("bigltl_tiny_patch16_224", num_classes=3, **KWARGS)
    lightning(classifier.state_dict(), folder / "classifier.ckpt")
    return folder


pytestmark = pytest.mark.usefixtures("tiny")


def test_segment(files, tmp_path):
    checkpoint = ["--checkpoint", str(files / "bigltl_tiny.ckpt")]
    main(["segment", str(files / "p.png"), "--box", "5,4,40,30", *checkpoint, "--out", str(tmp_path)])
    assert len(json.loads((tmp_path / "p_masks.json").read_text())) == 1


def test_eval(files, tmp_path):
    main(["eval", "--annotations", str(files / "shapes" / "train.json"), "--images", str(files / "shapes" / "images"),
          "--checkpoint", str(files / "bigltl_tiny.ckpt"), "--prompts", "box", "--output", str(tmp_path)])  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text())["summary"][0]["images"] == 2


def test_convert(files, tmp_path):
    main(["convert", str(files / "vit_tiny.ckpt"), str(tmp_path / "a.safetensors"), "--little-dim", "12"])
    assert load_sam(tmp_path / "a.safetensors", "bigltl_tiny")


def test_export(files, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(export_cli, "export_onnx", lambda sam, *_: given.append(sam) or [])
    main(["export", "--checkpoint", str(files / "bigltl_tiny.ckpt"), "--output", str(tmp_path)])
    assert given[0].image_encoder.config == tiny_cli.TINY["bigltl_tiny"]


def test_bench(files):
    """What its processes build."""
    encoder, weights = build("bigltl_mini", None, files / "mini.ckpt")
    assert weights == "mini.ckpt" and not encoder.is_dense


def test_demo(files):
    assert Engine(files / "bigltl_tiny.ckpt", torch.device("cpu")).routed


COMMON = ["--device", "cpu", "--workers", "0", "--batch-size", "2", "--steps", "1", "--precision", "float32"]


def test_train_from_a_start_and_with_a_teacher(files, tmp_path):
    shapes = [
        "--data", str(files / "shapes" / "train.json"), "--images", str(files / "shapes" / "images"), "--prompts", "2",
        "--crop", "64",
    ]  # fmt: skip
    main(["train", "--model", "bigltl_tiny", "--init", str(files / "bigltl_tiny.ckpt"), "--teacher",
          str(files / "vit_tiny.ckpt"), "--distill-weight", "1", "--output", str(tmp_path), *shapes,
          *COMMON])  # fmt: skip
    assert load_sam(tmp_path / "model.safetensors", "bigltl_tiny")


def test_distill_from_a_start(files, tmp_path):
    main(["distill", "--student", "bigltl_tiny", "--init", str(files / "bigltl_tiny.ckpt"), "--teacher",
          str(files / "vit_tiny.ckpt"), "--data", str(files / "shards"), "--streams", "2", "--output", str(tmp_path),
          *COMMON])  # fmt: skip
    assert load_sam(tmp_path / "stage1" / "model.safetensors", "bigltl_tiny")


@pytest.mark.parametrize("kind", ["checkpoint", "backbone"])
def test_imagenet_top1(files, tmp_path, kind):
    model = ["--model", "bigltl_tiny_patch16_224", "--model-kwargs", *WORDS] if kind == "checkpoint" else []
    file = "classifier.ckpt" if kind == "checkpoint" else "bigltl_tiny.ckpt"
    imagenet.main(["--data-dir", str(files / "labelled"), *model, f"--{kind}", str(files / file), "--workers", "0",
                   "--device", "cpu", "--output", str(tmp_path)])  # fmt: skip
    assert (tmp_path / "results.csv").is_file()


def test_train_a_classifier(files, tmp_path):
    main(["train", "--task", "classify", "--data-dir", str(files / "labelled"), "--model", "bigltl_tiny_patch16_224",
          "--model-kwargs", *WORDS, "--checkpoint", str(files / "classifier.ckpt"), "--output", str(tmp_path),
          *COMMON])  # fmt: skip
    assert (tmp_path / "model.safetensors").is_file()
