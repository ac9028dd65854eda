"""Where two runs part: the first step at which their numbers differ."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.reporting.run.record import RunRecord

# Parts of the names of numbers that depend on the machine and its clock. After a `/` comes the name
# of a source, which may be any.
_OF_THE_CLOCK = ("time", "second", "goodput", "mfu", "hfu", "flops_per_chip")


def depends_on_clock(name: str) -> bool:
    """Whether a number of a line is another in every start of the same run."""
    quantity = name.partition("/")[0]
    return any(part in quantity for part in _OF_THE_CLOCK)


@dataclasses.dataclass(frozen=True)
class Difference:
    """A number of one step that is another in the second run.

    Attributes:
      name: of the number, as in metrics.jsonl.
      first, second: its values; None where a run has none.
    """

    step: int
    name: str
    first: float | None
    second: float | None

    @property
    def relative(self) -> float:
        """|first - second| / the larger magnitude; infinite where one run has no value."""
        if self.first is None or self.second is None:
            return float("inf")
        largest = max(abs(self.first), abs(self.second))
        return abs(self.first - self.second) / largest if largest else 0.0


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
      compared: the lines, of training and of evaluations, of steps that both runs have.
      last_step: of these lines; None without one.
      parted: the differences at the first step that has one; empty if there is none.
      largest: the largest relative difference at any step; None if no number differs.
      only_first, only_second: steps whose lines one run alone has.
    """

    compared: int
    last_step: int | None
    parted: Sequence[Difference]
    largest: Difference | None
    only_first: Sequence[int]
    only_second: Sequence[int]


def compare_runs(first: RunRecord, second: RunRecord, tolerance: float = 0.0) -> Comparison:
    """The numbers of two runs that follow from the run alone; seconds and speeds are left out.

    Args:
      tolerance: the relative difference up to which two numbers count as the same. With 0 they are
        the same bit for bit.
    """
    differences: list[Difference] = []
    compared = 0
    last_step = None
    only_first: set[int] = set()
    only_second: set[int] = set()
    for kind in ("training", "evaluations"):
        before, after = _by_step(getattr(first, kind)), _by_step(getattr(second, kind))
        only_first |= before.keys() - after.keys()
        only_second |= after.keys() - before.keys()
        for step in before.keys() & after.keys():
            compared += 1
            last_step = step if last_step is None else max(step, last_step)
            differences += _line_differences(step, before[step], after[step], tolerance)
    differences.sort(key=lambda difference: difference.step)
    parted = [found for found in differences if found.step == differences[0].step]
    return Comparison(
        compared=compared,
        last_step=last_step,
        parted=parted,
        largest=max(differences, key=lambda difference: difference.relative, default=None),
        only_first=sorted(only_first),
        only_second=sorted(only_second),
    )


def _by_step(lines: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    return {line["step"]: line for line in lines}


def _line_differences(
    step: int, first: Mapping[str, Any], second: Mapping[str, Any], tolerance: float
) -> list[Difference]:
    found = []
    for name in sorted(first.keys() | second.keys()):
        if depends_on_clock(name):
            continue
        difference = Difference(step, name, first.get(name), second.get(name))
        if difference.first != difference.second and difference.relative > tolerance:
            found.append(difference)
    return found
