"""The phases of a blend in which a source at its cap leaves its share to the others."""

import math
from collections.abc import Mapping, Sequence

from t5x_style.data.blend.blend import BlendPhase
from t5x_style.data.blend.phases import shares_at
from t5x_style.data.blend.shares import rounded_shares


def capped(
    phases: Sequence[BlendPhase], caps: Mapping[str, float], lengths: Sequence[tuple[int, int]]
) -> tuple[list[BlendPhase], list[tuple[int, str]]]:
    """The phases without a source from the row on at which its owed tokens reach its cap.

    From there on the shares of the others are divided by their sum. A phase of that source alone
    gets the blend of the phase after it, so that no later phase moves. Shares are rounded as a
    `Blend` rounds them, so that the tokens owed here are the tokens it gives.

    Args:
      phases: in rows.
      caps: {source: most tokens}; a source that is infinite or left out has no cap.
      lengths: as in `in_rows`.

    Returns:
      The phases, and (row, source) where each source reached its cap, in that order. If all sources
      did, the phases end at the last row, and none has rows None.
    """
    open_caps = {name: cap for name, cap in caps.items() if cap < math.inf}
    todo = [
        BlendPhase(phase.rows, rounded_shares(phase.start), rounded_shares(phase.end))
        for phase in phases
    ]
    result: list[BlendPhase] = []
    owed = dict.fromkeys(open_caps, 0.0)
    capped_at: list[tuple[int, str]] = []
    row = 0
    while todo:
        phase = todo.pop(0)
        # Split off a piece of one sequence length.
        border = min((first - row for first, _ in lengths if first > row), default=None)
        if border is not None and (phase.rows is None or border < phase.rows):
            phase, rest = _split(phase, border)
            todo.insert(0, rest)
        length = [length for first, length in lengths if first <= row][-1]
        hits = []
        for name, cap in open_caps.items():
            start, end = phase.start.get(name, 0.0), phase.end.get(name, 0.0)
            slope = 0.0 if phase.rows is None else (end - start) / phase.rows
            x = _rows_until(start, slope, (cap - owed[name]) / length)
            if x is not None and (phase.rows is None or x < phase.rows):
                hits.append((math.floor(x), name))
        if hits:
            at, gone = min(hits)
            capped_at.append((row + at, gone))
            del open_caps[gone]
            if not at:
                todo = _drop_source([phase, *todo], gone)
                continue
            phase, rest = _split(phase, at)
            todo = _drop_source([rest, *todo], gone)
        result.append(phase)
        if phase.rows is None:
            break
        for name in open_caps:
            mean = (phase.start.get(name, 0.0) + phase.end.get(name, 0.0)) / 2
            owed[name] += mean * phase.rows * length
        row += phase.rows
    return _merge_equal(result), capped_at


def _rows_until(start: float, slope: float, missing: float) -> float | None:
    """The least x >= 0 with start x + slope x^2 / 2 >= missing; None if there is none."""
    if missing <= 0:
        return 0.0 if start > 0 or slope > 0 else None
    root = start * start + 2 * slope * missing
    if root < 0 or start + math.sqrt(root) <= 0:
        return None
    return 2 * missing / (start + math.sqrt(root))


def _split(phase: BlendPhase, rows: int) -> tuple[BlendPhase, BlendPhase]:
    """The first `rows` rows of a phase, and the others."""
    if phase.rows is None:
        return BlendPhase(rows, phase.start, phase.end), phase
    middle = rounded_shares(shares_at(phase, rows / phase.rows))
    return BlendPhase(rows, phase.start, middle), BlendPhase(phase.rows - rows, middle, phase.end)


def _drop_source(phases: Sequence[BlendPhase], gone: str) -> list[BlendPhase]:
    """The phases without a source; a phase of it alone gets the blend of the phase after it."""
    # From the last phase to the first.
    remaining: list[BlendPhase] = []
    for phase in reversed(phases):
        others = _share_among_others(phase, gone)
        if others is None and remaining:
            others = BlendPhase(phase.rows, remaining[-1].start, remaining[-1].start)
        if others is not None:
            remaining.append(others)
    return remaining[::-1]


def _share_among_others(phase: BlendPhase, gone: str) -> BlendPhase | None:
    """The phase with the other shares divided by their sum; None if there are no others."""
    start, end = (
        {name: share for name, share in shares.items() if name != gone and share > 0}
        for shares in (phase.start, phase.end)
    )
    # A ramp to or from the source alone keeps the blend of its other end.
    start, end = start or end, end or start
    if not start:
        return None
    start, end = (
        rounded_shares({name: share / sum(shares.values()) for name, share in shares.items()})
        for shares in (start, end)
    )
    return BlendPhase(phase.rows, start, end)


def _merge_equal(phases: Sequence[BlendPhase]) -> list[BlendPhase]:
    """The phases, with neighbours of the same constant blend merged: it undoes `_split`."""
    result: list[BlendPhase] = []
    for phase in phases:
        before = result[-1] if result else None
        if before and before.start == before.end == phase.start == phase.end and before.rows:
            rows = None if phase.rows is None else before.rows + phase.rows
            result[-1] = BlendPhase(rows, phase.start, phase.end)
        else:
            result.append(phase)
    return result
