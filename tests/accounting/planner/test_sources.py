import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.accounting import sources_of
from t5x_style.accounting.planner.sources import blend
from t5x_style.errors import UsageError


def test_shares_follow_the_sizes_or_are_given():
    assert blend({"a": 1e9, "b": 3e9}, None) == {"a": 0.25, "b": 0.75}
    assert blend({"a": 1e9, "b": 3e9}, {"b": 0.49, "a": 0.51}) == {"a": 0.51, "b": 0.49}


def test_without_sources_the_data_is_unlimited():
    endless = sources_of(None, None)
    assert endless.cap() == (math.inf, None)
    assert endless.effective_tokens(1e12) == 1e12
    assert endless.epochs(1e12) == {}


def test_the_scarcest_source_sets_the_cap():
    # legal: 4 x 2e9 / 0.5 = 16e9; general: 4 x 30e9 / 0.5 = 240e9
    sources = sources_of({"legal": 2e9, "general": 30e9}, {"legal": 0.5, "general": 0.5}, 4)
    assert sources.cap() == (16e9, "legal")
    assert sources.cap(epochs=1) == (4e9, "legal")
    mixed = sources_of(
        {"legal": 2e9, "general": 30e9}, {"legal": 0.5, "general": 0.5}, {"legal": 40, "general": 1}
    )
    assert mixed.cap() == (60e9, "general")
    assert mixed.lift_limit("general").cap() == (160e9, "legal")
    assert mixed.scaled("general", 2).cap() == (120e9, "general")


def test_repeated_tokens_are_as_effective_as_muennighoff_measured():
    """Golden dc_epochs: 0.931418 of the tokens of 4 epochs are effective, 0.661404 of 16."""
    sources = sources_of({"all": 1e9}, None, 40)
    for epochs, share in ((4, 0.931418), (16, 0.661404)):
        assert sources.effective_tokens(epochs * 1e9) == pytest.approx(
            epochs * 1e9 * share, rel=1e-6
        )
    # A fresh source next to a repeated one keeps all of its tokens.
    pair = sources_of({"legal": 1e9, "general": 1e12}, {"legal": 0.5, "general": 0.5}, 40)
    assert pair.effective_tokens(8e9) == pytest.approx(4e9 + 4e9 * 0.931418, rel=1e-6)


def test_chosen_shares():
    def share(own, rest, wanted):
        sources = {"general": rest, "legal": own}
        return sources_of(sources, "choose", domain="legal", wanted_tokens=wanted).shares["legal"]

    assert share(100e9, 100e9, 50e9) == 0.5  # there is enough of both: half and half
    assert share(1e9, 100e9, 50e9) == pytest.approx(4 / 50)  # four epochs of the domain
    assert share(100e9, 1e9, 50e9) == pytest.approx(46 / 50)  # four epochs of the rest
    assert share(1e9, 3e9, 50e9) == pytest.approx(0.25)  # too little of both: equally often
    alone = sources_of({"legal": 1e9}, "choose", domain="legal", wanted_tokens=1e9)
    assert alone.shares == {"legal": 1.0}


SIZES = st.dictionaries(st.sampled_from("abcdefg"), st.floats(1e6, 1e13), min_size=1)


@given(SIZES, st.floats(1e6, 1e14), st.data())
def test_shares_and_tokens_always_add_up(sizes, tokens, data):
    domain = data.draw(st.sampled_from(sorted(sizes)))
    shares = data.draw(st.sampled_from([None, "choose"]))
    sources = sources_of(sizes, shares, domain=domain, wanted_tokens=tokens)
    assert sum(sources.shares.values()) == pytest.approx(1, rel=1e-12)
    assert all(share >= 0 for share in sources.shares.values())
    assert sum(sources.tokens(tokens).values()) == pytest.approx(tokens, rel=1e-12)
    epochs = sources.epochs(tokens)
    for name, part in sources.tokens(tokens).items():
        assert epochs[name] * sizes[name] == pytest.approx(part, rel=1e-12)
    assert 0 < sources.effective_tokens(tokens) <= tokens * (1 + 1e-12)


TWO = {"legal": 1e9, "general": 2e9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TWO, {"legl": 0.5, "general": 0.5}), "did you mean 'legal'"),
        ((TWO, {"legal": 1.0}), "'general'"),
        ((TWO, {"legal": 0.51, "general": 0.5}), r"sum to 1.01.*'legal': 0.50495"),
        ((TWO, {"legal": 51, "general": 49}), r"sum to 100.*'legal': 0.51"),
        ((TWO, {"legal": 1.5, "general": -0.5}), "must be above 0"),
        ((TWO, "chose"), "did you mean 'choose'"),
        ((TWO, "choose"), "--domain=legal"),
        (({"legal": -1e9}, None), "must be above 0"),
        (({"legal": math.inf}, None), "must be above 0"),
        (({}, None), "is empty"),
        ((TWO, None, 0.5), "under one epoch"),
        ((TWO, None, {"legal": 4}), "'general'"),
        ((TWO, None, 41), "past_forty_epochs"),
        ((None, {"legal": 1.0}), "unique_tokens"),
    ],
)
def test_impossible_sources_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        sources_of(*arguments)


def test_a_domain_that_is_no_source_is_refused():
    with pytest.raises(UsageError, match="did you mean 'legal'"):
        sources_of(TWO, None, domain="legl")
    with pytest.raises(UsageError, match="needs unique_tokens"):
        sources_of(None, None, domain="legal")


def test_more_than_forty_epochs_can_be_meant():
    assert sources_of(TWO, None, 50, past_forty_epochs=True).max_epochs["legal"] == 50


def test_a_source_is_read_once_to_forty_times_and_four_times_unless_told():
    assert sources_of(TWO, None).max_epochs == {"legal": 4, "general": 4}
    for cap in (1, 40):
        assert sources_of(TWO, None, cap).max_epochs["legal"] == cap
    with pytest.raises(UsageError, match="under one epoch"):
        sources_of(TWO, None, 0.999)
    with pytest.raises(UsageError, match="past 40 epochs"):
        sources_of(TWO, None, 40.001)


def test_shares_sum_to_one_within_a_millionth():
    near = sources_of(TWO, {"legal": 0.5, "general": 0.5 + 9e-7}).shares
    assert sum(near.values()) == pytest.approx(1, abs=1e-15)
    for missing in (-2e-6, 2e-6):
        with pytest.raises(UsageError, match="sum to"):
            sources_of(TWO, {"legal": 0.5, "general": 0.5 + missing})


def test_tokens_that_are_read_at_all():
    """Of 8e9 tokens half are legal: all 1e9 of them, and 4e9 of the general ones."""
    sources = sources_of({"legal": 1e9, "general": 1e12}, {"legal": 0.5, "general": 0.5})
    assert sources.unique_tokens_read(8e9) == 5e9
    assert sources.epochs(8e9) == {"legal": 4, "general": 0.004}
    assert sources.effective_tokens_of("general", 8e9) == 4e9
