"""Kaplan et al. 2020: the critical batch and the frontier."""

import math

import pytest

from t5x_style.accounting.laws import kaplan
from t5x_style.accounting.laws.kaplan import KAPLAN


@pytest.mark.parametrize(
    ("loss", "tokens"), [(4, 2.717e5), (3, 1.069e6), (2.5, 2.547e6), (2, 7.371e6)]
)
def test_critical_batch(loss, tokens):
    assert kaplan.critical_batch_tokens(loss) == pytest.approx(tokens, rel=5e-4)


def test_the_frontier_of_the_figures():
    assert KAPLAN.optimal(1e21)[0] == pytest.approx(4.68e9)
    for flops in (1e18, 1e22, 1e25):
        params, tokens = KAPLAN.optimal(flops)
        assert 6 * params * tokens == pytest.approx(flops)
    growth = [
        after / before
        for before, after in zip(KAPLAN.optimal(1e21), KAPLAN.optimal(1e22), strict=True)
    ]
    assert [math.log10(factor) for factor in growth] == pytest.approx([0.73, 0.27])
    assert KAPLAN.interval(1e21) is None
