"""Which source gives which row: an exact blend, and any row of it in the same time."""

import bisect
import collections
import dataclasses
import fractions
import math
from collections.abc import Mapping, Sequence

import numpy as np

from t5x_style.data.blend.earliest_deadline import earliest_deadline_first
from t5x_style.data.blend.quotas import CLOSE, NEVER, Dues
from t5x_style.errors import UsageError

LONGEST_PERIOD = 100_000
# Rows that are scheduled at once, where no source is so rare that it takes more.
BLOCK_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class BlendPhase:
    """A stretch of rows over which shares stay, or go linearly from one blend to another.

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

    What a source is due after n rows is the integral of its share, D(n); it has then been given
    floor(D(n)) or ceil(D(n)) of them, at every n, through all phases. (A source that leaves between
    two whole rows keeps what it is ahead or behind until it comes back. Where groups of sources
    that have none in common take turns, that can make another one wait: in fewer than one in fifty
    of random cases, and for less than two rows.)

    Row j of a source may lie in slots floor(D^-1(j)) to ceil(D^-1(j + 1)) - 1, and each slot goes
    to the row whose window closes first. Dues sum to the rows, so the windows are never overloaded
    and every one is met (Baruah et al. 1996, proportionate progress, for constant shares; the same
    holds for any dues, which are themselves a fractional schedule).

    Constant shares to the end of the run repeat with the smallest period in which every share is a
    whole number of rows, and one period is scheduled. Elsewhere, rows are scheduled in blocks, each
    by itself: how many rows of each source lie before a block is found by running the schedule over
    the rows before it, far enough back that every source has passed a whole row, from the state in
    which those sources are ahead whose next row is due soonest.

    Shares are kept as they are written; where no period of up to 100,000 rows holds them they are
    rounded to 100,000ths.

    Attributes:
      names: the sources, in the order in which phases name them.
      phases: as used, after rounding; shares of every source that has one, summing to 1.
      changes: the same of what came later.
    """

    def __init__(
        self,
        phases: Sequence[BlendPhase],
        changes: Sequence[tuple[int, Sequence[BlendPhase]]] = (),
    ):
        """Lays out the phases; schedules nothing yet.

        Args:
          phases: in order; the last with rows None.
          changes: (row, phases), in order: from that row on these phases hold, as after a change of
            mind. Rows before it stay what they were. What is due is counted anew, from the rows
            given so far.

        Raises:
          UsageError: no phase, no source, a share below 0, or a sum that is not 1 (to 0.2 %, so
            that three times 0.333 will do; they are divided by their sum).
        """
        self.phases = _checked(phases)
        self.changes = tuple((row, _checked(changed)) for row, changed in changes)
        histories = [(0, self.phases), *self.changes]
        self._first = [row for row, _ in histories]
        self.names = tuple(
            dict.fromkeys(
                name
                for _, each in histories
                for phase in each
                for end in (phase.start, phase.end)
                for name in end
            )
        )
        self._chains: list[_Chain] = []
        given = np.zeros(len(self.names), np.int64)
        for first, each in histories:
            if first:
                given = self.counts(first)
            self._chains.append(_Chain(first, given, each, self.names))

    @classmethod
    def constant(cls, shares: Mapping[str, float]) -> "Blend":
        """The blend of one phase."""
        return cls([BlendPhase(None, shares, shares)])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The source of each row and which of that source's rows it is.

        Args:
          rows: int64 [n], any rows in any order, counted from 0.

        Returns:
          source_index int32 [n] into `names`, source_row int64 [n] counted from 0.
        """
        rows = np.asarray(rows, np.int64)
        source, source_row = np.empty(len(rows), np.int32), np.empty(len(rows), np.int64)
        chain_of = np.searchsorted(self._first, rows, side="right") - 1
        for number in np.unique(chain_of):
            inside = chain_of == number
            source[inside], source_row[inside] = self._chains[number].locate(rows[inside])
        return source, source_row

    def counts(self, rows: int) -> np.ndarray:
        """int64 [sources]: how many of the first `rows` rows each source gives."""
        return self._chain(rows).counts(rows)

    def counts_unchanged(self, rows: int, since: int) -> np.ndarray:
        """`counts` as they would be if the blend of row `since` went on, whatever changed later."""
        return self._chains[bisect.bisect_right(self._first, since) - 1].counts(rows)

    def due(self, rows: int) -> np.ndarray:
        """float64 [sources]: what each is due of the first `rows` rows; `counts` is within one."""
        return self._chain(rows).due(rows)

    def _chain(self, rows: int) -> "_Chain":
        return self._chains[max(0, bisect.bisect_left(self._first[: len(self._chains)], rows) - 1)]


class _Chain:
    """Phases whose dues go on from one to the next, from whole numbers at the first row."""

    def __init__(
        self, first: int, given: np.ndarray, phases: Sequence[BlendPhase], names: Sequence[str]
    ):
        self.first, self.given = first, given
        self.dues = Dues(len(names))
        self.spans: list[_Periodic | _Scheduled] = []
        for phase in phases:
            ends = (phase.start, phase.end)
            shares = np.array([[end.get(name, 0.0) for name in names] for end in ends])
            self.dues.add(math.inf if phase.rows is None else phase.rows, shares)
        for number, phase in enumerate(phases):
            if len(phases) == 1:
                self.spans.append(_Periodic([phase.start.get(name, 0.0) for name in names]))
            else:
                self.spans.append(_Scheduled(self.dues, number))

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = rows - self.first
        source, source_row = np.empty(len(rows), np.int32), np.empty(len(rows), np.int64)
        span_of = self.dues.phase_of(rows)
        for number in np.unique(span_of):
            inside = span_of == number
            begun = self._begin(number)
            source[inside], source_row[inside] = begun.locate(rows[inside])
        return source, source_row + self.given[source]

    def counts(self, rows: int) -> np.ndarray:
        inside = int(rows) - self.first
        # The state at a border is what the phase before it leaves.
        number = max(0, bisect.bisect_left(self.dues.first, inside) - 1)
        return self.given + self._begin(number).counts(inside)

    def due(self, rows: int) -> np.ndarray:
        return self.given + self.dues.at(np.array([rows - self.first]))[:, 0]

    def _begin(self, number: int) -> "_Periodic | _Scheduled":
        """The span, knowing how many rows of each source lie before it."""
        span = self.spans[number]
        if isinstance(span, _Scheduled) and span.before is None:
            if number == 0:
                span.before = np.zeros(len(self.given), np.int64)
            else:
                span.before = self._begin(number - 1).counts(self.dues.first[number])
        return span


class _Periodic:
    """Constant shares from whole dues to the end: one period, scheduled at its first use."""

    def __init__(self, shares: list[float]):
        self._rows = np.array(_whole_rows(shares), np.int64)
        self.period = int(self._rows.sum())
        self._slots: list[np.ndarray] = []

    def _schedule(self) -> None:
        jobs = [np.arange(rows) for rows in self._rows]
        self._source = earliest_deadline_first(
            np.concatenate([j * self.period // max(1, len(j)) for j in jobs]),
            np.concatenate([-(-(j + 1) * self.period // max(1, len(j))) for j in jobs]),
            np.repeat(np.arange(len(jobs), dtype=np.int32), self._rows),
            0,
            self.period,
        )
        self._slots = [np.flatnonzero(self._source == i) for i in range(len(jobs))]
        self._rank = _ranks(self._source, len(jobs))

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self._slots:
            self._schedule()
        period, slot = np.divmod(rows, self.period)
        source = self._source[slot]
        return source, period * self._rows[source] + self._rank[slot]

    def counts(self, rows: int) -> np.ndarray:
        if not self._slots:
            self._schedule()
        period, slot = divmod(rows, self.period)
        inside = [np.searchsorted(slots, slot) for slots in self._slots]
        return period * self._rows + np.array(inside, np.int64)


class _Scheduled:
    """One phase of a chain, in blocks between states that are found by themselves."""

    def __init__(self, dues: Dues, number: int):
        self._dues, self._number = dues, number
        # Rows of each source before the phase; whoever uses it sets them.
        self.before: np.ndarray | None = None
        self._first = dues.first[number]
        self._active = np.flatnonzero(dues.active(number))
        self._sources = self._active.tolist()
        # First row, rows in a block and number of the last block of each part of the phase.
        parts = self._parts(0, dues.rows[number])
        self._part_first, self._block_rows, self._last_block = (
            np.array(each, np.int64) for each in zip(*parts, strict=True)
        )
        self._kept: collections.OrderedDict[int, tuple[np.ndarray, ...]] = collections.OrderedDict()

    def _parts(self, start: int, end: float) -> list[tuple[int, int, int]]:
        """The phase from row `start` of it to `end`, cut where blocks can be half as long.

        Every active source passes a few whole rows within a block, so that the states at its ends
        do not depend on each other. A source that comes or goes in a ramp is rare at one end alone.
        """

        def block_rows(start: float, end: float) -> int:
            return max(BLOCK_ROWS, 4 * self._dues.widest_gap(self._number, start, end))

        rows = block_rows(start, end)
        if end == math.inf:
            return [(self._first + start, rows, NEVER)]
        middle = (start + int(end)) // 2
        halves = (start, middle), (middle, int(end))
        shortest = min(block_rows(*half) for half in halves)
        if middle - start >= rows and shortest <= rows // 2:
            return [part for half in halves for part in self._parts(*half)]
        return [(self._first + start, rows, max(0, (int(end) - start) // rows - 1))]

    def _block_at(self, rows: np.ndarray) -> np.ndarray:
        """int64 [n]: the first row of the block that each row lies in."""
        part = np.searchsorted(self._part_first, rows, side="right") - 1
        first, length = self._part_first[part], self._block_rows[part]
        return first + np.minimum((rows - first) // length, self._last_block[part]) * length

    def _block_end(self, first: int) -> int:
        part = int(np.searchsorted(self._part_first, first, side="right")) - 1
        length = int(self._block_rows[part])
        if (first - self._part_first[part]) // length < self._last_block[part]:
            return first + length
        if part + 1 < len(self._part_first):
            return int(self._part_first[part + 1])
        return self._first + int(self._dues.rows[self._number])

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        source, source_row = np.empty(len(rows), np.int32), np.empty(len(rows), np.int64)
        block_of = self._block_at(rows)
        for first in np.unique(block_of).tolist():
            inside = block_of == first
            before, given, rank = self._block(first)
            slot = rows[inside] - first
            source[inside] = given[slot]
            source_row[inside] = before[given[slot]] + rank[slot]
        return source, source_row

    def counts(self, rows: int) -> np.ndarray:
        if rows == self._first:
            assert self.before is not None
            return self.before
        first = int(self._block_at(np.array([rows - 1]))[0])
        before, given, _ = self._block(first)
        return before + np.bincount(given[: rows - first], minlength=len(before))

    def _block(self, first: int) -> tuple[np.ndarray, ...]:
        """Rows of each source before the block, the source of each slot, its rank among them."""
        kept = self._kept.get(first)
        if kept is None:
            kept = self._kept[first] = self._scheduled_block(first)
            if len(self._kept) > 4:
                self._kept.popitem(last=False)
        self._kept.move_to_end(first)
        return kept

    def _scheduled_block(self, first: int) -> tuple[np.ndarray, ...]:
        end = self._block_end(first)
        before, after = self._state(first), self._state(end)
        given = self._run(before, first, end, after, self._active)
        return before, given, _ranks(given, len(before))

    def _state(self, row: int) -> np.ndarray:
        """int64 [sources]: rows of each before `row`, which is a border of blocks."""
        assert self.before is not None
        if row == self._first:
            return self.before
        first, counts = self._first, self.before
        passed = self._dues.passed(row)
        # Back over two whole rows of every source, so that one lies inside as a whole.
        back = min(
            self._dues.crossing(i, passed[i : i + 1] - 1, self._number)[0] for i in self._sources
        )
        if back > first:
            first, counts = int(back), self._soonest(int(back))
        until, leaving = self._dues.passed(row) + 4, self._leaving(row)
        if len(leaving):
            until[leaving] = self._left_with(counts, row, leaving)
        given = self._run(counts, first, row, until, leaving)
        return counts + np.bincount(given, minlength=len(counts))

    def _leaving(self, row: int) -> np.ndarray:
        """The sources that have rows before `row` and none in the phase that begins there."""
        if row < self._first + self._dues.rows[self._number]:
            return self._active[:0]
        return self._active[~self._dues.active(self._number + 1)[self._active]]

    def _left_with(self, counts: np.ndarray, row: int, leaving: np.ndarray) -> np.ndarray:
        """int64 [leaving]: rows of each source that leaves at `row`, from `counts` somewhat before.

        A source that leaves between two whole rows is left ahead or behind, until it comes back.
        All that are absent together are left ahead by less than a row, so that those that go on
        are behind by less than one; and those are ahead whose next row is due soonest.
        """
        passed, due = self._dues.passed(row), self._dues.at(np.array([row]))[:, 0]
        absent = np.setdiff1d(np.arange(len(counts)), self._active)
        behind = (due - counts)[absent].sum() + (due - passed)[leaving].sum()
        ahead = min(max(0, math.ceil(behind - CLOSE)), len(leaving))
        following = [
            self._dues.crossing(i, passed[i : i + 1] + 1, self._number)[0] for i in leaving.tolist()
        ]
        # Who has been given that row already cannot be asked for it.
        chosen = np.lexsort((leaving, following, counts[leaving] <= passed[leaving]))[:ahead]
        left = passed[leaving]
        left[chosen] += 1
        return np.maximum(left, counts[leaving])

    def _soonest(self, row: int) -> np.ndarray:
        """The state in which those sources are ahead whose next whole row is due soonest."""
        assert self.before is not None
        counts = self.before.copy()
        passed = self._dues.passed(row)
        counts[self._active] = passed[self._active]
        following = [
            self._dues.crossing(i, passed[i : i + 1] + 1, self._number)[0] for i in self._sources
        ]
        # Between none and all are ahead, unless sources that left hold more than a row too many.
        for_all, ahead = divmod(row - int(counts.sum()), len(self._active))
        counts[self._active] += for_all
        counts[self._active[np.lexsort((self._active, following))[:ahead]]] += 1
        return counts

    def _run(
        self, before: np.ndarray, first: int, end: int, until: np.ndarray, ending: np.ndarray
    ) -> np.ndarray:
        """int32 [end - first]: the source of each slot.

        Args:
          before, until: int64 [sources], rows of each given before, and those there are to give.
          first, end: the slots.
          ending: the sources whose rows must all lie before `end`.
        """
        release, deadline, source = [], [], []
        for i in self._sources:
            jobs = np.arange(before[i], until[i])
            closes = self._dues.crossing(i, jobs + 1, self._number)
            release.append(np.maximum(self._dues.opening(i, jobs, self._number), first))
            deadline.append(np.minimum(closes, end) if i in ending else closes)
            source.append(np.full(len(jobs), i, np.int32))
        return earliest_deadline_first(
            np.concatenate(release),
            np.concatenate(deadline),
            np.concatenate(source),
            first,
            end - first,
        )


def _ranks(source: np.ndarray, sources: int) -> np.ndarray:
    """int64: which of its source's slots each slot is, counted from 0."""
    rank = np.empty(len(source), np.int64)
    for i in range(sources):
        slots = np.flatnonzero(source == i)
        rank[slots] = np.arange(len(slots))
    return rank


