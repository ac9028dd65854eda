import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from t5x_style.accounting import Architecture
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


# 12,582,912 in its matrices and 4,608 in its norms, beside embedding, positions and head.
LEARNED = Architecture(
    32_000, 4, 512, 2048, 8, positions="learned", max_length=4096, feed_forward="gelu",
    tied_head=False,
)  # fmt: skip


def test_the_rules_count_neither_embedding_nor_positions_nor_head():
    recipe = recipe_of(LEARNED, 3e9, 128, loss=4.0)
    step_law = 1.79 * 12_587_520**-0.713 * 3e9**0.307
    # Six FLOPs a number of the matrices, and attention's two products of 128 keys.
    flops = 3e9 * (6 * 12_582_912 + 3 * 2 * 2 * 4 * 512 * 128)
    deepseek = 0.3118 * flops**-0.1250
    rule = f"DeepSeek, the lower of StepLaw {step_law:.3g} and DeepSeek {deepseek:.3g}: "
    assert recipe.rules["learning rate"].startswith(rule)
    assert recipe.learning_rate == float(f"{deepseek:.2g}")
    tokens = 0.58 * 3e9**0.571
    assert recipe.rules["batch"].startswith(
        f"StepLaw, 0.58 D^0.571 = {tokens:.3g} tokens; DeepSeek "
    )
    assert (
        f"DeepSeek {0.2920 * flops**0.3271:.3g}, critical batch by Kaplan 2.72e+05"
        in (recipe.rules["batch"])
    )
    # 3e9 for 47,452,672 in all.
    assert recipe.rules["horizon"].endswith("; 63.2 tokens a parameter")


@pytest.mark.parametrize(
    ("layers", "tokens", "outside"),
    [
        (24, 2e9, False),
        (24, 1.999e9, True),
        (24, 100e9, False),
        (24, 100.1e9, True),
        # 12 D^2 a layer: 62.9 and 50.3 million, 0.994 and 1.007 billion.
        (5, 2e9, False),
        (4, 2e9, True),
        (79, 2e9, False),
        (80, 2e9, True),
    ],
)
def test_outside_of_step_laws_runs_a_smaller_model_is_advised(layers, tokens, outside):
    """They had 60 million to a billion parameters, on 2 to 100 billion tokens."""
    arch = Architecture(1024, layers, 1024, 4096, 16, feed_forward="gelu")
    recipe = recipe_of(arch, tokens, LENGTH, loss=3.0)
    assert ("outside StepLaw's runs" in recipe.rules["learning rate"]) == outside


def test_a_batch_is_as_asked_for_or_a_multiple_of_the_devices():
    asked = recipe_of(ARCH, 569e9, LENGTH, loss=2.01, devices=512, batch_sequences=1024)
    assert asked.batch_sequences == 1024
    assert asked.rules["batch"].startswith("as asked for; StepLaw")
    assert "devices" not in asked.rules["batch"]
    rounded = recipe_of(ARCH, 569e9, LENGTH, loss=2.01, devices=512).rules["batch"]
    assert ", to a multiple of 512 devices; DeepSeek" in rounded
    assert "devices" not in recipe_of(ARCH, 569e9, LENGTH, loss=2.01).rules["batch"]
