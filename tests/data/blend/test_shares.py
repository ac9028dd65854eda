"""Shares as whole rows of a period, by hand."""

import pytest

from t5x_style.data.blend.shares import rounded_shares, rows_of_period
from t5x_style.errors import UsageError


@pytest.mark.parametrize("total", [0.9981, 0.999, 1.0, 1.0019])
def test_shares_that_almost_sum_to_one_are_divided_by_their_sum(total):
    found = rounded_shares({"a": 0.6 * total, "b": 0.4 * total})
    assert found == pytest.approx({"a": 0.6, "b": 0.4}, abs=1e-5)
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("total", [0.99, 0.9979, 1.0021])
def test_shares_that_sum_to_anything_else_are_refused(total):
    with pytest.raises(UsageError, match="not to 1"):
        rounded_shares({"a": 0.6 * total, "b": 0.4 * total})


def test_three_shares_of_0333_are_thirds():
    third = pytest.approx(1 / 3, abs=1e-15)
    assert rounded_shares(dict.fromkeys("abc", 0.333)) == {"a": third, "b": third, "c": third}


@pytest.mark.parametrize("share", [float("inf"), float("nan"), -1e-9])
def test_a_share_that_is_no_share_is_refused(share):
    with pytest.raises(UsageError, match="share of 'b'"):
        rounded_shares({"a": 1.0, "b": share})


def test_a_source_with_a_share_of_zero_is_left_out():
    assert rounded_shares({"a": 1.0, "b": 0.0}) == {"a": 1.0}


@pytest.mark.parametrize(
    ("shares", "rows"),
    [
        ([1 / 2, 1 / 3, 1 / 6], [3, 2, 1]),
        ([0.51, 0.49], [51, 49]),
        ([0.99999, 0.00001], [99_999, 1]),
        # No short period holds these: 100,000 rows, and those left over to the largest remainders.
        ([0.500009, 0.300006, 0.199985], [50_001, 30_001, 19_998]),
        ([0.500009, 0.300006, 0.199985, 0.0], [50_001, 30_001, 19_998, 0]),
        # A rare source gets one row, which the largest source pays.
        ([1 - 2e-6, 2e-6], [99_999, 1]),
        ([0.600001, 0.399997, 0.000001, 0.000001], [59_999, 39_999, 1, 1]),
        # The shortest period of what was rounded.
        ([0.5 + 1e-9, 0.5 - 1e-9], [1, 1]),
    ],
)
def test_rows_of_the_shortest_period(shares, rows):
    assert rows_of_period(shares) == rows
