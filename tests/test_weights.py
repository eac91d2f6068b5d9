"""Files of weights that hold other things than finite tensors by a model's own names."""

from __future__ import annotations

import argparse
import gzip
import os
import pathlib
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from sam_bigltl import SamPredictor, load_sam
from sam_bigltl.convert import save_sam
from sam_bigltl.convert.classifiers import open_classifier
from sam_bigltl.errors import InputError
from sam_bigltl.training.config import LoopConfig
from sam_bigltl.training.engine import Loop

State = dict[str, Tensor]
CLASSIFIER = ("bigltl_tiny_patch16_224", 3, {"img_size": 32, "depth": 2})
NECK = "image_encoder.neck.0.weight"


@pytest.fixture(scope="module")
def state() -> State:
    return dense_sam(dense_config(little_dim=8)).state_dict()


def spoiled(state: State, name: str, value: float) -> State:
    """A copy with one value of one tensor replaced."""
    changed = {key: tensor.clone() for key, tensor in state.items()}
    changed[name].view(-1)[-1] = value
    return changed


def write(content: Any, path: Path) -> Path:
    (save_file if path.suffix == ".safetensors" else torch.save)(content, path)
    return path


def refusal(function: Callable, *arguments: Any) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


# ---------------------------------------------------------------- values that cannot be right
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("name", "value"),
    [(NECK, float("nan")), ("prompt_encoder.no_mask_embed.weight", float("inf")),
     ("mask_decoder.iou_token.weight", float("-inf"))],
)  # fmt: skip
def test_values_that_are_not_finite_name_their_tensor(state, tmp_path, name, value, suffix):
    path = write(spoiled(state, name, value), tmp_path / f"a{suffix}")
    assert f"{path} has NaN or infinite values in {name}" in refusal(load_sam, path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_kinds_of_floats_are_checked_too(state, tmp_path, dtype):
    whole = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}
    load_sam(write(whole, tmp_path / "a.pth"))
    assert NECK in refusal(load_sam, write(spoiled(whole, NECK, float("nan")), tmp_path / "b.pth"))


def test_what_float32_cannot_hold(state, tmp_path):
    path = write(spoiled(state | {NECK: state[NECK].double()}, NECK, 1e300), tmp_path / "a.pth")
    assert f"infinite values in {NECK}" in refusal(load_sam, path)


ODD = {
    "meta": (lambda x: x.to("meta"), "a meta tensor"),
    "sparse": (lambda x: x.flatten(1).to_sparse(), "sparse_coo"),
    "CSR": (lambda x: x.flatten(1).to_sparse_csr(), "sparse_csr"),
    "CSC": (lambda x: x.flatten(1).to_sparse_csc(), "sparse_csc"),
    "quantized": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "qint8"),
    "complex": (lambda x: x.to(torch.complex64), "complex64"),
    "expanded": (lambda x: torch.zeros(1).expand(10**13), "expanded from fewer values"),  # 40 TB
}


@pytest.mark.filterwarnings("ignore")  # of torch, at the tensors that are made here
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_ones(state, tmp_path, kind):
    change, text = ODD[kind]
    message = refusal(load_sam, write(state | {NECK: change(state[NECK])}, tmp_path / "a.pth"))
    assert text in message and (NECK in message or kind == "expanded")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["NaN", "meta", "CSR"])
def test_classifiers(tmp_path, kind):
    weights, name = open_classifier(*CLASSIFIER).state_dict(), "head.weight"
    bad = spoiled(weights, name, float("nan")) if kind == "NaN" else weights | {name: ODD[kind][0](weights[name])}
    assert name in refusal(open_classifier, *CLASSIFIER, write(bad, tmp_path / "a.pth"))
    sam = write(spoiled(dense_sam().state_dict(), NECK, float("nan")), tmp_path / "sam.pth")
    assert NECK in refusal(lambda: open_classifier("", 3, backbone=sam))


def test_timm_reads_no_file_behind_our_back():
    options = CLASSIFIER[2] | {"checkpoint_path": "a.pth"}
    assert "--checkpoint" in refusal(open_classifier, CLASSIFIER[0], 3, options)


class Run(Loop):
    def micro_batches(self):
        return iter(())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["NaN", "meta", "CSR"])
