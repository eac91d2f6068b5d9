"""What the page without a server downloads: one graph for all keep ratios, and packed weights that graphs share."""

# ruff: noqa: E402 - what needs an optional package is imported after the check for it
from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from little_models import dense_config, dense_sam

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install onnxruntime")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnx onnxscript")

import onnx
from export_models import LEAST_TOKENS, NAMES, costs, counted_program, sampled_embedding
from onnx import TensorProto, helper, numpy_helper
from pack_weights import WeightFile, pack

from sam_bigltl.bench.macs import count_macs
from sam_bigltl.convert.export import to_onnx
from sam_bigltl.convert.onnx_files import ENCODER

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def sam():
    return dense_sam(dense_config(little_dim=16, img_size=96), seed=0)


@pytest.fixture(scope="module")
def session(sam):
    content = to_onnx(counted_program(sam), ENCODER, NAMES).model_proto.SerializeToString()
    return onnxruntime.InferenceSession(content)


def test_one_graph_for_every_keep_ratio(sam, session) -> None:
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    encoder = sam.image_encoder
    tokens = encoder.config.side**2
    for ratio in (0.5, 0.7, 0.95, "auto"):
        encoder.keep_ratio = ratio
        with torch.no_grad():
            expected = encoder(images).numpy()
        least = LEAST_TOKENS if ratio == "auto" else round(ratio * tokens)
        mass = encoder.auto_mass if ratio == "auto" else 0.0
        embedding, scores, selected = session.run(
            None, {"images": images.numpy(), "big_tokens": [least], "mass": np.array([mass], np.float32)}
        )
        assert np.abs(embedding - expected).max() < 1e-4
        assert scores.sum(axis=1) == pytest.approx(1, abs=1e-4)
        for row, group in zip(selected, encoder.last_route.groups):
            assert np.flatnonzero(row).tolist() == group.indices[0].tolist()


def test_costs_are_a_line_in_the_share_of_big_tokens(sam) -> None:
    found = costs(sam)
    sam.image_encoder.keep_ratio = 0.5
    counted = count_macs(sam.image_encoder, torch.zeros(1, 3, 96, 96)).total / 1e9
    assert found["base"] + 0.5 * sum(found["share"]) == pytest.approx(counted, rel=0.1)
    assert found["dense"] > 0 and len(sampled_embedding(sam)) == 64


def graph_of(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """x -> (x @ large) * row"""
    nodes = [helper.make_node("MatMul", ["x", "large"], ["y"]), helper.make_node("Mul", ["y", "row"], ["z"])]
    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 512]) for name in ("x", "z")]
    tensors = [numpy_helper.from_array(values, name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "test", kinds[:1], kinds[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_graphs_share_their_packed_weights(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"large": rng.normal(size=(512, 512)).astype(np.float32), "row": rng.normal(size=512).astype(np.float32)}
    x = rng.normal(size=(3, 512)).astype(np.float32)
    expected = (x @ weights["large"]) * weights["row"]
    file = WeightFile(tmp_path / "weights.bin")
    for name in ("one", "other"):
        model = graph_of(weights)
        pack(model, file)
        onnx.save(model, tmp_path / f"{name}.onnx")
    file.write()
    assert file.path.stat().st_size == 512 * 512 + 512 * 2  # int8 and float16, once
    for name in ("one", "other"):
        assert (tmp_path / f"{name}.onnx").stat().st_size < 4000
        (found,) = onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")).run(None, {"x": x})
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_make_says_that_node_is_missing(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("no make here")
    command = [make, "--silent", "--always-make", "demo/web/node_modules/.package-lock.json", "PYTHON=python3"]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith("error: no Node.js with npm found; install version 20.19 or newer")


@pytest.mark.parametrize(("arguments", "said"), [
    (["--folder", "nothing"], "nothing holds no page: build it with make demo-web"),
    (["--port", "70000"], "--port 70000 is no port"),
])  # fmt: skip
def test_the_server_says_what_is_wrong(arguments: list[str], said: str) -> None:
    command = [sys.executable, "demo/web/serve.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
