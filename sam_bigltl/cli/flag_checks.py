"""Checks of the numbers that a command line is given; each raises InputError, which names the flag."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

from ..errors import InputError


def flag(name: str) -> str:
    """An attribute's name as its flag."""
    return "--" + name.replace("_", "-")


def at_least_one(values: Any, names: Iterable[str]) -> None:
    """The attributes `names` of `values` are 1 or more."""
    for name in names:
        if getattr(values, name) < 1:
            raise InputError(f"{flag(name)} is at least 1, not {getattr(values, name)}")


def not_negative(values: Any, names: Iterable[str]) -> None:
    """They are 0 or more, and finite."""
    for name in names:
        if not 0 <= getattr(values, name) < inf:
            raise InputError(f"{flag(name)} is not negative, but {getattr(values, name):g} is given")


def positive(values: Any, names: Iterable[str]) -> None:
    """They are above 0, and finite."""
    for name in names:
        if not 0 < getattr(values, name) < inf:
            raise InputError(f"{flag(name)} is positive, not {getattr(values, name):g}")


def below_one(values: Any, names: Iterable[str]) -> None:
    """They are in [0, 1)."""
    for name in names:
        if not 0 <= getattr(values, name) < 1:
            raise InputError(f"{flag(name)} is in [0, 1), not {getattr(values, name):g}")


def probability(values: Any, names: Iterable[str]) -> None:
    """They are in [0, 1]."""
    for name in names:
        if not 0 <= getattr(values, name) <= 1:
            raise InputError(f"{flag(name)} is a probability in [0, 1], not {getattr(values, name):g}")
