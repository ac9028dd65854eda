"""The laws against the numbers that their papers print, and against their own definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.accounting.laws.chinchilla import (
    APPROACH_3,
    HOFFMANN_PRINTED,
    LAWS,
    ParametricLaw,
)
from t5x_style.errors import UsageError

HOFFMANN, BESIROGLU = LAWS["hoffmann"], LAWS["besiroglu"]
PARAMETRIC = [HOFFMANN, BESIROGLU, HOFFMANN_PRINTED]
FRONTIERS = {law.name: law for law in (LAWS["approach_1"], LAWS["approach_2"], APPROACH_3)}
GOPHER_FLOPS = 5.76e23

BLOOMBERGGPT_BUDGET = 3.51e23
BLOOMBERGGPT_PARAMS = 50_558_868_480

# Hoffmann et al. 2022: parameters; FLOPs and tokens by approach 1 (table 3), 2 and 3 (table A3).
# For approach 3 the paper prints 1.26e24 FLOPs beside 175B parameters and 12.0T tokens, whose 6 N D
# is 1.26e25.
TABLE_PARAMS = np.array([4e8, 1e9, 1e10, 6.7e10, 1.75e11, 2.8e11, 5.2e11, 1e12, 1e13])
TABLES = {
    "approach_1": (
        [1.92e19, 1.21e20, 1.23e22, 5.76e23, 3.85e24, 9.90e24, 3.43e25, 1.27e26, 1.30e28],
        [8.0e9, 20.2e9, 205.1e9, 1.5e12, 3.7e12, 5.9e12, 11.0e12, 21.2e12, 216.2e12],
    ),
    "approach_2": (
        [1.84e19, 1.20e20, 1.32e22, 6.88e23, 4.54e24, 1.18e25, 4.19e25, 1.59e26, 1.75e28],
        [7.7e9, 20.0e9, 219.5e9, 1.7e12, 4.3e12, 7.1e12, 13.4e12, 26.5e12, 292.0e12],
    ),
    "approach_3": (
        [2.21e19, 1.62e20, 2.46e22, 1.71e24, 1.26e25, 3.52e25, 1.36e26, 5.65e26, 8.55e28],
        [9.2e9, 27.1e9, 410.1e9, 4.1e12, 12.0e12, 20.1e12, 43.5e12, 94.1e12, 1425.5e12],
    ),
}


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        pytest.param(
            "approach_1", (0.49809869, -1.00366816, 0.50185426, 0.22944745), id="polyfit_T3"
        ),
        ("approach_2", (0.48994161, -0.83900040, 0.51002023, 0.06174027)),
        pytest.param(
            "approach_3", (0.45865740, -0.27195306, 0.54098165, -0.50118019), id="figure1_A3"
        ),
    ],
)
def test_frontiers_are_least_squares_lines(name, lines):
    """Of log10 N and of log10 D over log10 C, through the paper's tables."""
    flops, tokens = TABLES[name]
    law = FRONTIERS[name]
    for fitted, values, line in (
        ((law.params_exponent, law.params_intercept), TABLE_PARAMS, lines[:2]),
        ((law.tokens_exponent, law.tokens_intercept), tokens, lines[2:]),
    ):
        assert fitted == pytest.approx(np.polyfit(np.log10(flops), np.log10(values), 1), abs=1e-7)
        assert fitted == pytest.approx(line, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "params", "tokens"),
    [
        pytest.param("approach_1", 52.993e9, 1111.112e9, id="plan_A1"),
        pytest.param("approach_2", 49.753e9, 1175.766e9, id="plan_A2"),
    ],
)
def test_frontiers_give_what_bloomberggpt_printed(name, params, tokens):
    assert LAWS[name].optimal(BLOOMBERGGPT_BUDGET) == pytest.approx((params, tokens), rel=2e-5)


def test_A1_1e21():
    assert LAWS["approach_1"].optimal(1e21)[0] == pytest.approx(2.8603e9, rel=1e-4)


