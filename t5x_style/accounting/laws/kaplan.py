"""Kaplan et al. 2020 (arXiv 2001.08361): the critical batch size, and the first frontier.

N is counted WITHOUT embeddings, loss in nats per token of WebText2, and C as 6 N D of that N. The
critical batch is still used. The allocation (N ~ C^0.73) is superseded by Hoffmann et al. 2022; it
is here to be drawn next to the others.
"""

import math

from t5x_style.accounting.laws.chinchilla import FrontierLaw


def critical_batch_tokens(loss: float) -> float:
    """B_crit, tokens: the batch at which a run costs twice its least steps and its least tokens.

    It depends on the loss alone, not on the model (equation 1.4).

    Args:
      loss: nats per token of the paper's data; that of another corpus moves the answer.
    """
    return 2e8 / loss ** (1 / 0.21)


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
