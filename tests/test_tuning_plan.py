"""The plan of a tuning: what fits into the time, and how long it takes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import segment_anything
import torch

from sam_bigltl import InputError
from sam_bigltl.bench.macs import count_macs
from sam_bigltl.memory import available_memory
from sam_bigltl.modeling.registry import ENCODERS
from sam_bigltl.tuning import run
from sam_bigltl.tuning.plan import FEWEST_FIT, FEWEST_MEASURE, Costs, Plan, duration, macs_on_paper, make_plan, of_vit_h
from sam_bigltl.tuning.settings import FORMATS, RATIOS, Setting, settings_of

COSTS = Costs(
    original=2.0, objects=5.0, decode=0.5,
    formats={Setting(*each).format: (whole, whole / 4) for each, whole in zip(FORMATS, (1.6, 1.4, 1.2, 0.8, 0.9, 0.4))},
)  # fmt: skip
SETTINGS = tuple(settings_of(FORMATS, RATIOS, (0.5, 0.25)))
WHOLE = Plan(40, 20, 7, SETTINGS)


def test_passes_take_a_straight_line_of_the_ratio():
    setting = Setting("int8", True, 1.0)
    assert COSTS.seconds(setting) == pytest.approx(0.4)
    assert COSTS.seconds(replace(setting, keep_ratio=0.125)) == pytest.approx(0.1)
    assert COSTS.seconds(replace(setting, keep_ratio=(1.0, 0.125))) == pytest.approx(0.25)


def test_everything_is_planned_where_there_is_time():
    assert make_plan(COSTS, WHOLE, None) is WHOLE
    assert make_plan(COSTS, WHOLE, WHOLE.seconds(COSTS)) is WHOLE


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25, 0.12, 0.08])
def test_less_time_is_kept_and_used(share):
    budget = share * WHOLE.seconds(COSTS)
    plan = make_plan(COSTS, WHOLE, budget)
    assert plan.seconds(COSTS) <= budget
    assert FEWEST_FIT <= plan.fit <= 40 and FEWEST_MEASURE <= plan.measure <= 20 and 2 <= plan.rounds <= 7
    assert plan.seconds(COSTS) > 0.5 * budget
    kept = {setting.format for setting in plan.settings}
    assert "int8 with C++ kernels" in kept  # the fastest
    if plan.settings != SETTINGS:  # only where the fewest photographs with all settings take longer
        assert Plan(FEWEST_FIT, FEWEST_MEASURE, 2, SETTINGS).seconds(COSTS) > budget


def test_too_little_time_is_named():
    with pytest.raises(InputError, match=r"needs about \d+\.\d minutes at least on this machine, and --budget is 0\.1"):
        make_plan(COSTS, WHOLE, 6.0)


def test_the_time_that_is_named_is_enough():
    with pytest.raises(InputError) as caught:
        make_plan(COSTS, WHOLE, 6.0)
    enough = float(str(caught.value).split("give ")[1].split(",")[0])
    assert make_plan(COSTS, WHOLE, 60 * enough).seconds(COSTS) <= 60 * enough


def test_a_plan_goes_through_a_file():
    plan = replace(WHOLE, settings=(*SETTINGS, Setting(keep_ratio=(1.0, 0.5))), trains=True)
    assert Plan.from_json(plan.as_json()) == plan
    assert {setting.dtype for setting in plan.before_training} == {"float32"}
    assert plan.seconds(COSTS) > replace(plan, trains=False).seconds(COSTS)


def test_products_on_paper_are_those_of_the_model():
    encoder = segment_anything.sam_model_registry["vit_b"]().image_encoder
    with torch.device("meta"):
        expected = count_macs(encoder.to("meta"), torch.empty(1, 3, 1024, 1024)).total
    assert macs_on_paper(ENCODERS["vit_b"]) == expected
    assert 2900e9 < macs_on_paper(ENCODERS["vit_h"]) < 3100e9


def test_a_vit_h_costs_as_much_more_as_it_computes():
    config = ENCODERS["vit_b"]
    large = of_vit_h(COSTS, macs_on_paper(config), config)
    factor = macs_on_paper(ENCODERS["vit_h"]) / macs_on_paper(config)
    assert large.original == pytest.approx(2.0 * factor)
    assert large.decode == COSTS.decode  # the same grid
    assert large.objects == pytest.approx(2.0 * factor + 3.0)


def test_durations_in_words():
    assert [duration(seconds) for seconds in (0.2, 61, 600, 11400)] == ["1 s", "61 s", "10 min", "3 h 10 min"]


def test_available_memory_is_the_least_of_machine_and_group(tmp_path):
    assert available_memory(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable:   500 kB\n")
    assert available_memory(tmp_path) == 500 * 1024
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("100\n")
    assert available_memory(tmp_path) == 500 * 1024
    (group / "memory.max").write_text("4196\n")
    assert available_memory(tmp_path) == 4096


def test_fewer_photographs_are_fitted_where_memory_is_short(monkeypatch):
    said = []
    one = SimpleNamespace(model=None, say=said.append)
    monkeypatch.setattr(run, "fitting_memory", lambda _, count: 10.0 * count)
    for free, expected in ((None, 40), (800, 40), (799, 39), (80, FEWEST_FIT)):
        monkeypatch.setattr(run, "available_memory", lambda free=free: free)
        assert run.Run._fit_into_memory(one, 40) == expected
    assert len(said) == 2 and "room for 39 photographs" in said[0]
    monkeypatch.setattr(run, "available_memory", lambda: 79)
    with pytest.raises(InputError, match="free memory"):
        run.Run._fit_into_memory(one, 40)
