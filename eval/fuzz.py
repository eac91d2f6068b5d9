"""Thousands of bad inputs, each of which must be refused in one line. See `python eval/fuzz.py --help`."""

from sam_bigltl.fuzz.run import main

if __name__ == "__main__":
    main()
