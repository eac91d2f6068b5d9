"""The fuzzer's own processes: it sees hanging ones, left ones, tracebacks and codes."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time

import pytest

pytest.importorskip("timm")
pytest.importorskip("accelerate")
pytest.importorskip("webdataset")

from fuzzing import run as fuzz
from fuzzing.children import run_child
from fuzzing.processes import problem

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


def test_a_process_that_never_ends_is_ended():
    began = time.monotonic()
    ended = run_child(lambda: time.sleep(600), limit=1.0)
    assert ended.hung and time.monotonic() - began < 30
    assert problem(ended, False, False) == "hangs"


def test_processes_that_are_left_behind_are_seen_and_ended():
    def leave() -> None:
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)

    ended = run_child(leave)
    assert ended.left and problem(ended, False, False) == "leaves processes behind"


def test_what_a_process_writes_and_how_it_ends():
    def line_and_code() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))  # the words arrive all the same
        print("a: error: one line", file=sys.stderr)
        raise SystemExit(2)

    ended = run_child(line_and_code)
    assert (ended.code, ended.output) == (2, "a: error: one line\n") and not problem(ended, False, False)

    def dies() -> None:
        raise KeyError("bbox")

    ended = run_child(dies)
    assert problem(ended, False, False) == "traceback: KeyError: 'bbox'"
    assert "code 70" in problem(run_child(lambda: os._exit(70)), False, False)
    assert "ran a command" in problem(run_child(lambda: None), False, True)
    silent = run_child(lambda: os._exit(2))
    assert problem(silent, False, False) == "code 2 without a word" and not problem(silent, True, False)


def test_a_signal_reaches_the_process():
    ended = run_child(lambda: time.sleep(600), (signal.SIGTERM, 0.2))
    assert not ended.hung and ended.code == -signal.SIGTERM
    assert not problem(ended, True, False) and problem(ended, False, False)


def test_a_case_that_hangs_in_this_process_is_a_finding():
    def forever(rng) -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                pass

    outcome, _, text = fuzz._outcome(forever, None, limit=0.3)
    assert outcome == "findings" and "hangs" in text
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_rare_areas_get_their_share():
    order = fuzz._order(["pictures", "processes", "weights"])
    assert order.count("processes") == 1 and order.count("pictures") == order.count("weights") == fuzz.RARE["processes"]
    assert fuzz._order(["processes"]) == ["processes"]
