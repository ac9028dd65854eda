import functools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.optim.schedule import traced_tokens_before


def test_bloomberggpts_batch_warmup_to_the_token():
    """7,200 steps of 1,024 sequences, then 132,000 of 2,048: 568,747,622,400 tokens."""
    plan = BatchPlan.from_settings(
        [(1024, 7200 * 1024 * 2048), (2048, None)], 2048, train_steps=139_200
    )
    assert plan.phases == ((1024, 2048, 7200), (2048, 2048, 132_000))
    assert plan.tokens == 568_747_622_400
    in_tokens = [(1024, plan.phases[0].tokens), (2048, None)]
    assert BatchPlan.from_settings(in_tokens, 2048, train_tokens=plan.tokens) == plan


def test_both_lists_cut_the_run():
    """Three steps of 2 x 4 tokens, one of 4 x 4, and 4 x 8 to the end."""
    plan = BatchPlan.from_settings([(2, 20), (4, None)], [(4, 33), (8, None)], train_tokens=100)
    assert plan.phases == ((2, 4, 3), (4, 4, 1), (4, 8, 2))
    assert plan.tokens == 24 + 16 + 64
    assert plan.lengths == ((0, 4), (10, 8))
    assert [plan.rows_of_tokens(tokens) for tokens in (0, 1, 4, 5, 40, 41, 48, 49, 104, 105)] == [
        *(0, 1, 1, 2, 10, 11, 11, 12, 18, 19)
    ]


phases_in_tokens = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 200)), min_size=1, max_size=4
).map(lambda phases: [*phases[:-1], (phases[-1][0], None)])


def taken_step_by_step(sizes, lengths, steps):
    """(sequences, S) of each step: a list goes on when its own phase has had its tokens."""
    sizes, lengths = list(sizes), list(lengths)
    learnt = {"sizes": 0, "lengths": 0}
    for _ in range(steps):
        size, length = sizes[0][0], lengths[0][0]
        yield size, length
        for name, phases in (("sizes", sizes), ("lengths", lengths)):
            learnt[name] += size * length
            if phases[0][1] is not None and learnt[name] >= phases[0][1]:
                phases.pop(0)
                learnt[name] = 0


@given(phases_in_tokens, phases_in_tokens)
def test_every_count_against_a_plain_loop(sizes, lengths):
    steps = 1 + sum(tokens or 0 for _, tokens in [*sizes, *lengths])
    plan = BatchPlan.from_settings(sizes, lengths, train_steps=steps)
    rows = tokens = 0
    length_of_row = []
    for step, (size, length) in enumerate(taken_step_by_step(sizes, lengths, steps)):
        assert plan.shape(step) == (size, length)
        assert (plan.rows_before(step), plan.tokens_before(step)) == (rows, tokens)
        rows, tokens = rows + size, tokens + size * length
        length_of_row += [length] * size
    assert (plan.steps, plan.rows, plan.tokens) == (steps, rows, tokens)
    ends = np.cumsum(length_of_row)
    changes = [r for r in range(rows) if r == 0 or length_of_row[r] != length_of_row[r - 1]]
    assert plan.lengths == tuple((r, length_of_row[r]) for r in changes)
    for asked in {
        0,
        1,
        tokens,
        *ends[:50].tolist(),
        *(ends[:50] + 1).tolist(),
        *ends[-9:].tolist(),
    }:
        if asked <= tokens:
            least = 0 if asked == 0 else int(np.searchsorted(ends, asked)) + 1
            assert plan.rows_of_tokens(asked) == least
    for row in np.unique(np.linspace(0, rows, 50).astype(int)).tolist():
        assert plan.tokens_of_rows(row) == sum(length_of_row[:row])
        assert plan.rows_of_tokens(plan.tokens_of_rows(row)) == row
    at = np.unique(np.linspace(0, steps, 50).astype(np.int32))
    traced = np.asarray(jax.vmap(functools.partial(traced_tokens_before, plan))(at))
    assert traced.tolist() == [plan.tokens_before(int(step)) for step in at]
    # The same phases, the end written in tokens.
    assert BatchPlan.from_settings(sizes, lengths, train_tokens=tokens) == plan


