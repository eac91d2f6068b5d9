"""What a run could not use: named, with the reason."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError, in_one_line
from .files import csv_cell, encodable, whole_file

MOST = 0.25  # share of images that cannot be read, of which a figure is still one


@dataclass(frozen=True)
class Skipped:
    """A photograph or shard that cannot be used, and why, in one line."""

    key: str
    reason: str

    def __post_init__(self) -> None:
        for name in ("key", "reason"):
            object.__setattr__(self, name, encodable(getattr(self, name)))


def write_skipped(path: Path, skipped: dict[str, str]) -> None:
    """Names and reasons, one a line."""
    with whole_file(path) as file:
        writer = csv.writer(file)
        writer.writerow(("name", "reason"))
        writer.writerows(map(csv_cell, row) for row in sorted(skipped.items()))


class Unreadable:
    """Those of `total` images that cannot be read: `reasons` by name."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.reasons: dict[str, str] = {}

    def add(self, skipped: Iterable[Skipped]) -> None:
        """Take note. Raises InputError where they are too many for the others to stand for all."""
        self.update({each.key: each.reason for each in skipped})

    def update(self, reasons: dict[str, str]) -> None:
        """`add`, of reasons by name."""
        self.reasons |= reasons
        if len(self.reasons) > MOST * self.total:
            raise InputError(
                f"{len(self.reasons)} of {self.total} images cannot be read so far, and more than {MOST:.0%} are too "
                f"many: repair or remove them; the first: {next(iter(self.reasons.values()))}"
            )

    def finish(self, prog: str, path: Path, repair: str) -> None:
        """Where there are some, name them all in `path`, the first on stderr, and end the process with exit code 1.

        Args:
            repair: what to do, for the message.
        """
        path.unlink(missing_ok=True)  # an earlier run's
        if not self.reasons:
            return
        write_skipped(path, self.reasons)
        first = in_one_line(next(iter(self.reasons.values())))
        print(
            f"{prog}: {len(self.reasons)} of {self.total} images could not be read, the results are those of the "
            f"others (see {path}; {repair}); the first: {first}", file=sys.stderr,
        )  # fmt: skip
        sys.exit(1)
