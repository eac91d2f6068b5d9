"""Memory over many photographs. See `python eval/memory.py --help`."""

from sam_bigltl.memory_growth import main

if __name__ == "__main__":
    main()