@pytest.mark.parametrize("part", ["model", "average", "optimizers.0.state.0"])
def test_states_to_resume(tmp_path, part, kind):
    model = nn.Linear(2, 2)
    run = Run(model, model, LoopConfig(steps=2), tmp_path)
    model(torch.ones(1, 2)).sum().backward()
    for optimizer in run.optimizers:
        optimizer.step()
    run.save()
    run.resume()
    saved = torch.load(run.state_path, weights_only=True)
    inner: Any = saved
    for key in part.split("."):
        inner = inner[int(key)] if isinstance(inner, list) or key == "0" else inner[key]
    name = "exp_avg" if "exp_avg" in inner else "weight"
    if kind == "NaN":
        inner[name].view(-1)[0] = float("nan")
    else:
        inner[name] = ODD[kind][0](inner[name])
    torch.save(saved, run.state_path)
    assert f"{part}.{name}" in refusal(run.resume)


def test_embeddings(tmp_path):
    predictor = SamPredictor(dense_sam())
    predictor.set_image(picture())
    path = tmp_path / "a.safetensors"
    predictor.save_embedding(path)
    predictor.load_embedding(path)
    content = path.read_bytes()
    nan = np.float32("nan").tobytes()
    path.write_bytes(content[:-4] + nan)
    assert "NaN or infinite values in features" in refusal(predictor.load_embedding, path)


def test_onnx_files(tmp_path):
    """Their weights are nobody's to read, but what they compute is."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from sam_bigltl.convert.export import export_onnx
    from sam_bigltl.predict.onnx_predictor import OnnxSamPredictor

    export_onnx(dense_sam(), tmp_path, 1.0)
    whole = {part: onnx.load(tmp_path / f"{part}.onnx") for part in ("encoder", "decoder")}
    for part in whole:
        model = onnx.ModelProto()
        model.CopyFrom(whole[part])
        for tensor in model.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and values.size > 8:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.full_like(values, np.nan), tensor.name))
        onnx.save(model, tmp_path / f"{part}.onnx")
        predictor = OnnxSamPredictor(tmp_path, threads=1)

        def use(predictor: OnnxSamPredictor = predictor) -> None:
            predictor.set_image(picture())
            predictor.predict(box=np.array([5, 5, 40, 30]))

        assert f"{part}.onnx computes NaN or infinite values" in refusal(use)
        onnx.save(whole[part], tmp_path / f"{part}.onnx")


def test_what_cannot_be_read_again_is_not_written(tmp_path):
    sam = dense_sam()
    path = tmp_path / "a.safetensors"
    with torch.no_grad():
        sam.image_encoder.neck[0].weight[0] = 1e5  # above what float16 holds
    assert f"{NECK} has values that are not finite, or not in float16" in refusal(save_sam, sam, path, torch.float16)
    assert list(tmp_path.iterdir()) == []
    save_sam(sam, path)


def test_segment_says_it_in_one_line_and_writes_nothing(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "p.png")
    checkpoint = write(spoiled(dense_sam().state_dict(), NECK, float("nan")), tmp_path / "a.pth")
    words = ["segment", tmp_path / "p.png", "--box", "5,4,40,30", "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "sam_bigltl.cli", *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and NECK in done.stderr, done.stderr
    assert not list(tmp_path.glob("out/*"))


# ---------------------------------------------------------------- pickles
class Foreign(nn.Module):
    """A class of somebody's project."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


WHOLE = {
    "module": lambda path: torch.save(Foreign(), path),
    "module under a key": lambda path: torch.save({"model": Foreign(), "epoch": 3}, path),
    "module, old format": lambda path: torch.save(Foreign(), path, _use_new_zipfile_serialization=False),
    "array": lambda path: torch.save({"image_encoder.pos_embed": np.zeros(3)}, path),
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("reader", ["sam", "classifier", "resume"])
def test_refused_pickles_say_what_they_are_and_what_to_do(tmp_path, kind, reader):
    model = nn.Linear(2, 2)
    run = Run(model, model, LoopConfig(steps=2), tmp_path)
    path = run.state_path
    WHOLE[kind](path)
    read = {"sam": (load_sam, path), "classifier": (open_classifier, *CLASSIFIER, path), "resume": (run.resume,)}
    message = refusal(*read[reader])
    assert "holds more than tensors" in message and "torch.save(model.state_dict(), 'weights.pth')" in message
    assert ("numpy" if kind == "array" else "Foreign") in message
    assert "damaged" not in message


def test_a_plain_pickle_and_a_program(state, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"weights": [1, 2]}, protocol=4))
    assert "holds more than tensors (it is a plain pickle)" in refusal(load_sam, path)
    with pytest.warns():  # of torch, that scripts are old
        torch.jit.script(nn.Linear(2, 2)).save(path)
    assert "is a TorchScript program, not weights" in refusal(load_sam, path)


