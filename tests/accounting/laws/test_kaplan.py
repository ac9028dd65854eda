"""Kaplan et al. 2020: the numbers of its formulas, and the relations between them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.accounting.laws import kaplan
from t5x_style.accounting.laws.kaplan import KAPLAN

losses = st.floats(1.5, 6)
log_batches = st.floats(3, 9)


@pytest.mark.parametrize(("params", "loss"), [(1e8, 2.82996), (1e9, 2.37564), (1e10, 1.99425)])
def test_kaplan_N(params, loss):
    assert kaplan.loss_from_params(params) == pytest.approx(loss, rel=1e-5)


def test_kaplan_ND():
    assert kaplan.loss(1e9, 2.29e10) == pytest.approx(2.36750, rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "tokens"), [(4, 2.717e5), (3, 1.069e6), (2.5, 2.547e6), (2, 7.371e6)]
)
def test_critical_batch(loss, tokens):
    assert kaplan.critical_batch_tokens(loss) == pytest.approx(tokens, rel=5e-4)


@pytest.mark.parametrize(
    ("law", "scale", "exponent"),
    [
        (kaplan.loss_from_params, 8.8e13, 0.076),
        (kaplan.loss_from_tokens, 5.4e13, 0.095),
        (kaplan.loss_from_flops, 3.1e8 * 8.64e19, 0.050),
    ],
)
def test_each_power_law_is_1_at_its_scale_and_falls_with_its_exponent(law, scale, exponent):
    assert law(scale) == pytest.approx(1)
    assert law(scale / 1e6) / law(scale / 1e5) == pytest.approx(10**exponent)


def test_the_joint_laws_end_in_the_law_of_parameters():
    """With data or steps without end only N is left, by the constants of that joint fit."""
    assert kaplan.loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076, rel=1e-6)
    assert kaplan.loss_after_steps(1e9, 1e30) == pytest.approx((6.5e13 / 1e9) ** 0.077, rel=1e-6)
    # And with no limit on parameters only the steps.
    assert kaplan.loss_after_steps(1e300, 2.1e3) == pytest.approx(1, rel=1e-6)


@given(losses, log_batches)
def test_steps_and_tokens_trade_along_a_hyperbola(loss, log_batch):
    batch, steps = 10**log_batch, 1e5
    tokens = batch * steps
    least_steps = kaplan.least_steps(steps, batch, loss)
    least_tokens = kaplan.least_tokens(tokens, batch, loss)
    assert (steps / least_steps - 1) * (tokens / least_tokens - 1) == pytest.approx(1, rel=1e-6)
    assert least_tokens / least_steps == pytest.approx(kaplan.critical_batch_tokens(loss))
    # C = 6 N E at any batch, so FLOPs shrink with the tokens.
    assert kaplan.least_flops(6e9 * tokens, batch, loss) == pytest.approx(6e9 * least_tokens)


@given(losses)
def test_the_critical_batch_doubles_both_costs(loss):
    batch = kaplan.critical_batch_tokens(loss)
    assert kaplan.least_steps(1e5, batch, loss) == pytest.approx(5e4)
    assert kaplan.least_tokens(1e5 * batch, batch, loss) == pytest.approx(5e4 * batch)


def test_tokens_against_overfitting():
    """The paper, section 4.2: the 22B tokens of WebText2 suffice up to 1e9 parameters."""
    assert kaplan.tokens_against_overfitting(1e9) == pytest.approx(2.28e10, rel=0.01)
    # Equation 4.3: there the joint loss is 1.02 of what it is without end of data.
    for params in (1e7, 1e8, 1e9):
        enough = kaplan.tokens_against_overfitting(params)
        assert kaplan.loss(params, enough) / kaplan.loss(params, 1e30) == pytest.approx(
            1.02, abs=0.002
        )


def test_the_frontier_of_the_figures():
    assert KAPLAN.optimal(1e21)[0] == pytest.approx(4.68e9)
    for flops in (1e18, 1e22, 1e25):
        params, tokens = KAPLAN.optimal(flops)
        assert 6 * params * tokens == pytest.approx(flops)
    growth = [
        after / before
        for before, after in zip(KAPLAN.optimal(1e21), KAPLAN.optimal(1e22), strict=True)
    ]
    assert [math.log10(factor) for factor in growth] == pytest.approx([0.73, 0.27])
    assert KAPLAN.interval(1e21) is None
