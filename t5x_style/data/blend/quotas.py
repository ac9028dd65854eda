"""How many rows each source is due: the integral of its share, and where it passes a whole row."""

import math

import numpy as np

# A due that comes this close to a whole number is taken to have reached it. Dues are float64, and
# at 10^9 rows exact to 10^-7.
CLOSE = 1e-6
NEVER = np.iinfo(np.int64).max // 4


class Dues:
    """D(n) of each source, over phases in which its share is constant or goes linearly.

    Within a phase, D(first + x) = D(first) + s x + k x^2 / 2 with s the share at its start and k
    its slope. Only sums, products, quotients and square roots of float64 are taken, which every
    machine rounds alike.

    Attributes:
      first: the first row of each phase.
      rows: how many rows each phase has, the last may have infinitely many.
    """

    def __init__(self, sources: int):
        """No phase yet."""
        self.first: list[int] = []
        self.rows: list[float] = []
        self._share: list[np.ndarray] = []
        self._end_share: list[np.ndarray] = []
        self._slope: list[np.ndarray] = []
        self._base = [np.zeros(sources)]

    def add(self, rows: float, shares: np.ndarray) -> None:
        """Appends a phase of `rows` rows with shares float64 [2, sources] at its start and end."""
        self.first.append(self.first[-1] + int(self.rows[-1]) if self.first else 0)
        self.rows.append(rows)
        self._share.append(shares[0])
        self._end_share.append(shares[1])
        if rows == math.inf:
            self._slope.append(np.zeros_like(shares[0]))
            return
        self._slope.append((shares[1] - shares[0]) / rows)
        self._base.append(self._base[-1] + (shares[0] + shares[1]) / 2 * rows)

    def phase_of(self, rows: np.ndarray) -> np.ndarray:
        """Which phase each row lies in."""
        return np.searchsorted(self.first, rows, side="right") - 1

    def active(self, phase: int) -> np.ndarray:
        """bool [sources]: which have rows in that phase."""
        return (self._share[phase] > 0) | (self._end_share[phase] > 0)

    def widest_gap(self, phase: int, start: float, end: float) -> int:
        """Rows within which every active source passes a whole row, wherever they begin.

        A source with a falling share is rarest at the end, where its last row takes at most
        sqrt(2 / slope); one whose part of the phase is less than a row is left out of account.

        Args:
          phase: which.
          start, end: the part of it, in rows from its first; `end` may be infinite.
        """
        rows = end - start
        widest = 1.0
        for i in np.flatnonzero(self.active(phase)):
            share, slope = self._share[phase][i], self._slope[phase][i]
            # Nothing but rounding makes them negative.
            least = max(0.0, min(share + slope * x for x in (start, end) if x < math.inf))
            slope = abs(self._slope[phase][i])
            if slope:
                # From the thin end on: least x + slope x^2 / 2 = 1.
                gap = 2 / (least + math.sqrt(least * least + 2 * slope))
            else:
                gap = 1 / least
            widest = max(widest, min(gap, rows))
        return math.ceil(widest) + 1

    def at(self, rows: np.ndarray) -> np.ndarray:
        """float64 [sources, n]: D after each number of rows, int64 [n]."""
        rows = np.asarray(rows, np.int64)
        phase = np.maximum(np.searchsorted(self.first, rows, side="left") - 1, 0)
        result = np.empty((len(self._base[0]), len(rows)))
        for number in np.unique(phase):
            inside = phase == number
            x = (rows[inside] - self.first[number]).astype(np.float64)
            share, slope = self._share[number][:, None], self._slope[number][:, None]
            result[:, inside] = self._base[number][:, None] + (share + slope * x / 2) * x
        return result

    def passed(self, row: int) -> np.ndarray:
        """int64 [sources]: whole rows that each is due of the first `row` rows."""
        return np.floor(self.at(np.array([row]))[:, 0] + CLOSE).astype(np.int64)

    def crossing(self, source: int, values: np.ndarray, phase: int) -> np.ndarray:
        """int64 [n]: the least number of rows after which D has reached each whole number.

        Args:
          source: which.
          values: int64 [n].
          phase: where to begin: what was reached before it is said to be reached at its first row.

        Returns:
          Rows, or NEVER.
        """
        result = np.full(len(values), NEVER, np.int64)
        left = np.arange(len(values))
        for number in range(phase, len(self.first)):
            if not len(left):
                break
            reached_by_end = self._reached(source, number, self.rows[number], values[left])
            here = left[reached_by_end]
            if len(here):
                result[here] = self.first[number] + self._crossing_in(source, number, values[here])
            left = left[~reached_by_end]
        return result

    def opening(self, source: int, values: np.ndarray, phase: int) -> np.ndarray:
        """int64 [n]: the first slot whose end leaves D above each whole number; as `crossing`.

        A row may be given from there on: before, it would be more than one row too early.
        """
        reached = self.crossing(source, values, phase)
        inside = reached < NEVER
        exact = np.zeros(len(values), bool)
        due = self.at(reached[inside])[source]
        exact[inside] = due <= values[inside] + CLOSE
        return np.where(exact, reached, reached - 1)

    def _reached(self, source: int, number: int, x: float, values: np.ndarray) -> np.ndarray:
        """Whether D is at each value after x rows of a phase."""
        if x == math.inf:
            return np.full(len(values), bool(self._share[number][source] > 0))
        return self._due(source, number, np.full(len(values), x)) >= values - CLOSE

    def _due(self, source: int, number: int, x: np.ndarray) -> np.ndarray:
        share, slope = self._share[number][source], self._slope[number][source]
        return self._base[number][source] + (share + slope * x / 2) * x

    def _crossing_in(self, source: int, number: int, values: np.ndarray) -> np.ndarray:
        share, slope = self._share[number][source], self._slope[number][source]
        missing = np.maximum(values - self._base[number][source], 0.0)
        root = np.sqrt(np.maximum(share * share + 2 * slope * missing, 0.0))
        guess = np.divide(2 * missing, share + root, out=np.zeros(len(values)), where=missing > 0)
        x = np.clip(np.ceil(guess), 0, self.rows[number])
        # The formula is exact to a few rows where a share has all but vanished; `_due` decides.
        while True:
            early = (x > 0) & (self._due(source, number, x - 1) >= values - CLOSE)
            late = ~early & (self._due(source, number, x) < values - CLOSE)
            if not (early.any() or late.any()):
                return x.astype(np.int64)
            x = x - early + late