@pytest.mark.parametrize(
    ("params", "tokens", "hoffmann", "printed", "besiroglu"),
    [
        pytest.param(70e9, 1.4e12, 1.92085, 1.93665, 1.97388, id="loss_tex"),
        pytest.param(BLOOMBERGGPT_PARAMS, 569e9, 1.97238, 1.99319, 2.01297, id="loss_bbg"),
        pytest.param(1e9, 20e9, 2.53067, 2.58005, 2.53005, id="loss_1b"),
    ],
)
def test_losses(params, tokens, hoffmann, printed, besiroglu):
    assert HOFFMANN.loss(params, tokens) == pytest.approx(hoffmann, rel=1e-5)
    assert HOFFMANN_PRINTED.loss(params, tokens) == pytest.approx(printed, rel=1e-5)
    assert BESIROGLU.loss(params, tokens) == pytest.approx(besiroglu, rel=1e-5)


@pytest.mark.parametrize(
    ("law", "balance", "exponent", "params", "tokens"),
    [
        pytest.param(HOFFMANN, 1.30005, 0.45653, 4.0361e10, 2.3785e12, id="nopt_tex"),
        pytest.param(HOFFMANN_PRINTED, 1.34471, 0.45161, 3.2190e10, 2.9823e12, id="nopt_printed"),
        pytest.param(BESIROGLU, 0.11963, 0.51261, 7.2249e10, 1.3287e12, id="nopt_bes"),
    ],
)
def test_optima_at_gophers_budget(law, balance, exponent, params, tokens):
    assert law.optimal(GOPHER_FLOPS) == pytest.approx((params, tokens), rel=1e-4)
    # N = G (C / 6)^a.
    assert law.optimal(6)[0] == pytest.approx(balance, rel=1e-4)
    assert math.log10(law.optimal(60)[0] / law.optimal(6)[0]) == pytest.approx(exponent, rel=1e-4)


def test_nopt_tex_loss():
    assert HOFFMANN.loss(*HOFFMANN.optimal(GOPHER_FLOPS)) == pytest.approx(1.91841, rel=1e-5)


def test_nopt_budget():
    optima = HOFFMANN.optimal(BLOOMBERGGPT_BUDGET), BESIROGLU.optimal(BLOOMBERGGPT_BUDGET)
    assert optima[0] == pytest.approx((3.2193e10, 1.81719e12), rel=1e-4)
    assert optima[1] == pytest.approx((5.6048e10, 1.04375e12), rel=1e-4)


def test_efficiency():
    run = BLOOMBERGGPT_PARAMS, 568_747_622_400
    assert BESIROGLU.efficiency(*run) == pytest.approx(0.97599, abs=1e-4)
    assert HOFFMANN.efficiency(*run) == pytest.approx(0.83245, abs=1e-4)


def test_no_law_to_allocate_by_has_the_rounded_constants():
    rounded = (1.69, 406.4, 410.7, 0.34, 0.28)
    for law in LAWS.values():
        if isinstance(law, ParametricLaw):
            assert law.irreducible not in rounded
            assert law.params_exponent not in rounded
    # With them Gopher's budget would get 32B parameters; the paper's own figure is 40B.
    assert HOFFMANN.optimal(GOPHER_FLOPS)[0] == pytest.approx(40e9, rel=0.02)


def test_frontiers_say_nothing_of_the_loss():
    for law in FRONTIERS.values():
        assert law.loss(1e9, 2e10) is None
        assert law.efficiency(1e9, 2e10) is None


def test_names_of_the_laws_are_a_contract():
    assert list(LAWS) == ["approach_1", "approach_2", "hoffmann", "besiroglu"]


log_flops = st.floats(14, 27)


@given(log_flops, st.floats(-2, 2), st.sampled_from(PARAMETRIC))
def test_no_other_split_of_the_budget_has_a_lower_loss(log_flops, shift, law):
    flops = 10**log_flops
    params, tokens = law.optimal(flops)
    assert 6 * params * tokens == pytest.approx(flops, rel=1e-9)
    other = law.loss(params * 10**shift, tokens / 10**shift)
    assert other >= law.loss(params, tokens) - 1e-12


