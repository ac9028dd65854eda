"""Tao et al. 2024, against what the authors' own code prints."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import huber

from t5x_style.accounting.laws import vocabulary


@pytest.mark.parametrize(
    ("params", "width", "sizes"),
    [
        (3e9, 3200, (39367, 42538, 36648)),
        (7e9, 4096, (62280, 67450, 59547)),
        (13e9, 5120, (83429, 90503, 81347)),
        (70e9, 8192, (211860, 230861, 217961)),
    ],
)
def test_vocab(params, width, sizes):
    assert tuple(vocabulary.optimal_vocabulary(params, width).values()) == sizes


def test_bloomberggpt_would_have_had_a_larger_one():
    """50.6B parameters, 49.6B without the embedding, 7,680 wide: it has 131,072 entries."""
    sizes = vocabulary.optimal_vocabulary(49_552_235_520, 7680)
    assert sizes["isoflops"] == pytest.approx(169e3, rel=5e-3)
    assert sizes["derivative"] == pytest.approx(185e3, rel=5e-3)


def tokens_per_character(vocab_size: float) -> float:
    """f(V) of the authors: tokens that V entries make of a character of English, V <= 200,000."""
    log_size = math.log(vocab_size)
    return 0.00639222 * log_size**2 - 0.15811069 * log_size + 1.20470122


def test_the_tokens_of_a_character_give_the_exponent_of_approach_2():
    """The V of least FLOPs for a text, 6 (N_nv + V d) f(V), at the paper's seven sizes."""
    models = {
        33e6: 512,
        85e6: 768,
        151e6: 768,
        302e6: 1024,
        631e6: 1536,
        1130e6: 2048,
        2870e6: 3200,
    }
    log_params = []
    for non_vocab, width in models.items():

        def flops(log_size: float, non_vocab: float = non_vocab, width: int = width) -> float:
            size = math.exp(log_size)
            return (non_vocab + size * width) * tokens_per_character(size)

        best = minimize_scalar(flops, bounds=(5, 12), options={"xatol": 1e-10})
        log_params.append(best.x + math.log(width))
    log_growth = [value - log_params[0] for value in log_params[1:]]
    log_models = [math.log(params / 33e6) for params in list(models)[1:]]
    fit = minimize_scalar(
        lambda exponent: sum(
            huber(0.001, exponent * x - y) for x, y in zip(log_models, log_growth, strict=True)
        ),
        bounds=(0, 1),
        options={"xatol": 1e-10},
    )
    assert fit.x == pytest.approx(0.8353974, abs=1e-4)
    # And this is how fast approach 2 grows.
    small, large = (vocabulary.derivative_vocabulary(params, 1) for params in (33e6, 33e12))
    assert math.log(large / small) / math.log(1e6) == pytest.approx(fit.x, abs=1e-4)


@given(st.floats(7.5, 12), st.integers(256, 16_384), st.floats(0.1, 10))
def test_approach_3_has_the_least_loss(log_params, width, length):
    """By scipy on the loss, at budgets below and above the optimal one."""
    params = 10**log_params
    flops = length * vocabulary.training_optimal_flops(params)

    def loss(log_vocab_params: float) -> float:
        vocab = math.exp(log_vocab_params)
        tokens = flops / 1e15 / (6 * (params / 1e6 + vocab))
        return 0.19584238 * vocab**-0.67073747 + 2.12411231 * tokens**-0.44660634

    best = minimize_scalar(loss, bounds=(-8, 16), options={"xatol": 1e-9})
    expected = math.exp(best.x) * 1e6 / width
    found = vocabulary.parametric_vocabulary(params, width, flops)
    assert found == pytest.approx(expected, rel=1e-3, abs=1)


@given(st.floats(8, 11.5), st.integers(512, 16_384))
def test_longer_training_deserves_a_larger_vocabulary(log_params, width):
    params = 10**log_params
    flops = vocabulary.training_optimal_flops(params)
    short, right, long = (
        vocabulary.parametric_vocabulary(params, width, scale * flops) for scale in (0.25, 1, 4)
    )
    assert short <= right <= long


def test_vocabulary_parameters_grow_more_slowly_than_the_rest():
    small = vocabulary.optimal_vocabulary(1e9, 2048)
    large = vocabulary.optimal_vocabulary(1e11, 2048)
    for approach, size in small.items():
        assert 1 < large[approach] / size < 100
