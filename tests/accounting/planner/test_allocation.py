import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import optimize

from t5x_style.accounting import LAWS, bloomberggpt, sources_of
from t5x_style.accounting.laws.data_constrained import (
    C4_LAW,
    effective_params,
    effective_tokens,
)
from t5x_style.accounting.planner.allocation import (
    allocations_within_data,
    argmin,
    best_allocation,
    bloomberggpt_rule,
    cap_costs,
    muennighoff_allocation,
    optima,
    optimal_allocation,
)

LAW = LAWS["besiroglu"]
ENDLESS = sources_of(None, None)


def test_unlimited_data_gives_each_law_its_optimum():
    assert allocations_within_data(3.51e23, ENDLESS) == []
    rows = optima(3.51e23)
    assert [row.law for row in rows] == list(LAWS)
    for row in rows:
        assert (row.params, row.tokens) == LAWS[row.law].optimal(3.51e23)
        assert row.scarce_source is None
        assert row.effective_tokens == row.tokens


def test_data_that_is_never_repeated_is_cut_off():
    """With one epoch at most every token is effective: the best is the cap, in closed form."""
    sources = sources_of({"legal": 1e9, "general": 9e9}, None, 1.0)
    best = best_allocation(1e21, LAW, sources)
    assert best.tokens == pytest.approx(1e10, rel=1e-9)
    assert best.scarce_source in sources.shares
    assert best.loss == pytest.approx(LAW.loss(1e21 / 6e10, 1e10), rel=1e-12)
    assert best.efficiency == pytest.approx(LAW.efficiency(1e21 / 6e10, 1e10), rel=1e-9)
    frontier = best_allocation(1e21, LAWS["approach_1"], sources)
    assert (frontier.tokens, frontier.params) == (1e10, 1e21 / 6e10)
    assert frontier.loss is None


SOURCES = st.builds(
    lambda log_sizes, weights, caps: sources_of(
        {f"source_{i}": 10**size for i, size in enumerate(log_sizes)},
        {f"source_{i}": weight / sum(weights) for i, weight in enumerate(weights)},
        {f"source_{i}": cap for i, cap in enumerate(caps)},
    ),
    st.lists(st.floats(6, 12), min_size=3, max_size=3),
    st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
    st.lists(st.floats(1, 40), min_size=3, max_size=3),
)


@given(st.floats(16, 25), SOURCES)
def test_the_best_within_the_data_is_the_best(log_flops, sources):
    """Against scipy's bounded search from many starts, and against the caps."""
    flops = 10**log_flops
    best = best_allocation(flops, LAW, sources)
    cap = sources.cap()[0]
    assert best.tokens <= cap * (1 + 1e-9)
    assert 6 * best.params * best.tokens == pytest.approx(flops, rel=1e-9)
    edges = [math.log(cap) - step for step in (6, 4, 3, 2, 1.5, 1, 0.5, 0)]
    for low, high in itertools.pairwise(edges):
        found = optimize.minimize_scalar(
            lambda x: LAW.loss(flops / (6 * math.exp(x)), sources.effective_tokens(math.exp(x))),
            bounds=(low, high),
            method="bounded",
        )
        assert best.loss <= found.fun + 1e-9


@given(st.floats(16, 25), st.floats(0, 1), SOURCES)
def test_more_budget_never_raises_the_loss(log_flops, more, sources):
    less, greater = (
        best_allocation(10**power, LAW, sources) for power in (log_flops, log_flops + more)
    )
    assert greater.loss <= less.loss + 1e-9


@given(st.floats(16, 25), SOURCES, st.data())
def test_a_tighter_cap_never_lowers_the_loss(log_flops, sources, data):
    name = data.draw(st.sampled_from(sorted(sources.shares)))
    tighter_cap = data.draw(st.floats(1, sources.max_epochs[name]))
    tighter = sources_of(
        sources.unique_tokens, sources.shares, {**sources.max_epochs, name: tighter_cap}
    )
    loose, tight = (best_allocation(10**log_flops, LAW, limits) for limits in (sources, tighter))
    assert tight.loss >= loose.loss - 1e-9
    # Nor does less text of a source.
    scarcer = best_allocation(
        10**log_flops, LAW, sources.scaled(name, data.draw(st.floats(0.1, 1)))
    )
    assert scarcer.loss >= loose.loss - 1e-9


