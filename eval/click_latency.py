"""Measure what a click costs. See `python eval/click_latency.py --help` and `sam_bigltl/latency/clicks.py`."""

from sam_bigltl.bench.clicks import main

if __name__ == "__main__":
    main()
