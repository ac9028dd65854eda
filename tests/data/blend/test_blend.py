"""Every prefix of a blend holds the asked shares; checked by counting."""

import fractions
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data import Blend, BlendPhase
from t5x_style.data.blend.blend import as_used
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
    blend = Blend.constant(shares)
    rows = 10**6
    source, source_row = blend.locate(np.arange(rows))
    ideal = np.arange(rows + 1)
    for i, name in enumerate(blend.names):
        given = np.concatenate([[0], np.cumsum(source == i)])
        assert np.abs(given - ideal * blend.phases[0].start[name]).max() < 1, name
        # Each row of the source is handed out once and in turn.
        np.testing.assert_array_equal(source_row[source == i], np.arange(given[-1]))
        for prefix in (0, 1, 99, 123_457, rows):
            assert blend.counts(prefix)[i] == given[prefix]


def test_shares_are_kept_as_written():
    assert Blend.constant({"legal": 0.51, "general": 0.49}).phases[0].start == {
        "legal": 0.51,
        "general": 0.49,
    }
    for shares, period in (
        ({"legal": 0.51, "general": 0.49}, 100),
        ({"a": 1 / 2, "b": 1 / 3, "c": 1 / 6}, 6),
    ):
        source, _ = Blend.constant(shares).locate(np.arange(3 * period))
        np.testing.assert_array_equal(source[period:], source[:-period])
    for name, share in Blend.constant(MANY).phases[0].start.items():
        assert share == pytest.approx(MANY[name], abs=2e-5)


