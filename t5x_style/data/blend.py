"""Which source gives which row: an exact blend, and any row of it in the same time."""

import fractions
import heapq
import math
from collections.abc import Mapping

import numpy as np

from t5x_style.errors import UsageError

LONGEST_PERIOD = 100_000


class Blend:
    """A fixed order of rows over sources, in which every prefix holds the asked shares.

    After any number n of rows, a source with share s has given floor(s n) or ceil(s n) of them.
    The order repeats with the smallest period P in which every share is a whole number of rows;
    where that is above 100,000 the shares are rounded to 100,000ths. Inside a period, row j of a
    source with w rows may lie in slots floor(j P / w) to ceil((j + 1) P / w) - 1, and each slot
    goes to the row whose window closes first: one processor is never overloaded by windows of
    utilisation 1 (Baruah et al. 1996, proportionate progress), so every window is met.

    Attributes:
      names: the sources, in the order of `shares`.
      shares: {source: share} as used, after rounding to the period; they sum to 1.
      period: P, in rows.
    """

    def __init__(self, shares: Mapping[str, float]):
        """Schedules one period.

        Args:
          shares: {source: share of rows}, positive, with a sum of 1 (to 0.2 %, so that three times
            0.333 will do; they are divided by their sum).

        Raises:
          UsageError: no source, a share that is not positive, or a sum that is not 1.
        """
        if not shares:
            raise UsageError("a blend needs at least one source")
        for name, share in shares.items():
            if not (math.isfinite(share) and share > 0):
                raise UsageError(f"share of {name!r} = {share}: must be above 0 (or leave it out)")
        total = sum(shares.values())
        if abs(total - 1) > 2e-3:
            raise UsageError(
                f"shares sum to {total:g}, not to 1: "
                + ", ".join(f"{name} {share:g}" for name, share in shares.items())
            )
        self.names = tuple(shares)
        self._rows = _whole_rows(list(shares.values()))
        self.period = sum(self._rows)
        self.shares = {
            name: rows / self.period for name, rows in zip(self.names, self._rows, strict=True)
        }
        self._source = _schedule(self._rows)
        self._slots = [np.flatnonzero(self._source == i) for i in range(len(self.names))]
        self._rank = np.empty(self.period, np.int64)
        for slots in self._slots:
            self._rank[slots] = np.arange(len(slots))
        self._rows_array = np.array(self._rows, np.int64)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row and which of that source's rows it is.

        Args:
          rows: int64 [n], any rows in any order, counted from 0.

        Returns:
          source_index int32 [n] into `names`, source_row int64 [n] counted from 0.
        """
        period, slot = np.divmod(np.asarray(rows, np.int64), self.period)
        source = self._source[slot]
        return source, period * self._rows_array[source] + self._rank[slot]

    def counts(self, rows: int) -> np.ndarray:
        """int64 [sources]: how many of the first `rows` rows each source gives."""
        period, slot = divmod(int(rows), self.period)
        inside = [np.searchsorted(slots, slot) for slots in self._slots]
        return period * self._rows_array + np.array(inside, np.int64)


def _whole_rows(shares: list[float]) -> list[int]:
    """Rows of each source in one period."""
    exact = [_meant(share) for share in shares]
    total = sum(exact)
    exact = [share / total for share in exact]
    period = math.lcm(*(share.denominator for share in exact))
    if period <= LONGEST_PERIOD:
        return [int(share * period) for share in exact]
    quotas = [share * LONGEST_PERIOD for share in exact]
    rows = [max(1, math.floor(quota)) for quota in quotas]
    by_remainder = sorted(range(len(rows)), key=lambda i: rows[i] - quotas[i])
    for i in by_remainder[: max(0, LONGEST_PERIOD - sum(rows))]:
        rows[i] += 1
    divisor = math.gcd(*rows)
    return [count // divisor for count in rows]


def _meant(share: float) -> fractions.Fraction:
    """The fraction that somebody meant by a binary number: 51/100 by 0.51, 1/3 by 1 / 3."""
    simple = fractions.Fraction(share).limit_denominator(LONGEST_PERIOD)
    return simple if abs(simple - fractions.Fraction(share)) < 1e-12 else fractions.Fraction(share)


def _schedule(rows: list[int]) -> np.ndarray:
    """int32 [P]: the source of each slot of a period, by earliest deadline first."""
    period = sum(rows)
    released = [(0, i, 0) for i in range(len(rows))]
    heapq.heapify(released)
    ready: list[tuple[int, int, int]] = []
    source = np.empty(period, np.int32)
    for slot in range(period):
        while released and released[0][0] <= slot:
            _, i, j = heapq.heappop(released)
            heapq.heappush(ready, (-(-(j + 1) * period // rows[i]), i, j))
        _, i, j = heapq.heappop(ready)
        source[slot] = i
        if j + 1 < rows[i]:
            heapq.heappush(released, ((j + 1) * period // rows[i], i, j + 1))
    return source
