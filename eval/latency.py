"""Measure encoder latency. See `python eval/latency.py --help` and `sam_bigltl/bench.py`."""

from sam_bigltl.bench import main

if __name__ == "__main__":
    main()
