"""Phases from tokens to rows, and phases with caps; checked by adding tokens up."""

import numpy as np
import pytest

from t5x_style.data import Blend, BlendPhase, SharePhase, capped, in_rows
from t5x_style.data.blend.phases import named_phases, shares_at
from t5x_style.errors import UsageError

BROAD, DOMAIN = {"web": 0.8, "law": 0.2}, {"web": 0.1, "law": 0.9}


def test_phases_as_a_user_writes_them():
    assert named_phases("legal") == [("legal", "legal", None)]
    assert named_phases([("legal", 1), ("broad", None)])[0] == ("legal", "legal", 1)
    assert named_phases([("broad", 10), ("broad", "legal", 5), ("legal", None)]) == [
        ("broad", "broad", 10),
        ("broad", "legal", 5),
        ("legal", "legal", None),
    ]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "name a mixture"),
        (["broad", "legal"], r"phase 1: 'broad': write \(NAME, TOKENS\)"),
        ([("broad",), ("legal", None)], "write"),
        ([("broad", 0), ("legal", None)], "above 0"),
        ([("broad", 1.5), ("legal", None)], "whole number of tokens"),
        ([("broad", 10)], "the last phase, and no other"),
        ([("broad", None), ("legal", None)], "phase 1.*the last phase, and no other"),
        ([("broad", "legal", None)], "a ramp needs a length"),
        ([(3, 10), ("legal", None)], "name of a mixture"),
    ],
)
def test_phases_that_mean_nothing_are_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        named_phases(asked)


def test_shares_within_a_ramp():
    ramp = SharePhase(100, {"a": 1.0}, {"b": 1.0})
    assert shares_at(ramp, 0) == {"a": 1.0}
    assert shares_at(ramp, 0.25) == {"a": 0.75, "b": 0.25}
    assert shares_at(ramp, 1) == {"b": 1.0}


