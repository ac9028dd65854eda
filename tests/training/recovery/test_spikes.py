"""Spikes are found by what a median and its deviation say, and always at the same step."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from t5x_style.errors import UsageError
from t5x_style.training.recovery.spikes import Spikes, Watch

# Losses of a run whose learning rate was raised from 4e-3 to 0.5 before its step 30.
BLOWN_UP = (6.4, 6.39, 12.96, 18.24, 27.6, 25.1, 22.0)


def noisy(steps: int, seed: int = 0) -> list[tuple[float, float]]:
    """(loss, gradient norm) of calm steps, as float32 has them."""
    rng = np.random.default_rng(seed)
    pairs = rng.normal([6.4, 0.4], [0.05, 0.03], (steps, 2)).astype(np.float32)
    return [(loss, norm) for loss, norm in pairs.tolist()]


def watched(spikes: Spikes, pairs, watch: Watch | None = None, first: int = 1) -> list[Watch]:
    """What is remembered after each step; an update past a limit is applied unless skipped."""
    found = [watch or Watch()]
    for step, (loss, norm) in enumerate(pairs, first):
        fits = loss <= found[-1].limits[0][0] and norm <= found[-1].limits[0][1]
        applied = math.isfinite(loss + norm) and (fits or spikes.action != "skip")
        found.append(spikes.after(found[-1], step, loss, norm, applied))
    return found


def beginnings(spikes: Spikes, found: list[Watch], first: int = 1) -> list[int]:
    """The steps at which a spike began."""
    pairs = enumerate(itertools.pairwise(found), first)
    return [step for step, (before, after) in pairs if spikes.began(before, after)]


def test_the_limits_are_those_of_a_median_and_its_absolute_deviation():
    pairs, spikes = noisy(300), Spikes(window=50, deviations=4.0)
    limits = watched(spikes, pairs)[-1].limits[-1]
    window = np.array(pairs[-50:])
    center, deviation = np.median(window, 0), stats.median_abs_deviation(window, scale="normal")
    np.testing.assert_allclose(limits, center + 4 * deviation, rtol=1e-5)


def test_numbers_that_do_not_vary_leave_room_for_their_rounding():
    found = watched(Spikes(window=8), [(2.0, 1.0)] * 8 + [(2.001, 1.001), (2.5, 1.0)])
    assert beginnings(Spikes(window=8), found) == [10]


def test_a_spike_is_one_event_however_many_steps_it_lasts():
    spikes = Spikes(window=20)
    pairs = [*noisy(29), *((loss, 0.4) for loss in BLOWN_UP), *noisy(30, seed=1)]
    # The limits of the first two losses are above them.
    assert beginnings(spikes, watched(spikes, pairs)) == [32]
    # Another one, after as many good steps as the patience and more.
    again = [*pairs, (30.0, 0.4), (6.4, 0.4), (30.0, 0.4)]
    assert beginnings(spikes, watched(spikes, again)) == [32, len(pairs) + 1]


@pytest.mark.parametrize("norm_alone", [False, True])
def test_a_spike_of_either_number_does_not_poison_the_window(norm_alone):
    spike = (6.4, 100.0) if norm_alone else (1e30, 0.4)
    calm, spikes = noisy(40), Spikes(window=20)
    found = watched(spikes, [*calm, *[spike] * 9, *noisy(5, seed=1)])
    assert beginnings(spikes, found) == [41]
    assert {watch.limits[-1] for watch in found[40:50]} == {found[40].limits[-1]}
    plain = watched(spikes, [*calm, *noisy(5, seed=1)])
    assert (found[-1].values, found[-1].limits) == (plain[-1].values, plain[-1].limits)


def test_numbers_that_are_not_finite_are_no_part_of_the_window_and_no_spike():
    calm, spikes = noisy(40), Spikes(window=20)
    bad = [(math.nan, 0.4), (6.4, math.inf), (math.inf, math.nan)]
    found = watched(spikes, [*calm, *bad])
    assert beginnings(spikes, found) == []
    assert found[-1].values == found[40].values
    assert (found[-1].stretch.first, found[-1].stretch.left_out) == (41, 3)


def test_nothing_is_judged_by_fewer_good_steps_than_half_the_window():
    for steps, seen in ((11, 0), (12, 1)):
        # The limits of step n are those after step n - 3.
        pairs = [*noisy(steps), (99.0, 0.4)]
        assert len(beginnings(Spikes(window=20), watched(Spikes(window=20), pairs))) == seen


def test_another_level_is_accepted_after_a_window_of_steps():
    """Or each step of a run with longer rows, say, would be a spike for ever."""
    spikes = Spikes(window=10)
    higher = [(loss + 3, norm) for loss, norm in noisy(40, seed=1)]
    found = watched(spikes, [*noisy(30), *higher, (99.0, 0.4)])
    assert beginnings(spikes, found) == [31, 71]
    assert 9 < found[69].limits[0][0] < 11


def test_a_resumed_run_judges_as_one_that_was_never_stopped():
    spikes = Spikes(window=10, patience=3)
    pairs = [*noisy(20), (50.0, 0.4), (6.4, math.nan), *noisy(20, seed=1), (50.0, 0.4)]
    found = watched(spikes, pairs)
    for step in range(len(pairs)):
        text = json.dumps(found[step].to_json(), allow_nan=False)
        resumed = Watch.from_json(json.loads(text))
        assert resumed == found[step]
        assert watched(spikes, pairs[step:], resumed, step + 1)[-1] == found[-1]


def test_a_run_goes_back_after_as_many_bad_steps_of_a_stretch_as_the_patience():
    bad, good = (math.nan, math.nan), (6.4, 0.4)
    spikes = Spikes(window=10, patience=3)
    # With two good steps between the bad ones it is still one stretch; with three it is not.
    for gap, hopeless in ((0, True), (1, True), (2, True), (3, False)):
        found = watched(spikes, [*noisy(20), *([bad] + [good] * gap) * 2, bad])
        assert spikes.hopeless(found[-1]) is hopeless
        assert not any(map(spikes.hopeless, found[:-1]))
        if hopeless:
            assert (found[-1].stretch.first, found[-1].stretch.last) == (21, 23 + 2 * gap)


@pytest.mark.parametrize(
    ("action", "hopeless"), [("warn", False), ("skip", True), ("rewind", True)]
)
def test_the_action_decides_whether_a_run_goes_back_for_spikes(action, hopeless):
    spikes = Spikes(window=10, patience=3, action=action)
    found = watched(spikes, [*noisy(20), *[(50.0, 0.4)] * 3])
    assert spikes.hopeless(found[-1]) is hopeless
    assert beginnings(spikes, found) == [21]


def test_an_unknown_action_is_refused():
    with pytest.raises(UsageError, match=r"Spikes.action = 'rewnid'.*did you mean 'rewind'"):
        Spikes(action="rewnid")
