"""Modules under the names that they had before they moved into rooms: importing one gives the module itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

# Former name: where it is now, both inside this package.
MOVED = {
    "attention": "modeling.attention",
    "automatic": "predict.automatic",
    "blocks": "modeling.blocks",
    "callables": "convert.callables",
    "checkpoints": "convert.checkpoints",
    "classifier": "modeling.classifier",
    "convert_cli": "cli.convert",
    "convert_vit": "convert.vit",
    "decode": "modeling.decode",
    "demo.cli": "cli.demo",
    "demo.thresholds": "predict.thresholds",
    "devices": "fast.devices",
    "download": "convert.download",
    "embeddings": "predict.embeddings",
    "encoder": "modeling.encoder",
    "evaluation.cli": "cli.evaluate",
    "evaluation.datasets": "data.coco",
    "evaluation.fields": "data.fields",
    "evaluation.files": "data.files",
    "evaluation.rle": "data.rle",
    "exactness": "bench.exactness",
    "export": "convert.export",
    "export_cli": "cli.export",
    "files": "data.files",
    "flag_checks": "cli.flag_checks",
    "focus": "predict.focus",
    "hub": "convert.hub",
    "images": "data.images",
    "latency": "bench",
    "latency.cases": "bench.cases",
    "latency.cli": "cli.bench",
    "latency.clicks": "bench.clicks",
    "latency.models": "bench.models",
    "latency.onnx_runtime": "bench.onnx_runtime",
    "latency.plot": "bench.plot",
    "latency.report": "bench.report",
    "latency.timing": "bench.timing",
    "latency.worker": "bench.worker",
    "layer_cost": "bench.layer_cost",
    "macs": "bench.macs",
    "memory_growth": "bench.memory_growth",
    "mobile_stem": "modeling.mobile_stem",
    "native": "fast.native",
    "native.build": "fast.native.build",
    "native.ops": "fast.native.ops",
    "onnx_files": "convert.onnx_files",
    "onnx_predictor": "predict.onnx_predictor",
    "open_classifier": "convert.classifiers",
    "precision": "fast.precision",
    "predictor": "predict.predictor",
    "probe": "convert.probe",
    "prompt_checks": "predict.prompt_checks",
    "quantize": "fast.quantize",
    "quickstart": "cli.quickstart",
    "ragged": "modeling.layouts",
    "registry": "convert.registry",
    "resize": "predict.resize",
    "routing": "modeling.routing",
    "segment": "predict.segment",
    "segment_folder": "predict.segment_folder",
    "stem": "modeling.stem",
    "training.classify_cli": "cli.classify",
    "training.cli": "cli.train",
    "training.crops": "data.crops",
    "training.distill_cli": "cli.distill",
    "training.interrupts": "data.interrupts",
    "training.labelled": "data.labelled",
    "training.photos": "data.photos",
    "training.shards": "data.shards",
    "training.skipped": "data.skipped",
    "training.sources": "data.sources",
    "training.workers": "data.workers",
    "trunk": "modeling.trunk",
    "two_way": "modeling.two_way",
    "visualize": "predict.visualize",
    "warm_start": "convert.warm_start",
}
_PACKAGE = __name__.rpartition(".")[0]


class _Moved(MetaPathFinder, Loader):
    """Finds the former names.

    It is the first of all finders: a folder under its former name would hold its files a second time.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == _PACKAGE and name in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(f"{_PACKAGE}.{MOVED[spec.name.partition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        former = module.__spec__
        assert former is not None
        module.__spec__ = former.loader_state  # the import system has put the former name's in its place


def install() -> None:
    """Let the former names be imported."""
    sys.meta_path.insert(0, _Moved())
