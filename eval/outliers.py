"""How number formats, C++ kernels and the warm start take weights with outliers: docs/robust.md. See --help."""

from research.outliers import main

if __name__ == "__main__":
    main()
