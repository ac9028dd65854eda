"""Every prefix of a blend holds the asked shares; checked by counting, in floats and fractions."""

import fractions
import hashlib
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data import Blend, BlendPhase
from t5x_style.data.blend import blend as blending
from t5x_style.data.blend.blend import ROW_ORDER
from t5x_style.data.blend.shares import rounded_shares
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
def test_each_prefix_of_a_million_rows_is_within_the_bound(shares):
    blend = Blend.constant(shares)
    rows = 10**6
    source, source_row = blend.locate(0, rows)
    ideal = np.arange(rows + 1)
    for i, name in enumerate(blend.names):
        share = blend.phases[0].start[name]
        given = np.concatenate([[0], np.cumsum(source == i)])
        bound = 1 / 2 + share * (len(shares) - 2) / 2
        assert np.abs(given - ideal * share).max() <= bound + 1e-6, name
        # Each row of the source is given once and in turn.
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
        source, _ = Blend.constant(shares).locate(0, 3 * period)
        np.testing.assert_array_equal(source[period:], source[:-period])
    for name, share in Blend.constant(MANY).phases[0].start.items():
        assert share == pytest.approx(MANY[name], abs=2e-5)


def test_rows_come_in_the_order_of_their_midpoints_and_ties_in_the_order_of_sources():
    """By hand: rows of a are due at 1, 3, 5, 7, those of b and c at 2 and 6."""
    source, source_row = Blend.constant({"a": 1 / 2, "b": 1 / 4, "c": 1 / 4}).locate(0, 8)
    assert source.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert source_row.tolist() == [0, 0, 0, 1, 2, 1, 1, 3]
    # 51 and 49 tie in the middle of every period, also far away.
    blend = Blend.constant({"a": 0.51, "b": 0.49})
    for period in (0, 10**6, 10**8):
        source, _ = blend.locate(100 * period, 100 * period + 100)
        times = [(fractions.Fraction(2 * j + 1, 102), 0) for j in range(51)]
        times += [(fractions.Fraction(2 * j + 1, 98), 1) for j in range(49)]
        assert source.tolist() == [i for _, i in sorted(times)]


