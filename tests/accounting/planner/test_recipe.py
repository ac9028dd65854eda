import math

from hypothesis import example, given
from hypothesis import strategies as st

from t5x_style.accounting.audit import bloomberggpt
from t5x_style.accounting.planner.recipe import _sequences, recipe_of

ARCH, LENGTH = bloomberggpt.ARCHITECTURE, 2048


def test_bloomberggpts_recipe_by_todays_rules():
    """Golden steplaw_bbg, N without the embedding: 1.70e-4 and 2.99M tokens for its 569B."""
    recipe = recipe_of(ARCH, 569e9, LENGTH, loss=2.01, devices=512)
    # Two digits of it.
    assert recipe.learning_rate == 1.7e-4
    # 1,460 sequences are 2.85 a device, so three.
    assert recipe.batch_sequences == 3 * 512
    batch = recipe.batch_sequences * LENGTH
    assert recipe.final_fraction == 0.1
    # 2,000 steps, as Llama and DeepSeek; BloombergGPT warmed up for 1,800.
    assert recipe.warmup_tokens == 2000 * batch
    assert recipe.tokens == recipe.steps * batch
    assert 569e9 - batch < recipe.tokens <= 569e9
    assert set(recipe.rules) == {"batch", "learning rate", "warm-up", "horizon"}


def test_a_short_run_warms_up_for_a_twentieth_of_it():
    recipe = recipe_of(ARCH, 1e9, LENGTH, loss=4.0, batch_sequences=8)
    assert (recipe.steps, recipe.batch_sequences) == (61_035, 8)
    assert recipe.warmup_tokens == 2000 * 8 * LENGTH
    shorter = recipe_of(ARCH, 1e8, LENGTH, loss=4.0, batch_sequences=8)
    assert shorter.steps == 6_103
    # 305.15 steps.
    assert shorter.warmup_tokens == 305 * 8 * LENGTH
    shortest = recipe_of(ARCH, 1e6, LENGTH, loss=4.0, batch_sequences=8)
    assert (shortest.steps, shortest.warmup_tokens) == (61, 3 * 8 * LENGTH)


def test_a_run_is_at_least_one_step():
    recipe = recipe_of(ARCH, 10.0, LENGTH, loss=9.0)
    assert (recipe.steps, recipe.batch_sequences, recipe.tokens) == (1, 1, LENGTH)


@example(3626.0, 1021)  # fewer than four rows of a device are rounded to four
@given(st.floats(0.01, 1e6), st.integers(1, 4096))
def test_batches_are_near_what_is_wanted_and_divide(wanted, devices):
    batch = _sequences(wanted, devices)
    if wanted < devices:
        assert devices % batch == 0
        # Nothing that the devices are a multiple of is nearer.
        others = [size for size in range(1, devices + 1) if devices % size == 0]
        distance = abs(math.log(batch / wanted))
        assert distance <= min(abs(math.log(size / wanted)) for size in others) + 1e-9
        return
    assert batch % devices == 0
    rows = batch // devices
    asked = wanted / devices
    assert abs(rows - asked) <= max(0.5, asked / 8)
    # A step of rows can be halved at least until fewer than eight are left.
    while rows % 2 == 0:
        rows //= 2
    assert rows < 8
