"""Sardana et al. 2024: its headline, and the optimum against a general minimiser."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from t5x_style.accounting.laws.chinchilla import LAWS, ParametricLaw
from t5x_style.accounting.laws.inference import (
    inference_optimal,
    lifetime_flops,
    tokens_for_loss,
)
from t5x_style.errors import UsageError

# The constants that give the paper's 1.7e22 FLOPs, 17 %.
SARDANA = ParametricLaw("sardana", 1.69, 406.4, 410.7, 0.336, 0.283, "Sardana et al. 2024", None)
BESIROGLU = LAWS["besiroglu"]
SERVED = 2e12


def chinchilla_tokens(law: ParametricLaw, params: float) -> float:
    """D for which N is optimal, by bisection on the budget."""
    low, high = 10.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        if law.optimal(10**middle)[0] < params:
            low = middle
        else:
            high = middle
    return law.optimal(10**high)[1]


def test_sardana():
    """A 13B model that is to serve 2T tokens: a 7B of the same loss saves 17 % over its life."""
    tokens = chinchilla_tokens(SARDANA, 13e9)
    assert tokens == pytest.approx(576.5e9, rel=1e-4)
    loss = SARDANA.loss(13e9, tokens)
    before = lifetime_flops(13e9, tokens, SERVED)
    smaller_tokens = tokens_for_loss(SARDANA, 7e9, loss)
    assert smaller_tokens == pytest.approx(1.239e12, rel=1e-3)
    saved = before - lifetime_flops(7e9, smaller_tokens, SERVED)
    assert saved == pytest.approx(1.6916e22, rel=1e-3)
    assert saved / before == pytest.approx(0.17446, rel=1e-3)
    assert inference_optimal(SARDANA, loss, SERVED) == pytest.approx((6.97e9, 1.248e12), rel=1e-3)


log_flops = st.floats(18, 26)
log_served = st.floats(8, 16)
laws = st.sampled_from([SARDANA, BESIROGLU, LAWS["hoffmann"]])


@given(laws, log_flops, log_served)
def test_the_optimum_is_that_of_a_general_minimiser(law, log_flops, log_served):
    served = 10**log_served
    params, tokens = law.optimal(10**log_flops)
    loss = law.loss(params, tokens)
    # The smallest model that reaches the loss at all.
    least = (law.params_scale / (loss - law.irreducible)) ** (1 / law.params_exponent)

    def cost(log_params: float) -> float:
        smaller = math.exp(log_params)
        return math.log(lifetime_flops(smaller, tokens_for_loss(law, smaller, loss), served))

    found = minimize_scalar(
        cost,
        bounds=(math.log(least) + 1e-9, math.log(params) + 1e-3),
        options={"xatol": 1e-10},
    )
    best = inference_optimal(law, loss, served)
    assert law.loss(*best) == pytest.approx(loss, rel=1e-9)
    assert math.log(lifetime_flops(*best, served)) <= found.fun + 1e-9
    assert math.log(best[0]) == pytest.approx(found.x, abs=1e-3)


@given(laws, log_flops, log_served, log_served)
def test_the_more_is_served_the_smaller_and_longer_trained_the_model(law, log_flops, one, another):
    loss = law.loss(*law.optimal(10**log_flops))
    few, many = sorted((one, another))
    params, tokens = inference_optimal(law, loss, 10**few)
    smaller, longer = inference_optimal(law, loss, 10**many)
    assert smaller <= params * (1 + 1e-9)
    assert longer >= tokens * (1 - 1e-9)


@given(laws, log_flops)
def test_nothing_served_leaves_the_training_optimum(law, log_flops):
    best = law.optimal(10**log_flops)
    assert inference_optimal(law, law.loss(*best), 0) == pytest.approx(best, rel=1e-5)
    # And next to nothing served, all but it.
    assert inference_optimal(law, law.loss(*best), 1.0) == pytest.approx(best, rel=1e-4)


def test_what_cannot_be_is_refused():
    for served in (-1, math.inf, math.nan):
        with pytest.raises(UsageError, match=f"served_tokens = {served}"):
            inference_optimal(BESIROGLU, 2.0, served)
    with pytest.raises(UsageError, match=r"above 1\.8172"):
        inference_optimal(BESIROGLU, 1.8, 1e12)
    with pytest.raises(UsageError, match=r"above 1\.8172"):
        tokens_for_loss(BESIROGLU, 1e9, 1.8)
    cheapest, _ = BESIROGLU.optimal(BESIROGLU.flops_for(2.0))
    with pytest.raises(UsageError, match=re.escape(f"{cheapest:.4g} parameters reach it")):
        tokens_for_loss(BESIROGLU, 1e6, 2.0)
