"""Sets of steps, as (first step, count) in order; a step has the number of its line."""

import bisect
from collections.abc import Iterable, Sequence
from typing import Any

from t5x_style.errors import UsageError

Steps = tuple[tuple[int, int], ...]


def joined(*sets: Iterable[Sequence[int]]) -> Steps:
    """The steps of all sets."""
    found: list[tuple[int, int]] = []
    for first, count in sorted((first, count) for steps in sets for first, count in steps):
        if found and first <= sum(found[-1]):
            begin, length = found[-1]
            found[-1] = (begin, max(length, first + count - begin))
        else:
            found.append((first, count))
    return tuple(found)


def until(steps: Steps, last: int) -> Steps:
    """The steps of the set up to `last`."""
    return tuple((first, min(count, last + 1 - first)) for first, count in steps if first <= last)


def has(steps: Steps, step: int) -> bool:
    """Whether a step is in the set."""
    index = bisect.bisect_right(steps, step, key=lambda pair: pair[0]) - 1
    return index >= 0 and step < sum(steps[index])


def missing(steps: Steps, others: Steps) -> int | None:
    """The first step that is in the first set alone; None if there is none."""
    for first, count in steps:
        for step in range(first, first + count):
            if not has(others, step):
                return step
    return None


def check_steps(where: str, value: Any) -> Steps:
    """The set that a user wrote as [(first step, count), ...].

    Raises:
      UsageError: it is written otherwise.
    """
    pairs = value if isinstance(value, list | tuple) else [value]
    for pair in pairs:
        whole = isinstance(pair, list | tuple) and all(type(number) is int for number in pair)
        if not whole or len(pair) != 2 or min(pair) < 1:
            raise UsageError(
                f"{where} = {value!r}: {pair!r} is no pair of a first step and a count, both 1 or "
                "more, as in [(1200, 8)] for the steps 1,200 to 1,207"
            )
    return joined(pairs)


def steps_text(steps: Steps) -> str:
    """The set in words: `steps 1,200 to 1,207 and step 1,300`."""
    words = [
        f"step {first:,}" if count == 1 else f"steps {first:,} to {first + count - 1:,}"
        for first, count in steps
    ]
    return " and ".join(words)
