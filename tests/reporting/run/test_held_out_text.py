"""Which losses of a run are of one text: versions of its validation stores, and weights."""

import pytest

from t5x_style.reporting.run.held_out_text import (
    HeldOutStore,
    HeldOutText,
    continued,
    evaluation_weights,
    replacements,
    weights_text,
)


def stores(**digests):
    return {name: HeldOutStore(f"stores/{name}", "f", digest) for name, digest in digests.items()}


def changes(versions):
    return [(change.step, change.source, change.before, change.after) for change in versions]


def test_the_same_text_at_every_start_is_one_version():
    first = continued([], stores(legal="a"), None)
    assert first == [HeldOutText(-1, 0, stores(legal="a"))]
    moved = {"legal": HeldOutStore("elsewhere", "g", "a")}
    assert continued(first, moved, (10, 1000)) == [HeldOutText(-1, 0, moved)]
    assert replacements(continued(first, moved, (10, 1000))) == []


def test_another_text_begins_after_the_step_of_the_checkpoint():
    first = continued([], stores(legal="a", web="b"), None)
    second = continued(first, stores(legal="a", web="c"), (10, 1000))
    assert changes(replacements(second)) == [(10, "web", "b", "c")]
    assert "'web' was replaced at step 10" in str(replacements(second)[0])
    # Started again from that checkpoint, before another one was saved: the same, and once.
    assert continued(second, stores(legal="a", web="c"), (10, 1000)) == second
    # The old text is back at that step, or the run goes back before it: nothing was replaced.
    assert continued(second, stores(legal="a", web="b"), (10, 1000)) == first
    assert continued(second, stores(legal="a", web="b"), (5, 500)) == first
    # Later it goes on with the new one.
    third = continued(second, stores(legal="d", web="c"), (20, 2000))
    assert changes(replacements(third)) == [(10, "web", "b", "c"), (20, "legal", "a", "d")]
    assert [change.tokens for change in replacements(third)] == [1000, 2000]
    assert [HeldOutText.from_json(version.to_json()) for version in third] == third


def test_a_source_that_is_added_or_left_out_replaces_no_text():
    versions = continued([], stores(legal="a"), None)
    for step, now in enumerate([{"web": "b"}, {"legal": "a"}, {"web": "c"}], start=1):
        versions = continued(versions, stores(**now), (step, step))
    assert changes(replacements(versions)) == [(3, "web", "b", "c")]


def test_a_run_of_an_older_version_is_taken_as_it_is():
    old = [HeldOutText(-1, 0, {"legal": HeldOutStore("stores/legal")})]
    assert replacements(continued(old, stores(legal="a"), (10, 1000))) == []
    later = continued(continued(old, stores(legal="a"), (10, 1000)), stores(legal="b"), (20, 2000))
    assert changes(replacements(later)) == [(20, "legal", "a", "b")]


@pytest.mark.parametrize(
    ("evaluated", "weights"),
    [
        (["legal", "web"], {"legal": 2 / 3, "web": 1 / 3}),
        (["web"], {"web": 1.0}),
        (["legal", "general"], {"legal": 1.0}),
        # What is watched alone, with a share of 0 or outside of the blend.
        (["general", "other"], {"general": 0.5, "other": 0.5}),
        ([], {}),
    ],
)
def test_a_mean_is_over_the_shares_of_what_is_evaluated(evaluated, weights):
    shares = {"legal": 0.5, "web": 0.25, "code": 0.25, "general": 0.0}
    assert evaluation_weights(shares, evaluated) == pytest.approx(weights)


def test_the_sources_of_a_mean_are_named():
    assert weights_text({"legal": 0.51, "web": 0.49}) == "legal 51.0%, web 49.0%"
    assert weights_text({"legal": 1.0}) == "legal"
