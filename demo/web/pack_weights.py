"""Weights of several ONNX graphs in one small file, each tensor once: for pages that download them.

Large matrices are kept as int8 with one float32 scale a column, other weights as float16, small ones stay float32 in
the graph. The graphs turn them back into float32 by Cast and Mul, which ONNX Runtime does once, when it loads them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALL = 512  # elements: fewer stay as they are
LARGE = 2**18  # elements of a matrix: as many become int8. Of the mini, these are the MLPs
_ALIGNMENT = 64  # bytes, of each tensor in the file


class WeightFile:
    """The file that graphs share: where the bytes of each tensor lie in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._content = bytearray()
        self._places: dict[str, int] = {}

    def add(self, name: str, values: np.ndarray) -> TensorProto:
        """A tensor of a graph whose bytes lie in the file."""
        content = np.ascontiguousarray(values).tobytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._places:
            self._content.extend(b"\0" * (-len(self._content) % _ALIGNMENT))
            self._places[digest] = len(self._content)
            self._content.extend(content)
        tensor = TensorProto(
            name=name, dims=values.shape, data_type=helper.np_dtype_to_tensor_dtype(values.dtype),
            data_location=TensorProto.EXTERNAL,
        )  # fmt: skip
        entries = {"location": self.path.name, "offset": self._places[digest], "length": len(content)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def write(self) -> None:
        self.path.write_bytes(bytes(self._content))


def pack(model: onnx.ModelProto, file: WeightFile) -> None:
    """Move the weights of `model` to `file`, in place, and drop what exporters note about each node."""
    kept, first = [], []
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < SMALL:
            kept.append(tensor)
            continue
        name = tensor.name
        if values.ndim == 2 and values.size >= LARGE:
            scale = np.abs(values).max(axis=0, keepdims=True).clip(min=np.finfo(np.float32).tiny) / 127
            rounded = np.round(values / scale).astype(np.int8)
            kept += [file.add(f"{name}.int8", rounded), numpy_helper.from_array(scale, f"{name}.scale")]
            first += [
                helper.make_node("Cast", [f"{name}.int8"], [f"{name}.cast"], to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name]),
            ]
        else:
            kept.append(file.add(f"{name}.half", values.astype(np.float16)))
            first.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    nodes = [*first, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
