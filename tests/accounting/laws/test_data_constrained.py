"""Muennighoff et al. 2023, against the numbers and the grid search that its authors publish."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from t5x_style.accounting import sources_of
from t5x_style.accounting.laws import data_constrained as constrained
from t5x_style.accounting.planner.allocation import muennighoff_allocation
from t5x_style.errors import UsageError

log_sizes = st.floats(6, 14)
BUDGET = 3.51e23
ALL_TOKENS, FINANCIAL_TOKENS = 708.9e9, 363.5e9


def loss_of(params: float, tokens: float, unique_tokens: float) -> float:
    """L(N, D, U) of the paper, out of the parts that the planner computes with."""
    seen = min(unique_tokens, tokens)
    return constrained.C4_LAW.loss(
        constrained.effective_params(params, seen), constrained.effective_tokens(tokens, seen)
    )


def optimal(flops: float, unique_tokens: float) -> tuple[float, float]:
    """(N, D) that the planner chooses for one source, however often it is read."""
    endless = sources_of({"all": unique_tokens}, None, 1e6, past_forty_epochs=True)
    best = muennighoff_allocation(flops, endless)
    return best.params, best.tokens


def grid_optimal(flops: float, unique_tokens: float) -> tuple[float, float]:
    """(N, D) by the grid of the README of huggingface/datablations, about Chinchilla's optimum."""
    base_params, base_tokens = constrained.C4_LAW.optimal(flops)
    factors = np.linspace(1.0001, 3, 500)
    candidates = [
        (base_params / factor, base_tokens * factor) for factor in [*factors, *(1 / factors)]
    ]
    return min(candidates, key=lambda pair: loss_of(*pair, unique_tokens))


@pytest.mark.parametrize(
    ("params", "tokens", "loss"),
    [(6.34e9, 242e9, 2.2256440889984477), (8.67e9, 178e9, 2.2269634075087867)],
)
def test_dc_law(params, tokens, loss):
    assert loss_of(params, tokens, 25e9) == pytest.approx(loss, rel=1e-9)


def test_dc_opt():
    params, tokens = grid_optimal(1e22, 25e9)
    assert tokens == pytest.approx(237336955477.55, rel=1e-9)
    assert params == pytest.approx(7022364735.88, rel=1e-9)
    assert tokens / 25e9 == pytest.approx(9.4935, rel=1e-5)


@pytest.mark.parametrize(
    ("unique_tokens", "params", "tokens"),
    [(ALL_TOKENS, 51.90e9, 1.127e12), (FINANCIAL_TOKENS, 47.56e9, 1.230e12)],
)
def test_dc_bbg(unique_tokens, params, tokens):
    on_grid = grid_optimal(BUDGET, unique_tokens)
    assert on_grid == pytest.approx((params, tokens), rel=1e-3)
    # The continuous optimum lies within half a step of the grid, and no higher.
    exact = optimal(BUDGET, unique_tokens)
    assert exact == pytest.approx(on_grid, rel=2e-3)
    assert loss_of(*exact, unique_tokens) <= loss_of(*on_grid, unique_tokens)


@pytest.mark.parametrize(
    ("epochs", "share", "tolerance"),
    [
        pytest.param(4, 0.931418, 1e-6, id="dc_epochs-4"),
        pytest.param(16, 0.661404, 1e-6, id="dc_epochs-16"),
        (1, 1, 1e-12),
        (2, 0.9841, 5e-5),
        (8, 0.8280, 5e-5),
        (40, 0.3792, 5e-5),
    ],
)
def test_effective_share_by_epochs(epochs, share, tolerance):
    assert constrained.effective_tokens(epochs * 7e9, 7e9) / (epochs * 7e9) == pytest.approx(
        share, rel=tolerance
    )


@given(st.floats(0, 3), st.floats(0, 3), log_sizes)
def test_effective_tokens_grow_to_a_bound_and_never_exceed_the_tokens(low, high, log_unique):
    low, high = sorted((low, high))
    unique = 10**log_unique
    fewer = constrained.effective_tokens(unique * low * 100, unique)
    more = constrained.effective_tokens(unique * high * 100, unique)
    assert fewer <= more <= unique * high * 100 * (1 + 1e-12)
    assert more <= (1 + 15.387756) * unique


@given(st.floats(1.01, 100), log_sizes)
def test_each_pass_is_worth_less_by_the_decay_of_the_paper(epochs, log_unique):
    unique = 10**log_unique
    tokens, step = epochs * unique, 1e-5 * unique
    slope = (
        constrained.effective_tokens(tokens + step, unique)
        - constrained.effective_tokens(tokens - step, unique)
    ) / (2 * step)
    assert slope == pytest.approx(math.exp(-(epochs - 1) / 15.387756), abs=1e-6)


@given(log_sizes, log_sizes, log_sizes)
def test_fresh_text_is_never_worse_than_repeated_text(log_params, log_tokens, log_unique):
    params, tokens, unique = 10**log_params, 10**log_tokens, 10**log_unique
    loss = loss_of(params, tokens, unique)
    assert loss >= constrained.C4_LAW.loss(params, tokens) - 1e-12
    assert loss >= loss_of(params, tokens, 2 * unique) - 1e-9


@given(st.floats(17, 26), st.floats(-1.3, 0.3))
def test_the_optimum_is_that_of_a_general_minimiser(log_flops, log_share):
    """Against scipy on the loss itself, with a twentieth of the optimal tokens to twice as many."""
    flops = 10**log_flops
    unique = constrained.C4_LAW.optimal(flops)[1] * 10**log_share

    def loss(log_params: float) -> float:
        params = math.exp(log_params)
        return loss_of(params, flops / (6 * params), unique)

    grid = np.log(constrained.C4_LAW.optimal(flops)[0]) + np.linspace(-8, 8, 161)
    middle = min(grid, key=loss)
    found = minimize_scalar(loss, bounds=(middle - 0.1, middle + 0.1), options={"xatol": 1e-10})
    params, tokens = optimal(flops, unique)
    assert 6 * params * tokens == pytest.approx(flops, rel=1e-9)
    assert loss_of(params, tokens, unique) <= found.fun + 1e-12
    # The loss is flat about its minimum, so N is known only to the root of the loss's precision.
    assert math.log(params) == pytest.approx(found.x, abs=1e-3)


@given(st.floats(17, 26), st.floats(0, 5))
def test_enough_text_gives_chinchillas_optimum(log_flops, log_excess):
    flops = 10**log_flops
    best = constrained.C4_LAW.optimal(flops)
    assert optimal(flops, best[1] * 10**log_excess * (1 + 1e-9)) == pytest.approx(best)


@pytest.mark.parametrize("unique_tokens", [0, -1e9, math.nan])
def test_no_unique_tokens_is_refused(unique_tokens):
    for function in (
        lambda: constrained.effective_tokens(1e9, unique_tokens),
        lambda: constrained.effective_params(1e9, unique_tokens),
    ):
        with pytest.raises(UsageError, match="unique_tokens"):
            function()


@given(log_sizes, log_sizes)
def test_effective_params_never_exceed_the_parameters(log_params, log_unique):
    params, unique = 10**log_params, 10**log_unique
    base = constrained.C4_LAW.optimal_params(unique)
    effective = constrained.effective_params(params, unique)
    assert effective <= params * (1 + 1e-12)
    assert effective <= (1 + 5.309743) * base
    if params <= base:
        assert effective == params
