"""From a budget and its data to the model that each law would train."""

import dataclasses
from collections.abc import Mapping

from t5x_style.accounting.chips import Chip
from t5x_style.accounting.laws import LAWS
from t5x_style.errors import UsageError, did_you_mean

# Up to four passes over text teach nearly as much as fresh text (Muennighoff et al. 2023).
FREE_EPOCHS = 4.0


@dataclasses.dataclass(frozen=True)
class Allocation:
    """What a law makes of a budget.

    Attributes:
      law: its name.
      params: N.
      tokens: D; 6 N D is the budget.
      loss: the law's, nats per token; None where it gives none.
      efficiency: compute efficiency; None likewise.
      scarce_source: the source that ran out and so held D down; None at the law's own optimum.
      epochs: passes over each source.
    """

    law: str
    params: float
    tokens: float
    loss: float | None
    efficiency: float | None
    scarce_source: str | None
    epochs: dict[str, float]


def chip_flops(chip: Chip, chips: int, seconds: float, mfu: float) -> float:
    """Model FLOPs that chips give in a time: chips x peak x seconds x mfu.

    The laws' C is 6 N D, so `mfu` is by 6ND: model FLOPs, without recomputation.
    """
    return chips * chip.peak_bf16_flops * seconds * mfu


def blend(
    unique_tokens: Mapping[str, float], shares: Mapping[str, float] | None
) -> dict[str, float]:
    """Share of each source, summing to 1: `shares` scaled, or by size where None.

    Raises:
      UsageError: for shares and sources that do not match, or sizes and shares not above 0.
    """
    if shares is None:
        shares = unique_tokens
    for name in shares:
        if name not in unique_tokens:
            raise UsageError(
                f"shares name {name!r}, unique_tokens do not{did_you_mean(name, unique_tokens)}"
            )
    for name in unique_tokens:
        if name not in shares:
            raise UsageError(
                f"unique_tokens name {name!r}, shares do not{did_you_mean(name, shares)}"
            )
    for kind, values in (("unique_tokens", unique_tokens), ("shares", shares)):
        for name, value in values.items():
            if not value > 0:
                raise UsageError(f"{kind} of {name!r} = {value!r}: must be above 0")
    total = sum(shares.values())
    return {name: value / total for name, value in shares.items()}


def token_cap(
    unique_tokens: Mapping[str, float], shares: Mapping[str, float], max_epochs: float
) -> tuple[float, str]:
    """(D, source): the most tokens before a source has been seen `max_epochs` times, and which."""
    caps = {name: max_epochs * unique_tokens[name] / share for name, share in shares.items()}
    scarce = min(caps, key=lambda name: caps[name])
    return caps[scarce], scarce


def allocations(
    flops: float,
    unique_tokens: Mapping[str, float] | None = None,
    shares: Mapping[str, float] | None = None,
    max_epochs: float = FREE_EPOCHS,
) -> list[Allocation]:
    """The optimum of each law for a budget, and where the data falls short of it, the best within.

    The loss falls with N at any D, so a budget whose tokens are capped goes into a larger model:
    N = C / (6 D). No value is put on repeated tokens here; they count as fresh up to the cap.

    Args:
      flops: C = 6 N D.
      unique_tokens: tokens of each source, once through; None leaves the data unbounded.
      shares: see `blend`.
      max_epochs: passes over the scarcest source at most.
    """
    if not flops > 0:
        raise UsageError(f"a budget of {flops!r} FLOPs: must be above 0")
    if unique_tokens is None and shares is not None:
        raise UsageError("shares need unique_tokens: how much of each source is there?")
    sizes = dict(unique_tokens or {})
    blended = blend(sizes, shares) if sizes else {}
    found = []
    for name, law in LAWS.items():
        params, tokens = law.optimal(flops)
        found.append(_allocation(name, params, tokens, None, sizes, blended))
        if sizes:
            cap, scarce = token_cap(sizes, blended, max_epochs)
            if tokens > cap:
                found.append(_allocation(name, flops / (6 * cap), cap, scarce, sizes, blended))
    return found


def _allocation(
    name: str,
    params: float,
    tokens: float,
    scarce_source: str | None,
    unique_tokens: Mapping[str, float],
    shares: Mapping[str, float],
) -> Allocation:
    law = LAWS[name]
    return Allocation(
        law=name,
        params=params,
        tokens=tokens,
        loss=law.loss(params, tokens),
        efficiency=law.efficiency(params, tokens),
        scarce_source=scarce_source,
        epochs={source: tokens * share / unique_tokens[source] for source, share in shares.items()},
    )
