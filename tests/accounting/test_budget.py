import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.accounting import LAWS, allocations, blend, chip, chip_flops, token_cap
from t5x_style.errors import UsageError


def test_a_budget_in_chips_and_days():
    """BloombergGPT's: 1.3 million hours of an A100 at 75 of its 312 TFLOP/s by 6ND."""
    seconds = 1.3e6 * 3600 / 512
    budget = chip_flops(chip("a100_40gb"), 512, seconds, 75 / 312)
    assert budget == pytest.approx(3.51e23, rel=1e-12)


def test_shares_are_scaled_or_follow_the_sizes():
    assert blend({"a": 1e9, "b": 3e9}, None) == {"a": 0.25, "b": 0.75}
    assert blend({"a": 1e9, "b": 3e9}, {"a": 51, "b": 49}) == {"a": 0.51, "b": 0.49}


@pytest.mark.parametrize(
    ("sizes", "shares", "message"),
    [
        ({"legal": 1e9}, {"legl": 1.0}, "did you mean 'legal'"),
        ({"legal": 1e9, "general": 1e9}, {"legal": 1.0}, "'general'"),
        ({"legal": 0.0}, None, "must be above 0"),
        ({"legal": 1e9}, {"legal": -1.0}, "must be above 0"),
    ],
)
def test_impossible_blends_are_refused(sizes, shares, message):
    with pytest.raises(UsageError, match=message):
        blend(sizes, shares)


def test_the_scarcest_source_sets_the_cap():
    # legal: 4 x 2e9 / 0.5 = 16e9; general: 4 x 30e9 / 0.5 = 240e9
    assert token_cap({"legal": 2e9, "general": 30e9}, {"legal": 0.5, "general": 0.5}, 4) == (
        16e9,
        "legal",
    )


def test_unbounded_data_gives_each_law_its_optimum():
    rows = allocations(3.51e23)
    assert [row.law for row in rows] == list(LAWS)
    for row in rows:
        assert (row.params, row.tokens) == LAWS[row.law].optimal(3.51e23)
        assert row.scarce_source is None


@given(st.floats(18, 25), st.floats(8, 12), st.floats(0.05, 0.95), st.floats(0.5, 16))
def test_data_that_runs_out(log_flops, log_size, share, max_epochs):
    flops = 10**log_flops
    sizes = {"legal": 10**log_size, "general": 1e12}
    rows = allocations(flops, sizes, {"legal": share, "general": 1 - share}, max_epochs)
    capped = [row for row in rows if row.scarce_source is not None]
    for row in capped:
        assert max(row.epochs.values()) == pytest.approx(max_epochs)
        assert row.epochs[row.scarce_source] == max(row.epochs.values())
        # All of the budget is spent, less well than without the cap.
        assert 6 * row.params * row.tokens == pytest.approx(flops)
        assert row.efficiency is None or row.efficiency < 1
    for row in rows:
        if row.scarce_source is None and max(row.epochs.values()) > max_epochs * (1 + 1e-9):
            assert row.law in {other.law for other in capped}


def test_shares_without_sizes_and_budgets_of_nothing_are_refused():
    with pytest.raises(UsageError, match="unique_tokens"):
        allocations(1e20, None, {"legal": 1.0})
    with pytest.raises(UsageError, match="above 0"):
        allocations(0)
