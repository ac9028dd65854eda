"""Shares of a blend as whole rows of a period."""

import fractions
import math
from collections.abc import Mapping, Sequence

from t5x_style.errors import UsageError

LONGEST_PERIOD = 100_000


def rounded_shares(shares: Mapping[str, float]) -> dict[str, float]:
    """The shares as a blend uses them, summing to 1. Sources with a share of 0 are left out.

    Shares are kept as they are written. Where no period of up to 100,000 rows holds them, they are
    rounded to 100,000ths.

    Args:
      shares: {source: share of rows}.

    Raises:
      UsageError: no source, a share below 0, or a sum that is not 1. A difference of 0.2 % is
        accepted, so that three shares of 0.333 will do; shares are divided by their sum.
    """
    if not shares:
        raise UsageError("a blend needs at least one source")
    for name, share in shares.items():
        if not (math.isfinite(share) and share >= 0):
            raise UsageError(f"share of {name!r} = {share}: must be 0 or more")
    total = sum(shares.values())
    if abs(total - 1) > 2e-3:
        raise UsageError(
            f"shares sum to {total:g}, not to 1: "
            + ", ".join(f"{name} {share:g}" for name, share in shares.items())
        )
    positive = {name: share for name, share in shares.items() if share > 0}
    rows = rows_of_period(list(positive.values()))
    return {name: count / sum(rows) for name, count in zip(positive, rows, strict=True)}


def rows_of_period(shares: Sequence[float]) -> list[int]:
    """Rows of each source in the shortest period that holds the shares."""
    exact = [simple_fraction(share) for share in shares]
    total = sum(exact)
    exact = [share / total for share in exact]
    period = math.lcm(*(share.denominator for share in exact))
    if period <= LONGEST_PERIOD:
        return [int(share * period) for share in exact]
    quotas = [share * LONGEST_PERIOD for share in exact]
    rows = [max(1, math.floor(quota)) if quota else 0 for quota in quotas]
    by_remainder = sorted(range(len(rows)), key=lambda i: rows[i] - quotas[i])
    for i in by_remainder[: max(0, LONGEST_PERIOD - sum(rows))]:
        rows[i] += 1
    # Rare sources were rounded up; the largest source pays. Rounding the result changes nothing.
    rows[rows.index(max(rows))] -= sum(rows) - LONGEST_PERIOD
    divisor = math.gcd(*rows)
    return [count // divisor for count in rows]


def simple_fraction(share: float) -> fractions.Fraction:
    """The fraction behind a binary number: 51/100 for 0.51, 1/3 for 1 / 3."""
    simple = fractions.Fraction(share).limit_denominator(LONGEST_PERIOD)
    return simple if abs(simple - fractions.Fraction(share)) < 1e-12 else fractions.Fraction(share)
