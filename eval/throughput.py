"""Prompts per second of the evaluation against a plain loop. See --help."""

from sam_bigltl.evaluation.throughput import main

if __name__ == "__main__":
    main()
