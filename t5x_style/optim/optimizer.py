"""What a run asks of an optimizer, and AdamW of a schedule, so that a user's own will do."""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import jax
import optax

from t5x_style.data.rows.batch_plan import BatchPlan


class Optimizer(Protocol):
    """AdamW is one. A class of your own is bound in gin as `train.optimizer = @my_team.Lion()`.

    It is a frozen dataclass of plain values: its fields go into plan.json.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def state_bytes_per_parameter(self) -> int:
        """Bytes of state beside each float32 parameter, for the accounts of memory."""

    def check(self, horizon_tokens: int) -> None:
        """Raise UsageError if a run of so many tokens is too short."""

    def learning_rate(self, plan: BatchPlan) -> Callable[[jax.Array], jax.Array]:
        """A function from a traced step, int32 [], to its learning rate, float32 []."""

    def transformation(self, plan: BatchPlan, parameter_axes: Any) -> optax.GradientTransformation:
        """The optax chain from gradients to updates.

        Where it takes extra arguments, `update` gets `step`, int32 []: the run's step, which is
        ahead of the number of updates once an update was not applied.

        Args:
          plan: turns steps into tokens.
          parameter_axes: pytree like the parameters, with a tuple of logical axes for each.
        """


class LearningRateSchedule(Protocol):
    """`Schedule` is one. Your own is bound as `AdamW.schedule = @my_team.Staircase()`.

    It is a frozen dataclass of plain values, as an optimizer is.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def check(self, horizon_tokens: int) -> None:
        """Raise UsageError if a run of so many tokens is too short."""

    def learning_rate(self, tokens: Any, horizon_tokens: int) -> Any:
        """The learning rate after `tokens` tokens, float32 of the same shape.

        Args:
          tokens: float array of any shape, numpy or traced by jax.
          horizon_tokens: length of the run.
        """
