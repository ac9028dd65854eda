"""What a blend becomes when a source has been read as often as it may be."""

import math
from collections.abc import Mapping, Sequence

from t5x_style.data.blend.blend import BlendPhase, as_used
from t5x_style.data.blend.phases import shares_at


def capped(
    phases: Sequence[BlendPhase], caps: Mapping[str, float], lengths: Sequence[tuple[int, int]]
) -> tuple[list[BlendPhase], list[tuple[int, str]]]:
    """The phases without a source from the row on at which it is due its cap.

    From there the shares of the others are divided by their sum, in every phase that follows. A
    phase of that source alone has the blend that comes after it, so that no later phase moves. All
    shares are those that a blend uses, after rounding: what is due here is what it gives.

    Args:
      phases: in rows.
      caps: {source: tokens} that it may give; infinitely many, or none said, is no cap.
      lengths: as in `in_rows`.

    Returns:
      The phases, and (row, source) of each that reached its cap, in that order. Where all have,
      the phases end there, and none has rows None.
    """
    left = {name: cap for name, cap in caps.items() if cap < math.inf}
    todo = [BlendPhase(each.rows, as_used(each.start), as_used(each.end)) for each in phases]
    result: list[BlendPhase] = []
    due = dict.fromkeys(left, 0.0)
    reached: list[tuple[int, str]] = []
    row = 0
    while todo:
        phase = todo.pop(0)
        # A piece of one sequence length.
        border = min((first - row for first, _ in lengths if first > row), default=None)
        if border is not None and (phase.rows is None or border < phase.rows):
            phase, rest = _cut(phase, border)
            todo.insert(0, rest)
        length = [length for first, length in lengths if first <= row][-1]
        hits = []
        for name, cap in left.items():
            start, end = phase.start.get(name, 0.0), phase.end.get(name, 0.0)
            slope = 0.0 if phase.rows is None else (end - start) / phase.rows
            x = _first_time(start, slope, (cap - due[name]) / length)
            if x is not None and (phase.rows is None or x < phase.rows):
                hits.append((math.floor(x), name))
        if hits:
            at, gone = min(hits)
            if at:
                phase, rest = _cut(phase, at)
                todo.insert(0, rest)
            else:
                todo.insert(0, phase)
                phase = None
            reached.append((row + at, gone))
            del left[gone]
            todo = _all_without(todo, gone)
        if phase is not None:
            result.append(phase)
            if phase.rows is None:
                break
            for name in left:
                mean = (phase.start.get(name, 0.0) + phase.end.get(name, 0.0)) / 2
                due[name] += mean * phase.rows * length
            row += phase.rows
    return _joined(result), reached


def _first_time(start: float, slope: float, missing: float) -> float | None:
    """The least x >= 0 with start x + slope x^2 / 2 >= missing; None if there is none."""
    if missing <= 0:
        return 0.0 if start > 0 or slope > 0 else None
    root = start * start + 2 * slope * missing
    if root < 0 or start + math.sqrt(root) <= 0:
        return None
    return 2 * missing / (start + math.sqrt(root))


def _cut(phase: BlendPhase, rows: int) -> tuple[BlendPhase, BlendPhase]:
    if phase.rows is None:
        return BlendPhase(rows, phase.start, phase.end), phase
    middle = as_used(shares_at(phase, rows / phase.rows))
    return BlendPhase(rows, phase.start, middle), BlendPhase(phase.rows - rows, middle, phase.end)


def _all_without(phases: Sequence[BlendPhase], gone: str) -> list[BlendPhase]:
    left: list[BlendPhase] = []
    for phase in reversed(phases):
        others = _without(phase, gone)
        if others is None and left:
            others = BlendPhase(phase.rows, left[-1].start, left[-1].start)
        if others is not None:
            left.append(others)
    return left[::-1]


def _without(phase: BlendPhase, gone: str) -> BlendPhase | None:
    """The phase with the other shares divided by their sum; None if there are no others."""
    start, end = (
        {name: share for name, share in shares.items() if name != gone and share > 0}
        for shares in (phase.start, phase.end)
    )
    # A ramp to or from the source alone stays at the blend of its other end.
    start, end = start or end, end or start
    if not start:
        return None
    start, end = (
        as_used({name: share / sum(shares.values()) for name, share in shares.items()})
        for shares in (start, end)
    )
    return BlendPhase(phase.rows, start, end)


def _joined(phases: Sequence[BlendPhase]) -> list[BlendPhase]:
    """The same with neighbours of one constant blend made one, as they were before a cut."""
    result: list[BlendPhase] = []
    for phase in phases:
        before = result[-1] if result else None
        if before and before.start == before.end == phase.start == phase.end and before.rows:
            rows = None if phase.rows is None else before.rows + phase.rows
            result[-1] = BlendPhase(rows, phase.start, phase.end)
        else:
            result.append(phase)
    return result
