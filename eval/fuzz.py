"""Thousands of bad inputs, each of which must be refused in one line. See `python eval/fuzz.py --help`."""

import importlib.util
import sys
from pathlib import Path

# The fuzzer is a folder of the tests, and no part of the package.
_FUZZING = Path(__file__).resolve().parents[1] / "tests" / "fuzzing" / "__init__.py"
_spec = importlib.util.spec_from_file_location("fuzzing", _FUZZING)
sys.modules["fuzzing"] = importlib.util.module_from_spec(_spec)

from fuzzing.run import main  # noqa: E402

if __name__ == "__main__":
    main()