def _checked(phases: Sequence[BlendPhase]) -> tuple[BlendPhase, ...]:
    """The phases with their shares as they are used."""
    if not phases or phases[-1].rows is not None:
        raise UsageError("a blend needs phases, the last of which lasts to the end of the run")
    for phase in phases[:-1]:
        if phase.rows is None or phase.rows < 1:
            raise UsageError(f"a phase of a blend has {phase.rows} rows: it needs at least one")
    if dict(phases[-1].start) != dict(phases[-1].end):
        raise UsageError("a phase that lasts to the end of the run cannot go to other shares")
    return tuple(
        dataclasses.replace(phase, start=as_used(phase.start), end=as_used(phase.end))
        for phase in phases
    )


def as_used(shares: Mapping[str, float]) -> dict[str, float]:
    """Shares after rounding to whole rows of a period; sources with none are left out."""
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
    rows = _whole_rows(list(positive.values()))
    return {name: each / sum(rows) for name, each in zip(positive, rows, strict=True)}


def _whole_rows(shares: list[float]) -> list[int]:
    """Rows of each source in one period."""
    exact = [_meant(share) for share in shares]
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
    # What rare sources have too many, the largest has too few: rounded again, all stay the same.
    rows[rows.index(max(rows))] -= sum(rows) - LONGEST_PERIOD
    divisor = math.gcd(*rows)
    return [count // divisor for count in rows]


def _meant(share: float) -> fractions.Fraction:
    """The fraction that somebody meant by a binary number: 51/100 by 0.51, 1/3 by 1 / 3."""
    simple = fractions.Fraction(share).limit_denominator(LONGEST_PERIOD)
    return simple if abs(simple - fractions.Fraction(share)) < 1e-12 else fractions.Fraction(share)
