"""Phases of shares: the form that a user writes, in tokens, and the same in rows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from t5x_style.data.blend.blend import BlendPhase
from t5x_style.errors import UsageError


@dataclasses.dataclass(frozen=True)
class SharePhase:
    """A number of tokens over which shares are constant, or change linearly.

    Attributes:
      tokens: how many; None: to the end of the run (the last phase only).
      start: {task: share of tokens} at its first token.
      end: the shares at its end.
    """

    tokens: int | None
    start: Mapping[str, float]
    end: Mapping[str, float]


def named_phases(asked: str | Sequence[Sequence]) -> list[tuple[str, str, int | None]]:
    """The phases in MIXTURE_OR_TASK_NAME, as (start, end, tokens).

    Args:
      asked: one name, or a list of phases. (name, tokens) is a constant blend, (name, name, tokens)
        a ramp from the first to the second. The last has tokens None.

    Raises:
      UsageError: anything else.
    """
    if isinstance(asked, str):
        return [(asked, asked, None)]
    phases: list[tuple[str, str, int | None]] = []
    for number, phase in enumerate(asked, start=1):
        what = f"MIXTURE_OR_TASK_NAME, phase {number}: {phase!r}"
        if isinstance(phase, str) or len(phase) not in (2, 3):
            raise UsageError(f"{what}: write (NAME, TOKENS), or (FROM, TO, TOKENS) for a ramp")
        start, end, tokens = phase[0], phase[-2], phase[-1]
        if not (isinstance(start, str) and isinstance(end, str)):
            raise UsageError(f"{what}: a blend is the name of a mixture or of a task")
        if tokens is not None and not (isinstance(tokens, int) and tokens > 0):
            raise UsageError(f"{what}: its length is a whole number of tokens above 0, or None")
        if (tokens is None) != (number == len(asked)):
            raise UsageError(
                f"{what}: the last phase, and no other, has the length None: it lasts to the end "
                f"of the run"
            )
        if tokens is None and start != end:
            raise UsageError(f"{what}: a ramp needs a length in tokens")
        phases.append((start, end, tokens))
    if not phases:
        raise UsageError("MIXTURE_OR_TASK_NAME = []: name a mixture or a task")
    return phases


def in_rows(
    phases: Sequence[SharePhase],
    rows_of_tokens: Callable[[int], int],
    lengths: Sequence[tuple[int, int]],
) -> list[BlendPhase]:
    """The phases with their lengths in rows. A phase shorter than a row may vanish.

    A ramp is linear in tokens. Where the sequence length changes within a ramp, the ramp is split,
    so that each part is linear in rows too.

    Args:
      phases: in tokens, from the start of the run.
      rows_of_tokens: from a number of tokens to the fewest rows that hold them.
      lengths: (first row, S) of each sequence length, in order, from row 0.
    """
    result: list[BlendPhase] = []
    tokens = row = 0
    for phase in phases:
        if phase.tokens is None:
            result.append(BlendPhase(None, phase.start, phase.end))
            break
        tokens += phase.tokens
        until = max(row, rows_of_tokens(tokens))
        borders = [row, *(first for first, _ in lengths if row < first < until), until]
        tokens_at = [_tokens_between(row, border, lengths) for border in borders]
        for position in range(len(borders) - 1):
            begin, end = (
                shares_at(phase, tokens_at[position + k] / max(1, tokens_at[-1])) for k in (0, 1)
            )
            if borders[position + 1] > borders[position]:
                rows = borders[position + 1] - borders[position]
                result.append(BlendPhase(rows, begin, end))
        row = until
    return result


def _tokens_between(first: int, end: int, lengths: Sequence[tuple[int, int]]) -> int:
    """Tokens of the rows first .. end - 1."""
    ends = [row for row, _ in lengths[1:]] + [max(end, lengths[-1][0])]
    return sum(
        max(0, min(end, stop) - max(first, start)) * length
        for (start, length), stop in zip(lengths, ends, strict=True)
    )


def shares_at(phase: SharePhase | BlendPhase, position: float) -> dict[str, float]:
    """The shares at a position in a phase: 0 is its start, 1 its end."""
    if position == 0:
        return dict(phase.start)
    if position == 1:
        return dict(phase.end)
    names = dict.fromkeys([*phase.start, *phase.end])
    return {
        name: (1 - position) * phase.start.get(name, 0.0) + position * phase.end.get(name, 0.0)
        for name in names
    }
