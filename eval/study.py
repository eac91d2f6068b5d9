"""The ablations of docs/study.md. See --help."""

from sam_bigltl.training.study import main

if __name__ == "__main__":
    main()
