"""Other people's models by name: what a user's `module:callable` returns."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError


def call_named(option: str, name: str, *arguments: Any) -> Any:
    """Import and call.

    Args:
        option: the option that gave the name, for messages.
        name: `package.module:callable`, or `path/to/file.py:callable`.
        arguments: for the callable.

    Raises:
        InputError: there is no such module or callable, or it fails.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        raise InputError(f"{option} {name!r} is not module:callable, such as my_models.py:mobile_sam")
    try:
        function: Any = getattr(_module(module_name), attribute)
    except (ImportError, OSError, SyntaxError) as error:
        raise InputError(f"{option} {name}: cannot import {module_name} ({error})") from error
    except AttributeError:
        raise InputError(f"{option} {name}: {module_name} has no {attribute}") from None
    try:
        return function(*arguments)
    except Exception as error:  # whatever a stranger's code does
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{option} {name} failed: {type(error).__name__}: {reason}") from error


def _module(name: str) -> ModuleType:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None and spec.loader is not None  # of a name that ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
