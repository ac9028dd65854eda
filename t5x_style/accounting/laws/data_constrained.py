"""Text that is read more than once: Muennighoff et al. 2023 (arXiv 2305.16264).

Each pass over the same text teaches less than the one before. A run of D tokens over U unique ones
counts as D' <= D fresh tokens, and D' never passes (1 + 15.4) U; parameters beyond those that U
tokens serve best lose value in the same way. In those D' and N' the loss is a law like
Chinchilla's. It was fitted on C4: read trends from it, not the loss of another corpus.
"""

import math

from t5x_style.accounting.laws.chinchilla import ParametricLaw
from t5x_style.errors import UsageError

# R_D*: after so many repetitions (passes after the first) a token is worth 1/e of a fresh one.
REPETITION_DECAY = 15.387756
# R_N*, the same for parameters: multiples of what the unique tokens serve best, after the first.
EXCESS_PARAMS_DECAY = 5.309743

# The coefficients that the authors publish beside the paper (github.com/huggingface/datablations).
C4_LAW = ParametricLaw(
    "muennighoff",
    math.exp(0.6254804),
    math.exp(6.255414),
    math.exp(7.3049974),
    0.3526596,
    0.3526596,
    "Muennighoff et al. 2023, fit on C4",
    None,
)


def effective_tokens(tokens: float, unique_tokens: float) -> float:
    """D': fresh tokens that teach as much as D tokens over U unique ones.

    D itself up to one pass; beyond, U (1 + R_D* (1 - exp(-R_D / R_D*))) with R_D = D / U - 1.
    Raises UsageError for unique_tokens not above 0.
    """
    _check(unique_tokens)
    return _saturated(tokens, unique_tokens, REPETITION_DECAY)


def marginal_value(tokens: float, unique_tokens: float) -> float:
    """What the next token is worth in fresh ones: dD'/dD = exp(-R_D / R_D*), 1 in the first pass.

    R_D = D / U - 1. Raises UsageError for unique_tokens not above 0.
    """
    _check(unique_tokens)
    return math.exp(-max(tokens / unique_tokens - 1, 0.0) / REPETITION_DECAY)


def effective_params(params: float, unique_tokens: float) -> float:
    """N': what N parameters are worth where there are only U unique tokens.

    N itself up to the N that U tokens serve best; beyond, as `effective_tokens` with R_N*. Raises
    UsageError for unique_tokens not above 0.
    """
    _check(unique_tokens)
    return _saturated(params, C4_LAW.optimal_params(unique_tokens), EXCESS_PARAMS_DECAY)


def loss(params: float, tokens: float, unique_tokens: float) -> float:
    """L(N, D, U), nats per token of C4.

    What was not read is not there: U counts up to D. Raises UsageError for unique_tokens not
    above 0.
    """
    seen = min(unique_tokens, tokens)
    return C4_LAW.loss(effective_params(params, seen), effective_tokens(tokens, seen))


def optimal(flops: float, unique_tokens: float) -> tuple[float, float]:
    """(N, D) of least loss with 6 N D = `flops` and U unique tokens.

    Where U is enough for the law's own optimum, that. Otherwise D is at least U (below, the loss
    falls with D), and the best D is where one per cent more of it gains what one per cent fewer
    parameters lose. The authors search a grid; here that balance is bisected, and in logarithms,
    since far beyond the data the loss itself is too flat to show its minimum.

    Raises:
      UsageError: unique_tokens not above 0.
    """
    _check(unique_tokens)
    params, tokens = C4_LAW.optimal(flops)
    if tokens <= unique_tokens:
        return params, tokens
    base_params = C4_LAW.optimal_params(unique_tokens)

    def more_tokens_pay(log_tokens: float) -> bool:
        tokens = math.exp(log_tokens)
        return _log_gain(
            C4_LAW.tokens_scale,
            C4_LAW.tokens_exponent,
            tokens,
            unique_tokens,
            REPETITION_DECAY,
        ) > _log_gain(
            C4_LAW.params_scale,
            C4_LAW.params_exponent,
            flops / (6 * tokens),
            base_params,
            EXCESS_PARAMS_DECAY,
        )

    # Between one pass and a model of one parameter.
    low, high = math.log(unique_tokens), math.log(flops / 6)
    while (middle := (low + high) / 2) not in (low, high):
        if more_tokens_pay(middle):
            low = middle
        else:
            high = middle
    return flops / (6 * math.exp(low)), math.exp(low)


def _saturated(amount: float, base: float, decay: float) -> float:
    """`amount` up to `base`; beyond, base (1 + decay (1 - exp((1 - amount / base) / decay)))."""
    if amount <= base:
        return amount
    return base * (1 - decay * math.expm1((1 - amount / base) / decay))


def _log_gain(scale: float, exponent: float, amount: float, base: float, decay: float) -> float:
    """Log of -dL / d log(amount) for the term scale x saturated(amount)^-exponent of the loss."""
    excess = max(amount / base - 1, 0.0)
    return (
        math.log(scale * exponent * amount)
        - (exponent + 1) * math.log(_saturated(amount, base, decay))
        - excess / decay
    )


def _check(unique_tokens: float) -> None:
    if not unique_tokens > 0:
        raise UsageError(f"unique_tokens = {unique_tokens!r}: must be above 0")
