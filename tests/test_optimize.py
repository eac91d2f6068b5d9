"""`optimize`: one call, the same results after it, no graph break and no graph twice."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from helpers import picture
from little_models import dense_config, dense_sam
from segment_anything.modeling import Sam
from torch._dynamo.testing import CompileCounter

from sam_bigltl.errors import InputError
from sam_bigltl.modeling.encoder import BigLittleEncoder
from sam_bigltl.predict.predictor import SamPredictor


def little_sam() -> Sam:
    return dense_sam(dense_config(little_dim=8))


@pytest.fixture
def encoder() -> BigLittleEncoder:
    torch._dynamo.reset()
    return little_sam().image_encoder


def image(encoder: BigLittleEncoder) -> torch.Tensor:
    return torch.randn(1, 3, encoder.img_size, encoder.img_size, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_no_graph_break_and_no_graph_twice(encoder: BigLittleEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    eager = copy.deepcopy(encoder)
    real = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **options: real(self, backend=counter, fullgraph=True, **options)
    )
    encoder.optimize(dtype="float32", compile=True)
    pixels = image(encoder)
    for _ in range(2):  # the second time every ratio has its graph
        for ratio in (1.0, 0.5, 0.25, (0.5,) * len(encoder.config.stages)):
            encoder.keep_ratio = eager.keep_ratio = ratio
            assert torch.allclose(encoder(pixels), eager(pixels), atol=1e-5)
            ours, theirs = encoder.last_route, eager.last_route
            assert all(torch.equal(a.indices, b.indices) for a, b in zip(ours.groups, theirs.groups, strict=True))
    assert counter.frame_count == 4


@torch.no_grad()
def test_auto_runs_as_it_is(encoder: BigLittleEncoder) -> None:
    encoder.keep_ratio = "auto"
    pixels = image(encoder).repeat(2, 1, 1, 1)
    wanted = encoder(pixels)
    counter = CompileCounter()
    encoder.compile(backend=counter, dynamic=False)
    assert torch.equal(encoder(pixels), wanted) and counter.op_count == 0


def test_the_predictor_remembers() -> None:
    sam = little_sam()
    sam.image_encoder.keep_ratio = 0.5
    predictor = SamPredictor(sam)
    predictor.set_image(picture())
    wanted = predictor.get_image_embedding()
    assert sam.image_encoder.optimize(dtype="bfloat16") is sam.image_encoder
    assert sam.image_encoder.neck[0].weight.dtype == torch.bfloat16
    predictor.set_image(picture())
    found = predictor.get_image_embedding()
    assert found.dtype == wanted.dtype and not torch.equal(found, wanted)
    assert predictor.predict()[0].shape[1:] == picture().shape[:2]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler for the CPU")
def test_real_kernels() -> None:
    """Through the compiler itself, once: the others only trace."""
    encoder = dense_sam(dense_config(little_dim=8, depth=2, global_layers=(1,))).image_encoder
    encoder.keep_ratio = 0.5
    pixels = image(encoder)
    with torch.inference_mode():
        wanted = encoder(pixels)
        found = encoder.optimize(dtype="float32", compile=True)(pixels)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_dtype_that_there_is_not(encoder: BigLittleEncoder) -> None:
    with pytest.raises(InputError, match="unknown dtype 'float16'"):
        encoder.optimize(dtype="float16")
