"""Run one of timm's own scripts with this project's models registered.

    python -m sam_bigltl.timm_script pytorch-image-models/validate.py --model bigltl_small_patch16_224 \\
        --model-kwargs keep_ratio=0.5 ...

timm has no way to find models of other packages by itself; nothing else of the script changes.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from .errors import InputError, run_cli
from .modeling import classifier  # noqa: F401 - registers the models


def main(argv: list[str]) -> None:
    """Run `argv[0]` with the other words as its command line."""

    def run(words: list[str]) -> None:
        if not words or not Path(words[0]).is_file():
            raise InputError(f"give the path of a script of timm's checkout, not {words[0] if words else 'nothing'}")
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")

    run_cli("python -m sam_bigltl.timm_script", run, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
