"""A few hundred of the fuzzer's inputs, and that it sees what it looks for."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

pytest.importorskip("timm")
pytest.importorskip("accelerate")
pytest.importorskip("webdataset")

from fuzzing import run as fuzz
from fuzzing.mutate import mutate_bytes, mutate_json, mutate_words

from sam_bigltl.errors import InputError


def test_bad_input_is_refused_in_one_line():
    before = Path.cwd()
    outcomes, findings = fuzz.run_cases(range(300), list(fuzz.AREAS), seed=5)  # three of them processes
    assert not findings, "\n".join(map(str, findings))
    assert outcomes["refused"] > 200 and sum(outcomes.values()) == 300
    assert Path.cwd() == before


def raises(error: BaseException, words: str = ""):
    def case(rng: Random) -> None:
        print(words)
        raise error

    return case


@pytest.mark.parametrize(
    ("case", "outcome"),
    [
        (raises(InputError("the box has no area")), "refused"),
        (raises(InputError("two\nlines of it")), "findings"),
        (raises(KeyError("bbox")), "findings"),
        (raises(ValueError("an InputError is one, but not the other way round")), "findings"),
        (raises(SystemExit(2), "a: error: one line"), "refused"),
        (raises(SystemExit(2), "two\nlines"), "findings"),
        (raises(SystemExit(1), "one line"), "findings"),
        (raises(SystemExit(0), "usage:\nmany lines"), "refused"),
        (lambda rng: None, "accepted"),
    ],
)
def test_what_counts_as_a_finding(case, outcome):
    assert fuzz._outcome(case, Random(0))[0] == outcome


def test_a_case_depends_on_its_number_only(monkeypatch):
    seen: list[float] = []
    monkeypatch.setattr(fuzz, "AREAS", {"a": lambda folder: lambda rng: seen.append(rng.random())})
    fuzz.run_cases(range(5), ["a"], seed=3)
    fuzz.run_cases([3], ["a"], seed=3)
    assert seen[5] == seen[3] and len(set(seen)) == 5


def test_findings_are_printed_with_what_repeats_them(monkeypatch, capsys):
    def sometimes(rng: Random) -> None:
        if rng.random() < 0.5:
            raise KeyError("bbox")

    monkeypatch.setattr(fuzz, "AREAS", {"a": lambda folder: sometimes})
    with pytest.raises(SystemExit) as end:
        fuzz.main(["--count", "20", "--seed", "7"])
    assert end.value.code == 1
    printed = capsys.readouterr().out
    words = next(line for line in printed.splitlines() if "eval/fuzz.py" in line).split()[2:]
    with pytest.raises(SystemExit):
        fuzz.main(words)
    assert "1 inputs" in capsys.readouterr().out


def test_damage_is_damage():
    document = {"a": [1, {"b": 2}], "c": "d"}
    assert sum(mutate_json(Random(seed), document) != document for seed in range(50)) > 45
    assert document == {"a": [1, {"b": 2}], "c": "d"}
    assert sum(mutate_bytes(Random(seed), b"content" * 20) != b"content" * 20 for seed in range(50)) > 45
    assert sum(mutate_words(Random(seed), ["--a", "1", "b"]) != ["--a", "1", "b"] for seed in range(50)) > 45


def test_the_command_line_refuses(capsys):
    for words in (["--count", "0"], ["--start", "-1"], ["--areas", "none"]):
        with pytest.raises(SystemExit) as end:
            fuzz.main(words)
        assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
