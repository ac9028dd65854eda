"""How a budget is best divided between parameters and tokens, by each law, within the data."""

import dataclasses
import math
from collections.abc import Callable

from t5x_style.accounting.laws import LAWS, FrontierLaw, Law, ParametricLaw
from t5x_style.accounting.laws.data_constrained import C4_LAW, effective_params
from t5x_style.accounting.planner.sources import Sources

# BloombergGPT kept some 30 % of its budget back for what goes wrong, and read its text once.
BLOOMBERGGPT_RESERVE = 0.3


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What a law makes of a budget.

    Attributes:
      law: its name.
      params: N.
      tokens: D.
      effective_tokens: what D is worth in fresh tokens.
      loss: the law's, nats per token, for N and the effective tokens; None where it gives none.
      efficiency: C' / C; C' is the budget that reaches this loss with fresh text and the best N.
      scarce_source: the source whose cap holds D down; None where none does.
      interval: ((least N, greatest N), (least D, greatest D)) of the law's own optimum, which its
        fit leaves open; None where it is not known, and within caps.
    """

    law: str
    params: float
    tokens: float
    effective_tokens: float
    loss: float | None
    efficiency: float | None
    scarce_source: str | None = None
    interval: tuple[tuple[float, float], tuple[float, float]] | None = None


def unbounded(flops: float, law: Law) -> Allocation:
    """The law's own optimum, with as much fresh text as it likes."""
    params, tokens = law.optimal(flops)
    loss, efficiency = law.loss(params, tokens), law.efficiency(params, tokens)
    return Allocation(
        law.name, params, tokens, tokens, loss, efficiency, interval=law.interval(flops)
    )


def within(flops: float, law: Law, sources: Sources) -> Allocation:
    """The best N and D = C / (6 N) within the caps of the sources.

    A parametric law is minimised over D with repeated tokens at their effective number, so it
    may stop repeating before a cap does. A frontier has no loss to weigh, so its optimum is cut
    off at the cap. What the tokens do not use goes into parameters.

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
                unbounded(flops, law), effective_tokens=sources.effective(tokens)
            )
        return Allocation(
            law.name, flops / (6 * cap), cap, sources.effective(cap), None, None, scarce
        )
    _, fresh = law.optimal(flops)
    once, _ = sources.cap(epochs=1.0)
    if fresh <= min(once, cap):
        return unbounded(flops, law)

    def loss(tokens: float) -> float:
        return law.loss(flops / (6 * tokens), sources.effective(tokens))

    # Up to one epoch this is the loss of fresh text, which falls as far as its optimum.
    tokens = least_at(loss, min(fresh, once), cap)
    return allocation_at(
        law, flops / (6 * tokens), tokens, sources, scarce if tokens >= cap else None
    )


def allocation_at(
    law: Law, params: float, tokens: float, sources: Sources, scarce_source: str | None = None
) -> Allocation:
    """What a law says of a given N and D."""
    effective = sources.effective(tokens)
    loss = efficiency = None
    if isinstance(law, ParametricLaw):
        loss = law.loss(params, effective)
        efficiency = law.flops_for(loss) / (6 * params * tokens)
    return Allocation(law.name, params, tokens, effective, loss, efficiency, scarce_source)


def by_muennighoff(flops: float, sources: Sources) -> Allocation:
    """The best within the data by the data-constrained law (Muennighoff et al. 2023).

    Fitted on C4 throughout: its parameters, too, lose value beyond what the unique tokens serve
    best, where the other laws are only told what the tokens are worth.
    """

    def loss(tokens: float) -> float:
        return C4_LAW.loss(
            effective_params(flops / (6 * tokens), sources.unique_within(tokens)),
            sources.effective(tokens),
        )

    _, fresh = C4_LAW.optimal(flops)
    cap, scarce = sources.cap()
    once, _ = sources.cap(epochs=1.0)
    tokens = fresh
    if fresh > once:
        tokens = least_at(loss, min(once, cap), cap)
    return Allocation(
        C4_LAW.name,
        flops / (6 * tokens),
        tokens,
        sources.effective(tokens),
        loss(tokens),
        C4_LAW.flops_for(loss(tokens)) / flops,
        scarce if tokens >= cap else None,
    )


def optima(flops: float, laws: dict[str, Law] = LAWS) -> list[Allocation]:
    """Each law's own optimum, with as much fresh text as it likes."""
    return [unbounded(flops, law) for law in laws.values()]


def within_data(flops: float, sources: Sources, laws: dict[str, Law] = LAWS) -> list[Allocation]:
    """The best within the data by each law whose optimum lacks it, and by the data-constrained law
    (last). Empty without sources.
    """
    if not sources.shares:
        return []
    once, _ = sources.cap(epochs=1.0)
    short = [law for law in laws.values() if law.optimal(flops)[1] > once]
    return [*(within(flops, law, sources) for law in short), by_muennighoff(flops, sources)]


@dataclasses.dataclass(frozen=True)
class CapCost:
    """What the scarcity of one source (or of all, source None) costs a run.

    Attributes:
      source: its name.
      loss: nats per token above the best that unlimited text of it would reach.
      efficiency: the share of the budget that is lost to it.
      flops: the same in FLOPs.
    """

    source: str | None
    loss: float
    efficiency: float
    flops: float


def cap_costs(flops: float, law: ParametricLaw, sources: Sources) -> list[CapCost]:
    """The cost of each source's limit taken alone, and of all limits together (last).

    A source that is not scarce costs nothing; two scarce ones cost more together than each alone.
    """
    here = within(flops, law, sources)
    endless = Sources()
    lifted = [(name, sources.without_end(name)) for name in sources.shares]
    costs = []
    for name, others in [*lifted, (None, endless)]:
        there = within(flops, law, others)
        gain = max(0.0, there.efficiency - here.efficiency)
        costs.append(CapCost(name, max(0.0, here.loss - there.loss), gain, gain * flops))
    return costs


def bloomberggpt_rule(flops: float, law: ParametricLaw, sources: Sources) -> Allocation:
    """BloombergGPT's choice for this budget: every token once, so blended by size, and the largest
    model that leaves some 30 % of the budget (Wu et al. 2023, section 3.2).
    """
    tokens = sum(sources.unique_tokens.values())
    params = (1 - BLOOMBERGGPT_RESERVE) * flops / (6 * tokens)
    return allocation_at(law, params, tokens, Sources())


def least_at(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is least on [low, high], both above 0, to a relative 1e-10.

    A logarithmic grid first: several sources that run out one after the other can make more than
    one valley; then golden section within the deepest.
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
    # The ends are looked at, too: a cap is met exactly.
    return min((grid[best], (left + right) / 2, low, high), key=function)