@given(st.floats(6, 12), st.floats(-1.5, 3), st.sampled_from(PARAMETRIC))
def test_efficiency_is_the_least_budget_over_the_spent_one(log_params, log_ratio, law):
    """By bisection on the budget, with no closed form."""
    params = 10**log_params
    tokens = params * 10**log_ratio
    loss = law.loss(params, tokens)
    low, high = 0.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        if law.loss(*law.optimal(10**middle)) > loss:
            low = middle
        else:
            high = middle
    efficiency = law.efficiency(params, tokens)
    assert efficiency <= 1 + 1e-9
    assert math.log10(efficiency * 6 * params * tokens) == pytest.approx(high, abs=1e-6)
    assert math.log10(law.flops_for(loss)) == pytest.approx(high, abs=1e-6)


@given(log_flops, st.sampled_from(PARAMETRIC))
def test_an_optimal_run_is_fully_efficient(log_flops, law):
    assert law.efficiency(*law.optimal(10**log_flops)) == pytest.approx(1, rel=1e-9)


@given(log_flops, st.sampled_from(PARAMETRIC))
def test_flops_for_and_optimal_params_invert_the_optimum(log_flops, law):
    params, tokens = law.optimal(10**log_flops)
    assert law.flops_for(law.loss(params, tokens)) == pytest.approx(10**log_flops, rel=1e-6)
    assert law.optimal_params(tokens) == pytest.approx(params, rel=1e-9)


@pytest.mark.parametrize("loss", [1.8172, 1.5, math.nan])
def test_no_budget_reaches_the_irreducible_loss(loss):
    with pytest.raises(UsageError, match=r"besiroglu.*above 1\.8172"):
        BESIROGLU.flops_for(loss)


# Hoffmann et al. 2022, table 2: quantiles of the exponent of N. Besiroglu et al. print none: theirs
# are by our own fitter, on the points themselves (see test_fitting.py).
EXPONENTS = {
    "besiroglu": (0.4922, 0.5417),
    "approach_1": (0.488, 0.502),
    "approach_2": (0.462, 0.534),
    "approach_3": (0.454, 0.455),
    "hoffmann": (0.454, 0.455),
}
WITH_INTERVAL = [law for law in (*LAWS.values(), APPROACH_3) if law.name in EXPONENTS]
MIDDLE_FLOPS = math.sqrt(1.4e18 * 1.3e22)


@given(log_flops, st.sampled_from(WITH_INTERVAL))
def test_the_optimum_lies_in_its_interval(log_flops, law):
    flops = 10**log_flops
    params, tokens = law.optimal(flops)
    (least_params, most_params), (least_tokens, most_tokens) = law.interval(flops)
    assert least_params <= params <= most_params
    assert least_tokens <= tokens <= most_tokens
    # The largest model has the fewest tokens: both ends cost what the optimum costs.
    assert least_params * most_tokens == pytest.approx(params * tokens, rel=1e-9)
    assert most_params * least_tokens == pytest.approx(params * tokens, rel=1e-9)


@pytest.mark.parametrize("law", WITH_INTERVAL, ids=lambda law: law.name)
def test_the_ends_of_an_interval_grow_with_the_exponents_of_the_paper(law):
    def ends(flops: float) -> np.ndarray:
        return np.array(law.interval(flops)[0])

    assert ends(MIDDLE_FLOPS) == pytest.approx(law.optimal(MIDDLE_FLOPS)[0], rel=1e-12)
    exponents = np.log10(ends(1e24) / ends(1e23))
    low, high = EXPONENTS[law.name]
    own = math.log10(law.optimal(1e24)[0] / law.optimal(1e23)[0])
    assert exponents == pytest.approx((low, max(high, own)), abs=1e-9)


def test_besiroglus_exponent_is_as_uncertain_as_the_coefficients_that_they_print():
    """From their 95 % intervals of alpha, .317 to .373, and of beta, .331 to .415.

    With alpha and beta independent and normal, a = beta / (alpha + beta) has its 80 % within .0229
    of .5126. The resamples know how the two vary together, which widens it by a twelfth.
    """
    alpha, beta = 0.3478, 0.3658
    per_95 = 2 * 1.96
    of_alpha, of_beta = (0.373 - 0.317) / per_95, (0.415 - 0.331) / per_95
    deviation = math.hypot(alpha * of_beta, beta * of_alpha) / (alpha + beta) ** 2
    low, high = BESIROGLU.params_exponent_interval
    assert (high - low) / 2 == pytest.approx(1.2816 * deviation, rel=0.1)
    assert (low + high) / 2 == pytest.approx(beta / (alpha + beta), abs=0.005)
