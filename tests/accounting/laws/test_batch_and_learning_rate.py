"""The rules against the numbers of their papers; the noise scale against a noise that is known."""

import numpy as np
import pytest

from t5x_style.accounting.laws.batch_and_learning_rate import (
    deepseek,
    deepseek_optimal,
    gradient_noise_scale,
    step_law,
)
from t5x_style.errors import UsageError


def test_deepseek():
    advice = deepseek(1e20)
    assert advice.learning_rate == pytest.approx(9.85998e-4, rel=1e-5)
    assert advice.batch_tokens == pytest.approx(1.017145e6, rel=1e-5)
    flops_per_token, tokens = deepseek_optimal(1e20)
    assert flops_per_token == pytest.approx(5.25127e9, rel=1e-5)
    assert tokens == pytest.approx(1.904530e10, rel=1e-5)


@pytest.mark.parametrize("flops", [1e17, 1e20, 1e24])
def test_deepseeks_allocation_spends_the_budget(flops):
    flops_per_token, tokens = deepseek_optimal(flops)
    assert flops_per_token * tokens == pytest.approx(flops, rel=1e-3)


def test_steplaw():
    advice = step_law(7e9, 1.4e12)
    assert advice.learning_rate == pytest.approx(9.16557e-4, rel=1e-5)
    assert advice.batch_tokens == pytest.approx(4.998815e6, rel=1e-5)


def test_steplaw_bbg():
    advice = step_law(50_558_868_480, 569e9)
    assert advice.learning_rate == pytest.approx(1.69772e-4, rel=1e-4)
    assert advice.batch_tokens == pytest.approx(2.98949e6, rel=1e-4)


def test_noise_scale_of_exact_norms():
    """|G|^2 = 3 and tr(Sigma) = 600: 3 + 600 / B at each batch."""
    assert gradient_noise_scale(10, 63.0, 300, 5.0) == pytest.approx(200)
    assert gradient_noise_scale(10, 3.0, 300, 3.0) == 0


def test_noise_scale_of_simulated_gradients():
    generator = np.random.default_rng(0)
    gradient = np.array([1.0, -2.0, 0.5])
    deviations = np.array([3.0, 1.0, 2.0])
    squared_norm = {}
    for batch in (4, 64):
        # The mean of `batch` examples, many times.
        means = gradient + generator.normal(size=(200_000, 3)) * deviations / np.sqrt(batch)
        squared_norm[batch] = float((means**2).sum(1).mean())
    found = gradient_noise_scale(4, squared_norm[4], 64, squared_norm[64])
    assert found == pytest.approx((deviations**2).sum() / (gradient**2).sum(), rel=0.02)


@pytest.mark.parametrize(
    ("small", "small_norm", "big", "big_norm", "message"),
    [
        (64, 5.0, 64, 5.0, "batches of 64 and 64"),
        (128, 5.0, 64, 6.0, "batches of 128 and 64"),
        (0, 5.0, 64, 5.0, "batches of 0 and 64"),
        (64, 5.0, 128, 6.0, "squared norms of 5.0 at 64"),
        (64, 5.0, 128, 2.0, "squared norms of 5.0 at 64"),
    ],
)
def test_what_no_gradient_gives_is_refused(small, small_norm, big, big_norm, message):
    with pytest.raises(UsageError, match=message):
        gradient_noise_scale(small, small_norm, big, big_norm)
