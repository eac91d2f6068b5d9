"""Reading JSON with errors of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sam_bigltl.errors import InputError


def load_json(path: str | Path, kind: str, missing: str, wrong: str) -> Any:
    """The content of a JSON file.

    Args:
        kind: what the file is, such as "annotations".
        missing, wrong: what to do where there is no such file, and where it is not JSON.

    Raises:
        InputError: the file is missing, cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{kind} file {path} does not exist; {missing}") from None
    except OSError as error:
        raise InputError(f"{kind} file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); {wrong}") from error