def test_the_order_changes_only_with_its_version():
    """A run holds ROW_ORDER in its identity: raise it when this digest has to change."""
    start, end = {"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 0.1, "b": 0.3, "d": 0.6}
    blend = Blend(
        [BlendPhase(700, start, start), BlendPhase(900, start, end), BlendPhase(None, end, end)],
        [(2000, [BlendPhase(None, start, start)])],
    )
    source, _ = blend.locate(0, 3000)
    digest = hashlib.sha256(source.astype("<i4").tobytes()).hexdigest()
    assert (ROW_ORDER, digest[:16]) == (2, "debff7bc0c0a4340")


def test_a_far_row_agrees_with_the_counts():
    blend = Blend.constant({"a": 0.7, "b": 0.2, "c": 0.1})
    far = 10**12
    source, source_row = blend.locate(far, far + 1000)
    assert (blend.counts(far) == [7 * far // 10, 2 * far // 10, far // 10]).all()
    for i in range(3):
        np.testing.assert_array_equal(
            source_row[source == i], blend.counts(far)[i] + np.arange((source == i).sum())
        )


@pytest.mark.parametrize("evenness", [0.01, 0.1, 1.0])
def test_rounded_shares_stay_as_they_are_when_rounded_again(evenness):
    """Phases are read back from plan.json, and caps count the rows that the blend gives."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet(np.full(int(rng.integers(2, 60)), evenness))
        used = rounded_shares({str(i): share for i, share in enumerate(shares.tolist())})
        assert rounded_shares(used) == {name: share for name, share in used.items() if share}
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
def test_impossible_shares_are_refused(shares, message):
    with pytest.raises(UsageError, match=message):
        Blend.constant(shares)


def shares_of_rows(phases, names, rows):
    """float64 [sources, rows]: the mean share of each source within each row."""
    shares = np.zeros((len(names), rows))
    first = 0
    for phase in phases:
        count = rows - first if phase.rows is None else min(phase.rows, rows - first)
        middle = (np.arange(count) + 0.5) / (phase.rows or 1)
        for i, name in enumerate(names):
            start, end = phase.start.get(name, 0.0), phase.end.get(name, 0.0)
            shares[i, first : first + count] = start + (end - start) * middle
        first += count
    return shares


def check_prefixes(blend, rows, phases=None, begin=0):
    """Every prefix of the rows from `begin` on is within the bound; returns the largest distance.

    Owed rows are the sum of the shares of the rows, and the bound is that of the docstring.
    """
    source, source_row = blend.locate(begin, begin + rows)
    before = blend.counts(begin)
    shares = shares_of_rows(phases or blend.phases, blend.names, rows)
    reach = math.ceil(len(blend.names) / 2) + 1
    furthest = 0.0
    for i in range(len(blend.names)):
        owed = np.concatenate([[0], np.cumsum(shares[i])])
        given_rows = np.concatenate([[0], np.cumsum(source == i)])
        around = np.pad(shares[i], reach, mode="edge")
        share = np.lib.stride_tricks.sliding_window_view(around, 2 * reach).max(axis=1)
        bound = 1 / 2 + share[: rows + 1] * (len(blend.names) - 2) / 2
        distance = np.abs(given_rows - owed)
        # Sums of a million float64, and a ramp's share differs from its mean in a row.
        assert (distance <= bound + 2e-3).all(), blend.names[i]
        furthest = max(furthest, distance.max())
        np.testing.assert_array_equal(
            source_row[source == i], before[i] + np.arange(given_rows[-1])
        )
        for prefix in (0, 1, rows // 3, rows):
            assert blend.counts(begin + prefix)[i] == before[i] + given_rows[prefix]
        assert blend.owed_rows(begin + rows)[i] == pytest.approx(before[i] + owed[-1], abs=1e-4)
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
    assert check_prefixes(blend, 10**6) < 2
    # A row does not depend on the block that it is read in.
    source, source_row = blend.locate(480_000, 520_000)
    alone = Blend(phases).locate(500_000, 500_010)
    np.testing.assert_array_equal(alone[0], source[20_000:20_010])
    np.testing.assert_array_equal(alone[1], source_row[20_000:20_010])


class Schedule:
    """Phases in exact fractions: an independent reading of what each source is owed."""

    def __init__(self, phases):
        self.phases = phases  # [(rows or None, start [k], end [k])] of whole weights
        self.pieces, first = [], 0
        for rows, start, end in phases:
            shares = [[fractions.Fraction(w, sum(side)) for w in side] for side in (start, end)]
            self.pieces.append((first, rows, *shares))
            first += rows or 0

    def owed(self, i, row):
        total = fractions.Fraction(0)
        for first, rows, start, end in self.pieces:
            x = row - first if rows is None else min(max(row - first, 0), rows)
            if x > 0:
                total += start[i] * x + (end[i] - start[i]) * fractions.Fraction(
                    x * x, 2 * (rows or 1)
                )
        return total

    def largest_share(self, i, since, until):
        """The largest share at any time between, borders of phases included."""
        found = [fractions.Fraction(0)]
        for first, rows, start, end in self.pieces:
            begin = max(since, first)
            stop = until if rows is None else min(until, first + rows)
            if begin <= stop:
                at = [fractions.Fraction(x - first, rows or 1) for x in (begin, stop)]
                found += [start[i] + (end[i] - start[i]) * x for x in at]
        return max(found)

    def in_rows(self):
        names = [f"source{i}" for i in range(len(self.phases[0][1]))]
        return [
            BlendPhase(
                rows,
                *(dict(zip(names, (w / sum(side) for w in side), strict=True)) for side in sides),
            )
            for rows, *sides in self.phases
        ]


@st.composite
def schedules(draw, sources):
    """Steps and ramps, with sources that come and go."""
    weights = st.lists(st.integers(0, 9), min_size=sources, max_size=sources).filter(any)
    phases = []
    for _ in range(draw(st.integers(0, 3))):
        start = draw(weights)
        phases.append((draw(st.integers(1, 30)), start, draw(st.one_of(st.just(start), weights))))
    last = draw(weights)
    return Schedule([*phases, (None, last, last)])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_prefix_of_any_schedule_in_exact_fractions(data):
    """The bound, each row once and in turn, and the same rows from any blocks."""
    sources = data.draw(st.integers(1, 6))
    first, changed = data.draw(schedules(sources)), data.draw(schedules(sources))
    row, rows = data.draw(st.integers(1, 80)), 100
    changes = [(row, changed.in_rows())] if data.draw(st.booleans()) else []
    blend = Blend(first.in_rows(), changes)
    # Sources that never have a share are no names of the blend.
    numbers = [int(name.removeprefix("source")) for name in blend.names]
    source, source_row = blend.locate(0, rows)
    counts = np.zeros((rows + 1, len(numbers)), np.int64)
    counts[np.arange(1, rows + 1), source] = 1
    counts = counts.cumsum(axis=0)

    spans = [(0, row, first), (row, rows, changed)] if changes else [(0, rows, first)]
    reach = fractions.Fraction(len(numbers), 2)
    for begin, end, schedule in spans:
        for n in range(begin + 1, end + 1):
            owed_rows = blend.owed_rows(n)
            for i, number in enumerate(numbers):
                owed = int(counts[begin, i]) + schedule.owed(number, n - begin)
                assert abs(owed_rows[i] - float(owed)) < 1e-9
                distance = abs(int(counts[n, i]) - owed)
                if distance > fractions.Fraction(1, 2):
                    share = schedule.largest_share(number, n - begin - reach, n - begin + reach)
                    bound = fractions.Fraction(1, 2) + share * (len(numbers) - 2) / 2
                    assert distance <= bound + fractions.Fraction(1, 10**9)
    for i in range(len(numbers)):
        assert source_row[source == i].tolist() == list(range(counts[-1, i]))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=6)))
    for start, stop in itertools.pairwise([0, *cuts, rows]):
        block = Blend(first.in_rows(), changes).locate(start, stop)
        np.testing.assert_array_equal(block[0], source[start:stop])
        np.testing.assert_array_equal(block[1], source_row[start:stop])
        np.testing.assert_array_equal(blend.counts(start), counts[start])


@pytest.mark.parametrize("sources", [2, 3, 5, 10, 20, 50])
def test_the_largest_distance_from_the_owed_rows(sources):
    """As docs/data.md has it: half a row for two sources, about one for three, two for many."""
    furthest = 0.0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        blends = [random_shares(rng, sources) for _ in range(5)]
        phases = [
            BlendPhase(3000, blends[0], blends[0]),
            BlendPhase(5000, blends[0], blends[1]),
            BlendPhase(4000, blends[2], blends[3]),
            BlendPhase(None, blends[4], blends[4]),
        ]
        furthest = max(furthest, check_prefixes(Blend(phases), 16_000))
    assert furthest <= {2: 0.501, 3: 1.0, 5: 1.75, 10: 2.25}.get(sources, 2.5)


def test_sources_that_come_and_go():
    """As users write it: general text, a ramp to the domain, the domain alone."""
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
    # Seven sources, of which five leave with the same part of a row each.
    assert check_prefixes(Blend(phases), 40_000) < 2.5


def test_groups_of_sources_that_take_turns():
    """Groups without a common source; an absent source keeps the part of a row that it is owed."""
    rng = np.random.default_rng(1)
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
        check_prefixes(Blend(phases), 4000)


def test_a_source_that_comes_rare():
    start, end = {"a": 0.9, "b": 0.1}, {"a": 0.6, "b": 0.3, "c": 0.1}
    phases = [BlendPhase(400_000, start, end), BlendPhase(300_000, end, start)]
    phases.append(BlendPhase(None, start, start))
    assert check_prefixes(Blend(phases), 710_000) < 1


@pytest.mark.parametrize("share", [0.5, 0.01, 1e-4])
def test_blocks_far_into_a_ramp_of_ten_billion_rows(share, monkeypatch):
    """They agree where they overlap, hold each row once, and cost as little as the first."""
    alone, mixed = {"a": 1.0}, {"a": 1 - share, "b": share * 0.7, "c": share * 0.3}
    phases = [BlendPhase(10**10, alone, mixed), BlendPhase(10**9, mixed, alone)]
    blend = Blend([*phases, BlendPhase(None, alone, alone)])
    computed = []
    times = blending._Merge._times
    monkeypatch.setattr(
        blending._Merge,
        "_times",
        lambda merge, source, row: computed.append(len(row)) or times(merge, source, row),
    )
    for row in (10**4, 5 * 10**9, 10**10 - 1, 10**10, 11 * 10**9 - 500, 10**11):
        source, source_row = blend.locate(row, row + 1000)
        given = blend.counts(row)
        for i in range(3):
            mine = source_row[source == i]
            np.testing.assert_array_equal(mine, given[i] + np.arange(len(mine)))
        np.testing.assert_array_equal(
            blend.counts(row + 1000), given + np.bincount(source, minlength=3)
        )
        for first in (row - 700, row - 1, row + 1, row + 499):
            other, other_row = blend.locate(first, first + 1000)
            low, high = max(first, row), min(first, row) + 1000
            np.testing.assert_array_equal(
                other[low - first : high - first], source[low - row : high - row]
            )
            np.testing.assert_array_equal(
                other_row[low - first : high - first], source_row[low - row : high - row]
            )
        assert np.abs(given - blend.owed_rows(row)).max() < 1 + 1e-5
    # For 1,000 rows, those of two and a half rows on either side, and one more of each source.
    assert 1000 <= max(computed) <= 1000 + 2 * 2.5 + 3


def test_a_change_leaves_the_rows_before_it_alone():
    old = [BlendPhase(2000, {"a": 0.3, "b": 0.7}, {"a": 0.9, "b": 0.1})]
    old.append(BlendPhase(None, {"a": 0.9, "b": 0.1}, {"a": 0.9, "b": 0.1}))
    new = [BlendPhase(50, {"b": 0.5, "c": 0.5}, {"c": 1.0}), BlendPhase(None, {"c": 1.0}, {"c": 1})]
    before, changed = Blend(old), Blend(old, [(1234, new), (1300, old)])
    source, source_row = before.locate(0, 1234)
    mixed, mixed_row = changed.locate(0, 4000)
    np.testing.assert_array_equal(mixed[:1234], source)
    np.testing.assert_array_equal(mixed_row[:1234], source_row)
    assert changed.names == ("a", "b", "c")
    for first, end, phases in ((1234, 1300, new), (1300, 4000, old)):
        assert check_prefixes(changed, end - first, phases, first) < 1
    for i in range(3):
        np.testing.assert_array_equal(mixed_row[mixed == i], np.arange((mixed == i).sum()))
        assert changed.counts(4000)[i] == (mixed == i).sum()


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([], "needs phases"),
        ([BlendPhase(5, {"a": 1.0}, {"a": 1.0})], "lasts to the end"),
        ([BlendPhase(0, {"a": 1.0}, {"a": 1.0}), BlendPhase(None, {"a": 1}, {"a": 1})], "0 rows"),
        ([BlendPhase(None, {"a": 1.0}, {"b": 1.0})], "cannot change its shares"),
    ],
)
def test_impossible_phases_are_refused(phases, message):
    with pytest.raises(UsageError, match=message):
        Blend(phases)


def test_owed_rows_in_exact_fractions():
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
        assert blend.owed_rows(row)[0] == pytest.approx(float(due), abs=1e-12)
