"""`segment_anything`'s builders by our names, and `from sam_bigltl import *`."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import segment_anything
import torch
from helpers import picture
from little_models import dense_config, small_reference_sam

import sam_bigltl
from sam_bigltl import InputError, SamPredictor
from sam_bigltl.convert.registry import ENCODERS

BUILDERS = ("build_sam", "build_sam_vit_b", "build_sam_vit_h", "build_sam_vit_l")


@pytest.mark.parametrize("name", BUILDERS)
def test_the_sizes_are_sams(name: str) -> None:
    with torch.device("meta"):  # ViT-H takes 2.5 GB
        ours, theirs = getattr(sam_bigltl, name)(), getattr(segment_anything, name)()
    shapes = [{key: value.shape for key, value in sam.state_dict().items()} for sam in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert type(ours) is type(theirs) and not ours.training and ours.image_encoder.img_size == 1024
    assert ours.mask_threshold == theirs.mask_threshold and ours.image_format == theirs.image_format


def test_signatures_and_aliases_are_sams() -> None:
    assert sam_bigltl.build_sam is sam_bigltl.build_sam_vit_h
    for name in BUILDERS:
        ours, theirs = (inspect.signature(getattr(package, name)) for package in (sam_bigltl, segment_anything))
        assert [(p.name, p.default, p.kind) for p in ours.parameters.values()] == [
            (p.name, p.default, p.kind) for p in theirs.parameters.values()
        ]


@pytest.mark.parametrize("name,key", [("build_sam_vit_b", "vit_b"), ("build_sam", "vit_h")])
def test_a_checkpoint_of_sams(name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a tiny size, and exact."""
    monkeypatch.setitem(ENCODERS, key, dense_config())
    sam, path = small_reference_sam(), tmp_path / "sam.pth"
    torch.save(sam.state_dict(), path)
    found = []
    for model in (getattr(sam_bigltl, name)(checkpoint=str(path)), sam):
        predictor = (SamPredictor if model is not sam else segment_anything.SamPredictor)(model)
        predictor.set_image(picture())
        found.append(predictor.predict(box=np.array([5, 5, 40, 25]), return_logits=True))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    with pytest.raises(InputError):
        sam_bigltl.build_sam_vit_l(path)


def imported(without: str) -> list[str]:
    """What `from sam_bigltl import *` gives in a process that lacks a package."""
    program = f"""
import sys
sys.modules[{without!r}] = None
before = set(globals()) | {{"before"}}
from sam_bigltl import *
print(*sorted(set(globals()) - before))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout.split()


def test_import_everything() -> None:
    # `build_sam` and what belongs to it are what people who use segment_anything this way expect.
    names = imported("timm")
    assert {*BUILDERS, "SamPredictor", "SamAutomaticMaskGenerator", "sam_model_registry", "load_sam"} <= {*names}
    assert "BigLittleClassifier" not in names and imported("torch") == ["InputError"]


def test_import_everything_with_timm() -> None:
    pytest.importorskip("timm")
    names: dict[str, object] = {}
    exec("from sam_bigltl import *", names)
    assert names.keys() - {"__builtins__"} == {*sam_bigltl.__all__} and "BigLittleClassifier" in names


def test_a_name_whose_package_is_missing_says_so() -> None:
    program = "import sys; sys.modules['timm'] = None; from sam_bigltl import BigLittleClassifier"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "timm" in done.stderr.splitlines()[-1]
