"""Measure ONNX Runtime against torch. See `python eval/onnx_latency.py --help`, `sam_bigltl/bench/onnx_runtime.py`."""

from sam_bigltl.bench.onnx_runtime import main

if __name__ == "__main__":
    main()
