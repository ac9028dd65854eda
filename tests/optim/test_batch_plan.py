import jax
import numpy as np
import pytest

from t5x_style.errors import UsageError
from t5x_style.optim import BatchPlan


def test_bloomberggpts_batch_warmup_to_the_token():
    """7,200 steps of 1,024 sequences, then 132,000 of 2,048: 568,747,622,400 tokens."""
    plan = BatchPlan.of([(1024, 7200 * 1024 * 2048), (2048, None)], 2048, train_steps=139_200)
    assert plan.phases == ((1024, 7200), (2048, 132_000))
    assert plan.tokens == 568_747_622_400
    assert BatchPlan.of(plan_in_tokens(plan), 2048, train_tokens=plan.tokens) == plan


def plan_in_tokens(plan):
    """What a user would write for these phases."""
    phases = [[size, count * size * plan.sequence_length] for size, count in plan.phases]
    phases[-1][1] = None
    return phases


def test_every_count_against_brute_force():
    plan = BatchPlan.of([(2, 50), (3, 70), (8, None)], 7, train_steps=20)
    sizes = [size for size, count in plan.phases for _ in range(count)]
    assert sizes == [2] * 4 + [3] * 4 + [8] * 12  # 50 / 14 and 70 / 21 rounded up
    for step in range(20):
        assert plan.batch_size(step) == sizes[step]
    for step in range(21):
        assert plan.rows_before(step) == sum(sizes[:step])
        assert plan.tokens_before(step) == 7 * sum(sizes[:step])
    assert plan.steps == 20
    assert plan.tokens == 7 * sum(sizes)


def test_a_run_is_never_shorter_than_asked():
    assert BatchPlan.of(4, 10, train_tokens=401).phases == ((4, 11),)
    assert BatchPlan.of(4, 10, train_tokens=400).phases == ((4, 10),)
    assert BatchPlan.of([(1, 100), (4, None)], 10, train_tokens=101).phases == ((1, 10), (4, 1))


def test_traced_counts_are_those_of_the_host():
    plan = BatchPlan.of([(1024, 7200 * 1024 * 2048), (2048, None)], 2048, train_steps=139_200)
    steps = np.array([0, 1, 7199, 7200, 7201, 100_000, 139_199, 139_200], np.int32)
    traced = jax.jit(jax.vmap(plan.traced_tokens_before))(steps)
    assert traced.dtype == np.float32
    np.testing.assert_allclose(traced, [plan.tokens_before(int(s)) for s in steps], rtol=1.2e-7)


@pytest.mark.parametrize(
    ("batch_size", "length", "message"),
    [
        (8, {}, "one of TRAIN_TOKENS and TRAIN_STEPS"),
        (8, {"train_tokens": 10, "train_steps": 1}, "one of TRAIN_TOKENS and TRAIN_STEPS"),
        ([], {"train_steps": 1}, "BATCH_SIZE"),
        ([(8, 100)], {"train_steps": 1}, r"ends with \(sequences, None\)"),
        (0, {"train_steps": 1}, "must be positive"),
        ([(8, -5), (8, None)], {"train_steps": 1}, "must be positive"),
        ([(8, 800), (16, None)], {"train_steps": 10}, "phase of 16 sequences"),
        ([(8, 800), (16, None)], {"train_tokens": 800}, "phase of 16 sequences"),
        (8, {"train_steps": 0}, "ends before"),
    ],
)
def test_refusals(batch_size, length, message):
    with pytest.raises(UsageError, match=message):
        BatchPlan.of(batch_size, 10, **length)
