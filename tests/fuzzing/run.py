"""Runs the cases and counts what comes of them."""

from __future__ import annotations

import argparse
import io
import os
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from tqdm import tqdm

from sam_bigltl.errors import ArgumentParser, InputError, run_cli

from . import children, commands, documents, pictures, processes, prompts, weights

Case = Callable[[Random], None]
AREAS: dict[str, Callable[[Path], Case]] = {
    "commands": commands.make, "documents": documents.make, "pictures": pictures.make, "prompts": prompts.make,
    "weights": weights.make, "processes": processes.make,
}  # fmt: skip
RARE = {"processes": 20}  # areas that get one input in so many of the others: each takes a second
SLOW = 20.0  # seconds of one case in this process, after which it is interrupted


@dataclass(frozen=True)
class Finding:
    """What a case should not have done; `number` is the case's, `place` the file and line, `text` what was raised."""

    number: int
    area: str
    place: str
    text: str


def run_cases(numbers: Sequence[int], areas: Sequence[str], seed: int) -> tuple[Counter[str], list[Finding]]:
    """Run the cases of these numbers, of each area in turn; a case depends on `seed` and its number alone.

    Returns:
        how many cases were refused, accepted and findings, and the findings.
    """
    outcomes: Counter[str] = Counter()
    findings: list[Finding] = []
    with _scratch() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = {}
        for name in areas:
            (folder / name).mkdir()
            cases[name] = AREAS[name](folder / name)
        order = _order(areas)
        for number in tqdm(numbers, unit="input", disable=None):
            name = order[number % len(order)]
            os.chdir(folder / name)
            limit = 2 * children.LIMIT if name in RARE else SLOW
            outcome, place, text = _outcome(cases[name], Random(f"{seed}:{number}"), limit)
            outcomes[outcome] += 1
            if outcome == "findings":
                findings.append(Finding(number, name, place, text))
    return outcomes, findings


def _order(areas: Sequence[str]) -> list[str]:
    """The areas of consecutive inputs."""
    usual = [name for name in areas if name not in RARE]
    rare = [name for name in areas if name in RARE]
    return usual * max((RARE[name] for name in rare), default=1) + rare if usual else rare


class _TooSlow(BaseException):
    """Not an Exception: nothing but this file may catch it."""


def _too_slow(number: int, frame: object) -> None:
    raise _TooSlow


def _outcome(case: Case, rng: Random, limit: float = SLOW) -> tuple[str, str, str]:
    """ "refused", "accepted" or "findings", and of a finding where and what."""
    output = io.StringIO()
    before = signal.signal(signal.SIGALRM, _too_slow)
    try:
        with redirect_stdout(output), redirect_stderr(output):
            signal.setitimer(signal.ITIMER_REAL, limit)
            try:
                case(rng)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        outcome = "accepted", "", ""
    except InputError as error:
        ill = "\n" in str(error) or len(str(error)) < 10
        outcome = ("findings", _place(error), f"unclear message {error}") if ill else ("refused", "", "")
    except SystemExit as end:
        lines = output.getvalue().strip().splitlines()
        ill = end.code not in (0, 2) or (end.code == 2 and len(lines) != 1)
        outcome = ("findings", "exit", f"code {end.code}: {lines[-3:]}") if ill else ("refused", "", "")
    except _TooSlow as error:
        outcome = "findings", _place(error), f"hangs: not done after {limit:g} s"
    except Exception as error:
        outcome = "findings", _place(error), f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    finally:
        signal.signal(signal.SIGALRM, before)
    return outcome


def _place(error: BaseException) -> str:
    """The innermost line of this package."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "sam_bigltl" in frame.filename] or frames
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"


@contextmanager
def _scratch() -> Iterator[Path]:
    before = Path.cwd()
    with TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        finally:
            os.chdir(before)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `eval/fuzz.py`."""
    parser.add_argument("--count", type=int, default=10_000, help="inputs (10000)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--start", type=int, default=0, metavar="N", help="number of the first input (0)")
    parser.add_argument("--areas", nargs="+", choices=list(AREAS), default=list(AREAS), help="(all)")


def run(args: argparse.Namespace) -> None:
    """Run the inputs, print what came of them, and exit with code 1 where there are findings."""
    if args.count < 1 or args.start < 0:
        raise InputError("--count is at least 1 and --start not negative")
    began = time.perf_counter()
    outcomes, findings = run_cases(range(args.start, args.start + args.count), args.areas, args.seed)
    by_kind: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        by_kind.setdefault((finding.area, finding.place, finding.text.split(":")[0]), []).append(finding)
    areas = "" if args.areas == list(AREAS) else f" --areas {' '.join(args.areas)}"
    for (area, place, _), same in by_kind.items():
        print(f"{len(same)} x {area}, {place}: {same[0].text}")
        print(f"    python eval/fuzz.py --seed {args.seed} --start {same[0].number} --count 1{areas}")
    print(f"{sum(outcomes.values())} inputs in {time.perf_counter() - began:.0f} s: {outcomes['refused']} refused, "
          f"{outcomes['accepted']} accepted, {outcomes['findings']} findings")  # fmt: skip
    if findings:
        raise SystemExit(1)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of `eval/fuzz.py`."""
    parser = ArgumentParser(prog="fuzz.py", description="Thousands of bad inputs: each must be refused in one line.")
    add_arguments(parser)
    run_cli(parser.prog, run, parser.parse_args(argv))
