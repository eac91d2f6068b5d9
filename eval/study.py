"""The ablations of docs/study.md. See --help."""

from research.study import main

if __name__ == "__main__":
    main()
