"""The model that costs least over training and service, within the data."""

import dataclasses

from t5x_style.accounting.laws import ParametricLaw
from t5x_style.accounting.planner.allocation import Allocation, allocation_at, argmin
from t5x_style.accounting.planner.sources import SourceLimits

# With unlimited text, no model is considered that is trained for more than this many times longer.
LONGEST = 1e3


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A smaller model of the same loss.

    Attributes:
      served_tokens: D_inf, read and written in service.
      allocation: its N and D.
      training_flops: 6 N D.
      lifetime_flops: 6 N D + 2 N D_inf.
      saving: share of the plan's lifetime FLOPs that the model saves; 0 where the plan itself is
        the cheapest.
    """

    served_tokens: float
    allocation: Allocation
    training_flops: float
    lifetime_flops: float
    saving: float


def lifetime_flops(params: float, tokens: float, served_tokens: float) -> float:
    """6 N D of training and 2 N per served token, prompt or answer."""
    return 6 * params * tokens + 2 * params * served_tokens


def cheapest_to_serve(
    plan: Allocation, law: ParametricLaw, sources: SourceLimits, served_tokens: float
) -> ServedModel:
    """The model of the plan's loss with the least lifetime FLOPs (Sardana et al. 2024, 2401.00448).

    It is trained at least as long as the plan, and within the caps of its sources. A smaller model
    that is trained for longer costs more to train and less to serve.

    Args:
      plan: an allocation by `law`; its loss is to be reached.
      served_tokens: D_inf.
    """
    loss = law.loss(plan.params, plan.effective_tokens)

    def params_for(tokens: float) -> float:
        """N with L(N, D) = the plan's loss."""
        left = loss - law.irreducible
        left -= law.tokens_scale * sources.effective_tokens(tokens) ** -law.tokens_exponent
        return (law.params_scale / left) ** (1 / law.params_exponent)

    def cost(tokens: float) -> float:
        return lifetime_flops(params_for(tokens), tokens, served_tokens)

    longest = max(plan.tokens, min(sources.cap()[0], LONGEST * plan.tokens))
    tokens = argmin(cost, plan.tokens, longest)
    params = params_for(tokens)
    as_planned = lifetime_flops(plan.params, plan.tokens, served_tokens)
    return ServedModel(
        served_tokens,
        allocation_at(law, params, tokens, sources),
        6 * params * tokens,
        cost(tokens),
        1 - cost(tokens) / as_planned,
    )
