"""Names that users import, commands that they type and scripts that they call: whatever moves inside, these stay."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from sam_bigltl._moved import MOVED
from sam_bigltl.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]

NAMES = {
    "sam_bigltl": "BigLittleClassifier BigLittleEncoder EncoderConfig InputError SamAutomaticMaskGenerator "
    "SamPredictor build_sam build_sam_vit_b build_sam_vit_h build_sam_vit_l convert_sam load_sam "
    "sam_model_registry save_sam tune",
    "sam_bigltl.automatic": "SamAutomaticMaskGenerator",
    "sam_bigltl.classifier": "BigLittleClassifier BigLittleDistilledClassifier",
    "sam_bigltl.cli": "COMMANDS main",
    "sam_bigltl.convert": "convert_sam convert_vit describe infer_config load_sam save_sam",
    "sam_bigltl.convert_vit": "convert_vit",
    "sam_bigltl.decode": "embed_prompts",
    "sam_bigltl.demo.cli": "main",
    "sam_bigltl.demo.engine": "Engine",
    "sam_bigltl.download": "download",
    "sam_bigltl.embeddings": "Embedding fingerprint",
    "sam_bigltl.encoder": "BigLittleEncoder EncoderConfig",
    "sam_bigltl.errors": "ArgumentParser InputError run_cli",
    "sam_bigltl.evaluation": "PROTOCOLS Annotation Clicker CocoImage InstanceResult Plan Protocol box_xyxy "
    "check_image_files evaluate load_coco mask_iou summarize summary_rows",
    "sam_bigltl.export": "encoder_program export_onnx",
    "sam_bigltl.focus": "box_weights",
    "sam_bigltl.hub": "from_pretrained save_pretrained",
    "sam_bigltl.images": "read_image write_image",
    "sam_bigltl.macs": "Macs count_macs",
    "sam_bigltl.memory": "keep_freed_memory",
    "sam_bigltl.mobile_stem": "MobileStem",
    "sam_bigltl.onnx_predictor": "OnnxSamPredictor",
    "sam_bigltl.open_classifier": "open_classifier",
    "sam_bigltl.precision": "PRECISIONS set_precision",
    "sam_bigltl.predictor": "SamPredictor",
    "sam_bigltl.quickstart": "iou sample_photos",
    "sam_bigltl.registry": "DENSE ENCODERS build_sam default_checkpoint sam_model_registry",
    "sam_bigltl.routing": "Route RouteGroup",
    "sam_bigltl.segment": "Prompt Segment draw_segments load_predictor segment_prompt",
    "sam_bigltl.trunk": "Taps Trunk",
    "sam_bigltl.visualize": "overlay routing_picture side_by_side",
    "sam_bigltl.warm_start": "warm_start",
}
COMMANDS_AND_TASKS = {
    "bench", "bulk", "convert", "demo", "distill", "download", "eval", "export", "quickstart", "segment", "train",
    "tune",
}  # fmt: skip
SCRIPTS = (
    "demo/app.py demo/failures.py demo/quickstart.py eval/classify_study.py eval/click_latency.py eval/coco_miou.py "
    "eval/digits.py eval/draw_architecture.py eval/exactness.py eval/fuzz.py eval/imagenet_top1.py eval/latency.py "
    "eval/layer_cost.py eval/lvis_miou.py eval/make_mini.py eval/memory.py eval/mini_candidates.py "
    "eval/object_crops.py eval/onnx_latency.py eval/study.py eval/throughput.py"
).split()


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    if module in ("sam_bigltl", "sam_bigltl.classifier", "sam_bigltl.convert_vit", "sam_bigltl.open_classifier"):
        pytest.importorskip("timm")
    if module == "sam_bigltl.export":
        pytest.importorskip("onnxscript")
    loaded = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(loaded, name)] == []


def test_former_names_are_the_modules_themselves():
    for former, name in MOVED.items():
        try:
            module = importlib.import_module(f"sam_bigltl.{name}")
        except ModuleNotFoundError as error:  # an extra that is not installed
            assert not error.name.startswith("sam_bigltl"), error
            continue
        assert importlib.import_module(f"sam_bigltl.{former}") is module, former
        assert module.__spec__.name == module.__name__ == f"sam_bigltl.{name}", former


def test_commands():
    assert set(COMMANDS) == COMMANDS_AND_TASKS


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts(script, monkeypatch):
    for needed in ("timm", "matplotlib", "onnxruntime"):
        pytest.importorskip(needed)
    monkeypatch.syspath_prepend(str((ROOT / script).parent))  # as `python script` does
    runpy.run_path(str(ROOT / script), run_name="imported")


def test_modules_that_run():
    for module in ("sam_bigltl.cli", "sam_bigltl.timm_script"):
        done = subprocess.run([sys.executable, "-m", module, "no_such_thing"], capture_output=True, text=True)
        assert done.returncode == 2 and "error" in done.stderr and "Traceback" not in done.stderr, done.stderr
