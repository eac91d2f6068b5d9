"""Check that a converted SAM encoder equals the original. See `python eval/exactness.py --help`."""

from sam_bigltl.bench.exactness import main

if __name__ == "__main__":
    main()
