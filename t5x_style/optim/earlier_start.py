"""What a start changes for a run that goes on: its learning rate, and the batches it has taken."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from t5x_style.data.rows.batch_plan import BatchPlan
from t5x_style.optim.optimizer import Optimizer


@dataclasses.dataclass(frozen=True)
class EarlierStart:
    """The last start of a run that has a checkpoint.

    Attributes:
      step: of the newest checkpoint, 1 or more.
      optimizer: its fields at that start, as plan.json has them.
      plan: the steps planned at that start.
    """

    step: int
    optimizer: Mapping[str, Any]
    plan: BatchPlan

    def rate_change(self, optimizer: Optimizer, plan: BatchPlan) -> str | None:
        """A notice if the learning rate of step `step` is another one now, with the reasons.

        Returns:
          None if it is the same, or if the optimizer or its schedule is of another kind now.
        """
        before = _with_fields(optimizer, self.optimizer)
        if before is None or (before == optimizer and plan == self.plan):
            return None

        def rate(chosen: Optimizer, steps: BatchPlan) -> float:
            return float(chosen.learning_rate(steps)(jnp.int32(self.step - 1)))

        old, new = rate(before, self.plan), rate(optimizer, plan)
        if _close(old, new):
            return None
        reasons = []
        if not _close(old, rate(before, plan)):
            reasons.append(
                f"the horizon was {self.plan.tokens:,} tokens and is {plan.tokens:,} "
                f"(Schedule.shape = 'constant', and 'wsd' before its cooldown, need no horizon)"
            )
        if not _close(old, rate(optimizer, self.plan)):
            reasons.append("the fields of the optimizer or its schedule were changed")
        because = " and ".join(reasons) or "the horizon and the schedule were changed together"
        return f"learning rate at step {self.step:,} goes from {old:.3g} to {new:.3g}: {because}"

    def batch_size_from_here(self, plan: BatchPlan) -> str:
        """The BATCH_SIZE that keeps the steps taken, and then takes the last size of `plan`."""
        phases: list[tuple[int, int | None]] = []
        left = self.step
        for phase in self.plan.phases:
            taken = min(left, phase.steps)
            left -= taken
            if taken:
                phases.append((phase.sequences, phase._replace(steps=taken).tokens))
        phases.append((plan.phases[-1].sequences, None))
        return f"[{', '.join(f'({size}, {_number(tokens)})' for size, tokens in phases)}]"


def _number(tokens: int | None) -> str:
    return "None" if tokens is None else f"{tokens:_}"


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * max(abs(one), abs(other))


def _with_fields(now: Any, before: Mapping[str, Any]) -> Any:
    """`now` with the fields of an earlier start; None if it has other fields now."""
    names = {field.name for field in dataclasses.fields(now) if field.init}
    if names != before.keys():
        return None
    changes = {}
    for name, value in before.items():
        inner = getattr(now, name)
        if dataclasses.is_dataclass(inner) or isinstance(value, Mapping):
            if not (dataclasses.is_dataclass(inner) and isinstance(value, Mapping)):
                return None
            if (value := _with_fields(inner, value)) is None:
                return None
        changes[name] = value
    return dataclasses.replace(now, **changes)
