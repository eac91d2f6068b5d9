"""Bulk segmentation against the folder mode and a plain loop. See --help."""

from research.bulk_throughput import main

if __name__ == "__main__":
    main()