def test_a_far_row_is_where_counting_would_find_it():
    blend = Blend.constant({"a": 0.7, "b": 0.2, "c": 0.1})
    far = 10**12
    source, source_row = blend.locate(np.arange(far, far + 1000))
    assert (blend.counts(far) == [7 * far // 10, 2 * far // 10, far // 10]).all()
    for i in range(3):
        np.testing.assert_array_equal(
            source_row[source == i], blend.counts(far)[i] + np.arange((source == i).sum())
        )


@pytest.mark.parametrize("evenness", [0.01, 0.1, 1.0])
def test_shares_that_are_used_are_used_again_as_they_are(evenness):
    """Phases come back from plan.json, and caps count what the blend will give."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet(np.full(int(rng.integers(2, 60)), evenness))
        used = as_used({str(i): share for i, share in enumerate(shares.tolist())})
        assert as_used(used) == {name: share for name, share in used.items() if share}
        assert sum(used.values()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({}, "at least one"),
        ({"a": 0.5, "b": 0.4}, "sum to 0.9"),
        ({"a": 51, "b": 49}, "sum to 100"),
        ({"a": 1.5, "b": -0.5}, "'b' = -0.5"),
        ({"a": float("nan")}, "nan"),
    ],
)
def test_shares_that_mean_nothing_are_refused(shares, message):
    with pytest.raises(UsageError, match=message):
        Blend.constant(shares)


def integral(phases, names, rows):
    """float64 [sources, rows + 1]: dues by adding the shares in the middle of each row."""
    shares = np.zeros((len(names), rows))
    first = 0
    for phase in phases:
        count = rows - first if phase.rows is None else min(phase.rows, rows - first)
        middle = (np.arange(count) + 0.5) / (phase.rows or 1)
        for i, name in enumerate(names):
            start, end = phase.start.get(name, 0.0), phase.end.get(name, 0.0)
            shares[i, first : first + count] = start + (end - start) * middle
        first += count
    return np.concatenate([np.zeros((len(names), 1)), np.cumsum(shares, axis=1)], axis=1)


def furthest_from_due(blend, rows, phases=None):
    """The largest difference between rows given and rows due, over all prefixes and sources."""
    source, source_row = blend.locate(np.arange(rows))
    due = integral(phases or blend.phases, blend.names, rows)
    furthest = 0.0
    for i in range(len(blend.names)):
        given_rows = np.concatenate([[0], np.cumsum(source == i)])
        furthest = max(furthest, np.abs(given_rows - due[i]).max())
        np.testing.assert_array_equal(source_row[source == i], np.arange(given_rows[-1]))
        for prefix in (0, 1, rows // 3, rows):
            assert blend.counts(prefix)[i] == given_rows[prefix]
    np.testing.assert_allclose(blend.due(rows), due[:, -1], atol=1e-4)
    return furthest


def random_shares(rng, sources):
    shares = rng.dirichlet(np.ones(sources)) * 0.99 + 0.01 / sources
    return {f"source{i}": float(share) for i, share in enumerate(shares)}


def test_a_million_rows_of_seven_sources_in_four_phases_with_ramps():
    rng = np.random.default_rng(7)
    a, b, c, d, e = (random_shares(rng, 7) for _ in range(5))
    phases = [
        BlendPhase(200_000, a, a),
        BlendPhase(300_000, a, b),
        BlendPhase(250_000, c, d),
        BlendPhase(None, e, e),
    ]
    blend = Blend(phases)
    assert furthest_from_due(blend, 10**6) < 1 + 1e-5
    # Any row is where it is, whatever was asked for before.
    source, source_row = blend.locate(np.arange(480_000, 520_000))
    alone = Blend(phases).locate(np.arange(500_000, 500_010))
    np.testing.assert_array_equal(alone[0], source[20_000:20_010])
    np.testing.assert_array_equal(alone[1], source_row[20_000:20_010])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_prefix_of_any_phases_is_within_one_row(seed):
    rng = np.random.default_rng(seed)
    sources = int(rng.integers(2, 8))
    phases, start = [], random_shares(rng, sources)
    for _ in range(int(rng.integers(1, 5))):
        end = start if rng.random() < 0.5 else random_shares(rng, sources)
        phases.append(BlendPhase(int(rng.choice([1, 7, 40, 5000, 9000])), start, end))
        start = end if rng.random() < 0.5 else random_shares(rng, sources)
    phases.append(BlendPhase(None, start, start))
    rows = sum(phase.rows for phase in phases[:-1]) + 6000
    assert furthest_from_due(Blend(phases), rows) < 1 + 1e-5


def test_sources_that_come_and_go():
    """Within one row, too, as users write it: general text, a ramp to the domain, domain alone."""
    general = {f"general{i}": 0.2 for i in range(5)}
    both = {f"general{i}": 0.05 for i in range(5)} | {"law": 0.6, "cases": 0.15}
    domain = {"law": 0.8, "cases": 0.2}
    phases = [
        BlendPhase(1003, general, general),
        BlendPhase(20_001, general, both),
        BlendPhase(333, both, domain),
        BlendPhase(5000, domain, domain),
        BlendPhase(777, both, both),
        BlendPhase(None, domain, domain),
    ]
    assert furthest_from_due(Blend(phases), 40_000) < 1 + 1e-5


def test_of_groups_that_take_turns_a_source_is_within_two_rows():
    """Groups without a common source leave each other unfinished rows; see the docstring."""
    rng = np.random.default_rng(1)
    over = 0
    for _ in range(60):
        sources = int(rng.integers(3, 8))
        blends = []
        for _ in range(4):
            present = rng.random(sources) < 0.5
            present[rng.integers(sources)] = True
            shares = random_shares(rng, sources)
            kept = {name: shares[name] for name, here in zip(shares, present, strict=True) if here}
            blends.append({name: share / sum(kept.values()) for name, share in kept.items()})
        phases = [BlendPhase(int(rng.integers(50, 900)), blend, blend) for blend in blends]
        phases[-1] = BlendPhase(None, blends[-1], blends[-1])
        furthest = furthest_from_due(Blend(phases), 4000)
        assert furthest < 2
        over += furthest > 1 + 1e-5
    assert over <= 3


def test_a_source_that_comes_rare_is_as_exact_in_blocks_of_every_length():
    start, end = {"a": 0.9, "b": 0.1}, {"a": 0.6, "b": 0.3, "c": 0.1}
    phases = [BlendPhase(400_000, start, end), BlendPhase(300_000, end, start)]
    phases.append(BlendPhase(None, start, start))
    blend = Blend(phases)
    assert furthest_from_due(blend, 710_000) < 1 + 1e-5
    (span, *_) = blend._chains[0].spans
    assert len(set(span._block_rows.tolist())) > 1


@pytest.mark.parametrize("share", [0.5, 0.01, 1e-4])
def test_rows_of_a_ramp_of_a_billion_rows_cost_no_more_than_they_must(share):
    """In the middle of it, where a source that comes is no longer rare."""
    alone, mixed = {"a": 1.0}, {"a": 1 - share, "b": share}
    blend = Blend([BlendPhase(10**9, alone, mixed), BlendPhase(None, mixed, mixed)])
    begun = time.perf_counter()
    for row in (5 * 10**8, 10**9 - 1, 10**9, 3 * 10**9):
        source, source_row = blend.locate(np.arange(row, row + 1000))
        given = blend.counts(row)
        for i in range(2):
            mine = source_row[source == i]
            np.testing.assert_array_equal(mine, given[i] + np.arange(len(mine)))
        assert np.abs(given - blend.due(row)).max() < 1 + 1e-5
    assert time.perf_counter() - begun < 10


def test_a_change_leaves_the_rows_before_it_alone():
    old = [BlendPhase(2000, {"a": 0.3, "b": 0.7}, {"a": 0.9, "b": 0.1})]
    old.append(BlendPhase(None, {"a": 0.9, "b": 0.1}, {"a": 0.9, "b": 0.1}))
    new = [BlendPhase(50, {"b": 0.5, "c": 0.5}, {"c": 1.0}), BlendPhase(None, {"c": 1.0}, {"c": 1})]
    before, changed = Blend(old), Blend(old, [(1234, new), (1300, old)])
    source, source_row = before.locate(np.arange(1234))
    mixed, mixed_row = changed.locate(np.arange(4000))
    np.testing.assert_array_equal(mixed[:1234], source)
    np.testing.assert_array_equal(mixed_row[:1234], source_row)
    assert changed.names == ("a", "b", "c")
    for first, end, phases in ((1234, 1300, new), (1300, 4000, old)):
        due = integral(phases, changed.names, end - first)
        for i in range(3):
            given_rows = np.concatenate([[0], np.cumsum(mixed[first:end] == i)])
            assert np.abs(given_rows - due[i]).max() < 1 + 1e-5
    for i in range(3):
        np.testing.assert_array_equal(mixed_row[mixed == i], np.arange((mixed == i).sum()))
        assert changed.counts(4000)[i] == (mixed == i).sum()


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "needs phases"),
        ([BlendPhase(5, {"a": 1.0}, {"a": 1.0})], "lasts to the end"),
        ([BlendPhase(0, {"a": 1.0}, {"a": 1.0}), BlendPhase(None, {"a": 1}, {"a": 1})], "0 rows"),
        ([BlendPhase(None, {"a": 1.0}, {"b": 1.0})], "cannot go to other shares"),
    ],
)
def test_phases_that_mean_nothing_are_refused(phases, message):
    with pytest.raises(UsageError, match=message):
        Blend(phases)


def test_dues_are_exact_where_fractions_say_so():
    """A ramp from 1/4 to 3/4 over 8 rows, by hand in fractions."""
    blend = Blend(
        [
            BlendPhase(8, {"a": 0.25, "b": 0.75}, {"a": 0.75, "b": 0.25}),
            BlendPhase(None, {"a": 0.75, "b": 0.25}, {"a": 0.75, "b": 0.25}),
        ]
    )
    for row in range(13):
        x = fractions.Fraction(min(row, 8))
        due = x / 4 + x * x / 32 + fractions.Fraction(3, 4) * max(0, row - 8)
        assert blend.due(row)[0] == pytest.approx(float(due), abs=1e-12)