@pytest.mark.parametrize(
    ("batch_size", "lengths"),
    [([(2, 20), (4, None)], [(4, 33), (8, None)]), ([(4, 33), (3, 12), (1, None)], 4)],
    ids=["rising", "falling"],
)
def test_a_plan_within_rows_is_the_longest_of_its_beginnings(batch_size, lengths):
    plan = BatchPlan.from_settings(batch_size, lengths, train_tokens=100)
    for rows in range(25):
        within = plan.shortened(rows)
        fitting = [step for step in range(plan.steps + 1) if plan.rows_before(step) <= rows]
        assert within.steps == fitting[-1]
        assert within.phases[:-1] == plan.phases[: max(0, len(within.phases) - 1)]
        for step in range(within.steps):
            assert within.shape(step) == plan.shape(step)


def test_a_run_is_never_shorter_than_asked():
    assert BatchPlan.from_settings(4, 10, train_tokens=401).phases == ((4, 10, 11),)
    assert BatchPlan.from_settings(4, 10, train_tokens=400).phases == ((4, 10, 10),)
    assert BatchPlan.from_settings([(1, 100), (4, None)], 10, train_tokens=101).phases == (
        (1, 10, 10),
        (4, 10, 1),
    )


def test_traced_counts_are_those_of_the_host():
    plan = BatchPlan.from_settings(
        [(1024, 7200 * 1024 * 2048), (2048, None)],
        [(2048, 400_000_000_000), (8192, None)],
        train_steps=139_200,
    )
    steps = np.array([0, 1, 7199, 7200, 7201, 100_000, 139_199, 139_200], np.int32)
    traced = jax.jit(jax.vmap(functools.partial(traced_tokens_before, plan)))(steps)
    assert traced.dtype == np.float32
    np.testing.assert_allclose(traced, [plan.tokens_before(int(s)) for s in steps], rtol=1.2e-7)


@pytest.mark.parametrize(
    ("batch_size", "length", "message"),
    [
        (8, {}, "one of TRAIN_TOKENS and TRAIN_STEPS"),
        (8, {"train_tokens": 10, "train_steps": 1}, "one of TRAIN_TOKENS and TRAIN_STEPS"),
        ([], {"train_steps": 1}, "BATCH_SIZE"),
        ([8, 16], {"train_steps": 1}, r"BATCH_SIZE = \[8, 16\]"),
        ([(8, 100)], {"train_steps": 1}, r"ends with \(sequences, None\)"),
        ([(8, None), (16, None)], {"train_steps": 1}, r"ends with \(sequences, None\)"),
        (0, {"train_steps": 1}, "must be positive"),
        ([(8, -5), (8, None)], {"train_steps": 1}, "must be positive"),
        ([(8, 800), (16, None)], {"train_steps": 10}, "phase of 16 sequences"),
        ([(8, 800), (16, None)], {"train_tokens": 800}, "phase of 16 sequences"),
        (8, {"train_steps": 0}, "ends before"),
    ],
)
def test_refusals(batch_size, length, message):
    with pytest.raises(UsageError, match=message):
        BatchPlan.from_settings(batch_size, 10, **length)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([(10, 100), (20, 100)], r"TASK_FEATURE_LENGTHS.*ends with \(tokens per sequence, None\)"),
        ([(0, 100), (20, None)], "TASK_FEATURE_LENGTHS: phase"),
        ([(10, 1000), (20, None)], "phase of 8 sequences of 20 tokens"),
    ],
)
def test_lengths_that_are_none(lengths, message):
    with pytest.raises(UsageError, match=message):
        BatchPlan.from_settings(8, lengths, train_tokens=1000)
