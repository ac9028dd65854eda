"""Every prefix of a blend holds the asked shares; checked by counting."""

import numpy as np
import pytest

from t5x_style.data import Blend
from t5x_style.errors import UsageError

SKEWED = {f"source{i}": share for i, share in enumerate(0.9 * 0.1 ** np.arange(5))}
SKEWED["source4"] += 1 - sum(SKEWED.values())
RANDOM = np.random.default_rng(0).dirichlet(np.ones(22))
MANY = {f"source{i}": float(share) for i, share in enumerate(RANDOM)}


@pytest.mark.parametrize(
    "shares",
    [
        {"legal": 0.51, "general": 0.49},
        {"only": 1.0},
        {"a": 0.333, "b": 0.333, "c": 0.333},
        {"a": 0.5128, "b": 0.2551, "c": 0.2321},
        SKEWED,
        MANY,
    ],
    ids=["51/49", "one", "thirds", "table 1", "skewed", "22 sources"],
)
def test_each_prefix_of_a_million_rows_is_within_one_row(shares):
    blend = Blend(shares)
    rows = 10**6
    source, source_row = blend.locate(np.arange(rows))
    ideal = np.arange(rows + 1)
    for i, name in enumerate(blend.names):
        given = np.concatenate([[0], np.cumsum(source == i)])
        assert np.abs(given - ideal * blend.shares[name]).max() < 1, name
        # Each row of the source is handed out once and in turn.
        np.testing.assert_array_equal(source_row[source == i], np.arange(given[-1]))
        for prefix in (0, 1, 99, 123_457, rows):
            assert blend.counts(prefix)[i] == given[prefix]


def test_shares_are_kept_as_written():
    assert Blend({"legal": 0.51, "general": 0.49}).period == 100
    assert Blend({"legal": 0.51, "general": 0.49}).shares == {"legal": 0.51, "general": 0.49}
    assert Blend({"a": 1 / 2, "b": 1 / 3, "c": 1 / 6}).period == 6
    for name, share in Blend(MANY).shares.items():
        assert share == pytest.approx(MANY[name], abs=2e-5)


def test_a_far_row_is_where_counting_would_find_it():
    blend = Blend({"a": 0.7, "b": 0.2, "c": 0.1})
    far = 10**12
    source, source_row = blend.locate(np.arange(far, far + 1000))
    assert (blend.counts(far) == [7 * far // 10, 2 * far // 10, far // 10]).all()
    for i in range(3):
        np.testing.assert_array_equal(
            source_row[source == i], blend.counts(far)[i] + np.arange((source == i).sum())
        )


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "at least one"),
        ({"a": 0.5, "b": 0.4}, "sum to 0.9"),
        ({"a": 51, "b": 49}, "sum to 100"),
        ({"a": 1.0, "b": 0.0}, "'b' = 0.0"),
        ({"a": 1.5, "b": -0.5}, "'b' = -0.5"),
        ({"a": float("nan")}, "nan"),
    ],
)
def test_shares_that_mean_nothing_are_refused(shares, message):
    with pytest.raises(UsageError, match=message):
        Blend(shares)
