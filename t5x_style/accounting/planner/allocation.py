"""How a budget is best divided between parameters and tokens, by every law, within the data."""

import dataclasses
import math
from collections.abc import Callable

from t5x_style.accounting.laws import LAWS, FrontierLaw, Law, ParametricLaw
from t5x_style.accounting.laws.data_constrained import C4_LAW, effective_params
from t5x_style.accounting.planner.sources import SourceLimits

# BloombergGPT kept some 30 % of its budget in reserve for failures, and read its text once.
BLOOMBERGGPT_RESERVE = 0.3


@dataclasses.dataclass(frozen=True)
class Allocation:
    """A budget divided between parameters and tokens by a law.

    Attributes:
      law: its name.
      params: N.
      tokens: D.
      effective_tokens: fresh tokens that teach as much as D.
      loss: the law's, nats per token, for N and the effective tokens; None for a frontier.
      efficiency: C' / C; C' is the budget that reaches this loss with fresh text and the best N.
        None for a frontier.
      scarce_source: the source whose cap limits D; None where none does.
      interval: ((least N, greatest N), (least D, greatest D)), the uncertainty of the law's own
        optimum; None where it is not known, and within caps.
    """

    law: str
    params: float
    tokens: float
    effective_tokens: float
    loss: float | None
    efficiency: float | None
    scarce_source: str | None = None
    interval: tuple[tuple[float, float], tuple[float, float]] | None = None


def optimal_allocation(flops: float, law: Law) -> Allocation:
    """The law's own optimum, with unlimited fresh text."""
    params, tokens = law.optimal(flops)
    loss, efficiency = law.loss(params, tokens), law.efficiency(params, tokens)
    return Allocation(
        law.name, params, tokens, tokens, loss, efficiency, interval=law.interval(flops)
    )


def best_allocation(flops: float, law: Law, sources: SourceLimits) -> Allocation:
    """The best N and D = C / (6 N) within the caps of the sources.

    A parametric law is minimised over D, with repeated tokens counted as effective tokens; so it
    may stop repeating before a cap does. A frontier has no loss to minimise, so its optimum is cut
    off at the cap. The rest of the budget goes into parameters.

    Raises:
      ValueError: `flops` is not above 0.
    """
    if not flops > 0:
        raise ValueError(f"a budget of {flops!r} FLOPs: must be above 0")
    cap, scarce = sources.cap()
    if isinstance(law, FrontierLaw):
        _, tokens = law.optimal(flops)
        if tokens <= cap:
            return dataclasses.replace(
                optimal_allocation(flops, law), effective_tokens=sources.effective_tokens(tokens)
            )
        return Allocation(
            law.name, flops / (6 * cap), cap, sources.effective_tokens(cap), None, None, scarce
        )
    _, fresh = law.optimal(flops)
    once, _ = sources.cap(epochs=1.0)
    if fresh <= min(once, cap):
        return optimal_allocation(flops, law)

    def loss(tokens: float) -> float:
        return law.loss(flops / (6 * tokens), sources.effective_tokens(tokens))

    # Up to one epoch this is the loss of fresh text, which falls as far as its optimum.
    tokens = argmin(loss, min(fresh, once), cap)
    return allocation_at(
        law, flops / (6 * tokens), tokens, sources, scarce if tokens >= cap else None
    )


def allocation_at(
    law: Law, params: float, tokens: float, sources: SourceLimits, scarce_source: str | None = None
) -> Allocation:
    """A given N and D, with the loss and the efficiency that a law expects of them."""
    effective = sources.effective_tokens(tokens)
    loss = law.loss(params, effective)
    efficiency = law.efficiency(params, tokens, effective)
    return Allocation(law.name, params, tokens, effective, loss, efficiency, scarce_source)