@given(st.floats(16, 25), SOURCES)
def test_what_the_caps_cost(log_flops, sources):
    flops = 10**log_flops
    *alone, together = cap_costs(flops, LAW, sources)
    assert [cost.source for cost in alone] == list(sources.shares)
    assert together.source is None
    best, here = optimal_allocation(flops, LAW), best_allocation(flops, LAW, sources)
    assert together.loss == pytest.approx(here.loss - best.loss, abs=1e-9)
    assert together.efficiency == pytest.approx(1 - here.efficiency, abs=1e-9)
    for cost in alone:
        assert 0 <= cost.loss <= together.loss + 1e-9
        assert cost.flops == cost.efficiency * flops


def test_bloomberggpts_own_choice():
    """Every token once, 30 % kept back: 57.8B for 3.51e23; Levine's shape made 50.6B of it."""
    sources = sources_of({"finpile": 363.5e9, "public": 345.4e9}, None, 1.0)
    row = bloomberggpt_rule(bloomberggpt.BUDGET_FLOPS, LAW, sources)
    assert row.tokens == pytest.approx(708.9e9, rel=1e-12)
    assert row.params == pytest.approx(0.7 * 3.51e23 / 6 / 708.9e9, rel=1e-12)
    # Once through everything, whatever the blend of the plan.
    other = sources_of(sources.unique_tokens, {"finpile": 0.9, "public": 0.1}, 40.0)
    assert bloomberggpt_rule(bloomberggpt.BUDGET_FLOPS, LAW, other) == row


def test_what_each_law_makes_of_too_little_text():
    sources = sources_of({"legal": 2e9, "general": 30e9}, {"legal": 0.51, "general": 0.49})
    *rows, muennighoff = allocations_within_data(1e21, sources)
    assert muennighoff.law == "muennighoff"
    assert [row.law for row in rows] == list(LAWS)
    for best, capped in zip(optima(1e21), rows, strict=True):
        assert capped.tokens < best.tokens
        assert capped.params > best.params
        if best.loss is not None:
            assert capped.loss > best.loss
            assert capped.efficiency < 1
    # 1e18 FLOPs ask for less text than there is.
    assert [row.law for row in allocations_within_data(1e18, sources)] == ["muennighoff"]


def test_one_source_by_muennighoff_is_his_optimum():
    """Golden dc_opt: 9.4935 epochs of 25B tokens for 1e22 FLOPs (the grid of the authors)."""
    row = muennighoff_allocation(1e22, sources_of({"c4": 25e9}, None, 40))
    assert 6 * row.params * row.tokens == pytest.approx(1e22)
    assert row.tokens / 25e9 == pytest.approx(9.4935, rel=0.02)
    expected = C4_LAW.loss(effective_params(row.params, 25e9), effective_tokens(row.tokens, 25e9))
    assert row.loss == pytest.approx(expected, rel=1e-12)
    capped = muennighoff_allocation(1e22, sources_of({"c4": 25e9}, None, 4))
    assert (capped.tokens, capped.scarce_source) == (100e9, "c4")


def test_least_at_finds_the_deeper_of_two_valleys():
    def two(x):
        return min((math.log(x) - 1) ** 2, (math.log(x) - 8) ** 2 - 0.5)

    assert math.log(argmin(two, 1.0, math.exp(10))) == pytest.approx(8, abs=1e-4)
    assert argmin(lambda x: -x, 1.0, 7.0) == 7.0
    assert argmin(lambda x: x, 1.0, 7.0) == 1.0


def test_no_budget_is_an_error():
    with pytest.raises(ValueError, match="above 0"):
        best_allocation(0.0, LAW, ENDLESS)


@given(st.floats(16, 25), SOURCES)
def test_a_repeating_plan_has_fewer_effective_tokens_than_tokens(log_flops, sources):
    best = best_allocation(10**log_flops, LAW, sources)
    assume(max(sources.epochs(best.tokens).values()) > 1.01)
    assert best.effective_tokens < best.tokens
    assert best.efficiency < 1
