"""Kaplan et al. 2020 (arXiv 2001.08361): the first laws, and the critical batch size.

Everything here counts N WITHOUT embeddings, loss in nats per token of WebText2, and C as 6 N D of
that N. The paper fits each question by itself, so its constants differ from one law to the next and
the laws do not agree to the last digit where they meet. Its allocation (N ~ C^0.73) is superseded
by Hoffmann et al. 2022; it is here to be drawn beside the others. The critical batch is still used.
"""

import math

from t5x_style.accounting.laws.chinchilla import FrontierLaw

_PETAFLOP_DAY = 1e15 * 86_400


def loss_from_params(params: float) -> float:
    """L(N) of a model trained to the end on all the text it can use (equation 1.1)."""
    return (8.8e13 / params) ** 0.076


def loss_from_tokens(tokens: float) -> float:
    """L(D) of a large model stopped early on D tokens (equation 1.2)."""
    return (5.4e13 / tokens) ** 0.095


def loss_from_flops(least_flops: float) -> float:
    """L(C_min) of the best model for that compute, at batches far below critical (equation 1.3)."""
    return (3.1e8 * _PETAFLOP_DAY / least_flops) ** 0.050


def loss(params: float, tokens: float) -> float:
    """L(N, D) of N parameters stopped early on D tokens (equation 1.5, table 2)."""
    params_exponent, tokens_exponent = 0.076, 0.103
    return (
        (6.4e13 / params) ** (params_exponent / tokens_exponent) + 1.8e13 / tokens
    ) ** tokens_exponent


def loss_after_steps(params: float, least_steps: float) -> float:
    """L(N, S_min) after S_min steps at batches far above critical (equation 1.6, table 3)."""
    return (6.5e13 / params) ** 0.077 + (2.1e3 / least_steps) ** 0.76


def critical_batch_tokens(loss: float) -> float:
    """B_crit, tokens: the batch at which a run costs twice its least steps and its least tokens.

    It depends on the loss alone, not on the model (equation 1.4).

    Args:
      loss: nats per token of the paper's data; that of another corpus moves the answer.
    """
    return 2e8 / loss ** (1 / 0.21)


def least_steps(steps: float, batch_tokens: float, loss: float) -> float:
    """S_min: steps that would have reached `loss` at batches far above critical (equation 5.4)."""
    return steps / (1 + critical_batch_tokens(loss) / batch_tokens)


def least_tokens(tokens: float, batch_tokens: float, loss: float) -> float:
    """E_min, in tokens: what would have reached `loss` at batches far below critical.

    With `least_steps` it keeps (S / S_min - 1)(E / E_min - 1) = 1 (equation 5.1).
    """
    return tokens / (1 + batch_tokens / critical_batch_tokens(loss))


def least_flops(flops: float, batch_tokens: float, loss: float) -> float:
    """C_min: what would have reached `loss` at batches far below critical (equation 5.5)."""
    return flops / (1 + batch_tokens / critical_batch_tokens(loss))


def tokens_against_overfitting(params: float) -> float:
    """D above which too little text costs N parameters less than 2 % of loss (equation 4.4)."""
    return 5e3 * params**0.74


_PARAMS_EXPONENT = 0.73
# Log10 of N at one FLOP, for 4.68e9 parameters at 1e21 FLOPs.
_PARAMS_INTERCEPT = math.log10(4.68e9) - 21 * _PARAMS_EXPONENT

KAPLAN = FrontierLaw(
    "kaplan",
    _PARAMS_EXPONENT,
    _PARAMS_INTERCEPT,
    1 - _PARAMS_EXPONENT,
    -math.log10(6) - _PARAMS_INTERCEPT,
    "exponent 0.73 of Kaplan et al. 2020, through the 4.68e9 parameters that Hoffmann et al. 2022 "
    "(appendix D.4) give for it at 1e21 FLOPs; D = C / (6 N)",
    None,
)
