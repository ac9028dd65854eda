"""The minimiser on functions whose minima are known."""

import numpy as np
import pytest

from t5x_style.accounting.laws.bfgs import minimise


def test_minimise_finds_known_minima():
    def rosenbrock(points, rows):
        x, y = points.T
        values = (1 - x) ** 2 + 100 * (y - x**2) ** 2
        gradients = np.stack((-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)), 1)
        return values, gradients

    random = np.random.default_rng(3)
    found, values = minimise(rosenbrock, random.uniform(-2, 2, (50, 2)))
    assert found == pytest.approx(np.ones((50, 2)), abs=1e-6)
    assert values == pytest.approx(np.zeros(50), abs=1e-12)


def test_minimise_goes_down_into_kinks():
    """|x - 1| + 3 |y + x| has its minimum where both terms have their kink."""

    def kinked(points, rows):
        x, y = points.T
        first, second = np.sign(x - 1), np.sign(y + x)
        return np.abs(x - 1) + 3 * np.abs(y + x), np.stack((first + 3 * second, 3 * second), 1)

    found, _ = minimise(kinked, np.random.default_rng(4).uniform(-5, 5, (50, 2)))
    assert found == pytest.approx(np.tile((1.0, -1.0), (50, 1)), abs=1e-6)


def test_minimise_leaves_a_start_that_is_a_minimum():
    def bowl(points, rows):
        return (points**2).sum(1), 2 * points

    found, values = minimise(bowl, np.array([[0.0, 0.0], [3.0, 4.0]]))
    assert (found[0] == 0).all()
    assert values == pytest.approx([0, 0], abs=1e-12)
