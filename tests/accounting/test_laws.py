"""The laws against the numbers that their papers print, and against their own definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.accounting import LAWS, FrontierLaw, ParametricLaw

HOFFMANN, BESIROGLU = LAWS["hoffmann"], LAWS["besiroglu"]
GOPHER_FLOPS = 5.76e23

# Hoffmann et al. 2022: parameters; FLOPs and tokens by approach 1 (table 3) and 2 (table A3).
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
}


@pytest.mark.parametrize("name", TABLES)
def test_frontiers_are_the_least_squares_lines_through_their_tables(name):
    flops, tokens = TABLES[name]
    law = LAWS[name]
    for fitted, values in (
        ((law.params_exponent, law.params_intercept), TABLE_PARAMS),
        ((law.tokens_exponent, law.tokens_intercept), tokens),
    ):
        assert fitted == pytest.approx(np.polyfit(np.log10(flops), np.log10(values), 1), abs=1e-7)


def test_frontiers_give_what_bloomberggpt_printed():
    assert LAWS["approach_1"].optimal(3.51e23) == pytest.approx((52.993e9, 1111.112e9), rel=1e-5)
    assert LAWS["approach_2"].optimal(3.51e23) == pytest.approx((49.753e9, 1175.766e9), rel=2e-5)


def test_approach_1_at_1e21():
    assert LAWS["approach_1"].optimal(1e21)[0] == pytest.approx(2.8603e9, rel=1e-4)


@pytest.mark.parametrize(
    ("params", "tokens", "hoffmann", "besiroglu"),
    [
        (70e9, 1.4e12, 1.92085, 1.97388),
        (50_558_868_480, 569e9, 1.97238, 2.01297),
        (1e9, 20e9, 2.53067, 2.53005),
    ],
)
def test_losses(params, tokens, hoffmann, besiroglu):
    assert HOFFMANN.loss(params, tokens) == pytest.approx(hoffmann, rel=1e-5)
    assert BESIROGLU.loss(params, tokens) == pytest.approx(besiroglu, rel=1e-5)


def test_optima():
    params, tokens = HOFFMANN.optimal(GOPHER_FLOPS)
    assert (params, tokens) == pytest.approx((4.0361e10, 2.3785e12), rel=1e-4)
    assert HOFFMANN.loss(params, tokens) == pytest.approx(1.91841, rel=1e-5)
    assert BESIROGLU.optimal(GOPHER_FLOPS) == pytest.approx((7.2249e10, 1.3287e12), rel=1e-4)
    assert HOFFMANN.optimal(3.51e23) == pytest.approx((3.2193e10, 1.81719e12), rel=1e-4)
    assert BESIROGLU.optimal(3.51e23) == pytest.approx((5.6048e10, 1.04375e12), rel=1e-4)


def test_efficiency_of_bloomberggpt():
    run = 50_558_868_480, 568_747_622_400
    assert BESIROGLU.efficiency(*run) == pytest.approx(0.97599, abs=1e-4)
    assert HOFFMANN.efficiency(*run) == pytest.approx(0.83245, abs=1e-4)


def test_the_rounded_constants_of_the_abstract_are_used_nowhere():
    rounded = (1.69, 406.4, 410.7, 0.34, 0.28)
    for law in LAWS.values():
        if isinstance(law, ParametricLaw):
            assert law.irreducible not in rounded
            assert law.params_exponent not in rounded
    # With them Gopher's budget would get 32B parameters; the paper's own figure is 40B.
    assert HOFFMANN.optimal(GOPHER_FLOPS)[0] == pytest.approx(40e9, rel=0.02)


def test_frontiers_say_nothing_of_the_loss():
    for law in LAWS.values():
        if isinstance(law, FrontierLaw):
            assert law.loss(1e9, 2e10) is None
            assert law.efficiency(1e9, 2e10) is None


log_flops = st.floats(14, 27)


@given(log_flops, st.floats(-2, 2), st.sampled_from([HOFFMANN, BESIROGLU]))
def test_no_other_split_of_the_budget_has_a_lower_loss(log_flops, shift, law):
    flops = 10**log_flops
    params, tokens = law.optimal(flops)
    assert 6 * params * tokens == pytest.approx(flops, rel=1e-9)
    other = law.loss(params * 10**shift, tokens / 10**shift)
    assert other >= law.loss(params, tokens) - 1e-12


@given(st.floats(6, 12), st.floats(-1.5, 3), st.sampled_from([HOFFMANN, BESIROGLU]))
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


@given(log_flops, st.sampled_from([HOFFMANN, BESIROGLU]))
def test_an_optimal_run_is_fully_efficient(log_flops, law):
    assert law.efficiency(*law.optimal(10**log_flops)) == pytest.approx(1, rel=1e-9)
