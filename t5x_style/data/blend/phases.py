"""Phases of shares in tokens, as a user writes them, and what becomes of them in rows."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from t5x_style.data.blend.blend import BlendPhase
from t5x_style.errors import UsageError


@dataclasses.dataclass(frozen=True)
class SharePhase:
    """A stretch of tokens over which shares stay, or go linearly from one blend to another.

    Attributes:
      tokens: how many; None: to the end of the run (the last phase only).
      start: {task: share of tokens} at its first token.
      end: the shares at its end.
    """

    tokens: int | None
    start: Mapping[str, float]
    end: Mapping[str, float]


def named_phases(asked: str | Sequence[Sequence]) -> list[tuple[str, str, int | None]]:
    """What a user writes in MIXTURE_OR_TASK_NAME, as (start, end, tokens).

    Args:
      asked: one name, or a list of (name, tokens), where the blend stays, and
        (name, name, tokens), where it goes from the first to the second; the last with tokens None.

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
    """The phases with their lengths in rows; one that begins at no later row than it ends is none.

    A ramp is linear in tokens. Where the sequence length changes inside of it, it is cut, so that
    each piece is linear in rows, too.

    Args:
      phases: in tokens, from the start of the run.
      rows_of_tokens: the first row at which so many tokens have been learnt.
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
        held = [_tokens_between(row, border, lengths) for border in borders]
        for position in range(len(borders) - 1):
            begin, end = (shares_at(phase, held[position + k] / max(1, held[-1])) for k in (0, 1))
            if borders[position + 1] > borders[position]:
                rows = borders[position + 1] - borders[position]
                result.append(BlendPhase(rows, begin, end))
        row = until
    return result


def _tokens_between(first: int, end: int, lengths: Sequence[tuple[int, int]]) -> int:
    ends = [row for row, _ in lengths[1:]] + [max(end, lengths[-1][0])]
    return sum(
        max(0, min(end, stop) - max(first, start)) * length
        for (start, length), stop in zip(lengths, ends, strict=True)
    )


def shares_at(phase: SharePhase | BlendPhase, share: float) -> dict[str, float]:
    """The shares at a place inside a phase, 0 its start and 1 its end."""
    if share == 0:
        return dict(phase.start)
    if share == 1:
        return dict(phase.end)
    names = dict.fromkeys([*phase.start, *phase.end])
    return {
        name: (1 - share) * phase.start.get(name, 0.0) + share * phase.end.get(name, 0.0)
        for name in names
    }