def test_damage_is_still_called_damage(state, tmp_path):
    for content in (bytes(99), b"PK\x05\x06" + bytes(50), b"text"):
        (tmp_path / "b.pth").write_bytes(content)
        assert "truncated or damaged, or no file of weights" in refusal(load_sam, tmp_path / "b.pth")


HALVES = ["half.pth", "half.safetensors", "header.safetensors", "byte.safetensors"]
OTHER_FILES = {
    "empty.pth": (b"", "is empty: download or copy it again"),
    "empty.safetensors": (b"", "is empty"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", "run git lfs pull"),
    "page.pth": (b"\n<!DOCTYPE html>\n<html>", "is a web page (HTML)"),
    "page.bin": (b"<html><body>Sign in</body>", "is a web page (HTML)"),
    "denied.safetensors": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "is a web page (HTML)"),
    "error.bin": (b'{"error": "Repository\\nnot found"}', "is a text in JSON (Repository not found), not weights"),
    "config.json": (b'{"model_type": "sam"}', "give its folder"),
    "packed.pth": (gzip.compress(b"weights"), "is compressed (gzip): unpack it"),
}


@pytest.mark.parametrize("name", HALVES)
def test_a_half_download(state, tmp_path, name):
    whole = write(state, tmp_path / f"a{Path(name).suffix}").read_bytes()
    end = {"half": len(whole) // 2, "header": 2000, "byte": len(whole) - 1}[Path(name).stem]
    (tmp_path / name).write_bytes(whole[:end])
    message = refusal(load_sam, tmp_path / name)
    assert message.startswith(f"{tmp_path / name} is cut short") and message.endswith("download or copy it again")
    assert name.endswith(".pth") or f"{end} bytes of" in message


@pytest.mark.parametrize("name", OTHER_FILES)
def test_what_came_in_the_place_of_weights(tmp_path, name):
    content, text = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    message = refusal(load_sam, tmp_path / name)
    assert message.startswith(f"{tmp_path / name} ") and text in message


def test_an_archive_with_the_weights_in_it(state, tmp_path):
    write(state, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.write(tmp_path / "a.pth", "a.pth")
    assert "is a zip archive, not a file of torch.save: unpack it" in refusal(load_sam, tmp_path / "b.zip")


@pytest.mark.parametrize("name", ["a.bin", "a.pth", "a.safetensors", "a"])
@pytest.mark.parametrize("kind", ["pickle", "old pickle", "safetensors"])
def test_what_a_file_holds_and_not_its_name_says_how_to_read_it(state, tmp_path, name, kind):
    if kind == "safetensors":
        save_file(state, tmp_path / name, metadata={"format": "pt"})
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=kind == "pickle")
    assert_same(load_sam(tmp_path / name).state_dict(), state)


def test_a_file_that_may_not_be_read(state, tmp_path, monkeypatch):
    path = write(state, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "load", lambda *_, **__: open(tmp_path / "none"))
    assert "a.pth cannot be read: No such file" in refusal(load_sam, path)


def test_flags_next_to_the_weights_do_no_harm(state, tmp_path):
    """Trainings keep their command line: an argparse.Namespace, with paths in it."""
    args = argparse.Namespace(lr=1e-3, output=pathlib.PosixPath("runs")) if os.name == "posix" else argparse.Namespace()
    loaded = load_sam(write({"model": state, "args": args, "epoch": 3}, tmp_path / "a.pth"))
    assert torch.equal(loaded.state_dict()[NECK], state[NECK])


# ---------------------------------------------------------------- where the tensors lie
def prefixed(state: State, prefix: str) -> State:
    return OrderedDict((prefix + name, value) for name, value in state.items())


def compiled(state: State) -> State:
    return {name.replace("encoder.", "encoder._orig_mod.", 1): value for name, value in state.items()}


OPTIMIZER = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
LIGHTNING = {"epoch": 3, "global_step": 10, "pytorch-lightning_version": "2.5.0", "optimizer_states": [OPTIMIZER],
             "lr_schedulers": [{"base_lrs": [1e-3]}], "callbacks": {}, "hyper_parameters": {"lr": 1e-3}}  # fmt: skip
WRITTEN = {
    "model": lambda state: {"model": state, "optimizer": OPTIMIZER, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state, "optimizer": OPTIMIZER},
    "teacher": lambda state: {"teacher": state},
    "net": lambda state: {"net": state, "acc": 0.5},
    "any other": lambda state: {"weights_of_ours": state, "optimizer": OPTIMIZER},
    "two levels": lambda state: {"checkpoint": {"model_state_dict": state}, "step": 1},
    "lightning": lambda state: LIGHTNING | {"state_dict": prefixed(state, "model.") | {"loss.weight": torch.ones(2)}},
    "lightning, compiled": lambda state: LIGHTNING | {"state_dict": prefixed(state, "net._orig_mod.")},
    "data parallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled, then data parallel": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "parts compiled": compiled,
    "parts parallel": lambda state: {k.replace("encoder.", "encoder.module.", 1): v for k, v in state.items()},
    "with a counter": lambda state: state | {"epoch": 3},
    "averaged": lambda state: {"model": {k: v + 1 for k, v in state.items()}, "model_ema": state},
    "our own": lambda state: {"model": {k: v + 1 for k, v in state.items()}, "average": state, "step": 3},
}


def assert_same(found: State, state: State) -> None:
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("tool", WRITTEN)
def test_weights_are_found_where_tools_put_them(state, tmp_path, tool):
    assert_same(load_sam(write(WRITTEN[tool](state), tmp_path / "a.ckpt")).state_dict(), state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_prefixes_in_safetensors(state, tmp_path, prefix):
    assert_same(load_sam(write(dict(prefixed(state, prefix)), tmp_path / "a.safetensors")).state_dict(), state)


@pytest.mark.parametrize("tool", [tool for tool in WRITTEN if not tool.startswith("parts")])
def test_the_same_for_classifiers(tmp_path, tool):
    weights = open_classifier(*CLASSIFIER).state_dict()
    found = open_classifier(*CLASSIFIER, write(WRITTEN[tool](weights), tmp_path / "a.ckpt")).state_dict()
    assert_same(found, weights)


def test_which_of_several_is_said(state, tmp_path, caplog):
    load_sam(write(WRITTEN["averaged"](state), tmp_path / "a.pth"))
    assert caplog.messages == [f"{tmp_path / 'a.pth'}: the weights under model_ema are read, not model"]
    caplog.clear()
    load_sam(write(WRITTEN["lightning"](state), tmp_path / "a.pth"))
    assert not caplog.messages


def test_several_models_without_a_choice_are_named(state, tmp_path):
    other = {name: value + 1 for name, value in state.items()}
    path = write({"student": state, "teacher": other}, tmp_path / "a.pth")
    assert "holds several models (student, teacher)" in refusal(load_sam, path)
    path = write({"state_dict": prefixed(state, "student.") | prefixed(other, "teacher.")}, tmp_path / "b.pth")
    assert "holds several models (state_dict.student, state_dict.teacher)" in refusal(load_sam, path)


def test_the_keys_of_something_else_are_named(tmp_path):
    path = write({"config": {"width": 3}, "optimizer": OPTIMIZER, "steps": [1, 2]}, tmp_path / "a.pth")
    assert "no image_encoder." in refusal(load_sam, path)
    path = write({"config": {"width": 3}, "epoch": 4}, tmp_path / "b.pth")
    assert "no tensor of image_encoder under any of its keys (config, epoch)" in refusal(load_sam, path)
    assert "under any of its keys (config, epoch)" in refusal(open_classifier, *CLASSIFIER, path)
    assert "since it is a list" in refusal(load_sam, write([torch.zeros(2)], tmp_path / "c.pth"))
