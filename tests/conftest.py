"""No test changes the process for those that run after it, in whatever order they do."""

from __future__ import annotations

import os

import pytest
import torch

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
