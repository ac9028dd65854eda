import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.accounting import (
    LAWS,
    Architecture,
    budget_of,
    make_plan,
    recommending_law,
    sources_of,
    total_parameters,
)
from t5x_style.accounting.planner.allocation import optimal_allocation
from t5x_style.accounting.planner.vocabulary import chosen_vocabulary
from t5x_style.errors import UsageError

LAW = LAWS["besiroglu"]
ENDLESS = sources_of(None, None)
LEGAL = sources_of(
    {"legal": 2e9, "general": 30e9}, {"legal": 0.51, "general": 0.49}, {"legal": 8, "general": 2}
)


@settings(max_examples=30)
@given(st.floats(15, 25), st.sampled_from([ENDLESS, LEGAL]))
def test_a_plan_spends_its_budget_within_its_caps(log_flops, sources):
    flops = 10**log_flops
    plan = make_plan(budget_of(flops=flops), sources)
    assert plan.flops <= flops or plan.recipe.steps == 1
    assert plan.chosen.tokens <= sources.cap()[0]
    assert plan.chosen.params == total_parameters(plan.architecture)
    assert plan.chosen.params == pytest.approx(plan.recommended.params, rel=0.03)
    recipe = plan.recipe
    assert recipe.tokens == recipe.steps * recipe.batch_sequences * recipe.sequence_length
    assert sum(sources.tokens(recipe.tokens).values()) == pytest.approx(
        recipe.tokens if sources.shares else 0, rel=1e-12
    )
    assert 0 < recipe.warmup_tokens <= max(0.05 * recipe.tokens, recipe.tokens / recipe.steps)
    # What rounding to a buildable model and whole steps costs.
    assert plan.chosen.loss <= plan.recommended.loss * 1.02
    assert plan.chosen.loss >= plan.recommended.loss - 1e-9


def test_the_plan_with_bloomberggpts_constraints():
    """Every token once: the budget is not used up, and the law says what that costs."""
    sources = sources_of({"finpile": 363.5e9, "public": 345.4e9}, None, 1.0)
    plan = make_plan(budget_of(flops=3.51e23), sources, vocab_size=131_072, style="bloomberggpt")
    assert plan.recommended.tokens == pytest.approx(708.9e9)
    assert plan.bloomberggpt.params == pytest.approx(57.8e9, rel=1e-3)
    assert plan.cap_costs[-1].loss > 0
    assert plan.chosen.efficiency < 1


def test_repetition_is_warned_of_and_weighed():
    plan = make_plan(budget_of(flops=1e21), LEGAL)
    assert plan.recommended.tokens < optimal_allocation(1e21, LAW).tokens
    assert plan.recommended.effective_tokens < plan.recommended.tokens
    epochs = LEGAL.epochs(plan.chosen.tokens)
    assert epochs["legal"] > 4
    assert any("legal is read" in warning for warning in plan.warnings)
    assert not any("general is read" in warning for warning in plan.warnings)


def test_sensitivity():
    budget = budget_of(chip_name="v5p", chips=64, days=10, price_per_chip_hour=4)
    rows = {(row.what, row.factor): row for row in make_plan(budget, LEGAL).sensitivity}
    here = rows["as planned", 1.0]
    assert here.days == pytest.approx(10)
    assert here.cost == pytest.approx(64 * 240 * 4)
    for what, factor in rows:
        other = rows[what, factor]
        if factor > 1:
            assert other.loss <= here.loss
        elif factor < 1:
            assert other.loss >= here.loss
    assert rows["budget", 1.5].cost == pytest.approx(1.5 * here.cost)
    # The chips are there for ten days whatever they reach.
    assert rows["MFU", 0.5].days == pytest.approx(10)
    assert rows["MFU", 0.5].flops == pytest.approx(here.flops / 2)
    assert ("tokens of legal", 0.5) in rows
    fast = budget_of(chip_name="v5p", chips=64, days=10, mfu=0.7)
    assert [row.factor for row in make_plan(fast, LEGAL).sensitivity if row.what == "MFU"] == [0.5]
    in_flops = budget_of(flops=1e21, chip_name="v5p", chips=64)
    rows = {(row.what, row.factor): row for row in make_plan(in_flops, LEGAL).sensitivity}
    slower = rows["MFU", 0.5]
    assert slower.flops == 1e21
    assert slower.days == pytest.approx(2 * in_flops.days(1e21))


def test_within_the_data_a_smaller_model_may_not_be_had():
    plan = make_plan(budget_of(flops=1e21), LEGAL, served_tokens=1e12)
    assert plan.served.allocation.tokens <= LEGAL.cap()[0]
    assert plan.served.allocation.loss == pytest.approx(plan.chosen.loss, rel=1e-9)
    once = sources_of(LEGAL.unique_tokens, LEGAL.shares, 1)
    capped = make_plan(budget_of(flops=1e21), once, served_tokens=1e12)
    assert capped.served.saving < 0.02


def test_a_settled_model_is_planned_for_as_it_is():
    arch = Architecture(32_000, 24, 1024, 2816, 16)
    plan = make_plan(budget_of(flops=1e20), ENDLESS, architecture=arch)
    assert plan.architecture == arch
    assert plan.vocabulary == {}
    assert plan.flops == pytest.approx(1e20, rel=0.01)
    assert plan.flops <= 1e20


@pytest.mark.parametrize("log_params", [5, 6, 7, 8, 9, 10, 11, 12])
def test_the_chosen_vocabulary_is_its_own_fixed_point(log_params):
    size, by_approach = chosen_vocabulary(10.0**log_params)
    assert size % 128 == 0
    assert size >= 512
    if size > 512:
        assert size == pytest.approx(by_approach["isoflops"], abs=129)


def test_tao_for_bloomberggpt():
    """169k by approach 1 for BloombergGPT's width and size, against the 131,072 it took."""
    size, by_approach = chosen_vocabulary(50_558_868_480)
    assert size == pytest.approx(169e3, rel=0.03)
    assert by_approach["derivative"] == pytest.approx(185e3, rel=0.03)


def test_the_law_to_follow_must_give_a_loss():
    own = dataclasses.replace(LAW, name="legal_fit")
    assert recommending_law("legal_fit", own) is own
    with pytest.raises(UsageError, match="gives no loss"):
        recommending_law("approach_1")
    with pytest.raises(UsageError, match="did you mean 'besiroglu'"):
        recommending_law("besirogl")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"served_tokens": -1.0}, "served_tokens"),
        ({"sequence_length": 0}, "sequence_length"),
        ({"served_tokens": math.nan}, "served_tokens"),
    ],
)
def test_numbers_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_plan(budget_of(flops=1e20), ENDLESS, **arguments)
