import jax
import numpy as np
import optax
import pytest

from t5x_style.errors import UsageError
from t5x_style.optim import Schedule

# BloombergGPT's warm-up and peak with its data as the horizon, one unit standing for one step.
STEPS = 172_615


@pytest.mark.parametrize(
    ("step", "learning_rate"), [(900, 3e-5), (7_200, 5.98670e-5), (115_500, 1.95760e-5)]
)
def test_lr_cosine(step, learning_rate):
    schedule = Schedule(6e-5, shape="cosine", warmup_tokens=1800, final_fraction=0.1)
    got = schedule.learning_rate(np.float32(step), STEPS)
    assert float(got) == pytest.approx(learning_rate, rel=1e-4)


@pytest.mark.parametrize(
    ("shape", "theirs"),
    [
        ("cosine", optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 1000, 1e-4)),
        (
            "linear",
            optax.join_schedules(
                [optax.linear_schedule(0, 1e-3, 100), optax.linear_schedule(1e-3, 1e-4, 900)], [100]
            ),
        ),
        ("constant", optax.warmup_constant_schedule(0.0, 1e-3, 100)),
    ],
)
def test_against_optax(shape, theirs):
    schedule = Schedule(1e-3, shape=shape, warmup_tokens=100, final_fraction=0.1)
    tokens = np.arange(0, 1001, 7, dtype=np.float32)
    np.testing.assert_allclose(
        schedule.learning_rate(tokens, 1000), theirs(tokens), rtol=1e-5, atol=1e-9
    )


def test_wsd_holds_and_then_falls_as_one_minus_a_square_root():
    schedule = Schedule(
        2.0, shape="wsd", warmup_tokens=100, final_fraction=0.25, decay_fraction=0.4
    )
    at = {tokens: float(schedule.learning_rate(np.float32(tokens), 1000)) for tokens in
          (50, 100, 599, 600, 700, 800, 1000)}  # fmt: skip
    assert at[50] == pytest.approx(1.0)
    assert at[100] == at[599] == at[600] == 2.0
    # A quarter, a half and the whole of the cooldown: floor + (1 - floor) (1 - sqrt(x)).
    assert at[700] == pytest.approx(2 * (0.25 + 0.75 * 0.5), rel=1e-6)
    assert at[800] == pytest.approx(2 * (0.25 + 0.75 * (1 - 0.5**0.5)), rel=1e-6)
    assert at[1000] == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "constant"])
def test_no_jump_and_the_floor_past_the_horizon(shape):
    schedule = Schedule(1e-3, shape=shape, warmup_tokens=300, final_fraction=0.1)
    tokens = np.arange(10_001, dtype=np.float32)
    rates = np.asarray(schedule.learning_rate(tokens, 10_000))
    assert rates[0] == 0
    assert rates.max() == pytest.approx(1e-3, rel=1e-6)
    assert rates.argmax() == 300 if shape != "wsd" else rates[300] == rates.max()
    # The root of the cooldown is steepest where it begins: 0.9 sqrt(1 / 2000) of the peak.
    assert np.abs(np.diff(rates)).max() < (2.1e-5 if shape == "wsd" else 3.4e-6)
    last = 1e-3 if shape == "constant" else 1e-4
    assert rates[-1] == pytest.approx(last, rel=1e-5)
    assert float(schedule.learning_rate(np.float32(20_000), 10_000)) == pytest.approx(
        last, rel=1e-5
    )


def test_half_a_trillion_tokens():
    schedule = Schedule(6e-5, warmup_tokens=1_887_436_800, final_fraction=0.1)
    horizon = 568_747_622_400
    rates = schedule.learning_rate(np.float32([943_718_400, horizon]), horizon)
    np.testing.assert_allclose(rates, [3e-5, 6e-6], rtol=1e-5)


@pytest.mark.parametrize("shape", ["cosine", "linear", "wsd", "constant"])
def test_a_warm_up_of_more_tokens_than_an_int32_holds_is_traced(shape):
    schedule = Schedule(peak_learning_rate=6e-5, shape=shape, warmup_tokens=3_774_873_600)
    traced = jax.jit(lambda tokens: schedule.learning_rate(tokens, 568_747_622_400))
    assert float(traced(np.float32(3_774_873_600 / 4))) == pytest.approx(1.5e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shape": "cosin"}, "did you mean 'cosine'"),
        ({"peak_learning_rate": -1e-3}, "peak_learning_rate"),
        ({"peak_learning_rate": 100.0}, "peak_learning_rate"),
        ({"final_fraction": 1.5}, "final_fraction"),
        ({"decay_fraction": -0.1}, "decay_fraction"),
        ({"warmup_tokens": -1}, "warmup_tokens"),
    ],
)
def test_refusals(fields, message):
    with pytest.raises(UsageError, match=message):
        Schedule(**{"peak_learning_rate": 1e-3, **fields})


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("peak_learning_rate", (0.0, 10.0)),
        ("final_fraction", (0.0, 1.0)),
        ("decay_fraction", (0.0, 1.0)),
        ("warmup_tokens", (0, 1)),
    ],
)
def test_the_bounds_themselves_can_be_set(name, bounds):
    for value in bounds:
        assert getattr(Schedule(**{"peak_learning_rate": 1e-3, name: value}), name) == value


def test_what_is_not_set_is_a_cosine_to_a_tenth_without_warm_up():
    rates = Schedule(1e-3).learning_rate(np.float32([0, 500, 1000]), 1000)
    np.testing.assert_allclose(rates, [1e-3, 5.5e-4, 1e-4], rtol=1e-5)


def test_a_cooldown_takes_a_fifth_of_the_run_unless_asked_otherwise():
    """It ends at a tenth. A quarter of it is one half of the way, by the square root."""
    rates = Schedule(1.0, shape="wsd").learning_rate(np.float32([800, 850, 1000]), 1000)
    np.testing.assert_allclose(rates, [1.0, 0.1 + 0.9 / 2, 0.1], rtol=1e-5)


def test_a_run_that_is_all_warm_up_or_all_cooldown():
    rising = Schedule(1.0, warmup_tokens=100).learning_rate(np.float32([50, 100]), 100)
    np.testing.assert_allclose(rising, [0.5, 1.0], rtol=1e-6)
    falling = Schedule(1.0, shape="wsd", decay_fraction=1.0).learning_rate(
        np.float32([0, 25, 100]), 100
    )
    np.testing.assert_allclose(falling, [1.0, 0.1 + 0.9 / 2, 0.1], rtol=1e-6)


def test_a_run_too_short_for_its_schedule_is_refused():
    Schedule(1e-3, warmup_tokens=1000).check(1000)
    with pytest.raises(UsageError, match=r"warmup_tokens = 1,001 .* 1,000 are left"):
        Schedule(1e-3, warmup_tokens=1001).check(1000)
    Schedule(1e-3, shape="wsd", warmup_tokens=800, decay_fraction=0.2).check(1000)
    with pytest.raises(UsageError, match="800 are left"):
        Schedule(1e-3, shape="wsd", warmup_tokens=801, decay_fraction=0.2).check(1000)
