"""Spikes of loss and gradient norm: found by pure functions of the steps' numbers, so replayable.

A loss is compared with the median of those before it. Its distance is counted in median absolute
deviations. A spike moves neither much, and its values are left out. A mean and a standard deviation
would follow the spike, and miss the next one.
"""

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import gin
import numpy as np

from t5x_style.errors import one_of
from t5x_style.ranges import NonNegativeInt, PositiveFloat, PositiveInt, check_ranges

ACTIONS = ("warn", "skip", "rewind")
# The device computes so many steps ahead of the host. The limits of a step are therefore those that
# followed from the step LAG before it, and do not depend on how fast either of the two is.
LAG = 3
# Of normally distributed numbers, a standard deviation has so many median absolute deviations.
_NORMAL = 1.4826
# Numbers that hardly vary have a deviation of no less than this share of their median.
_LEAST_DEVIATION = 1e-3

# Loss and gradient norm of a step; or the largest that are no spike.
Pair = tuple[float, float]
NO_LIMITS: Pair = (math.inf, math.inf)


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Bad steps close together. A bad step is a spike, or its update was not applied.

    Attributes:
      first, last: the first and the last bad step.
      spikes: its steps past a limit.
      left_out: its steps whose update was not applied.
      bad: its bad steps.
    """

    first: int
    last: int
    spikes: int = 0
    left_out: int = 0
    bad: int = 0


def steps_of(stretch: Stretch) -> tuple[int, int]:
    """The steps from the first to the last bad one: (first step, count)."""
    return stretch.first, stretch.last - stretch.first + 1


@dataclasses.dataclass(frozen=True)
class Watch:
    """What is remembered of the steps so far; `Spikes.after` makes the next one.

    Attributes:
      step: the newest one.
      values: of the newest good steps, at most `Spikes.window` of them.
      limits: after each of the newest LAG steps, oldest first; infinite without any.
      stretch: the bad steps that are not over yet; None if the run is calm.
    """

    step: int = 0
    values: tuple[Pair, ...] = ()
    limits: tuple[Pair, ...] = (NO_LIMITS,) * LAG
    stretch: Stretch | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON types; an infinite limit is None."""
        return {
            "step": self.step,
            "values": [list(pair) for pair in self.values],
            "limits": [[x if math.isfinite(x) else None for x in pair] for pair in self.limits],
            "stretch": None if self.stretch is None else dataclasses.asdict(self.stretch),
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Watch":
        """The inverse of `to_json`."""

        def limit(value: float | None) -> float:
            return math.inf if value is None else value

        return cls(
            fields["step"],
            tuple((loss, norm) for loss, norm in fields["values"]),
            tuple((limit(loss), limit(norm)) for loss, norm in fields["limits"]),
            None if fields["stretch"] is None else Stretch(**fields["stretch"]),
        )


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Spikes:
    """What counts as a spike of the loss or the gradient norm, and what is done about it.

    A step is a spike if one of the two is above the median of the window by more than `deviations`
    median absolute deviations (scaled so that one is a standard deviation of normal numbers). The
    window has good steps alone, and judges from its half on. It is the window of three steps ago,
    since later numbers may not be known when the step begins.

    A bad step is one whose update is not applied, because a number is not finite or `action` is
    'skip'; with 'rewind', a spike is one as well. Bad steps belong to one stretch until `patience`
    good steps in a row. After `patience` bad ones, the run goes back to a whole checkpoint, and
    passes over the steps of the stretch when it comes there again.

    Attributes:
      action: 'warn' writes an event; 'skip' does not apply the update of a spike either; 'rewind'
        applies it, and goes back once `patience` is at its end.
      window: the good steps that a step is compared with.
      deviations: above the median that a good step may be.
      patience: the bad steps of a stretch after which the run goes back.
      margin: the good steps that must lie between the checkpoint and the stretch. A checkpoint
        saved while the trouble began is of no use.
      rewinds: the most times that a run goes back; then it ends, as it does if the same stretch
        goes wrong again.

    Raises:
      UsageError: a value is not allowed.
    """

    action: Literal["warn", "skip", "rewind"] = "warn"
    window: PositiveInt = 128
    deviations: PositiveFloat = 6.0
    patience: PositiveInt = 8
    margin: NonNegativeInt = 16
    rewinds: NonNegativeInt = 5

    def __post_init__(self):
        one_of("Spikes.action", self.action, ACTIONS)
        check_ranges(self)

    def limits(self, values: tuple[Pair, ...]) -> Pair:
        """The largest loss and gradient norm that are no spike after these good steps.

        They are rounded to float32, as the device compares them.
        """
        if not values or 2 * len(values) < self.window:
            return NO_LIMITS
        loss, norm = (
            float(np.float32(median + self.deviations * deviation))
            for median, deviation in map(spread, zip(*values, strict=True))
        )
        return loss, norm

    def after(self, watch: Watch, step: int, loss: float, norm: float, applied: bool) -> Watch:
        """What is remembered after a step.

        Args:
          step: its number; steps come in order, and those passed over do not come.
          loss, norm: float32 values; they may be anything where `applied` is false.
          applied: whether its update was.
        """
        pair = (float(loss), float(norm))
        spike = all(map(math.isfinite, pair)) and any(map(operator.gt, pair, watch.limits[0]))
        values, stretch = watch.values, watch.stretch
        if stretch is not None and step - stretch.last > self.patience:
            stretch = None
        if spike or not applied:
            before = stretch or Stretch(step, step)
            stretch = Stretch(
                before.first,
                step,
                before.spikes + spike,
                before.left_out + (not applied),
                before.bad + 1,
            )
            if stretch.spikes > self.window:
                # So many are no spike: the run has come to another level, and is judged by it.
                values = ()
        else:
            values = (*values, pair)[-self.window :]
        limits = watch.limits[-1] if values is watch.values else self.limits(values)
        return Watch(step, values, (*watch.limits[1:], limits), stretch)

    def began(self, before: Watch, after: Watch) -> bool:
        """Whether a spike began with the step between the two; its later steps are the same one."""
        if after.stretch is None or not after.stretch.spikes:
            return False
        same = before.stretch is not None and before.stretch.first == after.stretch.first
        return not (same and before.stretch and before.stretch.spikes)

    def hopeless(self, watch: Watch) -> bool:
        """Whether the stretch has gone on for so long that the run goes back."""
        if watch.stretch is None:
            return False
        bad = watch.stretch.bad if self.action == "rewind" else watch.stretch.left_out
        return bad >= self.patience


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The median, and the deviation from it. In plain Python, numpy takes ten times as long."""
    center = _median(values)
    deviation = _NORMAL * _median([abs(value - center) for value in values])
    return center, max(deviation, _LEAST_DEVIATION * abs(center))


def _median(values: Sequence[float]) -> float:
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(values) % 2 else (ordered[half - 1] + ordered[half]) / 2
