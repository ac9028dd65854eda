"""The cheapest model to serve: Sardana et al. 2024's headline, and a general minimiser."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from t5x_style.accounting import LAWS, ParametricLaw, sources_of
from t5x_style.accounting.planner.allocation import allocation_at, optimal_allocation
from t5x_style.accounting.planner.service import cheapest_to_serve, lifetime_flops

# The constants that give the paper's 1.7e22 FLOPs, 17 %.
SARDANA = ParametricLaw("sardana", 1.69, 406.4, 410.7, 0.336, 0.283, "Sardana et al. 2024", None)
ENDLESS = sources_of(None, None)

laws = st.sampled_from([SARDANA, LAWS["besiroglu"], LAWS["hoffmann"]])
log_flops = st.floats(18, 25)
log_served = st.floats(8, 14)


def tokens_for_loss(law: ParametricLaw, params: float, loss: float) -> float:
    """D with L(N, D) = `loss`."""
    left = loss - law.irreducible - law.params_scale * params**-law.params_exponent
    return (law.tokens_scale / left) ** (1 / law.tokens_exponent)


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
    served_tokens, tokens = 2e12, chinchilla_tokens(SARDANA, 13e9)
    assert tokens == pytest.approx(576.5e9, rel=1e-4)
    plan = allocation_at(SARDANA, 13e9, tokens, ENDLESS)
    before = lifetime_flops(13e9, tokens, served_tokens)
    smaller_tokens = tokens_for_loss(SARDANA, 7e9, plan.loss)
    assert smaller_tokens == pytest.approx(1.239e12, rel=1e-3)
    saved = before - lifetime_flops(7e9, smaller_tokens, served_tokens)
    assert saved == pytest.approx(1.6916e22, rel=1e-3)
    assert saved / before == pytest.approx(0.17446, rel=1e-3)
    served = cheapest_to_serve(plan, SARDANA, ENDLESS, served_tokens)
    found = (served.allocation.params, served.allocation.tokens)
    assert found == pytest.approx((6.97e9, 1.248e12), rel=1e-3)
    assert saved / before <= served.saving < 0.1746


@given(laws, log_flops, log_served)
def test_the_model_to_serve_is_that_of_a_general_minimiser(law, log_flops, log_served):
    """With endless text, over N where the planner searches D."""
    plan, served_tokens = optimal_allocation(10**log_flops, law), 10**log_served
    served = cheapest_to_serve(plan, law, ENDLESS, served_tokens)
    # The smallest model that reaches the loss at all.
    least = (law.params_scale / (plan.loss - law.irreducible)) ** (1 / law.params_exponent)

    def cost(log_params: float) -> float:
        params = math.exp(log_params)
        tokens = tokens_for_loss(law, params, plan.loss)
        return math.log(lifetime_flops(params, tokens, served_tokens))

    found = minimize_scalar(
        cost,
        bounds=(math.log(least) + 1e-9, math.log(plan.params) + 1e-3),
        options={"xatol": 1e-10},
    )
    assert served.allocation.loss == pytest.approx(plan.loss, rel=1e-9)
    assert 0 <= served.saving < 1
    if tokens_for_loss(law, math.exp(found.x), plan.loss) < 1000 * plan.tokens:
        assert math.log(served.lifetime_flops) <= found.fun + 1e-9
        assert math.log(served.allocation.params) == pytest.approx(found.x, abs=1e-3)


@given(laws, log_flops, log_served, log_served)
def test_the_more_is_served_the_smaller_and_longer_trained_the_model(law, log_flops, one, another):
    plan = optimal_allocation(10**log_flops, law)
    few, many = (
        cheapest_to_serve(plan, law, ENDLESS, 10**log_served).allocation
        for log_served in sorted((one, another))
    )
    assert many.params <= few.params * (1 + 1e-4)
    assert many.tokens >= few.tokens * (1 - 1e-4)


@given(laws, log_flops)
def test_next_to_nothing_served_leaves_the_plan(law, log_flops):
    plan = optimal_allocation(10**log_flops, law)
    served = cheapest_to_serve(plan, law, ENDLESS, 1.0)
    assert served.allocation.params == pytest.approx(plan.params, rel=1e-4)
    assert served.saving == pytest.approx(0, abs=1e-8)


def test_no_model_is_trained_for_more_than_a_thousand_times_longer():
    """For ever more tokens in service a smaller model pays, without end."""
    plan = optimal_allocation(1e21, LAWS["besiroglu"])
    served = cheapest_to_serve(plan, LAWS["besiroglu"], ENDLESS, 1e30)
    assert served.allocation.tokens == pytest.approx(1000 * plan.tokens)
    assert served.training_flops == pytest.approx(
        6 * served.allocation.params * served.allocation.tokens
    )
    assert (served.served_tokens, served.allocation.law) == (1e30, "besiroglu")
