import types

import numpy as np
import pytest

from t5x_style.accounting import budget_of, chip
from t5x_style.accounting.planner import budget as budgets
from t5x_style.errors import UsageError


def test_budget():
    """Golden: 0.75 x 1.3e6 hours at 100 TFLOP/s is BloombergGPT's 3.51e23."""
    budget = budget_of(chip_name="a100_40gb", chip_hours=0.75 * 1.3e6, mfu=100 / 312)
    assert budget.flops == pytest.approx(3.51e23, rel=1e-15)


def test_every_form_of_one_budget_is_the_same_budget():
    peak = chip("v5p").peak_bf16_flops
    by_days = budget_of(chip_name="v5p", chips=64, days=10, mfu=0.5)
    assert by_days.flops == pytest.approx(64 * 10 * 86400 * peak * 0.5)
    by_hours = budget_of(chip_name="v5p", chip_hours=64 * 240, mfu=0.5)
    by_money = budget_of(chip_name="v5p", money=64 * 240 * 4.2, price_per_chip_hour=4.2, mfu=0.5)
    by_flops = budget_of(flops=by_days.flops, chip_name="v5p", chips=64, mfu=0.5)
    for other in (by_hours, by_money, by_flops):
        assert other.flops == pytest.approx(by_days.flops, rel=1e-12)
        assert other.chip_hours(other.flops) == pytest.approx(64 * 240, rel=1e-12)
    assert by_flops.days(by_flops.flops) == pytest.approx(10, rel=1e-12)
    assert by_money.cost(by_money.flops) == pytest.approx(64 * 240 * 4.2, rel=1e-12)
    assert by_hours.days(1.0) is None  # of how many chips?
    assert by_hours.cost(1.0) is None


def test_the_expected_mfu_stands_in_where_none_is_given():
    assert budget_of(chip_name="h100", chips=8, days=1).mfu == 0.4
    assert budget_of(flops=1e21).mfu is None


def test_ten_minutes_of_this_cpu(monkeypatch):
    # Between a toy and a workstation of a hundred cores.
    assert 1e9 < budgets.measured_cpu_flops(0.01) < 2e13
    monkeypatch.setattr(budgets, "measured_cpu_flops", lambda: 2e11)
    budget = budget_of(cpu_minutes=10, price_per_chip_hour=3)
    # A quarter of what large products reach, for 600 seconds.
    assert budget.flops == 0.25 * 2e11 * 600
    assert (budget.form, budget.chip, budget.chips) == ("cpu_minutes", "this_cpu", 1)
    assert (budget.peak_flops, budget.mfu) == (2e11, 0.25)
    assert budget.days(budget.flops) * 1440 == pytest.approx(10)
    assert budget.cost(budget.flops) == pytest.approx(0.5)
    assert budget_of(cpu_minutes=10, mfu=0.5).flops == 0.5 * 2e11 * 600


def test_this_cpus_rate_is_that_of_its_fastest_product(monkeypatch):
    """2 x 1,024^3 FLOPs in the least time, and the first product, which starts threads, untimed."""
    durations = [5.0, 0.1, 0.08, 0.2, 9.0]
    calls, now = [], [100.0]

    def matmul(left, right, out):
        assert left.shape == right.shape == out.shape == (1024, 1024)
        assert left.dtype == out.dtype == np.float32
        now[0] += durations[len(calls)]
        calls.append(now[0])

    monkeypatch.setattr(np, "matmul", matmul)
    monkeypatch.setattr(budgets, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    assert budgets.measured_cpu_flops() == pytest.approx(2 * 1024**3 / 0.08)
    # A quarter of a second is over after the third.
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs a budget"),
        ({"flops": 1e20, "cpu_minutes": 5}, "--flops and --cpu_minutes are given together"),
        ({"flops": -1e20}, "--flops=-1e"),
        ({"flops": float("nan")}, "--flops=nan"),
        ({"chip_name": "v5e", "chips": 0, "days": 1}, "--chips=0"),
        ({"flops": 1e20, "mfu": 1.01}, "a share of the peak, so at most 1"),
        ({"cpu_minutes": 5, "chips": 1}, "--chips another"),
        ({"flops": 1e20, "chips": 4}, "--chips=4 needs --chip"),
        ({"flops": 1e20, "price_per_chip_hour": 2}, "--price_per_chip_hour=2 needs --chip"),
        ({"chip_name": "v5e", "days": 1}, "needs --chips"),
        ({"days": 1, "chips": 4}, "needs --chip"),
        ({"chip_hours": 100}, "needs --chip"),
        ({"money": 100, "price_per_chip_hour": 2}, "needs --chip"),
        ({"money": 100, "chip_name": "h100"}, "needs --price_per_chip_hour"),
        ({"flops": 1e20, "chip_name": "h10"}, "did you mean 'h100'"),
        ({"flops": 1e20, "mfu": 40}, "40 % is 0.4"),
        ({"cpu_minutes": 5, "chip_name": "v5e"}, "means this machine"),
    ],
)
def test_what_is_no_budget_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        budget_of(**given)


def test_a_budget_at_the_whole_peak_is_possible():
    assert budget_of(flops=1e20, mfu=1).flops == 1e20
    at_peak = budget_of(chip_name="v5e", chip_hours=1, mfu=1)
    assert at_peak.flops == 197e12 * 3600
    assert (at_peak.form, at_peak.mfu) == ("chip_hours", 1)


def test_a_budget_in_flops_alone_has_no_hours():
    bare = budget_of(flops=1e20)
    assert (bare.chip_hours(1e20), bare.days(1e20), bare.cost(1e20)) == (None, None, None)
