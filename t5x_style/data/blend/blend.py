"""Which source each row comes from: a merge of the sources by the times of their rows."""

import bisect
import dataclasses
import fractions
import math
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_style.data.blend.shares import rounded_shares, rows_of_period
from t5x_style.errors import UsageError

# The version of the order. A run that was begun with another one is refused: its rows differ.
ROW_ORDER = 2


@dataclasses.dataclass(frozen=True)
class BlendPhase:
    """A number of rows over which shares are constant, or change linearly.

    Attributes:
      rows: how many; None: to the end of the run, however long that is (the last phase only).
      start: {source: share of rows} at its first row; sources with 0 may be left out.
      end: the shares at its end.
    """

    rows: int | None
    start: Mapping[str, float]
    end: Mapping[str, float]


class Blend:
    """A fixed order of rows over sources, in which every prefix holds the asked shares.

    After t rows a source is owed D(t) rows, the integral of its share. Row j of the source gets the
    time at which D reaches j + 1/2. All rows sorted by time, ties by source, are the order.

    Bound: of the first n rows, source i has given D_i(n) to within 1/2 + s (k - 2) / 2, where k is
    the number of sources and s the largest share of i within k / 2 rows of n. That is half a row
    for two sources, at most one for three.

    Proof: let t be the time of row n - 1 and g_i the rows of source i among the first n. They are
    the rows whose time is below t, and some of those at t, so e_i = g_i - D_i(t) is within 1/2. The
    g_i sum to n and the D_i(t) to t, so the e_i sum to n - t. With s the mean share of i between t
    and n, g_i - D_i(n) = e_i - s (n - t) = (1 - s) e_i - s (the sum of the other e), which is
    within (1 - s) / 2 + s (k - 1) / 2.

    A change of phases at row r keeps the rows before r. From r on D counts anew, and starts from
    the rows that each source has given. So the bound holds for the rows since the last change.

    Times are float64. They follow from sums, products, quotients and square roots alone, which
    every machine rounds alike. A source's rows are one apart in D, and rounding is 1e-6 at 5e9
    rows, so no rounding swaps them. Every block of the order is therefore the same wherever it is
    read from, and on every host.

    Attributes:
      names: the sources, in the order in which phases name them.
      phases: after rounding (see `rounded_shares`).
      changes: (row, phases) of each later change, after rounding.
    """

    def __init__(
        self,
        phases: Sequence[BlendPhase],
        changes: Sequence[tuple[int, Sequence[BlendPhase]]] = (),
    ):
        """Lays out the phases.

        Args:
          phases: in order; the last with rows None.
          changes: (row, phases), in order: these phases hold from that row on, as after a changed
            configuration.

        Raises:
          UsageError: no phase, a phase without rows, or shares that `rounded_shares` refuses.
        """
        self.phases = _checked(phases)
        self.changes = tuple((row, _checked(changed)) for row, changed in changes)
        versions = [(0, self.phases), *self.changes]
        self.names = tuple(
            dict.fromkeys(
                name
                for _, version in versions
                for phase in version
                for shares in (phase.start, phase.end)
                for name in shares
            )
        )
        self._first = [row for row, _ in versions]
        self._merges = [_Merge(version, self.names) for _, version in versions]
        self._given = [np.zeros(len(self.names), np.int64)]
        for number, first in enumerate(self._first[1:]):
            self._given.append(self._counts(number, first))

    @classmethod
    def constant(cls, shares: Mapping[str, float]) -> "Blend":
        """The blend of one phase."""
        return cls([BlendPhase(None, shares, shares)])

    def locate(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The source of each of the rows first .. end - 1, and which of the source's rows it is.

        Returns:
          source_index int32 [n] into `names`, source_row int64 [n] counted from 0.
        """
        sources, rows = [np.empty(0, np.int32)], [np.empty(0, np.int64)]
        ends = [*self._first[1:], end]
        for start, stop, given, merge in zip(
            self._first, ends, self._given, self._merges, strict=True
        ):
            begin, until = max(first, start), min(end, stop)
            if begin < until:
                source, row = merge.locate(begin - start, until - start)
                sources.append(source)
                rows.append(row + given[source])
        return np.concatenate(sources), np.concatenate(rows)

    def counts(self, rows: int) -> np.ndarray:
        """int64 [sources]: how many of the first `rows` rows each source gives."""
        return self._counts(self._version_before(rows), rows)

    def counts_unchanged(self, rows: int, since: int) -> np.ndarray:
        """`counts` as if the blend of row `since` continued, without any later change."""
        return self._counts(bisect.bisect_right(self._first, since) - 1, rows)

    def owed_rows(self, rows: int) -> np.ndarray:
        """float64 [sources]: D, the integral of each share over the first `rows` rows."""
        number = self._version_before(rows)
        return self._given[number] + self._merges[number].owed(rows - self._first[number])

    def _counts(self, number: int, rows: int) -> np.ndarray:
        return self._given[number] + self._merges[number].counts(rows - self._first[number])

    def _version_before(self, rows: int) -> int:
        """Number of the phases that row `rows - 1` follows from."""
        return max(0, bisect.bisect_left(self._first, rows) - 1)


class _Merge:
    """Phases from row 0 on, before which no source has given a row; arrays are float64.

    Shares of a phase are whole numbers over a period P. With x the rows into the phase, w a
    source's weight at the start and k the slope of its weight, D = base + (w x + k x^2 / 2) / P.
    """

    def __init__(self, phases: Sequence[BlendPhase], names: Sequence[str]):
        first, owed = 0, [fractions.Fraction(0)] * len(names)
        columns = []
        for phase in phases:
            period, start, end = _weights(phase, names)
            base = [float(rows) for rows in owed]
            if phase.rows is None:
                slope = [0.0] * len(names)
                base_end = [math.inf if w else b for w, b in zip(start, base, strict=True)]
            else:
                slope = [(e - w) / phase.rows for w, e in zip(start, end, strict=True)]
                owed = [
                    rows + fractions.Fraction((w + e) * phase.rows, 2 * period)
                    for rows, w, e in zip(owed, start, end, strict=True)
                ]
                base_end = [float(rows) for rows in owed]
            rows = math.inf if phase.rows is None else phase.rows
            columns.append((first, rows, period, start, slope, base, base_end))
            first += phase.rows or 0
        # [phases] each, then [phases, sources] each.
        self._first, self._rows, self._period, self._weight, self._slope, self._base, self._end = (
            np.array(column, np.float64) for column in zip(*columns, strict=True)
        )

    def owed(self, time: float) -> np.ndarray:
        """float64 [sources]: D at a time, which is a number of rows."""
        phase = int(np.searchsorted(self._first, time, side="right")) - 1
        x = time - self._first[phase]
        rows = (self._weight[phase] + self._slope[phase] * x / 2) * x / self._period[phase]
        return self._base[phase] + rows

    def locate(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Blend.locate`."""
        before, source, row = self._sorted_around(first, end)
        inside = slice(first - int(before.sum()), end - int(before.sum()))
        return source[inside], row[inside]

    def counts(self, rows: int) -> np.ndarray:
        """As `Blend.counts`."""
        before, source, _ = self._sorted_around(rows, rows)
        return before + np.bincount(source[: rows - int(before.sum())], minlength=len(before))

    def _sorted_around(self, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A part of the order that surely contains rows first .. end - 1.

        Returns:
          Rows of each source before the part, int64 [sources]; source int32 [n] and source_row
          int64 [n] of the part.
        """
        # After n rows the time is within half a row per source of n (see the proof).
        margin = self._base.shape[1] / 2 + 1
        before = self._counts_at(max(0.0, first - margin))
        counts = self._counts_at(end + margin) - before
        source = np.repeat(np.arange(len(before), dtype=np.int32), counts)
        row = np.arange(len(source)) + np.repeat(before - np.cumsum(counts) + counts, counts)
        order = np.lexsort((source, self._times(source, row)))
        return before, source[order], row[order]

    def _counts_at(self, time: float) -> np.ndarray:
        """int64 [sources]: how many rows of each source have a time below `time`."""
        # D is within rounding of the answer; the times of the nearest rows decide.
        nearest = np.maximum(np.floor(self.owed(time) + 0.5).astype(np.int64) - 1, 0)
        source = np.arange(len(nearest))
        return nearest + sum((self._times(source, nearest + i) < time).astype(int) for i in (0, 1))

    def _times(self, source: np.ndarray, row: np.ndarray) -> np.ndarray:
        """float64 [n]: when D of each source reaches its row + 1/2; inf where it never does."""
        value = row + 0.5
        phase = np.minimum((self._end[:, source] < value).sum(axis=0), len(self._first) - 1)
        weight, slope = self._weight[phase, source], self._slope[phase, source]
        missing = (value - self._base[phase, source]) * self._period[phase]
        # The root of w x + k x^2 / 2 = missing, in the form without cancellation.
        divisor = weight + np.sqrt(np.maximum(weight * weight + 2 * slope * missing, 0.0))
        x = np.full(len(row), np.inf)
        np.divide(2 * missing, divisor, out=x, where=divisor > 0)
        return self._first[phase] + np.minimum(x, self._rows[phase])


def _weights(phase: BlendPhase, names: Sequence[str]) -> tuple[int, list[int], list[int]]:
    """A period P, and the shares at the start and at the end of a phase in P-ths."""
    start, end = (
        rows_of_period([shares.get(name, 0.0) for name in names])
        for shares in (phase.start, phase.end)
    )
    period = math.lcm(sum(start), sum(end))
    return (
        period,
        [rows * (period // sum(start)) for rows in start],
        [rows * (period // sum(end)) for rows in end],
    )


def _checked(phases: Sequence[BlendPhase]) -> tuple[BlendPhase, ...]:
    """The phases with rounded shares."""
    if not phases or phases[-1].rows is not None:
        raise UsageError("a blend needs phases, the last of which lasts to the end of the run")
    for phase in phases[:-1]:
        if phase.rows is None or phase.rows < 1:
            raise UsageError(f"a phase of a blend has {phase.rows} rows: it needs at least one")
    if dict(phases[-1].start) != dict(phases[-1].end):
        raise UsageError("a phase that lasts to the end of the run cannot change its shares")
    return tuple(
        BlendPhase(phase.rows, rounded_shares(phase.start), rounded_shares(phase.end))
        for phase in phases
    )
