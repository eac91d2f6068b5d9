"""Measure encoder latency. See `python eval/latency.py --help` and `sam_bigltl/latency/`."""

from sam_bigltl.cli.bench import main

if __name__ == "__main__":
    main()
