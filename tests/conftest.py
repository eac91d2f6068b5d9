"""Fixtures of several files; and no test changes the process for those that run after it, in whatever order they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_cli
import torch
from bulk_toy import bulk, bulk_checkpoint, bulk_photos, bulk_prompts, ray_cluster  # noqa: F401 - fixtures
from chromium import address, browser, photo  # noqa: F401 - fixtures
from evaluation_toy import data, many, stub_model  # noqa: F401 - fixtures
from training_toy import write_shapes

from sam_bigltl.training.denormals import denormals_are_zero


def process_state() -> dict[str, object]:
    return {
        "working folder": os.getcwd(),
        "denormals are zero": denormals_are_zero(),
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "float32 products": torch.get_float32_matmul_precision(),
    }


@pytest.fixture(autouse=True, scope="module")
def same_process_after():
    before = process_state()
    yield
    after = process_state()
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not changed, changed


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread: results to the last bit, and no waiting for the other core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(one_thread: None) -> Iterator[None]:
    """The tiny models, one thread, for `main` in this process."""
    with tiny_cli.registered():
        yield


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `train.json` of some photographs with shapes."""
    return write_shapes(tmp_path_factory.mktemp("shapes"))
