"""A verb as small as a verb can be, with the shapes of knobs that the real ones have."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import gin

from t5x_style.config.checks import operative_config, refuse_unconsumed
from t5x_style.errors import Fault, Preempted, StartAgain, UsageError

if TYPE_CHECKING:
    import numpy as np

CONFIGURABLES: tuple[str, ...] = ()


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ToyModel:
    """A model.

    Attributes:
      width: features.
      layers: how many
        of them.
      kind: of positions.
    """

    width: int
    layers: int = 2
    kind: Literal["alibi", "rope"] = "rope"
    dropout: float = 0.0

    def __post_init__(self):
        if self.width % 2:
            raise UsageError(f"ToyModel.width = {self.width} is odd: write an even number")


@gin.configurable
def toy_adamw(learning_rate: float, b1: float = 0.9, warmup: int | None = None) -> dict:
    """An optimizer."""
    return {"name": "adamw", "learning_rate": learning_rate, "b1": b1, "warmup": warmup}


@gin.configurable
def toy_sgd(learning_rate: float, momentum: float | None = None) -> dict:
    """Another optimizer."""
    return {"name": "sgd", "learning_rate": learning_rate, "momentum": momentum}


@gin.configurable
def toy_schedule(step: int, peak: float = 1.0) -> float:
    """Called by the verb, later."""
    return step * peak


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ToySource:
    """Used in scopes."""

    path: str
    share: float = 1.0


class ToyRule(Protocol):
    """What the verb needs of an update rule; a user's own class has it without inheriting it."""

    learning_rate: float

    @property
    def state_bytes(self) -> int: ...

    def update(self, gradient: float) -> float: ...


@gin.configurable
def toy_unused(a: float = 1.0) -> float:
    """Nothing in the toy verb calls this."""
    return a


@gin.configurable(module="t5x_style.commands.toy_other")
def toy_other(*, a: float = 1.0, b: object = None, dry_run: bool = False) -> None:
    """Another verb."""


@gin.configurable(module="t5x_style.commands.toy")
def toy(
    *,
    model: ToyModel,
    optimizer: Mapping,
    model_dir: str,
    steps: int = 10,
    schedule: Callable | None = None,
    sources: Sequence[ToySource] = (),
    lengths: Mapping[str, int] | None = None,
    sizes: Sequence[int] = (),
    verify: bool = False,
    rule: ToyRule | None = None,
    array: np.ndarray | None = None,
    raises: str | None = None,
    dry_run: bool = False,
) -> dict:
    """Does nothing, with all its arguments.

    More of the description.

    Args:
      model: what is trained.
      optimizer: how.
      model_dir: where.
      steps: how many
        steps.
    """
    refuse_unconsumed()
    config = operative_config()
    faults = {
        "fault": Fault("the disk is full"),
        "again": StartAgain("process 1 of 2 was lost"),
        "preempted": Preempted("saved at step 3"),
        "interrupt": KeyboardInterrupt(),
        "bug": ZeroDivisionError("division by zero\nand more"),
    }
    if raises is not None:
        raise faults[raises]
    print("printed for people")
    return {
        "model": dataclasses.asdict(model),
        "optimizer": dict(optimizer),
        "model_dir": model_dir,
        "steps": steps,
        "scheduled": schedule(3) if schedule else None,
        "sources": [dataclasses.asdict(source) for source in sources],
        "lengths": lengths,
        "sizes": list(sizes),
        "verify": verify,
        "updated": None if rule is None else rule.update(2.0),
        "dry_run": dry_run,
        "config": config,
    }
