"""The cheapest model over a lifetime of training and serving: Sardana et al. 2024 (2401.00448).

A smaller model trained for longer reaches the loss of a Chinchilla-optimal one. It costs more to
train and less to serve, and enough served tokens make it the cheaper of the two.
"""

import math

from t5x_style.accounting.laws.chinchilla import ParametricLaw
from t5x_style.errors import UsageError


def lifetime_flops(params: float, tokens: float, served_tokens: float) -> float:
    """6 N D of training and 2 N for each token served, prompt or answer."""
    return 6 * params * tokens + 2 * params * served_tokens


def tokens_for_loss(law: ParametricLaw, params: float, loss: float) -> float:
    """D with L(N, D) = `loss`.

    Raises:
      UsageError: N parameters never reach that loss.
    """
    floor = law.irreducible + law.params_scale * params**-law.params_exponent
    if not loss > floor:
        cheapest, _ = law.optimal(law.flops_for(loss))
        raise UsageError(
            f"a loss of {loss!r} from {params:.4g} parameters by {law.name}: no tokens reach it, "
            f"theirs stays above {floor:.6g}; {cheapest:.4g} parameters reach it at least cost"
        )
    return (law.tokens_scale / (loss - floor)) ** (1 / law.tokens_exponent)


def inference_optimal(law: ParametricLaw, loss: float, served_tokens: float) -> tuple[float, float]:
    """(N, D) of least lifetime FLOPs among the models that reach `loss`.

    With no token served it is the law's optimum for that loss. Let g be the share of L - E that is
    left to the data term, so that D = (B / (g (L - E)))^(1/beta) and N follows from the rest. Along
    equal loss the cost is least where 3 D (alpha (1 - g) / (beta g) - 1) = D_inf; the left side
    falls with g, from anything down to 0 at the training optimum, and is bisected.

    Args:
      law: of the loss.
      loss: to be reached, nats per token.
      served_tokens: D_inf, over the lifetime, 0 or more.

    Raises:
      UsageError: no model reaches the loss, or served_tokens is below 0.
    """
    if not 0 <= served_tokens < math.inf:
        raise UsageError(f"served_tokens = {served_tokens!r}: must be 0 or more, and finite")
    cheapest_to_train = law.optimal(law.flops_for(loss))
    if served_tokens == 0:
        return cheapest_to_train
    alpha, beta = law.params_exponent, law.tokens_exponent
    reducible = loss - law.irreducible

    def tokens_of(share: float) -> float:
        return (law.tokens_scale / (share * reducible)) ** (1 / beta)

    def break_even(share: float) -> float:
        return 3 * tokens_of(share) * (alpha * (1 - share) / (beta * share) - 1)

    # In log g, since g has no least value.
    high = math.log(alpha / (alpha + beta))
    low = high - 1
    while break_even(math.exp(low)) < served_tokens:
        low -= 1
    while (middle := (low + high) / 2) not in (low, high):
        if break_even(math.exp(middle)) > served_tokens:
            low = middle
        else:
            high = middle
    share = math.exp(low)
    params = (law.params_scale / ((1 - share) * reducible)) ** (1 / alpha)
    return params, tokens_of(share)
