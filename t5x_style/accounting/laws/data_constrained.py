"""Text that is read more than once: Muennighoff et al. 2023 (arXiv 2305.16264).

Each epoch of the same text teaches less than the one before. A run of D tokens over U unique ones
counts as D' <= D fresh tokens, and D' never exceeds (1 + 15.4) U. Parameters beyond those that U
tokens serve best lose value in the same way. In D' and N' the loss is a law like Chinchilla's. It
was fitted on C4: it shows trends, not the loss of another corpus.
"""

import math

from t5x_style.accounting.laws.chinchilla import ParametricLaw
from t5x_style.errors import UsageError

# Up to four epochs teach nearly as much as fresh text; past forty, an epoch teaches nothing more.
FREE_EPOCHS = 4.0
WORTHLESS_EPOCHS = 40.0
# R_D*: after so many repetitions (epochs after the first) a token is worth 1/e of a fresh one.
REPETITION_DECAY = 15.387756
# R_N*, the same for parameters: multiples of the N that U tokens serve best, after the first.
EXCESS_PARAMS_DECAY = 5.309743

# The coefficients that the authors publish with the paper (github.com/huggingface/datablations).
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

    D itself up to one epoch; beyond, U (1 + R_D* (1 - exp(-R_D / R_D*))) with R_D = D / U - 1.
    Raises UsageError for unique_tokens not above 0.
    """
    _check(unique_tokens)
    return _saturated(tokens, unique_tokens, REPETITION_DECAY)


def effective_params(params: float, unique_tokens: float) -> float:
    """N': parameters that, with unlimited text, are worth as much as N with U unique tokens.

    N itself up to the N that U tokens serve best; beyond, as `effective_tokens` with R_N*. Raises
    UsageError for unique_tokens not above 0.
    """
    _check(unique_tokens)
    return _saturated(params, C4_LAW.optimal_params(unique_tokens), EXCESS_PARAMS_DECAY)


def _saturated(amount: float, base: float, decay: float) -> float:
    """`amount` up to `base`; beyond, base (1 + decay (1 - exp((1 - amount / base) / decay)))."""
    if amount <= base:
        return amount
    return base * (1 - decay * math.expm1((1 - amount / base) / decay))


def _check(unique_tokens: float) -> None:
    if not unique_tokens > 0:
        raise UsageError(f"unique_tokens = {unique_tokens!r}: must be above 0")
