"""The steps that a run passes over, and the numbers by which it decides to go back."""

import bisect
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.training.recovery.spikes import LAG, NO_LIMITS, Spikes, Stretch, Watch, steps_of
from t5x_style.training.recovery.steps import Steps, has, joined, missing, steps_text, until


class Rewind(Exception):
    """The run goes back to a checkpoint before a stretch of bad steps.

    Attributes:
      stretch: the steps.
    """

    def __init__(self, stretch: Stretch):
        super().__init__(stretch)
        self.stretch = stretch


@dataclasses.dataclass
class Recovery:
    """What a run remembers of bad steps. All of it follows from the steps' numbers.

    Attributes:
      spikes: the rule.
      plan: which rows a step reads.
      skipped: the steps that are passed over: those asked for, and those that the run went back
        for.
      rewound: the stretches that it went back for, in order.
      left_out: the steps so far whose update was not applied.
      watch: the numbers of the steps so far.
    """

    spikes: Spikes
    plan: BatchPlan
    skipped: Steps = ()
    rewound: Steps = ()
    left_out: Steps = ()
    watch: Watch = dataclasses.field(default_factory=Watch)

    @classmethod
    def resumed(
        cls, spikes: Spikes, plan: BatchPlan, asked: Steps, saved: Mapping[str, Any], step: int
    ) -> "Recovery":
        """That of a run which goes on from a checkpoint.

        Args:
          asked: the steps that the configuration skips.
          saved: what `to_json` had in the checkpoint; empty for one of an older version.
          step: of the checkpoint.

        Raises:
          UsageError: a step to skip is in the checkpoint already.
        """
        saved = saved or Recovery(spikes, plan).to_json(step)
        past, left_out = joined(saved["skipped"]), joined(saved["left_out"])
        learnt = missing(until(asked, step), joined(past, left_out))
        if learnt is not None:
            raise UsageError(
                f"train.skip_steps asks to skip step {learnt:,}, and the checkpoint of step "
                f"{step:,} has learnt from it: name steps from {step + 1:,} on, or start from an "
                "older checkpoint"
            )
        rewound = tuple(_steps_of_rows(plan, *rows) for rows in saved["rewound_rows"])
        skipped = joined(past, asked, rewound)
        return cls(spikes, plan, skipped, rewound, left_out, Watch.from_json(saved["watch"]))

    def to_json(self, step: int) -> dict[str, Any]:
        """What the checkpoint of a step keeps, in JSON types.

        Stretches are kept as rows. Another batch size from here on does not move the text that
        they were.
        """
        rows_before = self.plan.rows_before
        return {
            "skipped": until(self.skipped, step),
            "rewound_rows": [
                (rows_before(first - 1), rows_before(first + count - 1) - rows_before(first - 1))
                for first, count in self.rewound
            ],
            "left_out": self.left_out,
            "watch": self.watch.to_json(),
        }

    def back(self, stretch: Stretch, saved: Mapping[str, Any], step: int) -> "Recovery":
        """That of the run once it has gone back to the checkpoint of `step`, for a stretch."""
        steps = steps_of(stretch)
        before = Recovery.resumed(self.spikes, self.plan, (), saved, step)
        return dataclasses.replace(
            before,
            skipped=joined(self.skipped, [steps]),
            rewound=(*self.rewound, steps),
        )

    def skips(self, step: int) -> bool:
        """Whether a step is passed over."""
        return has(self.skipped, step)

    def passed_over(self, since: int, step: int) -> tuple[int, int]:
        """The steps passed over after `since` and up to `step`: their number, and their tokens."""
        spans = [
            (max(first - 1, since), min(first + count - 1, step)) for first, count in self.skipped
        ]
        spans = [(begin, end) for begin, end in spans if begin < end]
        tokens_before = self.plan.tokens_before
        return (
            sum(end - begin for begin, end in spans),
            sum(tokens_before(end) - tokens_before(begin) for begin, end in spans),
        )

    def not_learnt(self, step: int) -> Steps:
        """The steps up to `step` of which nothing was learnt."""
        return joined(until(self.skipped, step), until(self.left_out, step))

    def limits_of(self, step: int, in_flight: int) -> np.ndarray:
        """The limits of an update that is applied, float32 [2]: loss and gradient norm.

        Args:
          step: the one that is dispatched next.
          in_flight: the steps that were dispatched and are not seen yet; fewer than LAG.
        """
        comparable = self.spikes.action == "skip" and self._comparable(step)
        return np.array(self.watch.limits[in_flight] if comparable else NO_LIMITS, np.float32)

    def observe(self, step: int, loss: float, norm: float, applied: bool) -> bool:
        """Take in the numbers of a step; every step that is not passed over, once, in order.

        Returns:
          Whether a spike begins with it.

        Raises:
          Rewind: so many steps are bad that the run goes back.
        """
        before = self.watch
        shape = self.plan.shape(step - 1)
        if shape != self.plan.shape(max(before.step, 1) - 1):
            # A loss over shorter rows is another one, as is the norm of a smaller batch.
            before = dataclasses.replace(before, values=())
        if not self._comparable(step):
            before = dataclasses.replace(before, limits=(NO_LIMITS, *before.limits[1:]))
        self.watch = self.spikes.after(before, step, loss, norm, applied)
        if not applied:
            self.left_out = joined(self.left_out, [(step, 1)])
        if self.watch.stretch is not None and self.spikes.hopeless(self.watch):
            raise Rewind(self.watch.stretch)
        return self.spikes.began(before, self.watch)

    def repeats(self, stretch: Stretch) -> str | None:
        """Why the run does not go back for a stretch, but ends; None if it does go back."""
        for first, count in self.rewound:
            margin = self.spikes.margin
            if first - margin <= stretch.first <= first + count + margin:
                gone = steps_text(((first, count),))
                return f"the run went back for {gone} already, and then went wrong again"
        if len(self.rewound) >= self.spikes.rewinds:
            return f"the run went back {len(self.rewound)} times already (Spikes.rewinds)"
        return None

    def _comparable(self, step: int) -> bool:
        """Whether the limits of a step follow from steps of the same shape."""
        shape = self.plan.shape
        return shape(step - 1) == shape(max(step - LAG, 1) - 1)


def _steps_of_rows(plan: BatchPlan, first_row: int, rows: int) -> tuple[int, int]:
    """The steps that read some rows: (first step, count)."""

    def step_of(row: int) -> int:
        return bisect.bisect_right(range(plan.steps + 1), row, key=plan.rows_before)

    first = step_of(first_row)
    return first, step_of(first_row + rows - 1) - first + 1
