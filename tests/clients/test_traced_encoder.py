# ruff: noqa: F811 - fixtures
"""Traces, exports, counts, copies and other number formats of the image encoder."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

from clients.encoders import noise, pair, pictures  # noqa: F401
from sam_bigltl.errors import InputError


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
def test_a_traced_encoder_computes_the_same_on_other_images(pair, keep_ratio, grad):
    ours = pair[1]
    ours.keep_ratio = keep_ratio
    with warnings.catch_warnings(), torch.set_grad_enabled(grad):
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(ours, noise(1, 3, 64, 64))
    other = noise(2, 3, 64, 64)[1:]
    torch.testing.assert_close(traced(other), ours(other), atol=1e-5, rtol=1e-5)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    torch.testing.assert_close(torch.jit.load(file)(other), ours(other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@torch.no_grad()
def test_the_old_onnx_exporter_takes_it(pair, keep_ratio, tmp_path):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    ours = pair[1]
    ours.keep_ratio = keep_ratio
    path = tmp_path / "encoder.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(ours, noise(1, 3, 64, 64), str(path), dynamo=False, opset_version=17)
    other = noise(2, 3, 64, 64)[1:]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: other.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), ours(other), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_torch_export_before_any_call(pair):
    exported = torch.export.export(pair[1], (noise(1, 3, 64, 64),)).module()
    other = noise(2, 3, 64, 64)[1:]
    torch.testing.assert_close(exported(other), pair[0](other), atol=1e-5, rtol=1e-5)


def test_fvcore_counts_what_it_counts_for_sam(pair):
    fvcore = pytest.importorskip("fvcore.nn")
    totals = []
    for encoder in pair:
        analysis = fvcore.FlopCountAnalysis(encoder, noise(1, 3, 64, 64))
        analysis.unsupported_ops_warnings(False)
        totals.append(analysis.by_module()["blocks.1.mlp"])
    assert totals[0] == totals[1] > 0
    pair[1].keep_ratio = 0.5
    analysis = fvcore.FlopCountAnalysis(pair[1], noise(1, 3, 64, 64))
    analysis.unsupported_ops_warnings(False)
    assert analysis.by_module()["blocks.1.mlp"] == totals[0] / 2


@pytest.mark.parametrize("keep_ratio", [1.0, 0.5])
@torch.no_grad()
def test_dynamic_quantization_of_torch(pair, keep_ratio):
    reference, ours = pair
    images = pictures(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(ours), {nn.Linear}, dtype=torch.qint8)
        theirs = torch.ao.quantization.quantize_dynamic(copy.deepcopy(reference), {nn.Linear}, dtype=torch.qint8)
    ours.keep_ratio = quantized.keep_ratio = keep_ratio
    got = quantized(images)
    assert (got - ours(images)).norm() < 0.2 * ours(images).norm()
    if keep_ratio == 1.0:
        torch.testing.assert_close(got, theirs(images), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("native", [False, True])
@torch.no_grad()
def test_copies_and_pickles_of_an_int8_encoder(pair, native):
    ours = pair[1]
    ours.keep_ratio = 0.5
    try:
        ours.optimize("int8", native=native)
    except InputError as error:
        pytest.skip(str(error))
    images = pictures(ours)
    copies = [copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))]
    before = ours(images)
    for other in copies:
        assert other.blocks[0].mlp.lin1.packed is not ours.blocks[0].mlp.lin1.packed
        assert torch.equal(other(images), before)


@torch.no_grad()
def test_a_trace_of_auto_is_refused_since_it_would_freeze_the_number_of_tokens(pair):
    pair[1].keep_ratio = "auto"
    with pytest.raises(InputError, match="set a number before"):
        torch.jit.trace(pair[1], noise(1, 3, 64, 64))


@torch.no_grad()
def test_a_trace_of_int8_is_refused_since_it_would_freeze_its_scales(pair):
    try:
        ours = pair[1].optimize("int8")
    except InputError as error:
        pytest.skip(str(error))
    with pytest.raises(InputError, match="trace the model before"):
        torch.jit.trace(ours, noise(1, 3, 64, 64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep_ratio", [0.5, (1.0, 0.5), "auto"])
def test_an_encoder_of_another_dtype_runs_with_gradients(pair, dtype, keep_ratio):
    ours = pair[1].to(dtype)
    ours.keep_ratio = keep_ratio
    images = pictures(ours)
    with torch.no_grad():
        wanted = ours(images)
    found = ours(images)
    assert found.dtype == torch.float32
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    found.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in ours.parameters() if p.grad is not None)
    assert ours.transitions[1].router.score.weight.grad.abs().sum() > 0
