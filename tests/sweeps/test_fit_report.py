"""A law for people: hand-made fits and points, and what may be doubted about them."""

import dataclasses
import math

import pytest

from t5x_style.accounting.laws import ParametricLaw
from t5x_style.accounting.laws.fitting import Fit
from t5x_style.sweeps import Point, fit_report

# With alpha = beta and A = B the best N and D are alike: C = 6 N^2.
LAW = ParametricLaw("mine", 2.0, 100.0, 100.0, 0.5, 0.5, "made up", (6e12, 6e16))
FIT = Fit(
    law=LAW,
    objective=1.5e-3,
    log_residual_rms=0.0125,
    points=12,
    params_range=(1e6, 1e8),
    tokens_range=(1e6, 1e8),
    agreeing_starts=1_200,
    starts=4_500,
    intervals={},
)


def test_budgets_are_the_largest_run_and_two_decades_more():
    rows = fit_report.budget_rows(FIT)
    assert [row.flops for row in rows] == pytest.approx([6e16, 6e17, 6e18])
    assert [row.params for row in rows] == pytest.approx([1e8, 10**8.5, 1e9])
    assert [row.tokens for row in rows] == pytest.approx([1e8, 10**8.5, 1e9])
    # E + 100 / sqrt(1e8) twice.
    assert rows[0].loss == pytest.approx(2.02)
    assert (rows[0].params_interval, rows[0].tokens_interval) == (None, None)


def test_a_fit_as_text():
    fitted = dataclasses.replace(FIT, intervals={"alpha": (0.4, 0.6)})
    row = fit_report.BudgetRow(6e16, 1e8, (0.9e8, 1.1e8), 2e8, None, 2.02)
    assert fit_report.fit_text(fitted, [row]).splitlines() == [
        "mine   value  95 % by bootstrap",
        "-----  -----  -----------------  -------------------------------------",
        "E          2                  -  nats per token that no budget removes",
        "A        100                  -  scale of A / N^alpha",
        "B        100                  -  scale of B / D^beta",
        "alpha    0.5         0.4 to 0.6  exponent of N",
        "beta     0.5                  -  exponent of D",
        "a        0.5                  -  optimal N ~ C^a, D ~ C^(1 - a)",
        "",
        "objective 1.500000e-03, a sum of Huber terms; the root mean square error of the log "
        "losses is 0.0125; 1,200 of 4,500 starts ended here",
        "",
        "C = 6ND  best N        10-90 %  best D  10-90 %  D/N    loss",
        "-------  ------  -------------  ------  -------  ---  ------",
        "6.00e16    100M  90.0M to 110M    200M        -  2.0  2.0200",
        "(the first row is the largest run of the fit; the others extrapolate)",
    ]


def test_the_points_in_one_line():
    made = [Point("a", 1e8, 2e9, 3.5), Point("b", 1e7, 3e9, 3.25)]
    line = "2 points: N 10.0M to 100M, D 2.00B to 3.00B, loss 3.250 to 3.500"
    assert fit_report.points_line(made, 0) == line
    assert fit_report.points_line(made, 3) == f"{line}; 3 of the highest losses dropped"


@pytest.mark.parametrize(
    ("greatest", "epochs", "warned"),
    [
        # A factor of ten, and four passes, are just enough.
        ((1e8, 1e10), 4.0, []),
        ((0.99e8, 1e10), 4.0, ["N goes from 10.0M to 99.0M, a factor of 9.9: below 10 its expone"]),
        ((1e8, 0.99e10), None, ["D goes from 1.00B to 9.90B, a factor of 9.9"]),
        ((1e8, 1e10), 4.01, ["1 runs repeat a source more than 4 times (wide: 4.0)"]),
    ],
)
def test_points_that_leave_a_law_in_doubt(greatest, epochs, warned):
    made = [Point("small", 1e7, 1e9, 3.0, 1.0), Point("wide", *greatest, 2.0, epochs)]
    found = fit_report.point_warnings(made)
    assert len(found) == len(warned)
    assert all(text.startswith(start) for text, start in zip(found, warned, strict=True))


def test_of_the_runs_that_repeat_the_worst_is_named():
    made = [Point(str(n), 10.0**n, 10.0**n, 3.0, 2.0 * n) for n in range(5)]
    assert fit_report.point_warnings(made) == [
        "2 runs repeat a source more than 4 times (4: 8.0): the law counts repeated tokens as new "
        "ones"
    ]


@pytest.mark.parametrize(
    ("law", "fit", "warned"),
    [
        ({}, {}, []),
        ({"params_exponent_interval": (0.25, 0.45)}, {}, []),
        (
            {"params_exponent_interval": (0.25, 0.46)},
            {},
            ["the exponent a of N ~ C^a is between 0.25 and 0.46 (10 %"],
        ),
        ({}, {"intervals": {"alpha": (0.25, 0.75), "beta": (0.25, 0.75)}}, []),
        ({}, {"intervals": {"alpha": (0.2, 0.75), "beta": (0.2, 0.75)}}, ["alpha = 0.5", "beta ="]),
        # A tenth of the loss at the largest run, E + 0.02, is E at 0.0022.
        ({"irreducible": 0.0023}, {}, []),
        ({"irreducible": 0.0022}, {}, ["E = 0.0022, while the best loss is 0.02"]),
        ({}, {"agreeing_starts": 10}, []),
        ({}, {"agreeing_starts": 9}, ["only 9 of 4,500 starts ended in this minimum"]),
    ],
)
def test_fits_that_leave_a_law_in_doubt(law, fit, warned):
    fitted = dataclasses.replace(FIT, law=dataclasses.replace(LAW, **law), **fit)
    found = fit_report.fit_warnings(fitted)
    assert len(found) == len(warned)
    assert all(text.startswith(start) for text, start in zip(found, warned, strict=True))


def test_a_fit_as_json():
    fitted = dataclasses.replace(FIT, intervals={"A": (1.0, math.inf)})
    assert fit_report.fit_json(fitted, 100, 7) == {
        "objective": 1.5e-3, "log_residual_rms": 0.0125, "points": 12, "params_range": [1e6, 1e8],
        "tokens_range": [1e6, 1e8], "agreeing_starts": 1_200, "starts": 4_500, "bootstrap": 100,
        "seed": 7, "intervals_95": {"A": [1.0, None]},
    }  # fmt: skip
