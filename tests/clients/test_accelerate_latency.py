"""`eval/accelerate_latency.py` on a tiny model."""

from __future__ import annotations

import re

import accelerate_latency
import pytest

pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_prints_differences_and_times(capsys):
    accelerate_latency.main(["--shape", "tiny", "--runs", "1", "--warmup", "0", "--dtype", "bfloat16"])
    rows = capsys.readouterr().out.splitlines()
    differences = {row.split("  ")[0]: float(row.split()[-2]) for row in rows[1:4]}
    exact = differences.pop("accelerated, float32")
    assert differences.pop("transformers") == 0.0 < exact < 1e-4
    ((name, rounded),) = differences.items()
    assert "bfloat16" in name and exact < rounded < 0.1
    assert float(re.search(r"reach ([\d.]+)", rows[4])[1]) > 0.1


@pytest.mark.parametrize("flags", [["--model", "no/such/folder/here"], ["--runs", "0"], ["--warmup", "-1"]])
def test_bad_flags(flags, capsys):
    with pytest.raises(SystemExit) as end:
        accelerate_latency.main(["--shape", "tiny", *flags])
    assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1
