"""The closed-form start, measured: docs/fit.md. See --help."""

from research.fit_study import main

if __name__ == "__main__":
    main()
