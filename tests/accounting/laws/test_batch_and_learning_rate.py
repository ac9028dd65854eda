"""The rules against the numbers of their papers."""

import pytest

from t5x_style.accounting.laws.batch_and_learning_rate import (
    deepseek,
    step_law,
)


def test_deepseek():
    advice = deepseek(1e20)
    assert advice.learning_rate == pytest.approx(9.85998e-4, rel=1e-5)
    assert advice.batch_tokens == pytest.approx(1.017145e6, rel=1e-5)


def test_steplaw():
    advice = step_law(7e9, 1.4e12)
    assert advice.learning_rate == pytest.approx(9.16557e-4, rel=1e-5)
    assert advice.batch_tokens == pytest.approx(4.998815e6, rel=1e-5)


def test_steplaw_bbg():
    advice = step_law(50_558_868_480, 569e9)
    assert advice.learning_rate == pytest.approx(1.69772e-4, rel=1e-4)
    assert advice.batch_tokens == pytest.approx(2.98949e6, rel=1e-4)
