"""The recommendation for another budget, other domain data or another MFU."""

import dataclasses

from t5x_style.accounting.laws import ParametricLaw
from t5x_style.accounting.planner.allocation import best_allocation
from t5x_style.accounting.planner.budget import Budget
from t5x_style.accounting.planner.sources import SourceLimits

FACTORS = (0.5, 1.5)


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The recommendation under one change.

    Attributes:
      what: the quantity that is changed, or 'as planned'.
      factor: the changed quantity over the planned one.
      flops: the budget; params, tokens, loss, efficiency: see Allocation.
      days, cost: of the whole budget; None where they do not follow.
    """

    what: str
    factor: float
    flops: float
    params: float
    tokens: float
    loss: float
    efficiency: float
    days: float | None
    cost: float | None


def sensitivity(
    budget: Budget, sources: SourceLimits, law: ParametricLaw, domain: str | None
) -> list[Sensitivity]:
    """The plan as it is, and with 50 % more and less of budget, domain tokens and MFU.

    Another MFU changes the FLOPs of a budget in time or money. It changes the time and the cost of
    a budget in FLOPs. An MFU above the chips' peak is left out.

    Args:
      domain: the source whose unique tokens vary; None where there is no source.
    """
    cases = [("as planned", 1.0, budget, sources)]
    for factor in FACTORS:
        larger = dataclasses.replace(budget, flops=factor * budget.flops)
        cases.append(("budget", factor, larger, sources))
    if domain is not None:
        for factor in FACTORS:
            cases.append((f"tokens of {domain}", factor, budget, sources.scaled(domain, factor)))
    for factor in FACTORS:
        if budget.mfu is None or factor * budget.mfu > 1:
            continue
        flops = budget.flops if budget.form == "flops" else factor * budget.flops
        faster = dataclasses.replace(budget, flops=flops, mfu=factor * budget.mfu)
        cases.append(("MFU", factor, faster, sources))
    rows = []
    for what, factor, supposed, data in cases:
        best = best_allocation(supposed.flops, law, data)
        rows.append(
            Sensitivity(
                what,
                factor,
                supposed.flops,
                best.params,
                best.tokens,
                law.loss(best.params, best.effective_tokens),
                law.efficiency(best.params, best.tokens, best.effective_tokens),
                supposed.days(supposed.flops),
                supposed.cost(supposed.flops),
            )
        )
    return rows
