"""Which windows of each source the rows of one sequence length take."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from t5x_style.data.blend.blend import Blend
from t5x_style.errors import UsageError

# Rows of a window run without an end.
ENDLESS = np.iinfo(np.int64).max // 4


@dataclasses.dataclass(frozen=True)
class WindowRun:
    """Rows of one sequence length, and their windows in each source; arrays are int64 [sources].

    A source is read as its store over and over. A window run continues where the one before ended.
    It reads the rest of the epoch that was begun (`head` windows from token `head_start`), then
    whole epochs from `epoch` on, then `tail` windows of the last one. Each of these is permuted in
    itself, so a change of length neither repeats a token within an epoch nor drops one.

    The sizes of these permutations follow from the rows that were planned when they were read. At a
    change of the blend another window run begins. Its first `rest` windows of each source finish
    the permutation that was interrupted. Windows that the new blend does not ask for come in the
    next epoch.

    Attributes:
      first, end: rows of the run; the end of the last one is infinite.
      length: S.
      given: rows that each source gave before.
      taken: rows that each source gives from `first` to `end`.
      rest: rows, before `head`, that continue the window run before from its row `since` on.
      windows: W, windows in an epoch.
      leftover: tokens by which an epoch is longer than its windows.
      inside: bool: whether it ends in the epoch that was begun before.
      whole: whole epochs.
    """

    first: int
    end: float
    length: int
    given: np.ndarray
    taken: np.ndarray
    rest: np.ndarray
    since: np.ndarray
    windows: np.ndarray
    leftover: np.ndarray
    head: np.ndarray
    head_start: np.ndarray
    inside: np.ndarray
    epoch: np.ndarray
    whole: np.ndarray
    tail: np.ndarray


# (epoch, source, leftover), int64 [n] each, to int64 [n]: the first token of an epoch's windows.
Offset = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def lay_out_windows(
    blend: Blend, sizes: np.ndarray, lengths: Sequence[tuple[int, int]], offset: Offset
) -> list[WindowRun]:
    """The window runs of a training run, from its first row on.

    Args:
      blend: the order of its rows.
      sizes: int64 [sources], tokens of each source.
      lengths: (first row, S), in order, from row 0.
      offset: see `Offset`.

    Raises:
      UsageError: a source with fewer than S + 1 tokens.
    """
    runs: list[WindowRun] = []
    none = np.zeros(len(sizes), np.int64)
    # The epoch that each source is in, and the next token in it.
    epoch = position = none
    ends = [*(first for first, _ in lengths[1:]), math.inf]
    for (first, length), end in zip(lengths, ends, strict=True):
        for name, tokens in zip(blend.names, sizes, strict=True):
            if tokens <= length:
                raise UsageError(
                    f"source {name!r} has {tokens} tokens: a row of sequence length {length} "
                    f"needs {length + 1}"
                )
        # Without an end, windows are permuted in whole epochs, and a change interrupts nothing.
        changes = [row for row, _ in blend.changes if first < row < end < math.inf]
        rest = since = none
        begins = [first, *changes]
        for begin, until in zip(begins, [*changes, end], strict=True):
            given, planned, taken = blend.counts(begin), ENDLESS + none, ENDLESS + none
            if end < math.inf:
                planned = blend.counts_unchanged(int(end), begin) - given
                taken = blend.counts(int(until)) - given
            windows = (sizes - 1) // length
            rows = np.maximum(planned - rest, 0)
            begun = position > 0
            head = np.where(begun, np.minimum((sizes - 1 - position) // length, rows), 0)
            inside = begun & (head == rows)
            whole, tail = np.divmod(rows - head, windows)
            run = WindowRun(
                first=begin,
                end=until,
                length=length,
                given=given,
                taken=taken,
                rest=rest,
                since=since,
                windows=windows,
                leftover=sizes - 1 - windows * length,
                head=head,
                head_start=position,
                inside=inside,
                epoch=epoch + (begun & ~inside),
                whole=whole,
                tail=tail if end < math.inf else none,
            )
            runs.append(run)
            if until == end:
                epoch, position = _end_position(run, offset)
            else:
                since = taken
                rest, epoch, position = _interrupted_at(run, offset)
    return runs


def _end_position(run: WindowRun, offset: Offset) -> tuple[np.ndarray, np.ndarray]:
    """Each source's epoch, and the next token in it, after all planned rows."""
    epoch = run.epoch + run.whole
    first = offset(epoch, np.arange(len(epoch)), run.leftover)
    position = np.where(run.tail > 0, first + run.tail * run.length, 0)
    head_end = run.head_start + run.head * run.length
    return epoch, np.where(run.inside, head_end, position)


def _interrupted_at(run: WindowRun, offset: Offset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows left in each source's permutation, and the epoch and next token after those."""
    end_epoch, end = _end_position(run, offset)
    row = run.taken - run.rest
    epochs, at = np.divmod(row - run.head, run.windows)
    in_rest = row <= 0
    in_head = ~in_rest & (row < run.head)
    in_last = ~in_rest & ~in_head & (epochs == run.whole) & ((at > 0) | run.inside)
    size = np.where(in_last, run.tail, run.windows)
    rest = np.where(in_rest, -row, np.where(in_head, run.head - row, (size - at) * (at > 0)))
    cases = [in_rest, in_head, in_last]
    begun = run.epoch - ((run.head_start > 0) & ~run.inside)
    after_head = np.where(run.inside, end, 0)
    epoch = np.select(cases, [begun, run.epoch, end_epoch], run.epoch + epochs + (at > 0))
    return rest, epoch, np.select(cases, [run.head_start, after_head, end], 0)