def muennighoff_allocation(flops: float, sources: SourceLimits) -> Allocation:
    """The best within the data by the data-constrained law (Muennighoff et al. 2023).

    It was fitted on C4 throughout. Its parameters, too, lose value beyond the N that the unique
    tokens serve best; the other laws count effective tokens alone.
    """

    def loss(tokens: float) -> float:
        return C4_LAW.loss(
            effective_params(flops / (6 * tokens), sources.unique_tokens_read(tokens)),
            sources.effective_tokens(tokens),
        )

    _, fresh = C4_LAW.optimal(flops)
    cap, scarce = sources.cap()
    once, _ = sources.cap(epochs=1.0)
    tokens = fresh
    if fresh > once:
        tokens = argmin(loss, min(once, cap), cap)
    return Allocation(
        C4_LAW.name,
        flops / (6 * tokens),
        tokens,
        sources.effective_tokens(tokens),
        loss(tokens),
        C4_LAW.flops_for(loss(tokens)) / flops,
        scarce if tokens >= cap else None,
    )


def optima(flops: float, laws: dict[str, Law] = LAWS) -> list[Allocation]:
    """The own optimum of every law, with unlimited fresh text."""
    return [optimal_allocation(flops, law) for law in laws.values()]


def allocations_within_data(
    flops: float, sources: SourceLimits, laws: dict[str, Law] = LAWS
) -> list[Allocation]:
    """The best within the data, by the laws whose optimum needs more than one epoch.

    The data-constrained law comes last, whatever it needs. Empty without sources.
    """
    if not sources.shares:
        return []
    once, _ = sources.cap(epochs=1.0)
    short = [law for law in laws.values() if law.optimal(flops)[1] > once]
    return [
        *(best_allocation(flops, law, sources) for law in short),
        muennighoff_allocation(flops, sources),
    ]


@dataclasses.dataclass(frozen=True)
class CapCost:
    """The cost of the scarcity of one source to a run.

    Attributes:
      source: its name; None for all sources together.
      loss: nats per token above the best with unlimited text of the source.
      efficiency: the share of the budget that is lost to the scarcity.
      flops: the same in FLOPs.
    """

    source: str | None
    loss: float
    efficiency: float
    flops: float


def cap_costs(flops: float, law: ParametricLaw, sources: SourceLimits) -> list[CapCost]:
    """The cost of every source's limit taken alone, and of all limits together (last).

    A source that is not scarce costs nothing. Two scarce sources cost more together than either
    alone.
    """

    def best(sources: SourceLimits) -> tuple[float, float]:
        """(loss, efficiency) of the best within the caps."""
        found = best_allocation(flops, law, sources)
        return (
            law.loss(found.params, found.effective_tokens),
            law.efficiency(found.params, found.tokens, found.effective_tokens),
        )

    lifted: list[tuple[str | None, SourceLimits]] = [
        (name, sources.lift_limit(name)) for name in sources.shares
    ]
    limited_loss, limited_efficiency = best(sources)
    costs = []
    for name, limits in [*lifted, (None, SourceLimits())]:
        loss, efficiency = best(limits)
        gain = max(0.0, efficiency - limited_efficiency)
        costs.append(CapCost(name, max(0.0, limited_loss - loss), gain, gain * flops))
    return costs


def bloomberggpt_rule(flops: float, law: ParametricLaw, sources: SourceLimits) -> Allocation:
    """BloombergGPT's choice for this budget (Wu et al. 2023, section 3.2).

    Every token is read once, so the blend is by size. The model is the largest that leaves some
    30 % of the budget.
    """
    tokens = sum(sources.unique_tokens.values())
    params = (1 - BLOOMBERGGPT_RESERVE) * flops / (6 * tokens)
    return allocation_at(law, params, tokens, SourceLimits())


def argmin(function: Callable[[float], float], low: float, high: float) -> float:
    """The minimiser of a function on [low, high], both above 0, to a relative 1e-10.

    First a logarithmic grid, since several sources that run out one after another can make more
    than one valley; then golden section within the deepest.
    """
    if low >= high:
        return high
    steps = 200
    ratio = (high / low) ** (1 / steps)
    grid = [low * ratio**step for step in range(steps)] + [high]
    best = min(range(steps + 1), key=lambda index: function(grid[index]))
    left, right = grid[max(best - 1, 0)], grid[min(best + 1, steps)]
    golden = (math.sqrt(5) - 1) / 2
    while right / left - 1 > 1e-10:
        span = right - left
        inner, outer = right - golden * span, left + golden * span
        if function(inner) <= function(outer):
            right = outer
        else:
            left = inner
    # The ends are candidates, too, so that a cap is met exactly.
    return min((grid[best], (left + right) / 2, low, high), key=function)