def test_rows_of_phases_at_one_sequence_length():
    phases = [
        SharePhase(1000, BROAD, BROAD),
        SharePhase(500, BROAD, DOMAIN),
        SharePhase(None, DOMAIN, DOMAIN),
    ]
    assert in_rows(phases, lambda tokens: -(-tokens // 16), [(0, 16)]) == [
        BlendPhase(63, BROAD, BROAD),
        BlendPhase(31, BROAD, DOMAIN),
        BlendPhase(None, DOMAIN, DOMAIN),
    ]


def test_a_ramp_is_linear_in_tokens_where_the_sequence_length_changes():
    lengths = [(0, 10), (100, 40)]

    def rows_of_tokens(tokens):
        return -(-tokens // 10) if tokens <= 1000 else 100 + -(-(tokens - 1000) // 40)

    phases = [
        SharePhase(500, BROAD, BROAD),
        SharePhase(1500, BROAD, DOMAIN),
        SharePhase(None, DOMAIN, DOMAIN),
    ]
    rows = in_rows(phases, rows_of_tokens, lengths)
    assert [phase.rows for phase in rows] == [50, 50, 25, None]
    # A third of the ramp's tokens come before the border.
    assert rows[1].end["law"] == pytest.approx(0.2 + 0.7 / 3)
    assert rows[2].start == rows[1].end
    # Tokens of law over the ramp: its mean share times its tokens.
    blend = Blend(rows)
    law = blend.names.index("law")
    rows = [blend.owed_rows(row)[law] for row in (50, 100, 125)]
    owed = (rows[1] - rows[0]) * 10 + (rows[2] - rows[1]) * 40
    assert owed == pytest.approx(1500 * (0.2 + 0.9) / 2)


def test_a_phase_without_a_row_vanishes():
    phases = [SharePhase(3, BROAD, DOMAIN), SharePhase(2, BROAD, BROAD)]
    phases.append(SharePhase(None, DOMAIN, DOMAIN))
    assert in_rows(phases, lambda tokens: -(-tokens // 16), [(0, 16)]) == [
        BlendPhase(1, BROAD, DOMAIN),
        BlendPhase(None, DOMAIN, DOMAIN),
    ]


def read(phases, rows, lengths):
    """{source: tokens} that the first `rows` rows give."""
    blend = Blend(phases)
    ends = [first for first, _ in lengths[1:]] + [rows]
    totals = np.zeros(len(blend.names))
    for (first, length), end in zip(lengths, ends, strict=True):
        if first < rows:
            totals += (blend.counts(min(end, rows)) - blend.counts(first)) * length
    return dict(zip(blend.names, totals.tolist(), strict=True))


@pytest.mark.parametrize("lengths", [[(0, 16)], [(0, 16), (200, 64), (900, 8)]])
def test_a_source_at_its_cap_leaves_its_share_to_the_others(lengths):
    shares = {"law": 0.5, "web": 0.3, "books": 0.2}
    phases = [
        BlendPhase(500, {"law": 0.1, "web": 0.6, "books": 0.3}, shares),
        BlendPhase(None, shares, shares),
    ]
    caps = {"law": 9000.0, "books": 11_000.0}
    without, capped_at = capped(phases, caps, lengths)
    assert [name for _, name in capped_at] == ["law", "books"]
    (law_row, _), (books_row, _) = capped_at
    tokens = read(without, 5000, lengths)
    for name, row in (("law", law_row), ("books", books_row)):
        assert caps[name] - 2 * 64 <= tokens[name] <= caps[name] + 64
        assert read(without, row, lengths)[name] >= caps[name] - 2 * 64
    ends = [first for first, _ in lengths[1:]] + [5000]
    assert sum(tokens.values()) == sum(
        (end - first) * length for (first, length), end in zip(lengths, ends, strict=True)
    )
    # Between the two caps, web and books are as 3 to 2 again.
    between = [phase for phase in without if set(phase.start) == {"web", "books"}]
    assert between[-1].start["web"] == pytest.approx(0.6)
    assert set(without[-1].start) == {"web"}
    # Before the first cap nothing has changed.
    np.testing.assert_allclose(
        [read(without, law_row, lengths)[name] for name in shares],
        [read(phases, law_row, lengths)[name] for name in shares],
        atol=64,
    )


def test_no_cap_is_capped_at_and_nothing_changes():
    phases = [BlendPhase(500, BROAD, DOMAIN), BlendPhase(None, DOMAIN, {**DOMAIN})]
    unchanged, capped_at = capped(phases, {"law": float("inf")}, [(0, 16), (100, 32)])
    assert capped_at == []
    assert read(unchanged, 2000, [(0, 16)]) == read(phases, 2000, [(0, 16)])
    constant, _ = capped([BlendPhase(None, BROAD, BROAD)], {}, [(0, 16), (100, 32)])
    assert constant == [BlendPhase(None, BROAD, BROAD)]


def test_a_rare_source_gives_as_much_as_its_cap():
    """A blend rounds two in a million to one in 100,000, which is five times as many."""
    rare = {"web": 1 - 2e-6, "law": 2e-6}
    phases = [BlendPhase(10**6, rare, rare), BlendPhase(10**6, rare, BROAD)]
    phases.append(BlendPhase(None, BROAD, BROAD))
    for cap in (5, 20, 5000):
        left, [(row, name)] = capped(phases, {"law": 16.0 * cap}, [(0, 16)])
        assert name == "law"
        assert abs(read(left, row, [(0, 16)])["law"] / 16 - cap) <= 1
        assert read(left, row + 10**6, [(0, 16)])["law"] == read(left, row, [(0, 16)])["law"]


def test_a_cap_of_a_source_without_a_share():
    phases = [BlendPhase(None, BROAD, BROAD)]
    assert capped(phases, {"books": 5.0}, [(0, 16)]) == (phases, [])


@pytest.mark.parametrize(("cap", "row"), [(1490, 199), (1500, 200), (1700, 210), (1719, 210)])
def test_a_cap_after_two_changes_of_the_sequence_length(cap, row):
    """Half of the tokens: 500 in the first 100 rows, 1,000 in the next, then 20 a row."""
    half = {"a": 0.5, "b": 0.5}
    lengths = [(0, 10), (100, 20), (200, 40)]
    left, capped_at = capped([BlendPhase(None, half, half)], {"a": cap}, lengths)
    assert capped_at == [(row, "a")]
    assert left == [BlendPhase(row, half, half), BlendPhase(None, {"b": 1.0}, {"b": 1.0})]


def test_a_cap_after_a_ramp_from_nothing():
    """A ramp from none to a half gives 250 tokens in 100 rows of ten, then there are five a row."""
    alone, half = {"b": 1.0}, {"a": 0.5, "b": 0.5}
    phases = [BlendPhase(100, alone, half), BlendPhase(None, half, half)]
    assert capped(phases, {"a": 300.0}, [(0, 10)])[1] == [(110, "a")]
    # 90 tokens are owed after x rows of which 10 x^2 / 400 are its own: at x = 60.
    assert capped(phases, {"a": 90.0}, [(0, 10)])[1] == [(60, "a")]


@pytest.mark.parametrize("cap", [0.0, -5.0])
@pytest.mark.parametrize("start", [{"a": 0.5, "b": 0.5}, {"a": 1.0}])
def test_a_source_past_its_cap_gives_no_row_more(cap, start):
    """An earlier blend may have given more than a cap that is lower now."""
    half, alone = {"a": 0.5, "b": 0.5}, {"a": 1.0}
    phases = [BlendPhase(100, start, half), BlendPhase(None, half, half)]
    assert capped(phases, {"b": cap}, [(0, 10)]) == (
        [BlendPhase(None, alone, alone)],
        [(0, "b")],
    )


def test_a_phase_that_ends_where_the_sequence_length_changes_is_not_split():
    phases = [BlendPhase(100, BROAD, DOMAIN), BlendPhase(None, DOMAIN, DOMAIN)]
    assert capped(phases, {}, [(0, 16), (100, 32)]) == (phases, [])


def test_the_phases_end_where_all_sources_are_at_their_caps():
    phases = [BlendPhase(None, BROAD, BROAD)]
    left, capped_at = capped(phases, {"web": 800.0, "law": 800.0}, [(0, 10)])
    assert capped_at[0] == (100, "web")
    assert [name for _, name in capped_at] == ["web", "law"]
    assert sum(phase.rows for phase in left) == capped_at[1][0]
    assert capped_at[1][0] == 160


def test_a_phase_of_a_capped_source_alone_moves_no_other():
    law = {"law": 1.0}
    phases = [BlendPhase(100, BROAD, BROAD), BlendPhase(100, law, law)]
    phases += [BlendPhase(50, BROAD, {"books": 1.0}), BlendPhase(None, law, law)]
    left, capped_at = capped(phases, {"law": 10.0 * 40}, [(0, 10)])
    assert capped_at == [(120, "law")]
    web, books = {"web": 1.0}, {"books": 1.0}
    assert left == [
        BlendPhase(100, BROAD, BROAD),
        BlendPhase(20, law, law),
        BlendPhase(80, web, web),
        BlendPhase(50, web, books),
    ]


def test_a_ramp_to_a_capped_source_keeps_its_first_blend():
    phases = [
        BlendPhase(100, {"a": 0.5, "b": 0.5}, {"b": 1.0}),
        BlendPhase(None, {"a": 1}, {"a": 1}),
    ]
    left, capped_at = capped(phases, {"b": 0.0}, [(0, 10)])
    assert capped_at == [(0, "b")]
    assert left[0].start == left[0].end == {"a": 1.0}
