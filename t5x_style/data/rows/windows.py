"""Which windows of each source the rows of one sequence length take."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from t5x_style.data.blend.blend import Blend
from t5x_style.errors import UsageError

# Rows of a stretch without an end.
ENDLESS = np.iinfo(np.int64).max // 4


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Rows of one sequence length, and where in each source they lie; arrays are int64 [sources].

    A source is its store over and over. A stretch of rows takes what follows of it: the rest of the
    epoch that was begun before (`head` windows from token `head_start` on), then whole epochs from
    `epoch` on, and of the last one `tail` windows. Windows are permuted inside of each of these, so
    that no token is read twice in an epoch, nor left out because the length changes.

    How many windows are permuted together follows from the rows that the stretch was to have when
    they were read. Where the blend changes inside of it, another stretch begins. Its first `rest`
    windows of each source are those still to come of the permutation that was begun; what the new
    blend does not take of them waits for the next epoch.

    Attributes:
      first, end: rows of the run; the end of the last one is infinite.
      length: S.
      given: rows that each source gave before.
      taken: rows that each source gives from `first` to `end`.
      rest: rows, before `head`, that continue the stretch before from its row `since` on.
      windows: W, windows in an epoch.
      leftover: tokens by which an epoch is longer than its windows.
      inside: bool: whether the stretch ends in the epoch that was begun before.
      whole: whole epochs; the rest as told above.
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


# Of (epoch, source, leftover), int64 [n] each: the first token of that epoch's windows.
Offset = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def laid_out(
    blend: Blend, sizes: np.ndarray, lengths: Sequence[tuple[int, int]], offset: Offset
) -> list[Stretch]:
    """The stretches of a run, from its first row on.

    Args:
      blend: of its rows.
      sizes: int64 [sources], tokens of each.
      lengths: (first row, S), in order, from row 0.
      offset: see `Offset`.

    Raises:
      UsageError: a source with fewer than S + 1 tokens.
    """
    stretches: list[Stretch] = []
    none = np.zeros(len(sizes), np.int64)
    # Where each source stands: its epoch, and the token in it.
    epoch = position = none
    ends = [*(first for first, _ in lengths[1:]), math.inf]
    for (first, length), end in zip(lengths, ends, strict=True):
        for name, tokens in zip(blend.names, sizes, strict=True):
            if tokens <= length:
                raise UsageError(
                    f"source {name!r} has {tokens} tokens: a row of sequence length {length} "
                    f"needs {length + 1}"
                )
        # Without an end windows are permuted in whole epochs, whatever the blend becomes.
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
            stretch = Stretch(
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
            stretches.append(stretch)
            if until == end:
                epoch, position = _behind(stretch, offset)
            else:
                since = taken
                rest, epoch, position = _broken_off(stretch, offset)
    return stretches


def _behind(stretch: Stretch, offset: Offset) -> tuple[np.ndarray, np.ndarray]:
    """Epoch and token in it at which each source stands behind all that was planned."""
    epoch = stretch.epoch + stretch.whole
    first = offset(epoch, np.arange(len(epoch)), stretch.leftover)
    position = np.where(stretch.tail > 0, first + stretch.tail * stretch.length, 0)
    head_end = stretch.head_start + stretch.head * stretch.length
    return epoch, np.where(stretch.inside, head_end, position)


def _broken_off(stretch: Stretch, offset: Offset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is left of the permutation that each source is in, and where it stands behind that."""
    behind_epoch, behind = _behind(stretch, offset)
    row = stretch.taken - stretch.rest
    turns, at = np.divmod(row - stretch.head, stretch.windows)
    in_rest = row <= 0
    in_head = ~in_rest & (row < stretch.head)
    in_last = ~in_rest & ~in_head & (turns == stretch.whole) & ((at > 0) | stretch.inside)
    size = np.where(in_last, stretch.tail, stretch.windows)
    rest = np.where(in_rest, -row, np.where(in_head, stretch.head - row, (size - at) * (at > 0)))
    cases = [in_rest, in_head, in_last]
    begun = stretch.epoch - ((stretch.head_start > 0) & ~stretch.inside)
    behind_head = np.where(stretch.inside, behind, 0)
    epoch = np.select(cases, [begun, stretch.epoch, behind_epoch], stretch.epoch + turns + (at > 0))
    return rest, epoch, np.select(cases, [stretch.head_start, behind_head, behind], 0)
