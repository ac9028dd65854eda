"""Sets of steps, against the sets of Python; and what follows from the shapes of the steps."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from t5x_style.data import BatchPlan
from t5x_style.training.recovery.recovery import Recovery, Rewind
from t5x_style.training.recovery.spikes import Spikes, Stretch
from t5x_style.training.recovery.steps import has, joined, missing, steps_text, until

SETS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 8)), max_size=6)


def members(steps) -> set[int]:
    return {step for first, count in steps for step in range(first, first + count)}


@hypothesis.given(SETS, SETS, st.integers(0, 40))
def test_sets_of_steps_are_those_of_python(one, other, last):
    both = joined(one, other)
    assert members(both) == members(one) | members(other)
    # In order, and apart: the same set is always written in the same way.
    assert list(both) == sorted(both)
    assert all(sum(a) < b[0] for a, b in itertools.pairwise(both))
    assert members(until(both, last)) == {step for step in members(both) if step <= last}
    assert has(both, last) == (last in members(both))
    left = members(one) - members(other)
    assert missing(joined(one), joined(other)) == min(left, default=None)


def test_sets_of_steps_have_words():
    assert steps_text(((1200, 8), (1300, 1))) == "steps 1,200 to 1,207 and step 1,300"


def test_the_steps_and_tokens_that_were_passed_over_between_two_lines():
    plan = BatchPlan.from_settings([(4, 256), (8, None)], 16, train_steps=20)
    recovery = Recovery(Spikes(), plan, skipped=((3, 4), (10, 2)))
    # Steps 1 to 4 are of 64 tokens, the later ones of 128.
    assert recovery.passed_over(0, 20) == (6, 2 * 64 + 4 * 128)
    assert recovery.passed_over(3, 5) == (2, 64 + 128)
    assert recovery.passed_over(6, 9) == (0, 0)


def test_steps_of_another_shape_are_no_spikes():
    """Half the batch has a larger norm, and the loss over shorter rows is higher."""
    plan = BatchPlan.from_settings([(8, 20 * 128), (4, None)], 16, train_steps=60)
    rng = np.random.default_rng(0)

    def watched(plan: BatchPlan) -> list[int]:
        recovery = Recovery(Spikes(window=8), plan)
        numbers = rng.normal([2.0, 0.5], 0.01, (60, 2))
        numbers[20:] += [1.0, 1.0]
        numbers[40] += 5.0
        pairs = enumerate(numbers.tolist(), start=1)
        return [step for step, (loss, norm) in pairs if recovery.observe(step, loss, norm, True)]

    assert watched(plan) == [41]
    assert watched(BatchPlan.from_settings(8, 16, train_steps=60)) == [21, 41]


def test_the_limits_are_those_of_three_steps_before_however_far_the_host_is_behind():
    plan = BatchPlan.from_settings([(8, 20 * 128), (4, None)], 16, train_steps=60)
    recovery = Recovery(Spikes(window=8, action="skip"), plan)
    numbers = np.random.default_rng(0).normal([2.0, 0.5], 0.01, (40, 2)).astype(np.float32)
    seen: dict[int, set[tuple]] = {}
    for step, (loss, norm) in enumerate(numbers.tolist(), start=1):
        recovery.observe(step, loss, norm, True)
        for in_flight in range(3):
            dispatched = step + in_flight + 1
            limits = recovery.limits_of(dispatched, in_flight)
            assert limits.dtype == np.float32
            seen.setdefault(dispatched, set()).add(tuple(limits.tolist()))
    assert {len(limits) for limits in seen.values()} == {1}
    unlimited = [step for step, (limits,) in seen.items() if limits == (np.inf, np.inf)]
    # Four good steps and three more at the start; the same where the shape changes.
    assert unlimited == [*range(2, 7), *range(21, 27)]


@pytest.mark.parametrize(
    ("first", "repeats"), [(99, False), (100, True), (110, True), (118, True), (119, False)]
)
def test_the_same_stretch_is_one_within_the_margin_of_it(first, repeats):
    recovery = Recovery(Spikes(margin=4), BatchPlan.from_settings(8, 16, train_steps=500))
    recovery.rewound = ((104, 10),)
    assert bool(recovery.repeats(Stretch(first, first + 3))) is repeats


def test_going_back_forgets_what_came_after_the_checkpoint_and_keeps_the_stretches():
    plan = BatchPlan.from_settings(8, 16, train_steps=50)
    recovery = Recovery(Spikes(window=8, patience=2), plan, skipped=((40, 3),))
    for step in (1, 2):
        recovery.observe(step, 2.0, 1.0, True)
    saved = recovery.to_json(2)
    recovery.observe(3, float("nan"), 1.0, False)
    with pytest.raises(Rewind) as rewind:
        recovery.observe(4, float("nan"), 1.0, False)
    back = recovery.back(rewind.value.stretch, saved, 2)
    assert (back.skipped, back.rewound, back.left_out) == (((3, 2), (40, 3)), ((3, 2),), ())
    assert back.watch.values == ((2.0, 1.0),) * 2
    assert back.not_learnt(30) == ((3, 2),)
    assert back.not_learnt(41) == ((3, 2), (40, 2))
