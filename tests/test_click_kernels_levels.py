"""The C++ kernels around the blocks in every level of instructions: small cases of `test_click_kernels.py`."""

from __future__ import annotations

import pytest
import test_click_kernels as cases
import torch
from test_click_kernels import embedding, test_sams_projection, without_gradients  # noqa: F401
from test_native_levels import kernels  # noqa: F401

from sam_bigltl.fast.native import enlarge
from sam_bigltl.modeling.mobile_stem import MobileStem


@pytest.mark.parametrize("size, filled", [((32, 48), (17, 46))])
def test_the_patch_embedding(embedding: MobileStem, size: tuple[int, int], filled: tuple[int, int]) -> None:  # noqa: F811
    cases.test_the_patch_embedding(embedding, size, filled)


@pytest.mark.parametrize("grid", [(1, 1), (3, 7)])
def test_the_neck(grid: tuple[int, int]) -> None:
    cases.test_the_neck(grid)


@pytest.mark.parametrize("grid, prompts, masks", [((3, 2), 2, 3), ((1, 1), 1, 1)])
def test_drawing(grid: tuple[int, int], prompts: int, masks: int) -> None:
    cases.test_drawing(grid, prompts, masks)


@pytest.mark.parametrize("original", [(150, 100), (17, 40)])
def test_masks_are_those_of_sam(original: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    axis = enlarge._axis

    def recorded(before: int, after: int) -> tuple:
        arrays = axis(before, after)
        for array in arrays:
            torch.from_numpy(array).data_ptr()  # the other process needs to know them
        return arrays

    monkeypatch.setattr(enlarge, "_axis", recorded)
    cases.test_masks_are_those_of_sam(original, 3)
