"""Every number that the paper prints, from its shape and schedule alone."""

import pytest

from t5x_style.accounting import bloomberggpt

ACCOUNTS = bloomberggpt.accounts()


def test_tokens_and_epochs():
    assert ACCOUNTS["tokens"] == 568_747_622_400
    assert ACCOUNTS["epochs"] == pytest.approx(0.80230, abs=1e-5)


def test_the_planned_budget():
    assert pytest.approx(3.51e23, rel=1e-12) == bloomberggpt.BUDGET_FLOPS


@pytest.mark.parametrize(
    ("convention", "per_token", "total", "tflops", "of_peak"),
    [
        ("6nd", 303_353_210_880, 1.72531e23, 76.46, 0.245),
        ("full", 316_523_151_360, 1.80022e23, 79.78, 0.256),
        ("8n", 404_470_947_840, 2.30042e23, 101.95, 0.327),
    ],
)
def test_one_run_by_several_conventions(convention, per_token, total, tflops, of_peak):
    figures = ACCOUNTS["flops"][convention]
    assert figures["per_token"] == per_token
    assert figures["total"] == pytest.approx(total, rel=1e-5)
    assert figures["flops_per_second_per_gpu"] / 1e12 == pytest.approx(tflops, abs=0.01)
    assert figures["share_of_peak"] == pytest.approx(of_peak, abs=5e-4)


def test_the_papers_own_total_and_rate():
    """2.36e23 FLOPs and 102 TFLOP/s a GPU are 8N per token, over full batches."""
    figures = ACCOUNTS["flops"]["8n_full_batches"]
    assert figures["total"] == pytest.approx(2.361492e23, rel=1e-6)
    assert figures["total"] == pytest.approx(2.36e23, rel=5e-3)
    assert figures["flops_per_second_per_gpu"] == pytest.approx(101.9516e12, rel=1e-5)
